//! A source of series for tests, in memory.

use std::sync::Arc;

use super::{Engine, InstantSample, Limits, QueryValue};
use crate::model::{ExponentialHistogram, Labels, Sample, Value};
use crate::store::{Select, SelectedSeries, Selection, StoreError};

/// Series as a test wrote them down.
#[derive(Default)]
pub(super) struct Memory(Vec<SelectedSeries>);

impl Memory {
    /// Adds a series with samples at these times in seconds.
    pub(super) fn with(mut self, labels: &[(&str, &str)], samples: impl IntoIterator<Item = (i64, Value)>) -> Self {
        let labels = Labels::from_pairs(labels.iter().copied());
        let sample = |(seconds, value)| Sample { timestamp_ms: seconds * 1000, value };
        self.0.push(SelectedSeries { labels, samples: samples.into_iter().map(sample).collect() });
        self
    }

    /// Adds a series of floats at 0 s, 10 s, 20 s …
    pub(super) fn floats(self, labels: &[(&str, &str)], values: &[f64]) -> Self {
        self.with(labels, (0..).step_by(10).zip(values.iter().map(|v| Value::Float(*v))))
    }

    pub(super) fn engine(self) -> Engine {
        self.engine_within(Limits::default())
    }

    pub(super) fn engine_within(self, limits: Limits) -> Engine {
        Engine::new(Arc::new(self), limits)
    }
}

impl Select for Memory {
    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let within = |s: &&Sample| (selection.start_ms..=selection.end_ms).contains(&s.timestamp_ms);
        for series in self.0.iter().filter(|s| selection.matchers.iter().all(|m| m.matches(&s.labels))) {
            let samples: Vec<Sample> = selection.part.of_all(series.samples.iter().filter(within).cloned().collect());
            if samples.len() > selection.samples_max {
                return Err(StoreError::TooManySamples(selection.samples_max));
            }
            if !samples.is_empty() {
                visit(SelectedSeries { labels: series.labels.clone(), samples })?;
            }
        }
        Ok(())
    }
}

/// A histogram of these values.
pub(super) fn histogram_of(values: &[f64]) -> Value {
    let mut h = ExponentialHistogram::default();
    values.iter().for_each(|v| h.record(*v, 1.0));
    Value::Histogram(Arc::new(h))
}

/// An answer as lines: `name{labels} value`, or `labels @seconds value …` for a range; histograms as `count/sum`.
pub(super) fn lines(value: &QueryValue) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Float(v) => crate::model::format_float(*v),
        Value::Histogram(h) => format!("{}/{}", h.count(), h.sum()),
    };
    match value {
        QueryValue::Scalar(sample) => vec![text(&sample.value)],
        QueryValue::Text { text, .. } => vec![format!("{text:?}")],
        QueryValue::Vector(vector) => {
            vector.iter().map(|InstantSample { labels, sample }| format!("{labels} {}", text(&sample.value))).collect()
        }
        QueryValue::Matrix(matrix) => {
            let sample = |s: &Sample| format!(" @{} {}", s.timestamp_ms as f64 / 1000.0, text(&s.value));
            matrix.iter().map(|s| s.samples.iter().fold(s.labels.to_string(), |line, s2| line + &sample(s2))).collect()
        }
    }
}

/// What an instant query returns at this time in seconds, as [`lines`].
pub(super) fn ask(engine: &Engine, expression: &str, seconds: i64) -> Vec<String> {
    match engine.instant(expression, seconds * 1000) {
        Ok(value) => lines(&value),
        Err(error) => panic!("{expression}: {error}"),
    }
}
