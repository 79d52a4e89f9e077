//! Two weeks on disk: what the recorder appends and what `PromQL` selects from.
//!
//! The recorder appends one [`Tick`] every 10 s. A tick holds only what changed; a series is read back as one sample per
//! tick from its start to its end: where a tick has no sample of it, its last one still holds. The bytes are described in
//! `docs/storage-format.md`.

mod chunk;
mod codec;
mod columns;
mod day;
mod file;
mod head;
#[cfg(test)]
mod mishaps;
mod reader;
mod sealer;
mod shared;
mod stream;
#[cfg(test)]
mod tests;
mod window;
mod writer;

use std::io;
use std::path::PathBuf;

use regex::Regex;

pub use reader::Reader;
pub use writer::{Store, backup};

use crate::model::{Labels, METRIC_NAME, MetricKind, Sample, SeriesId, Value};

/// What the recorder commits at once: everything that changed since the tick before.
#[derive(Debug, Clone, Default)]
pub struct Tick {
    /// Milliseconds since the Unix epoch, later than every tick before it.
    pub timestamp_ms: i64,
    /// Series that have their first sample in this tick, or come back with it.
    pub started: Vec<StartedSeries>,
    /// New values, each series at most once; the stale marker ends a series until its next sample.
    pub samples: Vec<(SeriesId, Value)>,
    /// Gauges whose last writer changed, with the id of that writer (empty: one that does not name itself).
    pub writers: Vec<(SeriesId, String)>,
    /// Series that left the registry with this tick: readers of the newest values may forget them.
    pub ended: Vec<SeriesId>,
}

/// What a store knows of a series that is new to the registry.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its number.
    pub id: SeriesId,
    /// When it began for the first time, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// Its last value that is not a stale marker.
    pub value: Option<Value>,
}

/// A series that begins.
#[derive(Debug, Clone)]
pub struct StartedSeries {
    /// Its number; of a new one never used before in this data directory.
    pub id: SeriesId,
    /// Its name and labels.
    pub labels: Labels,
    /// What its name is.
    pub kind: MetricKind,
    /// When it began, before the tick: counters and histograms get an explicit zero here, so that the first increment is seen.
    pub start_ms: i64,
    /// What one that comes back was; `None`: it is new. (In a place of its own: in most ticks in which very many begin, all are new.)
    pub earlier: Option<Box<Earlier>>,
}

impl StartedSeries {
    /// When it began for the first time, in milliseconds since the Unix epoch: what it counts, it has counted since then.
    pub fn since_ms(&self) -> i64 {
        self.earlier.as_ref().map_or(self.start_ms, |earlier| earlier.since_ms)
    }
}

/// What a series was before it left.
#[derive(Debug, Clone)]
pub struct Earlier {
    /// When it began for the first time, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// Its last value that is not a stale marker.
    pub value: Value,
}

/// What a store held when it was opened: where the registry goes on.
#[derive(Debug, Default)]
pub struct Restored {
    /// The time of the last committed tick, `None` in a new data directory.
    pub last_tick_ms: Option<i64>,
    /// The number for the next new series.
    pub next_id: u32,
    /// Every series known, with its last committed value (the stale marker if it had ended).
    pub series: Vec<RestoredSeries>,
}

/// One series as it was last committed.
#[derive(Debug)]
pub struct RestoredSeries {
    /// Its number.
    pub id: SeriesId,
    /// Its name and labels.
    pub labels: Labels,
    /// What its name is.
    pub kind: MetricKind,
    /// When it began, in milliseconds since the Unix epoch.
    pub start_ms: i64,
    /// Its last committed value.
    pub value: Value,
    /// When that was, in milliseconds since the Unix epoch; once a day every value is committed anew.
    pub last_ms: i64,
    /// For a gauge, the id of its last writer; empty if that one does not name itself.
    pub writer: String,
}

/// A series as it came by remote write.
#[derive(Debug, Clone)]
pub struct WrittenSeries {
    /// Its name and labels.
    pub labels: Labels,
    /// Its samples; each must be later than the one before it, and than what the series has.
    pub samples: Vec<Sample>,
}

/// What became of samples that came by remote write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// How many were stored.
    pub stored: u64,
    /// How many were refused because of their time.
    pub refused: u64,
    /// How many were refused because there are as many written series as there may be.
    pub without_room: u64,
    /// Which the first of those was, and why, in Prometheus's words.
    pub example: Option<String>,
}

impl Written {
    fn refuse(&mut self, labels: &Labels, sample: &Sample, why: &str) {
        self.refused += 1;
        self.tell(labels, sample, why);
    }

    fn tell(&mut self, labels: &Labels, sample: &Sample, why: &str) {
        self.example.get_or_insert_with(|| format!("{why}: series {labels} at {} ms", sample.timestamp_ms));
    }
}

/// Reads any bytes as each of the things that the files hold: for fuzzing.
#[doc(hidden)]
pub fn read_anything(bytes: &[u8]) {
    let ticks: Vec<i64> = (0..720).map(|tick| tick * 10_000).collect();
    for part in [Part::Whole, Part::Count, Part::Sum] {
        let _ = chunk::read(bytes, &ticks, part);
        let _ = stream::read_part(bytes, &ticks, part);
    }
    let _ = chunk::seal(bytes, &ticks);
    let _ = chunk::Summary::take(&mut &*bytes);
    let _ = window::SealedWindow::take(0, 1, bytes);
    let _ = head::take_entry(bytes);
    let _ = head::take_series(bytes);
}

/// Anything that `PromQL` can select series from.
pub trait Select: Send + Sync {
    /// Calls `visit` with each series that matches, in the order of their labels, one at a time: its samples within
    /// `start_ms..=end_ms` in the order of time, stale markers included; series without a sample there are left out. An
    /// error of `visit` ends it and is returned.
    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// As [`Select::for_each`]; `look` is asked again and again while series are looked for and read, and an error of it ends that. A
    /// store that takes long before it visits the first one does better than this.
    fn for_each_while(
        &self,
        selection: &Selection,
        look: &dyn Fn() -> Result<(), StoreError>,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        look()?;
        self.for_each(selection, visit)
    }

    /// All that [`Select::for_each`] visits, at once: at most `samples_max` samples together.
    fn select(&self, selection: &Selection) -> Result<Vec<SelectedSeries>, StoreError> {
        let (mut selected, mut left) = (Vec::new(), selection.samples_max);
        self.for_each(selection, &mut |series| {
            left = left.checked_sub(series.samples.len()).ok_or(StoreError::TooManySamples(selection.samples_max))?;
            selected.push(series);
            Ok(())
        })?;
        Ok(selected)
    }

    /// The labels alone of what [`Select::select`] would find. A store that knows them without reading samples does better
    /// than this.
    fn labels(&self, selection: &Selection) -> Result<Vec<Labels>, StoreError> {
        Ok(self.select(selection)?.into_iter().map(|series| series.labels).collect())
    }

    /// As [`Select::labels`], and `look` as in [`Select::for_each_while`].
    fn labels_while(
        &self,
        selection: &Selection,
        look: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<Vec<Labels>, StoreError> {
        look()?;
        self.labels(selection)
    }
}

/// What to select.
#[derive(Debug, Clone)]
pub struct Selection {
    /// All of these must match; matchers on `__name__` are among them.
    pub matchers: Vec<Matcher>,
    /// The first millisecond, included.
    pub start_ms: i64,
    /// The last millisecond, included.
    pub end_ms: i64,
    /// Whether a value is repeated at every tick at which it held. If not, it is given once: at the first tick, or where
    /// it changed. That is all that the last, least or greatest value of the whole time asked for depends on.
    pub repeats: bool,
    /// What of histograms is wanted.
    pub part: Part,
    /// A series with more samples than this is refused with [`StoreError::TooManySamples`], before they fill the memory.
    pub samples_max: usize,
}

/// What of histograms is wanted: all, or one number of each, as floats. If it is a number, values that are no histograms do not count,
/// and series without any histogram are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything as it is.
    Whole,
    /// How many values there are in each.
    Count,
    /// What they add up to.
    Sum,
}

impl Part {
    /// The part of one value, `None` if it has no such part. A series' end is its parts' end.
    pub fn of(self, value: Value) -> Option<Value> {
        match (self, &value) {
            (Self::Whole, _) => Some(value),
            (Self::Count, Value::Histogram(h)) => Some(Value::Float(h.count())),
            (Self::Sum, Value::Histogram(h)) => Some(Value::Float(h.sum())),
            _ => value.is_stale().then_some(value),
        }
    }

    /// The part of all samples of a series: none if there is no histogram among them.
    pub fn of_all(self, samples: Vec<Sample>) -> Vec<Sample> {
        if self == Self::Whole {
            return samples;
        }
        let of_one = |Sample { timestamp_ms, value }| Some(Sample { timestamp_ms, value: self.of(value)? });
        let part: Vec<Sample> = samples.into_iter().filter_map(of_one).collect();
        if part.iter().all(|sample| sample.value.is_stale()) { Vec::new() } else { part }
    }
}

/// One selected series.
#[derive(Debug, Clone)]
pub struct SelectedSeries {
    /// Its name and labels.
    pub labels: Labels,
    /// Its samples in the order of time.
    pub samples: Vec<Sample>,
}

/// A condition on one label. An absent label counts as an empty value, as in Prometheus.
#[derive(Debug, Clone)]
pub struct Matcher {
    /// The label's name.
    pub name: String,
    /// The condition on its value.
    pub op: MatchOp,
}

/// The condition of a [`Matcher`]. Regular expressions are anchored at both ends by whoever builds them.
#[derive(Debug, Clone)]
pub enum MatchOp {
    /// `=`
    Equal(String),
    /// `!=`
    NotEqual(String),
    /// `=~`
    Regex(Regex),
    /// `!~`
    NotRegex(Regex),
}

impl Matcher {
    /// `name = value`.
    pub fn equal(name: &str, value: &str) -> Self {
        Self { name: name.to_owned(), op: MatchOp::Equal(value.to_owned()) }
    }

    /// `__name__ = value`.
    pub fn metric(value: &str) -> Self {
        Self::equal(METRIC_NAME, value)
    }

    /// Whether a series with these labels fulfils the condition.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.name).unwrap_or("");
        match &self.op {
            MatchOp::Equal(want) => value == want,
            MatchOp::NotEqual(want) => value != want,
            MatchOp::Regex(regex) => regex.is_match(value),
            MatchOp::NotRegex(regex) => !regex.is_match(value),
        }
    }
}

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The query would load more samples than it may.
    #[error("query processing would load too many samples into memory: more than {0}")]
    TooManySamples(usize),
    /// The data directory, or its lock, cannot be made or opened.
    #[error("cannot write {}: {error}", path.display())]
    Directory {
        /// What could not be made or opened.
        path: PathBuf,
        /// What the operating system said: a part of the message, so that a chain of errors does not say it twice.
        error: io::Error,
    },
    /// Whoever is visited series by series wants no more of them; why is theirs to say.
    #[error("the visit of the series ended early")]
    Stopped,
    /// Another collector uses the data directory.
    #[error("data directory {}: another collector uses it; stop that one, or choose another with --data-dir DIR", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("{}: {error}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said, as above.
        error: rusqlite::Error,
    },
    /// A database that some other program made.
    #[error("{}: this database is not ours; nothing was changed. Choose another directory with --data-dir DIR", path.display())]
    NotOurs {
        /// The database.
        path: PathBuf,
    },
    /// A data directory has room for 4,294,967,295 series in its time.
    #[error("the data directory has given all its numbers for series: choose a new one with --data-dir DIR")]
    TooManySeries,
    /// A database of an earlier version.
    #[error("{}: format version {got}, this collector reads {want}: move it away, or choose another directory with --data-dir DIR", path.display())]
    Older {
        /// The database.
        path: PathBuf,
        /// Its version.
        got: i64,
        /// Ours.
        want: i64,
    },
    /// A database of a later version.
    #[error("{}: format version {got}, this collector knows up to {want}: run the newer collector that wrote it", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        got: i64,
        /// Ours.
        want: i64,
    },
    /// Something in a database cannot be what we wrote.
    #[error("{}: {what} cannot be read: the file is damaged", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What in it.
        what: String,
    },
}
