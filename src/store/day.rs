//! The file of a day: sealed windows with their chunks, summaries and the labels of their series. One that is damaged is set
//! aside, and what is left of it goes into a new one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chunk::{self, Summary};
use super::codec::{Table, put_varint, take_varint};
use super::file::{Database, schema, set_aside};
use super::head::{SeriesRow, put_series, take_series};
use super::window::{Chunk, DAY_MS, SealedWindow, chunk_key};
use super::{Part, StoreError};
use crate::clock::{civil_from_days, days_from_civil};
use crate::model::Sample;

const TABLES: [Table; 5] = [Table::Series, Table::Chunks, Table::Summaries, Table::Windows, Table::State];
/// The row of `state` that says how many windows there are.
const COUNT: i64 = 1;
/// So many chunks go into one transaction: readers never wait for more.
const CHUNKS_PER_TRANSACTION: usize = 2048;

/// What the name of a file ends with that is being made, and of one that is made of what is left of a damaged one.
const NEW: &str = ".new";
const SALVAGE: &str = ".salvage";

/// No day that milliseconds in 64 bits can tell has a longer name.
const NAME_MAX: usize = 18;

/// The summaries of a series on one day.
#[derive(Debug)]
pub(super) struct Summaries {
    /// By the numbers of the windows, ascending.
    of_windows: Vec<(u32, Summary)>,
    /// The greatest of those numbers.
    newest: u32,
    of_day: Summary,
}

impl Summaries {
    /// Of the window with this number.
    pub(super) fn of(&self, number: u32) -> Option<&Summary> {
        let at = self.of_windows.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.of_windows.get(at).map(|(_, summary)| summary)
    }

    /// Of all windows together, if none has a greater number than `newest`.
    pub(super) fn of_day(&self, newest: u32) -> Option<&Summary> {
        (self.newest <= newest).then_some(&self.of_day)
    }
}

/// The file of a day.
#[derive(Debug)]
pub(super) struct Day {
    /// In days since 1970-01-01.
    number: i64,
    database: Database,
    /// What connections that read are counted by.
    _open: Option<Arc<()>>,
}

/// The name of a day's file: `2026-11-23.db`. Days before the year 0 or after 9999 have longer ones.
pub(super) fn path_of(dir: &Path, day: i64) -> PathBuf {
    let (year, month, date) = civil_from_days(day);
    dir.join(format!("{year:04}-{month:02}-{date:02}.db"))
}

/// The day that a file is named for, `None` if it is not the file of a day.
pub(super) fn day_of_name(name: &str) -> Option<i64> {
    if name.len() > NAME_MAX {
        return None;
    }
    let mut parts = name.strip_suffix(".db")?.rsplitn(3, '-');
    let (date, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    let day = days_from_civil(year.parse().ok()?, month.parse().ok()?, date.parse().ok()?);
    let is_exact = path_of(Path::new(""), day).to_str() == Some(name);
    is_exact.then_some(day)
}

/// The last millisecond of a day, and one more.
pub(super) fn end_of(day: i64) -> i64 {
    (day + 1).saturating_mul(DAY_MS)
}

/// What was lost with a file that was damaged.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    /// Windows of which nothing is left.
    pub(super) windows: usize,
    /// Chunks of other windows.
    pub(super) chunks: usize,
}

impl Day {
    /// Opens the file of a day, and makes it if it is missing. It gets its name when it is whole: one that is empty was cut.
    pub(super) fn open(dir: &Path, day: i64) -> Result<Self, StoreError> {
        let path = path_of(dir, day);
        if !path.exists() {
            let new = with_suffix(&path, NEW);
            remove_with_journal(&new)?;
            drop(Self::make(&new, day)?);
            rename(&new, &path)?;
        }
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() == 0) {
            return Err(StoreError::Damaged { path, what: "it is empty".to_owned() });
        }
        let database = Database::open(&path, &schema(&TABLES))?;
        Ok(Self { number: day, database, _open: None })
    }

    fn make(path: &Path, day: i64) -> Result<Self, StoreError> {
        let this = Self { number: day, database: Database::open(path, &schema(&TABLES))?, _open: None };
        this.database.transaction(|| this.put_count(0))?;
        Ok(this)
    }

    /// What a crash left half done: a file that was being made goes; one that was salvaged, and whose damaged one is aside
    /// already, gets its name.
    pub(super) fn end_what_was_begun(dir: &Path) -> Result<(), StoreError> {
        let at = |source| StoreError::Directory { path: dir.to_owned(), error: source };
        for entry in std::fs::read_dir(dir).map_err(at)? {
            let path = entry.map_err(at)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.strip_suffix(NEW).is_some_and(|name| day_of_name(name).is_some()) {
                remove_with_journal(&path)?;
            } else if let Some(day) = name.strip_suffix(SALVAGE).filter(|name| day_of_name(name).is_some()) {
                let whole = dir.join(day);
                if whole.exists() { remove_with_journal(&path)? } else { rename(&path, &whole)? }
            }
        }
        Ok(())
    }

    /// Opens the file of a day for reading; `open` is held as long.
    pub(super) fn open_to_read(dir: &Path, day: i64, open: Arc<()>) -> Result<Self, StoreError> {
        Ok(Self { number: day, database: Database::open_to_read(&path_of(dir, day))?, _open: Some(open) })
    }

    pub(super) fn day(&self) -> i64 {
        self.number
    }

    /// Lets writers pass: nobody reads for now.
    pub(super) fn rest(&self) -> Result<(), StoreError> {
        self.database.rest()
    }

    fn count(&self) -> Result<Option<u64>, StoreError> {
        let Some(content) = self.database.row(Table::State, COUNT)? else { return Ok(None) };
        take_varint(&mut &content[..]).map(Some).ok_or_else(|| self.database.damaged("the number of its windows"))
    }

    fn put_count(&self, count: u64) -> Result<(), StoreError> {
        self.database.put(Table::State, COUNT, |out| put_varint(out, count))
    }

    /// Every window.
    pub(super) fn windows(&self) -> Result<Vec<SealedWindow>, StoreError> {
        let count = self.count()?.ok_or_else(|| self.database.damaged("the number of its windows"))?;
        let mut windows = Vec::new();
        self.database.rows(Table::Windows, i64::MIN, |number, content| {
            let window = u32::try_from(number).ok().and_then(|number| SealedWindow::take(self.number, number, content));
            windows.push(window.ok_or_else(|| self.database.damaged(format!("window {number}")))?);
            Ok(())
        })?;
        if windows.len() as u64 != count {
            return Err(self.database.damaged(format!("{} of {count} windows are there; the rest", windows.len())));
        }
        Ok(windows)
    }

    /// Appends a window: first its chunks, a few at a time, and then, in one transaction, that it is there. Its number is
    /// the next one. `row` gives what a series is.
    pub(super) fn append(
        &self,
        window: &SealedWindow,
        chunks: &[Chunk],
        row: impl Fn(u32) -> Option<SeriesRow>,
    ) -> Result<SealedWindow, StoreError> {
        let count = self.count()?.ok_or_else(|| self.database.damaged("the number of its windows"))?;
        let last = self.greatest(Table::Windows)?.max(0);
        let number = u32::try_from(last + 1).map_err(|_| self.database.damaged("the numbers of its windows"))?;
        let window = SealedWindow { number, ..window.clone() };
        for few in chunks.chunks(CHUNKS_PER_TRANSACTION) {
            self.database.transaction(|| {
                for Chunk { id, content, summary } in few {
                    let key = window.chunk_key(*id);
                    self.database.put(Table::Chunks, key, |out| out.extend_from_slice(content))?;
                    let id_key = i64::from(*id);
                    let known = self.database.row(Table::Summaries, id_key)?;
                    if known.is_none()
                        && let Some(row) = row(*id)
                    {
                        self.database.put(Table::Series, id_key, |out| put_series(out, &row))?;
                    }
                    // What an attempt that failed has left under this number goes.
                    let mut summaries = self.take_summaries(*id, known.as_deref().unwrap_or_default())?;
                    summaries.retain(|(other, _)| *other < number);
                    summaries.push((number, summary.clone()));
                    self.database.put(Table::Summaries, id_key, |out| put_summaries(out, &summaries))?;
                }
                Ok(())
            })?;
        }
        self.database.transaction(|| {
            self.database.put(Table::Windows, i64::from(number), |out| window.put(out))?;
            self.put_count(count + 1)
        })?;
        Ok(window)
    }

    /// Removes the windows that end beyond an entry of the log: those that are not sealed yet as far as the head knows.
    pub(super) fn remove_beyond(&self, sealed: u64) -> Result<(), StoreError> {
        let windows = self.windows()?;
        let beyond = windows.iter().filter(|window| window.last_sequence > sealed);
        let numbers: Vec<u32> = beyond.map(|window| window.number).collect();
        if numbers.is_empty() { Ok(()) } else { self.remove(&numbers) }
    }

    fn remove(&self, numbers: &[u32]) -> Result<(), StoreError> {
        self.database.transaction(|| {
            let count = self.count()?.unwrap_or_default();
            for number in numbers {
                let chunks = [chunk_key(*number, 0), chunk_key(*number, u32::MAX)];
                self.execute("DELETE FROM chunks WHERE key BETWEEN ?1 AND ?2", &chunks)?;
                self.execute("DELETE FROM windows WHERE key = ?1", &[i64::from(*number)])?;
            }
            self.put_count(count.saturating_sub(numbers.len() as u64))
        })
    }

    fn execute(&self, text: &str, keys: &[i64]) -> Result<(), StoreError> {
        let done = self.database.connection().execute(text, rusqlite::params_from_iter(keys));
        done.map(|_| ()).map_err(|e| self.database.failed(e))
    }

    fn greatest(&self, table: Table) -> Result<i64, StoreError> {
        let text = format!("SELECT ifnull(max(key), 0) FROM {}", super::file::name(table));
        self.database.connection().query_row(&text, [], |row| row.get(0)).map_err(|e| self.database.failed(e))
    }

    /// The samples of a series in a window that lists it.
    pub(super) fn samples(&self, window: &SealedWindow, id: u32, part: Part) -> Result<Vec<Sample>, StoreError> {
        let damaged = || self.database.damaged(format!("the chunk of series {id} in window {}", window.number));
        let content = self.database.row(Table::Chunks, window.chunk_key(id))?.ok_or_else(damaged)?;
        chunk::read(&content, &window.ticks, part).ok_or_else(damaged)
    }

    /// The summaries of a series that has a chunk on this day.
    pub(super) fn summaries(&self, id: u32) -> Result<Summaries, StoreError> {
        let content = self.database.row(Table::Summaries, i64::from(id))?;
        let content = content.ok_or_else(|| self.database.damaged(format!("the summary of series {id}")))?;
        let of_windows = self.take_summaries(id, &content)?;
        let of_day = of_windows.iter().map(|(_, summary)| summary).cloned().reduce(|all, later| all.with(&later));
        let newest = of_windows.last().map_or(u32::MAX, |(number, _)| *number);
        Ok(Summaries { of_windows, newest, of_day: of_day.unwrap_or(Summary::None) })
    }

    fn take_summaries(&self, id: u32, content: &[u8]) -> Result<Vec<(u32, Summary)>, StoreError> {
        take_summaries(content).ok_or_else(|| self.database.damaged(format!("the summary of series {id}")))
    }

    /// What the series with a chunk on this day are.
    pub(super) fn series(&self) -> Result<Vec<(u32, SeriesRow)>, StoreError> {
        let mut series = Vec::new();
        self.database.rows(Table::Series, i64::MIN, |key, content| {
            let row = u32::try_from(key).ok().zip(take_series(content));
            series.push(row.ok_or_else(|| self.database.damaged(format!("the labels of series {key}")))?);
            Ok(())
        })?;
        Ok(series)
    }

    /// Sets a damaged file aside and makes a new one of what is left of it. `row` gives what a series is where the file has forgotten it.
    pub(super) fn salvage(
        dir: &Path,
        day: i64,
        row: impl Fn(u32) -> Option<SeriesRow>,
    ) -> Result<(PathBuf, Lost), StoreError> {
        let path = path_of(dir, day);
        let fresh = with_suffix(&path, SALVAGE);
        remove_with_journal(&fresh)?;
        let lost = Self::copy_what_is_left(&path, &fresh, day, row)?;
        let aside = set_aside(&path)?;
        rename(&fresh, &path)?;
        Ok((aside, lost))
    }

    fn copy_what_is_left(
        path: &Path,
        fresh: &Path,
        day: i64,
        row: impl Fn(u32) -> Option<SeriesRow>,
    ) -> Result<Lost, StoreError> {
        let target = Self::make(fresh, day)?;
        let mut lost = Lost::default();
        let Ok(database) = Database::open_to_read(path) else { return Ok(lost) };
        let source = Self { number: day, database, _open: None };
        let mut windows = BTreeMap::new();
        source.database.rows_that_are_left(Table::Windows, |key, content| {
            if let Some(window) = u32::try_from(key).ok().and_then(|number| SealedWindow::take(day, number, content)) {
                windows.insert(key, window);
            }
        });
        let count = source.count().ok().flatten().unwrap_or_default();
        lost.windows = usize::try_from(count).unwrap_or_default().saturating_sub(windows.len());
        let mut labels = BTreeMap::new();
        source.database.rows_that_are_left(Table::Series, |key, content| {
            labels.extend(u32::try_from(key).ok().zip(take_series(content)));
        });
        let row = |id: u32| row(id).or_else(|| labels.get(&id).cloned());
        for mut window in windows.into_values() {
            let mut chunks = Vec::new();
            for id in window.present.clone() {
                let content = source.database.row(Table::Chunks, window.chunk_key(id)).ok().flatten();
                let read = content.and_then(|content| {
                    let samples = chunk::read(&content, &window.ticks, Part::Whole)?;
                    row(id).map(|_| (content, samples))
                });
                if let Some((content, samples)) = read {
                    let summary = Summary::of(samples.iter().map(|sample| &sample.value));
                    chunks.push(Chunk { id, content, summary });
                } else {
                    lost.chunks += 1;
                    window.present.remove(id);
                    window.lost.insert(id);
                }
            }
            target.append(&window, &chunks, row)?;
        }
        Ok(lost)
    }
}

fn put_summaries(out: &mut Vec<u8>, summaries: &[(u32, Summary)]) {
    for (number, summary) in summaries {
        put_varint(out, u64::from(*number));
        summary.put(out);
    }
}

fn take_summaries(mut content: &[u8]) -> Option<Vec<(u32, Summary)>> {
    let mut summaries = Vec::new();
    while !content.is_empty() {
        let number = u32::try_from(take_varint(&mut content)?).ok()?;
        summaries.push((number, Summary::take(&mut content)?));
    }
    summaries.is_sorted_by(|a, b| a.0 < b.0).then_some(summaries)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

/// Gives a file that nobody has open its name; its journal is empty.
fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    remove_if_there(&with_suffix(from, "-journal"))?;
    let at = |source| StoreError::Directory { path: to.to_owned(), error: source };
    std::fs::rename(from, to).map_err(at)?;
    // What is in the file may be nowhere else: its name must survive as well.
    std::fs::File::open(to.parent().unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()).map_err(at)
}

fn remove_with_journal(path: &Path) -> Result<(), StoreError> {
    remove_if_there(&with_suffix(path, "-journal"))?;
    remove_if_there(path)
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::Directory { path: path.to_owned(), error: source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_for_its_day() {
        for day in [0, 1, 20_780, -1, -719_529, 2_932_897, 5_000_000] {
            let path = path_of(Path::new("/x"), day);
            assert_eq!(day_of_name(path.file_name().unwrap().to_str().unwrap()), Some(day), "{path:?}");
        }
        assert_eq!(path_of(Path::new(""), 20_780), Path::new("2026-11-23.db"));
        for name in
            ["head.db", "2026-11-31.db", "2026-1-1.db", "2026-11-23.db.damaged-1", "x-11-23.db", "+026-11-23.db"]
        {
            assert_eq!(day_of_name(name), None, "{name}");
        }
    }
}
