//! The fixed ladder of classic buckets: what scrapers without native histograms and `h_bucket{le="..."}` see.
//!
//! Every bound is a power of two and so a boundary of every schema from 0 on: the counts are exact, and since the
//! ladder is the same in every series and every collector, `sum by (le)` is right.

/// The exponents of the lowest and the highest bound: 2^-14 (61 µs, if seconds are counted) and 2^20 (12 days).
const EXPONENT_MIN: i32 = -14;
/// One bound for each power of two, both ends included.
const LEN: usize = 35;

/// The upper bounds of the classic buckets in ascending order, `+Inf` left out: 2^-14, 2^-13 … 2^20.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExponentialHistogram;

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
}
