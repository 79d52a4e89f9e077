//! Streams: one series in one window as it grows, an entry a sample. This is what the log holds and what memory holds; the
//! layout is in `docs/storage-format.md`, "Stream".

use std::sync::Arc;

use super::Part;
use super::codec::{
    put_bytes, put_histogram, put_number, put_varint, put_zigzag, take, take_bytes, take_f64, take_histogram,
    take_length, take_number, take_varint, take_zigzag,
};
use crate::model::{BucketSpan, ExponentialHistogram, Sample, Value};

const STALE: u64 = 0;
const FLOAT: u64 = 1;
const FLOAT_GROWTH: u64 = 2;
const FLOAT_XOR: u64 = 3;
const HISTOGRAM: u64 = 4;
const HISTOGRAM_CHANGES: u64 = 5;
const TAG_BITS: u32 = 3;
/// Growth of whole numbers up to here is exact.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
/// With as many buckets, a histogram is written whole rather than bucket by bucket into a span that may be hostile.
const SPAN_MAX: usize = 1 << 16;

/// When a sample is: at a tick of its window, or at a time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// The number of the tick in the window, from 0.
    Tick(u32),
    /// Milliseconds since 1970.
    Time(i64),
}

/// Where a stream stands: what the next entry refers to.
#[derive(Debug, Clone, Default)]
pub(super) struct Cursor {
    /// How many ticks of the window are behind.
    ticks: u32,
    time_ms: i64,
    value: Option<Value>,
}

impl Cursor {
    /// Stands behind so many ticks and a sample at `time_ms`; `value` is the last that was no stale marker.
    pub(super) fn at(ticks: u32, time_ms: i64, value: Option<Value>) -> Self {
        Self { ticks, time_ms, value }
    }

    /// What [`Cursor::at`] makes it of.
    pub(super) fn into_parts(self) -> (u32, i64, Option<Value>) {
        (self.ticks, self.time_ms, self.value)
    }

    /// Appends the entry of a sample to `out`. `ticks` are the times of the window's ticks.
    pub(super) fn put(&self, out: &mut Vec<u8>, at: At, ticks: &[i64], value: &Value) {
        let tag = self.tag(value);
        match at {
            At::Tick(tick) if tick >= self.ticks => {
                put_varint(out, (u64::from(tick - self.ticks) + 1) << TAG_BITS | tag);
            }
            At::Tick(tick) => self.put_time(out, tag, ticks.get(tick as usize).copied().unwrap_or_default()),
            At::Time(time_ms) => self.put_time(out, tag, time_ms),
        }
        match (value, &self.value) {
            (Value::Float(float), _) if tag == FLOAT => out.extend_from_slice(&float.to_le_bytes()),
            (Value::Float(float), Some(Value::Float(last))) if tag == FLOAT_GROWTH => {
                put_zigzag(out, *float as i64 - *last as i64);
            }
            (Value::Float(float), Some(Value::Float(last))) if tag == FLOAT_XOR => put_xor(out, *last, *float),
            (Value::Histogram(h), Some(Value::Histogram(last))) if tag == HISTOGRAM_CHANGES => {
                put_changes(out, last, h);
            }
            (Value::Histogram(h), _) => put_histogram(out, h),
            (Value::Float(_), _) => {}
        }
    }

    fn put_time(&self, out: &mut Vec<u8>, tag: u64, time_ms: i64) {
        put_varint(out, tag);
        put_zigzag(out, time_ms.wrapping_sub(self.time_ms));
    }

    fn tag(&self, value: &Value) -> u64 {
        match (value, &self.value) {
            _ if value.is_stale() => STALE,
            (Value::Float(float), Some(Value::Float(last))) => {
                let is_whole = |v: f64| v.abs() <= EXACT_MAX && (v as i64 as f64).to_bits() == v.to_bits();
                if is_whole(*float) && is_whole(*last) { FLOAT_GROWTH } else { FLOAT_XOR }
            }
            (Value::Float(_), _) => FLOAT,
            (Value::Histogram(h), Some(Value::Histogram(last)))
                if h.schema() == last.schema()
                    && covers(h.positive(), last.positive())
                    && covers(h.negative(), last.negative()) =>
            {
                HISTOGRAM_CHANGES
            }
            (Value::Histogram(_), _) => HISTOGRAM,
        }
    }

    /// Takes the next entry from the front of `rest`. `None`: these are not the bytes of an entry.
    pub(super) fn take(&mut self, rest: &mut &[u8], ticks: &[i64]) -> Option<(At, Sample)> {
        let (at, timestamp_ms, value) = self.take_part(rest, ticks, Part::Whole)?;
        Some((at, Sample { timestamp_ms, value: value? }))
    }

    /// As [`Cursor::take`], with the part of histograms that is wanted; `None` as a value that has no such part. Buckets that are not wanted are passed
    /// over, which takes a fraction of the time.
    fn take_part(&mut self, rest: &mut &[u8], ticks: &[i64], part: Part) -> Option<(At, i64, Option<Value>)> {
        let head = take_varint(rest)?;
        let at = match u32::try_from(head >> TAG_BITS).ok()? {
            0 => {
                self.time_ms = self.time_ms.wrapping_add(take_zigzag(rest)?);
                At::Time(self.time_ms)
            }
            gap => {
                self.ticks = self.ticks.checked_add(gap)?;
                let tick = self.ticks - 1;
                self.time_ms = *ticks.get(tick as usize)?;
                At::Tick(tick)
            }
        };
        let value = match (head & ((1 << TAG_BITS) - 1), &mut self.value) {
            (STALE, _) => return Some((at, self.time_ms, Some(Value::stale()))),
            (FLOAT, _) => Value::Float(take_f64(rest)?),
            (FLOAT_GROWTH, Some(Value::Float(last))) => {
                Value::Float((*last as i64).wrapping_add(take_zigzag(rest)?) as f64)
            }
            (FLOAT_XOR, Some(Value::Float(last))) => Value::Float(take_xor(rest, *last)?),
            (HISTOGRAM, _) => Value::Histogram(Arc::new(take_histogram(rest)?)),
            (HISTOGRAM_CHANGES, Some(Value::Histogram(_))) if part != Part::Whole => {
                let (sum, count) = (take_f64(rest)?, take_number(rest)?);
                take_bytes(rest)?;
                let number = if part == Part::Count { count } else { sum };
                return Some((at, self.time_ms, Some(Value::Float(number))));
            }
            (HISTOGRAM_CHANGES, Some(Value::Histogram(last))) => Value::Histogram(Arc::new(take_changes(rest, last)?)),
            _ => return None,
        };
        self.value = Some(value.clone());
        Some((at, self.time_ms, part.of(value)))
    }

    /// Goes past a sample that [`Cursor::put`] wrote.
    pub(super) fn advance(&mut self, at: At, time_ms: i64, value: &Value) {
        if let At::Tick(tick) = at
            && tick >= self.ticks
        {
            self.ticks = tick + 1;
        }
        self.time_ms = time_ms;
        if !value.is_stale() {
            self.value = Some(value.clone());
        }
    }
}

/// All samples of a stream in the order in which they came; `None` if it is not one.
pub(super) fn read(stream: &[u8], ticks: &[i64]) -> Option<Vec<(At, Sample)>> {
    let mut cursor = Cursor::default();
    let mut rest = stream;
    let mut samples = Vec::new();
    while !rest.is_empty() {
        samples.push(cursor.take(&mut rest, ticks)?);
    }
    Some(samples)
}

/// The samples of a stream in the order of time, of equal times the first, with the part of histograms that is wanted; `None` if it is not a
/// stream.
pub(super) fn read_part(stream: &[u8], ticks: &[i64], part: Part) -> Option<Vec<Sample>> {
    let mut cursor = Cursor::default();
    let mut rest = stream;
    let mut samples: Vec<Sample> = Vec::new();
    while !rest.is_empty() {
        let (_, timestamp_ms, value) = cursor.take_part(&mut rest, ticks, part)?;
        samples.extend(value.map(|value| Sample { timestamp_ms, value }));
    }
    in_order(&mut samples);
    Some(samples)
}

/// Brings samples into the order of time; of equal times the first stays.
pub(super) fn in_order(samples: &mut Vec<Sample>) {
    if !samples.is_sorted_by(|a, b| a.timestamp_ms < b.timestamp_ms) {
        samples.sort_by_key(|sample| sample.timestamp_ms); // stable
        samples.dedup_by_key(|sample| sample.timestamp_ms);
    }
}

fn put_xor(out: &mut Vec<u8>, last: f64, float: f64) {
    let xor = last.to_bits() ^ float.to_bits();
    let low = xor.trailing_zeros().min(63) / 8;
    let bytes = (xor >> (8 * low)).to_le_bytes();
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    out.push((low as u8) << 4 | length as u8);
    out.extend(bytes.iter().take(length));
}

fn take_xor(rest: &mut &[u8], last: f64) -> Option<f64> {
    let [head] = take::<1>(rest)?;
    let (low, length) = (u32::from(head >> 4), usize::from(head & 15));
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    if low > 7 || low as usize + length > 8 {
        return None;
    }
    let xor = bytes.iter().rev().fold(0u64, |xor, byte| xor << 8 | u64::from(*byte));
    Some(f64::from_bits(last.to_bits() ^ (xor << (8 * low))))
}

/// Whether the buckets of `later` take in those of `earlier`: what does not shrink is told by its changes.
fn covers(later: &BucketSpan, earlier: &BucketSpan) -> bool {
    let end = |span: &BucketSpan| i64::from(span.offset) + span.counts.len() as i64;
    later.counts.len() < SPAN_MAX
        && (earlier.counts.is_empty() || (later.offset <= earlier.offset && end(later) >= end(earlier)))
}

fn put_changes(out: &mut Vec<u8>, last: &ExponentialHistogram, h: &ExponentialHistogram) {
    out.extend_from_slice(&h.sum().to_le_bytes());
    put_number(out, h.count());
    let mut bytes = Vec::new();
    put_number(&mut bytes, h.zero_count());
    for (last, span) in [(last.negative(), h.negative()), (last.positive(), h.positive())] {
        let end = span.counts.len().saturating_sub(1);
        let changed = || {
            span.counts.iter().enumerate().filter(|(at, count)| {
                let before = count_at(last, span.offset + *at as i32);
                // The ends are written if they are new, even if they are empty: they are the span's extent.
                before.map_or(**count != 0.0 || *at == 0 || *at == end, |before| before.to_bits() != count.to_bits())
            })
        };
        put_varint(&mut bytes, changed().count() as u64);
        let mut index = 0;
        for (at, count) in changed() {
            let next = i64::from(span.offset) + at as i64;
            put_zigzag(&mut bytes, next - index);
            index = next;
            put_number(&mut bytes, *count);
        }
    }
    put_bytes(out, &bytes);
}

fn count_at(span: &BucketSpan, index: i32) -> Option<f64> {
    let at = usize::try_from(i64::from(index) - i64::from(span.offset)).ok()?;
    span.counts.get(at).copied()
}

fn take_changes(rest: &mut &[u8], last: &ExponentialHistogram) -> Option<ExponentialHistogram> {
    let sum = take_f64(rest)?;
    let count = take_number(rest)?;
    let mut changes = take_bytes(rest)?;
    let zero_count = take_number(&mut changes)?;
    let negative = take_span_changes(&mut changes, last.negative())?;
    let positive = take_span_changes(&mut changes, last.positive())?;
    if !changes.is_empty() {
        return None;
    }
    ExponentialHistogram::from_parts(last.schema(), zero_count, count, sum, positive, negative)
}

fn take_span_changes(rest: &mut &[u8], last: &BucketSpan) -> Option<BucketSpan> {
    let changed = take_length(rest)?;
    let mut counts = Vec::with_capacity(changed);
    let mut index = 0i64;
    for _ in 0..changed {
        index = index.checked_add(take_zigzag(rest)?)?;
        counts.push((i32::try_from(index).ok()?, take_number(rest)?));
    }
    let (Some((first, _)), Some((end, _))) = (counts.first().copied(), counts.last().copied()) else {
        return Some(last.clone());
    };
    let mut span = last.clone();
    if span.counts.is_empty() {
        span.offset = first;
    }
    let before = usize::try_from(i64::from(span.offset) - i64::from(first)).unwrap_or(0);
    let length = usize::try_from(i64::from(end) - i64::from(first.min(span.offset)) + 1).ok()?;
    if before >= SPAN_MAX || length > SPAN_MAX {
        return None;
    }
    span.counts.splice(0..0, std::iter::repeat_n(0.0, before));
    span.offset = span.offset.min(first);
    if span.counts.len() < length {
        span.counts.resize(length, 0.0);
    }
    for (index, count) in counts {
        let at = usize::try_from(i64::from(index) - i64::from(span.offset)).ok()?;
        *span.counts.get_mut(at)? = count;
    }
    Some(span)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram(values: &[f64]) -> Value {
        let mut histogram = ExponentialHistogram::default();
        values.iter().for_each(|value| histogram.record(*value, 1.0));
        Value::Histogram(Arc::new(histogram))
    }

    /// Writes the samples, reads them back, and says how many bytes there were.
    fn round(samples: &[(At, Value)], ticks: &[i64]) -> usize {
        let mut cursor = Cursor::default();
        let mut stream = Vec::new();
        for (at, value) in samples {
            let time_ms = match at {
                At::Tick(tick) => ticks[*tick as usize],
                At::Time(time_ms) => *time_ms,
            };
            cursor.put(&mut stream, *at, ticks, value);
            cursor.advance(*at, time_ms, value);
        }
        let read = read(&stream, ticks).unwrap();
        let bits = |value: &Value| {
            let mut out = Vec::new();
            super::super::codec::put_value(&mut out, value);
            out
        };
        let got: Vec<_> = read.iter().map(|(at, sample)| (*at, bits(&sample.value))).collect();
        let want: Vec<_> = samples.iter().map(|(at, value)| (*at, bits(value))).collect();
        assert_eq!(got, want);
        for cut in 0..stream.len() {
            let _ = super::read(&stream[..cut], ticks);
        }
        stream.len()
    }

    #[test]
    fn a_counter_takes_two_bytes_a_sample() {
        let ticks: Vec<i64> = (0..720).map(|i| i * 10_000).collect();
        let samples: Vec<_> = (0..720).map(|i| (At::Tick(i), Value::Float(1e9 + f64::from(i) * 40.0))).collect();
        assert!(round(&samples, &ticks) <= 720 * 2 + 8);
    }

    #[test]
    fn ends_returns_and_kinds_that_change_are_read_back() {
        let ticks = [100, 110, 120, 130, 140, 150, 160];
        round(
            &[
                (At::Time(90), Value::Float(0.0)),
                (At::Tick(0), Value::Float(-5.5)),
                (At::Tick(1), Value::stale()),
                (At::Time(115), Value::Float(f64::NAN)),
                (At::Tick(3), histogram(&[1.0, -2.0, 0.0])),
                (At::Tick(4), histogram(&[1.0, -2.0, 0.0, 1e9, 1e-9, -7.0])),
                (At::Tick(5), histogram(&[])),
                (At::Tick(6), Value::Float(1.0)),
            ],
            &ticks,
        );
        assert_eq!(read(&[8 | 2, 0], &[1]), None, "growth of nothing");
        assert_eq!(read(&[16], &[1]), None, "a tick that is not there");
        let head = [u8::try_from(FLOAT).unwrap() | 8, 0, 0, 0, 0, 0, 0, 0, 0, u8::try_from(FLOAT_XOR).unwrap() | 8];
        assert_eq!(read(&[&head[..], &[0x80]].concat(), &[1, 2]), None, "a shift by all bits");
    }

    proptest! {
        #[test]
        fn property_test_streams_are_read_back(
            samples in prop::collection::vec((any::<bool>(), -50i64..5000, prop_oneof![
                prop::num::f64::ANY.prop_map(Value::Float),
                (-1000i32..1000).prop_map(|i| Value::Float(f64::from(i))),
                Just(Value::stale()),
                prop::collection::vec(-1e3f64..1e3, 0..9).prop_map(|values| histogram(&values)),
            ]), 0..40),
            growth in prop::collection::vec(prop::collection::vec(1e-3f64..1e3, 0..9), 0..20),
        ) {
            let ticks: Vec<i64> = (0..40).map(|i| i * 10_000 + i % 3).collect();
            let samples: Vec<_> = samples
                .into_iter()
                .enumerate()
                .map(|(tick, (at_tick, time, value))| (if at_tick { At::Tick(tick as u32) } else { At::Time(time) }, value))
                .collect();
            round(&samples, &ticks);
            let mut total = ExponentialHistogram::default();
            let mut histograms = Vec::new();
            for (tick, values) in growth.into_iter().enumerate() {
                values.into_iter().for_each(|value| total.record(value, 1.0));
                histograms.push((At::Tick(tick as u32), Value::Histogram(Arc::new(total.clone()))));
            }
            round(&histograms, &ticks);
        }

        #[test]
        fn property_test_any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&bytes, &[1, 2, 3]);
        }
    }
}
