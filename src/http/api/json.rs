//! Answers as Prometheus writes them (`web/api/v1/json_codec.go`, `util/jsonutil`), byte for byte.
//!
//! # Format
//!
//! A float sample is `[seconds, "value"]`, a histogram sample `[seconds, {"count": "…", "sum": "…", "buckets": [[rule,
//! "lower", "upper", "count"], …]}]`. The rule says which bounds belong to the bucket: 0 the upper, 1 the lower, 2 none,
//! 3 both.

use std::fmt::Write;

use crate::model::{Bucket, ExponentialHistogram, Labels, Sample, Value, format_float};
use crate::promql::{QueryValue, RangeSeries};

/// `{"status":"success","data":…}`; what is wrong with the answer goes into `warnings`, what may be into `infos`.
pub(super) fn success(data: &str, warnings: &[String], infos: &[String]) -> String {
    let mut json = format!("{{\"status\":\"success\",\"data\":{data}");
    for (key, notes) in [("warnings", warnings), ("infos", infos)] {
        if !notes.is_empty() {
            let _ = write!(json, ",\"{key}\":");
            list(&mut json, notes, |json, note| string(json, note));
        }
    }
    json.push('}');
    json
}

/// `{"status":"error",…}`.
pub(super) fn error(kind: &str, message: &str) -> String {
    let mut json = String::from("{\"status\":\"error\",\"errorType\":");
    string(&mut json, kind);
    json.push_str(",\"error\":");
    string(&mut json, message);
    json.push('}');
    json
}

/// The `data` of a query.
pub(super) fn query_data(value: &QueryValue) -> String {
    let kind = match value {
        QueryValue::Scalar(_) => "scalar",
        QueryValue::Text { .. } => "string",
        QueryValue::Vector(_) => "vector",
        QueryValue::Matrix(_) => "matrix",
    };
    let mut json = format!("{{\"resultType\":\"{kind}\",\"result\":");
    match value {
        QueryValue::Scalar(s) => {
            // Unlike samples, Prometheus writes scalars without an exponent.
            let value = format_float(s.value.as_float().unwrap_or(f64::NAN));
            let _ = write!(json, "[{},\"{value}\"]", seconds(s.timestamp_ms));
        }
        QueryValue::Text { timestamp_ms, text } => {
            let _ = write!(json, "[{},", seconds(*timestamp_ms));
            string(&mut json, text);
            json.push(']');
        }
        QueryValue::Vector(vector) => list(&mut json, vector, |json, one| {
            json.push_str("{\"metric\":");
            labels(json, &one.labels);
            json.push_str(match one.sample.value {
                Value::Float(_) => ",\"value\":",
                Value::Histogram(_) => ",\"histogram\":",
            });
            sample(json, &one.sample);
            json.push('}');
        }),
        QueryValue::Matrix(matrix) => list(&mut json, matrix, series),
    }
    json.push('}');
    json
}

/// Names or values: `["a","b"]`.
pub(super) fn strings<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let mut json = String::new();
    list(&mut json, items, string);
    json
}

/// Series: `[{"__name__":"up"}]`.
pub(super) fn label_sets(items: &[Labels]) -> String {
    let mut json = String::new();
    list(&mut json, items, labels);
    json
}

/// Names, their types and what they mean: `{"up":[{"type":"gauge","help":"","unit":""}]}`.
pub(super) fn metadata<'a>(names: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> String {
    let mut json = String::from("{");
    for (at, (name, kind, help)) in names.enumerate() {
        if at > 0 {
            json.push(',');
        }
        string(&mut json, name);
        let _ = write!(json, ":[{{\"type\":\"{kind}\",\"help\":");
        string(&mut json, help);
        json.push_str(",\"unit\":\"\"}]");
    }
    json.push('}');
    json
}

fn series(json: &mut String, series: &RangeSeries) {
    json.push_str("{\"metric\":");
    labels(json, &series.labels);
    let is_histogram = |s: &&Sample| s.value.as_histogram().is_some();
    for (key, wants_histograms) in [("values", false), ("histograms", true)] {
        if series.samples.iter().any(|s| is_histogram(&s) == wants_histograms) {
            let _ = write!(json, ",\"{key}\":");
            list(json, series.samples.iter().filter(|s| is_histogram(s) == wants_histograms), sample);
        }
    }
    json.push('}');
}

fn sample(json: &mut String, sample: &Sample) {
    let _ = write!(json, "[{},", seconds(sample.timestamp_ms));
    match &sample.value {
        Value::Float(value) => float(json, *value),
        Value::Histogram(h) => histogram(json, h),
    }
    json.push(']');
}

fn histogram(json: &mut String, h: &ExponentialHistogram) {
    json.push_str("{\"count\":");
    float(json, h.count());
    json.push_str(",\"sum\":");
    float(json, h.sum());
    let buckets = h.buckets();
    if !buckets.is_empty() {
        json.push_str(",\"buckets\":");
        list(json, buckets, |json, bucket: Bucket| {
            let rule = match (bucket.lower < 0.0, bucket.upper > 0.0) {
                (true, true) => 3,
                (true, false) => 1,
                _ => 0,
            };
            let _ = write!(json, "[{rule},");
            float(json, bucket.lower);
            json.push(',');
            float(json, bucket.upper);
            json.push(',');
            float(json, bucket.count);
            json.push(']');
        });
    }
    json.push('}');
}

fn labels(json: &mut String, labels: &Labels) {
    json.push('{');
    for (at, (name, value)) in labels.iter().enumerate() {
        if at > 0 {
            json.push(',');
        }
        string(json, name);
        json.push(':');
        string(json, value);
    }
    json.push('}');
}

fn list<T>(json: &mut String, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut String, T)) {
    json.push('[');
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            json.push(',');
        }
        write(json, item);
    }
    json.push(']');
}

fn string(json: &mut String, text: &str) {
    // A `str` always serializes.
    json.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// Milliseconds as seconds, with a fraction only where there is one (`MarshalTimestamp`).
fn seconds(timestamp_ms: i64) -> String {
    let sign = if timestamp_ms < 0 { "-" } else { "" };
    let (whole, fraction) = (timestamp_ms.unsigned_abs() / 1000, timestamp_ms.unsigned_abs() % 1000);
    if fraction == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction:03}") }
}

/// A float in quotes, shortest; with an exponent below 1e-6 and from 1e21 on (`MarshalFloat`).
fn float(json: &mut String, value: f64) {
    let size = value.abs();
    if value.is_finite() && size != 0.0 && !(1e-6..1e21).contains(&size) {
        // Go writes the sign of the exponent and at least two digits.
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        let _ = write!(json, "\"{mantissa}e{sign}{digits:0>2}\"");
    } else {
        let _ = write!(json, "\"{}\"", format_float(value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::promql::InstantSample;

    fn float_text(value: f64) -> String {
        let mut json = String::new();
        float(&mut json, value);
        json
    }

    #[test]
    fn floats_and_times_read_as_prometheus_writes_them() {
        let cases = [
            (1.0, "\"1\""),
            (0.000_001, "\"0.000001\""),
            (1e-7, "\"1e-07\""),
            (-2.5e-9, "\"-2.5e-09\""),
            (1e21, "\"1e+21\""),
            (1e20, "\"100000000000000000000\""),
            (1e300, "\"1e+300\""),
            (f64::NAN, "\"NaN\""),
            (f64::NEG_INFINITY, "\"-Inf\""),
            (0.0, "\"0\""),
        ];
        for (value, want) in cases {
            assert_eq!(float_text(value), want);
        }
        assert_eq!(seconds(1_435_781_451_781), "1435781451.781");
        assert_eq!(seconds(1_435_781_451_080), "1435781451.080");
        assert_eq!(seconds(-1500), "-1.500");
        assert_eq!(seconds(60_000), "60");
    }

    #[test]
    fn a_vector_is_the_documented_json() {
        let sample = |value| Sample { timestamp_ms: 1_435_781_451_781, value };
        let mut h = ExponentialHistogram::new(0);
        [-1.5, 0.0, 2.0, 3.0].iter().for_each(|v| h.record(*v, 1.0));
        let vector = QueryValue::Vector(vec![
            InstantSample {
                labels: Labels::from_pairs([("__name__", "up"), ("job", "a\"b\n")]),
                sample: sample(Value::Float(1.0)),
            },
            InstantSample { labels: Labels::empty(), sample: sample(Value::Histogram(Arc::new(h))) },
        ]);
        assert_eq!(
            query_data(&vector),
            concat!(
                r#"{"resultType":"vector","result":[{"metric":{"__name__":"up","job":"a\"b\n"},"#,
                r#""value":[1435781451.781,"1"]},{"metric":{},"histogram":[1435781451.781,{"count":"4","sum":"3.5","#,
                r#""buckets":[[1,"-2","-1","1"],[3,"-2.938735877055719e-39","2.938735877055719e-39","1"],"#,
                r#"[0,"1","2","1"],[0,"2","4","1"]]}]}]}"#,
            )
        );
    }

    #[test]
    fn a_matrix_keeps_floats_and_histograms_apart() {
        let h = Value::Histogram(Arc::new(ExponentialHistogram::default()));
        let samples = vec![
            Sample { timestamp_ms: 0, value: Value::Float(1.5) },
            Sample { timestamp_ms: 1000, value: h },
            Sample { timestamp_ms: 2000, value: Value::Float(f64::NAN) },
        ];
        let matrix = QueryValue::Matrix(vec![RangeSeries { labels: Labels::empty(), samples }]);
        assert_eq!(
            query_data(&matrix),
            concat!(
                r#"{"resultType":"matrix","result":[{"metric":{},"values":[[0,"1.5"],[2,"NaN"]],"#,
                r#""histograms":[[1,{"count":"0","sum":"0"}]]}]}"#,
            )
        );
    }

    #[test]
    fn errors_and_warnings_have_their_place() {
        assert_eq!(error("bad_data", "a \"b\""), r#"{"status":"error","errorType":"bad_data","error":"a \"b\""}"#);
        let notes = |text: &str| vec![text.to_owned()];
        let both = r#"{"status":"success","data":[],"warnings":["cut"],"infos":["perhaps"]}"#;
        assert_eq!(success("[]", &notes("cut"), &notes("perhaps")), both);
        assert_eq!(success("[]", &[], &[]), r#"{"status":"success","data":[]}"#);
    }
}
