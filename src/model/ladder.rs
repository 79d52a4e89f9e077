//! The classic buckets of an exponential histogram, for readers that know no native histograms.

use super::{Bucket, ExponentialHistogram};

/// The exponents of the lowest and the highest finite bound: 2^-14 (61 µs in seconds) and 2^20 (12 days).
const EXPONENTS: std::ops::RangeInclusive<i32> = -14..=20;

/// The bounds of the one ladder: every power of two from 2^-14 to 2^20. Powers of two are boundaries of every schema from 0
/// on, so that a histogram's count at each of them is exact.
pub fn classic_bounds() -> impl Iterator<Item = f64> {
    EXPONENTS.map(|exponent| 2f64.powi(exponent))
}

/// Each bound of the ladder with the weight at or below it, the last one +Inf with all of it.
pub fn classic_buckets(histogram: &ExponentialHistogram) -> impl Iterator<Item = (f64, f64)> {
    let buckets: Vec<Bucket> = histogram.buckets();
    let mut rest = buckets.into_iter().peekable();
    let mut cumulative = 0.0;
    let finite = classic_bounds().map(move |bound| {
        while let Some(bucket) = rest.next_if(|bucket| bucket.upper <= bound) {
            cumulative += bucket.count;
        }
        (bound, cumulative)
    });
    finite.chain(std::iter::once((f64::INFINITY, histogram.count())))
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
    use super::*;

    #[test]
    fn every_count_of_the_ladder_is_exact() {
        let mut histogram = ExponentialHistogram::default();
        for value in [-1.0, 0.0, 0.25, 0.250_000_1, 1.0, 3.0, 5e6] {
            histogram.record(value, 1.0);
        }
        let count = |bound: f64| classic_buckets(&histogram).find(|(b, _)| *b == bound).unwrap().1;
        assert_eq!(count(2f64.powi(-14)), 2.0);
        assert_eq!(count(0.25), 3.0);
        assert_eq!(count(0.5), 4.0);
        assert_eq!(count(1.0), 5.0);
        assert_eq!(count(1_048_576.0), 6.0);
        assert_eq!(count(f64::INFINITY), 7.0);
    }

    #[test]
    fn floats_are_written_as_prometheus_writes_them() {
        for (value, text) in
            [(1.0, "1"), (0.1, "0.1"), (f64::INFINITY, "+Inf"), (f64::NAN, "NaN"), (1e21, "1000000000000000000000")]
        {
            assert_eq!(format_float(value), text);
        }
    }
}
