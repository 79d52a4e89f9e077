//! The fixed ladder of classic buckets: what scrapers without native histograms and `h_bucket{le="..."}` see.
//!
//! Every bound is a power of two and so a boundary of every schema from 0 on: the counts are exact, and since the
//! ladder is the same in every series and every collector, `sum by (le)` is right.

use super::ExponentialHistogram;

/// The exponents of the lowest and the highest bound: 2^-14 (61 µs, if seconds are counted) and 2^20 (12 days).
const EXPONENT_MIN: i32 = -14;
/// One bound for each power of two, both ends included.
const LEN: usize = 35;

/// The upper bounds of the classic buckets in ascending order, `+Inf` left out: 2^-14, 2^-13 … 2^20.
#[allow(clippy::indexing_slicing)] // evaluated by the compiler: an index out of range would not compile
pub const CLASSIC_BOUNDS: [f64; LEN] = {
    let mut bounds = [0.0; LEN];
    let mut at = 0;
    while at < LEN {
        // A power of two is its exponent in the bits of a double, all fraction bits zero.
        bounds[at] = f64::from_bits(((1023 + EXPONENT_MIN as i64 + at as i64) as u64) << 52);
        at += 1;
    }
    bounds
};

/// Each bound of the ladder with the weight at or below it, the last one +Inf with all of it.
pub fn classic_buckets(histogram: &ExponentialHistogram) -> impl Iterator<Item = (f64, f64)> {
    let mut rest = histogram.buckets().into_iter().peekable();
    let mut cumulative = 0.0;
    let finite = CLASSIC_BOUNDS.into_iter().map(move |bound| {
        while let Some(bucket) = rest.next_if(|bucket| bucket.upper <= bound) {
            cumulative += bucket.count;
        }
        (bound, cumulative)
    });
    finite.chain(std::iter::once((f64::INFINITY, histogram.count())))
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
    use super::*;

    #[test]
    fn the_ladder_is_the_powers_of_two_in_order() {
        assert_eq!(CLASSIC_BOUNDS.first(), Some(&(-14f64).exp2()));
        assert_eq!(CLASSIC_BOUNDS.last(), Some(&20f64.exp2()));
        assert!(CLASSIC_BOUNDS.windows(2).all(|pair| pair[1] == pair[0] * 2.0));
    }

    #[test]
    fn every_bound_cuts_exactly() {
        for bound in CLASSIC_BOUNDS {
            let mut h = ExponentialHistogram::default();
            h.record(bound, 1.0);
            h.record(bound.next_up(), 1.0);
            assert_eq!(h.count_at_most(bound), 1.0, "{bound}");
        }
    }

    #[test]
    fn le_reads_as_prometheus_stores_it() {
        let le: Vec<String> = CLASSIC_BOUNDS.iter().map(|bound| classic_le(*bound)).collect();
        assert_eq!(le[0], "6.103515625e-05");
        assert_eq!(le[1], "0.0001220703125");
        assert_eq!(le[13..=15], ["0.5", "1.0", "2.0"]);
        assert_eq!(le[33..], ["524288.0", "1.048576e+06"]);
        assert_eq!(classic_le(f64::INFINITY), "+Inf");
        assert_eq!(classic_le(-0.0), "-0.0");
    }

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
