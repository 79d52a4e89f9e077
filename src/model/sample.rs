//! A sample: what one series was at one time.

use std::sync::Arc;

use super::ExponentialHistogram;

/// The number of a series inside one data directory: given once, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesId(pub u32);

/// What a metric name is. One name has one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MetricKind {
    /// A total that only grows.
    Counter,
    /// A value that is set.
    Gauge,
    /// A distribution of values.
    Histogram,
}

impl MetricKind {
    /// Prometheus's word for the kind, as in `# TYPE` lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The value of a sample.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A counter's total or a gauge's value, or the stale marker.
    Float(f64),
    /// The cumulative histogram of a series.
    Histogram(Arc<ExponentialHistogram>),
}

/// The bits of Prometheus's stale marker (`model/value` in its source: `StaleNaN`), one particular NaN.
const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

impl Value {
    /// The marker which says that the series has ended here.
    pub fn stale() -> Self {
        Self::Float(f64::from_bits(STALE_NAN_BITS))
    }

    /// True for the stale marker; false for every other value, other NaNs included.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Float(v) if v.to_bits() == STALE_NAN_BITS)
    }

    /// The float, `None` for a histogram.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(v) => Some(*v),
            Self::Histogram(_) => None,
        }
    }

    /// The histogram, `None` for a float.
    pub fn as_histogram(&self) -> Option<&ExponentialHistogram> {
        match self {
            Self::Float(_) => None,
            Self::Histogram(h) => Some(h),
        }
    }
}

/// What a series was at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// What the series was.
    pub value: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stale_marker_is_stale() {
        assert!(Value::stale().is_stale());
        assert!(!Value::Float(f64::NAN).is_stale());
        assert!(!Value::Float(0.0).is_stale());
    }
}
