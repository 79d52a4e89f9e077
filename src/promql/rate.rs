//! Growth over a window: `rate`, `increase`, `delta`, `irate`, `idelta`, `resets`, `changes`, as in Prometheus 3
//! (`extrapolatedRate`, `histogramRate`, `instantValue` in `promql/functions.go`).

use super::range::Window;
use super::value::histogram;
use crate::model::{ExponentialHistogram, Sample, Value};

/// How much longer than the average a gap at the edge of a window may be and still count as covered.
const EXTRAPOLATION_THRESHOLD: f64 = 1.1;

/// The growth between the first and the last sample, extrapolated to the window's edges where samples come near them.
pub(super) fn extrapolated(window: Window<'_>, is_counter: bool, is_rate: bool) -> Option<Value> {
    let (first, last) = (window.samples.first()?, window.samples.last()?);
    let intervals = window.samples.len() - 1;
    if intervals == 0 {
        return None;
    }
    let (growth, first_level) = if window.is_all_floats() {
        let first = first.value.as_float()?;
        (Value::Float(float_growth(window, is_counter)?), first)
    } else if window.is_all_histograms() {
        (histogram(histogram_growth(window, is_counter)?), 0.0)
    } else {
        // A mixture of floats and histograms has no growth: Prometheus leaves the element out.
        return None;
    };

    let seconds = |from_ms: i64, to_ms: i64| (to_ms - from_ms) as f64 / 1000.0;
    let sampled = seconds(first.timestamp_ms, last.timestamp_ms);
    let average_gap = sampled / intervals as f64;
    let threshold = average_gap * EXTRAPOLATION_THRESHOLD;
    let mut to_start = seconds(window.start_ms, first.timestamp_ms);
    if to_start >= threshold {
        to_start = average_gap / 2.0;
    }
    if is_counter {
        // A counter was not below zero: where it would have been, it began. (Of histograms Prometheus 3.5 does not say so.)
        if let Value::Float(total) = growth
            && total > 0.0
            && first_level >= 0.0
        {
            to_start = to_start.min(sampled * (first_level / total));
        }
    }
    let mut to_end = seconds(last.timestamp_ms, window.end_ms);
    if to_end >= threshold {
        to_end = average_gap / 2.0;
    }
    let mut factor = if sampled == 0.0 { 1.0 } else { (sampled + to_start + to_end) / sampled };
    if is_rate {
        factor /= seconds(window.start_ms, window.end_ms);
    }
    Some(match growth {
        Value::Float(growth) => Value::Float(growth * factor),
        Value::Histogram(growth) => histogram(growth.scaled(factor)),
    })
}

fn float_growth(window: Window<'_>, is_counter: bool) -> Option<f64> {
    if let Some(falls) = window.falls {
        let (first, last) = (window.samples.first()?.value.as_float()?, window.samples.last()?.value.as_float()?);
        return Some(falls.iter().fold(last - first, |growth, (_, before)| growth + before));
    }
    let mut floats = window.floats();
    let first = floats.next()?;
    let (mut last, mut before_resets) = (first, 0.0);
    for next in floats {
        if is_counter && next < last {
            before_resets += last;
        }
        last = next;
    }
    Some(last - first + before_resets)
}

fn histogram_growth(window: Window<'_>, is_counter: bool) -> Option<ExponentialHistogram> {
    let (first, last) = (window.histograms().next()?, window.histograms().last()?);
    let pairs = || window.histograms().zip(window.histograms().skip(1));
    // What was before a reset right at the beginning is not looked at: neither its counts nor its schema.
    let is_fresh = is_counter && pairs().next().is_some_and(|(first, second)| is_reset(first, second));
    let schema = if is_counter {
        window.histograms().skip(usize::from(is_fresh)).map(ExponentialHistogram::schema).min()?
    } else {
        first.schema().min(last.schema())
    };
    let mut growth = last.clone();
    growth.coarsen(schema);
    if !is_fresh {
        growth.subtract(first);
    }
    if is_counter {
        for (before, _) in pairs().skip(usize::from(is_fresh)).filter(|(before, after)| is_reset(before, after)) {
            growth.add(before);
        }
    }
    Some(growth)
}

/// Whether a cumulative histogram began anew: something in it has become less (`FloatHistogram.DetectReset`).
fn is_reset(before: &ExponentialHistogram, after: &ExponentialHistogram) -> bool {
    if after.count() < before.count() || after.zero_count() < before.zero_count() {
        return true;
    }
    // Observations never make a schema finer.
    if after.schema() > before.schema() {
        return true;
    }
    let mut before = before.clone();
    before.coarsen(after.schema());
    let shrinks = |before: &crate::model::BucketSpan, after: &crate::model::BucketSpan| {
        before.counts.iter().zip(before.offset..).any(|(count, index)| {
            let at = usize::try_from(index - after.offset).ok();
            *count > at.and_then(|at| after.counts.get(at)).copied().unwrap_or(0.0)
        })
    };
    shrinks(before.positive(), after.positive()) || shrinks(before.negative(), after.negative())
}

/// The growth between the last two samples, per second if it is a rate.
pub(super) fn instant(window: Window<'_>, is_rate: bool) -> Option<Value> {
    let [.., before, last] = window.samples else { return None };
    let seconds = (last.timestamp_ms - before.timestamp_ms) as f64 / 1000.0;
    if seconds == 0.0 {
        return None;
    }
    match (&before.value, &last.value) {
        (Value::Float(before), Value::Float(last)) => {
            let growth = if is_rate && last < before { *last } else { last - before };
            Some(Value::Float(if is_rate { growth / seconds } else { growth }))
        }
        (Value::Histogram(before), Value::Histogram(last)) => {
            let mut growth = (**last).clone();
            if !is_rate || !is_reset(before, last) {
                growth.subtract(before);
            }
            Some(histogram(if is_rate { growth.divided(seconds) } else { growth }))
        }
        _ => None,
    }
}

/// How often a counter fell, or changed between float and histogram.
pub(super) fn resets(window: Window<'_>) -> f64 {
    count_pairs(window, |before, after| match (&before.value, &after.value) {
        (Value::Float(before), Value::Float(after)) => after < before,
        (Value::Histogram(before), Value::Histogram(after)) => is_reset(before, after),
        _ => true,
    })
}

/// How often the value changed; NaN to NaN is no change.
pub(super) fn changes(window: Window<'_>) -> f64 {
    count_pairs(window, |before, after| match (&before.value, &after.value) {
        (Value::Float(before), Value::Float(after)) => before != after && !(before.is_nan() && after.is_nan()),
        (Value::Histogram(before), Value::Histogram(after)) => !super::binary::equal(before, after),
        _ => true,
    })
}

fn count_pairs(window: Window<'_>, is_counted: impl Fn(&Sample, &Sample) -> bool) -> f64 {
    let pairs = window.samples.iter().zip(window.samples.iter().skip(1));
    pairs.filter(|(before, after)| is_counted(before, after)).count() as f64
}
