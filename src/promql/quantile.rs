//! Quantiles: of plain values, and of classic buckets (`promql/quantile.go` of Prometheus 3).

/// One classic bucket at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClassicBucket {
    pub(super) upper: f64,
    /// The cumulative count at or below `upper`.
    pub(super) count: f64,
}

/// Relative differences up to this are rounding, not a bucket that shrank (`smallDeltaTolerance`).
const SMALL_DELTA: f64 = 1e-12;

/// The `q`-quantile of values in any order, interpolated linearly between ranks. NaNs rank lowest.
pub(super) fn of_values(q: f64, values: &mut [f64]) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    let order =
        |a: &f64, b: &f64| b.is_nan().cmp(&a.is_nan()).then(a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let rank = q * (values.len() - 1) as f64;
    let weight = rank - rank.floor();
    // Not sorted: a window may have millions of values.
    let (_, lower, above) = values.select_nth_unstable_by(rank as usize, order);
    let upper = above.iter().copied().min_by(order).unwrap_or(*lower);
    *lower * (1.0 - weight) + upper * weight
}

/// The `q`-quantile of classic buckets, interpolated linearly within a bucket, and whether a count had to be raised to the
/// one below it.
pub(super) fn of_buckets(q: f64, mut buckets: Vec<ClassicBucket>) -> (f64, bool) {
    if q.is_nan() {
        return (f64::NAN, false);
    }
    if q < 0.0 {
        return (f64::NEG_INFINITY, false);
    }
    if q > 1.0 {
        return (f64::INFINITY, false);
    }
    if !tidy(&mut buckets) {
        return (f64::NAN, false);
    }
    let is_forced = make_monotonic(&mut buckets);
    let [.., highest] = buckets.as_slice() else { return (f64::NAN, false) };
    if buckets.len() < 2 || highest.count == 0.0 {
        return (f64::NAN, false);
    }
    (of_monotonic(q, &buckets), is_forced)
}

/// The part of all observations that lies between two bounds (`BucketFraction`).
pub(super) fn fraction_of_buckets(lower: f64, upper: f64, mut buckets: Vec<ClassicBucket>) -> f64 {
    if !tidy(&mut buckets) {
        return f64::NAN;
    }
    let count = buckets.last().map_or(0.0, |bucket| bucket.count);
    if count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let rank_of = |bound: f64| {
        let (mut below, mut rank) = (f64::NEG_INFINITY, 0.0);
        for bucket in &buckets {
            if below >= bound {
                return rank;
            }
            if bucket.upper > bound {
                return rank + (bucket.count - rank) * (bound - below) / (bucket.upper - below);
            }
            (below, rank) = (bucket.upper, bucket.count);
        }
        count
    };
    let capped = |rank: f64| if rank > count { count } else { rank };
    (capped(rank_of(upper)) - capped(rank_of(lower))) / count
}

/// Sorts and coalesces buckets. False if none of them has no upper bound.
fn tidy(buckets: &mut Vec<ClassicBucket>) -> bool {
    buckets.sort_by(|a, b| a.upper.partial_cmp(&b.upper).unwrap_or(std::cmp::Ordering::Equal));
    coalesce(buckets);
    buckets.last().is_some_and(|highest| highest.upper == f64::INFINITY)
}

fn of_monotonic(q: f64, buckets: &[ClassicBucket]) -> f64 {
    let [below @ .., second, highest] = buckets else { return f64::NAN };
    let rank = q * highest.count;
    let finite = below.len() + 1;
    let at = buckets.iter().take(finite).position(|bucket| bucket.count >= rank).unwrap_or(finite);
    let Some(found) = buckets.get(at).filter(|_| at < finite) else { return second.upper };
    let before = at.checked_sub(1).and_then(|at| buckets.get(at));
    match before {
        None if found.upper <= 0.0 => found.upper,
        None => found.upper * (rank / found.count),
        Some(before) => {
            before.upper + (found.upper - before.upper) * ((rank - before.count) / (found.count - before.count))
        }
    }
}

/// Adds up buckets of the same bound.
fn coalesce(buckets: &mut Vec<ClassicBucket>) {
    buckets.dedup_by(|later, earlier| {
        let same = later.upper == earlier.upper;
        if same {
            earlier.count += later.count;
        }
        same
    });
}

/// Cumulative counts must not fall: where they do, or differ by rounding only, the lower bucket's count holds. Whether one
/// did fall.
fn make_monotonic(buckets: &mut [ClassicBucket]) -> bool {
    let (mut previous, mut is_forced) = (f64::NAN, false);
    for bucket in buckets {
        if almost_equal(previous, bucket.count) {
            bucket.count = previous;
        } else if bucket.count < previous {
            bucket.count = previous;
            is_forced = true;
        } else {
            previous = bucket.count;
        }
    }
    is_forced
}

/// Prometheus's `almost.Equal`, with NaN unequal to everything.
fn almost_equal(a: f64, b: f64) -> bool {
    if a == b {
        return true;
    }
    let (sum, difference) = (a.abs() + b.abs(), (a - b).abs());
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return difference < SMALL_DELTA * f64::MIN_POSITIVE;
    }
    difference / sum.min(f64::MAX) < SMALL_DELTA
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_buckets(q: f64, buckets: Vec<ClassicBucket>) -> f64 {
        super::of_buckets(q, buckets).0
    }

    #[test]
    fn quantiles_of_values_interpolate_between_ranks() {
        assert_eq!(of_values(0.5, &mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(of_values(0.25, &mut [1.0, 2.0]), 1.25);
        assert_eq!(of_values(1.0, &mut [1.0, f64::NAN]), 1.0);
        assert!(of_values(0.0, &mut [1.0, f64::NAN]).is_nan());
        assert_eq!(of_values(-0.1, &mut [1.0]), f64::NEG_INFINITY);
        assert_eq!(of_values(1.1, &mut [1.0]), f64::INFINITY);
        assert!(of_values(0.5, &mut []).is_nan());
    }

    /// `testhistogram3{start="positive"}` of Prometheus's own tests.
    fn buckets() -> Vec<ClassicBucket> {
        [(0.1, 5.0), (0.2, 7.0), (1e100, 9.0), (f64::INFINITY, 9.0)]
            .map(|(upper, count)| ClassicBucket { upper, count })
            .to_vec()
    }

    #[test]
    fn quantiles_of_buckets_are_those_of_prometheus() {
        assert_eq!(of_buckets(0.0, buckets()), 0.0);
        assert!((of_buckets(0.25, buckets()) - 0.045).abs() < 1e-12);
        assert!((of_buckets(0.5, buckets()) - 0.09).abs() < 1e-12);
        assert!((of_buckets(0.7, buckets()) - 0.165).abs() < 1e-12);
        assert_eq!(of_buckets(1.0, buckets()), 1e100);
    }

    #[test]
    fn buckets_without_infinity_or_observations_have_no_quantile() {
        let mut no_infinity = buckets();
        no_infinity.pop();
        assert!(of_buckets(0.5, no_infinity).is_nan());
        assert!(of_buckets(0.5, vec![ClassicBucket { upper: f64::INFINITY, count: 3.0 }]).is_nan());
        assert!(of_buckets(0.5, Vec::new()).is_nan());
        let falling = [(1.0, 10.0), (2.0, 5.0), (f64::INFINITY, 10.0)];
        assert_eq!(of_buckets(1.0, falling.map(|(upper, count)| ClassicBucket { upper, count }).to_vec()), 1.0);
    }
}
