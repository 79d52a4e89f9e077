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

/// How a program ends in which a thread has failed that it cannot do without: `EX_SOFTWARE` of sysexits.h.
pub const EXIT_FAILED: i32 = 70;

/// From here on a panic in a thread whose name begins with `prefix` ends the program: whoever supervises it starts it again, where a
/// program that lives on without its listener or its recorder would look well. A request that panics costs itself.
pub fn end_if_a_thread_panics(prefix: &'static str) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        let thread = std::thread::current();
        if let Some(name) = thread.name().filter(|name| name.starts_with(prefix)) {
            tracing::error!(thread = name, "a thread has failed: this is a mistake in the program, which ends");
            std::process::exit(EXIT_FAILED);
        }
    }));
}
