//! Aggregations: many series of a group become one, at each step.

use hashbrown::HashMap;

use super::annotations::shortest;
use super::eval::{Evaluator, Grid};
use super::node::{Aggregate, AggregateOp, Expr, Grouping, Span};
use super::range::Mean;
use super::value::{StepSeries, histogram};
use super::{QueryError, quantile, xxhash};
use crate::model::{ExponentialHistogram, Labels, Value, format_float};

pub(super) fn eval(
    evaluator: &Evaluator<'_>,
    node: &Aggregate,
    span: Span,
    grid: &Grid,
) -> Result<Vec<StepSeries>, QueryError> {
    let (mut param, mut label, mut param_span) = (Vec::new(), "", span);
    if let Some(node) = &node.param {
        param_span = node.span;
        match &node.expr {
            Expr::Text(text) if text.is_empty() => {
                return Err(QueryError::Execution("invalid label name \"\"".to_owned()));
            }
            Expr::Text(text) => label = text,
            _ => param = evaluator.eval_scalar(node, grid)?,
        }
    }
    let series = evaluator.eval_vector(&node.inner, grid)?;
    match node.op {
        AggregateOp::CountValues => count_values(evaluator, series, label, &node.grouping, grid),
        AggregateOp::TopK | AggregateOp::BottomK | AggregateOp::LimitK => {
            extremes(evaluator, series, node, span, &param)
        }
        AggregateOp::LimitRatio => limit_ratio(evaluator, series, &param, param_span),
        _ => {
            if node.op == AggregateOp::Quantile {
                warn_of_quantiles(evaluator, &param, param_span);
            }
            grouped(evaluator, &series, node, &param, grid)
        }
    }
}

/// NaN, the greatest above 1 and the least below 0.
fn warn_of_quantiles(evaluator: &Evaluator<'_>, param: &[f64], span: Span) {
    let most = param.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = param.iter().copied().fold(f64::INFINITY, f64::min);
    let nan = param.iter().copied().find(|q| q.is_nan());
    for q in nan.into_iter().chain(Some(most).filter(|q| *q > 1.0)).chain(Some(least).filter(|q| *q < 0.0)) {
        evaluator.notes.invalid_quantile(span, q);
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
    node: &Aggregate,
    param: &[f64],
    grid: &Grid,
) -> Result<Vec<StepSeries>, QueryError> {
    let (numbers, groups) = group(series, &node.grouping);
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
            if let Some(value) = aggregate(evaluator, node, members, param) {
                group.set(step, value);
            }
        }
    }
    result.retain(|group| group.values.iter().any(Option::is_some));
    Ok(result)
}

fn aggregate(evaluator: &Evaluator<'_>, node: &Aggregate, members: &[&Value], param: f64) -> Option<Value> {
    if members.is_empty() {
        return None;
    }
    let floats = || members.iter().filter_map(|value| value.as_float());
    let has_histograms = members.iter().any(|value| value.as_histogram().is_some());
    let ignores = match node.op {
        AggregateOp::Min => "min",
        AggregateOp::Max => "max",
        AggregateOp::StdVar => "stdvar",
        AggregateOp::StdDev => "stddev",
        AggregateOp::Quantile => "quantile",
        _ => "",
    };
    if has_histograms && !ignores.is_empty() {
        evaluator.notes.ignored_in_aggregation(node.inner.span, ignores);
    }
    match node.op {
        AggregateOp::Count => Some(Value::Float(members.len() as f64)),
        AggregateOp::Group => Some(Value::Float(1.0)),
        AggregateOp::Sum | AggregateOp::Avg => {
            let is_avg = node.op == AggregateOp::Avg;
            if !has_histograms {
                return if is_avg {
                    Mean::of(floats()).map(Value::Float)
                } else {
                    Some(Value::Float(super::range::sum(floats())))
                };
            }
            if floats().next().is_some() {
                // Floats and histograms do not add up: Prometheus leaves such a group out.
                evaluator.notes.mixed_in_aggregation(node.inner.span);
                return None;
            }
            let histograms = members.iter().filter_map(|value| value.as_histogram());
            if is_avg { mean_of_histograms(histograms) } else { sum_histograms(histograms) }.map(histogram)
        }
        AggregateOp::Min => floats().reduce(|a, b| if a > b || a.is_nan() { b } else { a }).map(Value::Float),
        AggregateOp::Max => floats().reduce(|a, b| if a < b || a.is_nan() { b } else { a }).map(Value::Float),
        AggregateOp::StdVar => variance(floats()).map(Value::Float),
        AggregateOp::StdDev => variance(floats()).map(|variance| Value::Float(variance.sqrt())),
        AggregateOp::Quantile => {
            let mut values: Vec<f64> = floats().collect();
            (!values.is_empty()).then(|| Value::Float(quantile::of_values(param, &mut values)))
        }
        _ => None,
    }
}

/// The sum of histograms, `None` of none. Sums and counts are compensated like those of floats.
pub(super) fn sum_histograms<'a>(
    histograms: impl Iterator<Item = &'a ExponentialHistogram> + Clone,
) -> Option<ExponentialHistogram> {
    let mut rest = histograms.clone();
    let mut merged = rest.next()?.clone();
    rest.for_each(|h| merged.add(h));
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

/// The mean of histograms, `None` of none. One after the other, as Prometheus does: where a quantile of it falls between two
/// buckets, the last bit decides.
pub(super) fn mean_of_histograms<'a>(
    mut histograms: impl Iterator<Item = &'a ExponentialHistogram>,
) -> Option<ExponentialHistogram> {
    let mut mean = histograms.next()?.clone();
    let mut count = 1.0;
    for h in histograms {
        count += 1.0;
        let mut more = h.divided(count);
        more.subtract(&mean.divided(count));
        mean.add(&more);
    }
    Some(mean)
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

/// `topk`, `bottomk` and `limitk`: the series themselves, where they are among the k of their group. At a single step, in
/// order.
fn extremes(
    evaluator: &Evaluator<'_>,
    mut series: Vec<StepSeries>,
    node: &Aggregate,
    span: Span,
    param: &[f64],
) -> Result<Vec<StepSeries>, QueryError> {
    if param.iter().all(|k| *k < 1.0) {
        return Ok(Vec::new());
    }
    let (numbers, groups) = group(&series, &node.grouping);
    let mut order = Vec::new();
    let mut members: Vec<Vec<(usize, Value)>> = vec![Vec::new(); groups.len()];
    let is_top = node.op == AggregateOp::TopK;
    for (step, k) in param.iter().enumerate() {
        evaluator.check_deadline()?;
        members.iter_mut().for_each(Vec::clear);
        for (at, (series, number)) in series.iter_mut().zip(&numbers).enumerate() {
            // Taken out here and put back if it is among the k.
            let value = series.values.get_mut(step).and_then(Option::take);
            let (Some(value), Some(members)) = (value, members.get_mut(*number)) else { continue };
            if k.is_nan() || k.abs() >= i64::MAX as f64 {
                return Err(QueryError::Execution(format!("Scalar value {} overflows int64", shortest(*k))));
            }
            if node.op == AggregateOp::LimitK {
                if (members.len() as f64) < k.floor() {
                    members.push((at, value));
                }
            } else if value.as_float().is_some() {
                keep_extreme(members, (at, value), k.max(0.0) as usize, is_top);
            } else if *k >= 1.0 {
                // Histograms have no order.
                evaluator.notes.ignored_in_aggregation(span, if is_top { "topk" } else { "bottomk" });
            }
        }
        order.clear();
        for members in &mut members {
            if node.op != AggregateOp::LimitK {
                members.sort_by(|a, b| compare(float(a), float(b), is_top));
            }
            order.append(members);
        }
        for (at, value) in &order {
            if let Some(series) = series.get_mut(*at) {
                series.set(step, value.clone());
            }
        }
    }
    if param.len() == 1 {
        return Ok(order.iter().filter_map(|(at, _)| series.get(*at).cloned()).collect());
    }
    series.retain(|series| series.values.iter().any(Option::is_some));
    Ok(series)
}

/// A series, and its value at the step.
fn float(member: &(usize, Value)) -> f64 {
    member.1.as_float().unwrap_or(f64::NAN)
}

/// Takes `new` among the `k` greatest or least: a heap whose root goes first. Of equal values the same go as in Prometheus,
/// since it is the same heap (Go's `container/heap`).
fn keep_extreme(heap: &mut Vec<(usize, Value)>, new: (usize, Value), k: usize, is_top: bool) {
    let goes_before = |a: f64, b: f64| a.is_nan() || if is_top { a < b } else { a > b };
    let is_less = |heap: &[(usize, Value)], a: usize, b: usize| match (heap.get(a), heap.get(b)) {
        (Some(a), Some(b)) => goes_before(float(a), float(b)),
        _ => false,
    };
    if heap.len() < k {
        heap.push(new);
        let mut at = heap.len() - 1;
        while at > 0 && is_less(heap, at, (at - 1) / 2) {
            heap.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        return;
    }
    let Some(root) = heap.first_mut() else { return };
    let (old, value) = (float(root), float(&new));
    let is_better = if old.is_nan() { !value.is_nan() } else { goes_before(old, value) && !value.is_nan() };
    if !is_better {
        return;
    }
    *root = new;
    let mut at = 0;
    loop {
        let left = 2 * at + 1;
        if left >= heap.len() {
            return;
        }
        let child = if left + 1 < heap.len() && is_less(heap, left + 1, left) { left + 1 } else { left };
        if !is_less(heap, child, at) {
            return;
        }
        heap.swap(at, child);
        at = child;
    }
}

/// `limit_ratio`: those series whose hash, as a part of all hashes, lies below the ratio; below zero: the others.
fn limit_ratio(
    evaluator: &Evaluator<'_>,
    mut series: Vec<StepSeries>,
    param: &[f64],
    span: Span,
) -> Result<Vec<StepSeries>, QueryError> {
    for (extreme, cap) in [(f64::max as fn(f64, f64) -> f64, 1.0), (f64::min, -1.0)] {
        let ratio = param.iter().copied().fold(-cap, extreme);
        if ratio.abs() > 1.0 {
            evaluator.notes.invalid_ratio(span, ratio, cap);
        }
    }
    for series in &mut series {
        evaluator.check_deadline()?;
        let place = xxhash::of_labels(&series.labels) as f64 / u64::MAX as f64;
        for (value, ratio) in series.values.iter_mut().zip(param) {
            if value.is_some() && ratio.is_nan() {
                return Err(QueryError::Execution("Ratio value NaN is NaN".to_owned()));
            }
            let is_in = if *ratio >= 0.0 { place < *ratio } else { place >= 1.0 + ratio.max(-1.0) };
            *value = value.take().filter(|_| is_in);
        }
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
    let mut grouping = grouping.clone();
    if grouping.only {
        grouping.labels.push(label.to_owned());
    }
    let mut counts: HashMap<Labels, Vec<Option<Value>>> = HashMap::new();
    for series in series {
        evaluator.check_deadline()?;
        for (step, value) in series.values.into_iter().enumerate() {
            let text = match value {
                None => continue,
                Some(Value::Float(value)) => format_float(value),
                Some(Value::Histogram(h)) => describe(&h),
            };
            let key = grouping.key(&series.labels.with(label, &text));
            if !counts.contains_key(&key) {
                evaluator.check_room(counts.len().saturating_add(1).saturating_mul(grid.steps))?;
                evaluator.count_labels(key.bytes())?;
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

/// A histogram as text (`FloatHistogram.String`).
fn describe(h: &ExponentialHistogram) -> String {
    let mut text = format!("{{count:{}, sum:{}", shortest(h.count()), shortest(h.sum()));
    for bucket in h.buckets() {
        let (open, close) = match (bucket.lower < 0.0, bucket.upper > 0.0) {
            (true, true) => ('[', ']'),
            (true, false) => ('[', ')'),
            _ => ('(', ']'),
        };
        let (lower, upper) = (shortest(bucket.lower), shortest(bucket.upper));
        text.push_str(&format!(", {open}{lower},{upper}{close}:{}", shortest(bucket.count)));
    }
    text.push('}');
    text
}
