//! What has been published: the newest committed value of every series, for whoever reads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

use crate::clock::Clock;
use crate::model::{Family, Labels, MetricKind, SeriesId, Value};
use crate::store::{Restored, Tick};

/// The state after one tick.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// When the tick was, `None` before the first of a new data directory.
    pub tick_ms: Option<i64>,
    /// The series by name.
    pub families: BTreeMap<String, Family>,
    ids: HashMap<SeriesId, (Labels, MetricKind)>,
}

/// Whether what is published has also been committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the newest tick could not be committed; `None` while all is well.
    pub store_error: Option<String>,
}

/// The newest snapshot and the health of the store. Readers hold up a tick at most, never the intake.
#[derive(Debug, Default)]
pub struct Published {
    snapshot: RwLock<Snapshot>,
    health: RwLock<Health>,
    newest_ms: Arc<AtomicI64>,
}

impl Published {
    /// What an earlier process has committed.
    pub fn new(restored: &Restored) -> Self {
        let mut snapshot = Snapshot { tick_ms: restored.last_tick_ms, ..Snapshot::default() };
        for series in &restored.series {
            snapshot.ids.insert(series.id, (series.labels.clone(), series.kind));
            snapshot.set(series.id, &series.value);
        }
        let newest_ms = Arc::new(AtomicI64::new(snapshot.tick_ms.unwrap_or(i64::MIN)));
        Self { snapshot: RwLock::new(snapshot), health: RwLock::default(), newest_ms }
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.snapshot.read()
    }

    /// A clock for readers, that never stands before the newest tick.
    pub fn clock(&self) -> Clock {
        Clock::NotBefore(Arc::clone(&self.newest_ms))
    }

    /// The health of the store.
    pub fn health(&self) -> Health {
        self.health.read().clone()
    }

    pub(super) fn publish(&self, tick: &Tick) {
        let mut snapshot = self.snapshot.write();
        snapshot.tick_ms = Some(tick.timestamp_ms);
        self.newest_ms.store(tick.timestamp_ms, Ordering::Relaxed);
        for started in &tick.started {
            snapshot.ids.insert(started.id, (started.labels.clone(), started.kind));
        }
        tick.samples.iter().for_each(|(id, value)| snapshot.set(*id, value));
        for id in &tick.ended {
            snapshot.ids.remove(id);
        }
    }

    pub(super) fn set_health(&self, health: Health) {
        *self.health.write() = health;
    }
}

impl Snapshot {
    fn set(&mut self, id: SeriesId, value: &Value) {
        let Some((labels, kind)) = self.ids.get(&id) else { return };
        let name = labels.name();
        if !self.families.contains_key(name) {
            self.families.insert(name.to_owned(), Family { kind: *kind, series: BTreeMap::new() });
        }
        let Some(family) = self.families.get_mut(name) else { return };
        if value.is_stale() {
            family.series.remove(labels);
            if family.series.is_empty() {
                let name = name.to_owned();
                self.families.remove(&name);
            }
        } else {
            family.series.insert(labels.clone(), value.clone());
        }
    }
}
