//! `cortex-collector`: parse, run, print the error chain, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use cortex_metrics::cli::collector::{CollectorArgs, run};

fn main() -> ExitCode {
    match run(CollectorArgs::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cortex-collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}
