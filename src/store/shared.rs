//! What the writer, the sealer and the readers of a data directory share: the labels, the windows, the open files; and what
//! happens to a file in which damage is found.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::day::{Day, Summaries, path_of};
use super::head::SeriesRow;
use super::window::{SealedWindow, Windows};
use super::{Part, StoreError};
use crate::model::{ByLabels, Labels, MetricKind};

/// So many connections to files of days stay open between queries.
const IDLE_MAX: usize = 32;
/// So many are open at once as long as a query can do with one: a process may commonly have 1024 files, and half of them are for HTTP.
pub(super) const OPEN_MAX: usize = if cfg!(test) { 8 } else { 256 };
/// Of so many series and days the summaries stay in memory: less than 1 KiB each.
const SUMMARIES_MAX: usize = 1 << 14;

/// So many series that came by remote write are kept.
pub(super) const WRITTEN_SERIES_MAX: usize = if cfg!(test) { 3 } else { 1_000_000 };
/// What all their labels may take, for each of them.
const WRITTEN_BYTES_PER_SERIES: usize = 512;

/// By day and series.
type SummariesOfDays = HashMap<(i64, u32), Arc<Summaries>, RandomState>;

/// What is known of a series, whatever it was last.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) labels: Labels,
    /// `None`: it came by remote write.
    pub(super) kind: Option<MetricKind>,
    pub(super) start_ms: i64,
    pub(super) is_ended: bool,
}

/// Every series, so that matching never touches the disk.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) series: HashMap<u32, Known, RandomState>,
    /// The last writers of gauges and sets, apart: most series are neither.
    writers: HashMap<u32, Box<str>, RandomState>,
    /// By kind: a name may be one thing after another, and each comes back where it was. Apart from all of them those of remote
    /// writes: what is written never gets into a series that this collector counts.
    numbers: HashMap<Option<MetricKind>, Numbers, RandomState>,
    pub(super) by_name: HashMap<String, Vec<u32>, RandomState>,
}

/// Series of one kind.
#[derive(Debug, Default)]
struct Numbers {
    by_labels: ByLabels,
    /// What their labels take.
    bytes: usize,
}

impl Index {
    pub(super) fn insert(&mut self, id: u32, known: Known) {
        let Numbers { by_labels, bytes } = self.numbers.entry(known.kind).or_default();
        let labels = known.labels.clone();
        *bytes += labels.bytes();
        if let Some(before) = self.series.insert(id, known) {
            *bytes -= before.labels.bytes();
        } else {
            self.by_name.entry(labels.name().to_owned()).or_default().push(id);
        }
        by_labels.insert(&labels, id, |id| self.series.get(&id).map(|known| &known.labels));
    }

    /// The last writer of a gauge or a set, empty if that one does not name itself.
    pub(super) fn writer(&self, id: u32) -> &str {
        self.writers.get(&id).map_or("", |writer| writer)
    }

    pub(super) fn set_writer(&mut self, id: u32, writer: &str) {
        if writer.is_empty() {
            self.writers.remove(&id);
        } else {
            self.writers.insert(id, writer.into());
        }
    }

    /// What the head says of a series.
    pub(super) fn row(&self, id: u32) -> Option<SeriesRow> {
        let Known { labels, kind, start_ms, .. } = self.series.get(&id)?;
        let writer = self.writer(id).to_owned();
        Some(SeriesRow { kind: *kind, start_ms: *start_ms, writer, labels: labels.clone() })
    }

    /// A series that is read: that it has not ended, its samples tell.
    pub(super) fn insert_row(&mut self, id: u32, row: SeriesRow) {
        self.set_writer(id, &row.writer);
        self.insert(id, Known { labels: row.labels, kind: row.kind, start_ms: row.start_ms, is_ended: true });
    }

    /// Forgets series: one pass over those of a name, however many of them go.
    pub(super) fn remove(&mut self, ids: &[u32]) {
        let mut names: HashSet<String, RandomState> = HashSet::default();
        for id in ids {
            let Some(known) = self.series.remove(id) else { continue };
            self.writers.remove(id);
            let Numbers { by_labels, bytes } = self.numbers.entry(known.kind).or_default();
            *bytes -= known.labels.bytes();
            by_labels.remove(&known.labels, *id);
            names.insert(known.labels.name().to_owned());
        }
        for name in names {
            if let Some(of_name) = self.by_name.get_mut(&name) {
                of_name.retain(|id| self.series.contains_key(id));
                if of_name.is_empty() {
                    self.by_name.remove(&name);
                }
            }
        }
    }

    /// How many series of ticks there are, and what their labels take.
    pub(super) fn ticked_size(&self) -> (usize, usize) {
        let ticked = self.numbers.iter().filter(|(kind, _)| kind.is_some());
        ticked.fold((0, 0), |(series, bytes), (_, of_kind)| (series + of_kind.by_labels.len(), bytes + of_kind.bytes))
    }

    /// Whether there is room for one more written series.
    pub(super) fn has_room_for_written(&self, labels: &Labels) -> bool {
        self.numbers.get(&None).is_none_or(|written| {
            written.by_labels.len() < WRITTEN_SERIES_MAX
                && written.bytes + labels.bytes() <= WRITTEN_SERIES_MAX * WRITTEN_BYTES_PER_SERIES
        })
    }

    /// The series of ticks with these labels and of this kind, or with `None` the written one.
    pub(super) fn find(&self, labels: &Labels, kind: Option<MetricKind>) -> Option<u32> {
        let by_labels = &self.numbers.get(&kind)?.by_labels;
        by_labels.get(labels, |id| self.series.get(&id).map(|known| &known.labels))
    }
}

/// What all of them share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) index: RwLock<Index>,
    pub(super) windows: RwLock<Windows>,
    /// Held by whoever changes a file of a day.
    writing: Mutex<()>,
    /// Days whose files hold windows beyond this entry of the log, which the log brings again: what a crash left.
    unsealed: Mutex<BTreeMap<i64, u64>>,
    /// Connections to files of days that nobody uses just now.
    idle: Mutex<BTreeMap<i64, Vec<Day>>>,
    /// Each connection holds one of these, so that they can be counted.
    open: Arc<()>,
    /// Summaries that were asked for lately: `cortex get` asks for the same ones again and again.
    summaries: Mutex<SummariesOfDays>,
    /// How often a file was no longer what it had been.
    forgotten: AtomicU64,
    /// How many files were damaged since the start.
    damaged: AtomicU64,
    /// Why the newest window could not be sealed; `None` while all is well.
    sealing_error: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            index: RwLock::default(),
            windows: RwLock::default(),
            writing: Mutex::default(),
            unsealed: Mutex::default(),
            idle: Mutex::default(),
            open: Arc::default(),
            summaries: Mutex::default(),
            forgotten: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            sealing_error: Mutex::default(),
        }
    }

    pub(super) fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock()
    }

    /// A connection to the file of a day, `None` if the file is gone: the retention took it.
    pub(super) fn day(&self, day: i64) -> Result<Option<Day>, StoreError> {
        if let Some(day) = self.idle.lock().get_mut(&day).and_then(Vec::pop) {
            return Ok(Some(day));
        }
        if !path_of(&self.dir, day).exists() {
            return Ok(None);
        }
        Day::open_to_read(&self.dir, day, Arc::clone(&self.open)).map(Some)
    }

    /// How many connections to files of days there are, idle ones counted.
    pub(super) fn open_files(&self) -> usize {
        Arc::strong_count(&self.open) - 1
    }

    /// How often a file was no longer what it had been.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }

    /// Takes back a connection.
    pub(super) fn give_back(&self, day: Day) {
        if day.rest().is_err() {
            return; // closed, with whatever ails it
        }
        let mut idle = self.idle.lock();
        if idle.values().map(Vec::len).sum::<usize>() < IDLE_MAX {
            idle.entry(day.day()).or_default().push(day);
        }
    }

    /// What is kept of the summaries of a series on a day.
    pub(super) fn summaries(&self, day: i64, id: u32) -> Option<Arc<Summaries>> {
        self.summaries.lock().get(&(day, id)).cloned()
    }

    pub(super) fn keep_summaries(&self, day: i64, id: u32, of_day: &Arc<Summaries>) {
        let mut summaries = self.summaries.lock();
        if summaries.len() >= SUMMARIES_MAX {
            // Whoever asks for more than this gets little from what was kept.
            summaries.clear();
        }
        summaries.insert((day, id), Arc::clone(of_day));
    }

    /// The file of a day is no longer what it was.
    pub(super) fn forget_day(&self, day: i64) {
        // Release: whoever sees it gives no connection back that was opened before.
        self.forgotten.fetch_add(1, Ordering::Release);
        self.idle.lock().remove(&day);
        self.summaries.lock().retain(|(of, _), _| *of != day);
    }

    /// The windows of a day that are in its file for good.
    pub(super) fn windows_of(&self, file: &Day) -> Result<Vec<SealedWindow>, StoreError> {
        let mut windows = file.windows()?;
        if let Some(sealed) = self.unsealed.lock().get(&file.day()) {
            windows.retain(|window| window.last_sequence <= *sealed);
        }
        Ok(windows)
    }

    /// The windows of a day beyond `sealed` are not read, and removed before others are appended.
    pub(super) fn pass_over(&self, day: i64, sealed: u64) {
        self.unsealed.lock().insert(day, sealed);
    }

    /// Removes what [`Shared::pass_over`] told of.
    pub(super) fn remove_unsealed(&self, file: &Day) -> Result<(), StoreError> {
        let Some(sealed) = self.unsealed.lock().get(&file.day()).copied() else { return Ok(()) };
        file.remove_beyond(sealed)?;
        self.unsealed.lock().remove(&file.day());
        Ok(())
    }

    pub(super) fn row(&self, id: u32) -> Option<SeriesRow> {
        self.index.read().row(id)
    }

    /// Sets the damaged file of a day aside, and goes on with what is left of it. Whoever holds `writing` does this.
    pub(super) fn salvage(&self, day: i64, what: &str) -> Result<(), StoreError> {
        self.forget_day(day);
        let (aside, lost) = Day::salvage(&self.dir, day, |id| self.row(id))?;
        self.count_damage();
        tracing::error!(
            file = %path_of(&self.dir, day).display(),
            kept_as = %aside.display(),
            windows_lost = lost.windows,
            chunks_lost = lost.chunks,
            what,
            "a file of the store is damaged: it is set aside, what can be read of it is kept"
        );
        let windows = self.windows_of(&Day::open(&self.dir, day)?)?;
        self.windows.write().replace_day(day, windows);
        Ok(())
    }

    /// As [`Shared::salvage`], for a reader that came upon the damage.
    pub(super) fn salvage_found(&self, day: i64, what: &str) -> Result<(), StoreError> {
        let _writing = self.writing();
        self.forget_day(day);
        let is_damaged = match Day::open(&self.dir, day) {
            Ok(file) => check(&file),
            Err(error) => Err(error),
        };
        match is_damaged {
            Err(StoreError::Damaged { .. }) => self.salvage(day, what),
            // Another reader was faster, or somebody put another file there.
            Ok(()) => {
                let windows = self.windows_of(&Day::open(&self.dir, day)?)?;
                self.windows.write().replace_day(day, windows);
                Ok(())
            }
            other => other,
        }
    }

    pub(super) fn count_damage(&self) {
        // Relaxed: a figure.
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(super) fn sealing_error(&self) -> Option<String> {
        self.sealing_error.lock().clone()
    }

    pub(super) fn set_sealing_error(&self, error: Option<String>) -> Option<String> {
        std::mem::replace(&mut self.sealing_error.lock(), error)
    }
}

/// Reads all of a file.
fn check(file: &Day) -> Result<(), StoreError> {
    for window in file.windows()? {
        for id in &window.present {
            file.samples(&window, id, Part::Whole)?;
            file.summaries(id)?;
        }
    }
    file.series().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::METRIC_NAME;

    #[test]
    fn a_writer_is_known_until_another_or_nobody_writes_and_as_long_as_its_series() {
        let mut index = Index::default();
        let row = |writer: &str| {
            let labels = Labels::from_pairs([(METRIC_NAME, "g")]);
            SeriesRow { kind: Some(MetricKind::Gauge), start_ms: 5, writer: writer.to_owned(), labels }
        };
        index.insert_row(1, row("ff"));
        assert_eq!(index.row(1), Some(row("ff")));
        index.set_writer(1, "ee");
        assert_eq!(index.row(1), Some(row("ee")));
        index.set_writer(1, "");
        assert_eq!(index.row(1), Some(row("")));
        index.set_writer(1, "ff");
        index.remove(&[1]);
        assert_eq!((index.row(1), index.writers.len()), (None, 0));
    }
}
