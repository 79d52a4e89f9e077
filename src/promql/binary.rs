//! Operators on two operands: arithmetic, comparison, sets, and the matching of series to series.

use hashbrown::{HashMap, HashSet};

use super::QueryError;
use super::eval::{Evaluator, Grid};
use super::lex::go_quote;
use super::node::{Binary, BinaryOp, Cardinality, Grouping, Span};
use super::value::{Operand, StepSeries, histogram, merge_same_labels, same_labels};
use crate::model::{ExponentialHistogram, Labels, METRIC_NAME, Value};

/// An operator where it stands.
#[derive(Clone, Copy)]
struct Operation<'a> {
    evaluator: &'a Evaluator<'a>,
    node: &'a Binary,
    span: Span,
}

pub(super) fn eval(evaluator: &Evaluator<'_>, node: &Binary, span: Span, grid: &Grid) -> Result<Operand, QueryError> {
    let operation = Operation { evaluator, node, span };
    let lhs = evaluator.eval(&node.lhs, grid)?;
    let rhs = evaluator.eval(&node.rhs, grid)?;
    match (lhs, rhs) {
        (Operand::Scalar(lhs), Operand::Scalar(rhs)) => {
            let op = |(l, r)| scalars(node.op, l, r);
            Ok(Operand::Scalar(lhs.into_iter().zip(rhs).map(op).collect::<Option<_>>().ok_or_else(misplaced_set)?))
        }
        (Operand::Vector(vector), Operand::Scalar(scalar)) => vector_scalar(operation, vector, &scalar, false),
        (Operand::Scalar(scalar), Operand::Vector(vector)) => vector_scalar(operation, vector, &scalar, true),
        (Operand::Vector(lhs), Operand::Vector(rhs)) => {
            let sides = Sides::new(lhs, rhs, &node.matching);
            let steps = grid.steps;
            if node.op.is_set() {
                return sides.combine_sets(node.op, steps).map(Operand::Vector);
            }
            sides.match_up(operation, steps).map(Operand::Vector)
        }
    }
}

fn misplaced_set() -> QueryError {
    QueryError::BadData("set operators are not allowed in binary scalar expressions".to_owned())
}

fn arithmetic(op: BinaryOp, l: f64, r: f64) -> Option<f64> {
    Some(match op {
        BinaryOp::Add => l + r,
        BinaryOp::Subtract => l - r,
        BinaryOp::Multiply => l * r,
        BinaryOp::Divide => l / r,
        BinaryOp::Modulo => l % r,
        BinaryOp::Power => l.powf(r),
        BinaryOp::Atan2 => l.atan2(r),
        _ => return None,
    })
}

fn comparison(op: BinaryOp, l: f64, r: f64) -> Option<bool> {
    Some(match op {
        BinaryOp::Equal => l == r,
        BinaryOp::NotEqual => l != r,
        BinaryOp::Less => l < r,
        BinaryOp::LessOrEqual => l <= r,
        BinaryOp::Greater => l > r,
        BinaryOp::GreaterOrEqual => l >= r,
        _ => return None,
    })
}

fn scalars(op: BinaryOp, l: f64, r: f64) -> Option<f64> {
    arithmetic(op, l, r).or_else(|| comparison(op, l, r).map(|holds| f64::from(u8::from(holds))))
}

impl Operation<'_> {
    /// Says that the types of two elements do not go together.
    fn annotate(self, l: &Value, r: &Value) {
        let kind = |value: &Value| if value.as_float().is_some() { "float" } else { "histogram" };
        self.evaluator.notes.incompatible_types(self.span, self.node.op.symbol(), [kind(l), kind(r)]);
    }
}

/// `l op r` and, for comparisons, whether it holds; `None` where the types do not go together, which drops the element.
fn elements(op: BinaryOp, l: &Value, r: &Value) -> Option<(Value, bool)> {
    match (l, r) {
        (Value::Float(l), Value::Float(r)) => match arithmetic(op, *l, *r) {
            Some(result) => Some((Value::Float(result), true)),
            None => Some((Value::Float(*l), comparison(op, *l, *r)?)),
        },
        (Value::Float(factor), Value::Histogram(h)) | (Value::Histogram(h), Value::Float(factor))
            if op == BinaryOp::Multiply =>
        {
            Some((histogram(h.scaled(*factor)), true))
        }
        (Value::Histogram(h), Value::Float(divisor)) if op == BinaryOp::Divide => {
            Some((histogram(h.divided(*divisor)), true))
        }
        (Value::Histogram(l), Value::Histogram(r)) => match op {
            BinaryOp::Add | BinaryOp::Subtract => {
                let mut result = (**l).clone();
                if op == BinaryOp::Add {
                    result.add(r);
                } else {
                    result.subtract(r);
                }
                Some((histogram(result), true))
            }
            BinaryOp::Equal => Some((Value::Histogram(l.clone()), equal(l, r))),
            BinaryOp::NotEqual => Some((Value::Histogram(l.clone()), !equal(l, r))),
            _ => None,
        },
        _ => None,
    }
}

/// Whether two histograms hold the same in the same buckets. Empty buckets at the ends of a span do not count.
pub(super) fn equal(l: &ExponentialHistogram, r: &ExponentialHistogram) -> bool {
    l.schema() == r.schema()
        && l.count() == r.count()
        && l.sum().to_bits() == r.sum().to_bits()
        && l.zero_count() == r.zero_count()
        && l.buckets() == r.buckets()
}

/// Labels as Prometheus writes them in errors: the name is one of them.
fn braced(labels: &Labels) -> String {
    let pair = |(name, value): (&str, &str)| format!("{name}={}", go_quote(value));
    format!("{{{}}}", labels.iter().map(pair).collect::<Vec<_>>().join(", "))
}

/// Arithmetic drops the name, comparison keeps it unless `bool` makes it something else.
fn keeps_name(node: &Binary) -> bool {
    node.op.is_comparison() && !node.return_bool
}

fn vector_scalar(
    operation: Operation<'_>,
    vector: Vec<StepSeries>,
    scalar: &[f64],
    scalar_first: bool,
) -> Result<Operand, QueryError> {
    let node = operation.node;
    if node.op.is_set() {
        return Err(misplaced_set());
    }
    let one = |step: usize, value: Value| -> Option<Value> {
        let scalar = Value::Float(*scalar.get(step)?);
        let (l, r) = if scalar_first { (&scalar, &value) } else { (&value, &scalar) };
        let Some((result, holds)) = elements(node.op, l, r) else {
            operation.annotate(l, r);
            return None;
        };
        if node.return_bool {
            return Some(Value::Float(f64::from(u8::from(holds))));
        }
        // A filter returns the element, on whichever side it stands.
        holds.then_some(if node.op.is_comparison() { value } else { result })
    };
    let mapped = vector.into_iter().map(|s| s.map(keeps_name(node), one)).collect();
    Ok(Operand::Vector(merge_same_labels(mapped)?))
}

impl Grouping {
    /// The labels by which series belong together.
    pub(super) fn key(&self, labels: &Labels) -> Labels {
        labels.filtered(|name| if self.only { self.lists(name) } else { name != METRIC_NAME && !self.lists(name) })
    }

    fn lists(&self, name: &str) -> bool {
        self.labels.iter().any(|label| label == name)
    }
}

/// In place of a series' number: a side that is filled.
const FILLED: usize = usize::MAX;

/// Both operands, each series with the number of its match group.
struct Sides {
    lhs: Vec<StepSeries>,
    rhs: Vec<StepSeries>,
    lhs_groups: Vec<usize>,
    rhs_groups: Vec<usize>,
    /// The labels of each group.
    groups: Vec<Labels>,
}

impl Sides {
    fn new(lhs: Vec<StepSeries>, rhs: Vec<StepSeries>, matching: &Grouping) -> Self {
        let mut numbers: HashMap<Labels, usize> = HashMap::new();
        let mut number = |series: &StepSeries| {
            let next = numbers.len();
            *numbers.entry(matching.key(&series.labels)).or_insert(next)
        };
        let lhs_groups = lhs.iter().map(&mut number).collect();
        let rhs_groups = rhs.iter().map(&mut number).collect();
        let mut groups = vec![Labels::empty(); numbers.len()];
        for (labels, number) in numbers {
            if let Some(slot) = groups.get_mut(number) {
                *slot = labels;
            }
        }
        Self { lhs, rhs, lhs_groups, rhs_groups, groups }
    }

    fn swapped(self) -> Self {
        Self {
            lhs: self.rhs,
            rhs: self.lhs,
            lhs_groups: self.rhs_groups,
            rhs_groups: self.lhs_groups,
            groups: self.groups,
        }
    }

    /// Which groups have a value at which step, as bits in the order group, step.
    fn presence(series: &[StepSeries], groups: &[usize], group_count: usize, steps: usize) -> Vec<bool> {
        let mut present = vec![false; group_count * steps];
        for (series, group) in series.iter().zip(groups) {
            for (step, value) in series.values.iter().enumerate() {
                if let Some(slot) = present.get_mut(group * steps + step) {
                    *slot |= value.is_some();
                }
            }
        }
        present
    }

    fn combine_sets(mut self, op: BinaryOp, steps: usize) -> Result<Vec<StepSeries>, QueryError> {
        let keep_where = |series: &mut [StepSeries], groups: &[usize], present: &[bool], want: bool| {
            for (series, group) in series.iter_mut().zip(groups) {
                for (step, value) in series.values.iter_mut().enumerate() {
                    if present.get(group * steps + step).copied().unwrap_or(false) != want {
                        *value = None;
                    }
                }
            }
        };
        if op == BinaryOp::Or {
            let present = Self::presence(&self.lhs, &self.lhs_groups, self.groups.len(), steps);
            keep_where(&mut self.rhs, &self.rhs_groups, &present, false);
            self.lhs.append(&mut self.rhs);
        } else {
            let present = Self::presence(&self.rhs, &self.rhs_groups, self.groups.len(), steps);
            keep_where(&mut self.lhs, &self.lhs_groups, &present, op == BinaryOp::And);
        }
        self.lhs.retain(|series| series.values.iter().any(Option::is_some));
        merge_same_labels(self.lhs)
    }

    /// Arithmetic and comparison between series of the same group. Right of here is always the "one" side.
    fn match_up(self, operation: Operation<'_>, steps: usize) -> Result<Vec<StepSeries>, QueryError> {
        let Operation { evaluator, node, .. } = operation;
        let is_swapped = matches!(node.cardinality, Cardinality::OneToMany(_));
        let sides = if is_swapped { self.swapped() } else { self };
        // With `group_right` Prometheus takes `fill_left` for the right side: its tests want that.
        let [fill_many, fill_one] = node.fill.map(|value| value.map(Value::Float));
        let mut result = Matched::new(evaluator, node, steps);
        let mut one_side: Vec<Option<usize>> = vec![None; sides.groups.len()];
        for step in 0..steps {
            evaluator.check_deadline()?;
            evaluator.check_room(result.series.len().saturating_mul(steps))?;
            one_side.fill(None);
            // Where one side is empty nothing matches, and nothing is wrong.
            if fill_many.is_none() && sides.lhs.iter().all(|series| series.at(step).is_none()) {
                continue;
            }
            for (at, (series, group)) in sides.rhs.iter().zip(&sides.rhs_groups).enumerate() {
                if series.at(step).is_none() {
                    continue;
                }
                if let Some(slot) = one_side.get_mut(*group)
                    && let Some(earlier) = slot.replace(at)
                {
                    return Err(sides.duplicate(*group, earlier, at, is_swapped));
                }
            }
            result.begin_step();
            // Of a step Prometheus tells the last pair.
            let mut incompatible = None;
            let mut pair = |group: usize, places: [usize; 2], labels: [&Labels; 2], [many, one]: [&'_ Value; 2]| {
                let (l, r) = if is_swapped { (one, many) } else { (many, one) };
                let Some((value, holds)) = elements(node.op, l, r) else {
                    incompatible = Some((l.clone(), r.clone()));
                    return Ok(());
                };
                result.add(step, group, places, labels, value, holds)
            };
            for (at, (series, group)) in sides.lhs.iter().zip(&sides.lhs_groups).enumerate() {
                let Some(many) = series.at(step) else { continue };
                let one = one_side.get(*group).copied().flatten();
                let one = one.and_then(|at| sides.rhs.get(at).map(|one| (at, &one.labels, one.at(step))));
                if let Some((one_at, labels, Some(one))) = one {
                    pair(*group, [at, one_at], [&series.labels, labels], [many, one])?;
                } else if let Some(one) = &fill_one {
                    let labels = sides.groups.get(*group).unwrap_or(&series.labels);
                    pair(*group, [at, FILLED], [&series.labels, labels], [many, one])?;
                }
            }
            if let Some(many) = &fill_many {
                // Groups that have a series on the side of many are done.
                for (series, group) in sides.lhs.iter().zip(&sides.lhs_groups) {
                    if let (Some(_), Some(slot)) = (series.at(step), one_side.get_mut(*group)) {
                        *slot = None;
                    }
                }
                for (group, one_at) in one_side.iter().enumerate() {
                    let Some((one_at, series)) = one_at.and_then(|at| Some((at, sides.rhs.get(at)?))) else { continue };
                    let (Some(one), Some(labels)) = (series.at(step), sides.groups.get(group)) else { continue };
                    pair(group, [FILLED, one_at], [labels, &series.labels], [many, one])?;
                }
            }
            if let Some((l, r)) = incompatible {
                operation.annotate(&l, &r);
            }
        }
        result.series.retain(|series| series.values.iter().any(Option::is_some));
        Ok(result.series)
    }

    fn duplicate(&self, group: usize, earlier: usize, later: usize, is_swapped: bool) -> QueryError {
        let labels = |at: usize| self.rhs.get(at).map(|s| braced(&s.labels)).unwrap_or_default();
        let pair = [labels(later), labels(earlier)];
        let side = if is_swapped { "left" } else { "right" };
        let group = self.groups.get(group).map(braced).unwrap_or_default();
        QueryError::Execution(format!(
            "found duplicate series for the match group {group} on the {side} hand-side of the operation: [{}];\
             many-to-many matching not allowed: matching labels must be unique on one side",
            pair.join(", ")
        ))
    }
}

/// The result of matching, and what was matched at the current step.
struct Matched<'a> {
    evaluator: &'a Evaluator<'a>,
    node: &'a Binary,
    steps: usize,
    series: Vec<StepSeries>,
    /// Where the result of a pair of series goes, worked out once per pair.
    by_pair: HashMap<[usize; 2], usize>,
    by_labels: HashMap<Labels, usize>,
    seen_groups: HashSet<usize>,
    seen_results: HashSet<(usize, usize)>,
}

impl<'a> Matched<'a> {
    fn new(evaluator: &'a Evaluator<'a>, node: &'a Binary, steps: usize) -> Self {
        Self {
            evaluator,
            node,
            steps,
            series: Vec::new(),
            by_pair: HashMap::new(),
            by_labels: HashMap::new(),
            seen_groups: HashSet::new(),
            seen_results: HashSet::new(),
        }
    }

    fn begin_step(&mut self) {
        self.seen_groups.clear();
        self.seen_results.clear();
    }

    /// Enters the result of one pair, `labels` those of the "many" and of the "one" side.
    fn add(
        &mut self,
        step: usize,
        group: usize,
        pair: [usize; 2],
        labels: [&Labels; 2],
        value: Value,
        holds: bool,
    ) -> Result<(), QueryError> {
        if !holds && !self.node.return_bool {
            return Ok(());
        }
        let at = self.place(pair, labels)?;
        let is_first = match self.node.cardinality {
            Cardinality::OneToOne => self.seen_groups.insert(group),
            _ => self.seen_results.insert((group, at)),
        };
        if !is_first {
            let message = match self.node.cardinality {
                Cardinality::OneToOne => "many-to-one matching must be explicit (group_left/group_right)",
                _ => "grouping labels must ensure unique matches",
            };
            return Err(QueryError::Execution(format!("multiple matches for labels: {message}")));
        }
        let value = if self.node.return_bool { Value::Float(f64::from(u8::from(holds))) } else { value };
        let Some(series) = self.series.get_mut(at) else { return Ok(()) };
        if series.at(step).is_some() {
            return Err(same_labels());
        }
        series.set(step, value);
        Ok(())
    }

    fn place(&mut self, pair: [usize; 2], [many, one]: [&Labels; 2]) -> Result<usize, QueryError> {
        if let Some(at) = self.by_pair.get(&pair) {
            return Ok(*at);
        }
        let labels = self.result_labels(many, one);
        self.evaluator.count_labels(labels.bytes())?;
        let at = *self.by_labels.entry(labels.clone()).or_insert(self.series.len());
        if at == self.series.len() {
            self.series.push(StepSeries::empty(labels, self.steps));
        }
        self.by_pair.insert(pair, at);
        Ok(at)
    }

    /// Prometheus's `resultMetric`.
    fn result_labels(&self, many: &Labels, one: &Labels) -> Labels {
        let mut labels = if keeps_name(self.node) { many.clone() } else { many.without_name() };
        match &self.node.cardinality {
            Cardinality::OneToOne => {
                let matching = &self.node.matching;
                labels = labels.filtered(|name| matching.lists(name) == matching.only);
            }
            Cardinality::ManyToOne(include) | Cardinality::OneToMany(include) => {
                for name in include {
                    labels = labels.with(name, one.get(name).unwrap_or(""));
                }
            }
        }
        labels
    }
}
