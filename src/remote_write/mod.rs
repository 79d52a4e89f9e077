//! Remote write 1.0: the body that a sender posts, as series and samples.
//!
//! The messages are those of `prometheus.WriteRequest` (`prompb/remote.proto` and `types.proto` of Prometheus) as far as we use
//! them. A body is checked as a whole first, and then read once more, series by series and in batches, so that a small body
//! never becomes something large in memory. What cannot be kept is refused sample by sample, with a reason, and the rest is
//! taken.
//!
//! # Format
//!
//! Snappy's block format around:
//!
//! ```text
//! WriteRequest = 1: TimeSeries*
//! TimeSeries   = 1: Label*  2: Sample*  4: Histogram*         (3, exemplars, is passed over)
//! Label        = 1: name  2: value
//! Sample       = 1: value (double)  2: milliseconds since the Unix epoch (varint)
//! ```

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

mod fields;
mod histogram;

use std::collections::BTreeMap;

use self::fields::{Field, Fields};
use crate::model::{Labels, METRIC_NAME, Sample, Value};
use crate::store::WrittenSeries;

/// No body may be longer than this, compressed or not.
pub const BODY_BYTES_MAX: usize = 32 << 20;

/// A batch ends with so many samples, or so many buckets.
const BATCH_SAMPLES: usize = 10_000;
const BATCH_BUCKETS: usize = 500_000;

/// No series may have more labels than this, or longer ones together.
const LABELS_MAX: usize = 256;
const LABELS_BYTES_MAX: usize = 64 << 10;

/// Why a body is no body of remote write 1.0.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BodyError {
    /// It would be too long.
    #[error("remote write: got a body of {0} bytes once decompressed, want at most {BODY_BYTES_MAX}")]
    TooLong(usize),
    /// It is not in snappy's block format.
    #[error("remote write: the body is not in snappy's block format: {0}")]
    Snappy(#[from] snap::Error),
    /// It is not protobuf, or not of these messages.
    #[error("remote write: the body is not a prometheus.WriteRequest: {0}")]
    Protobuf(&'static str),
}

/// Which samples may be taken by their time, in milliseconds since the Unix epoch, both included.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The earliest.
    pub oldest_ms: i64,
    /// The latest.
    pub newest_ms: i64,
}

/// A part of a body.
#[derive(Debug, Default)]
pub struct Batch {
    /// What can be stored. Each series has a sample; one series may be in it several times.
    pub series: Vec<WrittenSeries>,
    /// How many samples were refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Which the first of those was, and why.
    pub example: Option<String>,
    samples: usize,
    buckets: usize,
}

/// A body, decompressed and checked.
#[derive(Debug)]
pub struct Body(Vec<u8>);

impl Body {
    /// Decompresses a body and checks that it is one.
    ///
    /// # Errors
    /// It is too long, or something else.
    pub fn decode(compressed: &[u8]) -> Result<Self, BodyError> {
        let bytes = snap::raw::decompress_len(compressed)?;
        if bytes > BODY_BYTES_MAX {
            return Err(BodyError::TooLong(bytes));
        }
        let body = snap::raw::Decoder::new().decompress_vec(compressed)?;
        check(&body)?;
        Ok(Self(body))
    }

    /// Gives all that is in the body to `visit`, batch by batch; an error of it ends that.
    pub fn for_each_batch<E>(&self, times: Times, mut visit: impl FnMut(Batch) -> Result<(), E>) -> Result<(), E> {
        let mut batch = Batch::default();
        let mut fields = Fields(&self.0);
        while let Ok(Some((number, field))) = fields.next() {
            if let (1, Field::Bytes(series)) = (number, field) {
                read_series(series, times, &mut batch, &mut visit)?;
            }
        }
        if batch.is_empty() { Ok(()) } else { visit(batch) }
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.series.is_empty() && self.refused.is_empty()
    }

    fn refuse(&mut self, reason: &'static str, samples: u64, example: impl FnOnce() -> String) {
        *self.refused.entry(reason).or_default() += samples;
        self.example.get_or_insert_with(example);
    }
}

/// Whether every field of every message can be read.
fn check(body: &[u8]) -> Result<(), BodyError> {
    let mut fields = Fields(body);
    while let Some((number, field)) = fields.next()? {
        let (1, Field::Bytes(series)) = (number, field) else {
            if number == 1 {
                return Err(BodyError::Protobuf("timeseries is not a message"));
            }
            continue;
        };
        let mut fields = Fields(series);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (1, Field::Bytes(label)) => drop(label_of(label)?),
                (2, Field::Bytes(sample)) => drop(sample_of(sample)?),
                (4, Field::Bytes(histogram)) => drop(histogram::decode(histogram)?),
                (1 | 2 | 4, _) => return Err(BodyError::Protobuf("labels, samples and histograms are messages")),
                _ => {}
            }
        }
    }
    Ok(())
}

fn read_series<E>(
    series: &[u8],
    times: Times,
    batch: &mut Batch,
    visit: &mut impl FnMut(Batch) -> Result<(), E>,
) -> Result<(), E> {
    let labels = labels(series);
    let mut written = Vec::new();
    let mut fields = Fields(series);
    while let Ok(Some((number, field))) = fields.next() {
        let (sample, buckets) = match (number, field) {
            (2, Field::Bytes(sample)) => match sample_of(sample) {
                Ok(sample) => (Ok(sample), 0),
                Err(_) => continue, // it was checked
            },
            (4, Field::Bytes(message)) => match histogram::decode(message) {
                Ok((timestamp_ms, Ok((value, buckets)))) => (Ok(Sample { timestamp_ms, value }), buckets),
                Ok((timestamp_ms, Err(why))) => (Err((timestamp_ms, why)), 0),
                Err(_) => continue,
            },
            _ => continue,
        };
        let labels = match &labels {
            Ok(labels) => labels,
            Err(why) => {
                batch.refuse("invalid_labels", 1, || why.clone());
                continue;
            }
        };
        let sample = match sample {
            Err((timestamp_ms, why)) => {
                batch.refuse("invalid_histogram", 1, || format!("{why}: series {labels} at {timestamp_ms} ms"));
                continue;
            }
            Ok(sample) if !(times.oldest_ms..=times.newest_ms).contains(&sample.timestamp_ms) => {
                let example = || format!("out of bounds: series {labels} at {} ms", sample.timestamp_ms);
                batch.refuse("out_of_bounds", 1, example);
                continue;
            }
            Ok(sample) => sample,
        };
        written.push(sample);
        batch.samples += 1;
        batch.buckets += buckets;
        if batch.samples >= BATCH_SAMPLES || batch.buckets >= BATCH_BUCKETS {
            batch.series.push(WrittenSeries { labels: labels.clone(), samples: std::mem::take(&mut written) });
            visit(std::mem::take(batch))?;
        }
    }
    if let (Ok(labels), false) = (labels, written.is_empty()) {
        batch.series.push(WrittenSeries { labels, samples: written });
    }
    Ok(())
}

/// The labels of a series; what is wrong with them, if something is.
fn labels(series: &[u8]) -> Result<Labels, String> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    let mut bytes = 0;
    let mut fields = Fields(series);
    while let Ok(Some((number, field))) = fields.next() {
        let (1, Field::Bytes(label)) = (number, field) else { continue };
        let Ok((name, value)) = label_of(label) else { continue };
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
            let shown = String::from_utf8_lossy(if std::str::from_utf8(name).is_ok() { value } else { name });
            return Err(format!("invalid labels: {:?} is not UTF-8", shown.chars().take(200).collect::<String>()));
        };
        if name.is_empty() {
            return Err("invalid labels: a label has no name".to_owned());
        }
        bytes += name.len() + value.len();
        pairs.push((name, value));
        if pairs.len() > LABELS_MAX || bytes > LABELS_BYTES_MAX {
            return Err(format!(
                "invalid labels: want at most {LABELS_MAX} labels of a series, with {LABELS_BYTES_MAX} bytes together"
            ));
        }
    }
    pairs.sort_unstable();
    if let Some(((name, _), _)) = pairs.iter().zip(pairs.iter().skip(1)).find(|(one, next)| one.0 == next.0) {
        return Err(format!("invalid labels: label {name:?} is there twice"));
    }
    if !pairs.iter().any(|(name, value)| *name == METRIC_NAME && !value.is_empty()) {
        return Err(format!("invalid labels: series {} has no name", Labels::from_pairs(pairs)));
    }
    Ok(Labels::from_pairs(pairs))
}

fn label_of(label: &[u8]) -> Result<(&[u8], &[u8]), BodyError> {
    let (mut name, mut value) = (&[][..], &[][..]);
    let mut fields = Fields(label);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => name = bytes,
            (2, Field::Bytes(bytes)) => value = bytes,
            (1 | 2, _) => return Err(BodyError::Protobuf("names and values of labels are text")),
            _ => {}
        }
    }
    Ok((name, value))
}

fn sample_of(sample: &[u8]) -> Result<Sample, BodyError> {
    let (mut value, mut timestamp_ms) = (0.0, 0);
    let mut fields = Fields(sample);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Fixed64(bits)) => value = f64::from_bits(bits),
            (2, Field::Varint(ms)) => timestamp_ms = ms as i64,
            (1 | 2, _) => return Err(BodyError::Protobuf("a sample is a double and a varint")),
            _ => {}
        }
    }
    Ok(Sample { timestamp_ms, value: Value::Float(value) })
}

#[cfg(test)]
mod tests;
