//! Aggregations: many series of a group become one, at each step.

use hashbrown::HashMap;

use super::QueryError;
use super::eval::{Evaluator, Grid};
use super::node::{Aggregate, AggregateOp, Grouping};
use super::quantile;
use super::range::Mean;
use super::value::{StepSeries, histogram};
use crate::model::{ExponentialHistogram, Labels, Value, format_float};

pub(super) fn eval(evaluator: &Evaluator<'_>, node: &Aggregate, grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let param = match &node.op {
        AggregateOp::TopK(param) | AggregateOp::BottomK(param) | AggregateOp::Quantile(param) => {
            evaluator.eval_scalar(param, grid)?
        }
        _ => Vec::new(),
    };
    let series = evaluator.eval_vector(&node.inner, grid)?;
    match &node.op {
        AggregateOp::CountValues(label) => count_values(evaluator, series, label, &node.grouping, grid),
        AggregateOp::TopK(_) => extremes(evaluator, series, &node.grouping, &param, true),
        AggregateOp::BottomK(_) => extremes(evaluator, series, &node.grouping, &param, false),
        op => grouped(evaluator, &series, op, &node.grouping, &param, grid),
    }
}

/// The number of each series' group, and the labels of each group in the order of their first series.
fn group(series: &[StepSeries], grouping: &Grouping) -> (Vec<usize>, Vec<Labels>) {
    let mut numbers: HashMap<Labels, usize> = HashMap::new();
    let mut groups = Vec::new();
    let number = |series: &StepSeries| {
        let key = grouping.key(&series.labels);
        *numbers.entry(key).or_insert_with_key(|key| {
            groups.push(key.clone());
            groups.len() - 1
        })
    };
    (series.iter().map(number).collect(), groups)
}

fn grouped(
    evaluator: &Evaluator<'_>,
    series: &[StepSeries],
    op: &AggregateOp,
    grouping: &Grouping,
    param: &[f64],
    grid: &Grid,
) -> Result<Vec<StepSeries>, QueryError> {
    let (numbers, groups) = group(series, grouping);
    evaluator.check_room(groups.len().saturating_mul(grid.steps))?;
    let mut result: Vec<StepSeries> = groups.into_iter().map(|labels| StepSeries::empty(labels, grid.steps)).collect();
    let mut members: Vec<Vec<&Value>> = vec![Vec::new(); result.len()];
    for step in 0..grid.steps {
        evaluator.check_deadline()?;
        members.iter_mut().for_each(Vec::clear);
        for (series, number) in series.iter().zip(&numbers) {
            if let (Some(value), Some(members)) = (series.at(step), members.get_mut(*number)) {
                members.push(value);
            }
        }
        let param = param.get(step).copied().unwrap_or(f64::NAN);
        for (group, members) in result.iter_mut().zip(&members) {
            if let Some(value) = aggregate(op, members, param) {
                group.set(step, value);
            }
        }
    }
    result.retain(|group| group.values.iter().any(Option::is_some));
    Ok(result)
}

fn aggregate(op: &AggregateOp, members: &[&Value], param: f64) -> Option<Value> {
    if members.is_empty() {
        return None;
    }
    let floats = || members.iter().filter_map(|value| value.as_float());
    match op {
        AggregateOp::Count => Some(Value::Float(members.len() as f64)),
        AggregateOp::Group => Some(Value::Float(1.0)),
        AggregateOp::Sum | AggregateOp::Avg => {
            let is_avg = matches!(op, AggregateOp::Avg);
            let histograms = members.iter().filter(|value| value.as_histogram().is_some()).count();
            match histograms {
                0 if is_avg => Mean::of(floats()).map(Value::Float),
                0 => Some(Value::Float(super::range::sum(floats()))),
                all if all == members.len() => {
                    let sum = sum_histograms(members.iter().filter_map(|value| value.as_histogram()))?;
                    Some(histogram(if is_avg { sum.divided(all as f64) } else { sum }))
                }
                // Floats and histograms do not add up: Prometheus leaves such a group out.
                _ => None,
            }
        }
        AggregateOp::Min => floats().reduce(|a, b| if a > b || a.is_nan() { b } else { a }).map(Value::Float),
        AggregateOp::Max => floats().reduce(|a, b| if a < b || a.is_nan() { b } else { a }).map(Value::Float),
        AggregateOp::StdVar => variance(floats()).map(Value::Float),
        AggregateOp::StdDev => variance(floats()).map(|variance| Value::Float(variance.sqrt())),
        AggregateOp::Quantile(_) => {
            let mut values: Vec<f64> = floats().collect();
            (!values.is_empty()).then(|| Value::Float(quantile::of_values(param, &mut values)))
        }
        AggregateOp::TopK(_) | AggregateOp::BottomK(_) | AggregateOp::CountValues(_) => None,
    }
}

/// The sum of histograms, `None` of none. Sums and counts are compensated like those of floats.
pub(super) fn sum_histograms<'a>(
    histograms: impl Iterator<Item = &'a ExponentialHistogram> + Clone,
) -> Option<ExponentialHistogram> {
    let mut rest = histograms.clone();
    let mut merged = rest.next()?.clone();
    rest.for_each(|h| merged.merge(h));
    let exact = ExponentialHistogram::from_parts(
        merged.schema(),
        super::range::sum(histograms.clone().map(ExponentialHistogram::zero_count)),
        super::range::sum(histograms.clone().map(ExponentialHistogram::count)),
        super::range::sum(histograms.map(ExponentialHistogram::sum)),
        merged.positive().clone(),
        merged.negative().clone(),
    );
    // None where a count is infinite, and then there is nothing to compensate.
    exact.or(Some(merged))
}

/// Welford's algorithm, as in Prometheus's `stdvar`.
fn variance(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        count += 1.0;
        let delta = value - mean;
        mean += delta / count;
        squares += delta * (value - mean);
    }
    (count > 0.0).then(|| squares / count)
}

/// `topk` and `bottomk`: the series themselves, where they are among the k of their group. At a single step, in order.
fn extremes(
    evaluator: &Evaluator<'_>,
    mut series: Vec<StepSeries>,
    grouping: &Grouping,
    param: &[f64],
    is_top: bool,
) -> Result<Vec<StepSeries>, QueryError> {
    if let Some(wrong) = param.iter().find(|k| k.is_nan() || k.abs() >= i64::MAX as f64) {
        return Err(QueryError::Execution(match wrong {
            nan if nan.is_nan() => "Parameter value is NaN".to_owned(),
            low if *low < 0.0 => format!("Scalar value {} underflows int64", format_float(*low)),
            high => format!("Scalar value {} overflows int64", format_float(*high)),
        }));
    }
    let (numbers, groups) = group(&series, grouping);
    let mut order = Vec::new();
    let mut members: Vec<Vec<(usize, f64)>> = vec![Vec::new(); groups.len()];
    for (step, k) in param.iter().enumerate() {
        evaluator.check_deadline()?;
        members.iter_mut().for_each(Vec::clear);
        for (at, (series, number)) in series.iter_mut().zip(&numbers).enumerate() {
            // Taken out here and put back if it is among the k; histograms have no order and stay out.
            let value = series.values.get_mut(step).and_then(Option::take);
            if let (Some(Value::Float(value)), Some(members)) = (value, members.get_mut(*number)) {
                members.push((at, value));
            }
        }
        order.clear();
        for members in &mut members {
            members.sort_by(|a, b| compare(a.1, b.1, is_top));
            order.extend(members.iter().take(k.max(0.0) as usize).copied());
        }
        for (at, value) in &order {
            if let Some(series) = series.get_mut(*at) {
                series.set(step, Value::Float(*value));
            }
        }
    }
    if param.len() == 1 {
        return Ok(order.iter().filter_map(|(at, _)| series.get(*at).cloned()).collect());
    }
    series.retain(|series| series.values.iter().any(Option::is_some));
    Ok(series)
}

/// Descending or ascending, NaN last in both.
pub(super) fn compare(a: f64, b: f64, is_descending: bool) -> std::cmp::Ordering {
    let order = a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal);
    a.is_nan().cmp(&b.is_nan()).then(if is_descending { order.reverse() } else { order })
}

fn count_values(
    evaluator: &Evaluator<'_>,
    series: Vec<StepSeries>,
    label: &str,
    grouping: &Grouping,
    grid: &Grid,
) -> Result<Vec<StepSeries>, QueryError> {
    if series.iter().any(|s| s.values.iter().flatten().any(|value| value.as_histogram().is_some())) {
        return Err(QueryError::unsupported("count_values() of histograms"));
    }
    let mut grouping = grouping.clone();
    if grouping.only {
        grouping.labels.push(label.to_owned());
    }
    let mut counts: HashMap<Labels, Vec<Option<Value>>> = HashMap::new();
    for series in series {
        evaluator.check_deadline()?;
        for (step, value) in series.values.into_iter().enumerate() {
            let Some(Value::Float(value)) = value else { continue };
            let key = grouping.key(&series.labels.with(label, &format_float(value)));
            if !counts.contains_key(&key) {
                evaluator.check_room(counts.len().saturating_add(1).saturating_mul(grid.steps))?;
            }
            let counts = counts.entry(key).or_insert_with(|| vec![None; grid.steps]);
            if let Some(slot) = counts.get_mut(step) {
                let count = slot.as_ref().and_then(Value::as_float).unwrap_or(0.0);
                *slot = Some(Value::Float(count + 1.0));
            }
        }
    }
    let mut result: Vec<StepSeries> =
        counts.into_iter().map(|(labels, values)| StepSeries { labels, values }).collect();
    result.sort_by(|a, b| a.labels.cmp(&b.labels));
    Ok(result)
}
