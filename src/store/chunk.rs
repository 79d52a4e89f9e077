//! Chunks: one series in one window, sealed into as few bytes as it needs, and its summary. The layout is in
//! `docs/storage-format.md`, "Chunk" and "Summary".

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Part;
use super::codec::{is_whole, put_number, put_varint, take, take_number, take_varint, unzigzag, zigzag};
use super::columns::{
    BitReader, BitWriter, best_k, put_column, put_counted, put_floats, take_column, take_counted, take_floats,
};
use super::stream::{self, At};
use crate::model::{BucketSpan, ExponentialHistogram, Sample, Value};

const STREAM: u8 = 0;
const FLOATS: u8 = 1;
const HISTOGRAMS: u8 = 2;
const BY_TICK: u8 = 0;
const BY_TIME: u8 = 1;
/// A chunk that claims more samples than this is no chunk: two hours at 10 s are 720, at a millisecond 7,200,000.
const SAMPLES_MAX: usize = 1 << 23;
/// Wider spans stay streams: nothing that we count ourselves is so wide.
const BUCKETS_MAX: usize = 1 << 16;
const SUMMARY_NONE: u8 = 0;
const SUMMARY_FLOAT: u8 = 1;
const SUMMARY_HISTOGRAM: u8 = 2;

/// The chunk of a series whose stream in the window this is; `None` if it is not a stream.
pub(super) fn seal(stream: &[u8], ticks: &[i64]) -> Option<(Vec<u8>, Summary)> {
    let samples = stream::read(stream, ticks)?;
    let summary = Summary::of(samples.iter().map(|(_, sample)| &sample.value));
    let mut whole = vec![STREAM];
    whole.extend_from_slice(stream);
    let columns = put_columns(&samples).filter(|columns| columns.len() < whole.len());
    Some((columns.unwrap_or(whole), summary))
}

/// The chunk of samples with times of their own.
pub(super) fn seal_written(samples: &[Sample]) -> (Vec<u8>, Summary) {
    let timed: Vec<(At, Sample)> = samples.iter().map(|s| (At::Time(s.timestamp_ms), s.clone())).collect();
    let summary = Summary::of(samples.iter().map(|sample| &sample.value));
    let columns = put_columns(&timed).unwrap_or_else(|| {
        let mut whole = vec![STREAM];
        let mut cursor = stream::Cursor::default();
        for (at, sample) in &timed {
            cursor.put(&mut whole, *at, &[], &sample.value);
            cursor.advance(*at, sample.timestamp_ms, &sample.value);
        }
        whole
    });
    (columns, summary)
}

/// The samples of a chunk in the order of time, with the part of histograms that is wanted; `None` if these are not the bytes of a chunk.
pub(super) fn read(content: &[u8], ticks: &[i64], part: Part) -> Option<Vec<Sample>> {
    let (form, mut rest) = content.split_first()?;
    if *form == STREAM {
        return stream::read_part(rest, ticks, part);
    }
    let mut samples = take_columns(&mut rest, *form, ticks, part).filter(|_| rest.is_empty())?;
    stream::in_order(&mut samples);
    Some(samples)
}

fn put_columns(samples: &[(At, Sample)]) -> Option<Vec<u8>> {
    let live = || samples.iter().map(|(_, sample)| &sample.value).filter(|value| !value.is_stale());
    let mut out = Vec::new();
    let put_head = |out: &mut Vec<u8>, form: u8| {
        out.push(form);
        put_varint(out, samples.len() as u64);
        let by_tick: Option<Vec<i64>> = samples
            .iter()
            .map(|(at, _)| match at {
                At::Tick(tick) => Some(i64::from(*tick)),
                At::Time(_) => None,
            })
            .collect();
        if let Some(numbers) = by_tick {
            out.push(BY_TICK);
            put_column(out, &numbers);
        } else {
            out.push(BY_TIME);
            put_column(out, &samples.iter().map(|(_, sample)| sample.timestamp_ms).collect::<Vec<_>>());
        }
        let stale = samples.iter().enumerate().filter(|(_, (_, sample))| sample.value.is_stale());
        put_counted(out, &stale.map(|(at, _)| at as i64).collect::<Vec<_>>());
    };
    if let Some(floats) = live().map(Value::as_float).collect::<Option<Vec<f64>>>() {
        put_head(&mut out, FLOATS);
        put_floats(&mut out, &floats);
        return Some(out);
    }
    let histograms = live().map(Value::as_histogram).collect::<Option<Vec<_>>>()?;
    if !histograms.iter().all(|h| is_plain(h) && histograms.first().is_some_and(|first| first.schema() == h.schema())) {
        return None;
    }
    put_head(&mut out, HISTOGRAMS);
    put_histograms(&mut out, &histograms);
    Some(out)
}

fn take_columns(rest: &mut &[u8], form: u8, ticks: &[i64], part: Part) -> Option<Vec<Sample>> {
    let count = usize::try_from(take_varint(rest)?).ok().filter(|count| *count <= SAMPLES_MAX)?;
    let [by] = take::<1>(rest)?;
    let mut times = take_column(rest, count)?;
    match by {
        BY_TICK => {
            for time in &mut times {
                *time = *ticks.get(usize::try_from(*time).ok()?)?;
            }
        }
        BY_TIME => {}
        _ => return None,
    }
    let stale = take_counted(rest, count)?;
    let live = count - stale.len();
    let mut values: Box<dyn Iterator<Item = Value>> = match form {
        FLOATS if part == Part::Whole => Box::new(take_floats(rest, live)?.into_iter().map(Value::Float)),
        HISTOGRAMS if part == Part::Whole => {
            Box::new(take_histograms(rest, live)?.into_iter().map(|h| Value::Histogram(Arc::new(h))))
        }
        HISTOGRAMS => Box::new(take_part(rest, live, part)?.into_iter().map(Value::Float)),
        FLOATS => {
            // None of these has a part.
            *rest = &[];
            return Some(Vec::new());
        }
        _ => return None,
    };
    let mut stale = stale.into_iter().peekable();
    let mut samples = Vec::with_capacity(count);
    for (at, timestamp_ms) in times.into_iter().enumerate() {
        let is_stale = stale.next_if_eq(&(at as i64)).is_some();
        let value = if is_stale { Value::stale() } else { values.next()? };
        samples.push(Sample { timestamp_ms, value });
    }
    stale.peek().is_none().then_some(samples)
}

/// Whether a histogram is one of whole counts: all that we record, unless a sample was weighted.
fn is_plain(h: &ExponentialHistogram) -> bool {
    let mut counts = h.positive().counts.iter().chain(&h.negative().counts).copied();
    counts.all(is_whole)
        && is_whole(h.zero_count())
        && is_whole(h.count())
        && h.positive().counts.len() + h.negative().counts.len() <= BUCKETS_MAX
}

/// The counts of a histogram at the indexes of `occupied`, the negative ones first.
fn counts_at(h: &ExponentialHistogram, occupied: &[BTreeSet<i32>; 2]) -> Vec<i64> {
    let at = |span: &BucketSpan, index: i32| {
        let at = usize::try_from(i64::from(index) - i64::from(span.offset)).ok();
        at.and_then(|at| span.counts.get(at)).map_or(0, |count| *count as i64)
    };
    let [negative, positive] = occupied;
    let negative = negative.iter().map(|index| at(h.negative(), *index));
    negative.chain(positive.iter().map(|index| at(h.positive(), *index))).collect()
}

fn put_histograms(out: &mut Vec<u8>, histograms: &[&ExponentialHistogram]) {
    let mut occupied = [BTreeSet::new(), BTreeSet::new()];
    for h in histograms {
        for (set, span) in occupied.iter_mut().zip([h.negative(), h.positive()]) {
            let held = span.counts.iter().enumerate().filter(|(_, count)| **count != 0.0);
            set.extend(held.map(|(at, _)| span.offset + at as i32));
        }
    }
    out.extend_from_slice(&histograms.first().map_or(0, |h| h.schema()).to_le_bytes());
    put_floats(out, &histograms.iter().map(|h| h.sum()).collect::<Vec<_>>());
    put_column(out, &histograms.iter().map(|h| h.count() as i64).collect::<Vec<_>>());
    put_column(out, &histograms.iter().map(|h| h.zero_count() as i64).collect::<Vec<_>>());
    for set in &occupied {
        put_counted(out, &set.iter().map(|index| i64::from(*index)).collect::<Vec<_>>());
    }
    let counts: Vec<Vec<i64>> = histograms.iter().map(|h| counts_at(h, &occupied)).collect();
    put_column(out, counts.first().map_or(&[], Vec::as_slice));
    // For each histogram after the first: (how many before it are unchanged, growth).
    let changes: Vec<Vec<(u64, u64)>> = counts
        .iter()
        .zip(counts.iter().skip(1))
        .map(|(earlier, later)| {
            let mut skipped = 0;
            let mut changed = Vec::new();
            for (earlier, later) in earlier.iter().zip(later) {
                if earlier == later {
                    skipped += 1;
                } else {
                    changed.push((skipped, zigzag(later - earlier)));
                    skipped = 0;
                }
            }
            changed
        })
        .collect();
    let (k_changed, _) = best_k(&changes.iter().map(|changed| changed.len() as u64));
    let (k_gap, _) = best_k(&changes.iter().flatten().map(|(gap, _)| *gap));
    let (k_growth, _) = best_k(&changes.iter().flatten().map(|(_, growth)| *growth));
    out.extend_from_slice(&[k_changed, k_gap, k_growth]);
    let mut bits = BitWriter::default();
    for changed in &changes {
        bits.rice(changed.len() as u64, k_changed);
        for (gap, growth) in changed {
            bits.rice(*gap, k_gap);
            bits.rice(*growth, k_growth);
        }
    }
    bits.finish(out);
}

fn take_histograms(rest: &mut &[u8], count: usize) -> Option<Vec<ExponentialHistogram>> {
    let schema = i8::from_le_bytes(take(rest)?);
    let sums = take_floats(rest, count)?;
    let totals = take_column(rest, count)?;
    let zero_counts = take_column(rest, count)?;
    let negative = take_indexes(rest)?;
    let positive = take_indexes(rest)?;
    let first = take_column(rest, negative.len() + positive.len())?;
    let [k_changed, k_gap, k_growth] = take::<3>(rest)?;
    if [k_changed, k_gap, k_growth].iter().any(|k| *k > 63) {
        return None;
    }
    let mut bits = BitReader::take(rest)?;
    let mut counts = first;
    let mut histograms = Vec::with_capacity(count);
    for (at, ((sum, total), zero_count)) in sums.into_iter().zip(totals).zip(zero_counts).enumerate() {
        if at > 0 {
            let changed = bits.rice(k_changed)?;
            let mut next = 0usize;
            for _ in 0..changed {
                next = next.checked_add(usize::try_from(bits.rice(k_gap)?).ok()?)?;
                let count = counts.get_mut(next)?;
                *count = count.wrapping_add(unzigzag(bits.rice(k_growth)?));
                next += 1;
            }
        }
        let (negative_counts, positive_counts) = counts.split_at_checked(negative.len())?;
        let spans = (span(&positive, positive_counts), span(&negative, negative_counts));
        histograms.push(ExponentialHistogram::from_parts(
            schema,
            zero_count as f64,
            total as f64,
            sum,
            spans.0,
            spans.1,
        )?);
    }
    Some(histograms)
}

/// The sums or the counts of histograms; the rest is passed over.
fn take_part(rest: &mut &[u8], count: usize, part: Part) -> Option<Vec<f64>> {
    take::<1>(rest)?;
    let sums = take_floats(rest, count)?;
    let numbers = if part == Part::Sum {
        sums
    } else {
        take_column(rest, count)?.into_iter().map(|total| total as f64).collect()
    };
    *rest = &[];
    Some(numbers)
}

/// Indexes of buckets: ascending, and not so far apart that a span over them would be a burden.
fn take_indexes(rest: &mut &[u8]) -> Option<Vec<i32>> {
    let column = take_counted(rest, BUCKETS_MAX)?;
    let indexes = column.into_iter().map(|index| i32::try_from(index).ok()).collect::<Option<Vec<i32>>>()?;
    let extent = indexes.last().zip(indexes.first()).map_or(0, |(last, first)| i64::from(*last) - i64::from(*first));
    (indexes.is_sorted_by(|a, b| a < b) && extent < BUCKETS_MAX as i64 * 16).then_some(indexes)
}

/// The span from the first to the last bucket that holds something.
fn span(indexes: &[i32], counts: &[i64]) -> BucketSpan {
    let mut held = indexes.iter().zip(counts).filter(|(_, count)| **count != 0);
    let Some((offset, count)) = held.next() else { return BucketSpan::default() };
    let mut span = BucketSpan { offset: *offset, counts: vec![*count as f64] };
    for (index, count) in held {
        span.counts.resize((index - offset) as usize, 0.0);
        span.counts.push(*count as f64);
    }
    span
}

/// What a question over many windows needs of a chunk, so that it is not decoded.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Summary {
    /// There is none: the chunk is to be read.
    None,
    /// Of a float series.
    Float(Extremes),
    /// Of the count and of the sum of a histogram series.
    Histogram {
        /// Of the counts.
        count: Extremes,
        /// Of the sums.
        sum: Extremes,
    },
}

/// First, last, least and greatest of some values, none of them NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Extremes {
    pub(super) first: f64,
    pub(super) last: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
}

impl Extremes {
    /// `None` of nothing, and if there is a NaN.
    fn of(mut values: impl Iterator<Item = f64>) -> Option<Self> {
        let first = values.next().filter(|first| !first.is_nan())?;
        values.try_fold(Self { first, last: first, least: first, greatest: first }, |so_far, value| {
            let Self { least, greatest, .. } = so_far;
            (!value.is_nan()).then(|| Self {
                last: value,
                least: least.min(value),
                greatest: greatest.max(value),
                ..so_far
            })
        })
    }

    /// Of these values and later ones.
    fn with(self, later: Self) -> Self {
        let least = self.least.min(later.least);
        Self { first: self.first, last: later.last, least, greatest: self.greatest.max(later.greatest) }
    }

    fn put(&self, out: &mut Vec<u8>) {
        [self.first, self.last, self.least, self.greatest].iter().for_each(|number| put_number(out, *number));
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        let (first, last) = (take_number(rest)?, take_number(rest)?);
        Some(Self { first, last, least: take_number(rest)?, greatest: take_number(rest)? })
    }
}

impl Summary {
    /// Stale markers are no values.
    pub(super) fn of<'a>(values: impl Iterator<Item = &'a Value> + Clone) -> Self {
        let live = values.filter(|value| !value.is_stale());
        if live.clone().all(|value| value.as_float().is_some()) {
            return Extremes::of(live.filter_map(Value::as_float)).map_or(Self::None, Self::Float);
        }
        if !live.clone().all(|value| value.as_histogram().is_some()) {
            return Self::None;
        }
        let count = Extremes::of(live.clone().filter_map(Value::as_histogram).map(ExponentialHistogram::count));
        let sum = Extremes::of(live.filter_map(Value::as_histogram).map(ExponentialHistogram::sum));
        count.zip(sum).map_or(Self::None, |(count, sum)| Self::Histogram { count, sum })
    }

    /// Of the same series in this time and a later one.
    pub(super) fn with(&self, later: &Self) -> Self {
        match (self, later) {
            (Self::Float(earlier), Self::Float(later)) => Self::Float(earlier.with(*later)),
            (Self::Histogram { count, sum }, Self::Histogram { count: later_count, sum: later_sum }) => {
                Self::Histogram { count: count.with(*later_count), sum: sum.with(*later_sum) }
            }
            _ => Self::None,
        }
    }

    /// First, least, greatest and last of the part that is wanted, if this tells them.
    pub(super) fn extremes(&self, part: Part) -> Option<[Value; 4]> {
        match (self, part) {
            (Self::Float(of), Part::Whole)
            | (Self::Histogram { count: of, .. }, Part::Count)
            | (Self::Histogram { sum: of, .. }, Part::Sum) => {
                Some([of.first, of.least, of.greatest, of.last].map(Value::Float))
            }
            _ => None,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::None => out.push(SUMMARY_NONE),
            Self::Float(extremes) => {
                out.push(SUMMARY_FLOAT);
                extremes.put(out);
            }
            Self::Histogram { count, sum } => {
                out.push(SUMMARY_HISTOGRAM);
                count.put(out);
                sum.put(out);
            }
        }
    }

    pub(super) fn take(rest: &mut &[u8]) -> Option<Self> {
        Some(match take::<1>(rest)? {
            [SUMMARY_NONE] => Self::None,
            [SUMMARY_FLOAT] => Self::Float(Extremes::take(rest)?),
            [SUMMARY_HISTOGRAM] => Self::Histogram { count: Extremes::take(rest)?, sum: Extremes::take(rest)? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream_of(samples: &[(At, Value)], ticks: &[i64]) -> Vec<u8> {
        let mut cursor = stream::Cursor::default();
        let mut out = Vec::new();
        for (at, value) in samples {
            let time_ms = match at {
                At::Tick(tick) => ticks[*tick as usize],
                At::Time(time_ms) => *time_ms,
            };
            cursor.put(&mut out, *at, ticks, value);
            cursor.advance(*at, time_ms, value);
        }
        out
    }

    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
            (Value::Histogram(a), Value::Histogram(b)) => {
                (a.schema(), a.sum().to_bits(), a.count(), a.buckets())
                    == (b.schema(), b.sum().to_bits(), b.count(), b.buckets())
            }
            _ => false,
        }
    }

    /// Seals and reads back; says how many bytes the chunk has.
    fn round(samples: &[(At, Value)], ticks: &[i64]) -> usize {
        let (chunk, summary) = seal(&stream_of(samples, ticks), ticks).unwrap();
        let read = read(&chunk, ticks, Part::Whole).unwrap();
        assert_eq!(read.len(), samples.len());
        for (got, (_, want)) in read.iter().zip(samples) {
            assert!(same(&got.value, want), "{got:?} {want:?}");
        }
        for part in [Part::Count, Part::Sum] {
            let want: Vec<Value> = samples.iter().filter_map(|(_, value)| part.of(value.clone())).collect();
            let got = super::read(&chunk, ticks, part).unwrap();
            let is_same = got.len() == want.len() && got.iter().zip(&want).all(|(got, want)| same(&got.value, want));
            assert!(is_same || want.iter().all(Value::is_stale), "{got:?} {want:?}");
        }
        let mut bytes = Vec::new();
        summary.put(&mut bytes);
        assert_eq!(Summary::take(&mut &bytes[..]), Some(summary));
        chunk.len()
    }

    fn ticks() -> Vec<i64> {
        (0..720i64).map(|i| 1_700_000_000_000 + i * 10_000 + i % 7).collect()
    }

    #[test]
    fn two_hours_of_a_busy_counter_take_half_a_byte_a_sample() {
        let mut total = 0u32;
        let mut counter = |i: u32| {
            total += i.wrapping_mul(2_654_435_761) >> 28;
            (At::Tick(i), Value::Float(f64::from(total)))
        };
        let samples: Vec<_> = (0..720).map(&mut counter).collect();
        assert!(round(&samples, &ticks()) < 720 * 6 / 10);
    }

    #[test]
    fn two_hours_of_a_busy_histogram_take_few_bytes_a_sample() {
        let mut h = ExponentialHistogram::default();
        let mut state = 1u32;
        let mut samples = Vec::new();
        for i in 0..720 {
            for _ in 0..20 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                h.record((f64::from(state >> 8) / 1e7).exp() / 100.0, 1.0);
            }
            samples.push((At::Tick(i), Value::Histogram(Arc::new(h.clone()))));
        }
        let bytes = round(&samples, &ticks());
        assert!(bytes < 720 * 28, "{bytes}");
    }

    #[test]
    fn a_summary_is_of_what_is_not_stale() {
        let float = |tick, value| (At::Tick(tick), Value::Float(value));
        let samples = [float(0, 3.0), float(1, -2.0), (At::Tick(2), Value::stale()), float(3, 7.5), float(4, 1.0)];
        let (_, summary) = seal(&stream_of(&samples, &ticks()), &ticks()).unwrap();
        assert_eq!(summary, Summary::Float(Extremes { first: 3.0, last: 1.0, least: -2.0, greatest: 7.5 }));
        let samples = [float(0, 3.0), float(1, f64::NAN)];
        assert_eq!(seal(&stream_of(&samples, &ticks()), &ticks()).unwrap().1, Summary::None);
    }

    proptest! {
        #[test]
        fn property_test_chunks_are_read_back(
            steps in prop::collection::vec((1u32..9, prop_oneof![
                4 => (-1000i32..1000).prop_map(|i| Some(f64::from(i) / 8.0)),
                1 => prop::num::f64::ANY.prop_map(Some),
                1 => Just(None),
            ]), 1..60),
            start in prop::option::of(0i64..10_000),
        ) {
            let ticks = ticks();
            let mut samples: Vec<_> = start.map(|back| (At::Time(ticks[0] - 1 - back), Value::Float(0.0))).into_iter().collect();
            let mut at = 0;
            for (gap, value) in steps {
                samples.push((At::Tick(at), value.map_or_else(Value::stale, Value::Float)));
                at += gap;
            }
            round(&samples, &ticks);
        }

        #[test]
        fn property_test_chunks_of_histograms_are_read_back(
            steps in prop::collection::vec((prop::collection::vec(-1e6f64..1e6, 0..9), 0u8..20), 1..40),
            is_whole in any::<bool>(),
        ) {
            let mut total = ExponentialHistogram::default();
            let mut samples = Vec::new();
            for (at, (values, what)) in steps.into_iter().enumerate() {
                if what == 0 {
                    total = ExponentialHistogram::default();
                }
                values.iter().for_each(|value| total.record(*value, if is_whole { 2.0 } else { 0.3 }));
                let value = if what == 1 { Value::stale() } else { Value::Histogram(Arc::new(total.clone())) };
                samples.push((At::Tick(at as u32), value));
            }
            round(&samples, &ticks());
        }

        #[test]
        fn property_test_any_bytes_are_read_without_panic(
            form in 0u8..4,
            bytes in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let mut content = vec![form];
            content.extend(bytes);
            for part in [Part::Whole, Part::Count, Part::Sum] {
                let _ = read(&content, &ticks(), part);
            }
            let _ = Summary::take(&mut &content[..]);
        }
    }
}
