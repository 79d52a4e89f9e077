//! Exponential histograms against exact nearest-rank quantiles, over the shapes that measurements have.

#![cfg(feature = "collector")]

use cortex_metrics::model::{ExponentialHistogram, ZERO_THRESHOLD};
use proptest::prelude::*;

/// A seeded source of numbers: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016).
struct Random(u64);

impl Random {
    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// By Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Lognormal,
    Bimodal,
    Constant,
    HeavyTail,
    Negative,
    BothSigns,
    ManyZeros,
    Tiny,
    Huge,
}

impl Shape {
    fn value(self, random: &mut Random) -> f64 {
        match self {
            Self::Lognormal => (0.8 * random.normal() - 2.0).exp(),
            Self::Bimodal if random.uniform() < 0.7 => 0.02 + 0.002 * random.normal().abs(),
            Self::Bimodal => 3.0 + 0.3 * random.normal().abs(),
            Self::Constant => 0.125,
            // Pareto with an infinite variance: spreads over many powers of ten.
            Self::HeavyTail => 0.001 * random.uniform().powf(-1.0 / 0.7),
            Self::Negative => -(0.8 * random.normal()).exp(),
            Self::BothSigns => 10.0 * random.normal(),
            Self::ManyZeros if random.uniform() < 0.5 => 0.0,
            Self::ManyZeros => random.uniform(),
            Self::Tiny => 1e-30 * random.uniform(),
            Self::Huge => 1e300 * random.uniform(),
        }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    use Shape::*;
    prop::sample::select(vec![Lognormal, Bimodal, Constant, HeavyTail, Negative, BothSigns, ManyZeros, Tiny, Huge])
}

/// The value at the nearest rank of quantile `q`; and the one after it where the rank is a whole number, since from above
/// that one is as near.
fn nearest_ranks(sorted: &[(f64, f64)], q: f64) -> (f64, f64) {
    let rank = q * sorted.iter().map(|(_, weight)| weight).sum::<f64>();
    let at = |rank: f64| {
        let mut below = 0.0;
        let found = sorted.iter().find(|(_, weight)| {
            below += weight;
            below >= rank
        });
        found.or(sorted.last()).map_or(f64::NAN, |(value, _)| *value)
    };
    let slack = 1e-9 * (1.0 + rank);
    (at(rank - slack), at(rank + slack))
}

/// What two values of one bucket differ by at most: its width.
fn width_at(histogram: &ExponentialHistogram, value: f64) -> f64 {
    let base = 2.0_f64.powf(2.0_f64.powi(-i32::from(histogram.schema())));
    value.abs() * (base - 1.0) * (1.0 + 1e-9) + ZERO_THRESHOLD
}

proptest! {
    #[test]
    fn property_test_every_quantile_of_every_shape_is_off_by_at_most_one_bucket(
        shape in shapes(),
        seed in 1_u64..,
        count in 1_usize..2_000,
        parts in 1_usize..5,
        is_weighted: bool,
        coarser in 0_i8..3,
        q in 0.0_f64..=1.0,
    ) {
        let mut random = Random(seed);
        let mut samples: Vec<(f64, f64)> = (0..count)
            .map(|_| (shape.value(&mut random), if is_weighted { (100.0 * random.uniform()).ceil() } else { 1.0 }))
            .collect();
        // Recorded by several, then merged: what many processes do, and ticks.
        let (mut histogram, mut sum) = (ExponentialHistogram::default(), 0.0);
        for part in samples.chunks(count.div_ceil(parts)) {
            let (mut of_part, mut sum_of_part) = (ExponentialHistogram::default(), 0.0);
            for (value, weight) in part {
                of_part.record(*value, *weight);
                sum_of_part += value * weight;
            }
            histogram.merge(&of_part);
            sum += sum_of_part;
        }
        let weight: f64 = samples.iter().map(|(_, weight)| weight).sum();
        prop_assert_eq!(histogram.count(), weight);
        prop_assert_eq!(histogram.sum().to_bits(), sum.to_bits());
        prop_assert_eq!(histogram.buckets().iter().map(|bucket| bucket.count).sum::<f64>(), weight);

        let magnitudes = || samples.iter().map(|(value, _)| value.abs()).filter(|value| *value > 0.0);
        let spread = magnitudes().fold(0.0, f64::max) / magnitudes().fold(f64::INFINITY, f64::min);
        if spread <= 65_536.0 {
            prop_assert!(histogram.schema() >= 5, "2.2 % wide up to there: {spread}");
        }
        let schema = histogram.schema();
        histogram.coarsen(schema - coarser);
        prop_assert_eq!(histogram.count(), weight);

        samples.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        for q in [q, 0.5, 0.9, 0.99] {
            let (low, high) = nearest_ranks(&samples, q);
            let got = histogram.quantile(q);
            prop_assert!(
                got >= low - width_at(&histogram, low) && got <= high + width_at(&histogram, high),
                "{shape:?}, quantile {q}: {got} instead of {low} to {high}, schema {}", histogram.schema()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    // Where buckets hold dozens of values, interpolation halves the error.
    #[test]
    fn property_test_quantiles_of_latencies_are_off_by_less_than_1_1_percent(seed in 1_u64.., sigma in 0.2_f64..1.2) {
        let mut random = Random(seed);
        let mut values: Vec<f64> = (0..100_000).map(|_| 0.05 * (sigma * random.normal()).exp()).collect();
        let mut histogram = ExponentialHistogram::default();
        values.iter().for_each(|value| histogram.record(*value, 1.0));
        values.sort_by(f64::total_cmp);
        for q in [0.5, 0.9, 0.95, 0.99] {
            let exact = values[(q * 100_000.0) as usize - 1];
            let off = (histogram.quantile(q) - exact).abs() / exact;
            prop_assert!(off < 0.011, "quantile {q} is off by {off}");
        }
    }
}
