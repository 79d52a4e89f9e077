//! Reading: series with one sample per tick, made from what changed.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::codec::decode_value;
use super::database::Index;
use super::{MatchOp, Select, SelectedSeries, Selection, StoreError};
use crate::model::{Labels, METRIC_NAME, Sample, SeriesId, Value};

/// So many connections stay open between queries.
const IDLE_CONNECTIONS_MAX: usize = 4;

/// Reads a store that another part of this process writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) path: PathBuf,
    pub(super) index: Arc<RwLock<Index>>,
    pub(super) connections: Arc<Mutex<Vec<Connection>>>,
}

impl Reader {
    fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Database { path: path.clone(), source }
    }

    fn matching(&self, selection: &Selection) -> Vec<(SeriesId, Labels)> {
        let index = self.index.read();
        let is_match = |labels: &Labels| selection.matchers.iter().all(|matcher| matcher.matches(labels));
        let name = selection.matchers.iter().find_map(|matcher| match &matcher.op {
            MatchOp::Equal(name) if matcher.name == METRIC_NAME => Some(name),
            _ => None,
        });
        let pair = |id: &SeriesId| index.labels.get(id).map(|labels| (*id, labels.clone()));
        let mut matching: Vec<(SeriesId, Labels)> = match name {
            Some(name) => index.by_name.get(name).into_iter().flatten().filter_map(pair).collect(),
            None => index.labels.keys().filter_map(pair).collect(),
        };
        matching.retain(|(_, labels)| is_match(labels));
        matching.sort_by(|a, b| a.1.cmp(&b.1));
        matching
    }

    fn read(&self, connection: &Connection, selection: &Selection) -> Result<Vec<SelectedSeries>, StoreError> {
        let failed = self.failed();
        let (start, end) = (selection.start_ms, selection.end_ms);
        let matching = self.matching(selection);
        if matching.is_empty() {
            return Ok(Vec::new());
        }
        // One snapshot for ticks and samples, whatever is committed meanwhile.
        let snapshot = connection.unchecked_transaction().map_err(&failed)?;
        let ticks: Vec<i64> = snapshot
            .prepare_cached("SELECT timestamp FROM ticks WHERE timestamp BETWEEN ?1 AND ?2 ORDER BY timestamp")
            .and_then(|mut query| query.query_map([start, end], |row| row.get(0))?.collect())
            .map_err(&failed)?;
        let mut level = snapshot
            .prepare_cached(
                "SELECT timestamp, value FROM samples WHERE series = ?1 AND timestamp < ?2 ORDER BY timestamp DESC LIMIT 1",
            )
            .map_err(&failed)?;
        let mut within = snapshot
            .prepare_cached(
                "SELECT timestamp, value FROM samples WHERE series = ?1 AND timestamp BETWEEN ?2 AND ?3 ORDER BY timestamp",
            )
            .map_err(&failed)?;
        let mut selected = Vec::new();
        let mut left = selection.samples_max;
        for (id, labels) in matching {
            let number = id.0.cast_signed();
            let decode = |timestamp_ms: i64, bytes: &[u8]| match decode_value(bytes) {
                Some(value) => Ok(Sample { timestamp_ms, value }),
                None => Err(StoreError::Damaged {
                    path: self.path.clone(),
                    what: format!("the value of series {number} at {timestamp_ms}"),
                }),
            };
            let before: Option<(i64, Vec<u8>)> =
                level.query_row([number, start], |row| Ok((row.get(0)?, row.get(1)?))).optional().map_err(&failed)?;
            let before = before.map(|(timestamp, bytes)| decode(timestamp, &bytes)).transpose()?;
            let mut changes = Vec::new();
            let mut rows = within.query([number, start, end]).map_err(&failed)?;
            while let Some(row) = rows.next().map_err(&failed)? {
                let bytes = row.get_ref(1).and_then(|bytes| Ok(bytes.as_blob()?)).map_err(&failed)?;
                changes.push(decode(row.get(0).map_err(&failed)?, bytes)?);
                if changes.len() > left {
                    return Err(StoreError::TooManySamples(selection.samples_max));
                }
            }
            let samples = fill(before.map(|sample| sample.value), changes, &ticks, selection.repeats, left)
                .ok_or(StoreError::TooManySamples(selection.samples_max))?;
            left -= samples.len();
            if !samples.is_empty() {
                selected.push(SelectedSeries { labels, samples });
            }
        }
        Ok(selected)
    }
}

impl Select for Reader {
    /// Of every series that is kept, whether or not it has a sample in the time asked for: no sample is read.
    fn labels(&self, selection: &Selection) -> Result<Vec<Labels>, StoreError> {
        Ok(self.matching(selection).into_iter().map(|(_, labels)| labels).collect())
    }

    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let idle = self.connections.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => Connection::open_with_flags(
                &self.path,
                OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )
            .map_err(self.failed())?,
        };
        let selected = self.read(&connection, selection)?;
        let mut connections = self.connections.lock();
        if connections.len() < IDLE_CONNECTIONS_MAX {
            connections.push(connection);
        }
        drop(connections);
        selected.into_iter().try_for_each(visit)
    }
}

/// One sample at each tick and each change: the newest value there, from `before` on, until a stale marker ends it.
/// Without `repeats` each value once. `None` if that makes more than `samples_max`.
fn fill(
    before: Option<Value>,
    changes: Vec<Sample>,
    ticks: &[i64],
    repeats: bool,
    samples_max: usize,
) -> Option<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut held = before.filter(|value| !value.is_stale());
    let mut changes = changes.into_iter().peekable();
    let mut ticks = ticks.iter().copied().peekable();
    loop {
        let change = match (changes.peek(), ticks.peek()) {
            (None, None) => return Some(samples),
            (Some(change), Some(tick)) if change.timestamp_ms > *tick => None,
            (Some(_), _) => changes.next(),
            (None, Some(_)) => None,
        };
        let sample = if let Some(sample) = change {
            ticks.next_if_eq(&sample.timestamp_ms);
            held = (!sample.value.is_stale()).then(|| sample.value.clone());
            sample
        } else {
            let timestamp_ms = ticks.next()?;
            // What is held now was given already, unless it is from before the time asked for.
            if !repeats && !samples.is_empty() {
                continue;
            }
            let Some(value) = held.clone() else { continue };
            Sample { timestamp_ms, value }
        };
        if samples.len() >= samples_max {
            return None;
        }
        samples.push(sample);
    }
}
