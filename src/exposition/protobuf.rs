//! Prometheus's protobuf format: the one that carries native histograms.
//!
//! The messages are those of `io.prometheus.client` (`metrics.proto` of Prometheus's client model) as far as we use them,
//! declared here and not generated, so that no build needs `protoc`. A scrape is a sequence of families, each after its
//! length.

use std::collections::BTreeMap;

use prost::Message;

use super::help::help;
use crate::model::{
    BucketSpan, ExponentialHistogram, Family, Labels, METRIC_NAME, MetricKind, Value, ZERO_THRESHOLD, classic_buckets,
};

/// The `Content-Type` of what [`render_protobuf`] writes.
pub const PROTOBUF_CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// A counter or a gauge: both have their value in the same place.
#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, tag = "2")]
    upper_bound: f64,
    #[prost(double, optional, tag = "4")]
    cumulative_count_float: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    /// Buckets between the end of the span before (the first: bucket 0) and this one.
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

/// Counts are whole numbers, written as differences, or floats, written as they are: in one histogram all the same.
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(double, optional, tag = "4")]
    sample_count_float: Option<f64>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(double, optional, tag = "8")]
    zero_count_float: Option<f64>,
    #[prost(message, repeated, tag = "9")]
    negative_span: Vec<Span>,
    #[prost(sint64, repeated, tag = "10")]
    negative_delta: Vec<i64>,
    #[prost(double, repeated, tag = "11")]
    negative_count: Vec<f64>,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<Span>,
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
    #[prost(double, repeated, tag = "14")]
    positive_count: Vec<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricFamily {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    /// 0 counter, 1 gauge, 4 histogram.
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Metric>,
}

/// All families, a histogram both as native one and as classic buckets: the scraper takes what it is configured for.
pub fn render_protobuf(families: &BTreeMap<String, Family>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, family) in families.iter().filter(|(_, family)| !family.series.is_empty()) {
        let family = MetricFamily {
            name: name.clone(),
            help: help(name).map(str::to_owned),
            kind: Some(match family.kind {
                MetricKind::Counter => 0,
                MetricKind::Gauge => 1,
                MetricKind::Histogram => 4,
            }),
            metric: family.series.iter().map(|(labels, value)| metric(family.kind, labels, value)).collect(),
        };
        // A Vec has no end to run into.
        let _ = family.encode_length_delimited(&mut out);
    }
    out
}

fn metric(kind: MetricKind, labels: &Labels, value: &Value) -> Metric {
    let pairs = labels.iter().filter(|(label, _)| *label != METRIC_NAME);
    let label = pairs.map(|(name, value)| LabelPair { name: name.to_owned(), value: value.to_owned() }).collect();
    let number = value.as_float().map(|value| Number { value: Some(value) });
    let (gauge, counter) = if kind == MetricKind::Counter { (None, number) } else { (number, None) };
    Metric { label, gauge, counter, histogram: value.as_histogram().map(histogram) }
}

fn histogram(histogram: &ExponentialHistogram) -> Histogram {
    let whole = |count: f64| count.fract() == 0.0 && (0.0..9e15).contains(&count);
    let all_counts = histogram.positive().counts.iter().chain(&histogram.negative().counts);
    let is_whole = whole(histogram.count()) && whole(histogram.zero_count()) && all_counts.copied().all(whole);
    let count = |count: f64| is_whole.then_some(count as u64);
    let float = |count: f64| (!is_whole).then_some(count);
    let bucket = classic_buckets(histogram).map(|(upper_bound, at_most)| Bucket {
        cumulative_count: count(at_most),
        upper_bound,
        cumulative_count_float: float(at_most),
    });
    let (mut positive_span, positive) = spans(histogram.positive());
    let (negative_span, negative) = spans(histogram.negative());
    if positive_span.is_empty() && negative_span.is_empty() {
        // An empty span tells a native histogram without values from a classic one.
        positive_span.push(Span { offset: 0, length: 0 });
    }
    Histogram {
        sample_count: count(histogram.count()),
        sample_sum: Some(histogram.sum()),
        bucket: bucket.collect(),
        sample_count_float: float(histogram.count()),
        schema: Some(i32::from(histogram.schema())),
        zero_threshold: Some(ZERO_THRESHOLD),
        zero_count: count(histogram.zero_count()),
        zero_count_float: float(histogram.zero_count()),
        negative_span,
        negative_delta: if is_whole { deltas(&negative) } else { Vec::new() },
        negative_count: if is_whole { Vec::new() } else { negative },
        positive_span,
        positive_delta: if is_whole { deltas(&positive) } else { Vec::new() },
        positive_count: if is_whole { Vec::new() } else { positive },
    }
}

/// Occupied buckets as spans, with the counts in them. Gaps of one or two empty buckets are part of a span: that is
/// shorter than a new one.
fn spans(buckets: &BucketSpan) -> (Vec<Span>, Vec<f64>) {
    const GAP_MAX: usize = 2;
    let (mut spans, mut counts): (Vec<Span>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut gap = 0;
    for (at, count) in buckets.counts.iter().enumerate() {
        if *count == 0.0 {
            gap += 1;
            continue;
        }
        match spans.last_mut() {
            Some(span) if gap <= GAP_MAX => {
                span.length += gap as u32 + 1;
                counts.extend(std::iter::repeat_n(0.0, gap));
            }
            Some(_) => spans.push(Span { offset: gap as i32, length: 1 }),
            None => spans.push(Span { offset: buckets.offset + at as i32, length: 1 }),
        }
        counts.push(*count);
        gap = 0;
    }
    (spans, counts)
}

fn deltas(counts: &[f64]) -> Vec<i64> {
    let before = std::iter::once(0.0).chain(counts.iter().copied());
    counts.iter().zip(before).map(|(count, before)| *count as i64 - before as i64).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// What a scraper makes of spans and counts: the count of each bucket.
    fn read(spans: &[Span], counts: &[f64]) -> BTreeMap<i32, f64> {
        let (mut index, mut counts) = (0, counts.iter());
        let mut buckets = BTreeMap::new();
        for span in spans {
            index += span.offset;
            for _ in 0..span.length {
                buckets.insert(index, *counts.next().unwrap());
                index += 1;
            }
        }
        assert!(counts.next().is_none());
        buckets.retain(|_, count| *count != 0.0);
        buckets
    }

    fn occupied(buckets: &BucketSpan) -> BTreeMap<i32, f64> {
        let all = buckets.counts.iter().enumerate().map(|(at, count)| (buckets.offset + at as i32, *count));
        all.filter(|(_, count)| *count != 0.0).collect()
    }

    proptest! {
        #[test]
        fn property_test_a_scraper_reads_every_bucket(
            values in prop::collection::vec((-1e6..1e6f64, prop_oneof![Just(1.0), Just(3.0), Just(2.5)]), 0..60)
        ) {
            let mut recorded = ExponentialHistogram::default();
            values.iter().for_each(|(value, weight)| recorded.record(*value, *weight));
            let series = BTreeMap::from([(Labels::from_pairs([(METRIC_NAME, "h"), ("a", "b")]), Value::Histogram(Arc::new(recorded.clone())))]);
            let families = BTreeMap::from([("h".to_owned(), Family { kind: MetricKind::Histogram, series })]);
            let bytes = render_protobuf(&families);
            let family = MetricFamily::decode_length_delimited(bytes.as_slice()).unwrap();
            prop_assert_eq!((family.name.as_str(), family.kind), ("h", Some(4)));
            let got = family.metric[0].histogram.clone().unwrap();
            // Weights of 2.5 can add up to whole counts too.
            let is_whole = got.sample_count.is_some();
            prop_assert!(is_whole || values.iter().any(|(_, weight)| weight.fract() != 0.0));
            let running = |deltas: &[i64]| -> Vec<f64> {
                deltas.iter().scan(0, |count, delta| { *count += delta; Some(*count as f64) }).collect()
            };
            let (positive, negative, count, zero) = if is_whole {
                (running(&got.positive_delta), running(&got.negative_delta), got.sample_count.unwrap() as f64, got.zero_count.unwrap() as f64)
            } else {
                (got.positive_count.clone(), got.negative_count.clone(), got.sample_count_float.unwrap(), got.zero_count_float.unwrap())
            };
            prop_assert_eq!(read(&got.positive_span, &positive), occupied(recorded.positive()));
            prop_assert_eq!(read(&got.negative_span, &negative), occupied(recorded.negative()));
            prop_assert_eq!((count, zero, got.sample_sum.unwrap()), (recorded.count(), recorded.zero_count(), recorded.sum()));
            prop_assert!(!got.positive_span.is_empty() || !got.negative_span.is_empty());
            prop_assert_eq!(got.bucket.last().unwrap().upper_bound, f64::INFINITY);
        }
    }
}
