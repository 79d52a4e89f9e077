//! The writer's side of a data directory: ticks into the log and the open window, complete windows to the sealer, old days away.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foldhash::fast::RandomState;
use roaring::RoaringBitmap;

use super::day::{Day, day_of_name, end_of, path_of};
use super::head::{Commit, Entry, Head, LevelRow, Loaded, PutContent, put_entry, take_entry};
use super::reader::Reader;
use super::sealer::{Done, Job, Sealer};
use super::shared::{Known, Shared};
use super::stream::{At, Cursor};
use super::window::{DAY_MS, Level, SealedWindow, day_of, slot_of};
use super::{
    Known as KnownSeries, Part, Restored, RestoredSeries, StartedSeries, StoreError, Tick, Written, WrittenSeries,
};
use crate::model::{ExponentialHistogram, Labels, MetricKind, Sample, SeriesId, Value};

/// The database of the first version of the format.
const FIRST_VERSION: &str = "cortex.db";
/// So many levels are renewed with one tick.
const LEVELS_PER_COMMIT: usize = 2048;
/// So many rows of series are written with one commit: the pages of very many would fill the memory.
const ROWS_PER_COMMIT: usize = if cfg!(test) { 100 } else { 4096 };
/// Beyond this much in memory, and as much for each live series, windows are sealed before their two hours are over.
const OPEN_BYTES: usize = 16 << 20;
const OPEN_BYTES_PER_SERIES: usize = 256;

/// A series as the writer knows it: as little as it can be, there are very many.
#[derive(Debug, Clone, Default)]
struct Live {
    /// Its last value that was no stale marker; `None`: there was none yet.
    value: Option<Value>,
    /// The time of its last sample.
    last_ms: i64,
    /// Its last sample was in the window whose first entry of the log this is.
    window: u64,
    /// Where its stream stands there; with `is_in_window` the value that its next entry refers to is `value`.
    ticks: u32,
    is_in_window: bool,
    is_ended: bool,
}

/// Series that were written have numbers from here on: those below are given by the registry, which does not ask.
const FIRST_WRITTEN: u32 = 1 << 31;

/// The writer's side of a data directory.
#[derive(Debug)]
pub struct Store {
    head: Head,
    shared: Arc<Shared>,
    sealer: Sealer,
    series: HashMap<u32, Live, RandomState>,
    last_tick_ms: Option<i64>,
    run: u64,
    /// The day and the run that had their full picture last, and how much damage there was by then.
    pictured: Option<(i64, u64, u64)>,
    /// The number for the next new series of a remote write.
    next_written: u32,
    /// Levels of windows that are in the files: to be written, and then the log is sealed up to there.
    settling: VecDeque<(VecDeque<Level>, u64)>,
    /// The windows were completed, and the log does not say so yet.
    has_rolled: bool,
    /// Held as long as the store is open.
    _lock: File,
}

/// What samples are appended: the series of each, and its place among those that its caller has; of a tick first the starts of series, then its
/// samples. Of a tick with very many series this is much, so it has no values.
type Order = Vec<(u32, u32)>;

/// The place of what a series was last.
const AGAIN: u32 = u32::MAX;

impl Store {
    /// Opens a data directory, makes it if it is missing, and takes it for this process alone. Files that are damaged are set
    /// aside, and what can be read of them is kept.
    ///
    /// # Errors
    /// It cannot be made or written, another collector has it, or what is in it is not ours.
    pub fn open(dir: &Path) -> Result<(Self, Restored), StoreError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Directory { path, error: source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let lock = lock(dir)?;
        let first_version = dir.join(FIRST_VERSION);
        if first_version.exists() {
            return Err(StoreError::Older {
                path: first_version,
                got: 1,
                want: i64::from(super::codec::FORMAT_VERSION),
            });
        }
        let shared = Arc::new(Shared::new(dir));
        let mut replay = Replay::default();
        let mut log = Vec::new();
        let opened = Head::open(dir, |sequence, content| {
            take_entry(content)?;
            log.push((sequence, content.to_vec()));
            Some(())
        });
        let (head, mut loaded, mut damage) = match opened {
            Ok((head, loaded)) => (Some(head), loaded, None),
            Err(StoreError::Damaged { what, .. }) => (None, Loaded::default(), Some(what)),
            Err(other) => return Err(other),
        };
        // What a day's series are is known before its file may have to be salvaged.
        for (id, row) in &loaded.series {
            shared.index.write().insert_row(*id, row.clone());
        }
        open_days(&shared)?;
        let newest = shared.windows.read().sealed.iter().map(|window| window.last_sequence).max().unwrap_or_default();
        if damage.is_none() && newest > loaded.state.last {
            damage = Some("it is older than what is in the files of the days, or was lost".to_owned());
        }
        let head = match (head, damage) {
            (Some(head), None) => {
                pass_over_unsealed(&shared, loaded.state.sealed);
                head
            }
            (damaged, what) => {
                drop(damaged);
                let (mut head, left, aside) = Head::salvage(dir)?;
                loaded = left;
                shared.count_damage();
                log = (loaded.state.sealed + 1..).zip(std::mem::take(&mut loaded.log)).collect();
                tracing::error!(
                    file = %head.path().display(),
                    kept_as = %aside.display(),
                    series = loaded.series.len(),
                    ticks = log.len(),
                    what = what.unwrap_or_default(),
                    "the head of the store is damaged: it is set aside, what can be read of it is kept"
                );
                log = rebuild(&shared, &mut loaded, &mut head, log)?;
                head
            }
        };
        for (id, level) in std::mem::take(&mut loaded.levels) {
            if let Some(known) = shared.index.write().series.get_mut(&id) {
                known.is_ended = level.is_ended;
                replay.series.insert(
                    id,
                    Live {
                        value: Some(level.value),
                        is_ended: level.is_ended,
                        last_ms: level.time_ms,
                        ..Live::default()
                    },
                );
            }
        }
        replay.stand_at_sealed(&shared);
        for (sequence, content) in log {
            // An entry that does not fit what came before it cannot be: it was checked with its sum.
            if replay.entry(&shared, sequence, &content).is_none() {
                tracing::error!(sequence, "an entry of the log does not fit those before it: it is left out");
            }
        }
        let restored = replay.restored(&shared, &head);
        let sealer = Sealer::start(Arc::clone(&shared)).map_err(at(dir))?;
        replay.jobs.into_iter().for_each(|job| sealer.send(job));
        let next_written =
            shared.index.read().series.keys().max().map_or(FIRST_WRITTEN, |id| id.saturating_add(1).max(FIRST_WRITTEN));
        let mut store = Self {
            head,
            shared,
            sealer,
            series: replay.series,
            last_tick_ms: replay.last_tick_ms,
            run: replay.run,
            pictured: replay.pictured.map(|(day, run)| (day, run, 0)),
            next_written,
            settling: VecDeque::new(),
            has_rolled: false,
            _lock: lock,
        };
        store.forget_ended();
        Ok((store, restored))
    }

    /// The least time from `wanted_ms` on at which there is no tick yet: a clock that was set back comes by old ticks again.
    pub fn free_time_ms(&self, wanted_ms: i64) -> i64 {
        let windows = self.shared.windows.read();
        (wanted_ms..=i64::MAX).find(|time| !windows.has_tick(*time)).unwrap_or(wanted_ms)
    }

    /// Commits one tick: all of it or nothing. When this returns, it survives the loss of power.
    ///
    /// # Errors
    /// The disk refuses. The same tick, or one that holds its changes, may be appended later.
    pub fn append(&mut self, tick: &Tick) -> Result<(), StoreError> {
        self.note_sealed();
        let time_ms = tick.timestamp_ms;
        let begins = self.begins(time_ms);
        if begins {
            let job = roll(&self.shared, self.head.state.last);
            job.into_iter().for_each(|job| self.sealer.send(job));
            self.has_rolled = true;
        }
        let run = if self.last_tick_ms.is_some_and(|last| time_ms <= last) { self.run + 1 } else { self.run };
        let (number, previous) = {
            let windows = self.shared.windows.read();
            (windows.open.ticks.len() as u32, windows.open.previous)
        };
        let (starts, samples) = (&tick.started, &tick.samples);
        let mut order = Order::with_capacity(starts.len() + samples.len());
        for (place, StartedSeries { id, kind, earlier, .. }) in (0..).zip(starts) {
            if earlier.is_some() || start_value(*kind).is_some() {
                order.push((number_of(*id)?, place));
            }
        }
        for (place, (id, _)) in (starts.len() as u32..).zip(samples) {
            order.push((number_of(*id)?, place));
        }
        // After damage too: what a quiet series was may be in the part that is lost.
        let pictured = Some((day_of(time_ms), run, self.shared.damaged()));
        if self.pictured != pictured {
            let told: HashSet<u32> = order.iter().map(|(id, _)| *id).collect();
            let index = self.shared.index.read();
            let is_ticked = |id: &u32| index.series.get(id).is_some_and(|known| known.kind.is_some());
            let others = self
                .series
                .iter()
                .filter(|(id, live)| !live.is_ended && live.value.is_some() && !told.contains(id) && is_ticked(id));
            order.extend(others.map(|(id, _)| (*id, AGAIN)));
        }
        let sample_of = |place: u32, live: &Live| {
            if let Some(StartedSeries { kind, start_ms, earlier, .. }) = starts.get(place as usize) {
                let earlier = earlier.as_ref().map(|earlier| earlier.value.clone());
                return Some((At::Time(*start_ms), *start_ms, earlier.or_else(|| start_value(*kind))?));
            }
            let sample = samples.get(place as usize - starts.len()).map(|(_, value)| value);
            let value = if place == AGAIN { live.value.as_ref() } else { sample };
            Some((At::Tick(number), time_ms, value?.clone()))
        };
        let mut rows = Vec::new();
        {
            // First, so that whoever sees any sample of this tick finds all of its series.
            let mut index = self.shared.index.write();
            for StartedSeries { id, labels, kind, start_ms, .. } in &tick.started {
                let id = number_of(*id)?;
                if let Some(known) = index.series.get_mut(&id) {
                    known.is_ended = false;
                } else {
                    let (labels, kind) = (labels.clone(), Some(*kind));
                    index.insert(id, Known { labels, kind, start_ms: *start_ms, is_ended: false });
                }
                if !self.head.knows(id) {
                    rows.push(id);
                }
            }
            for (id, writer) in &tick.writers {
                let id = number_of(*id)?;
                if index.series.contains_key(&id) {
                    index.set_writer(id, writer);
                    rows.push(id);
                }
            }
        }
        let next_id = tick.started.iter().map(|started| u64::from(started.id.0) + 1).max().unwrap_or_default();
        let entry = Entry { begins, previous, is_written: false, time_ms, run };
        self.log(entry, order, sample_of, rows, next_id)?;
        self.last_tick_ms = Some(time_ms);
        self.run = run;
        self.pictured = pictured;
        Ok(())
    }

    /// Commits samples that have times of their own. Of each series they must be later than what it has; what is not is refused,
    /// and counted.
    ///
    /// # Errors
    /// The disk refuses: nothing was stored.
    pub fn write(&mut self, series: &[WrittenSeries], oldest_ms: i64) -> Result<Written, StoreError> {
        self.note_sealed();
        let mut written = Written::default();
        let mut accepted: Vec<&Sample> = Vec::new();
        let mut order = Order::new();
        let mut rows = Vec::new();
        let mut last: HashMap<u32, (i64, Value)> = HashMap::new();
        let mut index = self.shared.index.write();
        for WrittenSeries { labels, samples } in series {
            let (id, is_new) = match index.find(labels, None) {
                Some(id) => (id, false),
                None => (self.next_written, true),
            };
            let stored = written.stored;
            for sample in samples {
                let before = last.get(&id).map(|(time, value)| (*time, Some(value.clone())));
                let before = before.or_else(|| self.series.get(&id).map(|live| (live.last_ms, live.last().cloned())));
                match before {
                    _ if sample.timestamp_ms < oldest_ms => written.refuse(labels, sample, "out of bounds"),
                    Some((time, _)) if sample.timestamp_ms < time => {
                        written.refuse(labels, sample, "out of order sample");
                    }
                    Some((time, value)) if sample.timestamp_ms == time => {
                        if value.is_none_or(|value| !same(&value, &sample.value)) {
                            written.refuse(labels, sample, "duplicate sample for timestamp");
                        }
                    }
                    _ if is_new && !index.has_room_for_written(labels) => {
                        written.without_room += 1;
                        written.tell(labels, sample, "too many series");
                    }
                    _ => {
                        last.insert(id, (sample.timestamp_ms, sample.value.clone()));
                        order.push((id, accepted.len() as u32));
                        accepted.push(sample);
                        written.stored += 1;
                    }
                }
            }
            if written.stored == stored {
                continue;
            }
            if is_new {
                self.next_written = id.checked_add(1).ok_or(StoreError::TooManySeries)?;
                let start_ms = accepted.get(stored as usize).map_or(0, |first| first.timestamp_ms);
                index.insert(id, Known { labels: labels.clone(), kind: None, start_ms, is_ended: false });
            }
            if !self.head.knows(id) {
                rows.push(id);
            }
        }
        drop(index);
        if order.is_empty() {
            return Ok(written);
        }
        let time_ms = self.last_tick_ms.unwrap_or_default();
        // A tick that was refused may have completed the windows.
        let previous = self.shared.windows.read().open.previous;
        let entry = Entry { begins: self.has_rolled, previous, is_written: true, time_ms, run: self.run };
        let sample_of = |place: u32, _: &Live| {
            let Sample { timestamp_ms, value } = accepted.get(place as usize)?;
            Some((At::Time(*timestamp_ms), *timestamp_ms, value.clone()))
        };
        self.log(entry, order, sample_of, rows, 0)?;
        Ok(written)
    }

    /// Commits an entry of the log with these samples, and then grows the open window by it. `sample_of` gives where the sample at a place
    /// is, its time, and its value; it is asked twice, so that nobody holds what all series become while that is not yet committed.
    fn log(
        &mut self,
        entry: Entry,
        mut order: Order,
        sample_of: impl Fn(u32, &Live) -> Option<(At, i64, Value)>,
        mut rows: Vec<u32>,
        next_id: u64,
    ) -> Result<(), StoreError> {
        rows.sort_unstable();
        rows.dedup();
        // Of those that come before the entry there may be no sample, after a crash or on a full disk: they did not begin.
        while rows.len() > ROWS_PER_COMMIT {
            let some = rows.split_off(rows.len() - ROWS_PER_COMMIT);
            let some = some.into_iter().filter_map(|id| Some((id, self.shared.row(id)?)));
            self.head.commit(&Commit { next_id, ..Commit::default() }, some)?;
        }
        order.sort_unstable();
        let of_series =
            || order.chunk_by(|a, b| a.0 == b.0).filter_map(|of_series| Some((of_series.first()?.0, of_series)));
        let sequence = self.head.next_sequence();
        let first = {
            let windows = self.shared.windows.read();
            let open = if entry.is_written { &windows.written } else { &windows.open };
            if open.is_empty() { sequence } else { open.first_sequence }
        };
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        let mut span: Option<(i64, i64)> = None;
        for (id, of_series) in of_series() {
            let live = self.series.get(&id).cloned().unwrap_or_default();
            let mut cursor = live.cursor(first);
            for (_, place) in of_series {
                let Some((at, time_ms, value)) = sample_of(*place, &live) else { continue };
                cursor.put(&mut bytes, at, &[], &value);
                cursor.advance(at, time_ms, &value);
                let (least, greatest) = span.unwrap_or((time_ms, time_ms));
                span = Some((least.min(time_ms), greatest.max(time_ms)));
            }
            ends.push(bytes.len());
        }
        let growth = || {
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let ranges = starts.zip(&ends).map(|(start, end)| bytes.get(start..*end).unwrap_or_default());
            of_series().zip(ranges)
        };
        let (levels, sealed) = self.levels_to_settle();
        let series = rows.into_iter().filter_map(|id| Some((id, self.shared.row(id)?)));
        let log: PutContent<'_> =
            &|out| put_entry(out, entry, ends.len(), growth().map(|((id, _), bytes)| (id, bytes)));
        self.head.commit(&Commit { next_id, levels, sealed, log: Some(log), ..Commit::default() }, series)?;
        self.has_rolled = false;
        self.settled();

        let mut windows = self.shared.windows.write();
        let open = if entry.is_written { &mut windows.written } else { &mut windows.open };
        if open.is_empty() {
            open.first_sequence = sequence;
            open.run = entry.run;
            open.is_written = entry.is_written;
        }
        open.last_sequence = sequence;
        if !entry.is_written {
            open.ticks.push(entry.time_ms);
            open.includes(entry.time_ms);
        }
        span.into_iter().for_each(|(least, greatest)| {
            open.includes(least);
            open.includes(greatest);
        });
        growth().for_each(|((id, _), bytes)| open.grow(id, bytes));
        drop(windows);
        // After the window: a reader that finds a series ended finds its end as well.
        let mut index = self.shared.index.write();
        for (id, of_series) in of_series() {
            let live = self.series.entry(id).or_default();
            let mut cursor = live.cursor(first);
            let mut is_ended = live.is_ended;
            for (_, place) in of_series {
                let Some((at, time_ms, value)) = sample_of(*place, live) else { continue };
                cursor.advance(at, time_ms, &value);
                is_ended = value.is_stale();
            }
            live.stands(first, cursor, is_ended);
            if let Some(known) = index.series.get_mut(&id) {
                known.is_ended = is_ended;
            }
        }
        Ok(())
    }

    /// Whether a window begins with a tick at this time.
    fn begins(&self, time_ms: i64) -> bool {
        let windows = self.shared.windows.read();
        let most = OPEN_BYTES + OPEN_BYTES_PER_SERIES * self.series.len();
        let is_over = windows.open.bytes + windows.written.bytes > most;
        let (first, last) = (windows.open.ticks.first(), windows.open.ticks.last());
        let goes_on =
            first.is_some_and(|first| slot_of(*first) == slot_of(time_ms)) && last.is_some_and(|last| *last < time_ms);
        !goes_on || is_over
    }

    /// What the sealer has done since the last time.
    fn note_sealed(&mut self) {
        while let Ok(Done { levels, up_to }) = self.sealer.done.try_recv() {
            self.settling.push_back((levels.into(), up_to));
        }
    }

    /// The next levels that the head is to be told, and up to where the log is sealed once it knows them.
    fn levels_to_settle(&self) -> (Vec<(u32, LevelRow)>, Option<u64>) {
        let index = self.shared.index.read();
        let mut rows: BTreeMap<u32, LevelRow> = BTreeMap::new();
        let (mut left, mut sealed) = (LEVELS_PER_COMMIT, None);
        for (levels, up_to) in &self.settling {
            for level in levels.iter().take(left).filter(|level| index.series.contains_key(&level.id)) {
                let Level { id, time_ms, is_ended, .. } = *level;
                let earlier = || rows.get(&id).map(|row| row.value.clone());
                let of_head = || self.head.level(id).ok().flatten().map(|row| row.value);
                if let Some(value) = level.value.clone().or_else(earlier).or_else(of_head) {
                    rows.insert(id, LevelRow { time_ms, is_ended, value });
                }
            }
            if levels.len() > left {
                break;
            }
            left -= levels.len();
            sealed = Some(*up_to);
        }
        (rows.into_iter().collect(), sealed)
    }

    /// The head knows what [`Store::levels_to_settle`] gave.
    fn settled(&mut self) {
        let (mut left, mut is_any) = (LEVELS_PER_COMMIT, false);
        while let Some((levels, _)) = self.settling.front_mut() {
            let taken = levels.len().min(left);
            levels.drain(..taken);
            left -= taken;
            if !levels.is_empty() {
                break;
            }
            self.settling.pop_front();
            is_any = true;
        }
        if is_any {
            self.forget_ended();
        }
    }

    /// Series that ended before the open window, and whose level is in the head, are not kept in memory.
    fn forget_ended(&mut self) {
        let sealed = self.head.state.sealed;
        let index = self.shared.index.read();
        let is_ticked = |id: &u32| index.series.get(id).is_some_and(|known| known.kind.is_some());
        self.series.retain(|id, live| !(live.is_ended && live.window <= sealed && is_ticked(id)));
    }

    /// Removes days that are older than the retention, and the oldest ones while there is more on disk than `size_max` bytes.
    /// Gives the series of which nothing is left.
    ///
    /// A day goes when so much was recorded after its end plus the retention that the clock can be believed: a day's worth, or the
    /// retention if that is less.
    ///
    /// # Errors
    /// A file cannot be removed, or the disk refuses.
    pub fn expire(&mut self, retention_ms: i64, size_max: Option<u64>) -> Result<Vec<SeriesId>, StoreError> {
        // From the first to the last tick of each window: the little time between two windows is not in it.
        let trusted_ms = retention_ms.min(DAY_MS) / 10 * 9;
        let mut files = files_of_days(&self.shared.dir)?;
        let newest = self.last_tick_ms.map(day_of);
        let old: Vec<PathBuf> = files
            .iter()
            .filter(|file| {
                let horizon = end_of(file.day).saturating_add(retention_ms);
                newest.is_some_and(|newest| file.day < newest) && self.recorded_after(horizon) >= trusted_ms
            })
            .map(|file| file.path.clone())
            .collect();
        let mut size: u64 = self.size_bytes();
        files.sort_by_key(|file| (!file.is_aside, file.day));
        let mut removed = HashSet::new();
        for file in &files {
            let is_old = old.contains(&file.path);
            let is_beyond = size_max.is_some_and(|most| size > most)
                && (file.is_aside || newest.is_some_and(|newest| file.day < newest));
            if !is_old && !is_beyond {
                continue;
            }
            if !file.is_aside {
                let _writing = self.shared.writing();
                self.shared.windows.write().replace_day(file.day, Vec::new());
                self.shared.forget_day(file.day);
                removed.insert(file.day);
            }
            let at = |source| StoreError::Directory { path: file.path.clone(), error: source };
            std::fs::remove_file(&file.path).map_err(at)?;
            // What SQLite keeps beside it: empty, or of no use without it.
            let mut journal = file.path.clone().into_os_string();
            journal.push("-journal");
            let _ = std::fs::remove_file(journal);
            size = size.saturating_sub(file.bytes);
            let why = if is_old { "it is older than the retention" } else { "the store is larger than it may be" };
            tracing::info!(file = %file.path.display(), why, "a file of the store is removed");
        }
        if removed.is_empty() {
            return Ok(Vec::new());
        }
        self.forget_gone()
    }

    /// For how many milliseconds there were ticks after a time.
    fn recorded_after(&self, time_ms: i64) -> i64 {
        let windows = self.shared.windows.read();
        let sealed = windows.sealed.iter().map(|window| &window.ticks);
        let open = windows.sealing.iter().map(|window| &window.ticks).chain([&windows.open.ticks]);
        let of = |ticks: &Vec<i64>| {
            let first = ticks.iter().find(|tick| **tick >= time_ms);
            first.zip(ticks.last()).map_or(0, |(first, last)| last - first)
        };
        sealed.chain(open).map(of).sum()
    }

    fn forget_gone(&mut self) -> Result<Vec<SeriesId>, StoreError> {
        let mut present = RoaringBitmap::new();
        {
            let windows = self.shared.windows.read();
            for window in &windows.sealed {
                present |= &window.present;
                present |= &window.lost;
            }
            let sealing = windows.sealing.iter().map(|window| &**window).chain([&windows.open, &windows.written]);
            sealing.for_each(|window| present.extend(window.streams.keys()));
        }
        let index = self.shared.index.read();
        let is_over = |known: &Known| known.is_ended || known.kind.is_none();
        let all = index.series.iter().filter(|(id, known)| is_over(known) && !present.contains(**id));
        let mut gone: Vec<u32> = all.map(|(id, _)| *id).collect();
        drop(index);
        gone.sort_unstable();
        self.head.commit(&Commit { gone: &gone, ..Commit::default() }, std::iter::empty())?;
        self.shared.index.write().remove(&gone);
        gone.iter().for_each(|id| drop(self.series.remove(id)));
        Ok(gone.into_iter().map(SeriesId).collect())
    }

    /// The series of ticks with these labels, if there is one of this kind, with the last value that it had.
    ///
    /// # Errors
    /// The head cannot be read.
    pub fn find(&self, labels: &Labels, kind: MetricKind) -> Result<Option<KnownSeries>, StoreError> {
        let index = self.shared.index.read();
        let Some((id, known)) = index.find(labels, Some(kind)).and_then(|id| Some((id, index.series.get(&id)?))) else {
            return Ok(None);
        };
        let settling = || {
            let levels = self.settling.iter().rev().flat_map(|(levels, _)| levels);
            levels.filter(|level| level.id == id).find_map(|level| level.value.clone())
        };
        let in_memory = self.series.get(&id).and_then(|live| live.value.clone()).or_else(settling);
        let value = match in_memory {
            Some(value) => Some(value),
            None => self.head.level(id)?.map(|row| row.value),
        };
        Ok(Some(KnownSeries { id: SeriesId(id), since_ms: known.start_ms, value }))
    }

    /// How many series of ticks it knows, those that ended among them, and the bytes of their labels.
    pub fn series_known(&self) -> (usize, usize) {
        self.shared.index.read().ticked_size()
    }

    #[cfg(test)]
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.shared.index.read().by_name.contains_key(name)
    }

    /// What reads beside the writer: as many as wanted.
    pub fn reader(&self) -> Reader {
        Reader { shared: Arc::clone(&self.shared) }
    }

    /// Bytes on disk.
    pub fn size_bytes(&self) -> u64 {
        let days = files_of_days(&self.shared.dir).unwrap_or_default();
        let head = std::fs::metadata(self.head.path()).map_or(0, |meta| meta.len());
        head + days.iter().map(|file| file.bytes).sum::<u64>()
    }

    /// Whether all windows that are complete are in the files.
    pub fn is_sealed(&self) -> bool {
        self.shared.windows.read().sealing.is_empty()
    }

    /// Why the newest window could not be sealed; `None` while all is well.
    pub fn sealing_error(&self) -> Option<String> {
        self.shared.sealing_error()
    }

    /// How many damaged files were set aside since the store was opened.
    pub fn damaged_files(&self) -> u64 {
        self.shared.damaged()
    }

    /// Lets the head grow to so many pages and no further: a disk that is full.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pages: i64) {
        self.head.limit_pages(pages);
    }

    /// Completes the open windows, and waits until they are in the files.
    #[cfg(test)]
    pub(crate) fn seal_now(&mut self) {
        let job = roll(&self.shared, self.head.state.last);
        job.into_iter().for_each(|job| self.sealer.send(job));
        while !self.is_sealed() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

impl Live {
    /// Where its stream stands in a window.
    fn cursor(&self, window: u64) -> Cursor {
        if self.window != window {
            return Cursor::default();
        }
        Cursor::at(self.ticks, self.last_ms, self.value.clone().filter(|_| self.is_in_window))
    }

    /// Its stream stands there now; `is_ended`: with a stale marker.
    fn stands(&mut self, window: u64, cursor: Cursor, is_ended: bool) {
        let value;
        (self.ticks, self.last_ms, value) = cursor.into_parts();
        (self.window, self.is_ended, self.is_in_window) = (window, is_ended, value.is_some());
        self.value = value.or(self.value.take());
    }

    /// Its last value, the stale marker included.
    fn last(&self) -> Option<&Value> {
        static STALE: std::sync::LazyLock<Value> = std::sync::LazyLock::new(Value::stale);
        if self.is_ended { Some(&STALE) } else { self.value.as_ref() }
    }
}

/// Takes a data directory for this process alone, until what this gives is dropped.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = open.map_err(|source| StoreError::Directory { path: path.clone(), error: source })?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::Locked { path: dir.to_owned() },
        TryLockError::Error(source) => StoreError::Directory { path, error: source },
    })?;
    Ok(lock)
}

/// What becomes of the log when a store is opened.
#[derive(Debug, Default)]
struct Replay {
    series: HashMap<u32, Live, RandomState>,
    last_tick_ms: Option<i64>,
    run: u64,
    pictured: Option<(i64, u64)>,
    jobs: Vec<Job>,
}

impl Replay {
    /// Where the last sealed window of ticks ended.
    fn stand_at_sealed(&mut self, shared: &Shared) {
        let mut windows = shared.windows.write();
        let last = windows.sealed.iter().rfind(|window| !window.is_written).cloned();
        if let Some(window) = last {
            self.last_tick_ms = window.ticks.last().copied();
            self.run = window.run;
            self.pictured = window.ticks.first().map(|first| (day_of(*first), window.run));
            windows.open.previous = window.last_sequence;
        }
    }

    /// Goes through one entry. `None`: it does not fit.
    fn entry(&mut self, shared: &Shared, sequence: u64, content: &[u8]) -> Option<()> {
        let (entry, growth) = take_entry(content)?;
        if entry.begins {
            self.jobs.extend(roll(shared, sequence - 1));
        }
        let mut windows = shared.windows.write();
        if entry.begins {
            // What the window before it was is in the log: it may be lost with its day.
            windows.open.previous = entry.previous;
        }
        let mut index = shared.index.write();
        let open = if entry.is_written { &mut windows.written } else { &mut windows.open };
        if open.is_empty() {
            open.first_sequence = sequence;
            open.run = entry.run;
            open.is_written = entry.is_written;
        }
        open.last_sequence = sequence;
        if !entry.is_written {
            open.ticks.push(entry.time_ms);
            open.includes(entry.time_ms);
            self.last_tick_ms = Some(entry.time_ms);
            self.run = entry.run;
            self.pictured = Some((day_of(entry.time_ms), entry.run));
        }
        for (id, bytes) in growth {
            // Of a series that is not known, which only damage makes, nothing could be told.
            let Some(known) = index.series.get_mut(&id) else { continue };
            let live = self.series.entry(id).or_default();
            let mut cursor = live.cursor(open.first_sequence);
            let mut is_ended = live.is_ended;
            let mut rest = bytes;
            while !rest.is_empty() {
                let (_, sample) = cursor.take(&mut rest, &open.ticks)?;
                is_ended = sample.value.is_stale();
                open.includes(sample.timestamp_ms);
            }
            live.stands(open.first_sequence, cursor, is_ended);
            known.is_ended = is_ended;
            open.grow(id, bytes);
        }
        Some(())
    }

    fn restored(&self, shared: &Shared, head: &Head) -> Restored {
        let index = shared.index.read();
        let mut series: Vec<RestoredSeries> = index
            .series
            .iter()
            .filter_map(|(id, known)| {
                // A series of which there is no sample did not begin: it ended, as it were.
                let live = self.series.get(id);
                let value = live.map_or_else(|| Some(Value::stale()), |live| live.last().cloned());
                let kind = known.kind?;
                let is_of_kind = |value: &Value| {
                    value.is_stale() || value.as_histogram().is_some() == (kind == MetricKind::Histogram)
                };
                Some(RestoredSeries {
                    id: SeriesId(*id),
                    labels: known.labels.clone(),
                    kind,
                    start_ms: known.start_ms,
                    value: value.filter(is_of_kind).or_else(|| start_value(kind)).unwrap_or_else(Value::stale),
                    last_ms: live.map_or(known.start_ms, |live| live.last_ms),
                    writer: index.writer(*id).to_owned(),
                })
            })
            .collect();
        series.sort_by_key(|series| series.id);
        Restored {
            last_tick_ms: self.last_tick_ms,
            next_id: u32::try_from(head.state.next_id).unwrap_or(u32::MAX),
            series,
        }
    }
}

/// Writes a head anew from what is left of the old one and from the days: its series are those that either knows, and what a series was
/// last is what the newest window says. Gives the part of the log that is not in the files.
fn rebuild(
    shared: &Shared,
    loaded: &mut Loaded,
    head: &mut Head,
    log: Vec<(u64, Vec<u8>)>,
) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    let mut reading = None;
    while let Err(error) = tell_from_days(shared, loaded, &mut reading) {
        // Of each file once: what is left of it is sound.
        let (StoreError::Damaged { what, .. }, Some(day)) = (&error, reading.take()) else { return Err(error) };
        let _writing = shared.writing();
        shared.salvage(day, what)?;
    }
    let windows = shared.windows.read().sealed.clone();
    let last_of = |is_written: bool| {
        let of_kind = windows.iter().filter(|window| window.is_written == is_written);
        of_kind.map(|window| window.last_sequence).max().unwrap_or_default().max(loaded.state.sealed)
    };
    let (ticked, written) = (last_of(false), last_of(true));
    let log: Vec<(u64, Vec<u8>)> = log
        .into_iter()
        .filter(|(sequence, content)| {
            take_entry(content).is_some_and(|(entry, _)| *sequence > if entry.is_written { written } else { ticked })
        })
        .collect();
    // The log goes on behind everything that is in the files.
    let sealed = ticked.max(written);
    let greatest = loaded.series.range(..FIRST_WRITTEN).next_back().map_or(0, |(id, _)| u64::from(*id));
    let commit = Commit {
        next_id: loaded.state.next_id.max(greatest + 1),
        levels: loaded.levels.iter().map(|(id, row)| (*id, row.clone())).collect(),
        sealed: Some(sealed),
        ..Commit::default()
    };
    head.commit(&commit, std::mem::take(&mut loaded.series).into_iter())?;
    let mut renumbered = Vec::with_capacity(log.len());
    for (_, content) in log {
        let sequence = head.next_sequence();
        let log: PutContent<'_> = &|out| out.extend_from_slice(&content);
        head.commit(&Commit { log: Some(log), ..Commit::default() }, std::iter::empty())?;
        renumbered.push((sequence, content));
    }
    Ok(renumbered)
}

/// Adds what the days say of series, and of what these were last, to what is left of a head. `reading` is the day whose file was read last.
fn tell_from_days(shared: &Shared, loaded: &mut Loaded, reading: &mut Option<i64>) -> Result<(), StoreError> {
    let windows = shared.windows.read().sealed.clone();
    let days: HashSet<i64> = windows.iter().map(|window| window.day).collect();
    for day in days {
        *reading = Some(day);
        let Some(file) = shared.day(day)? else { continue };
        for (id, row) in file.series()? {
            loaded.series.entry(id).or_insert(row);
        }
        shared.give_back(file);
    }
    for (id, row) in &loaded.series {
        shared.index.write().insert_row(*id, row.clone());
    }
    for id in loaded.series.keys().copied() {
        let mut level: Option<Level> = None;
        for window in windows.iter().rev().filter(|window| window.present.contains(id)) {
            if window.last_sequence <= loaded.state.sealed && loaded.levels.contains_key(&id) {
                break; // the head knew of it
            }
            *reading = Some(window.day);
            let Some(file) = shared.day(window.day)? else { continue };
            let samples = file.samples(window, id, Part::Whole)?;
            shared.give_back(file);
            let last = samples.last().map(|sample| (sample.timestamp_ms, sample.value.is_stale()));
            let value = samples.into_iter().map(|sample| sample.value).rfind(|value| !value.is_stale());
            let (time_ms, is_ended) = level.as_ref().map_or(last.unwrap_or_default(), |l| (l.time_ms, l.is_ended));
            level = Some(Level { id, time_ms, is_ended, value });
            if level.as_ref().is_some_and(|level| level.value.is_some()) {
                break;
            }
        }
        if let Some(Level { time_ms, is_ended, value, .. }) = level {
            let value = value.or_else(|| loaded.levels.get(&id).map(|row| row.value.clone()));
            loaded.levels.extend(value.map(|value| (id, LevelRow { time_ms, is_ended, value })));
        }
    }
    Ok(())
}

/// Completes the open windows: from here on they wait to be sealed, and with them the log up to `up_to`.
fn roll(shared: &Shared, up_to: u64) -> Option<Job> {
    let mut windows = shared.windows.write();
    let previous = if windows.open.is_empty() { windows.open.previous } else { windows.open.last_sequence };
    let complete = [std::mem::take(&mut windows.open), std::mem::take(&mut windows.written)];
    windows.open.previous = previous;
    let complete: Vec<_> = complete.into_iter().filter(|window| !window.is_empty()).map(Arc::new).collect();
    windows.sealing.extend(complete.iter().cloned());
    (!complete.is_empty()).then_some(Job { windows: complete, up_to })
}

/// Opens the files of all days.
fn open_days(shared: &Shared) -> Result<(), StoreError> {
    let _writing = shared.writing();
    Day::end_what_was_begun(&shared.dir)?;
    for file in files_of_days(&shared.dir)?.iter().filter(|file| !file.is_aside) {
        let read = || Day::open(&shared.dir, file.day)?.windows();
        let windows = match read() {
            Err(StoreError::Damaged { what, .. }) => {
                shared.salvage(file.day, &what)?;
                read()?
            }
            other => other?,
        };
        shared.windows.write().replace_day(file.day, windows);
    }
    Ok(())
}

/// Passes over windows in the files of days that the head does not know to be sealed: they are still in the log, all of them, and the
/// sealer puts them there again, in place of these. So a start writes nothing: the disk may be full.
fn pass_over_unsealed(shared: &Shared, sealed: u64) {
    let mut windows = shared.windows.write();
    let is_unsealed = |window: &Arc<SealedWindow>| window.last_sequence > sealed;
    windows.sealed.iter().filter(|window| is_unsealed(window)).for_each(|window| shared.pass_over(window.day, sealed));
    windows.sealed.retain(|window| !is_unsealed(window));
}

/// A file of a day in the data directory.
#[derive(Debug)]
struct DayFile {
    path: PathBuf,
    day: i64,
    /// Whether it was set aside.
    is_aside: bool,
    bytes: u64,
}

fn files_of_days(dir: &Path) -> Result<Vec<DayFile>, StoreError> {
    let at = |source| StoreError::Directory { path: dir.to_owned(), error: source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at)? {
        let entry = entry.map_err(at)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let (of_day, is_aside) = match name.split_once(".damaged-") {
            Some((of_day, _)) => (of_day, true),
            None => (name, false),
        };
        if let Some(day) = day_of_name(of_day) {
            let bytes = entry.metadata().map_or(0, |meta| meta.len());
            files.push(DayFile { path: entry.path(), day, is_aside, bytes });
        }
    }
    files.sort_by_key(|file| file.day);
    Ok(files)
}

fn number_of(id: SeriesId) -> Result<u32, StoreError> {
    if id.0 < FIRST_WRITTEN { Ok(id.0) } else { Err(StoreError::TooManySeries) }
}

/// Whether a sample that comes again is the same one, NaN among them.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        (Value::Histogram(a), Value::Histogram(b)) if a.sum().is_nan() && b.sum().is_nan() => {
            let parts = |h: &ExponentialHistogram| (h.schema(), h.zero_count(), h.count());
            parts(a) == parts(b) && a.positive() == b.positive() && a.negative() == b.negative()
        }
        _ => a == b,
    }
}

/// The explicit zero that a series begins with; a gauge has none.
fn start_value(kind: MetricKind) -> Option<Value> {
    match kind {
        MetricKind::Counter => Some(Value::Float(0.0)),
        MetricKind::Gauge => None,
        MetricKind::Histogram => Some(Value::Histogram(Arc::new(ExponentialHistogram::default()))),
    }
}

/// Copies a data directory, also while a collector uses it, to a directory that is new or empty: the head first, so that whatever
/// a day's copy lacks is still in the copy of the log. `told` is called with each file that is copied and its size in bytes.
///
/// # Errors
/// There is no store at `dir`, `target` is not empty, or a file cannot be copied.
pub fn backup(dir: &Path, target: &Path, mut told: impl FnMut(&Path, u64)) -> Result<(), StoreError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Directory { path, error: source }
    };
    let head = dir.join("head.db");
    std::fs::metadata(&head).map_err(at(&head))?;
    DirBuilder::new().recursive(true).mode(0o700).create(target).map_err(at(target))?;
    if std::fs::read_dir(target).map_err(at(target))?.next().is_some() {
        let source = std::io::Error::from(std::io::ErrorKind::DirectoryNotEmpty);
        return Err(StoreError::Directory { path: target.to_owned(), error: source });
    }
    let mut copy = |path: &Path| {
        let copy = target.join(path.file_name().unwrap_or_default());
        let bytes = super::file::copy_while_used(path, &copy)?;
        told(path, bytes);
        Ok(())
    };
    copy(&head)?;
    let last = Head::last(target)?;
    for file in files_of_days(dir)?.into_iter().filter(|file| !file.is_aside) {
        match copy(&path_of(dir, file.day)) {
            // The retention took it.
            Err(_) if !file.path.exists() => {}
            // What was sealed meanwhile may go beyond the copy of the head, which would look as if that were an old one.
            done => {
                done?;
                let cut = last.map(|last| Day::open(target, file.day)?.remove_beyond(last));
                match cut {
                    // Whoever starts with the copy finds what the collector itself will find.
                    None | Some(Ok(()) | Err(StoreError::Damaged { .. })) => {}
                    Some(Err(other)) => return Err(other),
                }
            }
        }
    }
    Ok(())
}
