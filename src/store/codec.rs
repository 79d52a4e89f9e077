//! Bytes: integers, numbers, histograms, values, and the frame of a row. The layout is in `docs/storage-format.md`.
//! Encode and decode stand side by side; what is decoded may be any bytes at all.

use std::sync::Arc;

use crate::model::{BucketSpan, ExponentialHistogram, Labels, MetricKind, Value};

/// The version of `docs/storage-format.md`.
pub(super) const FORMAT_VERSION: u8 = 2;
const TAG_FLOAT: u8 = 0;
const TAG_HISTOGRAM: u8 = 1;
/// Whole numbers up to here are doubles exactly.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
const CHECKSUM_BYTES: usize = 4;

/// The tables, by the letter that goes into the sum of their rows.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Table {
    State = b's',
    Series = b'n',
    Levels = b'v',
    Log = b'l',
    Chunks = b'c',
    Summaries = b'm',
    Windows = b'w',
}

/// The body of a row: version, content, sum.
pub(super) fn frame(table: Table, key: i64, content: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = vec![FORMAT_VERSION];
    content(&mut body);
    let sum = checksum(table, key, &body);
    body.extend_from_slice(&sum.to_le_bytes());
    body
}

/// The content of a row's body, `None` if it is not what [`frame`] made for this table and key.
pub(super) fn unframe(table: Table, key: i64, body: &[u8]) -> Option<&[u8]> {
    let (framed, sum) = body.split_last_chunk::<CHECKSUM_BYTES>()?;
    let (version, content) = framed.split_first()?;
    (*version == FORMAT_VERSION && checksum(table, key, framed).to_le_bytes() == *sum).then_some(content)
}

fn checksum(table: Table, key: i64, framed: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[table as u8]);
    sum.update(&key.to_le_bytes());
    sum.update(framed);
    sum.finalize()
}

pub(super) fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Float(float) => {
            out.push(TAG_FLOAT);
            out.extend_from_slice(&float.to_le_bytes());
        }
        Value::Histogram(histogram) => {
            out.push(TAG_HISTOGRAM);
            put_histogram(out, histogram);
        }
    }
}

pub(super) fn take_value(rest: &mut &[u8]) -> Option<Value> {
    match take::<1>(rest)? {
        [TAG_FLOAT] => Some(Value::Float(take_f64(rest)?)),
        [TAG_HISTOGRAM] => Some(Value::Histogram(Arc::new(take_histogram(rest)?))),
        _ => None,
    }
}

pub(super) fn put_histogram(out: &mut Vec<u8>, histogram: &ExponentialHistogram) {
    out.extend_from_slice(&histogram.schema().to_le_bytes());
    out.extend_from_slice(&histogram.sum().to_le_bytes());
    put_number(out, histogram.count());
    put_number(out, histogram.zero_count());
    put_span(out, histogram.positive());
    put_span(out, histogram.negative());
}

pub(super) fn take_histogram(rest: &mut &[u8]) -> Option<ExponentialHistogram> {
    let schema = i8::from_le_bytes(take(rest)?);
    let sum = take_f64(rest)?;
    let count = take_number(rest)?;
    let zero_count = take_number(rest)?;
    let positive = take_span(rest)?;
    let negative = take_span(rest)?;
    ExponentialHistogram::from_parts(schema, zero_count, count, sum, positive, negative)
}

fn put_span(out: &mut Vec<u8>, span: &BucketSpan) {
    put_zigzag(out, i64::from(span.offset));
    put_varint(out, span.counts.len() as u64);
    span.counts.iter().for_each(|count| put_number(out, *count));
}

fn take_span(rest: &mut &[u8]) -> Option<BucketSpan> {
    let offset = i32::try_from(take_zigzag(rest)?).ok()?;
    // Each bucket takes a byte at least: a length beyond that is a lie, and must not be allocated.
    let buckets = take_length(rest)?;
    let counts = (0..buckets).map(|_| take_number(rest)).collect::<Option<Vec<f64>>>()?;
    Some(BucketSpan { offset, counts })
}

/// Whether a double is a whole number from 0 to 2^53, minus zero excepted.
pub(super) fn is_whole(number: f64) -> bool {
    (0.0..=WHOLE_MAX).contains(&number) && number.fract() == 0.0 && number.is_sign_positive()
}

pub(super) fn put_number(out: &mut Vec<u8>, number: f64) {
    if is_whole(number) {
        put_varint(out, (number as u64) << 1);
    } else {
        out.push(1);
        out.extend_from_slice(&number.to_le_bytes());
    }
}

pub(super) fn take_number(rest: &mut &[u8]) -> Option<f64> {
    match take_varint(rest)? {
        1 => take_f64(rest),
        odd if odd & 1 == 1 => None,
        even => Some((even >> 1) as f64),
    }
}

pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

pub(super) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, zigzag(value));
}

pub(super) fn take_zigzag(rest: &mut &[u8]) -> Option<i64> {
    take_varint(rest).map(unzigzag)
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let [byte] = take::<1>(rest)?;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A number of things that take at least a byte each.
pub(super) fn take_length(rest: &mut &[u8]) -> Option<usize> {
    usize::try_from(take_varint(rest)?).ok().filter(|length| *length <= rest.len())
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_length(rest)?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

pub(super) fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(take_bytes(rest)?).ok()
}

pub(super) fn take_f64(rest: &mut &[u8]) -> Option<f64> {
    Some(f64::from_le_bytes(take(rest)?))
}

pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

pub(super) fn put_labels(out: &mut Vec<u8>, labels: &Labels) {
    put_varint(out, labels.len() as u64);
    for (name, value) in labels.iter() {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

pub(super) fn take_labels(rest: &mut &[u8]) -> Option<Labels> {
    let length = take_length(rest)?;
    let pairs: Vec<(&str, &str)> =
        (0..length).map(|_| Some((take_text(rest)?, take_text(rest)?))).collect::<Option<_>>()?;
    Some(Labels::from_pairs(pairs))
}

/// What a series' kind is on disk; `None` stands for one that was written, whose kind nobody said.
const KINDS: [Option<MetricKind>; 4] =
    [Some(MetricKind::Counter), Some(MetricKind::Gauge), Some(MetricKind::Histogram), None];

pub(super) fn encode_kind(kind: Option<MetricKind>) -> u8 {
    KINDS.iter().position(|known| *known == kind).map_or(u8::MAX, |at| at as u8)
}

#[allow(clippy::option_option, reason = "the inner one is a kind of its own: nobody said which")]
pub(super) fn decode_kind(kind: u8) -> Option<Option<MetricKind>> {
    KINDS.get(usize::from(kind)).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::METRIC_NAME;

    fn encode_value(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        put_value(&mut out, value);
        out
    }

    fn decode_value(mut bytes: &[u8]) -> Option<Value> {
        let value = take_value(&mut bytes)?;
        bytes.is_empty().then_some(value)
    }

    pub(in crate::store) fn bits(value: &Value) -> Vec<u64> {
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
        let mut bytes = Vec::new();
        put_labels(&mut bytes, &labels);
        assert_eq!(take_labels(&mut &bytes[..]), Some(labels));
        assert_eq!(take_labels(&mut &[1, 1, 0xff, 0][..]), None);
        for kind in KINDS {
            assert_eq!(decode_kind(encode_kind(kind)), Some(kind));
        }
        assert_eq!(decode_kind(4), None);
    }

    #[test]
    fn a_frame_is_of_its_table_and_key_and_notices_every_flipped_bit() {
        let body = frame(Table::Chunks, 7, |out| out.extend_from_slice(b"content"));
        assert_eq!(unframe(Table::Chunks, 7, &body), Some(&b"content"[..]));
        assert_eq!(unframe(Table::Chunks, 8, &body), None);
        assert_eq!(unframe(Table::Windows, 7, &body), None);
        for at in 0..body.len() * 8 {
            let mut flipped = body.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert_eq!(unframe(Table::Chunks, 7, &flipped), None);
        }
        for cut in 0..body.len() {
            assert_eq!(unframe(Table::Chunks, 7, &body[..cut]), None);
        }
    }

    proptest! {
        #[test]
        fn property_test_integers_are_read_back(value in any::<i64>()) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value.cast_unsigned());
            put_zigzag(&mut bytes, value);
            let mut rest = &bytes[..];
            prop_assert_eq!(take_varint(&mut rest), Some(value.cast_unsigned()));
            prop_assert_eq!(take_zigzag(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn property_test_floats_are_read_back_bit_for_bit(float in prop::num::f64::ANY) {
            for value in [Value::Float(float), Value::stale(), Value::Float(-0.0)] {
                let decoded = decode_value(&encode_value(&value)).unwrap();
                prop_assert_eq!(bits(&decoded), bits(&value));
            }
            let mut bytes = Vec::new();
            put_number(&mut bytes, float);
            prop_assert_eq!(take_number(&mut &bytes[..]).map(f64::to_bits), Some(float.to_bits()));
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
