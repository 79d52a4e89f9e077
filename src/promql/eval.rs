//! The evaluator: walks the nodes, selects samples, and keeps the query within its budget.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::annotations::Annotations;
use super::deadline::Deadline;
use super::node::{At, Expr, Node, Reach, Selector, Span, Subquery, TimeShift};
use super::value::{Operand, StepSeries, refuse_same_labels, weight};
use super::{Limits, QueryError, RangeSeries, aggregate, binary, check_time, extended, functions, select};
use crate::model::{Ladder, Sample, Value};
use crate::store::{Select, SelectedSeries, Selection, StoreError};

/// The times at which an expression is evaluated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) start_ms: i64,
    pub(super) step_ms: i64,
    pub(super) steps: usize,
}

impl Grid {
    /// From `start_ms` to at most `end_ms`, every `step_ms`.
    pub(super) fn new(start_ms: i64, end_ms: i64, step_ms: i64) -> Result<Self, QueryError> {
        let (start_ms, end_ms) = (check_time(start_ms)?, check_time(end_ms)?);
        if step_ms <= 0 {
            return Err(QueryError::BadData(format!("zero or negative step: got {step_ms} ms, want a positive one")));
        }
        if end_ms < start_ms {
            return Err(QueryError::BadData("end timestamp must not be before start time".to_owned()));
        }
        let steps = usize::try_from((end_ms - start_ms) / step_ms).unwrap_or(usize::MAX).saturating_add(1);
        Ok(Self { start_ms, step_ms, steps })
    }

    pub(super) fn time(&self, step: usize) -> i64 {
        self.start_ms + self.step_ms * step as i64
    }

    pub(super) fn times(&self) -> impl Iterator<Item = i64> + '_ {
        (0..self.steps).map(|step| self.time(step))
    }

    pub(super) fn end_ms(&self) -> i64 {
        self.time(self.steps.saturating_sub(1))
    }

    /// Values by step as samples, gaps left out.
    pub(super) fn samples(&self, values: Vec<Option<Value>>) -> Vec<Sample> {
        let sample =
            |(step, value): (usize, Option<Value>)| Some(Sample { timestamp_ms: self.time(step), value: value? });
        values.into_iter().enumerate().filter_map(sample).collect()
    }
}

/// Of selectors that stand in a query more than once, at most so many samples are kept from the first to the next.
const KEPT_SAMPLES_MAX: usize = 1 << 20;

/// What tells one read from another: the selector's text, its range, and the grid of its windows' ends.
type ReadOf = (String, i64, (i64, i64, usize));

/// Evaluates one query.
pub(super) struct Evaluator<'a> {
    select: &'a dyn Select,
    ladder: &'a Ladder,
    limits: Limits,
    /// What `@ start()` and `@ end()` mean, in subqueries too.
    query: Grid,
    deadline: Deadline,
    /// How many values finished operands hold that are not consumed yet.
    held: Cell<usize>,
    /// How many bytes of labels the query has made so far.
    made_labels: Cell<usize>,
    text: &'a str,
    /// What was read for selectors that stand in the query once more: `last_over_time(x[2w]) - min_over_time(x[2w])`.
    kept: RefCell<HashMap<ReadOf, Rc<[SelectedSeries]>>>,
    /// How many samples more may be kept.
    keepable: Cell<usize>,
    /// What is said beside the answer.
    pub(super) notes: Annotations<'a>,
}

/// Where the windows over some samples lie, one per step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub(super) range_ms: i64,
    /// The end of each window. One step only, if `@` makes all windows the same.
    pub(super) ends: Grid,
    /// How far the samples reach beyond each window, `lookback_ms` at most.
    pub(super) reach: Reach,
    pub(super) lookback_ms: i64,
}

impl Windows {
    /// How long before and after a window samples are taken.
    pub(super) fn margins(&self) -> (i64, i64) {
        match self.reach {
            Reach::Within => (0, 0),
            Reach::Anchored => (self.lookback_ms, 0),
            Reach::Smoothed => (self.lookback_ms, self.lookback_ms),
        }
    }
}

/// What is done with one series.
pub(super) type Visit<'v> = dyn FnMut(SelectedSeries) -> Result<(), QueryError> + 'v;

impl<'a> Evaluator<'a> {
    pub(super) fn new(
        select: &'a dyn Select,
        ladder: &'a Ladder,
        limits: Limits,
        query: &Grid,
        deadline: Deadline,
        text: &'a str,
    ) -> Self {
        let notes = Annotations::new(text);
        Self {
            select,
            ladder,
            limits,
            query: *query,
            deadline,
            held: Cell::new(0),
            made_labels: Cell::new(0),
            text,
            kept: RefCell::default(),
            keepable: Cell::new(KEPT_SAMPLES_MAX),
            notes,
        }
    }

    /// The value of a scalar or vector node at every step.
    pub(super) fn eval(&self, node: &Node, grid: &Grid) -> Result<Operand, QueryError> {
        self.look_at_clock()?;
        let before = self.held.get();
        let operand = self.eval_node(node, grid)?;
        // The operands that this one was made of are gone by now.
        self.held.set(before);
        self.check_room(operand.size())?;
        self.held.set(before + operand.size());
        Ok(operand)
    }

    fn eval_node(&self, node: &Node, grid: &Grid) -> Result<Operand, QueryError> {
        match &node.expr {
            Expr::Number(value) => {
                self.check_room(grid.steps)?;
                Ok(Operand::Scalar(vec![*value; grid.steps]))
            }
            Expr::Select(selector) => self.instant_vector(selector, grid, false).map(Operand::Vector),
            Expr::Unary { is_negative: false, inner } | Expr::Paren(inner) => self.eval(inner, grid),
            Expr::Unary { inner, .. } => self.negate(inner, grid),
            Expr::Binary(binary) => binary::eval(self, binary, node.span, grid),
            Expr::Aggregate(aggregate) => aggregate::eval(self, aggregate, node.span, grid).map(Operand::Vector),
            Expr::Call { function, args } => functions::eval(self, function, args, grid),
            Expr::Text(_) | Expr::Window { .. } | Expr::Subquery(_) => {
                Err(QueryError::BadData(format!("unexpected {} in expression", node.kind())))
            }
        }
    }

    /// As [`Evaluator::eval`], of a node that is known to be a vector.
    pub(super) fn eval_vector(&self, node: &Node, grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
        match self.eval(node, grid)? {
            Operand::Vector(series) => Ok(series),
            Operand::Scalar(_) => Err(QueryError::BadData("expected type instant vector, got scalar".to_owned())),
        }
    }

    /// As [`Evaluator::eval`], of a node that is known to be a scalar.
    pub(super) fn eval_scalar(&self, node: &Node, grid: &Grid) -> Result<Vec<f64>, QueryError> {
        match self.eval(node, grid)? {
            Operand::Scalar(values) => Ok(values),
            Operand::Vector(_) => Err(QueryError::BadData("expected type scalar, got instant vector".to_owned())),
        }
    }

    fn negate(&self, inner: &Node, grid: &Grid) -> Result<Operand, QueryError> {
        let negated = |value| match value {
            Value::Float(v) => Value::Float(-v),
            Value::Histogram(h) => super::value::histogram(h.scaled(-1.0)),
        };
        Ok(match self.eval(inner, grid)? {
            Operand::Scalar(values) => Operand::Scalar(values.into_iter().map(|v| -v).collect()),
            Operand::Vector(series) => {
                let series: Vec<StepSeries> =
                    series.into_iter().map(|s| s.map(false, |_, value| Some(negated(value)))).collect();
                refuse_same_labels(&series)?;
                Operand::Vector(series)
            }
        })
    }

    /// The newest value of each series within the lookback at each step, or when it was taken, in seconds.
    pub(super) fn instant_vector(
        &self,
        selector: &Selector,
        grid: &Grid,
        as_timestamps: bool,
    ) -> Result<Vec<StepSeries>, QueryError> {
        let ends = self.shifted(selector.shift, grid)?;
        let lookback_ms = self.limits.lookback_ms;
        let (mut vector, mut size) = (Vec::new(), 0usize);
        self.for_each(selector, lookback_ms, &ends, true, &mut |series| {
            self.check_room(cost(&series.samples).saturating_add(size).saturating_add(grid.steps))?;
            if selector.reach == Reach::Smoothed && !as_timestamps {
                let mut values = ends
                    .times()
                    .map(|at_ms| extended::value_at(&series.samples, at_ms, lookback_ms))
                    .collect::<Result<Vec<_>, _>>()?;
                repeat_single(&mut values, grid.steps);
                if values.iter().any(Option::is_some) {
                    let series = StepSeries { labels: series.labels, values };
                    size = size.saturating_add(series.size());
                    vector.push(series);
                }
                return self.check_room(size);
            }
            let mut samples = series.samples.iter().peekable();
            let mut newest: Option<&Sample> = None;
            let mut value_at = |end_ms| {
                while let Some(sample) = samples.next_if(|s| s.timestamp_ms <= end_ms) {
                    newest = Some(sample);
                }
                newest
                    .filter(|s| s.timestamp_ms > end_ms - lookback_ms && !s.value.is_stale())
                    .map(|s| if as_timestamps { Value::Float(s.timestamp_ms as f64 / 1000.0) } else { s.value.clone() })
            };
            let mut values: Vec<Option<Value>> = ends.times().map(&mut value_at).collect();
            repeat_single(&mut values, grid.steps);
            if values.iter().any(Option::is_some) {
                let series = StepSeries { labels: series.labels, values };
                size = size.saturating_add(series.size());
                vector.push(series);
            }
            self.check_room(size)
        })?;
        vector.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(vector)
    }

    /// The windows of a range selector or subquery, and each of its series in turn, without stale markers. If whoever asks
    /// does not `need_repeats`, a value that held from tick to tick may stand there once only.
    pub(super) fn windows(
        &self,
        node: &Node,
        grid: &Grid,
        need_repeats: bool,
        visit: &mut dyn FnMut(Windows, SelectedSeries) -> Result<(), QueryError>,
    ) -> Result<(), QueryError> {
        match &node.expr {
            Expr::Window { selector, range_ms } => {
                let ends = self.shifted(selector.shift, grid)?;
                let lookback_ms = self.limits.lookback_ms;
                let windows = Windows { range_ms: *range_ms, ends, reach: selector.reach, lookback_ms };
                // A value that stands once is in the first window; further windows would miss it.
                let repeats = need_repeats || windows.ends.steps > 1 || selector.reach != Reach::Within;
                self.for_each_window(node.span, &windows, selector, repeats, &mut |mut series| {
                    let mut size = 0;
                    series.samples.retain(|sample| {
                        size += weight(&sample.value);
                        !sample.value.is_stale()
                    });
                    self.check_room(size)?;
                    visit(windows, series)
                })
            }
            Expr::Subquery(subquery) => {
                let ends = self.shifted(subquery.shift, grid)?;
                let windows = Windows { range_ms: subquery.range_ms, ends, reach: Reach::Within, lookback_ms: 0 };
                let Some((inner, series)) = self.subquery(subquery, &windows)? else { return Ok(()) };
                series.into_iter().try_for_each(|s| {
                    self.look_at_clock()?;
                    visit(windows, SelectedSeries { labels: s.labels, samples: inner.samples(s.values) })
                })
            }
            _ => Err(QueryError::BadData(format!("expected type range vector, got {}", node.kind()))),
        }
    }

    /// The series of a range selector. One that stands in the query again is read once, if that is not much.
    fn for_each_window(
        &self,
        span: Span,
        windows: &Windows,
        selector: &Selector,
        repeats: bool,
        visit: &mut Visit<'_>,
    ) -> Result<(), QueryError> {
        let Windows { range_ms, ends, .. } = *windows;
        let text = self.text.get(span.start..span.end).unwrap_or_default();
        if repeats || self.text.matches(text).nth(1).is_none() {
            return self.for_each(selector, range_ms, &ends, repeats, visit);
        }
        let key = (text.to_owned(), range_ms, (ends.start_ms, ends.step_ms, ends.steps));
        let kept = self.kept.borrow().get(&key).map(Rc::clone);
        if let Some(kept) = kept {
            return kept.iter().try_for_each(|series| {
                self.check_deadline()?;
                visit(series.clone())
            });
        }
        let (mut keep, mut left) = (Vec::new(), Some(self.keepable.get()));
        self.for_each(selector, range_ms, &ends, repeats, &mut |series| {
            left = left.and_then(|left| left.checked_sub(cost(&series.samples)));
            if left.is_some() {
                keep.push(series.clone());
            }
            visit(series)
        })?;
        if let Some(left) = left {
            self.keepable.set(left);
            self.kept.borrow_mut().insert(key, keep.into());
        }
        Ok(())
    }

    /// The steps of a subquery and its series there; `None` if no step falls into a window.
    fn subquery(&self, subquery: &Subquery, windows: &Windows) -> Result<Option<(Grid, Vec<StepSeries>)>, QueryError> {
        let ends = &windows.ends;
        let step_ms = subquery.step_ms.unwrap_or(self.limits.subquery_step_ms).max(1);
        // The first multiple of the step after the first window's open end.
        let after = check_time(ends.start_ms - subquery.range_ms)?;
        let start_ms = (after.div_euclid(step_ms) + 1) * step_ms;
        if start_ms > ends.end_ms() {
            return Ok(None);
        }
        let inner = Grid::new(start_ms, ends.end_ms(), step_ms)?;
        self.check_room(inner.steps)?;
        let series = self.eval_vector(&subquery.inner, &inner)?;
        self.look_at_clock()?;
        Ok(Some((inner, series)))
    }

    /// The samples of a range selector or subquery as they are: what an instant query of `x[5m]` returns.
    pub(super) fn matrix(&self, node: &Node, time_ms: i64) -> Result<Vec<RangeSeries>, QueryError> {
        let mut matrix = Vec::new();
        let mut held = 0usize;
        self.windows(node, &Grid::new(time_ms, time_ms, 1)?, true, &mut |windows, series| {
            let end_ms = windows.ends.start_ms;
            let within = |s: &Sample| s.timestamp_ms > end_ms - windows.range_ms && s.timestamp_ms <= end_ms;
            let samples: Vec<Sample> = match windows.reach {
                Reach::Within => series.samples.into_iter().filter(within).collect(),
                reach => extended::samples(&series.samples, end_ms - windows.range_ms, end_ms, reach)?,
            };
            held = held.saturating_add(cost(&samples));
            self.check_room(held)?;
            if !samples.is_empty() {
                matrix.push(RangeSeries { labels: series.labels, samples });
            }
            Ok(())
        })?;
        matrix.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(matrix)
    }

    /// The grid on which a selector looks when the expression is evaluated on `grid`. One step, if `@` fixes it.
    fn shifted(&self, shift: TimeShift, grid: &Grid) -> Result<Grid, QueryError> {
        let fixed = match shift.at {
            None => None,
            Some(At::Start) => Some(self.query.start_ms),
            Some(At::End) => Some(self.query.end_ms()),
            Some(At::Time(time_ms)) => Some(time_ms),
        };
        let start_ms = check_time(fixed.unwrap_or(grid.start_ms) - shift.offset_ms)?;
        let steps = if fixed.is_some() { 1 } else { grid.steps };
        Ok(Grid { start_ms, step_ms: grid.step_ms, steps })
    }

    /// Visits the series of a selector, each with the samples that windows of `range_ms`, open to the left, need.
    fn for_each(
        &self,
        selector: &Selector,
        range_ms: i64,
        ends: &Grid,
        repeats: bool,
        visit: &mut Visit<'_>,
    ) -> Result<(), QueryError> {
        let lookback_ms = self.limits.lookback_ms;
        let reach = Windows { range_ms, ends: *ends, reach: selector.reach, lookback_ms };
        let (before_ms, after_ms) = reach.margins();
        let selection = Selection {
            matchers: selector.matchers.clone(),
            start_ms: ends.start_ms - range_ms - before_ms + 1,
            end_ms: ends.end_ms() + after_ms,
            repeats,
            part: crate::store::Part::Whole,
            samples_max: self.limits.samples_max.saturating_sub(self.held.get()),
        };
        let mut failed = None;
        let look = || self.look_at_clock().map_err(|_| StoreError::Stopped);
        let ended = select::for_each(self.select, self.ladder, &selection, &look, &mut |series| {
            self.check_deadline().and_then(|()| visit(series)).map_err(|error| {
                failed = Some(error);
                StoreError::Stopped
            })
        });
        match (failed, ended) {
            (Some(error), _) => Err(error),
            (None, Err(StoreError::Stopped)) => self.look_at_clock(),
            (None, ended) => Ok(ended?),
        }
    }

    /// An error if `more` values on top of what is held would be too many.
    pub(super) fn check_room(&self, more: usize) -> Result<(), QueryError> {
        let total = self.held.get().saturating_add(more);
        if total > self.limits.samples_max { Err(QueryError::TooManySamples) } else { Ok(()) }
    }

    /// An error if the labels that the query itself makes, `bytes` more for one series, are too long: it may make of short ones very
    /// long ones, or copy them to very many series.
    pub(super) fn count_labels(&self, bytes: usize) -> Result<(), QueryError> {
        const SAMPLE_BYTES: usize = 16;
        const SERIES_BYTES_MAX: usize = 1 << 20;
        let total = self.made_labels.get().saturating_add(bytes);
        self.made_labels.set(total);
        self.check_deadline()?;
        let is_too_much = bytes > SERIES_BYTES_MAX || total / SAMPLE_BYTES > self.limits.samples_max;
        if is_too_much { Err(QueryError::TooManySamples) } else { Ok(()) }
    }

    /// As [`Deadline::check`].
    pub(super) fn check_deadline(&self) -> Result<(), QueryError> {
        self.deadline.check()
    }

    /// As [`Deadline::look`].
    pub(super) fn look_at_clock(&self) -> Result<(), QueryError> {
        self.deadline.look()
    }
}

/// What samples take of the budget.
fn cost(samples: &[Sample]) -> usize {
    samples.iter().map(|sample| weight(&sample.value)).sum()
}

/// Spreads the value of a fixed time (`@`) over all steps.
pub(super) fn repeat_single(values: &mut Vec<Option<Value>>, steps: usize) {
    if let [single] = values.as_slice() {
        let single = single.clone();
        values.resize(steps, single);
    }
}
