//! A native histogram as it is sent: spans of buckets, with whole counts as differences or floats as they are.

use std::sync::Arc;

use prost::Message;

use super::BodyError;
use crate::model::{BucketSpan, ExponentialHistogram, SCHEMA_MAX, SCHEMA_MIN, Value, ZERO_THRESHOLD};

/// A longer message is no histogram that anybody has.
const HISTOGRAM_BYTES_MAX: usize = 1 << 20;
/// How many buckets of one sign may lie between the first and the last, both counted.
const BUCKETS_MAX: i64 = 1 << 16;
/// The schema that stands for buckets with bounds of their own.
const CUSTOM_BUCKETS: i32 = -53;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub(super) count_int: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) count_float: Option<f64>,
    #[prost(double, tag = "3")]
    pub(super) sum: f64,
    #[prost(sint32, tag = "4")]
    pub(super) schema: i32,
    #[prost(double, tag = "5")]
    pub(super) zero_threshold: f64,
    #[prost(uint64, optional, tag = "6")]
    pub(super) zero_count_int: Option<u64>,
    #[prost(double, optional, tag = "7")]
    pub(super) zero_count_float: Option<f64>,
    #[prost(message, repeated, tag = "8")]
    pub(super) negative_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "9")]
    pub(super) negative_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "10")]
    pub(super) negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "11")]
    pub(super) positive_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "12")]
    pub(super) positive_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "13")]
    pub(super) positive_counts: Vec<f64>,
    #[prost(int64, tag = "15")]
    pub(super) timestamp_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Span {
    /// Buckets between the end of the span before (the first: bucket 0) and this one.
    #[prost(sint32, tag = "1")]
    pub(super) offset: i32,
    #[prost(uint32, tag = "2")]
    pub(super) length: u32,
}

/// A histogram with the number of its buckets, or why it is refused.
type Taken = Result<(Value, usize), String>;

/// The time of a histogram, and what becomes of it.
pub(super) fn decode(message: &[u8]) -> Result<(i64, Taken), BodyError> {
    if message.len() > HISTOGRAM_BYTES_MAX {
        return Err(BodyError::Protobuf("a histogram is longer than 1 MiB"));
    }
    let histogram = Histogram::decode(message).map_err(|_| BodyError::Protobuf("a histogram cannot be read"))?;
    Ok((histogram.timestamp_ms, value(&histogram)))
}

fn value(h: &Histogram) -> Taken {
    let sum = Value::Float(h.sum);
    if sum.is_stale() {
        return Ok((sum, 0));
    }
    if h.schema == CUSTOM_BUCKETS {
        return Err("histograms with custom buckets (schema -53) are not supported".to_owned());
    }
    let schema = i8::try_from(h.schema).ok().filter(|schema| (SCHEMA_MIN..=SCHEMA_MAX).contains(schema));
    let schema =
        schema.ok_or_else(|| format!("histogram: got schema {}, want {SCHEMA_MIN} to {SCHEMA_MAX}", h.schema))?;
    let (positive, negative, zero_count, count);
    if let Some(count_float) = h.count_float {
        positive = spread(&h.positive_spans, &h.positive_counts)?;
        negative = spread(&h.negative_spans, &h.negative_counts)?;
        zero_count = h.zero_count_float.unwrap_or_default();
        count = count_float;
    } else {
        positive = spread(&h.positive_spans, &whole(&h.positive_deltas)?)?;
        negative = spread(&h.negative_spans, &whole(&h.negative_deltas)?)?;
        zero_count = h.zero_count_int.unwrap_or_default() as f64;
        count = h.count_int.unwrap_or_default() as f64;
        // Of floats Prometheus does not ask this: they are rounded.
        let found: f64 = positive.counts.iter().chain(&negative.counts).sum::<f64>() + zero_count;
        if if h.sum.is_nan() { found > count } else { found != count } {
            return Err(format!("histogram: {found} observations found in buckets, but the count is {count}"));
        }
    }
    if zero_count < 0.0 || count < 0.0 {
        return Err("histogram: a count is negative".to_owned());
    }
    // A zero bucket of another width, with nothing in it, is the same histogram; a narrower one (OpenTelemetry's is 1e-128, or 0) becomes
    // as wide as ours.
    if !(0.0..=ZERO_THRESHOLD).contains(&h.zero_threshold) && zero_count != 0.0 {
        return Err(format!("histogram: got zero threshold {:e}, want at most {ZERO_THRESHOLD:e}", h.zero_threshold));
    }
    let buckets = positive.counts.len() + negative.counts.len();
    let histogram = ExponentialHistogram::from_parts(schema, zero_count, count, h.sum, positive, negative);
    let histogram =
        histogram.ok_or("histogram: a count is not finite, or a bucket lies beyond the range of a double")?;
    Ok((Value::Histogram(Arc::new(histogram)), buckets))
}

/// Counts from their differences.
fn whole(deltas: &[i64]) -> Result<Vec<f64>, String> {
    let add = |count: &mut i64, delta: &i64| {
        *count = count.checked_add(*delta)?;
        Some(*count as f64)
    };
    let counts: Vec<f64> = deltas.iter().scan(0, |count, delta| add(count, delta)).collect();
    if counts.len() == deltas.len() { Ok(counts) } else { Err("histogram: a count is too large".to_owned()) }
}

/// Consecutive buckets from spans and the counts in them.
fn spread(spans: &[Span], counts: &[f64]) -> Result<BucketSpan, String> {
    let needed: u64 = spans.iter().map(|span| u64::from(span.length)).sum();
    if needed != counts.len() as u64 {
        return Err(format!("histogram: spans need {needed} buckets, have {} buckets", counts.len()));
    }
    if counts.iter().any(|count| *count < 0.0) {
        return Err("histogram has a bucket whose observation count is negative".to_owned());
    }
    let mut all = BucketSpan::default();
    let (mut index, mut rest) = (0_i64, counts);
    for (at, span) in spans.iter().enumerate() {
        if at > 0 && span.offset < 0 {
            return Err(format!("histogram: span number {} has the negative offset {}", at + 1, span.offset));
        }
        index += i64::from(span.offset);
        let (of_span, after) = rest.split_at_checked(span.length as usize).unwrap_or((rest, &[]));
        rest = after;
        if of_span.is_empty() {
            continue;
        }
        if all.counts.is_empty() {
            all.offset = i32::try_from(index).map_err(|_| "histogram: a bucket lies beyond all")?;
        }
        let before = index - i64::from(all.offset);
        if before + of_span.len() as i64 > BUCKETS_MAX {
            return Err(format!("histogram: its buckets lie too far apart, want at most {BUCKETS_MAX} of a sign"));
        }
        all.counts.resize(before as usize, 0.0);
        all.counts.extend_from_slice(of_span);
        index += i64::from(span.length);
    }
    Ok(all)
}
