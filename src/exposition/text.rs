//! Prometheus's text format, version 0.0.4 (its "Exposition formats" page).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::help::help;
use crate::model::{
    ExponentialHistogram, Family, Labels, METRIC_NAME, Value, classic_buckets, classic_le, format_float,
};

/// The `Content-Type` of what [`render`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All families as text.
pub fn render(families: &BTreeMap<String, Family>) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    for (name, family) in families {
        if family.series.is_empty() {
            continue;
        }
        if let Some(help) = help(name) {
            let _ = writeln!(out, "# HELP {name} {help}");
        }
        let _ = writeln!(out, "# TYPE {name} {}", family.kind.as_str());
        for (labels, value) in &family.series {
            match value {
                Value::Float(value) => line(&mut out, name, "", labels, None, *value),
                Value::Histogram(histogram) => classic(&mut out, name, labels, histogram),
            }
        }
    }
    out
}

/// A histogram as classic buckets.
fn classic(out: &mut String, name: &str, labels: &Labels, histogram: &ExponentialHistogram) {
    for (bound, count) in classic_buckets(histogram) {
        line(out, name, "_bucket", labels, Some(&classic_le(bound)), count);
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
        for c in text.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                _ => out.push(c),
            }
        }
        out.push('"');
    }
    if separator == ',' {
        out.push('}');
    }
    out.push(' ');
    out.push_str(&format_float(value));
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::MetricKind;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut histogram = ExponentialHistogram::default();
        [0.5, 3.0].iter().for_each(|v| histogram.record(*v, 1.0));
        let labels = |pairs: &[(&'static str, &'static str)]| Labels::from_pairs(pairs.iter().copied());
        let family = |kind, labels, value| Family { kind, series: BTreeMap::from([(labels, value)]) };
        let families = BTreeMap::from([
            (
                "c".to_owned(),
                family(MetricKind::Counter, labels(&[(METRIC_NAME, "c"), ("a", "\"\\\n")]), Value::Float(3.0)),
            ),
            (
                "cortex_api_info".to_owned(),
                family(MetricKind::Gauge, labels(&[(METRIC_NAME, "cortex_api_info")]), Value::Float(1.0)),
            ),
            (
                "h".to_owned(),
                family(
                    MetricKind::Histogram,
                    labels(&[(METRIC_NAME, "h"), ("x", "y")]),
                    Value::Histogram(Arc::new(histogram)),
                ),
            ),
        ]);
        let text = render(&families);
        let head = "# TYPE c counter\nc{a=\"\\\"\\\\\\n\"} 3\n# HELP cortex_api_info 1; where the API answers is in its labels.\n\
                    # TYPE cortex_api_info gauge\ncortex_api_info 1\n# TYPE h histogram\nh_bucket{x=\"y\",le=\"6.103515625e-05\"} 0\n";
        assert!(text.starts_with(head), "{text}");
        for line in
            ["h_bucket{x=\"y\",le=\"0.5\"} 1", "h_bucket{x=\"y\",le=\"4.0\"} 2", "h_bucket{x=\"y\",le=\"+Inf\"} 2"]
        {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.ends_with("h_sum{x=\"y\"} 3.5\nh_count{x=\"y\"} 2\n"), "{text}");
    }
}
