//! Answers PromQL over the samples of a file: a line of JSON in, a line of JSON out. The judge of the Python tests asks it
//! and a real Prometheus the same.
//!
//! The file: `[{"labels": {…}, "samples": [[ms, "1.5"], [ms, {"schema": 3, "zero_count": 0, "count": 1, "sum": 2,
//! "positive": [offset, [counts]], "negative": […]}]]}]`. A question: `{"query": "up", "time": ms}`, or `start`, `end` and
//! `step` in place of `time`. `{"samples": […]}` puts other samples in place of those of the file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{BufRead, Write};
use std::sync::Arc;

use cortex_metrics::model::{BucketSpan, ExponentialHistogram, Labels, Sample, Value, format_float};
use cortex_metrics::promql::{Answer, Engine, Limits, QueryError, QueryOptions, QueryValue};
use cortex_metrics::store::{Select, SelectedSeries, Selection, StoreError};
use serde_json::{Value as Json, json};

struct Memory(Vec<SelectedSeries>);

impl Select for Memory {
    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for series in self.0.iter().filter(|s| selection.matchers.iter().all(|m| m.matches(&s.labels))) {
            let within = |s: &&Sample| (selection.start_ms..=selection.end_ms).contains(&s.timestamp_ms);
            let samples: Vec<Sample> = selection.part.of_all(series.samples.iter().filter(within).cloned().collect());
            if !samples.is_empty() {
                visit(SelectedSeries { labels: series.labels.clone(), samples })?;
            }
        }
        Ok(())
    }
}

fn main() {
    let path = std::env::args().nth(1).expect("usage: promql-answers SAMPLES");
    let file: Json = serde_json::from_slice(&std::fs::read(path).expect("the samples")).expect("JSON");
    let mut engine = engine(&file);
    for line in std::io::stdin().lock().lines() {
        let question: Json = serde_json::from_str(&line.expect("a line")).expect("JSON");
        if !question["samples"].is_null() {
            engine = self::engine(&question["samples"]);
            println!("{{}}");
            continue;
        }
        let ms = |key: &str| question[key].as_i64().unwrap();
        let (query, options) = (question["query"].as_str().unwrap(), QueryOptions::default());
        let answer = if question["time"].is_null() {
            engine.range_with(query, ms("start"), ms("end"), ms("step"), &options)
        } else {
            engine.instant_with(query, ms("time"), &options)
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", written(answer)).and_then(|()| out.flush()).expect("somebody reads");
    }
}

fn engine(json: &Json) -> Engine {
    let mut series: Vec<SelectedSeries> = json.as_array().unwrap().iter().map(series).collect();
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    Engine::new(Arc::new(Memory(series)), Limits::default())
}

fn series(json: &Json) -> SelectedSeries {
    let labels = json["labels"].as_object().unwrap();
    let sample = |pair: &Json| Sample { timestamp_ms: pair[0].as_i64().unwrap(), value: value(&pair[1]) };
    SelectedSeries {
        labels: Labels::from_pairs(labels.iter().map(|(name, value)| (name, value.as_str().unwrap()))),
        samples: json["samples"].as_array().unwrap().iter().map(sample).collect(),
    }
}

fn value(json: &Json) -> Value {
    match json.as_str() {
        Some("stale") => return Value::stale(),
        Some(float) => return Value::Float(float.parse().unwrap()),
        None => {}
    }
    let span = |json: &Json| BucketSpan {
        offset: json[0].as_i64().unwrap() as i32,
        counts: json[1].as_array().unwrap().iter().map(|count| count.as_f64().unwrap()).collect(),
    };
    let number = |key: &str| json[key].as_f64().or_else(|| json[key].as_str()?.parse().ok()).unwrap();
    let histogram = ExponentialHistogram::from_parts(
        json["schema"].as_i64().unwrap() as i8,
        number("zero_count"),
        number("count"),
        number("sum"),
        span(&json["positive"]),
        span(&json["negative"]),
    );
    Value::Histogram(Arc::new(histogram.expect("a histogram")))
}

/// In the shape of Prometheus's API.
fn written(answer: Result<Answer, QueryError>) -> Json {
    let Answer { value, warnings, infos } = match answer {
        Ok(answer) => answer,
        Err(error) => {
            return json!({"status": "error", "errorType": error.kind(), "error": error.to_string()});
        }
    };
    let (kind, result) = match value {
        QueryValue::Scalar(sample) => ("scalar", pair(&sample)),
        QueryValue::Text { timestamp_ms, text } => ("string", json!([timestamp_ms as f64 / 1000.0, text])),
        QueryValue::Vector(vector) => {
            let one = |s: cortex_metrics::promql::InstantSample| {
                let key = if s.sample.value.as_float().is_some() { "value" } else { "histogram" };
                json!({"metric": metric(&s.labels), key: pair(&s.sample)})
            };
            ("vector", vector.into_iter().map(one).collect())
        }
        QueryValue::Matrix(matrix) => {
            let one = |s: cortex_metrics::promql::RangeSeries| {
                let (floats, histograms): (Vec<Sample>, Vec<Sample>) =
                    s.samples.into_iter().partition(|sample| sample.value.as_float().is_some());
                let pairs = |samples: Vec<Sample>| samples.iter().map(pair).collect::<Vec<_>>();
                json!({"metric": metric(&s.labels), "values": pairs(floats), "histograms": pairs(histograms)})
            };
            ("matrix", matrix.into_iter().map(one).collect())
        }
    };
    json!({
        "status": "success",
        "data": {"resultType": kind, "result": result},
        "warnings": warnings,
        "infos": infos,
    })
}

fn metric(labels: &Labels) -> Json {
    labels.iter().map(|(name, value)| (name.to_owned(), Json::from(value))).collect::<serde_json::Map<_, _>>().into()
}

fn pair(sample: &Sample) -> Json {
    let value = match &sample.value {
        Value::Float(v) => json!(format_float(*v)),
        Value::Histogram(h) => {
            let buckets: Vec<Json> = h
                .buckets()
                .iter()
                .map(|b| json!([0, format_float(b.lower), format_float(b.upper), format_float(b.count)]))
                .collect();
            json!({"count": format_float(h.count()), "sum": format_float(h.sum()), "buckets": buckets})
        }
    };
    json!([sample.timestamp_ms as f64 / 1000.0, value])
}
