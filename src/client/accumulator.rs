//! What accumulates in one context between two flushes: a sum, a last value, or a distribution.

use std::ops::AddAssign;

use super::account::DropReason;
use super::table::Kind;
use crate::model::{BucketSpan, SCHEMA_DEFAULT, SCHEMA_MIN, ZERO_THRESHOLD, index_of, upper_bound};

/// Values of a histogram kept as they are until the next flush; past that they fall into buckets.
const VALUES_EXACT_MAX: usize = 64;
/// Samples that one message stands for at most: other servers loop over them.
const WEIGHT_MAX: u64 = 10_000;

/// A sum that a million additions do not blur: what each of them rounds away is summed apart (Neumaier's variant of
/// Kahan's summation).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    rounded: f64,
    rest: f64,
}

impl Sum {
    fn total(self) -> f64 {
        let total = self.rounded + self.rest;
        // Past the largest double the rest means nothing.
        if total.is_nan() { self.rounded } else { total }
    }
}

impl From<f64> for Sum {
    fn from(value: f64) -> Self {
        Self { rounded: value, rest: 0.0 }
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        let (a, b) = (self.rounded, other.rounded);
        let sum = a + b;
        let b_part = sum - a;
        self.rest += (a - (sum - b_part)) + (b - b_part) + other.rest;
        self.rounded = sum;
    }
}

/// What has accumulated in a context.
#[derive(Debug, Default)]
pub(super) enum Accumulator {
    #[default]
    Empty,
    Counter(Sum),
    Gauge(f64),
    Histogram(Box<Distribution>),
}

/// What one line of a payload says of a context.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A counter's sum.
    Counter(f64),
    /// A gauge's last value.
    Gauge(f64),
    /// Values of a histogram as they were.
    Values(Vec<f64>),
    /// Values that fell into one bucket.
    Bucket { mean: f64, weight: u32 },
}

impl Accumulator {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Counter(_) | Self::Gauge(_) => false,
            Self::Histogram(distribution) => distribution.is_empty(),
        }
    }

    /// Adds one call's value, a finite one.
    pub(super) fn add(&mut self, kind: Kind, value: f64) -> Result<(), DropReason> {
        match (&mut *self, kind) {
            (Self::Counter(sum), Kind::Counter) => {
                let mut grown = *sum;
                grown += Sum::from(value);
                if !grown.total().is_finite() {
                    return Err(DropReason::NotFinite);
                }
                *sum = grown;
            }
            (Self::Histogram(distribution), Kind::Histogram) => distribution.add(value),
            (_, Kind::Counter) => *self = Self::Counter(value.into()),
            (_, Kind::Gauge) => *self = Self::Gauge(value),
            (_, Kind::Histogram) => {
                let mut distribution = Box::<Distribution>::default();
                distribution.add(value);
                *self = Self::Histogram(distribution);
            }
        }
        Ok(())
    }

    /// Adds what `newer` holds, and leaves it empty. A gauge becomes the newer one.
    pub(super) fn merge(&mut self, newer: &mut Self) -> Result<(), DropReason> {
        match (&mut *self, &mut *newer) {
            (Self::Counter(sum), Self::Counter(more)) => {
                let mut grown = *sum;
                grown += *more;
                *newer = Self::Empty;
                if !grown.total().is_finite() {
                    return Err(DropReason::NotFinite);
                }
                *sum = grown;
            }
            (Self::Histogram(distribution), Self::Histogram(more)) => distribution.merge(more),
            (_, Self::Histogram(more)) => {
                // `newer` stays a histogram, so that its next value finds memory.
                let mut distribution = Box::<Distribution>::default();
                distribution.merge(more);
                *self = Self::Histogram(distribution);
            }
            (_, Self::Empty) => {}
            (_, Self::Counter(_) | Self::Gauge(_)) => *self = std::mem::take(newer),
        }
        Ok(())
    }

    /// Takes back what was refused: it was taken from here, and nothing has been added since.
    pub(super) fn restore(&mut self, content: Content) {
        match (&mut *self, content) {
            (_, Content::Counter(sum)) => *self = Self::Counter(sum.into()),
            (_, Content::Gauge(value)) => *self = Self::Gauge(value),
            (Self::Histogram(distribution), Content::Values(values)) => {
                values.iter().for_each(|value| distribution.add(*value));
            }
            (Self::Histogram(distribution), Content::Bucket { mean, weight }) => {
                distribution.spill();
                distribution.fold(mean, Portion { count: u64::from(weight), sum: (mean * f64::from(weight)).into() });
            }
            // Taking from a histogram leaves it a histogram.
            (_, Content::Values(_) | Content::Bucket { .. }) => {}
        }
    }

    /// Takes what has accumulated from `calls` calls, as parts that fit into one line each. A histogram keeps its memory
    /// for the next values, if it was used.
    pub(super) fn take(&mut self, calls: u64, line_values_max: usize, mut part: impl FnMut(Content, u64)) {
        match self {
            Self::Empty => {}
            Self::Counter(sum) => {
                part(Content::Counter(sum.total()), calls);
                *self = Self::Empty;
            }
            Self::Gauge(value) => {
                part(Content::Gauge(*value), calls);
                *self = Self::Empty;
            }
            Self::Histogram(distribution) => distribution.take(line_values_max, part),
        }
    }
}

/// What fell into one bucket.
#[derive(Debug, Clone, Copy, Default)]
struct Portion {
    count: u64,
    sum: Sum,
}

impl AddAssign for Portion {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.sum += other.sum;
    }
}

/// The values of a histogram context: exact while few, then in exponential buckets with exact count and sum each.
#[derive(Debug)]
pub(super) struct Distribution {
    values: Vec<f64>,
    schema: i8,
    zero: Portion,
    positive: BucketSpan<Portion>,
    negative: BucketSpan<Portion>,
    has_buckets: bool,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            schema: SCHEMA_DEFAULT,
            zero: Portion::default(),
            positive: BucketSpan::default(),
            negative: BucketSpan::default(),
            has_buckets: false,
        }
    }
}

impl Distribution {
    fn is_empty(&self) -> bool {
        self.values.is_empty() && !self.has_buckets
    }

    fn add(&mut self, value: f64) {
        if self.has_buckets {
            self.fold(value, Portion { count: 1, sum: value.into() });
        } else if self.values.len() < VALUES_EXACT_MAX {
            self.values.push(value);
        } else {
            self.spill();
            self.fold(value, Portion { count: 1, sum: value.into() });
        }
    }

    /// Lets the exact values fall into their buckets.
    fn spill(&mut self) {
        let mut values = std::mem::take(&mut self.values);
        values.drain(..).for_each(|value| self.fold(value, Portion { count: 1, sum: value.into() }));
        self.values = values;
    }

    fn fold(&mut self, value: f64, portion: Portion) {
        self.has_buckets = true;
        if value.abs() <= ZERO_THRESHOLD {
            self.zero += portion;
            return;
        }
        loop {
            let index = index_of(value.abs(), self.schema);
            let side = if value > 0.0 { &mut self.positive } else { &mut self.negative };
            if side.add(index, portion) || self.schema == SCHEMA_MIN {
                return;
            }
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.positive.coarsen(1);
        self.negative.coarsen(1);
        self.schema -= 1;
    }

    fn merge(&mut self, newer: &mut Self) {
        if self.is_empty() {
            std::mem::swap(self, newer);
            return;
        }
        newer.values.drain(..).for_each(|value| self.add(value));
        if newer.has_buckets {
            self.spill();
            while self.schema > newer.schema {
                self.coarsen();
            }
            newer.parts(|mean, portion| self.fold(mean, portion));
            newer.clear();
        }
    }

    /// Each occupied bucket: its mean and what is in it.
    fn parts(&self, mut part: impl FnMut(f64, Portion)) {
        let occupied = |portion: &Portion| portion.count > 0;
        let mut side = |span: &BucketSpan<Portion>, sign: f64| {
            for (at, portion) in span.counts.iter().enumerate().filter(|(_, portion)| occupied(portion)) {
                // A mean can leave its bucket by rounding.
                let index = span.offset + at as i32;
                let lower = upper_bound(index - 1, self.schema).next_up();
                let upper = upper_bound(index, self.schema).min(f64::MAX).max(lower);
                let mean = portion.sum.total() / portion.count as f64;
                part(sign * mean.abs().clamp(lower, upper), *portion);
            }
        };
        side(&self.negative, -1.0);
        side(&self.positive, 1.0);
        if occupied(&self.zero) {
            let mean = self.zero.sum.total() / self.zero.count as f64;
            part(mean.clamp(-ZERO_THRESHOLD, ZERO_THRESHOLD), self.zero);
        }
    }

    fn take(&mut self, line_values_max: usize, mut part: impl FnMut(Content, u64)) {
        self.values.chunks(line_values_max).for_each(|v| part(Content::Values(v.to_vec()), v.len() as u64));
        self.parts(|mean, portion| {
            let mut left = portion.count;
            while left > 0 {
                let weight = left.min(WEIGHT_MAX);
                part(Content::Bucket { mean, weight: weight as u32 }, weight);
                left -= weight;
            }
        });
        self.clear();
    }

    /// Forgets what it holds. The memory of buckets stays only if it was needed this time.
    fn clear(&mut self) {
        if self.has_buckets {
            self.positive.counts.clear();
            self.negative.counts.clear();
        } else {
            self.positive = BucketSpan::default();
            self.negative = BucketSpan::default();
        }
        self.values.clear();
        self.zero = Portion::default();
        self.schema = SCHEMA_DEFAULT;
        self.has_buckets = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dogstatsd::{MessageType, MessageValue, decode, encode_line};

    /// What a server reads of a histogram: each message's value and its rate.
    fn decoded(accumulator: &mut Accumulator, line_values_max: usize) -> Vec<(f64, f64)> {
        let mut lines = Vec::new();
        accumulator.take(0, line_values_max, |content, _| {
            let (values, weight) = match content {
                Content::Values(values) => (values, 1),
                Content::Bucket { mean, weight } => (vec![mean], weight),
                Content::Counter(_) | Content::Gauge(_) => panic!("a histogram"),
            };
            encode_line(&mut lines, b"h", MessageType::Histogram, &values, weight, b"");
            lines.push(b'\n');
        });
        let mut samples = Vec::new();
        for message in decode(&lines) {
            let message = message.unwrap();
            for value in message.values() {
                let MessageValue::Absolute(value) = value else { panic!("{value:?}") };
                samples.push((value, message.weight));
            }
        }
        samples
    }

    fn schema_of(accumulator: &Accumulator) -> i8 {
        let Accumulator::Histogram(distribution) = accumulator else { panic!("{accumulator:?}") };
        distribution.schema
    }

    /// The sum to the last bit but a few, whatever the order.
    fn exact_sum(values: impl Iterator<Item = f64>) -> f64 {
        let mut sum = Sum::default();
        values.for_each(|value| sum += value.into());
        sum.total()
    }

    /// Checks all that is promised of a stream of values after the way over the wire.
    fn check_stream(values: &[f64], schema: i8, samples: &[(f64, f64)]) -> Result<(), TestCaseError> {
        let count: f64 = samples.iter().map(|(_, weight)| weight).sum();
        prop_assert_eq!(count, values.len() as f64);
        // As other servers decode: the value, repeated.
        let repeats: u64 =
            samples.iter().map(|(_, weight)| (1.0 / crate::dogstatsd::rate_for_weight(*weight as u32)) as u64).sum();
        prop_assert_eq!(repeats, values.len() as u64);
        let sum = exact_sum(samples.iter().map(|(value, weight)| value * weight));
        let (exact, size) = (exact_sum(values.iter().copied()), exact_sum(values.iter().map(|v| v.abs())));
        prop_assert!((sum - exact).abs() <= 1e-12 * size, "sum {} for {}", sum, exact);
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let mut samples = samples.to_vec();
        samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        let place = |value: f64| {
            let sign = if value.abs() <= ZERO_THRESHOLD { 0.0 } else { value.signum() };
            (sign, if sign == 0.0 { 0 } else { index_of(value.abs(), schema) })
        };
        let mut below = 0.0;
        let mut sample = samples.iter();
        let mut current = (f64::NAN, 0.0);
        // Every nearest rank, the least and the greatest value among them: off by a bucket's width at the most.
        for (rank, value) in values.iter().enumerate() {
            while below <= rank as f64 {
                current = *sample.next().unwrap();
                below += current.1;
            }
            prop_assert_eq!(place(current.0), place(*value), "rank {} is {} for {}", rank, current.0, value);
        }
        Ok(())
    }

    fn streams() -> impl Strategy<Value = Vec<f64>> {
        let spread = |low: f64, high: f64| (low..high).prop_map(f64::exp2);
        let value = prop_oneof![
            4 => spread(-10.0, 5.0),
            2 => spread(-60.0, 60.0),
            1 => spread(-10.0, 5.0).prop_map(|v| -v),
            1 => prop_oneof![Just(0.0), Just(0.1), Just(-0.0), Just(1e300), Just(5e-324), Just(1e-40)],
        ];
        let constant = (spread(-10.0, 5.0), 1usize..20_000).prop_map(|(value, count)| vec![value; count]);
        let narrow = prop::collection::vec(spread(-10.0, 5.0), 1..3_000);
        prop_oneof![3 => prop::collection::vec(value, 1..2_000), 2 => narrow, 1 => constant]
    }

    proptest! {
        #[test]
        fn property_test_a_stream_keeps_count_sum_and_quantiles_over_the_wire(values in streams(), line_values in 1usize..40) {
            let mut accumulator = Accumulator::default();
            for value in &values {
                accumulator.add(Kind::Histogram, *value).unwrap();
            }
            let schema = schema_of(&accumulator);
            let samples = decoded(&mut accumulator, line_values);
            prop_assert!(accumulator.is_empty());
            check_stream(&values, schema, &samples)?;
            let messages = samples.len();
            prop_assert!(messages <= VALUES_EXACT_MAX.max(2 * 513 + 1 + values.len() / WEIGHT_MAX as usize), "{messages} messages");
        }

        #[test]
        fn property_test_flushes_that_merge_are_as_one(streams in prop::collection::vec(streams(), 1..5)) {
            let mut backlog = Accumulator::default();
            let mut live = Accumulator::default();
            for values in &streams {
                values.iter().for_each(|value| live.add(Kind::Histogram, *value).unwrap());
                backlog.merge(&mut live).unwrap();
                prop_assert!(live.is_empty());
            }
            let schema = schema_of(&backlog);
            let samples = decoded(&mut backlog, 10);
            check_stream(&streams.concat(), schema, &samples)?;
        }
    }

    #[test]
    fn a_million_tenths_are_a_hundred_thousand() {
        for kind in [Kind::Counter, Kind::Histogram] {
            let mut accumulator = Accumulator::default();
            (0..1_000_000).for_each(|_| accumulator.add(kind, 0.1).unwrap());
            let mut total = 0.0;
            accumulator.take(1_000_000, 10, |content, calls| match content {
                Content::Counter(sum) => total = sum,
                Content::Bucket { mean, weight } => {
                    assert_eq!(u64::from(weight), calls);
                    total += mean * f64::from(weight);
                }
                other => panic!("{other:?}"),
            });
            assert!((total - 100_000.0).abs() < 1e-7, "{kind:?}: {total}");
        }
    }

    #[test]
    fn memory_of_buckets_stays_while_it_is_needed_and_goes_when_it_is_not() {
        let mut accumulator = Accumulator::default();
        let buckets = |accumulator: &Accumulator| match accumulator {
            Accumulator::Histogram(distribution) => distribution.positive.counts.capacity(),
            _ => 0,
        };
        (1..1_000).for_each(|i| accumulator.add(Kind::Histogram, f64::from(i)).unwrap());
        accumulator.take(999, 10, |_, _| {});
        assert!(buckets(&accumulator) > 100);
        accumulator.add(Kind::Histogram, 1.0).unwrap();
        accumulator.take(1, 10, |_, _| {});
        assert_eq!(buckets(&accumulator), 0);
    }
}
