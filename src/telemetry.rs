//! The programs' own log: to stderr, one line an event.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts the log at `level` (`error`, `warn`, `info`, `debug`, `trace`, or filters such as `cortex_metrics=debug`).
///
/// # Errors
/// What is wrong with `level`, in words.
pub fn init(level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("got log level {level:?}: {error}"))?;
    // A second start, as in tests, keeps the first log.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .try_init();
    Ok(())
}
