//! `cortex top`: which metrics take the most messages and the most series, and which contexts the most messages.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::Exit;
use super::environments::{Environments, LOCAL};
use super::query_url::QueryUrl;
use crate::http::{TOP_LIMIT_MAX, TOP_SECONDS_MAX};
use crate::overview::{Ask as _, Table, printable};

/// How long the answer may take beyond the time to count.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// By what to order
    #[arg(long, value_enum, default_value_t = By::Messages)]
    by: By,
    /// How long to count messages, 1 to 60
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=TOP_SECONDS_MAX as u64))]
    seconds: u64,
    /// How many metrics or contexts to show, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=TOP_LIMIT_MAX as u64))]
    limit: u64,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The environment to ask: a collector
    #[arg(short, long, value_name = "ENV", default_value = LOCAL)]
    env: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// What came in that time
    Messages,
    /// What there is now
    Series,
    /// The messages of each context, a name with its tags
    Contexts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// As the API answers
    Json,
    /// For spreadsheets
    Csv,
}

#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
struct Data {
    seconds: f64,
    messages: u64,
    series: u64,
    #[serde(default)]
    metrics: Vec<Metric>,
    #[serde(default)]
    contexts: Vec<Context>,
}

#[derive(Debug, Deserialize)]
struct Context {
    #[serde(rename = "context")]
    text: String,
    r#type: String,
    messages: u64,
}

#[derive(Debug, Deserialize)]
struct Metric {
    #[serde(rename = "metric")]
    name: String,
    r#type: String,
    series: u64,
    messages: u64,
    label: Option<String>,
    values: u64,
}

pub(super) fn run(args: &TopArgs) -> anyhow::Result<Exit> {
    let environments = Environments::load()?;
    let environment = environments.get(&args.env)?;
    let url = QueryUrl::within(&environment.url, Duration::from_secs(args.seconds) + GRACE);
    if !url.is_collector() {
        // That nobody answers says more.
        url.text("/api/v1/status/buildinfo").with_context(|| {
            format!(
                "env {} does not answer; is cortex-collector running there? `cortex env list` shows its URL",
                args.env
            )
        })?;
        eprintln!("cortex: env {} is no collector: only a collector knows what it takes", args.env);
        return Ok(Exit::Failure);
    }
    if io::stderr().is_terminal() {
        eprintln!("counting for {} s …", args.seconds);
    }
    let by = match args.by {
        By::Messages => "messages",
        By::Series => "series",
        By::Contexts => "contexts",
    };
    let path = format!("/api/v1/status/top?seconds={}&limit={}&by={by}", args.seconds, args.limit);
    let (status, text) = url.text(&path).with_context(|| format!("env {}", args.env))?;
    let envelope: Option<Envelope> = serde_json::from_str(&text).ok();
    let Some(data) = envelope.as_ref().and_then(|envelope| envelope.data.as_ref()) else {
        let why = envelope.map_or_else(|| "is the collector older than this program?".to_owned(), |one| one.error);
        eprintln!("cortex: env {}: {status}: {}", args.env, printable(&why));
        return Ok(Exit::Failure);
    };
    let table = if args.by == By::Contexts { table_of_contexts(data) } else { table(data) };
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", text.trim_end())?,
        Output::Csv => out.write_all(table.csv().as_bytes())?,
        Output::Table if table.rows.is_empty() => eprintln!("cortex: no message came in {:.0} s", data.seconds),
        Output::Table => {
            out.write_all(table.render().as_bytes())?;
            let rate = data.messages as f64 / data.seconds;
            writeln!(
                out,
                "\n{} messages in {:.0} s ({rate:.1}/s), {} series",
                data.messages, data.seconds, data.series
            )?;
        }
    }
    Ok(Exit::Success)
}

fn table_of_contexts(data: &Data) -> Table {
    let row = |one: &Context| {
        vec![
            printable(&one.text),
            printable(&one.r#type),
            one.messages.to_string(),
            format!("{:.1}", one.messages as f64 / data.seconds),
        ]
    };
    let headers = ["context", "type", "messages", "messages/s"];
    Table { headers: headers.map(str::to_owned).to_vec(), rows: data.contexts.iter().map(row).collect() }
}

fn table(data: &Data) -> Table {
    let headers = ["metric", "type", "series", "messages", "messages/s", "widest label", "values"];
    let row = |one: &Metric| {
        vec![
            printable(&one.name),
            printable(&one.r#type),
            one.series.to_string(),
            one.messages.to_string(),
            format!("{:.1}", one.messages as f64 / data.seconds),
            one.label.as_deref().map_or_else(|| "-".to_owned(), printable),
            one.values.to_string(),
        ]
    };
    Table { headers: headers.map(str::to_owned).to_vec(), rows: data.metrics.iter().map(row).collect() }
}
