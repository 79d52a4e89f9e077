//! What has been published: the newest committed value of every series, for whoever reads.

use std::collections::HashMap;
use std::num::NonZeroI64;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, RwLock};

use crate::clock::Clock;
use crate::model::{Place, PublishedSeries, SeriesId, Snapshot, Value};
use crate::store::{Restored, RestoredSeries, StartedSeries, Tick};

/// Whether what is published has also been committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the newest tick could not be committed; `None` while all is well.
    pub store_error: Option<String>,
    /// Why what was committed could not be moved into the file of its day; `None` while all is well.
    pub sealing_error: Option<String>,
}

/// The newest snapshot and the health of the store. A reader holds the snapshot that it was given, which no tick changes:
/// neither waits for the other longer than a tick takes to be published.
#[derive(Debug)]
pub struct Published {
    snapshot: RwLock<Arc<Snapshot>>,
    /// Where each series stands. Only [`Published::publish`] uses it.
    places: Mutex<HashMap<SeriesId, Place, RandomState>>,
    health: RwLock<Health>,
    /// When the newest tick was published, or this was made.
    last: Mutex<Instant>,
    newest_ms: Arc<AtomicI64>,
}

impl Default for Published {
    fn default() -> Self {
        Self::new(&Restored::default())
    }
}

impl Published {
    /// What an earlier process has committed.
    pub fn new(restored: &Restored) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.tick_ms = restored.last_tick_ms;
        let mut places = HashMap::default();
        // What has ended comes with its labels if it comes back.
        for RestoredSeries { id, labels, kind, start_ms, value, .. } in
            restored.series.iter().filter(|series| !series.value.is_stale())
        {
            let series =
                PublishedSeries { labels: labels.clone(), start_ms: NonZeroI64::new(*start_ms), value: value.clone() };
            places.insert(*id, snapshot.insert(*kind, series));
        }
        snapshot.settle();
        let newest_ms = Arc::new(AtomicI64::new(snapshot.tick_ms.unwrap_or(i64::MIN)));
        let snapshot = RwLock::new(Arc::new(snapshot));
        Self {
            snapshot,
            places: Mutex::new(places),
            health: RwLock::default(),
            last: Mutex::new(Instant::now()),
            newest_ms,
        }
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read())
    }

    /// A clock for readers, that never stands before the newest tick.
    pub fn clock(&self) -> Clock {
        Clock::NotBefore(Arc::clone(&self.newest_ms))
    }

    /// How long ago the newest tick was published, or this was made.
    pub fn age(&self) -> Duration {
        self.last.lock().elapsed()
    }

    /// The health of the store.
    pub fn health(&self) -> Health {
        self.health.read().clone()
    }

    pub(super) fn publish(&self, tick: &Tick) {
        let mut places = self.places.lock();
        let mut snapshot = self.snapshot.write();
        // In place, unless somebody still reads the last one.
        let snapshot = Arc::make_mut(&mut snapshot);
        snapshot.tick_ms = Some(tick.timestamp_ms);
        *self.last.lock() = Instant::now();
        self.newest_ms.store(tick.timestamp_ms, Ordering::Relaxed);
        for started in &tick.started {
            let StartedSeries { id, labels, kind, .. } = started;
            // Its first value is among the samples.
            let series = PublishedSeries {
                labels: labels.clone(),
                start_ms: NonZeroI64::new(started.since_ms()),
                value: Value::stale(),
            };
            places.entry(*id).or_insert_with(|| snapshot.insert(*kind, series));
        }
        for (id, value) in &tick.samples {
            if let Some(place) = places.get(id) {
                snapshot.set(*place, value.clone());
            }
        }
        snapshot.remove(tick.ended.iter().filter_map(|id| places.remove(id)));
        snapshot.settle();
    }

    /// Forgets series that are gone from the store.
    pub(super) fn forget(&self, gone: &[SeriesId]) {
        let mut places = self.places.lock();
        let mut snapshot = self.snapshot.write();
        let snapshot = Arc::make_mut(&mut snapshot);
        snapshot.remove(gone.iter().filter_map(|id| places.remove(id)));
    }

    pub(super) fn set_health(&self, health: Health) {
        *self.health.write() = health;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use crate::exposition::text_chunks;
    use crate::model::{Labels, Ladder, METRIC_NAME, MetricKind};
    use crate::store::Earlier;

    fn tick(at: i64, started: Vec<StartedSeries>) -> Tick {
        let samples = (0..2000).map(|id| (SeriesId(id), Value::Float(at as f64))).collect();
        Tick { timestamp_ms: at, started, samples, ..Tick::default() }
    }

    #[test]
    fn a_scrape_shows_one_tick_whatever_is_published_meanwhile() {
        let published = Published::default();
        let started = |id: u32| {
            let labels = Labels::from_pairs([(METRIC_NAME, "c".to_owned()), ("id", id.to_string())]);
            StartedSeries { id: SeriesId(id), labels, kind: MetricKind::Counter, start_ms: 0, earlier: None }
        };
        published.publish(&tick(1, (0..2000).map(started).collect()));
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut at = 1;
                while !is_over.load(Ordering::Relaxed) {
                    at += 1;
                    published.publish(&tick(at, Vec::new()));
                }
            });
            for _ in 0..50 {
                let snapshot = published.snapshot();
                let wanted = format!(" {}", snapshot.tick_ms.unwrap());
                let text: Vec<u8> = text_chunks(snapshot, Ladder::default()).flatten().collect();
                let text = String::from_utf8(text).unwrap();
                assert_eq!(text.lines().filter(|line| line.ends_with(&wanted)).count(), 2000);
                assert_eq!(text.lines().count(), 2001);
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn what_had_ended_when_the_store_was_opened_is_not_shown() {
        let series = |name: &str, value| RestoredSeries {
            id: SeriesId(name.len() as u32),
            labels: Labels::from_pairs([(METRIC_NAME, name)]),
            kind: MetricKind::Gauge,
            start_ms: 5,
            value,
            last_ms: 5,
            writer: String::new(),
        };
        let series = vec![series("a", Value::stale()), series("bb", Value::Float(1.0))];
        let published = Published::new(&Restored { series, ..Restored::default() });
        assert!(published.snapshot().family("a").is_none() && published.snapshot().family("bb").is_some());
        assert_eq!(published.places.lock().len(), 1);
    }

    #[test]
    fn a_series_that_is_gone_from_the_store_takes_no_room() {
        let published = Published::default();
        let labels = Labels::from_pairs([(METRIC_NAME, "c")]);
        let started = StartedSeries { id: SeriesId(7), labels, kind: MetricKind::Counter, start_ms: 5, earlier: None };
        published.publish(&tick(1, vec![started.clone()]));
        let start = || published.snapshot().series("c").next().and_then(|series| series.start_ms);
        assert_eq!(start(), NonZeroI64::new(5));
        published.publish(&Tick { timestamp_ms: 2, ended: vec![SeriesId(7)], ..Tick::default() });
        assert!(published.snapshot().family("c").is_none());
        // It comes back where it was: it has counted since its first beginning.
        let earlier = Some(Box::new(Earlier { since_ms: 5, value: Value::Float(1.0) }));
        published.publish(&tick(3, vec![StartedSeries { start_ms: 2, earlier, ..started }]));
        assert_eq!(start(), NonZeroI64::new(5));
        published.forget(&[SeriesId(7), SeriesId(8)]);
        assert!(published.snapshot().family("c").is_none() && published.places.lock().is_empty());
    }
}
