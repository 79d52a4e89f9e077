//! Functions of whole histograms, native and classic: quantiles, fractions, variance.

use hashbrown::HashMap;

use super::QueryError;
use super::eval::{Evaluator, Grid};
use super::functions::arg;
use super::node::{Expr, Node, Span};
use super::quantile::{self, ClassicBucket};
use super::value::{StepSeries, merge_same_labels};
use crate::model::{ExponentialHistogram, Labels, METRIC_NAME, Value, classic_le};

/// The label of a classic bucket's upper bound.
const LE: &str = "le";

/// `histogram_quantile(q, v)`.
pub(super) fn quantile(evaluator: &Evaluator<'_>, args: &[Node], grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let (q_node, node) = (arg(args, 0)?, arg(args, 1)?);
    let q = checked_quantiles(evaluator, q_node, grid)?;
    let vector = evaluator.eval_vector(node, grid)?;
    of_quantile(evaluator, &q, &vector, node.span, grid)
}

/// `histogram_quantiles(v, label, q...)`: each quantile under its label.
pub(super) fn quantiles(evaluator: &Evaluator<'_>, args: &[Node], grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let node = arg(args, 0)?;
    let Expr::Text(label) = &arg(args, 1)?.expr else { return Ok(Vec::new()) };
    let vector = evaluator.eval_vector(node, grid)?;
    let mut result: Vec<StepSeries> = Vec::new();
    for q_node in args.iter().skip(2) {
        let q = checked_quantiles(evaluator, q_node, grid)?;
        let mut distinct: Vec<u64> = q.iter().map(|q| q.to_bits()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        for bits in distinct {
            let text = classic_le(f64::from_bits(bits));
            for mut series in of_quantile(evaluator, &q, &vector, node.span, grid)? {
                for (value, q) in series.values.iter_mut().zip(&q) {
                    *value = value.take().filter(|_| q.to_bits() == bits);
                }
                evaluator.count_labels(series.labels.bytes())?;
                series.labels = series.labels.with(label, &text);
                result.push(series);
            }
            evaluator.check_room(result.len().saturating_mul(grid.steps))?;
        }
    }
    merge_same_labels(result)
}

/// The quantiles asked for at each step, with a warning of those that are none.
fn checked_quantiles(evaluator: &Evaluator<'_>, node: &Node, grid: &Grid) -> Result<Vec<f64>, QueryError> {
    let q = evaluator.eval_scalar(node, grid)?;
    for q in q.iter().filter(|q| !(0.0..=1.0).contains(*q)) {
        evaluator.notes.invalid_quantile(node.span, *q);
    }
    Ok(q)
}

fn of_quantile(
    evaluator: &Evaluator<'_>,
    q: &[f64],
    vector: &[StepSeries],
    span: Span,
    grid: &Grid,
) -> Result<Vec<StepSeries>, QueryError> {
    let at = |step: usize| q.get(step).copied().unwrap_or(f64::NAN);
    let of_buckets = |step: usize, buckets: Vec<ClassicBucket>| {
        let (value, is_forced) = quantile::of_buckets(at(step), buckets);
        if is_forced {
            // Prometheus has taken the name away by then.
            evaluator.notes.forced_monotonicity(span, "");
        }
        value
    };
    each(evaluator, vector, span, grid, &|step, h| h.quantile(at(step)), &of_buckets)
}

/// `histogram_fraction(lower, upper, v)`.
pub(super) fn fraction(evaluator: &Evaluator<'_>, args: &[Node], grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let (lower, upper) = (evaluator.eval_scalar(arg(args, 0)?, grid)?, evaluator.eval_scalar(arg(args, 1)?, grid)?);
    let at = |step: usize, bound: &[f64]| bound.get(step).copied().unwrap_or(f64::NAN);
    let native = |step, h: &ExponentialHistogram| fraction_of(at(step, &lower), at(step, &upper), h);
    let classic = |step, buckets| quantile::fraction_of_buckets(at(step, &lower), at(step, &upper), buckets);
    let node = arg(args, 2)?;
    let vector = evaluator.eval_vector(node, grid)?;
    each(evaluator, &vector, node.span, grid, &native, &classic)
}

/// One value for each histogram of a vector at each step: those that are native, and those that classic buckets make up.
fn each(
    evaluator: &Evaluator<'_>,
    vector: &[StepSeries],
    span: Span,
    grid: &Grid,
    native: &dyn Fn(usize, &ExponentialHistogram) -> f64,
    classic: &dyn Fn(usize, Vec<ClassicBucket>) -> f64,
) -> Result<Vec<StepSeries>, QueryError> {
    let ladders = ladders(evaluator, vector, span);
    let buckets_at = |buckets: &[(f64, &StepSeries)], step: usize| -> Vec<ClassicBucket> {
        let bucket = |(upper, series): &(f64, &StepSeries)| {
            Some(ClassicBucket { upper: *upper, count: series.at(step)?.as_float()? })
        };
        buckets.iter().filter_map(bucket).collect()
    };
    let mut result = Vec::new();
    for series in vector {
        let twin = ladders.get(&series.labels);
        let mut values = vec![None; grid.steps];
        for (step, slot) in values.iter_mut().enumerate() {
            evaluator.check_deadline()?;
            let Some(h) = series.at(step).and_then(Value::as_histogram) else { continue };
            // Where both forms of one histogram meet, neither is evaluated.
            if twin.is_some_and(|twin| !buckets_at(twin, step).is_empty()) {
                evaluator.notes.mixed_classic_native(span, series.labels.name());
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
