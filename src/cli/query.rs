//! `cortex query`: any expression, now or over a time, as a table, as CSV or as the API answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::Exit;
use super::environments::{Environments, LOCAL};
use super::query_url::QueryUrl;
use crate::clock::{Clock, civil_from_days};
use crate::config::parse_duration;
use crate::http::api::parse_time_ms;
use crate::overview::{Table, printable};

/// Longer than any query may take by default.
const TIMEOUT: Duration = Duration::from_secs(130);
/// A range has about so many steps unless it is told.
const STEPS: i64 = 250;

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// A PromQL expression
    expr: String,
    /// Ask for every step from here on; without it for one moment. A time is RFC 3339, Unix seconds, or how long ago (-1h)
    #[arg(long, value_name = "TIME", value_parser = Time::parse, allow_hyphen_values = true)]
    start: Option<Time>,
    /// The last step, or the moment [default: now]
    #[arg(long, value_name = "TIME", value_parser = Time::parse, allow_hyphen_values = true)]
    end: Option<Time>,
    /// Time between steps [default: a 250th of the time, at least 1s]
    #[arg(long, value_name = "DURATION", value_parser = step, requires = "start")]
    step: Option<Duration>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The environment to ask
    #[arg(short, long, value_name = "ENV", default_value = LOCAL)]
    env: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// As the API answers
    Json,
    /// For spreadsheets: a column for each label
    Csv,
}

/// A time as it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    At(i64),
    Ago(i64),
}

impl Time {
    fn parse(text: &str) -> Result<Self, String> {
        let ago = || parse_duration(text.strip_prefix('-')?).ok().map(|ago| Self::Ago(ago.as_millis() as i64));
        let at = || parse_time_ms(text).map(Self::At);
        at().or_else(ago).ok_or_else(|| {
            format!("got {text:?}, want a time such as 2026-11-23T12:00:00Z, 1795000000, or -1h for an hour ago")
        })
    }

    fn ms(self, now_ms: i64) -> i64 {
        match self {
            Self::At(ms) => ms,
            Self::Ago(ms) => now_ms.saturating_sub(ms),
        }
    }
}

fn step(text: &str) -> Result<Duration, String> {
    let step = parse_duration(text)?;
    if step.is_zero() { Err(format!("got {text}, want at least 1ms")) } else { Ok(step) }
}

/// What `/api/v1/query` and `query_range` answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    status: String,
    #[serde(default)]
    error_type: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(default)]
    infos: Vec<String>,
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Scalar((f64, String)),
    String((f64, String)),
    Vector(Vec<Series>),
    Matrix(Vec<Series>),
}

#[derive(Debug, Deserialize)]
struct Series {
    #[serde(default)]
    metric: BTreeMap<String, String>,
    value: Option<(f64, String)>,
    histogram: Option<(f64, Histogram)>,
    #[serde(default)]
    values: Vec<(f64, String)>,
    #[serde(default)]
    histograms: Vec<(f64, Histogram)>,
}

#[derive(Debug, Clone, Deserialize)]
struct Histogram {
    count: String,
    sum: String,
}

pub(super) fn run(args: &QueryArgs) -> anyhow::Result<Exit> {
    let environments = Environments::load()?;
    let environment = environments.get(&args.env)?;
    let now_ms = Clock::System.now_ms();
    let end_ms = args.end.map_or(now_ms, |end| end.ms(now_ms));
    let mut form = vec![("query", args.expr.clone())];
    let path = match args.start.map(|start| start.ms(now_ms)) {
        None => {
            form.push(("time", seconds(end_ms)));
            "query"
        }
        Some(start_ms) if start_ms > end_ms => {
            bail!("--start: got {}, which is after --end {}", rfc3339(start_ms), rfc3339(end_ms));
        }
        Some(start_ms) => {
            let step_ms = args.step.map_or(((end_ms - start_ms) / STEPS).max(1000), |step| step.as_millis() as i64);
            form.extend([("start", seconds(start_ms)), ("end", seconds(end_ms)), ("step", seconds(step_ms))]);
            "query_range"
        }
    };
    let (status, text) =
        QueryUrl::within(&environment.url, TIMEOUT).post(path, &form).with_context(|| format!("env {}", args.env))?;
    let envelope: Envelope = serde_json::from_str(&text)
        .with_context(|| format!("env {}: {status}, and the answer is not Prometheus's JSON", args.env))?;
    for (kind, notes) in [("warning", &envelope.warnings), ("info", &envelope.infos)] {
        notes.iter().for_each(|note| eprintln!("cortex: {kind}: {}", printable(note)));
    }
    let Some(data) = envelope.data.filter(|_| envelope.status == "success") else {
        eprintln!("cortex: env {}: {}: {}", args.env, printable(&envelope.error_type), printable(&envelope.error));
        return Ok(Exit::Failure);
    };
    let printed = match args.output {
        Output::Json => format!("{}\n", text.trim_end()),
        Output::Table => table(data).render(),
        Output::Csv => table(data).csv(),
    };
    if args.output != Output::Json && printed.lines().count() < 2 {
        eprintln!("cortex: no series matches, or none has a sample then");
        return Ok(Exit::Success);
    }
    io::stdout().write_all(printed.as_bytes())?;
    Ok(Exit::Success)
}

/// A row a sample: its labels, its time where there are several, and its value; of a histogram count and sum.
fn table(data: Data) -> Table {
    let has_times = matches!(data, Data::Matrix(_));
    let series = match data {
        Data::Scalar(value) | Data::String(value) => {
            vec![Series {
                metric: BTreeMap::new(),
                value: Some(value),
                histogram: None,
                values: vec![],
                histograms: vec![],
            }]
        }
        Data::Vector(series) | Data::Matrix(series) => series,
    };
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let (mut has_floats, mut has_histograms) = (false, false);
    for one in &series {
        names.extend(one.metric.keys().map(String::as_str));
        has_floats |= one.value.is_some() || !one.values.is_empty();
        has_histograms |= one.histogram.is_some() || !one.histograms.is_empty();
    }
    let mut headers: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    headers.extend(has_times.then(|| "time".to_owned()));
    headers.extend(has_floats.then(|| "value".to_owned()));
    if has_histograms {
        headers.extend(["count".to_owned(), "sum".to_owned()]);
    }
    let mut rows = Vec::new();
    for one in &series {
        let labels: Vec<String> = names.iter().map(|name| one.metric.get(*name).cloned().unwrap_or_default()).collect();
        let floats = one.value.iter().chain(&one.values).map(|(time, value)| (*time, Some(value), None));
        let histograms = one.histogram.iter().chain(&one.histograms).map(|(time, value)| (*time, None, Some(value)));
        let mut samples: Vec<(f64, Option<&String>, Option<&Histogram>)> = floats.chain(histograms).collect();
        samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (time, float, histogram) in samples {
            let mut row = labels.clone();
            row.extend(has_times.then(|| rfc3339((time * 1000.0).round() as i64)));
            row.extend(has_floats.then(|| float.cloned().unwrap_or_default()));
            if has_histograms {
                let (count, sum) = histogram.map(|h| (h.count.clone(), h.sum.clone())).unwrap_or_default();
                row.extend([count, sum]);
            }
            rows.push(row);
        }
    }
    Table { headers, rows }
}

/// Milliseconds as the API takes seconds.
fn seconds(ms: i64) -> String {
    format!("{}{}.{:03}", if ms < 0 { "-" } else { "" }, ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000)
}

/// In UTC, with milliseconds where there are any.
fn rfc3339(ms: i64) -> String {
    let (day, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil_from_days(day);
    let (hour, minute, second, ms) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60, of_day % 1000);
    let fraction = if ms == 0 { String::new() } else { format!(".{ms:03}") };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(json: &str) -> Table {
        table(serde_json::from_str::<Envelope>(json).unwrap().data.unwrap())
    }

    #[test]
    fn times_are_dates_seconds_or_how_long_ago() {
        assert_eq!(Time::parse("2026-11-23T12:00:00Z"), Ok(Time::At(1_795_435_200_000)));
        assert_eq!(Time::parse("1795435200.5"), Ok(Time::At(1_795_435_200_500)));
        assert_eq!(Time::parse("-1h30m"), Ok(Time::Ago(5_400_000)));
        assert_eq!(Time::parse("-1h").unwrap().ms(10_000_000), 6_400_000);
        assert_eq!(Time::parse("-1e3"), Ok(Time::At(-1_000_000)), "before 1970");
        for wrong in ["", "-", "1h", "yesterday", "-1x", "2026-11-23"] {
            assert!(Time::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(rfc3339(1_795_435_200_000), "2026-11-23T12:00:00Z");
        assert_eq!(rfc3339(1_795_435_200_050), "2026-11-23T12:00:00.050Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!((seconds(-1500), seconds(1050)), ("-1.500".to_owned(), "1.050".to_owned()));
    }

    #[test]
    fn a_vector_has_a_column_for_each_label() {
        let table = table_of(
            r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"up","job":"a,\"b\""},"value":[1,"1"]},
            {"metric":{"zone":"x"},"histogram":[1,{"count":"3","sum":"0.5","buckets":[[0,"1","2","3"]]}]}]}}"#,
        );
        assert_eq!(table.headers, ["__name__", "job", "zone", "value", "count", "sum"]);
        assert_eq!(table.csv(), "__name__,job,zone,value,count,sum\nup,\"a,\"\"b\"\"\",,1,,\n,,x,,3,0.5\n");
    }

    #[test]
    fn a_matrix_has_a_row_for_each_sample_and_a_scalar_only_its_value() {
        let table = table_of(
            r#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"a":"1"},"values":[[0,"1"],[20.5,"NaN"]],"histograms":[[10,{"count":"3","sum":"0.5"}]]}]}}"#,
        );
        assert_eq!(table.headers, ["a", "time", "value", "count", "sum"]);
        assert_eq!(table.rows[1], ["1", "1970-01-01T00:00:10Z", "", "3", "0.5"]);
        assert_eq!(table.rows[2], ["1", "1970-01-01T00:00:20.500Z", "NaN", "", ""]);
        let scalar = table_of(r#"{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}"#);
        assert_eq!(scalar.render(), "value\n2\n");
    }
}
