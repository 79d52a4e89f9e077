//! `cortex get`: the table, or one API with its account and its custom metrics.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::Exit;
use super::environments::{Environment, Environments};
use super::query_url::{QueryUrl, without_password};
use crate::clock::Clock;
use crate::overview::{ApiDetail, ApiRow, AskError, CustomMetric, Table, apis, detail, printable, table_of};

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// One API, with the address of its dashboard, its account of loss and its custom metrics
    api_name: Option<String>,
    /// One environment only [default: all]
    #[arg(short, long, value_name = "ENV")]
    env: Option<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What one environment answered.
struct Found<'a> {
    env: &'a str,
    environment: &'a Environment,
    rows: Vec<ApiRow>,
}

pub(super) fn run(args: &GetArgs) -> anyhow::Result<Exit> {
    let environments = Environments::load()?;
    let asked: Vec<(&str, &Environment)> = match &args.env {
        Some(name) => vec![(name.as_str(), environments.get(name)?)],
        None => environments.iter().collect(),
    };
    let now = Clock::System.now_ms() as f64 / 1e3;
    let mut found = Vec::new();
    let mut silent: Vec<(&str, AskError)> = Vec::new();
    for (env, environment) in &asked {
        match apis(&QueryUrl::new(&environment.url), now, None) {
            Ok(rows) => found.push(Found { env, environment, rows }),
            Err(error) => silent.push((env, error)),
        }
    }
    let none_answered = found.is_empty();
    let exit = match &args.api_name {
        _ if none_answered => Exit::Failure,
        None => all(args.output, &found)?,
        Some(name) => one(args.output, name, &found, !silent.is_empty())?,
    };
    for (env, error) in silent {
        let error = printable(&error.to_string());
        eprintln!(
            "cortex: env {env} does not answer: {error}; is cortex-collector running there? `cortex env list` shows its URL"
        );
    }
    Ok(exit)
}

fn all(output: Output, found: &[Found<'_>]) -> anyhow::Result<Exit> {
    let rows: Vec<(&str, &ApiRow)> = found.iter().flat_map(|f| f.rows.iter().map(move |row| (f.env, row))).collect();
    match output {
        Output::Json => print_json(&rows.iter().map(|(env, row)| json_row(env, row)).collect())?,
        Output::Table if rows.is_empty() => {
            eprintln!("no APIs yet: serve one with `cortex-serve predictor.py --api-name NAME` and send it a request");
        }
        Output::Table => io::stdout().write_all(table_of(&rows).render().as_bytes())?,
    }
    Ok(Exit::Success)
}

fn one(output: Output, name: &str, found: &[Found<'_>], some_are_silent: bool) -> anyhow::Result<Exit> {
    let mut details = Vec::new();
    for f in found {
        if let Some(row) = f.rows.iter().find(|row| row.api_name == name) {
            details.push((f, row, detail(&QueryUrl::new(&f.environment.url), name)?));
        }
    }
    if details.is_empty() {
        let envs: Vec<&str> = found.iter().map(|f| f.env).collect();
        let known = found.iter().flat_map(|f| &f.rows).map(|row| row.api_name.as_str());
        let hint = nearest(name, known).map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
        let but = if some_are_silent { " of those that answered" } else { "" };
        eprintln!("cortex: API {name:?} not found in env {}{but}{hint}", envs.join(", "));
        return Ok(Exit::Failure);
    }
    if output == Output::Json {
        let json = details.iter().map(|(f, row, detail)| json_detail(f, row, detail));
        print_json(&json.collect())?;
        return Ok(Exit::Success);
    }
    for (at, (f, row, detail)) in details.iter().enumerate() {
        let mut text = if at > 0 { "\n".to_owned() } else { String::new() };
        if details.len() > 1 {
            text.push_str(&format!("env {}\n", f.env));
        }
        text.push_str(&table_of(&[(f.env, row)]).without(&["env", "api"]).render());
        text.push_str(&format!("\nmetrics dashboard: {}\n", printable(&dashboard(f.environment, name))));
        if let Some(endpoint) = &row.endpoint {
            text.push_str(&format!("endpoint: {}\n", printable(endpoint)));
        }
        text.push_str(&format!("{}\n", account(detail)));
        if !detail.metrics.is_empty() {
            text.push_str(&format!("\n{}", metrics_table(detail).render()));
        }
        io::stdout().write_all(text.as_bytes())?;
    }
    Ok(Exit::Success)
}

fn print_json(rows: &Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, rows)?;
    out.write_all(b"\n")?;
    Ok(())
}

fn json_detail(found: &Found<'_>, row: &ApiRow, detail: &ApiDetail) -> Value {
    let metric = |m: &CustomMetric| json!({ "metric": m.name, "tags": m.tags, "value": m.value, "mean": m.mean });
    let drops =
        |drops: &[(String, u64)]| -> Value { drops.iter().map(|(reason, n)| (reason.clone(), json!(n))).collect() };
    let more = json!({
        "dashboard": dashboard(found.environment, &row.api_name),
        "account": {
            "calls": detail.calls,
            "dropped": drops(&detail.dropped),
            "payloads_missing": detail.payloads_missing,
            "kernel_drops": detail.kernel_drops,
            "refused": drops(&detail.refused),
        },
        "metrics": detail.metrics.iter().map(metric).collect::<Vec<Value>>(),
    });
    match (json_row(found.env, row), more) {
        (Value::Object(mut row), Value::Object(more)) => {
            row.extend(more);
            Value::Object(row)
        }
        (row, _) => row,
    }
}

fn json_row(env: &str, row: &ApiRow) -> Value {
    json!({
        "env": env,
        "api": row.api_name,
        "status": row.status.as_str(),
        "up_to_date": row.up_to_date,
        "stale": row.stale,
        "requested": row.requested,
        "last_update_seconds": row.last_update_seconds,
        "avg_request_seconds": row.avg_request_seconds,
        "responses": row.responses,
        "endpoint": row.endpoint,
    })
}

/// Where the API is shown: the environment's Grafana, or the collector's own page.
fn dashboard(environment: &Environment, api_name: &str) -> String {
    let name: String = api_name
        .bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    match &environment.dashboard_url {
        Some(url) => format!("{url}{}var-api_name={name}", if url.contains('?') { '&' } else { '?' }),
        None => format!("{}/#/api/{name}", without_password(&environment.url)),
    }
}

/// The account of loss in one line.
fn account(detail: &ApiDetail) -> String {
    let reasons = |drops: &[(String, u64)]| -> String {
        let all: u64 = drops.iter().map(|(_, count)| count).sum();
        let by: Vec<String> = drops.iter().map(|(reason, count)| format!("{count} {}", printable(reason))).collect();
        if all == 0 { "0".to_owned() } else { format!("{all} ({})", by.join(", ")) }
    };
    format!(
        "account of loss: {} calls reported, {} dropped by the client; collector: {} payloads missing, {} kernel drops, {} messages refused",
        detail.calls,
        reasons(&detail.dropped),
        detail.payloads_missing,
        detail.kernel_drops,
        reasons(&detail.refused),
    )
}

fn metrics_table(detail: &ApiDetail) -> Table {
    let rows = detail.metrics.iter().map(|metric| {
        let tags: Vec<String> = metric.tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
        let value = match metric.mean {
            Some(mean) => format!("count {}, mean {}", metric.value, short(mean)),
            None => short(metric.value),
        };
        vec![metric.name.clone(), if tags.is_empty() { "-".to_owned() } else { tags.join(" ") }, value]
    });
    Table { headers: ["metric", "tags", "value"].map(str::to_owned).to_vec(), rows: rows.collect() }
}

/// A number with as many digits as help: six that count, or all of a whole number.
fn short(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 || !value.is_finite() {
        return crate::model::format_float(value);
    }
    let digits = (5 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The name nearest to `name`, if one is near enough to be a slip of the finger.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let best = known.map(|other| (distance(name, other), other)).min()?;
    (best.0 <= name.chars().count().max(3) / 2).then_some(best.1)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((y, diagonal), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or(0);
            next.push((diagonal + usize::from(x != *y)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_when_it_is_near() {
        let known = ["iris-classifier", "digit-classifier"];
        assert_eq!(nearest("iris-clasifier", known.into_iter()), Some("iris-classifier"));
        assert_eq!(nearest("zzz", known.into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn numbers_are_short_and_not_wrong() {
        for (value, text) in [
            (1223.0, "1223"),
            (0.1 + 0.2, "0.3"),
            (1234.5678, "1234.57"),
            (0.000_012_345_67, "0.0000123457"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn a_dashboard_link_keeps_the_name_a_name() {
        let own = Environment { url: "http://c".into(), dashboard_url: None };
        assert_eq!(dashboard(&own, "a b/ü"), "http://c/#/api/a%20b%2F%C3%BC");
        let grafana = Environment { url: "http://c".into(), dashboard_url: Some("http://g/d/x?orgId=1".into()) };
        assert_eq!(dashboard(&grafana, "iris"), "http://g/d/x?orgId=1&var-api_name=iris");
    }
}
