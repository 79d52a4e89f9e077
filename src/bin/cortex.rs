//! `cortex`: parse, run, print the error chain, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use cortex_metrics::cli::Exit;
use cortex_metrics::cli::cortex::{CortexArgs, run};

fn main() -> ExitCode {
    let exit = run(CortexArgs::parse()).unwrap_or_else(|error| {
        // Whoever reads has seen enough: `cortex get | head -1`.
        let io_error = error.downcast_ref::<std::io::Error>();
        if io_error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return Exit::Success;
        }
        eprintln!("cortex: {error:#}");
        Exit::Failure
    });
    exit.into()
}
