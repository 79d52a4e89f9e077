//! SQLite, as both kinds of file use it: open, whose it is, what an error means, rows with a sum.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

use super::StoreError;
use super::codec::{FORMAT_VERSION, Table, frame, unframe};

/// `ctMx`: says that a database is ours.
const APPLICATION_ID: i64 = 0x6374_4d78;
/// A writer and its readers get so long to let each other pass.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// So often may the same file be damaged before the last one that was set aside is replaced.
const ASIDE_MAX: u32 = 1000;
/// So many rows are read in one transaction: beginning one costs more than a row, and a writer waits for its end.
const ROWS_PER_READ: u32 = 256;
/// What each connection may keep of a file in memory, in KiB; the one that writes holds what it changes besides.
const CACHE_KIB: i64 = 1024;
const CACHE_WRITING_KIB: i64 = 256;

/// Where SQLite's header has the version of the format for those who write, and the greatest that there is (SQLite's "Database File Format",
/// 1.3.3).
const WRITE_VERSION_AT: usize = 18;
const WRITE_VERSION_MAX: u8 = 2;

/// A database of the data directory.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    connection: Connection,
    /// `None`: it is open for writing. Else how many rows were read since the transaction began that reads; 0: there is none.
    read: Option<Cell<u32>>,
}

impl Database {
    /// Opens a file for reading and writing, and makes it with `schema` if it is missing.
    pub(super) fn open(path: &Path, schema: &str) -> Result<Self, StoreError> {
        let is_new = !path.exists();
        let database = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        let connection = &database.connection;
        // SQLite opens a file that may not be written for reading, without a word.
        if connection.is_readonly(rusqlite::MAIN_DB).map_err(|e| database.failed(e))? {
            // So it does with a format that it may not write.
            if write_version(path).is_some_and(|version| version > WRITE_VERSION_MAX) {
                return Err(database.damaged("its header"));
            }
            let source = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(StoreError::Directory { path: path.to_owned(), error: source });
        }
        let pragma =
            |name: &str, value: &str| connection.pragma_update(None, name, value).map_err(|e| database.failed(e));
        // What is written in one transaction stays in memory until then: readers wait for its end alone.
        pragma("cache_spill", "OFF")?;
        connection.pragma_update(None, "cache_size", -CACHE_WRITING_KIB).map_err(|e| database.failed(e))?;
        pragma("synchronous", "FULL")?;
        if is_new || database.is_blank()? {
            pragma("page_size", "8192")?;
            let text = format!(
                "BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION}; {schema} COMMIT;"
            );
            connection.execute_batch(&text).map_err(|e| database.failed(e))?;
        }
        database.check_owner()?;
        pragma("journal_mode", "TRUNCATE")?;
        Ok(database)
    }

    /// Opens a file that is there, for reading.
    pub(super) fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        // Not for reading alone: a transaction that a crash left half done is taken back by whoever comes first.
        let mut database = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        database.connection.pragma_update(None, "query_only", "ON").map_err(|e| database.failed(e))?;
        database.read = Some(Cell::new(0));
        Ok(database)
    }

    /// Ends the transaction in which rows are read, if there is one.
    pub(super) fn rest(&self) -> Result<(), StoreError> {
        match &self.read {
            Some(read) if read.replace(0) > 0 => self.execute("COMMIT"),
            _ => Ok(()),
        }
    }

    /// Before each row: many are read in one transaction.
    fn read_on(&self) -> Result<(), StoreError> {
        let Some(read) = &self.read else { return Ok(()) };
        if read.get() >= ROWS_PER_READ {
            self.rest()?;
        }
        if read.get() == 0 {
            self.execute("BEGIN")?;
        }
        read.set(read.get() + 1);
        Ok(())
    }

    fn execute(&self, text: &str) -> Result<(), StoreError> {
        let done = self.connection.prepare_cached(text).and_then(|mut statement| statement.execute([]));
        done.map(|_| ()).map_err(|e| self.failed(e))
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(|source| StoreError::Database { path: path.to_owned(), error: source })?;
        let database = Self { path: path.to_owned(), connection, read: None };
        database.connection.busy_timeout(BUSY_TIMEOUT).map_err(|e| database.failed(e))?;
        database.connection.pragma_update(None, "cache_size", -CACHE_KIB).map_err(|e| database.failed(e))?;
        // A file may be anybody's work by now: nothing in it is code, and its pages are looked at closely.
        database.connection.pragma_update(None, "trusted_schema", "OFF").map_err(|e| database.failed(e))?;
        database.connection.pragma_update(None, "cell_size_check", "ON").map_err(|e| database.failed(e))?;
        Ok(database)
    }

    fn is_blank(&self) -> Result<bool, StoreError> {
        let count = "SELECT count(*) FROM sqlite_schema";
        self.connection.query_row(count, [], |row| row.get::<_, i64>(0)).map(|n| n == 0).map_err(|e| self.failed(e))
    }

    /// Whether the file says that it is ours and of this version. A file of ours in which a byte of that has changed is damaged:
    /// its tables tell it from another program's.
    fn check_owner(&self) -> Result<(), StoreError> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let id = pragma("application_id").map_err(|e| self.failed(e))?;
        let version = pragma("user_version").map_err(|e| self.failed(e))?;
        if id == APPLICATION_ID && version == i64::from(FORMAT_VERSION) {
            // No file of ours is vacuumed by itself. One that says so lacks the page which that takes: SQLite would take another for it.
            let is_vacuumed = pragma("auto_vacuum").map_err(|e| self.failed(e))? != 0;
            return if is_vacuumed { Err(self.damaged("its header")) } else { Ok(()) };
        }
        let names = "SELECT count(*) FROM sqlite_schema WHERE name IN ('state', 'windows')";
        let is_ours: bool = self.connection.query_row(names, [], |row| row.get(0)).map_err(|e| self.failed(e))?;
        let path = self.path.clone();
        match (id == APPLICATION_ID, is_ours) {
            (true, true) if version > i64::from(FORMAT_VERSION) && self.holds_newer()? => {
                Err(StoreError::Newer { path, got: version, want: i64::from(FORMAT_VERSION) })
            }
            (_, true) => Err(StoreError::Damaged { path, what: "its header".to_owned() }),
            (true, false) if version < i64::from(FORMAT_VERSION) => {
                Err(StoreError::Older { path, got: version, want: i64::from(FORMAT_VERSION) })
            }
            _ => Err(StoreError::NotOurs { path }),
        }
    }

    /// Whether its pages and its free space fit together: where they do not all may be read, but the next write is refused.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let check = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match check.map_err(|e| self.failed(e))? {
            found if found == "ok" => Ok(()),
            found => Err(self.damaged(found)),
        }
    }

    /// Whether a row says so too.
    fn holds_newer(&self) -> Result<bool, StoreError> {
        let table = "SELECT name FROM sqlite_schema WHERE name IN ('state', 'windows')";
        let table: String = self.connection.query_row(table, [], |row| row.get(0)).map_err(|e| self.failed(e))?;
        let body: Option<Vec<u8>> = self
            .connection
            .query_row(&format!("SELECT body FROM {table} LIMIT 1"), [], |row| row.get(0))
            .optional()
            .map_err(|e| self.failed(e))?;
        Ok(body.and_then(|body| body.first().copied()).is_some_and(|version| version > FORMAT_VERSION))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What an error of SQLite means here: what the file cannot be if all is well is damage.
    pub(super) fn failed(&self, source: rusqlite::Error) -> StoreError {
        failed(&self.path, source)
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what: what.into() }
    }

    /// The content of one row, `None` if there is none.
    pub(super) fn row(&self, table: Table, key: i64) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_on()?;
        let mut query = self.connection.prepare_cached(select_one(table)).map_err(|e| self.failed(e))?;
        let mut rows = query.query([key]).map_err(|e| self.failed(e))?;
        let Some(row) = rows.next().map_err(|e| self.failed(e))? else { return Ok(None) };
        let body = row.get_ref(0).and_then(|body| Ok(body.as_blob()?)).map_err(|e| self.failed(e))?;
        let content = unframe(table, key, body).ok_or_else(|| self.damaged(format!("row {key} of {}", name(table))))?;
        Ok(Some(content.to_vec()))
    }

    /// Gives every row with a key greater than `after` to `visit`, in the order of keys.
    pub(super) fn rows(
        &self,
        table: Table,
        after: i64,
        mut visit: impl FnMut(i64, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let text = format!("SELECT key, body FROM {} WHERE key > ?1 ORDER BY key", name(table));
        let mut query = self.connection.prepare(&text).map_err(|e| self.failed(e))?;
        let mut rows = query.query([after]).map_err(|e| self.failed(e))?;
        let mut last = after;
        while let Some(row) = rows.next().map_err(|e| self.failed(e))? {
            let key: i64 = row.get(0).map_err(|e| self.failed(e))?;
            let body = row.get_ref(1).and_then(|body| Ok(body.as_blob()?)).map_err(|e| self.failed(e))?;
            let content = unframe(table, key, body).filter(|_| key > last);
            visit(key, content.ok_or_else(|| self.damaged(format!("row {key} of {}", name(table))))?)?;
            last = key;
        }
        Ok(())
    }

    /// As [`Database::rows`], but what cannot be read is passed over: all that is left of a damaged file. From the front, and
    /// if that fails from the back.
    pub(super) fn rows_that_are_left(&self, table: Table, mut visit: impl FnMut(i64, &[u8])) {
        for order in ["", " DESC"] {
            let text = format!("SELECT key, body FROM {} ORDER BY key{order}", name(table));
            let Ok(mut query) = self.connection.prepare(&text) else { return };
            let Ok(mut rows) = query.query([]) else { return };
            loop {
                match rows.next() {
                    Ok(Some(row)) => {
                        let Ok(key) = row.get::<_, i64>(0) else { continue };
                        let body = row.get_ref(1).ok().and_then(|body| body.as_blob().ok());
                        if let Some(content) = body.and_then(|body| unframe(table, key, body)) {
                            visit(key, content);
                        }
                    }
                    Ok(None) => return,
                    Err(_) => break,
                }
            }
        }
    }

    /// Writes one row, in place of an earlier one.
    pub(super) fn put(&self, table: Table, key: i64, content: impl FnOnce(&mut Vec<u8>)) -> Result<(), StoreError> {
        let body = frame(table, key, content);
        let text = format!("INSERT OR REPLACE INTO {} (key, body) VALUES (?1, ?2)", name(table));
        self.connection
            .prepare_cached(&text)
            .and_then(|mut insert| insert.execute(rusqlite::params![key, body]))
            .map(|_| ())
            .map_err(|e| self.failed(e))
    }

    /// Runs `write` in one transaction: when this returns, it survives the loss of power.
    pub(super) fn transaction<T>(&self, write: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let transaction =
            rusqlite::Transaction::new_unchecked(&self.connection, rusqlite::TransactionBehavior::Immediate)
                .map_err(|e| self.failed(e))?;
        let done = write()?;
        transaction.commit().map_err(|e| self.failed(e))?;
        Ok(done)
    }
}

/// The schema of tables whose rows are a key and a body.
pub(super) fn schema(tables: &[Table]) -> String {
    tables
        .iter()
        .map(|table| format!("CREATE TABLE {} (key INTEGER PRIMARY KEY, body BLOB NOT NULL);", name(*table)))
        .collect()
}

pub(super) fn name(table: Table) -> &'static str {
    match table {
        Table::State => "state",
        Table::Series => "series",
        Table::Levels => "levels",
        Table::Log => "log",
        Table::Chunks => "chunks",
        Table::Summaries => "summaries",
        Table::Windows => "windows",
    }
}

/// Texts that stay, for the look-ups that a query makes by the thousand.
fn select_one(table: Table) -> &'static str {
    match table {
        Table::State => "SELECT body FROM state WHERE key = ?1",
        Table::Series => "SELECT body FROM series WHERE key = ?1",
        Table::Levels => "SELECT body FROM levels WHERE key = ?1",
        Table::Log => "SELECT body FROM log WHERE key = ?1",
        Table::Chunks => "SELECT body FROM chunks WHERE key = ?1",
        Table::Summaries => "SELECT body FROM summaries WHERE key = ?1",
        Table::Windows => "SELECT body FROM windows WHERE key = ?1",
    }
}

fn write_version(path: &Path) -> Option<u8> {
    let mut header = [0; WRITE_VERSION_AT + 1];
    File::open(path).and_then(|mut file| file.read_exact(&mut header)).ok()?;
    header.last().copied()
}

fn failed(path: &Path, source: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    let is_damage = match &source {
        rusqlite::Error::SqliteFailure(error, message) => match error.code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => true,
            // A table that is missing, a schema that cannot be read: we make neither.
            ErrorCode::Unknown => {
                let is_damage =
                    |m: &str| m.starts_with("no such") || m.contains("malformed") || m.contains("unsupported");
                message.as_deref().is_some_and(is_damage)
            }
            // What is read past the end of a file that was cut.
            ErrorCode::SystemIoFailure => error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ,
            _ => false,
        },
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::QueryReturnedNoRows
        | rusqlite::Error::IntegralValueOutOfRange(..) => true,
        _ => false,
    };
    if is_damage {
        return StoreError::Damaged { path, what: source.to_string() };
    }
    StoreError::Database { path, error: source }
}

/// Sets a damaged file aside, with what SQLite left beside it, under the first free name. Gives that name.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let at = |path: &Path, source| StoreError::Directory { path: path.to_owned(), error: source };
    let with = |suffix: &str| {
        let mut name = OsString::from(path);
        name.push(suffix);
        PathBuf::from(name)
    };
    let free = (1..ASIDE_MAX).map(|n| with(&format!(".damaged-{n}"))).find(|aside| !aside.exists());
    let aside = free.unwrap_or_else(|| with(&format!(".damaged-{ASIDE_MAX}")));
    std::fs::rename(path, &aside).map_err(|source| at(path, source))?;
    let journal = with("-journal");
    if journal.exists() {
        let mut name = OsString::from(&aside);
        name.push("-journal");
        std::fs::rename(&journal, PathBuf::from(name)).map_err(|source| at(&journal, source))?;
    }
    Ok(aside)
}

/// Copies a database that others may be writing, as it is between two of their transactions. Gives its size.
pub(super) fn copy_while_used(path: &Path, target: &Path) -> Result<u64, StoreError> {
    let database = Database::open_to_read(path)?;
    // A transaction that reads keeps writers from the file, though not from preparing what they will write.
    let reading = database.connection.unchecked_transaction().map_err(|e| database.failed(e))?;
    reading.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(|e| database.failed(e))?;
    let at = |source| StoreError::Directory { path: target.to_owned(), error: source };
    let bytes = std::fs::copy(path, target).map_err(at)?;
    File::open(target).and_then(|file| file.sync_all()).map_err(at)?;
    Ok(bytes)
}
