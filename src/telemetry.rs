//! The programs' own log: to stderr, one line an event.

use std::io::IsTerminal as _;

use tracing::Level;

/// Starts the log with all that is at least as grave as `level`.
pub fn init(level: Level) {
    // A second start, as in tests, keeps the first log.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .try_init();
}
