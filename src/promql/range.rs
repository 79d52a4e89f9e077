//! Functions of windows: `*_over_time`, and the sliding that feeds them and the rates.

use super::eval::{Evaluator, Grid, repeat_single};
use super::functions::arg;
use super::node::Node;
use super::value::{StepSeries, histogram};
use super::{QueryError, aggregate, quantile, rate};
use crate::model::{ExponentialHistogram, Sample, Value};

/// A function from the samples of one window to one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowFunction {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    First,
    Last,
    Present,
    StdDev,
    StdVar,
    Quantile,
    Rate,
    Increase,
    Delta,
    InstantRate,
    InstantDelta,
    Resets,
    Changes,
}

/// The samples of one series in one window, at least one.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub(super) samples: &'a [Sample],
    /// The window is open here…
    pub(super) start_ms: i64,
    /// … and closed here.
    pub(super) end_ms: i64,
}

impl WindowFunction {
    /// Whether the result depends on how often a value was repeated, and not only on which values there were in turn.
    fn needs_repeats(self) -> bool {
        !matches!(self, Self::Min | Self::Max | Self::First | Self::Last | Self::Present | Self::Resets | Self::Changes)
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "sum_over_time" => Self::Sum,
            "avg_over_time" => Self::Avg,
            "min_over_time" => Self::Min,
            "max_over_time" => Self::Max,
            "count_over_time" => Self::Count,
            "first_over_time" => Self::First,
            "last_over_time" => Self::Last,
            "present_over_time" => Self::Present,
            "stddev_over_time" => Self::StdDev,
            "stdvar_over_time" => Self::StdVar,
            "quantile_over_time" => Self::Quantile,
            "rate" => Self::Rate,
            "increase" => Self::Increase,
            "delta" => Self::Delta,
            "irate" => Self::InstantRate,
            "idelta" => Self::InstantDelta,
            "resets" => Self::Resets,
            "changes" => Self::Changes,
            _ => return None,
        })
    }

    /// `quantile_over_time(q, x[5m])`: the window is the second argument.
    pub(super) fn takes_scalar_first(self) -> bool {
        self == Self::Quantile
    }

    /// These return a sample as it was, under the name it had.
    fn keeps_name(self) -> bool {
        matches!(self, Self::First | Self::Last)
    }

    fn apply(self, window: Window<'_>, param: f64) -> Option<Value> {
        let samples = window.samples;
        let float = |value: Option<f64>| value.map(Value::Float);
        match self {
            Self::Count => Some(Value::Float(samples.len() as f64)),
            Self::Present => Some(Value::Float(1.0)),
            Self::First => samples.first().map(|s| s.value.clone()),
            Self::Last => samples.last().map(|s| s.value.clone()),
            Self::Sum if window.is_all_floats() => Some(Value::Float(sum(window.floats()))),
            Self::Avg if window.is_all_floats() => float(Mean::of(window.floats())),
            Self::Sum if window.is_all_histograms() => aggregate::sum_histograms(window.histograms()).map(histogram),
            Self::Avg if window.is_all_histograms() => {
                let sum = aggregate::sum_histograms(window.histograms())?;
                Some(histogram(sum.divided(samples.len() as f64)))
            }
            // A mixture of floats and histograms has no sum: Prometheus leaves the element out.
            Self::Sum | Self::Avg => None,
            Self::Min => float(window.floats().reduce(|a, b| if b < a || a.is_nan() { b } else { a })),
            Self::Max => float(window.floats().reduce(|a, b| if b > a || a.is_nan() { b } else { a })),
            Self::StdVar => float(variance(window.floats())),
            Self::StdDev => float(variance(window.floats()).map(f64::sqrt)),
            Self::Quantile => {
                let mut values: Vec<f64> = window.floats().collect();
                (!values.is_empty()).then(|| Value::Float(quantile::of_values(param, &mut values)))
            }
            Self::Rate => rate::extrapolated(window, true, true),
            Self::Increase => rate::extrapolated(window, true, false),
            Self::Delta => rate::extrapolated(window, false, false),
            Self::InstantRate => rate::instant(window, true),
            Self::InstantDelta => rate::instant(window, false),
            Self::Resets => Some(Value::Float(rate::resets(window))),
            Self::Changes => Some(Value::Float(rate::changes(window))),
        }
    }
}

impl<'a> Window<'a> {
    pub(super) fn floats(self) -> impl Iterator<Item = f64> + 'a {
        self.samples.iter().filter_map(|s| s.value.as_float())
    }

    pub(super) fn histograms(self) -> impl Iterator<Item = &'a ExponentialHistogram> + Clone {
        self.samples.iter().filter_map(|s| s.value.as_histogram())
    }

    pub(super) fn is_all_floats(self) -> bool {
        self.samples.iter().all(|s| s.value.as_float().is_some())
    }

    pub(super) fn is_all_histograms(self) -> bool {
        self.samples.iter().all(|s| s.value.as_histogram().is_some())
    }
}

/// Evaluates a window function at every step; `args` begins with the range vector. Series may have become equal without
/// their names: that is the caller's to refuse.
pub(super) fn eval(
    evaluator: &Evaluator<'_>,
    function: WindowFunction,
    args: &[Node],
    grid: &Grid,
    param: Option<&[f64]>,
) -> Result<Vec<StepSeries>, QueryError> {
    let mut vector = Vec::new();
    evaluator.windows(arg(args, 0)?, grid, function.needs_repeats(), &mut |windows, series| {
        evaluator.check_room(vector.len().saturating_add(1).saturating_mul(grid.steps))?;
        // With `@` all windows are one; a parameter may still differ from step to step.
        let steps = if param.is_some() { grid.steps } else { windows.ends.steps };
        let samples = series.samples.as_slice();
        let (mut from, mut to) = (0, 0);
        let mut values = Vec::with_capacity(grid.steps);
        for step in 0..steps {
            evaluator.check_deadline()?;
            let end_ms = if windows.ends.steps == 1 { windows.ends.start_ms } else { windows.ends.time(step) };
            let start_ms = end_ms - windows.range_ms;
            let skip = |at: usize, until_ms: i64| {
                let later = samples.get(at..).unwrap_or_default();
                // Nearly always only a few steps away; the first window may begin far in.
                at + later.iter().take_while(|s| s.timestamp_ms <= until_ms).count()
            };
            from = skip(from, start_ms);
            to = skip(to.max(from), end_ms);
            let inside = samples.get(from..to).unwrap_or_default();
            let param = param.and_then(|p| p.get(step)).copied().unwrap_or(f64::NAN);
            let window = Window { samples: inside, start_ms, end_ms };
            values.push(if inside.is_empty() { None } else { function.apply(window, param) });
        }
        repeat_single(&mut values, grid.steps);
        if values.iter().any(Option::is_some) {
            let labels = if function.keeps_name() { series.labels } else { series.labels.without_name() };
            vector.push(StepSeries { labels, values });
        }
        Ok(())
    })?;
    vector.sort_by(|a, b| a.labels.cmp(&b.labels));
    Ok(vector)
}

/// A sum with its compensation: Kahan's summation in Neumaier's form, as Prometheus sums (`util/kahansum`).
#[derive(Debug, Clone, Copy, Default)]
struct Compensated {
    sum: f64,
    lost: f64,
}

impl Compensated {
    fn plus(self, value: f64) -> Self {
        let sum = self.sum + value;
        let lost = if sum.is_infinite() {
            0.0
        } else if self.sum.abs() >= value.abs() {
            self.lost + ((self.sum - sum) + value)
        } else {
            self.lost + ((value - sum) + self.sum)
        };
        Self { sum, lost }
    }

    fn total(self) -> f64 {
        self.sum + self.lost
    }
}

/// The compensated sum of floats.
pub(super) fn sum(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(Compensated::default(), Compensated::plus).total()
}

/// The mean: sum by count as long as the sum is finite, incremental from where it would overflow.
pub(super) struct Mean;

impl Mean {
    /// The mean of floats, `None` of none.
    pub(super) fn of(mut values: impl Iterator<Item = f64>) -> Option<f64> {
        let mut sum = Compensated { sum: values.next()?, lost: 0.0 };
        let mut count = 1.0;
        let mut is_incremental = false;
        for value in values {
            count += 1.0;
            if !is_incremental {
                let next = sum.plus(value);
                if !next.sum.is_infinite() {
                    sum = next;
                    continue;
                }
                is_incremental = true;
                sum = Compensated { sum: sum.sum / (count - 1.0), lost: sum.lost / (count - 1.0) };
            }
            let weight = (count - 1.0) / count;
            sum = Compensated { sum: weight * sum.sum, lost: weight * sum.lost }.plus(value / count);
        }
        Some(if is_incremental { sum.total() } else { sum.sum / count + sum.lost / count })
    }
}

/// Welford's algorithm with compensated sums, as in Prometheus's `stdvar_over_time`.
fn variance(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut count = 0.0;
    let (mut mean, mut squares) = (Compensated::default(), Compensated::default());
    for value in values {
        count += 1.0;
        let delta = value - mean.total();
        mean = mean.plus(delta / count);
        squares = squares.plus(delta * (value - mean.total()));
    }
    (count > 0.0).then(|| squares.total() / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_lose_nothing_to_cancellation() {
        assert_eq!(sum([1e100, 1.0, -1e100].into_iter()), 1.0);
        assert_eq!(sum([f64::INFINITY, 1.0].into_iter()), f64::INFINITY);
    }

    #[test]
    fn means_survive_sums_that_overflow() {
        assert_eq!(Mean::of([1.0, 2.0, 6.0].into_iter()), Some(3.0));
        assert_eq!(Mean::of([f64::MAX, f64::MAX].into_iter()), Some(f64::MAX));
        assert_eq!(Mean::of(std::iter::empty()), None);
    }

    #[test]
    fn variance_is_that_of_the_population() {
        assert_eq!(variance([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0].into_iter()), Some(4.0));
    }
}
