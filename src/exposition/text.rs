//! Prometheus's text format, version 0.0.4 (its "Exposition formats" page).

use std::fmt::Write as _;
use std::sync::Arc;

use super::CHUNK_BYTES;
use super::help::help;
use crate::model::{ExponentialHistogram, Labels, Ladder, METRIC_NAME, Snapshot, Value, format_float};

/// The `Content-Type` of what [`text_chunks`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whole numbers up to here are doubles, each of them: 2^53.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// A snapshot as text, one chunk after another: who reads slowly holds the snapshot and one chunk.
pub fn text_chunks(snapshot: Arc<Snapshot>, ladder: Ladder) -> impl Iterator<Item = Vec<u8>> + Send {
    // The family to go on with, and how many of its places are written; `None` at the end.
    let mut written: Option<(Box<str>, usize)> = Some((Box::from(""), 0));
    std::iter::from_fn(move || {
        let (begun, from) = written.take()?;
        let mut out = String::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
        let first = snapshot.family(&begun).map(|family| (&*begun, family, from)).into_iter();
        let further = snapshot.families_after(&begun).map(|(name, family)| (name, family, 0));
        for (name, family, from) in first.chain(further) {
            let mut has_head = from > 0;
            for (at, series) in snapshot.series_from(family, from) {
                if !std::mem::replace(&mut has_head, true) {
                    head(&mut out, name, family.kind.as_str());
                }
                match &series.value {
                    Value::Float(value) => line(&mut out, name, "", &series.labels, None, *value),
                    Value::Histogram(histogram) => classic(&mut out, name, &series.labels, &ladder, histogram),
                }
                if out.len() >= CHUNK_BYTES {
                    written = Some((name.into(), at + 1));
                    return Some(out.into_bytes());
                }
            }
        }
        Some(out.into_bytes())
    })
}

// Writing to a String cannot fail.

fn head(out: &mut String, name: &str, kind: &str) {
    if let Some(help) = help(name) {
        let _ = writeln!(out, "# HELP {name} {help}");
    }
    let _ = writeln!(out, "# TYPE {name} {kind}");
}

/// A histogram as classic buckets.
fn classic(out: &mut String, name: &str, labels: &Labels, ladder: &Ladder, histogram: &ExponentialHistogram) {
    for (_, le, count) in ladder.counts(histogram) {
        line(out, name, "_bucket", labels, Some(le), count);
    }
    line(out, name, "_sum", labels, None, histogram.sum());
    line(out, name, "_count", labels, None, histogram.count());
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &Labels, le: Option<&str>, value: f64) {
    out.push_str(name);
    out.push_str(suffix);
    let pairs = labels.iter().filter(|(label, _)| *label != METRIC_NAME).chain(le.map(|bound| ("le", bound)));
    let mut separator = '{';
    for (label, text) in pairs {
        out.push(separator);
        separator = ',';
        out.push_str(label);
        out.push_str("=\"");
        let mut rest = text;
        while let Some((plain, special)) = rest.find(['\\', '"', '\n']).and_then(|at| rest.split_at_checked(at)) {
            out.push_str(plain);
            let mut characters = special.chars();
            out.push_str(match characters.next() {
                Some('\n') => "\\n",
                Some('"') => "\\\"",
                _ => "\\\\",
            });
            rest = characters.as_str();
        }
        out.push_str(rest);
        out.push('"');
    }
    if separator == ',' {
        out.push('}');
    }
    out.push(' ');
    if value.fract() == 0.0 && value.abs() < WHOLE_MAX && !(value == 0.0 && value.is_sign_negative()) {
        let _ = write!(out, "{}", value as i64);
    } else {
        out.push_str(&format_float(value));
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{MetricKind, PublishedSeries};

    fn snapshot<'a>(series: impl IntoIterator<Item = (MetricKind, Vec<(&'a str, &'a str)>, Value)>) -> Arc<Snapshot> {
        let mut snapshot = Snapshot::default();
        for (kind, pairs, value) in series {
            snapshot.insert(kind, PublishedSeries { labels: Labels::from_pairs(pairs), start_ms: None, value });
        }
        snapshot.settle();
        Arc::new(snapshot)
    }

    fn text(snapshot: &Arc<Snapshot>, ladder: &Ladder) -> String {
        let chunks = text_chunks(Arc::clone(snapshot), ladder.clone());
        String::from_utf8(chunks.flatten().collect()).unwrap()
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut histogram = ExponentialHistogram::default();
        [0.5, 3.0].iter().for_each(|v| histogram.record(*v, 1.0));
        let snapshot = snapshot([
            (MetricKind::Counter, vec![(METRIC_NAME, "c"), ("a", "x\"\\\ny")], Value::Float(3.0)),
            (MetricKind::Gauge, vec![(METRIC_NAME, "ended")], Value::stale()),
            (MetricKind::Gauge, vec![(METRIC_NAME, "cortex_api_info")], Value::Float(-0.0)),
            (MetricKind::Histogram, vec![(METRIC_NAME, "h"), ("x", "y")], Value::Histogram(Arc::new(histogram))),
        ]);
        let got = text(&snapshot, &Ladder::default());
        let head = "# TYPE c counter\nc{a=\"x\\\"\\\\\\ny\"} 3\n# HELP cortex_api_info 1; where the API answers is in its labels.\n\
                    # TYPE cortex_api_info gauge\ncortex_api_info -0\n# TYPE h histogram\nh_bucket{x=\"y\",le=\"6.103515625e-05\"} 0\n";
        assert!(got.starts_with(head), "{got}");
        for line in
            ["h_bucket{x=\"y\",le=\"0.5\"} 1", "h_bucket{x=\"y\",le=\"4.0\"} 2", "h_bucket{x=\"y\",le=\"+Inf\"} 2"]
        {
            assert!(got.contains(line), "{got}");
        }
        let end = "h_sum{x=\"y\"} 3.5\nh_count{x=\"y\"} 2\n";
        assert!(got.ends_with(end), "{got}");
        let got = text(&snapshot, &Ladder::parse("1,4").unwrap());
        let buckets =
            "h_bucket{x=\"y\",le=\"1.0\"} 1\nh_bucket{x=\"y\",le=\"4.0\"} 2\nh_bucket{x=\"y\",le=\"+Inf\"} 2\n";
        assert!(got.ends_with(&format!("# TYPE h histogram\n{buckets}{end}")), "{got}");
    }

    #[test]
    fn chunks_end_between_series_and_lose_none() {
        let names: Vec<String> = (0..30_000).map(|at| format!("name_{:02}", at % 17)).collect();
        let values: Vec<String> = (0..30_000).map(|at| format!("v{at}")).collect();
        let series = names.iter().zip(&values).map(|(name, value)| {
            (MetricKind::Counter, vec![(METRIC_NAME, name.as_str()), ("v", value.as_str())], Value::Float(1.0))
        });
        let snapshot = snapshot(series);
        let chunks: Vec<Vec<u8>> = text_chunks(Arc::clone(&snapshot), Ladder::default()).collect();
        assert!(chunks.len() > 3 && chunks.iter().all(|chunk| chunk.len() < CHUNK_BYTES + 200));
        assert!(chunks.iter().all(|chunk| chunk.ends_with(b"\n")));
        let text = String::from_utf8(chunks.concat()).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 30_000 + 17);
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 30_000 + 17);
    }

    proptest! {
        #[test]
        fn property_test_a_value_reads_back_as_it_was(value in any::<f64>()) {
            let mut out = String::new();
            line(&mut out, "m", "", &Labels::empty(), None, value);
            let read: f64 = out["m ".len()..].trim_end().parse().unwrap();
            prop_assert!(read.to_bits() == value.to_bits() || (read.is_nan() && value.is_nan()), "{}", out);
        }
    }
}
