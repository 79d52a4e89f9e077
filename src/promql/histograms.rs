//! Functions of whole histograms, native and classic: quantiles, fractions, variance.

use hashbrown::HashMap;

use super::QueryError;
use super::eval::{Evaluator, Grid};
use super::functions::arg;
use super::node::{Node, Span};
use super::quantile::{self, ClassicBucket};
use super::value::{StepSeries, merge_same_labels};
use crate::model::{ExponentialHistogram, Labels, METRIC_NAME, Value};

/// The label of a classic bucket's upper bound.
const LE: &str = "le";

/// `histogram_quantile(q, v)`.
pub(super) fn quantile(evaluator: &Evaluator<'_>, args: &[Node], grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let (q_node, node) = (arg(args, 0)?, arg(args, 1)?);
    let q = evaluator.eval_scalar(q_node, grid)?;
    for q in q.iter().filter(|q| !(0.0..=1.0).contains(*q)) {
        evaluator.notes.invalid_quantile(q_node.span, *q);
    }
    let at = |step: usize| q.get(step).copied().unwrap_or(f64::NAN);
    let of_buckets = |step: usize, buckets: Vec<ClassicBucket>| {
        let (value, is_forced) = quantile::of_buckets(at(step), buckets);
        if is_forced {
            // Prometheus has taken the name away by then.
            evaluator.notes.forced_monotonicity(node.span, "");
        }
        value
    };
    each(evaluator, node, grid, &|step, h| h.quantile(at(step)), &of_buckets)
}

/// `histogram_fraction(lower, upper, v)`.
pub(super) fn fraction(evaluator: &Evaluator<'_>, args: &[Node], grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let (lower, upper) = (evaluator.eval_scalar(arg(args, 0)?, grid)?, evaluator.eval_scalar(arg(args, 1)?, grid)?);
    let at = |step: usize, bound: &[f64]| bound.get(step).copied().unwrap_or(f64::NAN);
    let native = |step, h: &ExponentialHistogram| fraction_of(at(step, &lower), at(step, &upper), h);
    let classic = |step, buckets| quantile::fraction_of_buckets(at(step, &lower), at(step, &upper), buckets);
    each(evaluator, arg(args, 2)?, grid, &native, &classic)
}

/// One value for each histogram of a vector at each step: those that are native, and those that classic buckets make up.
fn each(
    evaluator: &Evaluator<'_>,
    node: &Node,
    grid: &Grid,
    native: &dyn Fn(usize, &ExponentialHistogram) -> f64,
    classic: &dyn Fn(usize, Vec<ClassicBucket>) -> f64,
) -> Result<Vec<StepSeries>, QueryError> {
    let vector = evaluator.eval_vector(node, grid)?;
    let ladders = ladders(evaluator, &vector, node.span);
    let buckets_at = |buckets: &[(f64, &StepSeries)], step: usize| -> Vec<ClassicBucket> {
        let bucket = |(upper, series): &(f64, &StepSeries)| {
            Some(ClassicBucket { upper: *upper, count: series.at(step)?.as_float()? })
        };
        buckets.iter().filter_map(bucket).collect()
    };
    let mut result = Vec::new();
    for series in &vector {
        let twin = ladders.get(&series.labels);
        let mut values = vec![None; grid.steps];
        for (step, slot) in values.iter_mut().enumerate() {
            evaluator.check_deadline()?;
            let Some(h) = series.at(step).and_then(Value::as_histogram) else { continue };
            // Where both forms of one histogram meet, neither is evaluated.
            if twin.is_some_and(|twin| !buckets_at(twin, step).is_empty()) {
                evaluator.notes.mixed_classic_native(node.span, series.labels.name());
            } else {
                *slot = Some(Value::Float(native(step, h)));
            }
        }
        result.push(StepSeries { labels: series.labels.without_name(), values });
    }
    let natives: HashMap<&Labels, &StepSeries> = vector.iter().map(|s| (&s.labels, s)).collect();
    for (labels, buckets) in &ladders {
        let twin = natives.get(labels);
        let mut values = vec![None; grid.steps];
        for (step, slot) in values.iter_mut().enumerate() {
            evaluator.check_deadline()?;
            let buckets = buckets_at(buckets, step);
            let is_alone = twin.is_none_or(|twin| twin.at(step).and_then(Value::as_histogram).is_none());
            if is_alone && !buckets.is_empty() {
                *slot = Some(Value::Float(classic(step, buckets)));
            }
        }
        result.push(StepSeries { labels: labels.without_name(), values });
    }
    result.retain(|s| s.values.iter().any(Option::is_some));
    result.sort_by(|a, b| a.labels.cmp(&b.labels));
    merge_same_labels(result)
}

/// Float series that differ in nothing but `le` are the buckets of one classic histogram: its labels without `le`, and the
/// buckets with their upper bounds.
fn ladders<'a>(
    evaluator: &Evaluator<'_>,
    vector: &'a [StepSeries],
    span: Span,
) -> HashMap<Labels, Vec<(f64, &'a StepSeries)>> {
    let mut ladders: HashMap<Labels, Vec<(f64, &StepSeries)>> = HashMap::new();
    for series in vector {
        if !series.values.iter().flatten().any(|value| value.as_float().is_some()) {
            continue;
        }
        let le = series.labels.get(LE).unwrap_or("");
        match le.parse::<f64>() {
            Ok(upper) => ladders.entry(series.labels.with(LE, "")).or_default().push((upper, series)),
            Err(_) => evaluator.notes.bad_bucket_label(span, series.labels.get(METRIC_NAME).unwrap_or(""), le),
        }
    }
    ladders
}

/// The part of all observations that lies between two bounds (`HistogramFraction`).
fn fraction_of(lower: f64, upper: f64, h: &ExponentialHistogram) -> f64 {
    let count = h.count();
    if count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let is_empty = |counts: &[f64]| counts.iter().all(|count| *count == 0.0);
    let (no_negative, no_positive) = (is_empty(&h.negative().counts), is_empty(&h.positive().counts));
    let buckets = h.buckets();
    let rank_of = |bound: f64| {
        let mut rank = 0.0;
        for bucket in &buckets {
            let mut bucket = *bucket;
            let is_zero = bucket.lower <= 0.0 && bucket.upper >= 0.0;
            match (is_zero, no_negative, no_positive) {
                (true, true, false) => bucket.lower = 0.0,
                (true, false, true) => bucket.upper = 0.0,
                _ => {}
            }
            if bucket.lower >= bound {
                return rank;
            }
            if bucket.upper > bound {
                let part = if is_zero {
                    (bound - bucket.lower) / (bucket.upper - bucket.lower)
                } else {
                    let (from, to, at) = (bucket.lower.abs().log2(), bucket.upper.abs().log2(), bound.abs().log2());
                    if bound > 0.0 { (at - from) / (to - from) } else { 1.0 - (at - to) / (from - to) }
                };
                return rank + bucket.count * part;
            }
            rank += bucket.count;
        }
        count
    };
    let capped = |rank: f64| if rank > count { count } else { rank };
    (capped(rank_of(upper)) - capped(rank_of(lower))) / count
}

/// The variance of the observations, each taken to be the geometric mean of its bucket (`histogramVariance`).
pub(super) fn variance(h: &ExponentialHistogram) -> f64 {
    let mean = h.sum() / h.count();
    let squares = h.buckets().into_iter().map(|bucket| {
        let value = if bucket.lower <= 0.0 && bucket.upper >= 0.0 {
            0.0
        } else {
            (bucket.upper * bucket.lower).sqrt().copysign(bucket.upper)
        };
        bucket.count * (value - mean) * (value - mean)
    });
    super::range::sum(squares) / h.count()
}
