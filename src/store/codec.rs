//! Values and labels as bytes; the layout is in `docs/storage-format.md`. Encode and decode stand side by side.

use std::sync::Arc;

use crate::model::{BucketSpan, ExponentialHistogram, Labels, MetricKind, Value};

const TAG_FLOAT: u8 = 0;
const TAG_HISTOGRAM: u8 = 1;
/// Whole numbers up to here are doubles exactly.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

pub(super) fn encode_value(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    match value {
        Value::Float(float) => {
            out.push(TAG_FLOAT);
            out.extend_from_slice(&float.to_le_bytes());
        }
        Value::Histogram(histogram) => {
            out.push(TAG_HISTOGRAM);
            out.extend_from_slice(&histogram.schema().to_le_bytes());
            out.extend_from_slice(&histogram.sum().to_le_bytes());
            put_number(&mut out, histogram.count());
            put_number(&mut out, histogram.zero_count());
            put_span(&mut out, histogram.positive());
            put_span(&mut out, histogram.negative());
        }
    }
    out
}

/// `None` if the bytes are not exactly one value.
pub(super) fn decode_value(bytes: &[u8]) -> Option<Value> {
    let mut rest = bytes;
    let value = match take::<1>(&mut rest)? {
        [TAG_FLOAT] => Value::Float(f64::from_le_bytes(take(&mut rest)?)),
        [TAG_HISTOGRAM] => {
            let schema = i8::from_le_bytes(take(&mut rest)?);
            let sum = f64::from_le_bytes(take(&mut rest)?);
            let count = take_number(&mut rest)?;
            let zero_count = take_number(&mut rest)?;
            let positive = take_span(&mut rest)?;
            let negative = take_span(&mut rest)?;
            let histogram = ExponentialHistogram::from_parts(schema, zero_count, count, sum, positive, negative)?;
            Value::Histogram(Arc::new(histogram))
        }
        _ => return None,
    };
    rest.is_empty().then_some(value)
}

fn put_span(out: &mut Vec<u8>, span: &BucketSpan) {
    put_varint(out, u64::from(((span.offset << 1) ^ (span.offset >> 31)).cast_unsigned()));
    put_varint(out, span.counts.len() as u64);
    span.counts.iter().for_each(|count| put_number(out, *count));
}

fn take_span(rest: &mut &[u8]) -> Option<BucketSpan> {
    let zigzag = u32::try_from(take_varint(rest)?).ok()?;
    let offset = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
    let buckets = usize::try_from(take_varint(rest)?).ok()?;
    // Each bucket takes a byte at least: a length beyond that is a lie, and must not be allocated.
    if buckets > rest.len() {
        return None;
    }
    let counts = (0..buckets).map(|_| take_number(rest)).collect::<Option<Vec<f64>>>()?;
    Some(BucketSpan { offset, counts })
}

fn put_number(out: &mut Vec<u8>, number: f64) {
    if (0.0..=WHOLE_MAX).contains(&number) && number.fract() == 0.0 && number.is_sign_positive() {
        put_varint(out, (number as u64) << 1);
    } else {
        out.push(1);
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn take_number(rest: &mut &[u8]) -> Option<f64> {
    match take_varint(rest)? {
        1 => Some(f64::from_le_bytes(take(rest)?)),
        odd if odd & 1 == 1 => None,
        even => Some((even >> 1) as f64),
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let [byte] = take::<1>(rest)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

pub(super) fn encode_labels(labels: &Labels) -> String {
    // Pairs of strings always have a JSON form.
    serde_json::to_string(&labels.iter().collect::<Vec<_>>()).unwrap_or_default()
}

pub(super) fn decode_labels(text: &str) -> Option<Labels> {
    let pairs: Vec<(String, String)> = serde_json::from_str(text).ok()?;
    Some(Labels::from_pairs(pairs))
}

pub(super) fn encode_kind(kind: MetricKind) -> i64 {
    match kind {
        MetricKind::Counter => 0,
        MetricKind::Gauge => 1,
        MetricKind::Histogram => 2,
    }
}

pub(super) fn decode_kind(kind: i64) -> Option<MetricKind> {
    [MetricKind::Counter, MetricKind::Gauge, MetricKind::Histogram].get(usize::try_from(kind).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::METRIC_NAME;

    fn bits(value: &Value) -> Vec<u64> {
        match value {
            Value::Float(v) => vec![v.to_bits()],
            Value::Histogram(h) => {
                let span = |s: &BucketSpan| {
                    std::iter::once(s.offset as u64).chain(s.counts.iter().map(|c| c.to_bits())).collect::<Vec<_>>()
                };
                let head = vec![h.schema() as u64, h.sum().to_bits(), h.count().to_bits(), h.zero_count().to_bits()];
                [head, span(h.positive()), span(h.negative())].concat()
            }
        }
    }

    #[test]
    fn a_histogram_of_whole_counts_is_small() {
        let mut histogram = ExponentialHistogram::default();
        (1..=1000).for_each(|i| histogram.record(f64::from(i) / 1e4, 1.0));
        assert!(encode_value(&Value::Histogram(Arc::new(histogram))).len() < 400);
    }

    #[test]
    fn labels_and_kinds_are_read_back() {
        let labels = Labels::from_pairs([(METRIC_NAME, "m"), ("a", "\"\\\n\u{1f600}")]);
        assert_eq!(decode_labels(&encode_labels(&labels)), Some(labels));
        assert_eq!(decode_labels("{}"), None);
        for kind in [MetricKind::Counter, MetricKind::Gauge, MetricKind::Histogram] {
            assert_eq!(decode_kind(encode_kind(kind)), Some(kind));
        }
        assert_eq!(decode_kind(3), None);
    }

    proptest! {
        #[test]
        fn property_test_floats_are_read_back_bit_for_bit(float in prop::num::f64::ANY) {
            for value in [Value::Float(float), Value::stale(), Value::Float(-0.0)] {
                let decoded = decode_value(&encode_value(&value)).unwrap();
                prop_assert_eq!(bits(&decoded), bits(&value));
            }
        }

        #[test]
        fn property_test_histograms_are_read_back_bit_for_bit(
            values in prop::collection::vec((-1e9f64..1e9, 0.1f64..1e6), 0..60),
            whole in any::<bool>(),
        ) {
            let mut histogram = ExponentialHistogram::default();
            for (value, weight) in values {
                histogram.record(value, if whole { weight.ceil() } else { weight });
            }
            let value = Value::Histogram(Arc::new(histogram));
            prop_assert_eq!(bits(&decode_value(&encode_value(&value)).unwrap()), bits(&value));
        }

        #[test]
        fn property_test_any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), tag in 0u8..2) {
            let mut tagged = vec![tag];
            tagged.extend(bytes);
            if let Some(value) = decode_value(&tagged) {
                prop_assert_eq!(bits(&decode_value(&encode_value(&value)).unwrap()), bits(&value));
            }
        }
    }
}
