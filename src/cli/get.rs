//! `cortex get`: the table, or one API with its account and its custom metrics.

use std::io::{self, IsTerminal as _, Write as _};
use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::Exit;
use super::environments::{Environment, Environments};
use super::last_hour::last_hour;
use super::query_url::{QueryUrl, without_password};
use crate::clock::Clock;
use crate::config::parse_duration;
use crate::overview::{
    ApiDetail, ApiRow, AskError, CustomMetric, Table, WINDOW, apis, detail, printable, row_json, table_of,
};

/// How often `--watch` asks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// One API, with the address of its dashboard, its account of loss and its custom metrics
    api_name: Option<String>,
    /// One environment only [default: all]
    #[arg(short, long, value_name = "ENV")]
    env: Option<String>,
    /// Counts and averages of so long until now
    #[arg(long, value_name = "DURATION", value_parser = since, default_value = WINDOW)]
    since: String,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Ask every 2 s and draw the table anew in its place, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
    /// For spreadsheets
    Csv,
}

/// A duration as PromQL takes it.
fn since(text: &str) -> Result<String, String> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_secs(1) {
        return Err(format!("got {text}, want 1s or more"));
    }
    Ok(text.trim().to_owned())
}

/// What one environment answered.
struct Found<'a> {
    env: &'a str,
    environment: &'a Environment,
    source: QueryUrl,
    rows: Vec<ApiRow>,
}

/// What is to be printed, where, and how it ends.
#[derive(Default)]
struct Look {
    out: String,
    err: String,
    has_failed: bool,
}

impl Look {
    fn tell(&mut self, line: &str) {
        self.err.push_str(line);
        self.err.push('\n');
    }
}

pub(super) fn run(args: &GetArgs) -> anyhow::Result<Exit> {
    let environments = Environments::load()?;
    let asked: Vec<(&str, &Environment)> = match &args.env {
        Some(name) => vec![(name.as_str(), environments.get(name)?)],
        None => environments.iter().collect(),
    };
    let in_color = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if !args.watch {
        let look = look(args, &asked, in_color)?;
        io::stdout().write_all(look.out.as_bytes())?;
        eprint!("{}", look.err);
        return Ok(if look.has_failed { Exit::Failure } else { Exit::Success });
    }
    if args.output != Output::Table {
        eprintln!("cortex: --watch draws the table: leave --output out, or --watch");
        return Ok(Exit::Usage);
    }
    let mut screen = Screen { is_terminal: io::stdout().is_terminal(), is_drawn: false };
    loop {
        let look = look(args, &asked, in_color)?;
        screen.draw(&format!("{}{}", look.out, look.err))?;
        std::thread::sleep(WATCH_INTERVAL);
    }
}

/// Where `--watch` draws: a terminal from its first line on, or one table after the other.
struct Screen {
    is_terminal: bool,
    is_drawn: bool,
}

impl Screen {
    fn draw(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.is_terminal {
            // Line by line over what was there, so that nothing flickers; without wrapping, so that a line is one line; each at
            // its place, so that nothing scrolls: lines beyond the last of the terminal fall on it.
            let begin = if self.is_drawn { "" } else { "\x1b[2J" };
            write!(out, "{begin}\x1b[?7l")?;
            for (at, line) in (1..).zip(text.lines()) {
                write!(out, "\x1b[{at};1H{line}\x1b[K")?;
            }
            write!(out, "\x1b[J\x1b[{};1H\x1b[?7h", text.lines().count() + 1)?;
        } else {
            write!(out, "{}{text}", if self.is_drawn { "\n" } else { "" })?;
        }
        self.is_drawn = true;
        out.flush()
    }
}

/// Asks all environments at once.
fn look(args: &GetArgs, asked: &[(&str, &Environment)], in_color: bool) -> anyhow::Result<Look> {
    let now = now();
    let answers: Vec<Result<Found<'_>, (&str, AskError)>> = std::thread::scope(|scope| {
        let asking: Vec<_> = asked
            .iter()
            .map(|(env, environment)| {
                scope.spawn(move || {
                    let source = QueryUrl::new(&environment.url);
                    let rows = apis(&source, now, &args.since).map_err(|error| (*env, error))?;
                    Ok(Found { env, environment, source, rows })
                })
            })
            .collect();
        let answer = |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        asking.into_iter().map(answer).collect()
    });
    let (mut found, mut silent): (Vec<Found<'_>>, Vec<(&str, AskError)>) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(answer) => found.push(answer),
            Err(error) => silent.push(error),
        }
    }
    let mut look = Look::default();
    match &args.api_name {
        _ if found.is_empty() => look.has_failed = true,
        None => all(args.output, &found, in_color, &mut look)?,
        Some(name) => one(args.output, name, &found, &mut silent, in_color, &mut look)?,
    }
    for (env, error) in silent {
        let error = printable(&error.to_string());
        look.tell(&format!(
            "cortex: env {env} does not answer: {error}; is cortex-collector running there? `cortex env list` shows its URL"
        ));
    }
    Ok(look)
}

/// In seconds since the Unix epoch.
fn now() -> f64 {
    Clock::System.now_ms() as f64 / 1e3
}

fn rendered(table: &Table, in_color: bool) -> String {
    if in_color { table.render_in_color() } else { table.render() }
}

fn all(output: Output, found: &[Found<'_>], in_color: bool, look: &mut Look) -> anyhow::Result<()> {
    let rows: Vec<(&str, &ApiRow)> = found.iter().flat_map(|f| f.rows.iter().map(move |row| (f.env, row))).collect();
    match output {
        Output::Json => look.out = json_text(&rows.iter().map(|(env, row)| json_row(env, row)).collect())?,
        Output::Csv => look.out = csv_of(&rows).csv(),
        Output::Table if rows.is_empty() => {
            look.tell("no APIs yet: serve one with `cortex-serve predictor.py --api-name NAME` and send it a request");
        }
        Output::Table => look.out = rendered(&table_of(&rows), in_color),
    }
    Ok(())
}

fn one<'a>(
    output: Output,
    name: &str,
    found: &[Found<'a>],
    silent: &mut Vec<(&'a str, AskError)>,
    in_color: bool,
    look: &mut Look,
) -> anyhow::Result<()> {
    let mut details = Vec::new();
    for f in found {
        let detail = match detail(&f.source, name) {
            Ok(detail) => detail,
            // It answered before, and no longer.
            Err(error) => {
                silent.push((f.env, error));
                continue;
            }
        };
        let row = f.rows.iter().find(|row| row.api_name == name);
        // A task, or a client alone, has its own metrics and serves no requests.
        if row.is_some() || detail.calls > 0 || !detail.metrics.is_empty() {
            details.push((f, row, detail));
        }
    }
    let envs: Vec<&str> = found.iter().map(|f| f.env).filter(|env| silent.iter().all(|(of, _)| of != env)).collect();
    look.has_failed = details.is_empty();
    if envs.is_empty() {
        return Ok(());
    }
    if details.is_empty() {
        let known = found.iter().flat_map(|f| &f.rows).map(|row| row.api_name.as_str());
        let hint = nearest(name, known).map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
        let but = if silent.is_empty() { "" } else { " of those that answered" };
        look.tell(&format!("cortex: API {name:?} not found in env {}{but}{hint}", envs.join(", ")));
        return Ok(());
    }
    match output {
        Output::Json => {
            look.out = json_text(&details.iter().map(|(f, row, detail)| json_detail(f, name, *row, detail)).collect())?;
            return Ok(());
        }
        Output::Csv => {
            let rows: Vec<(&str, &ApiRow)> = details.iter().filter_map(|(f, row, _)| Some((f.env, (*row)?))).collect();
            look.out = csv_of(&rows).csv();
            return Ok(());
        }
        Output::Table => {}
    }
    for (at, (f, row, detail)) in details.iter().enumerate() {
        let mut text = if at > 0 { "\n".to_owned() } else { String::new() };
        if details.len() > 1 {
            text.push_str(&format!("env {}\n", f.env));
        }
        match row {
            Some(row) => {
                text.push_str(&rendered(&table_of(&[(f.env, row)]).without(&["env", "api"]), in_color));
                text.push_str(&format!("\nmetrics dashboard: {}\n", printable(&dashboard(f.environment, name))));
                if let Some(endpoint) = &row.endpoint {
                    text.push_str(&format!("endpoint: {}\n", printable(endpoint)));
                }
            }
            None => text.push_str("no requests: it has metrics of its own alone\n\n"),
        }
        text.push_str(&format!("{}\n", account(detail)));
        // For eyes alone: whoever reads a pipe asks for numbers.
        if let Some(trend) = row.filter(|_| io::stdout().is_terminal()).and_then(|_| last_hour(&f.source, name, now()))
        {
            text.push_str(&format!("\n{}", trend.render()));
        }
        if !detail.metrics.is_empty() {
            text.push_str(&format!("\n{}", metrics_table(detail).render()));
        }
        look.out.push_str(&text);
    }
    Ok(())
}

fn json_text(rows: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(rows)? + "\n")
}

/// A row as a spreadsheet takes it: numbers without units.
fn csv_of(rows: &[(&str, &ApiRow)]) -> Table {
    let headers = [
        "env",
        "api",
        "status",
        "up_to_date",
        "stale",
        "requested",
        "last_update_seconds",
        "avg_request_seconds",
        "responses_2xx",
        "responses_4xx",
        "responses_5xx",
        "endpoint",
    ];
    let seconds = |value: Option<f64>| value.map_or_else(String::new, crate::model::format_float);
    let cells = |(env, row): &(&str, &ApiRow)| {
        let class = |class| row.responses_of_class(class).to_string();
        vec![
            (*env).to_owned(),
            row.api_name.clone(),
            row.status.as_str().to_owned(),
            row.up_to_date.to_string(),
            row.stale.to_string(),
            row.requested.map_or_else(String::new, |n| n.to_string()),
            seconds(row.last_update_seconds),
            seconds(row.avg_request_seconds),
            class(2),
            class(4),
            class(5),
            row.endpoint.clone().unwrap_or_default(),
        ]
    };
    Table { headers: headers.map(str::to_owned).to_vec(), rows: rows.iter().map(cells).collect() }
}

fn json_detail(found: &Found<'_>, name: &str, row: Option<&ApiRow>, detail: &ApiDetail) -> Value {
    let metric = |m: &CustomMetric| json!({ "metric": m.name, "tags": m.tags, "value": m.value, "mean": m.mean });
    let drops =
        |drops: &[(String, u64)]| -> Value { drops.iter().map(|(reason, n)| (reason.clone(), json!(n))).collect() };
    let more = json!({
        "dashboard": dashboard(found.environment, name),
        "account": {
            "calls": detail.calls,
            "dropped": drops(&detail.dropped),
            "payloads_missing": detail.payloads_missing,
            "kernel_drops": detail.kernel_drops,
            "refused": drops(&detail.refused),
        },
        "metrics": detail.metrics.iter().map(metric).collect::<Vec<Value>>(),
    });
    let row = row.map_or_else(|| json!({ "env": found.env, "api": name }), |row| json_row(found.env, row));
    match (row, more) {
        (Value::Object(mut row), Value::Object(more)) => {
            row.extend(more);
            Value::Object(row)
        }
        (row, _) => row,
    }
}

fn json_row(env: &str, row: &ApiRow) -> Value {
    let mut object = row_json(row);
    if let Value::Object(fields) = &mut object {
        fields.insert("env".to_owned(), json!(env));
    }
    object
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
    let Some(url) = &environment.dashboard_url else {
        return format!("{}/#/api/{name}", without_password(&environment.url));
    };
    let url = without_password(url);
    let (page, fragment) = url.split_at(url.find('#').unwrap_or(url.len()));
    let (path, query) = page.split_once('?').unwrap_or((page, ""));
    // What was copied from a browser names the API that was looked at.
    let is_other = |parameter: &&str| !parameter.is_empty() && parameter.split('=').next() != Some("var-api_name");
    let others: String = query.split('&').filter(is_other).map(|parameter| format!("{parameter}&")).collect();
    format!("{path}?{others}var-api_name={name}{fragment}")
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
pub(super) fn short(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 || !value.is_finite() {
        return crate::model::format_float(value);
    }
    let digits = (5 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The name nearest to `name`, if one is near enough to be a slip of the finger.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
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
        for (url, link) in [
            ("http://g/d/x/realtimeapi", "http://g/d/x/realtimeapi?var-api_name=a%20b%2F%C3%BC%26%23"),
            ("http://g/d/x?orgId=1", "http://g/d/x?orgId=1&var-api_name=a%20b%2F%C3%BC%26%23"),
            ("http://g/d/x?", "http://g/d/x?var-api_name=a%20b%2F%C3%BC%26%23"),
            ("http://g/d/x?&kiosk#top", "http://g/d/x?kiosk&var-api_name=a%20b%2F%C3%BC%26%23#top"),
            (
                "http://me:secret@g/d/x?var-api_name=iris&from=now-1h&var-api_name=digit",
                "http://g/d/x?from=now-1h&var-api_name=a%20b%2F%C3%BC%26%23",
            ),
        ] {
            let grafana = Environment { url: "http://c".into(), dashboard_url: Some(url.into()) };
            assert_eq!(dashboard(&grafana, "a b/ü&#"), link);
        }
    }
}
