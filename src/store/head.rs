//! The head: which series there are, what they were at the end of the last sealed window, and the log of what came since.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use roaring::RoaringBitmap;

use super::StoreError;
use super::codec::{
    Table, decode_kind, encode_kind, put_bytes, put_labels, put_value, put_varint, put_zigzag, take, take_bytes,
    take_labels, take_length, take_text, take_value, take_varint, take_zigzag,
};
use super::file::{Database, schema, set_aside};
use crate::model::{Labels, MetricKind, Value};

const TABLES: [Table; 4] = [Table::State, Table::Series, Table::Levels, Table::Log];
/// The one row of `state`.
const STATE: i64 = 1;
const FILE: &str = "head.db";
const BEGINS: u64 = 1;
const WRITTEN: u64 = 2;
/// So many entries of the log are removed with one commit, so that no tick waits for a long removal.
const CUT_PER_COMMIT: u64 = 64;

/// What a series is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SeriesRow {
    /// `None`: it came by remote write.
    pub(super) kind: Option<MetricKind>,
    pub(super) start_ms: i64,
    pub(super) writer: String,
    pub(super) labels: Labels,
}

/// What a series was at the end of the last sealed window with a sample of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LevelRow {
    pub(super) time_ms: i64,
    pub(super) is_ended: bool,
    /// Its last value that was no stale marker.
    pub(super) value: Value,
}

/// An entry of the log; what the series grow by is beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Whether a window begins with it.
    pub(super) begins: bool,
    /// If so, the last entry of the window of ticks before it, 0 if there is none.
    pub(super) previous: u64,
    pub(super) is_written: bool,
    pub(super) time_ms: i64,
    pub(super) run: u64,
}

/// The row of `state`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) next_id: u64,
    /// Up to here the log is sealed.
    pub(super) sealed: u64,
    /// The last entry of the log.
    pub(super) last: u64,
    series: u64,
    levels: u64,
}

/// Writes the content of a row.
pub(super) type PutContent<'a> = &'a dyn Fn(&mut Vec<u8>);

/// What is committed at once.
#[derive(Default)]
pub(super) struct Commit<'a> {
    pub(super) next_id: u64,
    pub(super) levels: Vec<(u32, LevelRow)>,
    /// Series of which nothing is left.
    pub(super) gone: &'a [u32],
    /// Everything up to here is sealed, and the levels say so.
    pub(super) sealed: Option<u64>,
    /// Writes the next entry of the log.
    pub(super) log: Option<PutContent<'a>>,
}

/// All that the head holds but the log.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) state: State,
    pub(super) series: BTreeMap<u32, SeriesRow>,
    pub(super) levels: BTreeMap<u32, LevelRow>,
    /// Of a damaged head: the entries of the log that are left.
    pub(super) log: Vec<Vec<u8>>,
}

/// The file.
#[derive(Debug)]
pub(super) struct Head {
    database: Database,
    pub(super) state: State,
    series: RoaringBitmap,
    levels: RoaringBitmap,
    /// What a commit that failed was to remove. It may be gone: what fails last, after the commit, is a sync.
    perhaps_gone: Vec<u32>,
}

impl Head {
    /// Opens the head of a data directory, and makes it if it is missing. `entry` is given each entry of the log.
    pub(super) fn open(
        dir: &Path,
        mut entry: impl FnMut(u64, &[u8]) -> Option<()>,
    ) -> Result<(Self, Loaded), StoreError> {
        let path = dir.join(FILE);
        let is_new = !path.exists();
        let database = Database::open(&path, &schema(&TABLES))?;
        database.check()?;
        let (series, levels) = (RoaringBitmap::new(), RoaringBitmap::new());
        let mut head = Self { database, state: State::default(), series, levels, perhaps_gone: Vec::new() };
        let mut loaded = Loaded::default();
        let state = match head.database.row(Table::State, STATE)? {
            Some(content) => take_state(&content).ok_or_else(|| head.damaged("its state"))?,
            None if is_new || !head.has_rows()? => State { next_id: 1, ..State::default() },
            None => return Err(head.damaged("its state")),
        };
        head.database.rows(Table::Series, i64::MIN, |key, content| {
            let row = u32::try_from(key).ok().zip(take_series(content));
            loaded.series.extend([row.ok_or_else(|| head.damaged(&format!("series {key}")))?]);
            Ok(())
        })?;
        head.database.rows(Table::Levels, i64::MIN, |key, content| {
            let row = u32::try_from(key).ok().zip(take_level(content));
            loaded.levels.extend([row.ok_or_else(|| head.damaged(&format!("the level of series {key}")))?]);
            Ok(())
        })?;
        if (loaded.series.len() as u64, loaded.levels.len() as u64) != (state.series, state.levels) {
            return Err(head.damaged("a part of its series"));
        }
        let mut next = state.sealed + 1;
        head.database.rows(Table::Log, state.sealed.cast_signed(), |key, content| {
            if key.cast_unsigned() != next || entry(next, content).is_none() {
                return Err(head.damaged(&format!("entry {next} of the log")));
            }
            next += 1;
            Ok(())
        })?;
        if next != state.last + 1 {
            return Err(head.damaged(&format!("entry {next} of the log")));
        }
        head.series = loaded.series.keys().copied().collect();
        head.levels = loaded.levels.keys().copied().collect();
        head.state = state.clone();
        loaded.state = state;
        Ok((head, loaded))
    }

    /// Sets a damaged head aside and makes an empty one; gives what is left of the old one. The sequence up to which all is
    /// sealed is 0 if it was lost.
    pub(super) fn salvage(dir: &Path) -> Result<(Self, Loaded, PathBuf), StoreError> {
        let path = dir.join(FILE);
        let mut loaded = Loaded::default();
        if let Ok(database) = Database::open_to_read(&path) {
            let state = database.row(Table::State, STATE).ok().flatten();
            loaded.state = state.and_then(|content| take_state(&content)).unwrap_or_default();
            database.rows_that_are_left(Table::Series, |key, content| {
                loaded.series.extend(u32::try_from(key).ok().zip(take_series(content)));
            });
            database.rows_that_are_left(Table::Levels, |key, content| {
                loaded.levels.extend(u32::try_from(key).ok().zip(take_level(content)));
            });
            let mut log = BTreeMap::new();
            database.rows_that_are_left(Table::Log, |key, content| {
                log.insert(key.cast_unsigned(), content.to_vec());
            });
            if loaded.state.last > 0 {
                let next = loaded.state.sealed + 1..=loaded.state.last;
                loaded.log = next.map_while(|sequence| log.remove(&sequence)).collect();
            }
        }
        let aside = set_aside(&path)?;
        let (head, _) = Self::open(dir, |_, _| Some(()))?;
        Ok((head, loaded, aside))
    }

    fn damaged(&self, what: &str) -> StoreError {
        self.database.damaged(what)
    }

    fn has_rows(&self) -> Result<bool, StoreError> {
        let text =
            "SELECT EXISTS (SELECT 1 FROM series) OR EXISTS (SELECT 1 FROM levels) OR EXISTS (SELECT 1 FROM log)";
        self.database.connection().query_row(text, [], |row| row.get(0)).map_err(|e| self.database.failed(e))
    }

    /// Commits all of it or nothing; `rows` are the series that are new or have changed, taken one at a time.
    pub(super) fn commit(
        &mut self,
        commit: &Commit<'_>,
        rows: impl Iterator<Item = (u32, SeriesRow)>,
    ) -> Result<(), StoreError> {
        let gone: Vec<u32> = self.perhaps_gone.iter().chain(commit.gone).copied().collect();
        let done = self.commit_all(commit, &gone, rows);
        self.perhaps_gone = if done.is_ok() { Vec::new() } else { gone };
        done
    }

    fn commit_all(
        &mut self,
        commit: &Commit<'_>,
        gone: &[u32],
        rows: impl Iterator<Item = (u32, SeriesRow)>,
    ) -> Result<(), StoreError> {
        let mut state = self.state.clone();
        let mut series = self.series.clone();
        let mut levels = self.levels.clone();
        for id in gone {
            series.remove(*id);
            levels.remove(*id);
        }
        levels.extend(commit.levels.iter().map(|(id, _)| *id));
        state.next_id = state.next_id.max(commit.next_id);
        state.sealed = state.sealed.max(commit.sealed.unwrap_or_default());
        state.last = state.last.max(state.sealed) + u64::from(commit.log.is_some());
        state.levels = levels.len();
        self.database.transaction(|| {
            for id in gone {
                self.delete("DELETE FROM series WHERE key = ?1", i64::from(*id))?;
                self.delete("DELETE FROM levels WHERE key = ?1", i64::from(*id))?;
            }
            for (id, row) in rows {
                self.database.put(Table::Series, i64::from(id), |out| put_series(out, &row))?;
                series.insert(id);
            }
            state.series = series.len();
            for (id, row) in &commit.levels {
                self.database.put(Table::Levels, i64::from(*id), |out| put_level(out, row))?;
            }
            // What is sealed is passed over whether or not it is still there.
            let oldest = "SELECT ifnull(min(key), 0) FROM log";
            let oldest: i64 = self
                .database
                .connection()
                .prepare_cached(oldest)
                .and_then(|mut query| query.query_row([], |row| row.get(0)))
                .map_err(|e| self.database.failed(e))?;
            if oldest > 0 && oldest.cast_unsigned() <= state.sealed {
                let up_to = (oldest.cast_unsigned() + CUT_PER_COMMIT).min(state.sealed);
                self.delete("DELETE FROM log WHERE key <= ?1", up_to.cast_signed())?;
            }
            if let Some(log) = &commit.log {
                self.database.put(Table::Log, state.last.cast_signed(), log)?;
            }
            self.database.put(Table::State, STATE, |out| put_state(out, &state))
        })?;
        self.state = state;
        self.series = series;
        self.levels = levels;
        Ok(())
    }

    fn delete(&self, text: &str, key: i64) -> Result<(), StoreError> {
        let done = self.database.connection().prepare_cached(text).and_then(|mut delete| delete.execute([key]));
        done.map(|_| ()).map_err(|e| self.database.failed(e))
    }

    /// The last entry of the log of a head that nobody has open, `None` if its state cannot be read.
    pub(super) fn last(dir: &Path) -> Result<Option<u64>, StoreError> {
        match Database::open_to_read(&dir.join(FILE))?.row(Table::State, STATE) {
            Ok(content) => Ok(content.and_then(|content| take_state(&content)).map(|state| state.last)),
            Err(StoreError::Damaged { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// The sequence of the next entry of the log.
    pub(super) fn next_sequence(&self) -> u64 {
        self.state.last.max(self.state.sealed) + 1
    }

    /// Whether the series has a row.
    pub(super) fn knows(&self, id: u32) -> bool {
        self.series.contains(id)
    }

    pub(super) fn level(&self, id: u32) -> Result<Option<LevelRow>, StoreError> {
        let Some(content) = self.database.row(Table::Levels, i64::from(id))? else { return Ok(None) };
        take_level(&content).map(Some).ok_or_else(|| self.damaged(&format!("the level of series {id}")))
    }

    pub(super) fn path(&self) -> &Path {
        self.database.path()
    }

    /// Lets the file grow to so many pages and no further: a disk that is full.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: i64) {
        let set = format!("PRAGMA max_page_count = {pages}");
        self.database.connection().query_row(&set, [], |row| row.get::<_, i64>(0)).expect("the pragma answers");
    }
}

fn put_state(out: &mut Vec<u8>, state: &State) {
    [state.next_id, state.sealed, state.last, state.series, state.levels].iter().for_each(|n| put_varint(out, *n));
}

fn take_state(mut content: &[u8]) -> Option<State> {
    let mut next = || take_varint(&mut content);
    let state = State { next_id: next()?, sealed: next()?, last: next()?, series: next()?, levels: next()? };
    (state.sealed <= state.last && content.is_empty()).then_some(state)
}

pub(super) fn put_series(out: &mut Vec<u8>, row: &SeriesRow) {
    out.push(encode_kind(row.kind));
    put_zigzag(out, row.start_ms);
    put_bytes(out, row.writer.as_bytes());
    put_labels(out, &row.labels);
}

pub(super) fn take_series(mut content: &[u8]) -> Option<SeriesRow> {
    let rest = &mut content;
    let [kind] = take::<1>(rest)?;
    let kind = decode_kind(kind)?;
    let start_ms = take_zigzag(rest)?;
    let writer = take_text(rest)?.to_owned();
    let labels = take_labels(rest)?;
    rest.is_empty().then_some(SeriesRow { kind, start_ms, writer, labels })
}

fn put_level(out: &mut Vec<u8>, row: &LevelRow) {
    put_zigzag(out, row.time_ms);
    out.push(u8::from(row.is_ended));
    put_value(out, &row.value);
}

fn take_level(mut content: &[u8]) -> Option<LevelRow> {
    let rest = &mut content;
    let time_ms = take_zigzag(rest)?;
    let [is_ended] = take::<1>(rest)?;
    let value = take_value(rest)?;
    rest.is_empty().then_some(LevelRow { time_ms, is_ended: is_ended == 1, value })
}

/// Writes an entry of the log: what it is, and what each of `count` series grows by, ascending by id.
pub(super) fn put_entry<'a>(
    out: &mut Vec<u8>,
    entry: Entry,
    count: usize,
    growth: impl Iterator<Item = (u32, &'a [u8])>,
) {
    put_varint(out, if entry.begins { BEGINS } else { 0 } | if entry.is_written { WRITTEN } else { 0 });
    if entry.begins {
        put_varint(out, entry.previous);
    }
    put_zigzag(out, entry.time_ms);
    put_varint(out, entry.run);
    put_varint(out, count as u64);
    let mut last = 0;
    for (id, bytes) in growth {
        put_varint(out, u64::from(id - last));
        put_bytes(out, bytes);
        last = id;
    }
}

/// What series grow by, ascending by id.
pub(super) type Growth<'a> = Vec<(u32, &'a [u8])>;

/// Reads an entry of the log: what it is, and what each series grows by.
pub(super) fn take_entry(mut content: &[u8]) -> Option<(Entry, Growth<'_>)> {
    let rest = &mut content;
    let flags = take_varint(rest)?;
    let entry = Entry {
        begins: flags & BEGINS != 0,
        previous: if flags & BEGINS == 0 { 0 } else { take_varint(rest)? },
        is_written: flags & WRITTEN != 0,
        time_ms: take_zigzag(rest)?,
        run: take_varint(rest)?,
    };
    let count = take_length(rest)?;
    let mut growth = Vec::with_capacity(count);
    let mut id = 0u32;
    for _ in 0..count {
        id = id.checked_add(u32::try_from(take_varint(rest)?).ok()?)?;
        growth.push((id, take_bytes(rest)?));
    }
    (rest.is_empty() && flags <= (BEGINS | WRITTEN)).then_some((entry, growth))
}
