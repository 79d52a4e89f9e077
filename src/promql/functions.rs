//! Functions: the table of all, and those that take instant vectors.

use super::aggregate::compare;
use super::eval::{Evaluator, Grid};
use super::node::{Expr, Kind, Node, Selector, Span};
use super::range::{self, WindowFunction};
use super::value::{Operand, StepSeries, merge_same_labels, refuse_same_labels};
use super::{QueryError, calendar, histograms, info, relabel};
use crate::model::{ExponentialHistogram, Labels, METRIC_NAME, Value};
use crate::store::MatchOp;

/// How a function is called.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) name: &'static str,
    pub(super) args: &'static [Kind],
    /// How many times the last argument may stand beyond none: 0, it stands once; -1, as often as one likes.
    pub(super) variadic: i8,
    pub(super) returns: Kind,
    function: Function,
}

/// What a function does.
#[derive(Debug, Clone, Copy)]
enum Function {
    /// A float to a float; histograms are dropped.
    Float(fn(f64) -> f64),
    /// A histogram to a float; floats are dropped.
    Histogram(fn(&ExponentialHistogram) -> f64),
    /// A window of samples to a value.
    Window(WindowFunction),
    /// Seconds since the epoch to a part of the date.
    Date(fn(i64) -> i64),
    AbsentOverTime,
    Absent,
    Clamp,
    ClampMin,
    ClampMax,
    Round,
    Scalar,
    Vector,
    Time,
    Pi,
    Timestamp,
    Sort {
        is_descending: bool,
    },
    SortByLabel {
        is_descending: bool,
    },
    HistogramQuantile,
    HistogramQuantiles,
    HistogramFraction,
    LabelReplace,
    LabelJoin,
    Info,
    /// Of two scalars one.
    OneOf(fn(f64, f64) -> f64),
}

const V: Kind = Kind::Vector;
const M: Kind = Kind::Matrix;
const S: Kind = Kind::Scalar;
const T: Kind = Kind::Text;

/// A function that returns a vector and takes these arguments, no more and no less.
const fn plain(name: &'static str, args: &'static [Kind], function: Function) -> Signature {
    Signature { name, args, variadic: 0, returns: Kind::Vector, function }
}

const fn float(name: &'static str, map: fn(f64) -> f64) -> Signature {
    plain(name, &[V], Function::Float(map))
}

const fn window(name: &'static str, function: WindowFunction) -> Signature {
    plain(name, &[M], Function::Window(function))
}

const fn date(name: &'static str, part: fn(i64) -> i64) -> Signature {
    Signature { variadic: 1, ..plain(name, &[V], Function::Date(part)) }
}

/// All functions of Prometheus 3.5, the experimental ones included, and a few of later versions.
static SIGNATURES: &[Signature] = &[
    float("abs", f64::abs),
    plain("absent", &[V], Function::Absent),
    plain("absent_over_time", &[M], Function::AbsentOverTime),
    float("acos", f64::acos),
    float("acosh", f64::acosh),
    float("asin", f64::asin),
    float("asinh", f64::asinh),
    float("atan", f64::atan),
    float("atanh", f64::atanh),
    window("avg_over_time", WindowFunction::Avg),
    float("ceil", f64::ceil),
    window("changes", WindowFunction::Changes),
    plain("clamp", &[V, S, S], Function::Clamp),
    plain("clamp_max", &[V, S], Function::ClampMax),
    plain("clamp_min", &[V, S], Function::ClampMin),
    float("cos", f64::cos),
    float("cosh", f64::cosh),
    window("count_over_time", WindowFunction::Count),
    date("day_of_month", calendar::day_of_month),
    date("day_of_week", calendar::day_of_week),
    date("day_of_year", calendar::day_of_year),
    date("days_in_month", calendar::days_in_month),
    float("deg", |v| v * 180.0 / std::f64::consts::PI),
    window("delta", WindowFunction::Delta),
    window("deriv", WindowFunction::Deriv),
    plain("double_exponential_smoothing", &[M, S, S], Function::Window(WindowFunction::Smoothed)),
    float("exp", f64::exp),
    window("first_over_time", WindowFunction::First),
    float("floor", f64::floor),
    plain("histogram_avg", &[V], Function::Histogram(|h| h.sum() / h.count())),
    plain("histogram_count", &[V], Function::Histogram(ExponentialHistogram::count)),
    plain("histogram_fraction", &[S, S, V], Function::HistogramFraction),
    plain("histogram_quantile", &[S, V], Function::HistogramQuantile),
    Signature { variadic: 9, ..plain("histogram_quantiles", &[V, T, S, S], Function::HistogramQuantiles) },
    plain("histogram_stddev", &[V], Function::Histogram(|h| histograms::variance(h).sqrt())),
    plain("histogram_stdvar", &[V], Function::Histogram(histograms::variance)),
    plain("histogram_sum", &[V], Function::Histogram(ExponentialHistogram::sum)),
    date("hour", |s| s.rem_euclid(86_400) / 3600),
    window("idelta", WindowFunction::InstantDelta),
    window("increase", WindowFunction::Increase),
    Signature { variadic: 1, ..plain("info", &[V, V], Function::Info) },
    window("irate", WindowFunction::InstantRate),
    Signature { variadic: -1, ..plain("label_join", &[V, T, T, T], Function::LabelJoin) },
    plain("label_replace", &[V, T, T, T, T], Function::LabelReplace),
    window("last_over_time", WindowFunction::Last),
    float("ln", f64::ln),
    float("log10", f64::log10),
    float("log2", f64::log2),
    window("mad_over_time", WindowFunction::Mad),
    Signature { returns: Kind::Scalar, ..plain("max_of", &[S, S], Function::OneOf(go_max)) },
    window("max_over_time", WindowFunction::Max),
    Signature { returns: Kind::Scalar, ..plain("min_of", &[S, S], Function::OneOf(|a, b| -go_max(-a, -b))) },
    window("min_over_time", WindowFunction::Min),
    date("minute", |s| s.rem_euclid(3600) / 60),
    date("month", calendar::month),
    Signature { returns: Kind::Scalar, ..plain("pi", &[], Function::Pi) },
    plain("predict_linear", &[M, S], Function::Window(WindowFunction::PredictLinear)),
    window("present_over_time", WindowFunction::Present),
    plain("quantile_over_time", &[S, M], Function::Window(WindowFunction::Quantile)),
    float("rad", |v| v * std::f64::consts::PI / 180.0),
    window("rate", WindowFunction::Rate),
    window("resets", WindowFunction::Resets),
    Signature { variadic: 1, ..plain("round", &[V, S], Function::Round) },
    Signature { returns: Kind::Scalar, ..plain("scalar", &[V], Function::Scalar) },
    float("sgn", |v| if v == 0.0 || v.is_nan() { v } else { v.signum() }),
    float("sin", f64::sin),
    float("sinh", f64::sinh),
    plain("sort", &[V], Function::Sort { is_descending: false }),
    Signature { variadic: -1, ..plain("sort_by_label", &[V, T], Function::SortByLabel { is_descending: false }) },
    Signature { variadic: -1, ..plain("sort_by_label_desc", &[V, T], Function::SortByLabel { is_descending: true }) },
    plain("sort_desc", &[V], Function::Sort { is_descending: true }),
    float("sqrt", f64::sqrt),
    window("stddev_over_time", WindowFunction::StdDev),
    window("stdvar_over_time", WindowFunction::StdVar),
    window("sum_over_time", WindowFunction::Sum),
    float("tan", f64::tan),
    float("tanh", f64::tanh),
    Signature { returns: Kind::Scalar, ..plain("time", &[], Function::Time) },
    plain("timestamp", &[V], Function::Timestamp),
    window("ts_of_first_over_time", WindowFunction::TimeOfFirst),
    window("ts_of_last_over_time", WindowFunction::TimeOfLast),
    window("ts_of_max_over_time", WindowFunction::TimeOfMax),
    window("ts_of_min_over_time", WindowFunction::TimeOfMin),
    plain("vector", &[S], Function::Vector),
    date("year", calendar::year),
];

impl Signature {
    /// The function of that name, `None` if there is none.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        SIGNATURES.iter().find(|signature| signature.name == name)
    }

    /// Whether histograms that come out of it are gauges: they may fall (`CounterResetHint` in Prometheus).
    fn makes_gauges(&self) -> bool {
        use WindowFunction::{Delta, Increase, InstantDelta, InstantRate, Rate};
        matches!(self.function, Function::Window(Rate | Increase | Delta | InstantRate | InstantDelta))
    }
}

/// Whether the histograms that an expression gives are gauges, as far as the expression alone tells.
pub(super) fn gives_gauges(node: &Node) -> bool {
    match &node.expr {
        Expr::Call { function, .. } if function.makes_gauges() => true,
        Expr::Call { args, .. } => args.iter().any(gives_gauges),
        Expr::Binary(binary) => gives_gauges(&binary.lhs) || gives_gauges(&binary.rhs),
        Expr::Aggregate(aggregate) => gives_gauges(&aggregate.inner),
        Expr::Unary { inner, .. } | Expr::Paren(inner) => gives_gauges(inner),
        Expr::Subquery(subquery) => gives_gauges(&subquery.inner),
        Expr::Number(_) | Expr::Text(_) | Expr::Select(_) | Expr::Window { .. } => false,
    }
}

pub(super) fn eval(
    evaluator: &Evaluator<'_>,
    signature: &'static Signature,
    args: &[Node],
    grid: &Grid,
) -> Result<Operand, QueryError> {
    let vector = |at: usize| evaluator.eval_vector(arg(args, at)?, grid);
    let scalar = |at: usize| evaluator.eval_scalar(arg(args, at)?, grid);
    let constant = |value: f64| vec![value; grid.steps];
    Ok(Operand::Vector(match signature.function {
        Function::Time => return Ok(Operand::Scalar(grid.times().map(|ms| ms as f64 / 1000.0).collect())),
        Function::Pi => return Ok(Operand::Scalar(constant(std::f64::consts::PI))),
        Function::OneOf(choose) => {
            let (first, second) = (scalar(0)?, scalar(1)?);
            return Ok(Operand::Scalar(first.into_iter().zip(second).map(|(a, b)| choose(a, b)).collect()));
        }
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
        Function::Date(part) if args.is_empty() => vec![StepSeries {
            labels: Labels::empty(),
            values: grid.times().map(|ms| Some(Value::Float(part(ms / 1000) as f64))).collect(),
        }],
        Function::Date(part) => map_floats(vector(0)?, |_, v| Some(part(calendar::seconds(v)) as f64))?,
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
            let node = arg(args, 0)?;
            let call =
                range::Call { function: WindowFunction::Present, arg: node, span: node.span, params: Vec::new() };
            let present = range::eval(evaluator, &call, grid)?;
            absent(arg(args, 0)?, grid.steps, |step| present.iter().any(|s| s.at(step).is_some()))
        }
        Function::Window(function) => {
            let matrix = signature.args.iter().position(|kind| *kind == Kind::Matrix).unwrap_or(0);
            let params = (0..args.len()).filter(|at| *at != matrix).map(scalar).collect::<Result<_, _>>()?;
            let first = arg(args, 0)?;
            // Prometheus puts a selector without a place into that of a subquery.
            let span = if matches!(first.expr, Expr::Subquery(_)) { Span::default() } else { first.span };
            let call = range::Call { function, arg: arg(args, matrix)?, span, params };
            let vector = range::eval(evaluator, &call, grid)?;
            refuse_same_labels(&vector)?;
            vector
        }
        Function::Sort { is_descending } => sort(vector(0)?, grid, is_descending),
        Function::SortByLabel { is_descending } => {
            let mut series = vector(0)?;
            relabel::sort(&mut series, &texts(args, 1), is_descending);
            series
        }
        Function::HistogramQuantile => histograms::quantile(evaluator, args, grid)?,
        Function::HistogramQuantiles => histograms::quantiles(evaluator, args, grid)?,
        Function::HistogramFraction => histograms::fraction(evaluator, args, grid)?,
        Function::LabelReplace => relabel::replace(evaluator, vector(0)?, &texts(args, 1))?,
        Function::LabelJoin => relabel::join(evaluator, vector(0)?, &texts(args, 1))?,
        Function::Info => info::eval(evaluator, args, grid)?,
    }))
}

pub(super) fn arg(args: &[Node], at: usize) -> Result<&Node, QueryError> {
    args.get(at).ok_or_else(|| QueryError::BadData(format!("missing argument {}", at + 1)))
}

/// The arguments from `from` on that are text.
fn texts(args: &[Node], from: usize) -> Vec<&str> {
    args.iter()
        .skip(from)
        .filter_map(|node| match &node.expr {
            Expr::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

fn map_floats(vector: Vec<StepSeries>, map: impl Fn(usize, f64) -> Option<f64>) -> Result<Vec<StepSeries>, QueryError> {
    let map = |step, value: Value| map(step, value.as_float()?).map(Value::Float);
    merge_same_labels(vector.into_iter().map(|s| s.map(false, map)).collect())
}

/// Go's `math.Max`: a NaN on either side is the result, unless an infinity decides.
fn go_max(a: f64, b: f64) -> f64 {
    match (a.is_nan() || b.is_nan(), a == f64::INFINITY || b == f64::INFINITY) {
        (_, true) => f64::INFINITY,
        (true, false) => f64::NAN,
        _ => a.max(b),
    }
}

fn clamp(vector: Vec<StepSeries>, min: &[f64], max: &[f64]) -> Result<Vec<StepSeries>, QueryError> {
    map_floats(vector, |step, v| {
        let (min, max) = (*min.get(step)?, *max.get(step)?);
        let go_min = |a: f64, b: f64| -go_max(-a, -b);
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
    let (vector, is_known) = match &node.expr {
        Expr::Select(selector) => (evaluator.instant_vector(selector, grid, true)?, true),
        _ => (evaluator.eval_vector(node, grid)?, false),
    };
    let time = |step, value| Some(if is_known { value } else { Value::Float(grid.time(step) as f64 / 1000.0) });
    merge_same_labels(vector.into_iter().map(|s| s.map(false, time)).collect())
}

/// 1 where nothing is, labelled with what the selector demands.
fn absent(node: &Node, steps: usize, is_present: impl Fn(usize) -> bool) -> Vec<StepSeries> {
    let labels = match &node.expr {
        Expr::Select(selector) | Expr::Window { selector, .. } => demanded_labels(selector),
        _ => Labels::empty(),
    };
    let values: Vec<_> = (0..steps).map(|step| (!is_present(step)).then_some(Value::Float(1.0))).collect();
    if values.iter().all(Option::is_none) { Vec::new() } else { vec![StepSeries { labels, values }] }
}

/// The labels that a selector demands with `=`; a second condition on one takes it away (`createLabelsForAbsentFunction`).
fn demanded_labels(selector: &Selector) -> Labels {
    let mut had = hashbrown::HashSet::new();
    let mut labels = Labels::empty();
    for matcher in selector.matchers.iter().filter(|m| m.name != METRIC_NAME) {
        labels = match &matcher.op {
            MatchOp::Equal(value) if had.insert(matcher.name.as_str()) => labels.with(&matcher.name, value),
            _ => labels.with(&matcher.name, ""),
        };
    }
    labels
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
