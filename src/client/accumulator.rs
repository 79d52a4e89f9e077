//! What accumulates in one context between two flushes: a sum, a last value, or a distribution.

use std::collections::BTreeMap;

use super::account::DropReason;
use super::table::Kind;
use crate::model::{BucketPlace, SCHEMA_DEFAULT, SCHEMA_MIN};

/// Values of a histogram kept as they are until the next flush; past that they fall into buckets.
const VALUES_EXACT_MAX: usize = 64;
/// Buckets of one histogram context; past that they get coarser.
const BUCKETS_MAX: usize = 512;
/// Samples that one message stands for at most: other servers loop over them.
const WEIGHT_MAX: u64 = 10_000;

/// What has accumulated in a context since the last flush.
#[derive(Debug)]
pub(super) enum Accumulator {
    Counter(Option<f64>),
    Gauge(Option<f64>),
    Histogram(Distribution),
}

/// The values of a histogram context: exact while few, then in exponential buckets with exact count and sum each.
#[derive(Debug)]
pub(super) struct Distribution {
    values: Vec<f64>,
    schema: i8,
    buckets: BTreeMap<BucketPlace, (u64, f64)>,
}

/// What one line of a payload says of a context.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A counter's sum.
    Counter(f64),
    /// A gauge's last value.
    Gauge(f64),
    /// Values of a histogram as they were.
    Values(Vec<f64>),
    /// Values that fell into one bucket.
    Bucket { mean: f64, weight: u32 },
}

impl Accumulator {
    pub(super) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(None),
            Kind::Gauge => Self::Gauge(None),
            Kind::Histogram => {
                Self::Histogram(Distribution { values: Vec::new(), schema: SCHEMA_DEFAULT, buckets: BTreeMap::new() })
            }
        }
    }

    /// Adds one call's value.
    pub(super) fn add(&mut self, value: f64) -> Result<(), DropReason> {
        match self {
            Self::Counter(sum) => {
                let grown = sum.unwrap_or(0.0) + value;
                if !grown.is_finite() {
                    return Err(DropReason::NotFinite);
                }
                *sum = Some(grown);
            }
            Self::Gauge(last) => *last = Some(value),
            Self::Histogram(distribution) => distribution.add(value, 1),
        }
        Ok(())
    }

    /// Takes back what was refused. A gauge that has been set since stays as it is.
    pub(super) fn restore(&mut self, content: Content) -> Result<(), DropReason> {
        match (self, content) {
            (Self::Gauge(last), Content::Gauge(value)) => {
                last.get_or_insert(value);
            }
            (Self::Histogram(distribution), Content::Values(values)) => {
                values.iter().for_each(|value| distribution.add(*value, 1));
            }
            (Self::Histogram(distribution), Content::Bucket { mean, weight }) => distribution.add(mean, weight),
            (counter, Content::Counter(sum)) => counter.add(sum)?,
            _ => {}
        }
        Ok(())
    }

    /// Takes what has accumulated from `calls` calls, as parts that fit into one line each, and leaves nothing.
    pub(super) fn take(&mut self, calls: u64, line_values_max: usize, mut part: impl FnMut(Content, u64)) {
        match self {
            Self::Counter(sum) => {
                if let Some(sum) = sum.take() {
                    part(Content::Counter(sum), calls);
                }
            }
            Self::Gauge(value) => {
                if let Some(value) = value.take() {
                    part(Content::Gauge(value), calls);
                }
            }
            Self::Histogram(distribution) => distribution.take(line_values_max, part),
        }
    }
}

impl Distribution {
    fn add(&mut self, value: f64, weight: u32) {
        if weight == 1 && self.buckets.is_empty() && self.values.len() < VALUES_EXACT_MAX {
            self.values.push(value);
            return;
        }
        for exact in std::mem::take(&mut self.values) {
            self.fold(exact, 1);
        }
        self.fold(value, u64::from(weight));
    }

    fn fold(&mut self, value: f64, weight: u64) {
        let bucket = self.buckets.entry(BucketPlace::of(value, self.schema)).or_default();
        bucket.0 += weight;
        bucket.1 += value * weight as f64;
        while self.buckets.len() > BUCKETS_MAX && self.schema > SCHEMA_MIN {
            self.schema -= 1;
            for (place, (count, sum)) in std::mem::take(&mut self.buckets) {
                let bucket = self.buckets.entry(place.coarser()).or_default();
                bucket.0 += count;
                bucket.1 += sum;
            }
        }
    }

    fn take(&mut self, line_values_max: usize, mut part: impl FnMut(Content, u64)) {
        self.values.chunks(line_values_max).for_each(|v| part(Content::Values(v.to_vec()), v.len() as u64));
        self.values.clear();
        for (place, (count, sum)) in std::mem::take(&mut self.buckets) {
            let mean = place.clamp(sum / count as f64, self.schema);
            let mut left = count;
            while left > 0 {
                let weight = left.min(WEIGHT_MAX);
                part(Content::Bucket { mean, weight: weight as u32 }, weight);
                left -= weight;
            }
        }
        self.schema = SCHEMA_DEFAULT;
    }
}
