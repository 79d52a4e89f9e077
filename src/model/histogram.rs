//! The exponential histogram: a distribution in buckets whose width is a fixed ratio.
//!
//! The buckets are those of Prometheus's native histograms (its specification, "Standard schemas"): at schema `s`
//! bucket `i` holds the values in `(base^(i-1), base^i]` with `base = 2^(2^-s)`; negative values mirror them. Schema 5
//! makes buckets 2.2 % wide. A histogram starts there and gets coarser only when its values spread over more than
//! [`BUCKETS_MAX`] buckets. Buckets of a coarser schema are unions of buckets of a finer one, so merging, coarsening
//! and adding lose no count. Counts are floats, since a sample that was sent with a rate weighs `1 / rate`.

use std::ops::AddAssign;
use std::sync::LazyLock;

/// The finest schema that Prometheus defines.
pub const SCHEMA_MAX: i8 = 8;
/// The coarsest schema that Prometheus defines.
pub const SCHEMA_MIN: i8 = -4;
/// Where our histograms start: buckets 2.2 % wide.
pub const SCHEMA_DEFAULT: i8 = 5;
/// Values this near to zero are zero: 2^-128, as in Prometheus's client libraries (`DefNativeHistogramZeroThreshold`).
pub const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;
/// How many buckets a sign may span before the histogram gets coarser: 4 KiB of counts, at schema 5 a spread of 65,536, which
/// is 512 widths and touches one bucket more.
const BUCKETS_MAX: usize = 513;
/// How many they may span while a query calculates: 64 KiB of counts, at schema 5 all from 1e-38 to 1e38.
const QUERY_BUCKETS_MAX: usize = 8193;

/// The upper bounds of the 256 buckets of schema 8 in `[0.5, 1)`: `2^(i/256) / 2`. A coarser schema takes every n-th of
/// them, so that boundaries of different schemas are equal to the last bit.
static FRACTIONS: LazyLock<[f64; 256]> = LazyLock::new(|| std::array::from_fn(|i| (i as f64 / 256.0).exp2() / 2.0));

/// Where to begin to look for a fraction in `[0.5, 1)` by its first nine bits: how many of `FRACTIONS` lie at or below the
/// start of that 512th. A 512th is narrower than any bucket of schema 8, so the answer is this or the next.
static FRACTION_STARTS: LazyLock<[u16; 512]> = LazyLock::new(|| {
    std::array::from_fn(|i| {
        let start = 0.5 + i as f64 / 1024.0;
        FRACTIONS.iter().filter(|bound| **bound < start).count() as u16
    })
});

/// Consecutive buckets of one sign; `C` is what a bucket holds: a weight, or more than that.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BucketSpan<C = f64> {
    /// The index of the first bucket.
    pub offset: i32,
    /// What is in each bucket, the first at `offset`. Empty: no bucket at all.
    pub counts: Vec<C>,
}

/// One bucket as a reader sees it, negative values included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// The lower bound.
    pub lower: f64,
    /// The upper bound.
    pub upper: f64,
    /// The weight between them.
    pub count: f64,
}

/// A distribution of values in exponential buckets, with exact count and sum.
#[derive(Debug, Clone, PartialEq)]
pub struct ExponentialHistogram {
    schema: i8,
    zero_count: f64,
    count: f64,
    sum: f64,
    positive: BucketSpan,
    negative: BucketSpan,
}

impl Default for ExponentialHistogram {
    fn default() -> Self {
        Self::new(SCHEMA_DEFAULT)
    }
}

impl ExponentialHistogram {
    /// An empty histogram that starts at `schema`, brought into `SCHEMA_MIN..=SCHEMA_MAX`.
    pub fn new(schema: i8) -> Self {
        Self {
            schema: schema.clamp(SCHEMA_MIN, SCHEMA_MAX),
            zero_count: 0.0,
            count: 0.0,
            sum: 0.0,
            positive: BucketSpan::default(),
            negative: BucketSpan::default(),
        }
    }

    /// A histogram from its parts, as a decoder reads them: `None` if the schema is not one of Prometheus's, a bucket
    /// lies beyond the range of a double, there are more buckets than such a range holds, or a number is not finite.
    pub fn from_parts(
        schema: i8,
        zero_count: f64,
        count: f64,
        sum: f64,
        positive: BucketSpan,
        negative: BucketSpan,
    ) -> Option<Self> {
        let sane = |span: &BucketSpan| {
            let last = i64::from(span.offset) + span.counts.len() as i64;
            let range = index_of(f64::MIN_POSITIVE / 4e15, schema)..=index_of(f64::MAX, schema) + 1;
            span.counts.is_empty()
                || (range.contains(&span.offset)
                    && last <= i64::from(*range.end()) + 1
                    && span.counts.iter().all(|c| c.is_finite()))
        };
        if !(SCHEMA_MIN..=SCHEMA_MAX).contains(&schema) || !sane(&positive) || !sane(&negative) {
            return None;
        }
        (zero_count.is_finite() && count.is_finite()).then_some(Self {
            schema,
            zero_count,
            count,
            sum,
            positive,
            negative,
        })
    }

    /// The schema that the buckets have now.
    pub fn schema(&self) -> i8 {
        self.schema
    }

    /// The total weight.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// The sum of `value * weight`.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The weight of the values within [`ZERO_THRESHOLD`] of zero.
    pub fn zero_count(&self) -> f64 {
        self.zero_count
    }

    /// The buckets of the positive values.
    pub fn positive(&self) -> &BucketSpan {
        &self.positive
    }

    /// The buckets of the negative values, by their absolute value.
    pub fn negative(&self) -> &BucketSpan {
        &self.negative
    }

    /// The memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of::<f64>() * (self.positive.counts.capacity() + self.negative.counts.capacity())
    }

    /// Adds a finite `value` with a finite `weight` > 0. Anything else is the caller's to refuse; here it changes nothing.
    pub fn record(&mut self, value: f64, weight: f64) {
        if !(value.is_finite() && weight.is_finite() && weight > 0.0) {
            return;
        }
        self.count += weight;
        self.sum += value * weight;
        if value.abs() <= ZERO_THRESHOLD {
            self.zero_count += weight;
            return;
        }
        loop {
            let index = index_of(value.abs(), self.schema);
            let side = if value > 0.0 { &mut self.positive } else { &mut self.negative };
            if side.add(index, weight) || self.schema == SCHEMA_MIN {
                return;
            }
            self.coarsen(self.schema - 1);
        }
    }

    /// Adds everything that `other` holds, getting coarser where the buckets would take more memory than a series may. Counts and sum
    /// stay finite, at most the largest double.
    pub fn merge(&mut self, other: &Self) {
        self.add_times(other, 1.0, BUCKETS_MAX);
        self.sum = self.sum.clamp(f64::MIN, f64::MAX);
        if self.count.is_infinite() {
            let buckets = self.positive.counts.iter_mut().chain(&mut self.negative.counts);
            let counts = [&mut self.count, &mut self.zero_count].into_iter().chain(buckets);
            counts.for_each(|count| *count = count.min(f64::MAX));
        }
    }

    /// As [`ExponentialHistogram::merge`], while a query calculates: it gets coarser only where 64 KiB would not do.
    pub fn add(&mut self, other: &Self) {
        self.add_times(other, 1.0, QUERY_BUCKETS_MAX);
    }

    /// Takes away what `other` holds: the growth of a cumulative histogram since `other` was read.
    pub fn subtract(&mut self, other: &Self) {
        self.add_times(other, -1.0, QUERY_BUCKETS_MAX);
    }

    /// Multiplies every count and the sum by `factor`.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let mut scaled = self.clone();
        scaled.count *= factor;
        scaled.sum *= factor;
        scaled.zero_count *= factor;
        for span in [&mut scaled.positive, &mut scaled.negative] {
            span.counts.iter_mut().filter(|count| **count != 0.0).for_each(|count| *count *= factor);
        }
        scaled
    }

    /// Divides every count and the sum by `divisor`: not the same as scaling by its inverse, which rounds twice.
    /// Dividing by zero leaves no buckets, as in Prometheus (`FloatHistogram.Div`).
    #[must_use]
    pub fn divided(&self, divisor: f64) -> Self {
        let mut divided = self.clone();
        divided.count /= divisor;
        divided.sum /= divisor;
        divided.zero_count /= divisor;
        for span in [&mut divided.positive, &mut divided.negative] {
            if divisor == 0.0 {
                *span = BucketSpan::default();
            }
            span.counts.iter_mut().filter(|count| **count != 0.0).for_each(|count| *count /= divisor);
        }
        divided
    }

    fn add_times(&mut self, other: &Self, factor: f64, buckets_max: usize) {
        self.coarsen(other.schema);
        self.count += other.count * factor;
        self.sum += other.sum * factor;
        self.zero_count += other.zero_count * factor;
        let spans = [(&other.positive, true), (&other.negative, false)];
        for (span, is_positive) in spans {
            for (at, &count) in span.counts.iter().enumerate().filter(|(_, c)| **c != 0.0) {
                loop {
                    let index = coarser_index(span.offset + at as i32, other.schema - self.schema);
                    let side = if is_positive { &mut self.positive } else { &mut self.negative };
                    if side.add_within(index, count * factor, buckets_max) || self.schema == SCHEMA_MIN {
                        break;
                    }
                    self.coarsen(self.schema - 1);
                }
            }
        }
    }

    /// Brings the buckets to `schema` if that is coarser than theirs. No count is lost.
    pub fn coarsen(&mut self, schema: i8) {
        let schema = schema.max(SCHEMA_MIN);
        if schema < self.schema {
            self.positive.coarsen(self.schema - schema);
            self.negative.coarsen(self.schema - schema);
            self.schema = schema;
        }
    }

    /// The buckets that hold something, in ascending order of value, the zero bucket among them.
    pub fn buckets(&self) -> Vec<Bucket> {
        let occupied = |span: &BucketSpan| {
            let schema = self.schema;
            let offset = span.offset;
            let counts = span.counts.clone();
            counts.into_iter().enumerate().filter(|(_, count)| *count != 0.0).map(move |(at, count)| {
                let index = offset + at as i32;
                Bucket { lower: upper_bound(index - 1, schema), upper: upper_bound(index, schema), count }
            })
        };
        let mut buckets: Vec<Bucket> =
            occupied(&self.negative).map(|b| Bucket { lower: -b.upper, upper: -b.lower, count: b.count }).collect();
        buckets.reverse();
        // One below zero is no bucket to Prometheus either (`allFloatBucketIterator`).
        if self.zero_count > 0.0 {
            buckets.push(Bucket { lower: -ZERO_THRESHOLD, upper: ZERO_THRESHOLD, count: self.zero_count });
        }
        buckets.extend(occupied(&self.positive));
        buckets
    }

    /// The weight of the values at or below `bound`. Exact where `bound` is a boundary of the schema (every power of
    /// two is one down to schema 0); otherwise the bucket around `bound` is left out.
    pub fn count_at_most(&self, bound: f64) -> f64 {
        self.buckets().iter().filter(|b| b.upper <= bound).map(|b| b.count).sum()
    }

    /// The `q`-quantile for `q` in 0..=1, interpolated exponentially within its bucket, as `histogram_quantile` of
    /// Prometheus 3 does (`promql/quantile.go`). It is off by at most one bucket's width. An empty histogram or a NaN
    /// gives NaN, `q` < 0 gives -Inf, `q` > 1 gives +Inf.
    pub fn quantile(&self, q: f64) -> f64 {
        if q < 0.0 {
            return f64::NEG_INFINITY;
        }
        if q > 1.0 {
            return f64::INFINITY;
        }
        let buckets = self.buckets();
        if self.count == 0.0 || q.is_nan() || buckets.is_empty() {
            return f64::NAN;
        }
        // From the nearer end, so that rounding costs least where percentiles are asked for.
        let from_below = q < 0.5 || self.sum.is_nan();
        let mut rank = if from_below { q * self.count } else { (1.0 - q) * self.count };
        let ordered: Box<dyn Iterator<Item = &Bucket>> =
            if from_below { Box::new(buckets.iter()) } else { Box::new(buckets.iter().rev()) };
        let mut cumulative = 0.0;
        let mut found = Bucket { lower: f64::NAN, upper: f64::NAN, count: 0.0 };
        for bucket in ordered {
            found = *bucket;
            cumulative += bucket.count;
            if cumulative >= rank {
                break;
            }
        }
        if found.lower < 0.0 && found.upper > 0.0 {
            let is_empty = |span: &BucketSpan| span.counts.iter().all(|count| *count == 0.0);
            match (is_empty(&self.negative), is_empty(&self.positive)) {
                (true, false) => found.lower = 0.0,
                (false, true) => found.upper = 0.0,
                _ => {}
            }
        }
        cumulative = cumulative.min(self.count);
        if cumulative < rank {
            return if self.sum.is_nan() { f64::NAN } else { found.upper };
        }
        rank = if from_below { rank - (cumulative - found.count) } else { cumulative - rank };
        let fraction = rank / found.count;
        if found.lower <= 0.0 && found.upper >= 0.0 {
            return found.lower + (found.upper - found.lower) * fraction;
        }
        let (log_lower, log_upper) = (found.lower.abs().log2(), found.upper.abs().log2());
        if found.lower > 0.0 {
            (log_lower + (log_upper - log_lower) * fraction).exp2()
        } else {
            -(log_upper + (log_lower - log_upper) * (1.0 - fraction)).exp2()
        }
    }
}

impl<C: Copy + Default + AddAssign> BucketSpan<C> {
    /// Adds to one bucket, growing the span to it. False, with nothing changed, if the span would pass `BUCKETS_MAX`.
    pub(crate) fn add(&mut self, index: i32, weight: C) -> bool {
        self.add_within(index, weight, BUCKETS_MAX)
    }

    fn add_within(&mut self, index: i32, weight: C, buckets_max: usize) -> bool {
        // Nearly always the bucket is there.
        if let Some(count) = usize::try_from(index - self.offset).ok().and_then(|at| self.counts.get_mut(at)) {
            *count += weight;
            return true;
        }
        if self.counts.is_empty() {
            self.offset = index;
        }
        let first = self.offset.min(index);
        let last = (self.offset + self.counts.len() as i32 - 1).max(index);
        if (last - first) as usize >= buckets_max {
            return false;
        }
        if index < self.offset {
            let grow = (self.offset - index) as usize;
            self.make_room(grow);
            self.counts.splice(0..0, std::iter::repeat_n(C::default(), grow));
            self.offset = index;
        }
        let at = (index - self.offset) as usize;
        if at >= self.counts.len() {
            self.make_room(at + 1 - self.counts.len());
            self.counts.resize(at + 1, C::default());
        }
        if let Some(count) = self.counts.get_mut(at) {
            *count += weight;
        }
        true
    }

    /// A histogram soon has most of the buckets that it ever will: twice as much room, as a vector takes, would be mostly for nothing.
    fn make_room(&mut self, more: usize) {
        if self.counts.capacity() - self.counts.len() < more {
            self.counts.reserve_exact(more + self.counts.len() / 8);
        }
    }

    /// Brings the buckets to a schema that is coarser by `steps`.
    pub(crate) fn coarsen(&mut self, steps: i8) {
        let fine = Self { offset: self.offset, counts: std::mem::take(&mut self.counts) };
        for (at, count) in fine.counts.iter().enumerate() {
            // Unions of neighbours span no more buckets than before.
            self.add_within(coarser_index(fine.offset + at as i32, steps), *count, usize::MAX);
        }
    }
}

/// The index of the bucket, `steps` schemas coarser, that contains bucket `index`.
fn coarser_index(index: i32, steps: i8) -> i32 {
    if steps <= 0 {
        return index;
    }
    ((index - 1) >> steps) + 1
}

/// The bucket of a positive, finite `value`, as Prometheus computes it (`Histogram.findBucket` in its Go client). Every
/// boundary of a coarser schema is one of schema 8, so the place there tells all.
pub(crate) fn index_of(value: f64, schema: i8) -> i32 {
    let (fraction, exponent) = frexp(value);
    let cell = (fraction.to_bits() >> 43) as usize & 511;
    let start = FRACTION_STARTS.get(cell).copied().unwrap_or_default();
    let is_above = FRACTIONS.get(usize::from(start)).is_some_and(|bound| *bound < fraction);
    coarser_index(i32::from(start) + i32::from(is_above) + (exponent - 1) * 256, SCHEMA_MAX - schema)
}

/// The upper bound of bucket `index`: of the last one that holds finite values the largest double, since 2^1024 is none (as in
/// Prometheus, `getBoundExponential`), and +Inf past that.
pub(crate) fn upper_bound(index: i32, schema: i8) -> f64 {
    let (fraction, exponent) = if schema > 0 {
        let fraction = FRACTIONS.get(((index & ((1 << schema) - 1)) as usize) << (8 - schema)).copied();
        (fraction.unwrap_or(f64::NAN), (index >> schema) + 1)
    } else {
        (0.5, (index << -schema) + 1)
    };
    if (fraction, exponent) == (0.5, 1025) { f64::MAX } else { ldexp(fraction, exponent) }
}

/// `value = fraction * 2^exponent` with the fraction in `[0.5, 1)`, as C's `frexp`.
fn frexp(value: f64) -> (f64, i32) {
    let scaled = if value < f64::MIN_POSITIVE { value * 2f64.powi(54) } else { value };
    let bits = scaled.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32 - 1022 - if value < f64::MIN_POSITIVE { 54 } else { 0 };
    (f64::from_bits((bits & !(0x7ff << 52)) | (1022 << 52)), exponent)
}

/// `fraction * 2^exponent`, in two steps so that neither overflows on the way.
fn ldexp(fraction: f64, exponent: i32) -> f64 {
    let half = exponent / 2;
    fraction * 2f64.powi(half) * 2f64.powi(exponent - half)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f64]) -> ExponentialHistogram {
        let mut h = ExponentialHistogram::default();
        values.iter().for_each(|v| h.record(*v, 1.0));
        h
    }

    fn nearest_rank(sorted: &[f64], q: f64) -> f64 {
        sorted[((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1]
    }

    #[test]
    fn boundaries_belong_to_the_bucket_below_them() {
        for schema in SCHEMA_MIN..=SCHEMA_MAX {
            for index in [-40, -3, -1, 0, 1, 2, 31, 32, 33, 40] {
                let bound = upper_bound(index, schema);
                if bound > 0.0 && bound.is_finite() {
                    assert_eq!(index_of(bound, schema), index, "schema {schema} bound {bound}");
                    assert_eq!(index_of(bound.next_up(), schema), index + 1, "schema {schema} above {bound}");
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_of_doubles_have_a_bucket() {
        let mut h = of(&[f64::MAX, f64::MIN_POSITIVE, 5e-324, -f64::MAX, 0.0, 1e-30, 1e300]);
        assert_eq!(h.count(), 7.0);
        assert_eq!(h.buckets().iter().map(|b| b.count).sum::<f64>(), 7.0);
        assert!(h.schema() >= SCHEMA_MIN);
        h.record(f64::NAN, 1.0);
        h.record(1.0, f64::INFINITY);
        h.record(1.0, 0.0);
        assert_eq!(h.count(), 7.0, "what is not finite changes nothing");
    }

    #[test]
    fn the_largest_doubles_have_finite_quantiles() {
        // What Prometheus 3.5 answers for the same native histogram.
        let one = of(&[f64::MAX]);
        assert!((one.quantile(0.5) / 1.778_328_408_132_298_2e308 - 1.0).abs() < 1e-12);
        assert!((of(&[-f64::MAX]).quantile(0.5) / -1.778_328_408_132_298_2e308 - 1.0).abs() < 1e-12);
        let coarse = of(&[1e-38, 5e307, 5e307, 5e307]);
        assert!((coarse.quantile(0.5) / 2.831e307 - 1.0).abs() < 1e-3 && coarse.schema() < 0, "{coarse:?}");
        for schema in SCHEMA_MIN..=SCHEMA_MAX {
            let last = index_of(f64::MAX, schema);
            assert_eq!(upper_bound(last, schema), f64::MAX);
            assert!(upper_bound(last - 1, schema) < f64::MAX);
            assert_eq!(upper_bound(last + 1, schema), f64::INFINITY);
        }
    }

    #[test]
    fn it_stays_at_schema_5_while_the_spread_is_at_most_65536() {
        assert_eq!(of(&[0.001, 65.536]).schema(), 5);
        assert_eq!(of(&[1.0, 65_536.0]).schema(), 5);
        assert!(of(&[0.001, 1000.0]).schema() < 5);
    }

    #[test]
    fn powers_of_two_cut_exactly() {
        let h = of(&[0.5, 1.0, 1.0, 1.000_001, 2.0, -3.0, 0.0]);
        assert_eq!(h.count_at_most(0.5), 3.0);
        assert_eq!(h.count_at_most(1.0), 5.0);
        assert_eq!(h.count_at_most(2.0), 7.0);
    }

    #[test]
    fn quantiles_at_the_edges() {
        assert!(ExponentialHistogram::default().quantile(0.5).is_nan());
        let h = of(&[1.0, 2.0, 3.0]);
        assert_eq!(h.quantile(-0.1), f64::NEG_INFINITY);
        assert_eq!(h.quantile(1.1), f64::INFINITY);
        assert!(of(&[0.0, 0.0]).quantile(0.5).abs() < 1e-38);
    }

    proptest! {
        #[test]
        fn property_test_quantiles_are_off_by_at_most_one_bucket(
            values in prop::collection::vec(prop_oneof![(0.0001f64..5.0), (-5.0f64..-0.0001), Just(0.0)], 1..300),
            q in 0.0f64..=1.0,
        ) {
            let h = of(&values);
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let exact = nearest_rank(&sorted, q);
            let got = h.quantile(q);
            let width = upper_bound(1, h.schema());
            let bound = exact.abs() * (width - 1.0) * 1.000_001 + 1e-12;
            // Interpolated ranks may fall on either neighbour of the nearest rank.
            let below = nearest_rank(&sorted, (q - 1.0 / values.len() as f64).max(0.0));
            let above = nearest_rank(&sorted, (q + 1.0 / values.len() as f64).min(1.0));
            let slack = |v: f64| v.abs() * (width - 1.0) * 1.000_001 + 1e-12;
            prop_assert!(
                (got - exact).abs() <= bound || (got >= below - slack(below) && got <= above + slack(above)),
                "q {q}: {got} for {exact}"
            );
        }

        #[test]
        fn property_test_merging_is_commutative_and_loses_nothing(
            a in prop::collection::vec(-1e6f64..1e6, 0..100),
            b in prop::collection::vec(1e-9f64..1e9, 0..100),
        ) {
            let (mut ab, mut ba) = (of(&a), of(&b));
            ab.merge(&of(&b));
            ba.merge(&of(&a));
            prop_assert_eq!(ab.count(), (a.len() + b.len()) as f64);
            prop_assert_eq!(ab.schema(), ba.schema());
            prop_assert_eq!(ab.buckets(), ba.buckets());
            ab.subtract(&of(&b));
            prop_assert_eq!(ab.count(), a.len() as f64);
            prop_assert_eq!(ab.buckets().iter().map(|b| b.count).sum::<f64>(), a.len() as f64);
        }
    }
}
