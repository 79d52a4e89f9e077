//! The nouns, without I/O: labels, series, samples and the exponential histogram.
//!
//! Everything past `collector/mapping.rs` speaks of these: a series is a name with labels, a sample is a
//! timestamp with a value, and a value is a float or an exponential histogram.

mod by_labels;
mod histogram;
mod labels;
mod ladder;
mod sample;
mod snapshot;

pub use by_labels::ByLabels;
pub use histogram::{Bucket, BucketSpan, ExponentialHistogram, SCHEMA_DEFAULT, SCHEMA_MAX, SCHEMA_MIN, ZERO_THRESHOLD};
pub(crate) use histogram::{index_of, upper_bound};
pub use labels::{Labels, METRIC_NAME, values_by_label};
pub use ladder::{AtMost, Ladder, classic_le, format_float};
pub use sample::{MetricKind, Sample, SeriesId, Value};
pub use snapshot::{Family, Place, PublishedSeries, Snapshot};
