use std::convert::Infallible;

use proptest::prelude::*;
use prost::Message;

use super::histogram::{Histogram, Span};
use super::*;
use crate::model::{ExponentialHistogram, ZERO_THRESHOLD};

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct FloatSample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<FloatSample>,
    #[prost(message, repeated, tag = "4")]
    histograms: Vec<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

const ALL: Times = Times { oldest_ms: 0, newest_ms: 1_000_000 };

fn named(pairs: &[(&str, &str)]) -> Vec<Label> {
    pairs
        .iter()
        .map(|(name, value)| Label { name: name.as_bytes().to_vec(), value: value.as_bytes().to_vec() })
        .collect()
}

fn floats(samples: &[(i64, f64)]) -> Vec<FloatSample> {
    samples.iter().map(|(timestamp_ms, value)| FloatSample { value: *value, timestamp_ms: *timestamp_ms }).collect()
}

fn one(labels: Vec<Label>, samples: Vec<FloatSample>, histograms: Vec<Histogram>) -> WriteRequest {
    WriteRequest { timeseries: vec![TimeSeries { labels, samples, histograms }] }
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).unwrap()
}

fn batches(request: &WriteRequest) -> Vec<Batch> {
    let body = Body::decode(&compressed(&request.encode_to_vec())).unwrap();
    let mut batches = Vec::new();
    let Ok(()) = body.for_each_batch(ALL, |batch| {
        batches.push(batch);
        Ok::<(), Infallible>(())
    });
    batches
}

fn refused(request: &WriteRequest) -> (Vec<(&'static str, u64)>, String) {
    let batch = batches(request).remove(0);
    assert!(batch.series.is_empty());
    (batch.refused.into_iter().collect(), batch.example.unwrap())
}

fn simple() -> Histogram {
    Histogram {
        count_int: Some(6),
        sum: 12.5,
        schema: 0,
        zero_threshold: ZERO_THRESHOLD,
        zero_count_int: Some(1),
        positive_spans: vec![Span { offset: 1, length: 2 }, Span { offset: 2, length: 1 }],
        positive_deltas: vec![1, 1, -1],
        negative_spans: vec![Span { offset: -3, length: 1 }],
        negative_deltas: vec![1],
        timestamp_ms: 5,
        ..Histogram::default()
    }
}

#[test]
fn floats_stale_markers_and_labels_in_any_order_are_read() {
    let stale = Value::stale().as_float().unwrap();
    let request = one(named(&[("z", "1"), ("__name__", "up"), ("empty", "")]), floats(&[(1, 2.5), (2, stale)]), vec![]);
    let batch = batches(&request).remove(0);
    let series = &batch.series[0];
    assert_eq!(series.labels, Labels::from_pairs([("__name__", "up"), ("z", "1")]));
    assert_eq!(series.samples[0], Sample { timestamp_ms: 1, value: Value::Float(2.5) });
    assert!(series.samples[1].value.is_stale() && batch.refused.is_empty());
}

#[test]
fn integer_and_float_histograms_are_the_buckets_that_were_sent() {
    let integer = simple();
    let float = Histogram {
        count_int: None,
        count_float: Some(6.0),
        zero_count_int: None,
        zero_count_float: Some(1.0),
        positive_deltas: vec![],
        positive_counts: vec![1.0, 2.0, 1.0],
        negative_deltas: vec![],
        negative_counts: vec![1.0],
        ..simple()
    };
    let stale = Histogram { sum: Value::stale().as_float().unwrap(), timestamp_ms: 9, ..Histogram::default() };
    let request = one(named(&[("__name__", "h")]), vec![], vec![integer, float, stale]);
    let samples = &batches(&request).remove(0).series[0].samples.clone();
    let h = samples[0].value.as_histogram().unwrap();
    assert_eq!((h.schema(), h.count(), h.sum(), h.zero_count()), (0, 6.0, 12.5, 1.0));
    assert_eq!((h.positive().offset, &*h.positive().counts), (1, &[1.0, 2.0, 0.0, 0.0, 1.0][..]));
    assert_eq!((h.negative().offset, &*h.negative().counts), (-3, &[1.0][..]));
    assert_eq!(samples[0], samples[1]);
    assert!(samples[2].value.is_stale() && samples[2].timestamp_ms == 9);
}

#[test]
fn what_cannot_be_kept_is_refused_with_a_reason() {
    let name = || named(&[("__name__", "h")]);
    let of = |labels: Vec<Label>| refused(&one(labels, floats(&[(1, 1.0), (2, 2.0)]), vec![]));
    for (labels, why) in [
        (vec![], "has no name"),
        (named(&[("a", "b")]), "series {a=\"b\"} has no name"),
        (named(&[("__name__", "")]), "has no name"),
        (named(&[("__name__", "up"), ("", "b")]), "a label has no name"),
        (named(&[("__name__", "up"), ("a", "1"), ("a", "2")]), "label \"a\" is there twice"),
        (vec![Label { name: b"__name__".to_vec(), value: vec![b'u', 0xff] }], "is not UTF-8"),
        (named(&[("a", "b"); 257]), "at most 256 labels"),
    ] {
        let (reasons, example) = of(labels);
        assert_eq!(reasons, [("invalid_labels", 2)]);
        assert!(example.contains(why), "{example}");
    }
    let old = refused(&one(name(), floats(&[(-1, 1.0), (1_000_001, 1.0)]), vec![]));
    assert_eq!(old, (vec![("out_of_bounds", 2)], "out of bounds: series h at -1 ms".to_owned()));
    type Change = fn(&mut Histogram);
    let changes: [(Change, &str); 14] = [
        (|h| h.schema = -53, "custom buckets (schema -53) are not supported: series h at 5 ms"),
        (|h| h.schema = 9, "got schema 9, want -4 to 8"),
        (|h| h.schema = -5, "got schema -5"),
        (|h| h.zero_threshold = 0.001, "got zero threshold 1e-3, want at most 2.938735877055719e-39"),
        (|h| h.zero_threshold = f64::NAN, "got zero threshold NaN"),
        (|h| h.zero_threshold = -1e-40, "got zero threshold -1e-40"),
        (|h| h.positive_deltas[2] = -3, "observation count is negative"),
        (|h| h.positive_deltas[0] = i64::MAX, "a count is too large"),
        (|h| h.positive_spans[0].length = 3, "spans need 4 buckets, have 3"),
        (|h| h.positive_spans[1].offset = -1, "span number 2 has the negative offset -1"),
        (|h| h.positive_spans[1].offset = i32::MAX, "lie too far apart"),
        (|h| h.positive_spans[0].offset = i32::MAX, "beyond the range of a double"),
        (|h| h.count_int = Some(7), "6 observations found in buckets, but the count is 7"),
        (|h| h.positive_spans[0].length = u32::MAX, "spans need 4294967296 buckets"),
    ];
    for (change, why) in changes {
        let mut histogram = simple();
        change(&mut histogram);
        let (reasons, example) = refused(&one(name(), vec![], vec![histogram]));
        assert_eq!(reasons, [("invalid_histogram", 1)]);
        assert!(example.contains(why), "{example}");
    }
    let empty_zero = Histogram { zero_threshold: 0.0, zero_count_int: None, count_int: Some(5), ..simple() };
    assert!(batches(&one(name(), vec![], vec![empty_zero])).remove(0).refused.is_empty());
    // OpenTelemetry's, with something in it.
    for zero_threshold in [0.0, 1e-128] {
        let mut batch = batches(&one(name(), vec![], vec![Histogram { zero_threshold, ..simple() }])).remove(0);
        let sample = batch.series.remove(0).samples.remove(0);
        assert_eq!(sample.value.as_histogram().unwrap().zero_count(), 1.0, "{:?}", batch.refused);
    }
}

#[test]
fn a_body_that_is_none_is_refused_as_a_whole_and_a_bomb_before_it_is_decompressed() {
    let decode = |bytes: &[u8]| Body::decode(bytes).map(|_| ());
    assert!(matches!(decode(b""), Err(BodyError::Snappy(_))));
    assert!(matches!(decode(b"\x05abc"), Err(BodyError::Snappy(_))));
    let too_long = vec![0; BODY_BYTES_MAX + 1];
    assert_eq!(decode(&compressed(&too_long)), Err(BodyError::TooLong(BODY_BYTES_MAX + 1)));
    // Only its length says so.
    assert!(matches!(decode(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0]), Err(BodyError::TooLong(_))));
    for wrong in [&b"\x0a\x05\x01"[..], b"\x0a", b"\x08\x01", b"\x0a\x02\x08\x01", b"\x0b\x0c", b"\x00"] {
        assert!(matches!(decode(&compressed(wrong)), Err(BodyError::Protobuf(_))), "{wrong:?}");
    }
    assert_eq!(decode(&compressed(b"")), Ok(()));
    // Metadata, and a field that nobody knows.
    assert_eq!(decode(&compressed(b"\x1a\x02\x08\x01\x25\x00\x00\x00\x00")), Ok(()));
}

#[test]
fn a_long_series_comes_in_batches() {
    let samples: Vec<(i64, f64)> = (0..25_000).map(|at| (at, at as f64)).collect();
    let request = one(named(&[("__name__", "up")]), floats(&samples), vec![]);
    let batches = batches(&request);
    let counts: Vec<usize> = batches.iter().map(|batch| batch.series[0].samples.len()).collect();
    assert_eq!(counts, [10_000, 10_000, 5_000]);
    let times = batches.iter().flat_map(|batch| &batch.series[0].samples).map(|sample| sample.timestamp_ms);
    assert!(times.eq(0..25_000));
}

#[test]
fn what_the_fuzzer_begins_with_is_read_within_its_bounds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/remote_write");
    let seeds: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
    let (mut taken, mut refused) = (0, 0);
    for seed in seeds.iter().flat_map(|seed| [seed.clone(), compressed(seed)]) {
        let Ok(body) = Body::decode(&seed) else { continue };
        let times = Times { oldest_ms: 0, newest_ms: i64::MAX };
        let Ok(()) = body.for_each_batch(times, |batch| {
            taken += batch.series.iter().map(|series| series.samples.len()).sum::<usize>();
            refused += batch.refused.values().sum::<u64>();
            Ok::<(), Infallible>(())
        });
    }
    assert!(taken > 10 && refused > 3, "{taken} {refused}");
}

/// As a sender makes spans of a histogram: a span for each bucket.
fn sent(h: &ExponentialHistogram) -> Histogram {
    let side = |buckets: &crate::model::BucketSpan| {
        let (mut spans, mut counts, mut next) = (Vec::new(), Vec::new(), 0);
        for (at, count) in buckets.counts.iter().enumerate().filter(|(_, count)| **count != 0.0) {
            let index = buckets.offset + at as i32;
            spans.push(Span { offset: index - next, length: 1 });
            counts.push(*count);
            next = index + 1;
        }
        (spans, counts)
    };
    let ((positive_spans, positive_counts), (negative_spans, negative_counts)) =
        (side(h.positive()), side(h.negative()));
    Histogram {
        count_float: Some(h.count()),
        sum: h.sum(),
        schema: h.schema().into(),
        zero_threshold: ZERO_THRESHOLD,
        zero_count_float: Some(h.zero_count()),
        positive_spans,
        positive_counts,
        negative_spans,
        negative_counts,
        ..Histogram::default()
    }
}

proptest! {
    #[test]
    fn property_test_a_histogram_that_is_sent_arrives(values in prop::collection::vec((-1e9..1e9f64, 0.5..3.0f64), 0..50)) {
        let mut recorded = ExponentialHistogram::default();
        values.iter().for_each(|(value, weight)| recorded.record(*value, *weight));
        let request = one(named(&[("__name__", "h")]), vec![], vec![sent(&recorded)]);
        let batch = batches(&request).remove(0);
        let got = batch.series[0].samples[0].value.as_histogram().unwrap();
        prop_assert_eq!(got.buckets(), recorded.buckets());
        prop_assert_eq!((got.count(), got.sum()), (recorded.count(), recorded.sum()));
    }

    #[test]
    fn property_test_no_body_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Body::decode(&bytes);
        if let Ok(body) = Body::decode(&compressed(&bytes)) {
            let Ok(()) = body.for_each_batch(ALL, |_| Ok::<(), Infallible>(()));
        }
    }
}
