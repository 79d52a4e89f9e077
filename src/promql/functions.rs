//! Functions: the table of those supported, and those that take instant vectors.

use hashbrown::HashMap;

use super::QueryError;
use super::aggregate::compare;
use super::eval::{Evaluator, Grid};
use super::node::{Node, Selector};
use super::quantile::{self, ClassicBucket};
use super::range::{self, WindowFunction};
use super::value::{Operand, StepSeries, merge_same_labels, refuse_same_labels};
use crate::model::{ExponentialHistogram, Labels, Value};
use crate::store::MatchOp;

/// A function of the language.
#[derive(Debug, Clone, Copy)]
pub(super) enum Function {
    /// A float to a float; histograms are dropped.
    Float(fn(f64) -> f64),
    /// A histogram to a float; floats are dropped.
    Histogram(fn(&ExponentialHistogram) -> f64),
    /// A window of samples to a value.
    Window(WindowFunction),
    AbsentOverTime,
    Absent,
    Clamp,
    ClampMin,
    ClampMax,
    Round,
    Scalar,
    Vector,
    Time,
    Timestamp,
    Sort {
        is_descending: bool,
    },
    HistogramQuantile,
}

impl Function {
    /// The function of that name, `None` if it is not supported.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "abs" => Self::Float(f64::abs),
            "ceil" => Self::Float(f64::ceil),
            "floor" => Self::Float(f64::floor),
            "sqrt" => Self::Float(f64::sqrt),
            "exp" => Self::Float(f64::exp),
            "ln" => Self::Float(f64::ln),
            "log2" => Self::Float(f64::log2),
            "log10" => Self::Float(f64::log10),
            "sgn" => Self::Float(|v| if v == 0.0 || v.is_nan() { v } else { v.signum() }),
            "histogram_count" => Self::Histogram(ExponentialHistogram::count),
            "histogram_sum" => Self::Histogram(ExponentialHistogram::sum),
            "histogram_avg" => Self::Histogram(|h| h.sum() / h.count()),
            "histogram_quantile" => Self::HistogramQuantile,
            "absent" => Self::Absent,
            "absent_over_time" => Self::AbsentOverTime,
            "clamp" => Self::Clamp,
            "clamp_min" => Self::ClampMin,
            "clamp_max" => Self::ClampMax,
            "round" => Self::Round,
            "scalar" => Self::Scalar,
            "vector" => Self::Vector,
            "time" => Self::Time,
            "timestamp" => Self::Timestamp,
            "sort" => Self::Sort { is_descending: false },
            "sort_desc" => Self::Sort { is_descending: true },
            _ => Self::Window(WindowFunction::named(name)?),
        })
    }
}

pub(super) fn eval(
    evaluator: &Evaluator<'_>,
    function: Function,
    args: &[Node],
    grid: &Grid,
) -> Result<Operand, QueryError> {
    let vector = |at: usize| evaluator.eval_vector(arg(args, at)?, grid);
    let scalar = |at: usize| evaluator.eval_scalar(arg(args, at)?, grid);
    let constant = |value: f64| vec![value; grid.steps];
    Ok(Operand::Vector(match function {
        Function::Time => return Ok(Operand::Scalar(grid.times().map(|ms| ms as f64 / 1000.0).collect())),
        Function::Scalar => return Ok(Operand::Scalar(single_floats(&vector(0)?, grid.steps))),
        Function::Vector => vec![StepSeries {
            labels: Labels::empty(),
            values: scalar(0)?.into_iter().map(|v| Some(Value::Float(v))).collect(),
        }],
        Function::Float(map) => map_floats(vector(0)?, |_, v| Some(map(v)))?,
        Function::Histogram(read) => {
            let read = |_, value: Value| Some(Value::Float(read(value.as_histogram()?)));
            merge_same_labels(vector(0)?.into_iter().map(|s| s.map(false, read)).collect())?
        }
        Function::Clamp => clamp(vector(0)?, &scalar(1)?, &scalar(2)?)?,
        Function::ClampMin => clamp(vector(0)?, &scalar(1)?, &constant(f64::INFINITY))?,
        Function::ClampMax => clamp(vector(0)?, &constant(f64::NEG_INFINITY), &scalar(1)?)?,
        Function::Round => {
            let nearest = if args.len() > 1 { scalar(1)? } else { constant(1.0) };
            map_floats(vector(0)?, |step, v| {
                // Prometheus inverts first, which loses less.
                let inverse = 1.0 / nearest.get(step)?;
                Some((v * inverse + 0.5).floor() / inverse)
            })?
        }
        Function::Timestamp => timestamp(evaluator, arg(args, 0)?, grid)?,
        Function::Absent => {
            let present = vector(0)?;
            absent(arg(args, 0)?, grid.steps, |step| present.iter().any(|s| s.at(step).is_some()))
        }
        Function::AbsentOverTime => {
            let present = range::eval(evaluator, WindowFunction::Present, args, grid, None)?;
            absent(arg(args, 0)?, grid.steps, |step| present.iter().any(|s| s.at(step).is_some()))
        }
        Function::Window(window) => {
            let (at, param) = if window.takes_scalar_first() { (1, Some(scalar(0)?)) } else { (0, None) };
            let args = args.get(at..).unwrap_or_default();
            let vector = range::eval(evaluator, window, args, grid, param.as_deref())?;
            refuse_same_labels(&vector)?;
            vector
        }
        Function::Sort { is_descending } => sort(vector(0)?, grid, is_descending),
        Function::HistogramQuantile => histogram_quantile(&scalar(0)?, &vector(1)?, grid)?,
    }))
}

pub(super) fn arg(args: &[Node], at: usize) -> Result<&Node, QueryError> {
    args.get(at).ok_or_else(|| QueryError::BadData(format!("missing argument {}", at + 1)))
}

fn map_floats(vector: Vec<StepSeries>, map: impl Fn(usize, f64) -> Option<f64>) -> Result<Vec<StepSeries>, QueryError> {
    let map = |step, value: Value| map(step, value.as_float()?).map(Value::Float);
    merge_same_labels(vector.into_iter().map(|s| s.map(false, map)).collect())
}

fn clamp(vector: Vec<StepSeries>, min: &[f64], max: &[f64]) -> Result<Vec<StepSeries>, QueryError> {
    map_floats(vector, |step, v| {
        let (min, max) = (*min.get(step)?, *max.get(step)?);
        // Go's math.Max and math.Min: a NaN on either side is the result.
        let go_max = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
        let go_min = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) };
        if max < min { None } else { Some(go_max(min, go_min(max, v))) }
    })
}

/// The one float of each step, NaN where there is none or more.
fn single_floats(vector: &[StepSeries], steps: usize) -> Vec<f64> {
    let single = |step| {
        let mut floats = vector.iter().filter_map(|s| s.at(step).and_then(Value::as_float));
        match (floats.next(), floats.next()) {
            (Some(single), None) => single,
            _ => f64::NAN,
        }
    };
    (0..steps).map(single).collect()
}

/// When each sample was taken, if that is known because the argument is a selector; else the time of the step.
fn timestamp(evaluator: &Evaluator<'_>, node: &Node, grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let vector = match node {
        Node::Select(selector) => evaluator.instant_vector(selector, grid, true)?,
        _ => evaluator.eval_vector(node, grid)?,
    };
    let is_known = matches!(node, Node::Select(_));
    let time = |step, value| Some(if is_known { value } else { Value::Float(grid.time(step) as f64 / 1000.0) });
    merge_same_labels(vector.into_iter().map(|s| s.map(false, time)).collect())
}

/// 1 where nothing is, labelled with what the selector demands.
fn absent(node: &Node, steps: usize, is_present: impl Fn(usize) -> bool) -> Vec<StepSeries> {
    let labels = match node {
        Node::Select(selector) | Node::Window { selector, .. } => demanded_labels(selector),
        _ => Labels::empty(),
    };
    let values: Vec<_> = (0..steps).map(|step| (!is_present(step)).then_some(Value::Float(1.0))).collect();
    if values.iter().all(Option::is_none) { Vec::new() } else { vec![StepSeries { labels, values }] }
}

/// The labels with one equal-matcher and no other (`createLabelsForAbsentFunction`).
fn demanded_labels(selector: &Selector) -> Labels {
    let matchers = || selector.matchers.iter().filter(|m| m.name != crate::model::METRIC_NAME);
    let equal = |m: &&crate::store::Matcher| match &m.op {
        MatchOp::Equal(value) if matchers().filter(|other| other.name == m.name).count() == 1 => {
            Some((m.name.clone(), value.clone()))
        }
        _ => None,
    };
    Labels::from_pairs(matchers().filter_map(|m| equal(&m)))
}

/// Floats by value, NaN last; only at a single step, since series of a range have no one order.
fn sort(mut vector: Vec<StepSeries>, grid: &Grid, is_descending: bool) -> Vec<StepSeries> {
    for value in vector.iter_mut().flat_map(|s| &mut s.values) {
        *value = value.take().filter(|v| v.as_float().is_some());
    }
    vector.retain(|s| s.values.iter().any(Option::is_some));
    if grid.steps == 1 {
        let float = |s: &StepSeries| s.at(0).and_then(Value::as_float).unwrap_or(f64::NAN);
        vector.sort_by(|a, b| compare(float(a), float(b), is_descending));
    }
    vector
}

fn histogram_quantile(q: &[f64], vector: &[StepSeries], grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    const LE: &str = "le";
    // Series that differ in nothing but `le` are the buckets of one classic histogram.
    let mut classic: HashMap<Labels, Vec<(f64, &StepSeries)>> = HashMap::new();
    for series in vector {
        if let Some(upper) = series.labels.get(LE).and_then(|le| le.parse::<f64>().ok()) {
            classic.entry(series.labels.with(LE, "")).or_default().push((upper, series));
        }
    }
    let buckets_at = |buckets: &[(f64, &StepSeries)], step: usize| -> Vec<ClassicBucket> {
        let bucket = |(upper, series): &(f64, &StepSeries)| {
            Some(ClassicBucket { upper: *upper, count: series.at(step)?.as_float()? })
        };
        buckets.iter().filter_map(bucket).collect()
    };
    let steps = || q.iter().copied().enumerate().take(grid.steps);
    let mut result = Vec::new();
    for series in vector {
        // Where both forms of one histogram meet, Prometheus evaluates neither.
        let twin = classic.get(&series.labels);
        let native = |(step, q): (usize, f64)| {
            let quantile = series.at(step)?.as_histogram()?.quantile(q);
            let is_alone = twin.is_none_or(|twin| buckets_at(twin, step).is_empty());
            is_alone.then_some(Value::Float(quantile))
        };
        result.push(StepSeries { labels: series.labels.without_name(), values: steps().map(native).collect() });
    }
    let natives: HashMap<&Labels, &StepSeries> = vector.iter().map(|s| (&s.labels, s)).collect();
    for (labels, buckets) in &classic {
        let twin = natives.get(labels);
        let quantile = |(step, q): (usize, f64)| {
            let buckets = buckets_at(buckets, step);
            let is_alone = twin.is_none_or(|twin| twin.at(step).and_then(Value::as_histogram).is_none());
            (is_alone && !buckets.is_empty()).then(|| Value::Float(quantile::of_buckets(q, buckets)))
        };
        result.push(StepSeries { labels: labels.without_name(), values: steps().map(quantile).collect() });
    }
    result.retain(|s| s.values.iter().any(Option::is_some));
    result.sort_by(|a, b| a.labels.cmp(&b.labels));
    merge_same_labels(result)
}
