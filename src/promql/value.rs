//! What a query returns, and what flows between the operators of one.

use std::sync::Arc;

use hashbrown::HashMap;

use super::QueryError;
use crate::model::{ExponentialHistogram, Labels, Sample, Value};

/// The answer to a query.
#[derive(Debug, Clone, PartialEq)]
pub enum QueryValue {
    /// One number: `1 + 1`, `time()`.
    Scalar(Sample),
    /// A string literal.
    Text {
        /// The time the query was asked for.
        timestamp_ms: i64,
        /// The literal.
        text: String,
    },
    /// One sample per series, all at the time of the query. The order is meant: `sort()`, `topk()`.
    Vector(Vec<InstantSample>),
    /// Many samples per series: a range query, or an instant query of `x[5m]`. Sorted by labels.
    Matrix(Vec<RangeSeries>),
}

/// One series of a [`QueryValue::Vector`].
#[derive(Debug, Clone, PartialEq)]
pub struct InstantSample {
    /// The labels that the expression left.
    pub labels: Labels,
    /// The value at the time of the query.
    pub sample: Sample,
}

/// One series of a [`QueryValue::Matrix`].
#[derive(Debug, Clone, PartialEq)]
pub struct RangeSeries {
    /// The labels that the expression left.
    pub labels: Labels,
    /// Its samples in the order of time, at least one.
    pub samples: Vec<Sample>,
}

/// A value per step: what every operator takes and returns.
#[derive(Debug)]
pub(super) enum Operand {
    /// A number at each step.
    Scalar(Vec<f64>),
    /// Series, each with a value or none at each step.
    Vector(Vec<StepSeries>),
}

/// One series over the steps of the evaluation.
#[derive(Debug, Clone)]
pub(super) struct StepSeries {
    pub(super) labels: Labels,
    /// One entry per step; `None` where the series has no value.
    pub(super) values: Vec<Option<Value>>,
}

impl Operand {
    /// What it takes of the budget of samples.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Scalar(values) => values.len(),
            Self::Vector(series) => series.iter().map(StepSeries::size).sum(),
        }
    }
}

impl StepSeries {
    pub(super) fn empty(labels: Labels, steps: usize) -> Self {
        Self { labels, values: vec![None; steps] }
    }

    /// What it takes of the budget of samples, gaps counted.
    pub(super) fn size(&self) -> usize {
        self.values.iter().map(|value| value.as_ref().map_or(1, weight)).sum()
    }

    pub(super) fn at(&self, step: usize) -> Option<&Value> {
        self.values.get(step).and_then(Option::as_ref)
    }

    pub(super) fn set(&mut self, step: usize, value: Value) {
        if let Some(slot) = self.values.get_mut(step) {
            *slot = Some(value);
        }
    }

    /// Applies `map` to every value; the name goes unless `keep_name`.
    pub(super) fn map(self, keep_name: bool, mut map: impl FnMut(usize, Value) -> Option<Value>) -> Self {
        let labels = if keep_name { self.labels } else { self.labels.without_name() };
        let values =
            self.values.into_iter().enumerate().map(|(step, value)| value.and_then(|v| map(step, v))).collect();
        Self { labels, values }
    }
}

/// What a value takes of the budget: a float 1, a histogram as many as its buckets would fill (Prometheus's `HPoint.size`:
/// its bytes by the 16 of a float sample).
pub(super) fn weight(value: &Value) -> usize {
    match value {
        Value::Float(_) => 1,
        Value::Histogram(h) => 12 + h.positive().counts.len().midpoint(h.negative().counts.len()),
    }
}

/// Joins series whose labels became equal, as Prometheus does where they do not meet at one step; those without a value go.
pub(super) fn merge_same_labels(series: Vec<StepSeries>) -> Result<Vec<StepSeries>, QueryError> {
    let mut places: HashMap<Labels, usize> = HashMap::with_capacity(series.len());
    let mut merged: Vec<StepSeries> = Vec::with_capacity(series.len());
    for one in series {
        if one.values.iter().all(Option::is_none) {
            continue;
        }
        let Some(into) = places.get(&one.labels).and_then(|at| merged.get_mut(*at)) else {
            places.insert(one.labels.clone(), merged.len());
            merged.push(one);
            continue;
        };
        for (slot, value) in into.values.iter_mut().zip(one.values) {
            if slot.is_some() && value.is_some() {
                return Err(same_labels());
            }
            *slot = slot.take().or(value);
        }
    }
    Ok(merged)
}

/// Refuses two series with equal labels, also where they do not meet.
pub(super) fn refuse_same_labels(series: &[StepSeries]) -> Result<(), QueryError> {
    let mut seen = hashbrown::HashSet::with_capacity(series.len());
    if series.iter().all(|s| seen.insert(&s.labels)) { Ok(()) } else { Err(same_labels()) }
}

pub(super) fn same_labels() -> QueryError {
    QueryError::Execution("vector cannot contain metrics with the same labelset".to_owned())
}

pub(super) fn histogram(h: ExponentialHistogram) -> Value {
    Value::Histogram(Arc::new(h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_that_became_equal_join_unless_they_meet() {
        let series = |values: [Option<f64>; 2]| StepSeries {
            labels: Labels::empty(),
            values: values.map(|v| v.map(Value::Float)).to_vec(),
        };
        let joined = merge_same_labels(vec![series([Some(1.0), None]), series([None, Some(2.0)])]).expect("no overlap");
        assert_eq!(joined.len(), 1);
        assert_eq!(joined[0].values, [Some(Value::Float(1.0)), Some(Value::Float(2.0))]);
        assert!(merge_same_labels(vec![series([Some(1.0), None]), series([Some(1.0), None])]).is_err());
    }
}
