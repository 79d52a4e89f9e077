//! Functions of windows: `*_over_time`, and the sliding that feeds them and the rates.

use super::eval::{Evaluator, Grid, Windows, repeat_single};
use super::functions::gives_gauges;
use super::node::{Expr, Node, Reach, Span};
use super::value::{StepSeries, histogram, weight};
use super::{QueryError, aggregate, extended, quantile, rate};
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
    Mad,
    TimeOfFirst,
    TimeOfLast,
    TimeOfMax,
    TimeOfMin,
    Rate,
    Increase,
    Delta,
    InstantRate,
    InstantDelta,
    Resets,
    Changes,
    Deriv,
    PredictLinear,
    Smoothed,
}

/// A window function with its arguments.
pub(super) struct Call<'a> {
    pub(super) function: WindowFunction,
    /// The range vector.
    pub(super) arg: &'a Node,
    /// Where annotations point: the first argument.
    pub(super) span: Span,
    /// The other arguments, in their order, each at every step.
    pub(super) params: Vec<Vec<f64>>,
}

/// The samples of one series in one window, at least one.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub(super) samples: &'a [Sample],
    /// Whether that is known of the whole series, so that no window need be looked through.
    pub(super) has_only_floats: bool,
    /// Where among `samples` a float is less than the one before it, and that one, if the whole series was looked through.
    pub(super) falls: Option<&'a [(usize, f64)]>,
    /// The window is open here…
    pub(super) start_ms: i64,
    /// … and closed here.
    pub(super) end_ms: i64,
    /// The time of the step, which `offset` and `@` do not move.
    pub(super) now_ms: i64,
    pub(super) params: [f64; 2],
}

/// What there is to say about the windows of one series.
#[derive(Debug, Clone, Copy, Default)]
struct Notes {
    /// Floats and histograms: no value.
    mixed: bool,
    /// Floats and histograms: the histograms were passed over.
    ignored: bool,
    /// Two histograms met.
    histograms: bool,
    /// Two floats met.
    floats: bool,
}

impl WindowFunction {
    /// Whether the result depends on how often a value was repeated, and not only on which values there were in turn.
    fn needs_repeats(self) -> bool {
        !matches!(self, Self::Min | Self::Max | Self::First | Self::Last | Self::Present | Self::Resets | Self::Changes)
    }

    /// These return a sample as it was, under the name it had.
    fn keeps_name(self) -> bool {
        matches!(self, Self::First | Self::Last)
    }

    fn apply(self, window: Window<'_>, notes: &mut Notes) -> Result<Option<Value>, QueryError> {
        let samples = window.samples;
        let float = |value: Option<f64>| value.map(Value::Float);
        let seconds = |sample: Option<&Sample>| float(sample.map(|s| s.timestamp_ms as f64 / 1000.0));
        let is_mixed = !window.is_all_floats() && !window.is_all_histograms();
        match self {
            Self::Sum | Self::Avg | Self::Rate | Self::Increase | Self::Delta => notes.mixed |= is_mixed,
            Self::InstantRate | Self::InstantDelta => {
                let last_two = samples.get(samples.len().saturating_sub(2)..).unwrap_or_default();
                let floats = last_two.iter().filter(|s| s.value.as_float().is_some()).count();
                notes.mixed |= last_two.len() == 2 && floats == 1;
                notes.histograms |= last_two.len() == 2 && floats == 0;
            }
            Self::Count
            | Self::Present
            | Self::First
            | Self::Last
            | Self::Resets
            | Self::Changes
            | Self::TimeOfFirst
            | Self::TimeOfLast => {}
            _ => notes.ignored |= is_mixed,
        }
        if matches!(self, Self::Rate | Self::Increase | Self::Delta) && !is_mixed && samples.len() > 1 {
            notes.histograms |= window.is_all_histograms();
            notes.floats |= window.is_all_floats();
        }
        Ok(match self {
            Self::Count => Some(Value::Float(samples.len() as f64)),
            Self::Present => Some(Value::Float(1.0)),
            Self::First => samples.first().map(|s| s.value.clone()),
            Self::Last => samples.last().map(|s| s.value.clone()),
            // A mixture of floats and histograms has no sum.
            Self::Sum | Self::Avg if is_mixed => None,
            Self::Sum if window.is_all_floats() => Some(Value::Float(sum(window.floats()))),
            Self::Avg if window.is_all_floats() => float(Mean::of(window.floats())),
            Self::Sum => aggregate::sum_histograms(window.histograms()).map(histogram),
            Self::Avg => aggregate::mean_of_histograms(window.histograms()).map(histogram),
            Self::Min => float(window.floats().reduce(|a, b| if b < a || a.is_nan() { b } else { a })),
            Self::Max => float(window.floats().reduce(|a, b| if b > a || a.is_nan() { b } else { a })),
            Self::StdVar => float(variance(window.floats())),
            Self::StdDev => float(variance(window.floats()).map(f64::sqrt)),
            Self::Quantile => {
                let mut values: Vec<f64> = window.floats().collect();
                (!values.is_empty()).then(|| Value::Float(quantile::of_values(window.params[0], &mut values)))
            }
            Self::Mad => {
                let mut values: Vec<f64> = window.floats().collect();
                let median = quantile::of_values(0.5, &mut values);
                values.iter_mut().for_each(|v| *v = (*v - median).abs());
                (!values.is_empty()).then(|| Value::Float(quantile::of_values(0.5, &mut values)))
            }
            Self::TimeOfFirst => seconds(samples.first()),
            Self::TimeOfLast => seconds(samples.last()),
            // Of equal values the last.
            Self::TimeOfMax => seconds(window.extreme(|value, most| value >= most || most.is_nan())),
            Self::TimeOfMin => seconds(window.extreme(|value, least| value <= least || least.is_nan())),
            Self::Rate => rate::extrapolated(window, true, true),
            Self::Increase => rate::extrapolated(window, true, false),
            Self::Delta => rate::extrapolated(window, false, false),
            Self::InstantRate => rate::instant(window, true),
            Self::InstantDelta => rate::instant(window, false),
            Self::Resets => Some(Value::Float(rate::resets(window))),
            Self::Changes => Some(Value::Float(rate::changes(window))),
            Self::Deriv => {
                let first = window.float_samples().next().map_or(0, |(ms, _)| ms);
                float(window.line(first).map(|(slope, _)| slope))
            }
            Self::PredictLinear => {
                let line = window.line(window.now_ms);
                float(line.map(|(slope, intercept)| slope * window.params[0] + intercept))
            }
            Self::Smoothed => float(window.smoothed()?),
        })
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
        self.has_only_floats || self.samples.iter().all(|s| s.value.as_float().is_some())
    }

    pub(super) fn is_all_histograms(self) -> bool {
        (!self.has_only_floats || self.samples.is_empty())
            && self.samples.iter().all(|s| s.value.as_histogram().is_some())
    }

    fn float_samples(self) -> impl Iterator<Item = (i64, f64)> + 'a {
        self.samples.iter().filter_map(|s| Some((s.timestamp_ms, s.value.as_float()?)))
    }

    /// The last sample that `wins` over the one that won before it.
    fn extreme(self, wins: impl Fn(f64, f64) -> bool) -> Option<&'a Sample> {
        let floats = self.samples.iter().filter_map(|s| Some((s, s.value.as_float()?)));
        floats.reduce(|best, one| if wins(one.1, best.1) { one } else { best }).map(|(sample, _)| sample)
    }

    /// Slope and value at `at_ms` of the line of least squares through at least two floats (`linearRegression`).
    fn line(self, at_ms: i64) -> Option<(f64, f64)> {
        let mut floats = self.float_samples();
        let first = floats.next()?.1;
        floats.next()?;
        if self.floats().all(|v| v == first) {
            return Some(if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) });
        }
        let points = || self.float_samples().map(move |(ms, y)| ((ms - at_ms) as f64 / 1000.0, y));
        let total = |term: fn((f64, f64)) -> f64| {
            let sums = points().map(term).fold(Compensated::default(), Compensated::plus);
            sums.sum + sums.lost
        };
        let n = points().count() as f64;
        let (xs, ys) = (total(|(x, _)| x), total(|(_, y)| y));
        let covariance = total(|(x, y)| x * y) - xs * ys / n;
        let slope = covariance / (total(|(x, _)| x * x) - xs * xs / n);
        Some((slope, ys / n - slope * xs / n))
    }

    /// Double exponential smoothing of at least two floats (`funcDoubleExponentialSmoothing`).
    fn smoothed(self) -> Result<Option<f64>, QueryError> {
        let [smoothing, trend] = self.params;
        for (factor, name) in [(smoothing, "smoothing"), (trend, "trend")] {
            if factor <= 0.0 || factor >= 1.0 {
                let (short, got) = (name.get(..1).unwrap_or_default(), factor);
                return Err(QueryError::Execution(format!(
                    "invalid {name} factor. Expected: 0 < {short}f < 1, got: {got:.6}"
                )));
            }
        }
        let mut floats = self.floats();
        let (Some(first), Some(second)) = (floats.next(), floats.next()) else { return Ok(None) };
        let (mut before, mut level, mut slope) = (0.0, first, second - first);
        for (at, value) in self.floats().skip(1).enumerate() {
            if at > 0 {
                slope = trend * (level - before) + (1.0 - trend) * slope;
            }
            (before, level) = (level, smoothing * value + (1.0 - smoothing) * (level + slope));
        }
        Ok(Some(level))
    }
}

/// Evaluates a window function at every step. Series may have become equal without their names: that is the caller's to
/// refuse.
pub(super) fn eval(evaluator: &Evaluator<'_>, call: &Call<'_>, grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let (mut vector, mut size) = (Vec::new(), 0usize);
    let function = call.function;
    if let Expr::Window { selector, .. } = &call.arg.expr {
        extended::check(selector.reach, function)?;
    }
    let are_gauges = gives_gauges(call.arg);
    evaluator.windows(call.arg, grid, function.needs_repeats(), &mut |windows, series| {
        evaluator.check_room(size.saturating_add(grid.steps))?;
        let (values, notes) = slide(evaluator, call, grid, &windows, &series.samples, size)?;
        annotate(evaluator, call, notes, series.labels.name(), are_gauges);
        if values.iter().any(Option::is_some) {
            let labels = if function.keeps_name() { series.labels } else { series.labels.without_name() };
            let series = StepSeries { labels, values };
            size = size.saturating_add(series.size());
            vector.push(series);
        }
        Ok(())
    })?;
    vector.sort_by(|a, b| a.labels.cmp(&b.labels));
    Ok(vector)
}

/// A window with so many samples takes more than a look at the clock.
const LARGE_WINDOW: usize = 4096;

/// The function's value at every step for the samples of one series; `held` is what those before it take.
fn slide(
    evaluator: &Evaluator<'_>,
    call: &Call<'_>,
    grid: &Grid,
    windows: &Windows,
    samples: &[Sample],
    mut held: usize,
) -> Result<(Vec<Option<Value>>, Notes), QueryError> {
    // With `@` all windows are one; other arguments, or the time of the step, may still differ.
    let steps = if call.params.is_empty() { windows.ends.steps } else { grid.steps };
    let has_only_floats = samples.iter().all(|sample| sample.value.as_float().is_some());
    let needs_falls = has_only_floats && matches!(call.function, WindowFunction::Rate | WindowFunction::Increase);
    let falls = needs_falls.then(|| falls(samples));
    let (mut from, mut to) = (0, 0);
    let mut values = Vec::with_capacity(grid.steps);
    let mut notes = Notes::default();
    for step in 0..steps {
        evaluator.check_deadline()?;
        let end_ms = if windows.ends.steps == 1 { windows.ends.start_ms } else { windows.ends.time(step) };
        let start_ms = end_ms - windows.range_ms;
        let skip = |at: usize, until_ms: i64| {
            let later = samples.get(at..).unwrap_or_default();
            // Nearly always only a few steps away; the first window may begin far in.
            at + later.iter().take_while(|s| s.timestamp_ms <= until_ms).count()
        };
        let (before_ms, after_ms) = windows.margins();
        from = skip(from, start_ms - before_ms);
        to = skip(to.max(from), end_ms + after_ms);
        let inside = samples.get(from..to).unwrap_or_default();
        if inside.len() >= LARGE_WINDOW {
            evaluator.look_at_clock()?;
        }
        if inside.is_empty() {
            values.push(None);
            continue;
        }
        let param = |at: usize| call.params.get(at).and_then(|p| p.get(step)).copied().unwrap_or(f64::NAN);
        let params = [param(0), param(1)];
        let falls = falls.as_deref().map(|falls| {
            let first = falls.partition_point(|(at, _)| *at <= from);
            let end = falls.partition_point(|(at, _)| *at < to);
            falls.get(first..end).unwrap_or_default()
        });
        let window =
            Window { samples: inside, has_only_floats, falls, start_ms, end_ms, now_ms: grid.time(step), params };
        let value = match windows.reach {
            Reach::Within => call.function.apply(window, &mut notes)?,
            reach => extended::apply(call.function, window, reach)?,
        };
        held = held.saturating_add(value.as_ref().map_or(1, weight));
        evaluator.check_room(held)?;
        values.push(value);
        if call.function == WindowFunction::Quantile
            && !(0.0..=1.0).contains(&params[0])
            && window.floats().next().is_some()
        {
            evaluator.notes.invalid_quantile(call.span, params[0]);
        }
    }
    repeat_single(&mut values, grid.steps);
    Ok((values, notes))
}

/// Where a float is less than the one before it, and that one.
fn falls(samples: &[Sample]) -> Vec<(usize, f64)> {
    let mut falls = Vec::new();
    let mut last = f64::NAN;
    for (at, value) in samples.iter().map(|sample| sample.value.as_float().unwrap_or(f64::NAN)).enumerate() {
        if value < last {
            falls.push((at, last));
        }
        last = value;
    }
    falls
}

fn annotate(evaluator: &Evaluator<'_>, call: &Call<'_>, notes: Notes, name: &str, are_gauges: bool) {
    use WindowFunction::{Delta, Increase, InstantDelta, InstantRate, Rate};
    const COUNTERS: [&str; 4] = ["_total", "_sum", "_count", "_bucket"];
    let (says, span) = (&evaluator.notes, call.span);
    if notes.mixed {
        says.mixed_floats_histograms(span, name);
    }
    if notes.ignored {
        says.ignored_in_mixed_range(span, name);
    }
    match call.function {
        Rate | Increase | InstantRate if notes.histograms && are_gauges => says.not_counter(span, name),
        Delta | InstantDelta if notes.histograms && !are_gauges => says.not_gauge(span, name),
        Rate | Increase
            if notes.floats && !name.is_empty() && !COUNTERS.iter().any(|suffix| name.ends_with(suffix)) =>
        {
            says.possible_non_counter(span, name);
        }
        _ => {}
    }
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
