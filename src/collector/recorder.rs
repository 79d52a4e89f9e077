//! The recorder: every 10 s one tick, committed to the store, then published.
//!
//! A tick that the disk refuses is kept and merged with the next; meanwhile live values are published and the health says
//! so. No tick is at or before the one before it, whatever the clock does.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::intake::Intake;
use super::published::{Health, Published};
use crate::clock::Clock;
use crate::model::MetricKind;
use crate::store::{Store, Tick};

/// Old samples are removed so often.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// How the recorder works.
#[derive(Debug, Clone)]
pub struct RecorderConfig {
    /// Time between ticks. Default 10 s.
    pub interval: Duration,
    /// How long samples are kept. Default 14 days.
    pub retention: Duration,
}

/// The thread; [`Recorder::stop`] makes the last tick.
#[derive(Debug)]
pub struct Recorder {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Recorder {
    /// Starts the thread.
    pub fn start(
        config: RecorderConfig,
        intake: Arc<Intake>,
        store: Store,
        published: Arc<Published>,
        clock: Clock,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let mut worker = Worker::new(config, intake, store, published, clock);
        let thread = thread::Builder::new().name("cortex-recorder".into()).spawn(move || {
            let interval = worker.config.interval;
            let mut next = Instant::now() + interval;
            while stopped.recv_deadline(next) == Err(RecvTimeoutError::Timeout) {
                worker.tick();
                next = (next + interval).max(Instant::now());
            }
            worker.tick();
        })?;
        Ok(Self { stop, thread })
    }

    /// Makes the last tick of what the intake holds and closes the store.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

struct Worker {
    config: RecorderConfig,
    intake: Arc<Intake>,
    store: Store,
    published: Arc<Published>,
    clock: Clock,
    last_tick_ms: Option<i64>,
    /// Ticks that could not be committed, merged into one.
    pending: Tick,
    /// What the collector's own counters have been told already.
    told: BTreeMap<(&'static str, &'static str), u64>,
    expired: Option<Instant>,
}

impl Worker {
    fn new(config: RecorderConfig, intake: Arc<Intake>, store: Store, published: Arc<Published>, clock: Clock) -> Self {
        let last_tick_ms = published.snapshot().tick_ms;
        let (pending, told) = (Tick::default(), BTreeMap::new());
        Self { config, intake, store, published, clock, last_tick_ms, pending, told, expired: None }
    }

    fn tick(&mut self) {
        let now_ms = self.clock.now_ms();
        let timestamp_ms = self.last_tick_ms.map_or(now_ms, |last| now_ms.max(last + 1));
        let interval_ms = self.config.interval.as_millis() as i64;
        // The explicit zero of a new series stands at the tick before, or where it would have been.
        let start_ms =
            self.last_tick_ms.map_or(timestamp_ms - interval_ms, |last| last.max(timestamp_ms - 2 * interval_ms));
        let tick = self.take(timestamp_ms, start_ms, now_ms);
        self.last_tick_ms = Some(timestamp_ms);
        let tick = merge(std::mem::take(&mut self.pending), tick);
        match self.store.append(&tick) {
            Ok(()) => {
                if self.published.health().store_error.is_some() {
                    tracing::info!("the store takes ticks again: what was held is committed");
                    self.published.set_health(Health::default());
                }
                self.published.publish(&tick);
                self.expire(timestamp_ms);
            }
            Err(error) => {
                if self.published.health().store_error.is_none() {
                    tracing::error!(%error, "a tick could not be stored: it is held and merged with the next");
                }
                self.published.set_health(Health { store_error: Some(error.to_string()) });
                self.published.publish(&tick);
                self.told_own("commit_failures_total", "", 1);
                self.pending = tick;
            }
        }
    }

    /// Takes what changed, with the collector's own figures.
    fn take(&mut self, timestamp_ms: i64, start_ms: i64, now_ms: i64) -> Tick {
        let size_bytes = self.store.size_bytes();
        let intake = Arc::clone(&self.intake);
        let mut state = intake.lock();
        let state = &mut *state;
        state.registry.end_gauges(&state.senders, now_ms);
        state.senders.forget(now_ms);
        let totals = state.totals.clone();
        let mut own = vec![
            ("datagrams_total", "", totals.datagrams),
            ("messages_total", "", totals.messages),
            ("kernel_drops_total", "", totals.kernel_drops),
            ("payloads_missing_total", "", state.senders.missing_total()),
            ("tags_dropped_total", "", state.registry.tags_dropped()),
            ("commit_failures_total", "", self.told.get(&("commit_failures_total", "")).copied().unwrap_or(0)),
        ];
        own.extend(totals.dropped.iter().map(|(reason, dropped)| ("dropped_total", *reason, dropped.count)));
        for (name, reason, total) in own {
            let told = self.told.entry((name, reason)).or_default();
            let grown = total.saturating_sub(*told);
            *told = total.max(*told);
            let label = (!reason.is_empty()).then_some(("reason", reason));
            state.registry.record_own(MetricKind::Counter, name, label, grown as f64);
        }
        let series = state.registry.len() as f64;
        state.registry.record_own(MetricKind::Gauge, "series", None, series);
        state.registry.record_own(MetricKind::Gauge, "store_size_bytes", None, size_bytes as f64);
        state.registry.take_changes(timestamp_ms, start_ms)
    }

    /// Adds to a counter that the recorder itself keeps.
    fn told_own(&mut self, name: &'static str, reason: &'static str, grown: u64) {
        *self.told.entry((name, reason)).or_default() += grown;
        let label = (!reason.is_empty()).then_some(("reason", reason));
        self.intake.lock().registry.record_own(MetricKind::Counter, name, label, grown as f64);
    }

    fn expire(&mut self, now_ms: i64) {
        if self.expired.is_some_and(|expired| expired.elapsed() < EXPIRE_EVERY) {
            return;
        }
        self.expired = Some(Instant::now());
        let retention_ms = i64::try_from(self.config.retention.as_millis()).unwrap_or(i64::MAX);
        match self.store.expire(now_ms.saturating_sub(retention_ms)) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => self.intake.lock().registry.forget(&gone.into_iter().collect()),
            Err(error) => tracing::error!(%error, "old samples could not be removed; the next hour tries again"),
        }
    }
}

/// One tick that says what both say: of equal series the later value.
fn merge(earlier: Tick, later: Tick) -> Tick {
    let mut started = earlier.started;
    started.extend(later.started);
    let mut samples: BTreeMap<_, _> = earlier.samples.into_iter().collect();
    samples.extend(later.samples);
    let mut writers: BTreeMap<_, _> = earlier.writers.into_iter().collect();
    writers.extend(later.writers);
    Tick {
        timestamp_ms: later.timestamp_ms,
        started,
        samples: samples.into_iter().collect(),
        writers: writers.into_iter().collect(),
    }
}
