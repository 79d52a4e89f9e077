//! `anchored` and `smoothed`: windows that know what is just outside of them (`extendedRate` in `promql/functions.go` of
//! Prometheus 3.7). Of floats only.

use super::QueryError;
use super::node::Reach;
use super::range::{Window, WindowFunction};
use super::rate;
use crate::model::{Sample, Value};

/// Refuses functions that would take what is outside of a window for what is in it.
pub(super) fn check(reach: Reach, function: WindowFunction) -> Result<(), QueryError> {
    use WindowFunction::{Changes, Delta, Increase, Rate, Resets};
    let names = match (reach, function) {
        (Reach::Within, _) | (_, Delta | Increase | Rate) | (Reach::Anchored, Changes | Resets) => return Ok(()),
        (Reach::Anchored, _) => "changes, delta, increase, rate, resets",
        (Reach::Smoothed, _) => "delta, increase, rate",
    };
    Err(QueryError::Execution(format!("{} modifier can only be used with: {names}", reach.name())))
}

/// Times and values of samples that must be floats.
fn floats(samples: &[Sample], reach: Reach) -> Result<Vec<(i64, f64)>, QueryError> {
    let refused = || QueryError::Execution(format!("{} modifier is not supported with histograms", reach.name()));
    samples.iter().map(|s| Some((s.timestamp_ms, s.value.as_float()?))).collect::<Option<_>>().ok_or_else(refused)
}

/// A window, its edges and what is strictly between them.
struct Edges<'a> {
    left: f64,
    right: f64,
    inside: &'a [(i64, f64)],
}

/// `None` if there is nothing after the window's start, or nothing up to its end.
fn edges(points: &[(i64, f64)], start_ms: i64, end_ms: i64, reach: Reach, is_counter: bool) -> Option<Edges<'_>> {
    let is_smoothed = reach == Reach::Smoothed;
    let last = points.len().checked_sub(1)?;
    let before_last = points.get(..last)?;
    let first = before_last.partition_point(|(ms, _)| *ms <= start_ms).saturating_sub(1);
    let last = if is_smoothed { before_last.partition_point(|(ms, _)| *ms < end_ms) } else { last };
    let (head, tail) = (*points.get(first)?, *points.get(last)?);
    if tail.0 <= start_ms || (is_smoothed && head.0 > end_ms) {
        return None;
    }
    let left = match points.get(first + 1) {
        Some(next) if is_smoothed && head.0 < start_ms => between(head, *next, start_ms, is_counter),
        _ => head.1,
    };
    let right = match last.checked_sub(1).and_then(|at| points.get(at)) {
        Some(before) if is_smoothed && tail.0 > end_ms => between(*before, tail, end_ms, is_counter),
        _ => tail.1,
    };
    let from = first + usize::from(head.0 <= start_ms);
    let to = (last + 1) - usize::from(tail.0 >= end_ms);
    Some(Edges { left, right, inside: points.get(from..to.max(from)).unwrap_or_default() })
}

/// The value at a time on the line between two samples; a counter that fell began at zero.
fn between(before: (i64, f64), after: (i64, f64), at_ms: i64, is_counter: bool) -> f64 {
    let low = if is_counter && after.1 < before.1 { 0.0 } else { before.1 };
    low + (after.1 - low) * (at_ms - before.0) as f64 / (after.0 - before.0) as f64
}

/// The function's value for samples in and around a window.
pub(super) fn apply(function: WindowFunction, window: Window<'_>, reach: Reach) -> Result<Option<Value>, QueryError> {
    let (start_ms, end_ms) = (window.start_ms, window.end_ms);
    if matches!(function, WindowFunction::Resets | WindowFunction::Changes) {
        // From the last sample before the window on.
        let before_last = window.samples.split_last().map_or(&[][..], |(_, before)| before);
        let first = before_last.partition_point(|s| s.timestamp_ms <= start_ms).saturating_sub(1);
        let samples = window.samples.get(first..).unwrap_or_default();
        if samples.last().is_none_or(|s| s.timestamp_ms <= start_ms) {
            return Ok(None);
        }
        let window = Window { samples, ..window };
        let count = if function == WindowFunction::Resets { rate::resets(window) } else { rate::changes(window) };
        return Ok(Some(Value::Float(count)));
    }
    let is_counter = function != WindowFunction::Delta;
    let points = floats(window.samples, reach)?;
    let Some(edges) = edges(&points, start_ms, end_ms, reach, is_counter) else { return Ok(None) };
    let mut growth = edges.right - edges.left;
    if is_counter {
        let mut before = edges.left;
        for value in edges.inside.iter().map(|point| point.1).chain([edges.right]) {
            if value < before {
                growth += before;
            }
            before = value;
        }
    }
    if function == WindowFunction::Rate {
        growth /= (end_ms - start_ms) as f64 / 1000.0;
    }
    Ok(Some(Value::Float(growth)))
}

/// The samples of a window with one at each of its edges: what a query of the window alone returns.
pub(super) fn samples(samples: &[Sample], start_ms: i64, end_ms: i64, reach: Reach) -> Result<Vec<Sample>, QueryError> {
    let points = floats(samples, reach)?;
    let Some(edges) = edges(&points, start_ms, end_ms, reach, false) else { return Ok(Vec::new()) };
    let all = [(start_ms, edges.left)].into_iter().chain(edges.inside.iter().copied()).chain([(end_ms, edges.right)]);
    Ok(all.map(|(timestamp_ms, value)| Sample { timestamp_ms, value: Value::Float(value) }).collect())
}

/// The value at a time on the line through the samples around it, at most `lookback_ms` away; the one before if none follows.
pub(super) fn value_at(samples: &[Sample], at_ms: i64, lookback_ms: i64) -> Result<Option<Value>, QueryError> {
    let from = samples.partition_point(|s| s.timestamp_ms <= at_ms - lookback_ms);
    let to = samples.partition_point(|s| s.timestamp_ms <= at_ms + lookback_ms);
    let near: Vec<Sample> =
        samples.get(from..to).unwrap_or_default().iter().filter(|s| !s.value.is_stale()).cloned().collect();
    let points = floats(&near, Reach::Smoothed)?;
    let next = points.partition_point(|(ms, _)| *ms < at_ms);
    let before = next.checked_sub(1).and_then(|at| points.get(at));
    Ok(match (before, points.get(next)) {
        (_, Some(exact)) if exact.0 == at_ms => Some(exact.1),
        (Some(before), Some(after)) => Some(between(*before, *after, at_ms, false)),
        (Some(before), None) => Some(before.1),
        (None, _) => None,
    }
    .map(Value::Float))
}

#[cfg(test)]
mod tests {
    use crate::promql::testing::{Memory, ask};

    /// A counter at 0, 10, … 60 s that falls back at 40 s.
    fn engine() -> crate::promql::Engine {
        Memory::default().floats(&[("__name__", "x_total")], &[0.0, 10.0, 20.0, 30.0, 5.0, 15.0, 25.0]).engine()
    }

    #[test]
    fn an_anchored_window_begins_with_the_sample_before_it() {
        let engine = engine();
        assert_eq!(ask(&engine, "increase(x_total[15s] anchored)", 30), ["{} 20"]);
        assert_eq!(ask(&engine, "increase(x_total[25s] anchored)", 40), ["{} 25"]);
        assert_eq!(ask(&engine, "resets(x_total[5s] anchored)", 40), ["{} 1"]);
        assert_eq!(ask(&engine, "x_total[15s] anchored", 30), ["x_total @15 10 @20 20 @30 30"]);
        let error = engine.instant("avg_over_time(x_total[1m] anchored)", 30_000).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "anchored modifier can only be used with: changes, delta, increase, rate, resets"
        );
    }

    #[test]
    fn a_smoothed_window_is_cut_out_of_the_line_through_its_samples() {
        let engine = engine();
        assert_eq!(ask(&engine, "increase(x_total[10s] smoothed)", 25), ["{} 10"]);
        assert_eq!(ask(&engine, "rate(x_total[10s] smoothed)", 25), ["{} 1"]);
        assert_eq!(ask(&engine, "x_total smoothed", 25), ["x_total 25"]);
        assert_eq!(ask(&engine, "x_total smoothed", 100), ["x_total 25"]);
        assert_eq!(ask(&engine, "x_total[10s] smoothed", 25), ["x_total @15 15 @20 20 @25 25"]);
    }
}
