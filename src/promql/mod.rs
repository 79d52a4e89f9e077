//! `PromQL` as Prometheus 3 defines it, over anything that can select series.
//!
//! `parse` makes checked nodes of the text; `eval` evaluates them. An instant
//! query is a range query of one step: every operator takes and returns whole series over all steps, so that samples are
//! selected once, labels are worked out once per series, and a window only slides over samples that stay where they are.
//! Of what a selector finds, one series at a time is in memory with all its samples.
//!
//! | stage | where |
//! |---|---|
//! | text → checked nodes, hostile text refused | `lex`, `parse`, `node`, `regex` |
//! | matchers → series; classic names of histograms | `select` |
//! | selectors, subqueries, the budget of samples and time | `eval` |
//! | `x[5m]` → one value per step | `range`, `rate`, `extended` |
//! | operators, aggregations | `binary`, `aggregate` |
//! | functions | `functions`, `histograms`, `quantile`, `relabel`, `calendar`, `info` |
//! | warnings and infos | `annotations` |
//!
//! What is missing, and where the answer is not Prometheus's, is in `docs/promql.md`. Names are dropped at once
//! (Prometheus's default, no delayed name removal).

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

mod aggregate;
mod annotations;
mod binary;
mod calendar;
mod deadline;
mod error;
mod eval;
mod extended;
mod functions;
mod histograms;
mod info;
mod lex;
mod node;
mod parse;
mod quantile;
mod range;
mod rate;
mod regex;
mod relabel;
mod select;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod value;
mod xxhash;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use error::QueryError;
pub use parse::parse_duration_ms;
pub use value::{InstantSample, QueryValue, RangeSeries};

use self::deadline::Deadline;
use self::eval::{Evaluator, Grid};
use self::node::{Expr, Kind};
use self::parse::{QueryTimes, TIME_MAX_MS};
use self::value::{Operand, StepSeries};
use crate::model::{Labels, Ladder, Sample, Value};
use crate::store::{Matcher, Select, Selection};

/// The most steps a range query may have, as in Prometheus's API.
pub const STEPS_MAX: i64 = 11_000;

/// After so long without a sample a series is no longer there: 5 minutes, as in Prometheus.
const LOOKBACK_MS: i64 = 300_000;

/// What one query may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How many samples a query may hold at once: 50,000,000, Prometheus's `--query.max-samples`.
    pub samples_max: usize,
    /// How long a query may run: 2 minutes, Prometheus's `--query.timeout`.
    pub timeout: Duration,
    /// How far back an instant selector looks, in milliseconds: 5 minutes, Prometheus's `--query.lookback-delta`.
    pub lookback_ms: i64,
    /// The step of a subquery that names none, in milliseconds: 1 minute, Prometheus's default evaluation interval.
    pub subquery_step_ms: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            samples_max: 50_000_000,
            timeout: Duration::from_secs(120),
            lookback_ms: LOOKBACK_MS,
            subquery_step_ms: 60_000,
        }
    }
}

/// What is wanted of one query otherwise than the limits say.
#[derive(Debug, Clone, Default)]
pub struct QueryOptions {
    /// How long it may run, if that is less.
    pub timeout: Option<Duration>,
    /// How far back an instant selector looks, in milliseconds, more than 0.
    pub lookback_ms: Option<i64>,
    /// Set from outside once nobody waits for the answer: the query ends soon after that, with [`QueryError::Canceled`].
    pub is_gone: Arc<AtomicBool>,
}

/// What a query returns, and what is to be said beside it, in Prometheus's words.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The value.
    pub value: QueryValue,
    /// What is probably wrong with the value: at most 10, and how many more there were.
    pub warnings: Vec<String>,
    /// What is perhaps wrong with the query: as many.
    pub infos: Vec<String>,
}

/// Answers queries over one source of series.
pub struct Engine {
    select: Arc<dyn Select>,
    ladder: Ladder,
    limits: Limits,
}

impl Engine {
    /// An engine over `select`, each query within `limits`.
    pub fn new(select: Arc<dyn Select>, limits: Limits) -> Self {
        Self { select, ladder: Ladder::default(), limits }
    }

    /// The bounds that `h_bucket` of a histogram `h` has, in place of the default ones.
    #[must_use]
    pub fn with_ladder(self, ladder: Ladder) -> Self {
        Self { ladder, ..self }
    }

    /// What a query may take at most.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The value of `expression` at `time_ms`.
    pub fn instant(&self, expression: &str, time_ms: i64) -> Result<QueryValue, QueryError> {
        self.instant_with(expression, time_ms, &QueryOptions::default()).map(|answer| answer.value)
    }

    /// As [`Engine::instant`], with annotations, and with what is wanted otherwise.
    pub fn instant_with(&self, expression: &str, time_ms: i64, options: &QueryOptions) -> Result<Answer, QueryError> {
        let times = QueryTimes { start_ms: time_ms, end_ms: time_ms, step_ms: 0 };
        let node = parse::parse(expression, times)?;
        let grid = Grid::new(time_ms, time_ms, 1)?;
        let evaluator = self.evaluator(&grid, options, expression);
        let at_time = |value| Sample { timestamp_ms: time_ms, value };
        let value = if let Expr::Text(text) = node.expr {
            QueryValue::Text { timestamp_ms: time_ms, text }
        } else if node.kind() == Kind::Matrix {
            QueryValue::Matrix(evaluator.matrix(&node, time_ms)?)
        } else {
            match evaluator.eval(&node, &grid)? {
                Operand::Scalar(values) => {
                    QueryValue::Scalar(at_time(Value::Float(values.first().copied().unwrap_or(f64::NAN))))
                }
                Operand::Vector(series) => QueryValue::Vector(
                    series
                        .into_iter()
                        .filter_map(|StepSeries { labels, values }| {
                            let value = values.into_iter().next()??;
                            Some(InstantSample { labels, sample: at_time(value) })
                        })
                        .collect(),
                ),
            }
        };
        let (warnings, infos) = evaluator.notes.into_lists();
        Ok(Answer { value, warnings, infos })
    }

    /// The values of `expression` from `start_ms` to `end_ms`, both included, every `step_ms`.
    pub fn range(&self, expression: &str, start_ms: i64, end_ms: i64, step_ms: i64) -> Result<QueryValue, QueryError> {
        self.range_with(expression, start_ms, end_ms, step_ms, &QueryOptions::default()).map(|answer| answer.value)
    }

    /// As [`Engine::range`], with annotations, and with what is wanted otherwise.
    pub fn range_with(
        &self,
        expression: &str,
        start_ms: i64,
        end_ms: i64,
        step_ms: i64,
        options: &QueryOptions,
    ) -> Result<Answer, QueryError> {
        let node = parse::parse(expression, QueryTimes { start_ms, end_ms, step_ms })?;
        if !matches!(node.kind(), Kind::Scalar | Kind::Vector) {
            return Err(QueryError::BadData(format!(
                "invalid expression type \"{}\" for range query, must be Scalar or instant Vector",
                node.kind()
            )));
        }
        let grid = Grid::new(start_ms, end_ms, step_ms)?;
        let evaluator = self.evaluator(&grid, options, expression);
        let mut series = match evaluator.eval(&node, &grid)? {
            Operand::Scalar(values) => vec![StepSeries {
                labels: Labels::empty(),
                values: values.into_iter().map(|v| Some(Value::Float(v))).collect(),
            }],
            Operand::Vector(series) => series,
        };
        value::refuse_same_labels(&series)?;
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        let matrix = series
            .into_iter()
            .map(|s| RangeSeries { samples: grid.samples(s.values), labels: s.labels })
            .filter(|s| !s.samples.is_empty())
            .collect();
        let (warnings, infos) = evaluator.notes.into_lists();
        Ok(Answer { value: QueryValue::Matrix(matrix), warnings, infos })
    }

    /// The labels of the series that match any of `selectors` (`up`, `{job="x"}`) and were there between two times, both
    /// included, as far as can be told without reading samples; all series if there is no selector. Sorted, each once.
    pub fn series(
        &self,
        selectors: &[String],
        start_ms: i64,
        end_ms: i64,
        options: &QueryOptions,
    ) -> Result<Vec<Labels>, QueryError> {
        let mut wanted: Vec<Vec<Matcher>> = Vec::new();
        for selector in selectors {
            match parse::parse(selector, QueryTimes::default())?.expr {
                Expr::Select(selector) => wanted.push(selector.matchers),
                _ => return Err(QueryError::BadData(format!("expected a series selector, got {selector}"))),
            }
        }
        if wanted.is_empty() {
            wanted.push(Vec::new());
        }
        let deadline = self.deadline(options);
        let (start_ms, end_ms) = (start_ms.max(-TIME_MAX_MS), end_ms.min(TIME_MAX_MS));
        let samples_max = self.limits.samples_max;
        let mut found = Vec::new();
        // One by one, so that however many there are take no longer, and no more memory, than a query may.
        for matchers in wanted {
            deadline.look()?;
            let selection =
                Selection { matchers, start_ms, end_ms, repeats: false, part: crate::store::Part::Whole, samples_max };
            found.extend(select::labels(&*self.select, &self.ladder, &selection, &deadline)?);
            found.sort_unstable();
            found.dedup();
        }
        Ok(found)
    }

    fn deadline(&self, options: &QueryOptions) -> Deadline {
        let timeout = options.timeout.map_or(self.limits.timeout, |timeout| timeout.min(self.limits.timeout));
        Deadline::new(timeout, &options.is_gone)
    }

    fn evaluator<'a>(&'a self, grid: &Grid, options: &QueryOptions, text: &'a str) -> Evaluator<'a> {
        let lookback_ms = options.lookback_ms.unwrap_or(self.limits.lookback_ms).min(TIME_MAX_MS);
        let limits = Limits { lookback_ms, ..self.limits.clone() };
        Evaluator::new(&*self.select, &self.ladder, limits, grid, self.deadline(options), text)
    }
}

/// Refuses times so far away that arithmetic on them could overflow.
fn check_time(time_ms: i64) -> Result<i64, QueryError> {
    if (-TIME_MAX_MS..=TIME_MAX_MS).contains(&time_ms) {
        return Ok(time_ms);
    }
    Err(QueryError::BadData(format!("time out of range: {time_ms} ms, want at most {TIME_MAX_MS} ms from 1970")))
}
