//! The ladder of classic buckets: what scrapers without native histograms and `h_bucket{le="..."}` see.
//!
//! Unless it is told otherwise, every bound is a power of two and so a boundary of every schema from 0 on: the counts are
//! exact. Since the ladder is the same in every series and every collector, `sum by (le)` is right.

use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use super::{Bucket, ExponentialHistogram};

/// The exponents of the lowest and the highest bound: 2^-14 (61 µs, if seconds are counted) and 2^20 (12 days).
const EXPONENTS: std::ops::RangeInclusive<i32> = -14..=20;
/// So many bounds may be asked for; each is a series in a scraper.
const BOUNDS_MAX: usize = 200;

/// The upper bounds of the classic buckets in ascending order, the last one +Inf. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder(Arc<[(f64, Box<str>)]>);

impl Default for Ladder {
    /// The powers of two from 2^-14 to 2^20.
    fn default() -> Self {
        Self::new(EXPONENTS.map(|exponent| f64::from(exponent).exp2()))
    }
}

impl Ladder {
    fn new(finite: impl IntoIterator<Item = f64>) -> Self {
        let bounds = finite.into_iter().chain([f64::INFINITY]);
        Self(bounds.map(|bound| (bound, classic_le(bound).into())).collect())
    }

    /// From bounds with commas between: 1 to 200 finite numbers, in ascending order. +Inf is added.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut bounds: Vec<f64> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let bound: f64 =
                part.parse().map_err(|_| format!("got {part:?}, want numbers such as 0.005,0.01,0.025"))?;
            if !bound.is_finite() {
                return Err(format!("got {part}, want finite numbers: the bucket of +Inf is always there"));
            }
            if let Some(before) = bounds.last().filter(|before| **before >= bound) {
                return Err(format!("got {bound} after {before}, want ascending bounds, each once"));
            }
            bounds.push(bound + 0.0); // -0 becomes 0
        }
        if bounds.len() > BOUNDS_MAX {
            return Err(format!("got {} bounds, want at most {BOUNDS_MAX}", bounds.len()));
        }
        Ok(Self::new(bounds))
    }

    /// Each bound with its value of `le`, the last one +Inf.
    pub fn bounds(&self) -> impl Iterator<Item = (f64, &str)> {
        self.0.iter().map(|(bound, le)| (*bound, &**le))
    }

    /// Each bound with its value of `le` and the weight at or below it.
    pub fn counts(&self, histogram: &ExponentialHistogram) -> impl Iterator<Item = (f64, &str, f64)> {
        let mut buckets = AtMost::new(histogram);
        let count = histogram.count();
        self.bounds().map(move |(bound, le)| {
            // Counts of weights may add up to a little more than their total.
            let at_most = if bound.is_infinite() { count } else { buckets.count(bound).min(count) };
            (bound, le, at_most)
        })
    }
}

/// Counts what lies at or below one bound after another, in ascending order.
///
/// Exact at boundaries of the histogram's buckets. Within a bucket the weight is taken to be spread evenly over the
/// logarithm, as `histogram_quantile` of Prometheus 3 does, and rounded down, so that whole counts stay whole and no count
/// goes back while the histogram grows. Zeros count from the bound 0 on.
#[derive(Debug)]
pub struct AtMost {
    rest: Peekable<IntoIter<Bucket>>,
    cumulative: f64,
}

impl AtMost {
    /// From the lowest bucket on.
    pub fn new(histogram: &ExponentialHistogram) -> Self {
        Self { rest: histogram.buckets().into_iter().peekable(), cumulative: 0.0 }
    }

    /// The weight at or below `bound`, which is finite and not lower than the one before.
    pub fn count(&mut self, bound: f64) -> f64 {
        let is_zeros = |bucket: &Bucket| bucket.lower < 0.0 && bucket.upper > 0.0;
        let is_below = |bucket: &Bucket| bucket.upper <= bound || (is_zeros(bucket) && bound >= 0.0);
        while let Some(bucket) = self.rest.next_if(is_below) {
            self.cumulative += bucket.count;
        }
        let around = self.rest.peek().filter(|bucket| bucket.lower < bound && !is_zeros(bucket));
        self.cumulative + around.map_or(0.0, |bucket| (bucket.count * fraction_at_most(bucket, bound)).floor())
    }
}

/// The part of a bucket's width, measured in logarithms, that lies at or below a bound within it.
fn fraction_at_most(bucket: &Bucket, bound: f64) -> f64 {
    let (lower, upper) = (bucket.lower.abs().log2(), bucket.upper.abs().log2());
    let fraction = (bound.abs().log2() - lower) / (upper - lower);
    // The outermost buckets of the range of doubles have no finite width.
    if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 }
}

/// A bound as the value of the label `le`, as Prometheus 3 stores it whichever way it was scraped (its
/// `FormatOpenMetricsFloat`): `0.5`, `1.0`, `1.048576e+06`, `+Inf`.
pub fn classic_le(bound: f64) -> String {
    if bound.is_nan() {
        return "NaN".to_owned();
    }
    if bound.is_infinite() {
        return if bound > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    // Go's shortest %g (`strconv.FormatFloat(v, 'g', -1, 64)`): exponent form below 1e-4 and from 1e6 on.
    let exponential = format!("{bound:e}");
    let (mantissa, exponent) = exponential.split_once('e').unwrap_or((&exponential, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if !(-4..6).contains(&power) {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", power.abs());
    }
    let plain = format!("{bound}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// A float as Prometheus writes it: the shortest digits that read back as it, `NaN`, `+Inf`, `-Inf`; never an exponent.
pub fn format_float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recorded(values: &[f64]) -> ExponentialHistogram {
        let mut histogram = ExponentialHistogram::default();
        values.iter().for_each(|value| histogram.record(*value, 1.0));
        histogram
    }

    fn counts(ladder: &Ladder, values: &[f64]) -> Vec<f64> {
        ladder.counts(&recorded(values)).map(|(_, _, count)| count).collect()
    }

    #[test]
    fn the_ladder_is_the_powers_of_two_in_order_and_each_cuts_exactly() {
        let bounds: Vec<f64> = Ladder::default().bounds().map(|(bound, _)| bound).collect();
        assert_eq!((bounds[0], bounds[34], bounds[35]), ((-14f64).exp2(), 20f64.exp2(), f64::INFINITY));
        assert!(bounds.windows(2).all(|pair| pair[1] == pair[0] * 2.0 || pair[1].is_infinite()));
        for bound in &bounds[..35] {
            let histogram = recorded(&[*bound, bound.next_up()]);
            assert_eq!(AtMost::new(&histogram).count(*bound), 1.0, "{bound}");
        }
    }

    #[test]
    fn le_reads_as_prometheus_stores_it() {
        let ladder = Ladder::default();
        let le: Vec<&str> = ladder.bounds().map(|(_, le)| le).collect();
        assert_eq!(le[0], "6.103515625e-05");
        assert_eq!(le[1], "0.0001220703125");
        assert_eq!(le[13..=15], ["0.5", "1.0", "2.0"]);
        assert_eq!(le[33..], ["524288.0", "1.048576e+06", "+Inf"]);
        assert_eq!(classic_le(-0.0), "-0.0");
    }

    #[test]
    fn every_count_of_the_default_ladder_is_exact() {
        let (ladder, values) = (Ladder::default(), [-1.0, 0.0, 0.25, 0.250_000_1, 1.0, 3.0, 5e6]);
        for (bound, _, count) in ladder.counts(&recorded(&values)) {
            assert_eq!(count, values.iter().filter(|value| **value <= bound).count() as f64, "{bound}");
        }
    }

    #[test]
    fn negative_bounds_and_zero_count_what_is_below_them() {
        let ladder = Ladder::parse("-10, -1,-0.3,0,0.3,7").unwrap();
        let le: Vec<&str> = ladder.bounds().map(|(_, le)| le).collect();
        assert_eq!(le, ["-10.0", "-1.0", "-0.3", "0.0", "0.3", "7.0", "+Inf"]);
        assert_eq!(counts(&ladder, &[-5.0, -0.5, 0.0, 0.0, 0.1, 4.0, 8.0]), [0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn a_bound_within_a_bucket_takes_its_part_of_it() {
        // The bucket from 2^(-245/32) to 2^(-244/32), in it a bound at a quarter of its logarithmic width.
        let bound = (-244.75 / 32.0f64).exp2();
        let histogram = recorded(&[(-244.5 / 32.0f64).exp2(); 1000]);
        let count = AtMost::new(&histogram).count(bound);
        assert!((249.0..=250.0).contains(&count), "{count}");
        assert_eq!(AtMost::new(&recorded(&[-(-244.5 / 32.0f64).exp2(); 1000])).count(-bound), 750.0);
    }

    #[test]
    fn bad_bounds_are_refused_with_what_is_wanted() {
        for (text, error) in [
            ("", "got \"\", want numbers such as 0.005,0.01,0.025"),
            ("1,x", "got \"x\", want numbers such as 0.005,0.01,0.025"),
            ("1,+Inf", "got +Inf, want finite numbers: the bucket of +Inf is always there"),
            ("NaN", "got NaN, want finite numbers: the bucket of +Inf is always there"),
            ("2,1", "got 1 after 2, want ascending bounds, each once"),
            ("0,-0", "got -0 after 0, want ascending bounds, each once"),
        ] {
            assert_eq!(Ladder::parse(text), Err(error.to_owned()), "{text}");
        }
        let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(Ladder::parse(&many(201)), Err("got 201 bounds, want at most 200".to_owned()));
        assert_eq!(Ladder::parse(&many(200)).unwrap().bounds().count(), 201);
    }

    proptest! {
        #[test]
        fn property_test_a_count_is_off_by_less_than_the_bucket_around_the_bound_and_never_goes_back(
            values in prop::collection::vec(prop_oneof![-1e3..1e3f64, Just(0.0)], 1..80),
            mut bounds in prop::collection::vec(-1e3..1e3f64, 1..20),
        ) {
            bounds.sort_by(f64::total_cmp);
            bounds.dedup();
            let ladder = Ladder::new(bounds);
            let before = counts(&ladder, &values[..values.len() - 1]);
            let histogram = recorded(&values);
            let mut last = 0.0;
            let is_schema_kept = recorded(&values[..values.len() - 1]).schema() == histogram.schema();
            for ((bound, _, count), before) in ladder.counts(&histogram).zip(before) {
                let exact = values.iter().filter(|value| **value <= bound).count() as f64;
                let around = histogram.buckets().into_iter().find(|b| b.lower <= bound && bound <= b.upper);
                prop_assert!((count - exact).abs() <= around.map_or(0.0, |bucket| bucket.count));
                prop_assert!(count >= last && count.fract() == 0.0);
                prop_assert!(!is_schema_kept || count >= before);
                last = count;
            }
        }
    }

    #[test]
    fn floats_are_written_as_prometheus_writes_them() {
        for (value, text) in [
            (1.0, "1"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (1.5e-7, "0.00000015"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::INFINITY, "+Inf"),
            (f64::NAN, "NaN"),
            (1e21, "1000000000000000000000"),
        ] {
            assert_eq!(format_float(value), text);
        }
    }
}
