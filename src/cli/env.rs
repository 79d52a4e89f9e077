//! `cortex env list|add|remove`.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};

use super::Exit;
use super::environments::{Environments, LOCAL};
use super::query_url::without_password;
use crate::overview::{Table, printable};

#[derive(Debug, Args)]
pub(super) struct EnvArgs {
    #[command(subcommand)]
    command: EnvCommand,
}

#[derive(Debug, Subcommand)]
enum EnvCommand {
    /// Show all environments
    List,
    /// Add an environment, or give one new URLs
    Add {
        /// The name, as in `cortex get -e NAME`
        name: String,
        /// A collector, or a Prometheus, Mimir, Thanos or VictoriaMetrics: where /api/v1/query is
        url: String,
        /// A Grafana dashboard with a variable `api_name`, that `cortex get API_NAME` links to
        #[arg(long, value_name = "URL")]
        dashboard_url: Option<String>,
    },
    /// Remove an environment
    Remove {
        /// The name
        name: String,
    },
}

pub(super) fn run(args: &EnvArgs) -> anyhow::Result<Exit> {
    let mut environments = Environments::load()?;
    match &args.command {
        EnvCommand::List => {
            let headers = ["env", "url", "dashboard"].map(str::to_owned).to_vec();
            let row = |(name, env): (&str, &super::environments::Environment)| {
                vec![
                    name.to_owned(),
                    without_password(&env.url),
                    env.dashboard_url.as_deref().map_or_else(|| "-".to_owned(), without_password),
                ]
            };
            let table = Table { headers, rows: environments.iter().map(row).collect() };
            io::stdout().write_all(table.render().as_bytes())?;
        }
        EnvCommand::Add { name, url, dashboard_url } => {
            environments.add(name, url, dashboard_url.as_deref())?;
            environments.save()?;
        }
        EnvCommand::Remove { name } => {
            if !environments.remove(name) {
                eprintln!("cortex: there is no environment {:?}", printable(name));
                return Ok(Exit::Failure);
            }
            environments.save()?;
            if name == LOCAL {
                eprintln!("{LOCAL} is the collector on this machine again");
            }
        }
    }
    Ok(Exit::Success)
}
