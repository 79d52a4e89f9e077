//! Prometheus's protobuf format: the one that carries native histograms.
//!
//! The messages are those of `io.prometheus.client` (`metrics.proto` of Prometheus's client model) as far as we use them,
//! declared here and not generated, so that no build needs `protoc`. A scrape is a sequence of families, each after its
//! length.

use std::sync::Arc;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::CHUNK_BYTES;
use super::help::help;
use crate::model::{
    BucketSpan, ExponentialHistogram, Family, Labels, Ladder, METRIC_NAME, MetricKind, PublishedSeries, Snapshot,
    Value, ZERO_THRESHOLD,
};

/// The `Content-Type` of what [`protobuf_chunks`] writes.
pub const PROTOBUF_CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

impl Timestamp {
    fn of(ms: i64) -> Self {
        Self { seconds: ms.div_euclid(1000), nanos: ms.rem_euclid(1000) as i32 * 1_000_000 }
    }
}

/// A counter or a gauge: both have their value in the same place. A gauge has no start.
#[derive(Clone, Copy, PartialEq, Message)]
struct Number {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
    /// `created_timestamp`, which newer versions call `start_timestamp`.
    #[prost(message, optional, tag = "3")]
    start: Option<Timestamp>,
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
    /// `created_timestamp`, which newer versions call `start_timestamp`.
    #[prost(message, optional, tag = "15")]
    start: Option<Timestamp>,
}

// `LabelPair`, `Metric` and `MetricFamily` are written by hand: there is one for each series and label, and prost would
// want a string of its own for each name and value. The tests read them with prost.

/// A snapshot as families, one chunk after another, a histogram both as native one and as classic buckets: the scraper takes
/// what it is configured for. Who reads slowly holds the snapshot and one chunk. A family comes after its length: one that is longer than
/// a chunk is made once for that, and once more as it is read.
pub fn protobuf_chunks(snapshot: Arc<Snapshot>, ladder: Ladder) -> impl Iterator<Item = Vec<u8>> + Send {
    // The family to go on with, and how many of its places are written; `None` at the end.
    let mut written: Option<(Box<str>, usize)> = Some((Box::from(""), 0));
    std::iter::from_fn(move || {
        let (begun, from) = written.take()?;
        let (mut out, mut metrics, mut metric) = (Vec::new(), Vec::new(), Vec::new());
        let first = snapshot.family(&begun).map(|family| (&*begun, family, from)).into_iter();
        let further = snapshot.families_after(&begun).map(|(name, family)| (name, family, 0));
        for (name, family, from) in first.chain(further) {
            let mut to = from;
            let mut rest = 0;
            metrics.clear();
            for (at, series) in snapshot.series_from(family, from) {
                let has_room = out.len() + metrics.len() < CHUNK_BYTES;
                if from > 0 && !has_room {
                    break;
                }
                metric.clear();
                encode_metric(&mut metric, family.kind, series, &ladder);
                if has_room {
                    encode_bytes(&mut metrics, 4, &metric);
                    to = at + 1;
                } else {
                    rest += 1 + prost::length_delimiter_len(metric.len()) + metric.len();
                }
            }
            if from == 0 && !metrics.is_empty() {
                let head = family_head(name, family);
                encode_varint((head.len() + metrics.len() + rest) as u64, &mut out);
                out.extend_from_slice(&head);
            }
            out.extend_from_slice(&metrics);
            if out.len() >= CHUNK_BYTES {
                written = Some((name.into(), to));
                break;
            }
        }
        Some(out)
    })
}

/// A `MetricFamily` without its metrics: name (1), help (2), type (3).
fn family_head(name: &str, family: &Family) -> Vec<u8> {
    let mut head = Vec::new();
    encode_bytes(&mut head, 1, name.as_bytes());
    if let Some(help) = help(name) {
        encode_bytes(&mut head, 2, help.as_bytes());
    }
    encode_key(3, WireType::Varint, &mut head);
    let kind = match family.kind {
        MetricKind::Counter => 0,
        MetricKind::Gauge => 1,
        MetricKind::Histogram => 4,
    };
    encode_varint(kind, &mut head);
    head
}

/// A `Metric`: labels (1), and a gauge (2), a counter (3) or a histogram (7).
fn encode_metric(out: &mut Vec<u8>, kind: MetricKind, series: &PublishedSeries, ladder: &Ladder) {
    encode_labels(out, &series.labels);
    let start = series.start_ms.map(|start_ms| Timestamp::of(start_ms.get()));
    match &series.value {
        Value::Float(value) if kind == MetricKind::Counter => {
            encode_message(out, 3, &Number { value: Some(*value), start });
        }
        Value::Float(value) => encode_message(out, 2, &Number { value: Some(*value), start: None }),
        Value::Histogram(values) => encode_message(out, 7, &Histogram { start, ..histogram(values, ladder) }),
    }
}

/// `LabelPair`s: name (1), value (2).
fn encode_labels(out: &mut Vec<u8>, labels: &Labels) {
    let length = |text: &str| 1 + prost::length_delimiter_len(text.len()) + text.len();
    for (name, value) in labels.iter().filter(|(name, _)| *name != METRIC_NAME) {
        encode_key(1, WireType::LengthDelimited, out);
        encode_varint((length(name) + length(value)) as u64, out);
        encode_bytes(out, 1, name.as_bytes());
        encode_bytes(out, 2, value.as_bytes());
    }
}

fn encode_bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn encode_message(out: &mut Vec<u8>, tag: u32, message: &impl Message) {
    encode_key(tag, WireType::LengthDelimited, out);
    // A Vec has no end to run into.
    let _ = message.encode_length_delimited(out);
}

fn histogram(histogram: &ExponentialHistogram, ladder: &Ladder) -> Histogram {
    // A scraper refuses whole counts that do not add up. Those of weights may not: their total is rounded elsewhere than they are.
    let whole = |count: f64| count.fract() == 0.0 && (0.0..9e15).contains(&count);
    let buckets = histogram.positive().counts.iter().chain(&histogram.negative().counts).copied();
    let in_buckets = buckets.clone().sum::<f64>() + histogram.zero_count();
    let is_whole = buckets.chain([histogram.zero_count(), in_buckets]).all(whole) && in_buckets == histogram.count();
    let count = |count: f64| is_whole.then_some(count as u64);
    let float = |count: f64| (!is_whole).then_some(count);
    let bucket = ladder.counts(histogram).map(|(upper_bound, _, at_most)| Bucket {
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
        start: None,
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
    use std::collections::BTreeMap;
    use std::num::NonZeroI64;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct LabelPair {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
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
        #[prost(int32, optional, tag = "3")]
        kind: Option<i32>,
        #[prost(message, repeated, tag = "4")]
        metric: Vec<Metric>,
    }

    fn snapshot(series: impl IntoIterator<Item = (MetricKind, Labels, Option<i64>, Value)>) -> Arc<Snapshot> {
        let mut snapshot = Snapshot::default();
        for (kind, labels, start_ms, value) in series {
            let start_ms = start_ms.and_then(NonZeroI64::new);
            snapshot.insert(kind, PublishedSeries { labels, start_ms, value });
        }
        snapshot.settle();
        Arc::new(snapshot)
    }

    fn families(snapshot: Arc<Snapshot>) -> Vec<MetricFamily> {
        let bytes: Vec<u8> = protobuf_chunks(snapshot, Ladder::default()).flatten().collect();
        let mut rest = bytes.as_slice();
        let mut families = Vec::new();
        while !rest.is_empty() {
            families.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
        }
        families
    }

    #[test]
    fn counters_and_histograms_say_when_they_began_and_gauges_do_not() {
        let labels = |name: &str| Labels::from_pairs([(METRIC_NAME, name), ("zone", "é")]);
        let histogram = Value::Histogram(Arc::default());
        let families = families(snapshot([
            (MetricKind::Counter, labels("cortex_client_calls_total"), Some(1_700_000_000_250), Value::Float(0.0)),
            (MetricKind::Counter, labels("d"), None, Value::Float(1.5)),
            (MetricKind::Gauge, labels("ended"), Some(5), Value::stale()),
            (MetricKind::Gauge, labels("g"), Some(5), Value::Float(-0.0)),
            (MetricKind::Histogram, labels("h"), Some(-1), histogram),
        ]));
        let names: Vec<_> = families.iter().map(|family| (family.name.as_str(), family.kind)).collect();
        assert_eq!(names, [("cortex_client_calls_total", Some(0)), ("d", Some(0)), ("g", Some(1)), ("h", Some(4))]);
        assert!(families[0].help.is_some() && families[1].help.is_none());
        let pair = LabelPair { name: "zone".to_owned(), value: "é".to_owned() };
        assert!(families.iter().all(|family| family.metric.len() == 1 && family.metric[0].label == [pair.clone()]));
        let start = Some(Timestamp { seconds: 1_700_000_000, nanos: 250_000_000 });
        assert_eq!(families[0].metric[0].counter, Some(Number { value: Some(0.0), start }));
        assert_eq!(families[1].metric[0].counter, Some(Number { value: Some(1.5), start: None }));
        assert_eq!(families[2].metric[0].gauge, Some(Number { value: Some(-0.0), start: None }));
        let began = families[3].metric[0].histogram.as_ref().unwrap().start;
        assert_eq!(began, Some(Timestamp { seconds: -1, nanos: 999_000_000 }));
    }

    #[test]
    fn chunks_lose_nothing_and_none_is_as_long_as_a_long_family() {
        // A family was made as a whole, and each of the scrapers that read slowly held one.
        for names in [300, 1] {
            let labels = |at: usize| {
                Labels::from_pairs([(METRIC_NAME, format!("name_{:03}", at % names)), ("v", format!("{at:04}"))])
            };
            let series = (0..9_000).map(|at| (MetricKind::Counter, labels(at), Some(5), Value::Float(at as f64)));
            let histograms = [3, 4_000].map(|at| {
                let labels = Labels::from_pairs([(METRIC_NAME, format!("h_{at}"))]);
                let mut histogram = ExponentialHistogram::default();
                (0..at).for_each(|i| histogram.record(f64::from(i), 1.0));
                (MetricKind::Histogram, labels, None, Value::Histogram(Arc::new(histogram)))
            });
            let snapshot = snapshot(series.chain(histograms));
            let chunks: Vec<_> = protobuf_chunks(Arc::clone(&snapshot), Ladder::default()).collect();
            assert!(chunks.len() > 2 && chunks.iter().all(|chunk| chunk.len() < CHUNK_BYTES + 4096));
            let families = families(snapshot);
            assert_eq!(families.len(), names + 2);
            let values: Vec<f64> = families
                .iter()
                .flat_map(|family| &family.metric)
                .filter_map(|metric| metric.counter.as_ref()?.value)
                .collect();
            let of_name = |name| (name..9_000).step_by(names).map(|at| at as f64);
            assert_eq!(values, (0..names).flat_map(of_name).collect::<Vec<_>>());
        }
    }

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
            values in prop::collection::vec((-1e6..1e6f64, prop_oneof![9 => Just(1.0), 9 => Just(3.0), 9 => Just(2.5), 1 => Just(1.0 / 0.3), 1 => Just(5e15)]), 0..60)
        ) {
            let mut recorded = ExponentialHistogram::default();
            values.iter().for_each(|(value, weight)| recorded.record(*value, *weight));
            let labels = Labels::from_pairs([(METRIC_NAME, "h"), ("a", "b")]);
            let value = Value::Histogram(Arc::new(recorded.clone()));
            let family = families(snapshot([(MetricKind::Histogram, labels, None, value)])).remove(0);
            prop_assert_eq!((family.name.as_str(), family.kind), ("h", Some(4)));
            let got = family.metric[0].histogram.clone().unwrap();
            // Weights of 2.5 can add up to whole counts too.
            let is_whole = got.sample_count.is_some();
            prop_assert!(is_whole || values.iter().any(|(_, weight)| weight.fract() != 0.0 || *weight > 1e9));
            let running = |deltas: &[i64]| -> Vec<f64> {
                deltas.iter().scan(0, |count, delta| { *count += delta; Some(*count as f64) }).collect()
            };
            let (positive, negative, count, zero) = if is_whole {
                (running(&got.positive_delta), running(&got.negative_delta), got.sample_count.unwrap() as f64, got.zero_count.unwrap() as f64)
            } else {
                (got.positive_count.clone(), got.negative_count.clone(), got.sample_count_float.unwrap(), got.zero_count_float.unwrap())
            };
            if is_whole {
                let buckets = positive.iter().chain(&negative).sum::<f64>() + zero;
                prop_assert_eq!(buckets, count, "a Prometheus refuses the scrape otherwise");
            }
            let below: Vec<f64> = got.bucket.iter().map(|b| b.cumulative_count_float.unwrap_or_else(|| b.cumulative_count.unwrap() as f64)).collect();
            prop_assert!(below.is_sorted() && below.last() == Some(&count), "{:?}", below);
            prop_assert_eq!(read(&got.positive_span, &positive), occupied(recorded.positive()));
            prop_assert_eq!(read(&got.negative_span, &negative), occupied(recorded.negative()));
            prop_assert_eq!((count, zero, got.sample_sum.unwrap()), (recorded.count(), recorded.zero_count(), recorded.sum()));
            prop_assert!(!got.positive_span.is_empty() || !got.negative_span.is_empty());
            prop_assert_eq!(got.bucket.last().unwrap().upper_bound, f64::INFINITY);
        }
    }
}
