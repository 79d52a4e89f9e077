//! `cortex`: the command line, and what each command is.

use clap::{Parser, Subcommand};

use super::{Exit, doctor, env, get, query, top};

/// Shows how your APIs do: requests, response codes and durations over two weeks.
#[derive(Debug, Parser)]
#[command(name = "cortex", version, arg_required_else_help = true)]
pub struct CortexArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show all APIs, or one with its custom metrics
    #[command(after_help = "Examples:\n  cortex get\n  cortex get iris-classifier\n  cortex get -e production -o json")]
    Get(get::GetArgs),
    /// Evaluate a PromQL expression, now or over a time
    #[command(
        after_help = "Examples:\n  cortex query 'sum by (api_name) (rate(cortex_api_requests_total[5m]))'\n  cortex query my_counter --start -1h --step 1m -o csv"
    )]
    Query(query::QueryArgs),
    /// Show which metrics take the most messages, or the most series
    #[command(after_help = "Examples:\n  cortex top\n  cortex top --by series --limit 50")]
    Top(top::TopArgs),
    /// Find out why a metric is missing: send a probe as a client would, and follow it
    #[command(
        after_help = "Examples:\n  cortex doctor\n  cortex doctor my_counter\n  cortex doctor --url unix:///run/cortex.sock"
    )]
    Doctor(doctor::DoctorArgs),
    /// List, add and remove environments: names for query URLs
    #[command(
        after_help = "Example:\n  cortex env add production https://mimir.example.com/prometheus --dashboard-url https://grafana.example.com/d/realtimeapi"
    )]
    Env(env::EnvArgs),
}

/// Runs the command.
///
/// # Errors
/// What could not be done; what is merely not found is told on stderr and is an [`Exit`].
pub fn run(args: CortexArgs) -> anyhow::Result<Exit> {
    match args.command {
        Command::Get(args) => get::run(&args),
        Command::Query(args) => query::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Env(args) => env::run(&args),
    }
}
