//! `cortex`: parse, run, print the error chain, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use cortex_metrics::cli::Exit;
use cortex_metrics::cli::cortex::{CortexArgs, run};

fn main() -> ExitCode {
    let exit = run(CortexArgs::parse()).unwrap_or_else(|error| {
        eprintln!("cortex: {error:#}");
        Exit::Failure
    });
    exit.into()
}
