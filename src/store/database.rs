//! The store itself: one directory, one database, one writer.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::codec::{decode_kind, decode_labels, decode_value, encode_kind, encode_labels, encode_value};
use super::reader::Reader;
use super::{Known, Restored, RestoredSeries, StartedSeries, StoreError, Tick};
use crate::model::{ExponentialHistogram, Labels, MetricKind, SeriesId, Value};

/// `ctMx`: says that a database is ours.
const APPLICATION_ID: i64 = 0x6374_4d78;
/// The version of `docs/storage-format.md`.
const FORMAT_VERSION: i64 = 1;
/// A writer and its readers get so long to let each other pass; in WAL mode they hardly meet.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
    CREATE TABLE ticks (timestamp INTEGER PRIMARY KEY);
    CREATE TABLE series (
        id INTEGER PRIMARY KEY, labels TEXT NOT NULL, kind INTEGER NOT NULL, start INTEGER NOT NULL, writer TEXT NOT NULL
    );
    CREATE TABLE samples (
        series INTEGER NOT NULL, timestamp INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (series, timestamp)
    ) WITHOUT ROWID;
    INSERT INTO meta VALUES ('next_id', 1);
";

/// The labels of every series, so that matching never touches the disk.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) labels: HashMap<SeriesId, Labels>,
    by_labels: HashMap<Labels, SeriesId>,
    pub(super) by_name: HashMap<String, Vec<SeriesId>>,
}

impl Index {
    fn insert(&mut self, id: SeriesId, labels: &Labels) {
        if self.labels.insert(id, labels.clone()).is_none() {
            self.by_labels.insert(labels.clone(), id);
            self.by_name.entry(labels.name().to_owned()).or_default().push(id);
        }
    }

    fn remove(&mut self, id: SeriesId) {
        let Some(labels) = self.labels.remove(&id) else { return };
        if self.by_labels.get(&labels) == Some(&id) {
            self.by_labels.remove(&labels);
        }
        if let Some(ids) = self.by_name.get_mut(labels.name()) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_name.remove(labels.name());
            }
        }
    }
}

/// The writer's side of a data directory.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
    index: Arc<RwLock<Index>>,
    /// Held as long as the store is open.
    _lock: File,
}

impl Store {
    /// Opens a data directory, makes it if it is missing, and takes it for this process alone.
    ///
    /// # Errors
    /// It cannot be made or written, another collector has it, or what is in it is not ours or cannot be read.
    pub fn open(dir: &Path) -> Result<(Self, Restored), StoreError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Directory { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let lock_path = dir.join("lock");
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(at(&lock_path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Locked { path: dir.to_owned() },
            TryLockError::Error(source) => StoreError::Directory { path: lock_path, source },
        })?;
        let path = dir.join("cortex.db");
        let connection =
            Connection::open(&path).map_err(|source| StoreError::Database { path: path.clone(), source })?;
        let mut store = Self { path, connection, index: Arc::default(), _lock: lock };
        store.prepare()?;
        let restored = store.restore()?;
        let mut index = store.index.write();
        restored.series.iter().for_each(|series| index.insert(series.id, &series.labels));
        drop(index);
        Ok((store, restored))
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Database { path: path.clone(), source }
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        let failed = self.failed();
        self.connection.busy_timeout(BUSY_TIMEOUT).map_err(&failed)?;
        // SQLite opens a file that may not be written for reading, without a word.
        if self.connection.is_readonly(rusqlite::MAIN_DB).map_err(&failed)? {
            let source = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(StoreError::Directory { path: self.path.clone(), source });
        }
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (id, version) = (pragma("application_id").map_err(&failed)?, pragma("user_version").map_err(&failed)?);
        let tables: i64 =
            self.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(&failed)?;
        if tables > 0 && id != APPLICATION_ID {
            return Err(StoreError::NotOurs { path: self.path.clone() });
        }
        if version > FORMAT_VERSION {
            return Err(StoreError::Newer { path: self.path.clone(), got: version, want: FORMAT_VERSION });
        }
        self.connection.pragma_update(None, "journal_mode", "WAL").map_err(&failed)?;
        self.connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        if tables == 0 {
            let transaction = self.connection.transaction().map_err(&failed)?;
            transaction.execute_batch(SCHEMA).map_err(&failed)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(&failed)?;
            transaction.pragma_update(None, "user_version", FORMAT_VERSION).map_err(&failed)?;
            transaction.commit().map_err(&failed)?;
        }
        Ok(())
    }

    fn restore(&self) -> Result<Restored, StoreError> {
        let failed = self.failed();
        let next_id: i64 = self
            .connection
            .query_row("SELECT value FROM meta WHERE key = 'next_id'", [], |row| row.get(0))
            .map_err(&failed)?;
        let last_tick_ms =
            self.connection.query_row("SELECT max(timestamp) FROM ticks", [], |row| row.get(0)).map_err(&failed)?;
        let mut newest = self
            .connection
            .prepare("SELECT timestamp, value FROM samples WHERE series = ?1 ORDER BY timestamp DESC LIMIT 1")
            .map_err(&failed)?;
        let mut all = self
            .connection
            .prepare("SELECT id, labels, kind, start, writer FROM series ORDER BY id")
            .map_err(&failed)?;
        let mut rows = all.query([]).map_err(&failed)?;
        let mut series = Vec::new();
        while let Some(row) = rows.next().map_err(&failed)? {
            let id: i64 = row.get(0).map_err(&failed)?;
            let damaged =
                |what: &str| StoreError::Damaged { path: self.path.clone(), what: format!("{what} of series {id}") };
            let text: String = row.get(1).map_err(&failed)?;
            let labels = decode_labels(&text).ok_or_else(|| damaged("the labels"))?;
            let kind = row.get(2).map_err(&failed)?;
            let kind = decode_kind(kind).ok_or_else(|| damaged("the kind"))?;
            let newest: Option<(i64, Vec<u8>)> =
                newest.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional().map_err(&failed)?;
            let value = match newest {
                Some((timestamp, bytes)) => decode_value(&bytes)
                    .filter(|value| {
                        value.is_stale() || (value.as_histogram().is_some() == (kind == MetricKind::Histogram))
                    })
                    .ok_or_else(|| damaged(&format!("the value at {timestamp}")))?,
                None => start_value(kind).unwrap_or_else(Value::stale),
            };
            let start_ms = row.get(3).map_err(&failed)?;
            let writer = row.get(4).map_err(&failed)?;
            series.push(RestoredSeries { id: SeriesId(id.cast_unsigned()), labels, kind, start_ms, value, writer });
        }
        Ok(Restored { last_tick_ms, next_id: next_id.cast_unsigned(), series })
    }

    /// Commits one tick: all of it or nothing. When this returns, it survives the loss of power.
    pub fn append(&mut self, tick: &Tick) -> Result<(), StoreError> {
        let failed = self.failed();
        let transaction = self.connection.transaction().map_err(&failed)?;
        {
            let mut insert_sample = transaction
                .prepare_cached("INSERT OR IGNORE INTO samples (series, timestamp, value) VALUES (?1, ?2, ?3)")
                .map_err(&failed)?;
            let mut insert_series = transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO series (id, labels, kind, start, writer) VALUES (?1, ?2, ?3, ?4, '')",
                )
                .map_err(&failed)?;
            let mut update_writer =
                transaction.prepare_cached("UPDATE series SET writer = ?2 WHERE id = ?1").map_err(&failed)?;
            transaction
                .execute("INSERT OR IGNORE INTO ticks (timestamp) VALUES (?1)", [tick.timestamp_ms])
                .map_err(&failed)?;
            for StartedSeries { id, labels, kind, start_ms, level, .. } in &tick.started {
                let id = id.0.cast_signed();
                insert_series
                    .execute(params![id, encode_labels(labels), encode_kind(*kind), start_ms])
                    .map_err(&failed)?;
                if let Some(value) = level.clone().or_else(|| start_value(*kind)) {
                    insert_sample.execute(params![id, start_ms, encode_value(&value)]).map_err(&failed)?;
                }
            }
            if let Some(last) = tick.started.iter().map(|started| started.id.0).max() {
                transaction
                    .execute("UPDATE meta SET value = max(value, ?1) WHERE key = 'next_id'", [last.cast_signed() + 1])
                    .map_err(&failed)?;
            }
            for (id, value) in &tick.samples {
                insert_sample
                    .execute(params![id.0.cast_signed(), tick.timestamp_ms, encode_value(value)])
                    .map_err(&failed)?;
            }
            for (id, writer) in &tick.writers {
                update_writer.execute(params![id.0.cast_signed(), writer]).map_err(&failed)?;
            }
        }
        transaction.commit().map_err(&failed)?;
        let mut index = self.index.write();
        tick.started.iter().for_each(|started| index.insert(started.id, &started.labels));
        Ok(())
    }

    /// Removes what is older than `cutoff_ms`, but keeps each series' level there. Gives back the series that are gone
    /// altogether: those that had ended before.
    pub fn expire(&mut self, cutoff_ms: i64) -> Result<Vec<SeriesId>, StoreError> {
        let failed = self.failed();
        let transaction = self.connection.transaction().map_err(&failed)?;
        let mut gone = Vec::new();
        {
            let prepare = |sql| transaction.prepare(sql).map_err(&failed);
            let mut level = prepare(
                "SELECT timestamp, value FROM samples WHERE series = ?1 AND timestamp <= ?2 ORDER BY timestamp DESC LIMIT 1",
            )?;
            let mut has_later = prepare("SELECT EXISTS (SELECT 1 FROM samples WHERE series = ?1 AND timestamp > ?2)")?;
            let mut remove = prepare("DELETE FROM samples WHERE series = ?1 AND timestamp < ?2")?;
            let mut remove_series = prepare("DELETE FROM series WHERE id = ?1")?;
            let mut all = prepare("SELECT id FROM series")?;
            let ids: Vec<i64> = all.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(&failed)?;
            for id in ids {
                let found: Option<(i64, Vec<u8>)> = level
                    .query_row([id, cutoff_ms], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
                    .map_err(&failed)?;
                let Some((timestamp, value)) = found else { continue };
                remove.execute([id, timestamp]).map_err(&failed)?;
                let is_ended = decode_value(&value).is_some_and(|value| value.is_stale());
                if is_ended && !has_later.query_row([id, timestamp], |row| row.get::<_, bool>(0)).map_err(&failed)? {
                    remove.execute([id, i64::MAX]).map_err(&failed)?;
                    remove_series.execute([id]).map_err(&failed)?;
                    gone.push(SeriesId(id.cast_unsigned()));
                }
            }
            transaction.execute("DELETE FROM ticks WHERE timestamp < ?1", [cutoff_ms]).map_err(&failed)?;
        }
        transaction.commit().map_err(&failed)?;
        let mut index = self.index.write();
        gone.iter().for_each(|id| index.remove(*id));
        Ok(gone)
    }

    /// The series with these labels, if there is one of this kind, with the last value that it had.
    pub fn find(&self, labels: &Labels, kind: MetricKind) -> Result<Option<Known>, StoreError> {
        let Some(id) = self.index.read().by_labels.get(labels).copied() else { return Ok(None) };
        let failed = self.failed();
        let number = id.0.cast_signed();
        let found: Option<(i64, i64)> = self
            .connection
            .prepare_cached("SELECT kind, start FROM series WHERE id = ?1")
            .and_then(|mut query| query.query_row([number], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(&failed)?;
        let Some((_, since_ms)) = found.filter(|(found, _)| decode_kind(*found) == Some(kind)) else {
            return Ok(None);
        };
        // The newest is a stale marker if the series has ended, and there are never two in a row.
        let newest: Vec<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT value FROM samples WHERE series = ?1 ORDER BY timestamp DESC LIMIT 2")
            .and_then(|mut query| query.query_map([number], |row| row.get(0))?.collect())
            .map_err(&failed)?;
        let mut values = Vec::new();
        for bytes in newest {
            values.push(decode_value(&bytes).ok_or_else(|| StoreError::Damaged {
                path: self.path.clone(),
                what: format!("the last value of series {number}"),
            })?);
        }
        Ok(Some(Known { id, since_ms, value: values.into_iter().find(|value| !value.is_stale()) }))
    }

    /// Whether any series has this name.
    pub fn has_name(&self, name: &str) -> bool {
        self.index.read().by_name.contains_key(name)
    }

    /// What reads beside the writer: as many as wanted.
    pub fn reader(&self) -> Reader {
        Reader {
            path: self.path.clone(),
            index: Arc::clone(&self.index),
            connections: Arc::new(Mutex::new(Vec::new())),
        }
    }

    /// Lets the database grow to so many pages and no further: a disk that is full.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pages: i64) {
        let set = format!("PRAGMA max_page_count = {pages}");
        self.connection.query_row(&set, [], |row| row.get::<_, i64>(0)).expect("the pragma answers");
    }

    /// Bytes on disk, the log of the newest ticks included.
    pub fn size_bytes(&self) -> u64 {
        let size = |suffix: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            std::fs::metadata(path).map_or(0, |meta| meta.len())
        };
        size("") + size("-wal")
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
