//! The recorder: every 10 s one tick, committed to the store, then published.
//!
//! A tick that the disk refuses is kept and merged with the next; meanwhile live values are published and the health says
//! so. A tick has the clock's time, whatever the clock does: one that was set back never rewrites what was stored.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, at, bounded, select};

use super::intake::{Intake, IntakeState};
use super::published::{Health, Published};
use crate::clock::Clock;
use crate::memory;
use crate::model::{Labels, MetricKind};
use crate::store::{Known, Store, StoreError, Tick, Written, WrittenSeries};

/// Old samples are removed so often.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// After a tick with so many samples, memory that is free goes back to the system.
const MANY_SAMPLES: usize = 10_000;

/// So many remote writes may wait for the recorder.
const WRITES_WAITING_MAX: usize = 16;

/// How the recorder works.
#[derive(Debug, Clone)]
pub struct RecorderConfig {
    /// Time between ticks. Default 10 s.
    pub interval: Duration,
    /// How long samples are kept. Default 14 days.
    pub retention: Duration,
    /// How many bytes the store may have; days before the newest go until it has no more. Default: no limit.
    pub retention_size: Option<u64>,
}

/// The thread; [`Recorder::stop`] makes the last tick.
#[derive(Debug)]
pub struct Recorder {
    stop: Sender<()>,
    thread: JoinHandle<Option<String>>,
    writer: RemoteWriter,
}

/// Samples that came by remote write, on their way to the store.
#[derive(Debug)]
struct Write {
    batch: WriteBatch,
    reply: Sender<Result<Written, StoreError>>,
}

/// What is written at once.
#[derive(Debug, Default)]
pub struct WriteBatch {
    /// The samples.
    pub series: Vec<WrittenSeries>,
    /// No sample may be older than this, in milliseconds since the Unix epoch.
    pub oldest_ms: i64,
    /// How many samples were refused already, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// Hands samples to the recorder, which alone writes to the store. As many of these as wanted.
#[derive(Debug, Clone)]
pub struct RemoteWriter(Sender<Write>);

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum RemoteWriteError {
    /// Other writes wait already.
    #[error("{WRITES_WAITING_MAX} remote writes wait for the store already")]
    Busy,
    /// The collector is about to end.
    #[error("the collector stops")]
    Stopping,
    /// The disk refuses.
    #[error(transparent)]
    Store(StoreError),
}

impl RemoteWriter {
    /// Writes, and returns when it is committed.
    pub fn write(&self, batch: WriteBatch) -> Result<Written, RemoteWriteError> {
        let (reply, answer) = bounded(1);
        self.0.try_send(Write { batch, reply }).map_err(|error| match error {
            TrySendError::Full(_) => RemoteWriteError::Busy,
            TrySendError::Disconnected(_) => RemoteWriteError::Stopping,
        })?;
        answer.recv().map_err(|_| RemoteWriteError::Stopping)?.map_err(RemoteWriteError::Store)
    }
}

impl Recorder {
    /// Starts the thread. `clock` says when a tick is, `steady` how long something has been silent.
    pub fn start(
        config: RecorderConfig,
        intake: Arc<Intake>,
        store: Store,
        published: Arc<Published>,
        clock: Clock,
        steady: Clock,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let (writes, written) = bounded(WRITES_WAITING_MAX);
        let mut worker = Worker::new(config, intake, store, published, clock, steady);
        let thread =
            thread::Builder::new().name("cortex-recorder".into()).spawn(move || worker.run(&stopped, &written))?;
        Ok(Self { stop, thread, writer: RemoteWriter(writes) })
    }

    /// For samples that have times of their own.
    pub fn writer(&self) -> RemoteWriter {
        self.writer.clone()
    }

    /// Makes the last tick of what the intake holds and closes the store. Gives why that tick could not be stored, if it could not: what
    /// it held is lost.
    pub fn stop(self) -> Option<String> {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|_| Some("the recorder failed".to_owned()))
    }
}

struct Worker {
    config: RecorderConfig,
    intake: Arc<Intake>,
    store: Store,
    published: Arc<Published>,
    clock: Clock,
    steady: Clock,
    last_tick_ms: Option<i64>,
    /// Ticks that could not be committed, merged into one.
    pending: Tick,
    /// What the collector's own counters have been told already.
    told: BTreeMap<(&'static str, String), u64>,
    expired: Option<Instant>,
}

impl Worker {
    fn new(
        config: RecorderConfig,
        intake: Arc<Intake>,
        store: Store,
        published: Arc<Published>,
        clock: Clock,
        steady: Clock,
    ) -> Self {
        let last_tick_ms = published.snapshot().tick_ms;
        let (pending, told) = (Tick::default(), BTreeMap::new());
        Self { config, intake, store, published, clock, steady, last_tick_ms, pending, told, expired: None }
    }

    /// Ticks, and writes what comes between, until it is stopped. Whoever holds a [`RemoteWriter`] keeps `written` open.
    fn run(&mut self, stopped: &Receiver<()>, written: &Receiver<Write>) -> Option<String> {
        let interval = self.config.interval;
        let mut next = Instant::now() + interval;
        loop {
            // Before any write: however many come, a tick is made when it is due.
            if Instant::now() >= next {
                self.tick();
                next = (next + interval).max(Instant::now());
            }
            select! {
                recv(stopped) -> _ => break,
                recv(written) -> write => write.map_or((), |write| self.write(write)),
                recv(at(next)) -> _ => {}
            }
        }
        self.tick();
        self.published.health().store_error
    }

    fn write(&mut self, Write { batch, reply }: Write) {
        for (reason, refused) in &batch.refused {
            self.told_own("remote_write_refused_total", reason, *refused);
        }
        let written = if batch.series.is_empty() {
            Ok(Written::default())
        } else {
            self.store.write(&batch.series, batch.oldest_ms)
        };
        if let Ok(written) = &written {
            self.told_own("remote_write_samples_total", "", written.stored);
            if written.refused > 0 {
                self.told_own("remote_write_refused_total", "order", written.refused);
            }
            if written.without_room > 0 {
                self.told_own("remote_write_refused_total", "series_limit", written.without_room);
            }
        }
        // Whoever asked may be gone.
        let _ = reply.send(written);
    }

    fn tick(&mut self) {
        let now_ms = self.clock.now_ms();
        let interval_ms = self.config.interval.as_millis() as i64;
        // The time is the clock's own, also after it was set back; only where there is a tick already it is a little later.
        let timestamp_ms = self.store.free_time_ms(now_ms);
        let earlier = self.last_tick_ms.filter(|last| *last < timestamp_ms);
        if let Some(ahead) = self.last_tick_ms.filter(|last| *last >= timestamp_ms) {
            let seconds = (ahead - timestamp_ms) / 1000;
            tracing::warn!(seconds, "the clock was set back: samples go on at its time, what was stored stays");
        }
        // The explicit zero of a new series stands at the tick before, or where it would have been.
        let start_ms = earlier.map_or(timestamp_ms - interval_ms, |last| last.max(timestamp_ms - 2 * interval_ms));
        let tick = self.take(timestamp_ms, start_ms);
        self.last_tick_ms = Some(timestamp_ms);
        let tick = merge(std::mem::take(&mut self.pending), tick);
        match self.store.append(&tick) {
            Ok(()) => {
                let health = self.published.health();
                if health.store_error.is_some() {
                    tracing::info!("the store takes ticks again: what was held is committed");
                }
                let sealing_error = self.store.sealing_error();
                if health.store_error.is_some() || health.sealing_error != sealing_error {
                    self.published.set_health(Health { store_error: None, sealing_error });
                }
                self.published.publish(&tick);
                let (series, label_bytes) = self.store.series_known();
                self.intake.lock().registry.set_stored(series, label_bytes);
                self.expire();
                let is_large = tick.samples.len() >= MANY_SAMPLES;
                drop(tick);
                if is_large {
                    memory::return_now();
                }
            }
            Err(error) => {
                if self.published.health().store_error.is_none() {
                    tracing::error!(%error, "a tick could not be stored: it is held and merged with the next");
                }
                let sealing_error = self.store.sealing_error();
                self.published.set_health(Health { store_error: Some(error.to_string()), sealing_error });
                self.published.publish(&tick);
                self.told_own("commit_failures_total", "", 1);
                self.pending = tick;
            }
        }
    }

    /// Takes what changed, with the collector's own figures.
    fn take(&mut self, timestamp_ms: i64, start_ms: i64) -> Tick {
        let now_ms = self.steady.now_ms();
        let size_bytes = self.store.size_bytes();
        let intake = Arc::clone(&self.intake);
        intake.gather();
        let mut state = intake.lock();
        let IntakeState { registry, senders, .. } = &mut *state;
        registry.end_gauges(senders, now_ms);
        senders.forget(now_ms);
        let totals = state.totals.clone();
        let mut own = vec![
            ("datagrams_total", "", totals.datagrams),
            ("messages_total", "", totals.messages),
            ("events_total", "", totals.events),
            ("service_checks_total", "", totals.service_checks),
            ("payloads_missing_total", "", state.senders.missing_total()),
            ("tags_dropped_total", "", totals.tags_dropped),
            ("store_damaged_files_total", "", self.store.damaged_files()),
            (
                "commit_failures_total",
                "",
                self.told.get(&("commit_failures_total", String::new())).copied().unwrap_or(0),
            ),
        ];
        own.extend(state.registry.overflow_messages().iter().map(|(limit, count)| ("overflow_total", *limit, *count)));
        own.extend(totals.dropped.iter().map(|(reason, dropped)| ("dropped_total", *reason, dropped.count)));
        let ignored = [
            ("timestamp", totals.timestamps),
            ("unknown_field", totals.unknown_fields),
            ("repeated_field", totals.repeated_fields),
            ("empty_value", totals.empty_values),
        ];
        own.extend(ignored.map(|(part, count)| ("ignored_total", part, count)));
        own.extend(intake.sockets().iter().map(|socket| ("kernel_drops_total", socket.place(), socket.kernel_drops())));
        for (name, reason, total) in own {
            let told = self.told.entry((name, reason.to_owned())).or_default();
            let grown = total.saturating_sub(*told);
            *told = total.max(*told);
            let label = match name {
                "ignored_total" => "part",
                "overflow_total" => "limit",
                "kernel_drops_total" => "socket",
                _ => "reason",
            };
            if name == "kernel_drops_total" && grown > 0 {
                tracing::warn!(
                    socket = reason,
                    datagrams = grown,
                    "the kernel dropped datagrams: the receive buffer was full"
                );
            }
            let label = (!reason.is_empty()).then_some((label, reason));
            state.registry.record_own(MetricKind::Counter, name, label, grown as f64);
        }
        let series = state.registry.len() as f64;
        state.registry.record_own(MetricKind::Gauge, "series", None, series);
        state.registry.record_own(MetricKind::Gauge, "store_size_bytes", None, size_bytes as f64);
        drop(state);
        let mut tick = intake.take(timestamp_ms, now_ms, start_ms, |labels, kind| self.find(labels, kind));
        // While the disk refuses, the store does not know the last value of a series that leaves.
        if self.published.health().store_error.is_none() {
            intake.expire(&mut tick);
        }
        tick
    }

    /// What the store knows of a series that is new to the registry.
    fn find(&self, labels: &Labels, kind: MetricKind) -> Option<Known> {
        self.store.find(labels, kind).unwrap_or_else(|error| {
            tracing::error!(%error, series = %labels, "the series begins anew");
            None
        })
    }

    /// Adds to a counter that the recorder itself keeps.
    fn told_own(&mut self, name: &'static str, reason: &'static str, grown: u64) {
        *self.told.entry((name, reason.to_owned())).or_default() += grown;
        let label = (!reason.is_empty()).then_some(("reason", reason));
        self.intake.lock().registry.record_own(MetricKind::Counter, name, label, grown as f64);
    }

    fn expire(&mut self) {
        if self.expired.is_some_and(|expired| expired.elapsed() < EXPIRE_EVERY) {
            return;
        }
        self.expired = Some(Instant::now());
        let retention_ms = i64::try_from(self.config.retention.as_millis()).unwrap_or(i64::MAX);
        match self.store.expire(retention_ms, self.config.retention_size) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => {
                self.published.forget(&gone);
                let gone = gone.into_iter().collect();
                self.intake.lock().registry.forget(&gone);
            }
            Err(error) => tracing::error!(%error, "old samples could not be removed; the next hour tries again"),
        }
    }
}

/// One tick that says what both say: of equal series the later value.
fn merge(earlier: Tick, later: Tick) -> Tick {
    if earlier.timestamp_ms == Tick::default().timestamp_ms {
        return later; // nothing was held
    }
    let mut started = earlier.started;
    started.extend(later.started);
    let mut samples: BTreeMap<_, _> = earlier.samples.into_iter().collect();
    samples.extend(later.samples);
    let mut writers: BTreeMap<_, _> = earlier.writers.into_iter().collect();
    writers.extend(later.writers);
    let is_back: HashSet<_> = started.iter().map(|started| started.id).collect();
    let ended = earlier.ended.into_iter().filter(|id| !is_back.contains(id)).chain(later.ended).collect();
    Tick {
        timestamp_ms: later.timestamp_ms,
        started,
        samples: samples.into_iter().collect(),
        writers: writers.into_iter().collect(),
        ended,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::limits::Limits;
    use super::super::listener::Place;
    use super::super::mapping::Mapping;
    use super::super::registry::Registry;
    use super::super::socket_account::SocketAccount;
    use super::*;
    use crate::model::{METRIC_NAME, Sample, Value};
    use crate::store::{Matcher, Part, Select as _, Selection};

    const START_MS: i64 = 1_000_000;

    fn worker(dir: &Path, now_ms: i64) -> Worker {
        worker_with(dir, now_ms, Limits::default(), "")
    }

    fn worker_with(dir: &Path, now_ms: i64, limits: Limits, mapping: &str) -> Worker {
        let (store, restored) = Store::open(dir).unwrap();
        let published = Arc::new(Published::new(&restored));
        let mut registry = Registry::with_limits(restored, limits).with_history(store.reader());
        if !mapping.is_empty() {
            registry = registry.with_mapping(Mapping::parse(mapping.as_bytes()).unwrap());
        }
        let place = Place::Udp("127.0.0.1:9125".parse().unwrap());
        let sockets = vec![Arc::new(SocketAccount::new(&place, None))];
        let intake = Arc::new(Intake::new(registry, now_ms).with_sockets(sockets));
        let (interval, retention) = (Duration::from_secs(10), Duration::from_secs(86_400));
        let config = RecorderConfig { interval, retention, retention_size: None };
        let clock = Clock::manual(now_ms);
        Worker::new(config, intake, store, published, clock.clone(), clock)
    }

    impl Worker {
        fn receive(&self, datagram: &str) {
            self.intake.datagram(datagram.as_bytes(), self.clock.now_ms());
        }

        fn tick_at(&mut self, now_ms: i64) {
            self.clock.set_ms(now_ms);
            self.tick();
        }

        /// What is on disk, as (seconds since the start, value); the stale marker is -1.
        fn stored(&self, name: &str) -> Vec<(i64, f64)> {
            let matchers = vec![Matcher::metric(name)];
            let selection = Selection {
                matchers,
                start_ms: 0,
                end_ms: i64::MAX,
                repeats: true,
                part: Part::Whole,
                samples_max: 100_000,
            };
            let found = self.store.reader().select(&selection).unwrap();
            let samples = found.into_iter().flat_map(|series| series.samples);
            let float = |v: &Value| if v.is_stale() { -1.0 } else { v.as_float().unwrap() };
            samples.map(|s| ((s.timestamp_ms - START_MS) / 1000, float(&s.value))).collect()
        }

        fn write_one(&mut self, name: &str, samples: &[(i64, f64)]) -> Result<Written, StoreError> {
            let sample =
                |(at, value): &(i64, f64)| Sample { timestamp_ms: START_MS + at * 1000, value: Value::Float(*value) };
            let labels = Labels::from_pairs([(METRIC_NAME, name)]);
            let series = vec![WrittenSeries { labels, samples: samples.iter().map(sample).collect() }];
            let (reply, answer) = bounded(1);
            let batch = WriteBatch { series, oldest_ms: 0, refused: BTreeMap::from([("invalid_labels", 2)]) };
            self.write(Write { batch, reply });
            answer.recv().unwrap()
        }

        fn published(&self, name: &str) -> Option<f64> {
            self.published.snapshot().series(name).next()?.value.as_float()
        }
    }

    #[test]
    fn a_series_begins_with_a_zero_at_the_tick_before_and_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path(), START_MS);
        worker.tick_at(START_MS);
        worker.receive("c:5|c");
        assert_eq!(worker.published("c"), None, "nothing is read before it is committed");
        worker.tick_at(START_MS + 10_000);
        worker.tick_at(START_MS + 20_000);
        assert_eq!(worker.stored("c"), [(0, 0.0), (10, 5.0), (20, 5.0)]);
        assert_eq!(worker.published("c"), Some(5.0));
        drop(worker);
        let mut worker = self::worker(dir.path(), START_MS + 30_000);
        assert_eq!(worker.published("c"), Some(5.0), "what was committed is there before the first tick");
        worker.receive("c:1|c");
        worker.tick_at(START_MS + 40_000);
        assert_eq!(worker.stored("c").last(), Some(&(40, 6.0)));
    }

    #[test]
    fn samples_of_a_remote_write_and_of_ticks_never_get_into_each_others_series() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path(), START_MS);
        worker.tick_at(START_MS);
        // Both series are new, and neither side asks the other for a number.
        worker.write_one("w", &[(-20, 1.0), (-10, 2.0)]).unwrap();
        worker.receive("c:5|c");
        worker.tick_at(START_MS + 10_000);
        assert_eq!(worker.stored("c"), [(0, 0.0), (10, 5.0)]);
        assert_eq!(worker.stored("w"), [(-20, 1.0), (-10, 2.0)]);
        drop(worker);
        let mut worker = self::worker(dir.path(), START_MS + 20_000);
        worker.write_one("w", &[(-5, 3.0)]).unwrap();
        worker.write_one("x", &[(-5, 4.0)]).unwrap();
        worker.receive("d:6|c");
        worker.tick_at(START_MS + 20_000);
        assert_eq!(worker.stored("w").last(), Some(&(-5, 3.0)));
        assert_eq!(worker.stored("x"), [(-5, 4.0)]);
        assert_eq!(worker.stored("d").last(), Some(&(20, 6.0)));
    }

    #[test]
    fn remote_writes_are_counted_and_a_full_disk_refuses_them_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path(), START_MS);
        let written = worker.write_one("w", &[(0, 1.0), (2, 2.0), (1, 3.0)]).unwrap();
        assert_eq!((written.stored, written.refused), (2, 1));
        assert!(written.example.unwrap().starts_with("out of order sample"));
        worker.tick_at(START_MS);
        let own = |worker: &Worker, name: &str| {
            let snapshot = worker.published.snapshot();
            let name = format!("cortex_collector_remote_write_{name}");
            snapshot.series(&name).map(|s| s.value.as_float().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(own(&worker, "samples_total"), [2.0]);
        assert_eq!(own(&worker, "refused_total"), [2.0, 1.0]);
        worker.store.limit_pages(1);
        let many: Vec<(i64, f64)> = (0..5000).map(|at| (10 + at, at as f64 + 0.123)).collect();
        assert!(worker.write_one("many", &many).is_err());
        assert_eq!(worker.stored("many"), []);
        worker.store.limit_pages(1_000_000);
        assert_eq!(worker.write_one("many", &many).unwrap().stored, 5000);
        assert_eq!(worker.stored("many").len(), 5000);
    }

    #[test]
    fn series_that_were_silent_leave_and_go_on_where_they_were_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mapping = "mappings:\n- {match: short.*, name: short, ttl: 20s}\n";
        let start = |now_ms| {
            let limits = Limits { series_expiry_ms: 60_000, ..Limits::default() };
            worker_with(dir.path(), now_ms, limits, mapping)
        };
        let count = |worker: &Worker| {
            let snapshot = worker.published.snapshot();
            snapshot.series("h").next().map(|series| series.value.as_histogram().unwrap().count())
        };
        let seen = |worker: &Worker| (worker.published("c"), worker.published("short"), count(worker));
        let mut worker = start(START_MS);
        worker.receive("c:5|c\nshort.x:3|c\nh:2|h\nh:3|h");
        (1..=3).for_each(|tick| worker.tick_at(START_MS + tick * 10_000));
        assert_eq!(seen(&worker), (Some(5.0), Some(3.0), Some(2.0)));
        worker.tick_at(START_MS + 40_000);
        assert_eq!(seen(&worker), (Some(5.0), None, Some(2.0)), "its mapping says 20 s");
        (5..=8).for_each(|tick| worker.tick_at(START_MS + tick * 10_000));
        assert_eq!(seen(&worker), (None, None, None));
        assert_eq!(worker.stored("c")[..2], [(0, 0.0), (10, 5.0)]);
        assert_eq!(worker.stored("c").last(), Some(&(80, -1.0)));
        assert_eq!(worker.stored("short").last(), Some(&(40, -1.0)));
        // One comes back in this process, the others in the next.
        worker.receive("c:1|c");
        worker.tick_at(START_MS + 90_000);
        assert_eq!(seen(&worker), (Some(6.0), None, None));
        (10..=17).for_each(|tick| worker.tick_at(START_MS + tick * 10_000));
        drop(worker);
        let mut worker = start(START_MS + 180_000);
        worker.tick_at(START_MS + 180_000);
        assert_eq!(seen(&worker), (None, None, None), "nothing came of any");
        worker.receive("c:1|c\nshort.x:1|c\nh:4|h");
        worker.tick_at(START_MS + 190_000);
        assert_eq!(seen(&worker), (Some(7.0), Some(4.0), Some(3.0)));
        let c = worker.stored("c");
        assert_eq!(c.last(), Some(&(190, 7.0)));
        assert!(c.iter().filter(|(_, value)| *value == 0.0).count() == 1, "no second beginning: {c:?}");
    }

    #[test]
    fn series_that_are_gone_count_as_long_as_the_store_knows_them_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let start = |now_ms| {
            let limits = Limits { series: 1, gauge_expiry_ms: Some(1), ..Limits::default() };
            worker_with(dir.path(), now_ms, limits, "")
        };
        let mut now_ms = START_MS;
        let mut one_after_the_other = |worker: &mut Worker, processes: std::ops::Range<u32>| {
            for process in processes {
                worker.receive(&format!("g:1|g|#process:{process}"));
                for _ in 0..3 {
                    now_ms += 70_000;
                    worker.tick_at(now_ms);
                }
            }
            (now_ms, worker.intake.lock().registry.overflow_messages().clone())
        };
        let mut worker = start(START_MS);
        let (now_ms, met) = one_after_the_other(&mut worker, 0..6);
        assert!(met.is_empty(), "{met:?}");
        drop(worker);
        let mut worker = start(now_ms);
        let (_, met) = one_after_the_other(&mut worker, 6..12);
        assert_eq!(met, BTreeMap::from([("stored_series", 2)]));
        let overflow = worker.intake.lock().registry.overflows()["g"].clone();
        assert_eq!((overflow.metric.as_str(), overflow.label.as_str()), ("g", "process"), "they left, and are named");
        // What the store knows needs no room; names that are made of data get none either.
        let (_, met) = one_after_the_other(&mut worker, 3..5);
        assert_eq!(met, BTreeMap::from([("stored_series", 2)]));
        for name in 0..5 {
            worker.receive(&format!("made_of_{name}:1|g"));
            for _ in 0..3 {
                worker.tick_at(worker.clock.now_ms() + 70_000);
            }
        }
        assert_eq!(worker.intake.lock().totals.dropped["series_limit"].count, 5);
    }

    #[test]
    fn what_the_store_knows_is_looked_at_once_a_minute_not_for_each_name_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { series: 20, gauge_expiry_ms: Some(1), ..Limits::default() };
        let mut worker = worker_with(dir.path(), START_MS, limits, "");
        (0..10).for_each(|process| worker.receive(&format!("g:1|g|#process:{process}")));
        (1..20).for_each(|tick| worker.tick_at(START_MS + tick * 10_000));
        let told = ["fresh", "later"].map(|name| {
            worker.tick_at(worker.clock.now_ms() + 10_000);
            // As many as there may be, with the collector's own.
            (0..400).rev().find_map(|stored| {
                worker.intake.lock().registry.set_stored(stored, 0);
                worker.receive(&format!("{name}_{stored}:1|g"));
                worker.intake.lock().registry.overflows().get(&format!("{name}_{stored}")).cloned()
            })
        });
        let told = told
            .map(|told| told.map(|told| (told.limit.as_str(), told.metric, told.label, told.values, told.found_ms)));
        let found_ms = START_MS + 200_000;
        let wanted = Some(("stored_series", "g".to_owned(), "process".to_owned(), 10, found_ms));
        assert_eq!(told, [wanted.clone(), wanted]);
    }

    #[test]
    fn a_gauge_that_comes_back_has_the_writer_that_it_has_now_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |seconds: i64| START_MS + seconds * 1000;
        let mut worker = worker(dir.path(), START_MS);
        worker.receive("cortex_client_payload_sequence:1|g|#client_id:00000000000000ff\ng:7|g\ns:a|s");
        (1..=20).for_each(|tick| worker.tick_at(at(tick * 10)));
        assert!(worker.intake.lock().registry.writers().next().is_none(), "both left");
        // Nobody's from now on, and the set is a gauge.
        worker.receive("g:8|g\ns:9|g");
        worker.tick_at(at(210));
        drop(worker);
        let mut worker = self::worker(dir.path(), at(220));
        (22..=40).for_each(|tick| worker.tick_at(at(tick * 10)));
        assert_eq!((worker.published("g"), worker.published("s")), (Some(8.0), Some(9.0)));
        worker.receive("s:10|g");
        worker.tick_at(at(410));
        assert_eq!(worker.published("s"), Some(10.0));
        assert!(worker.intake.lock().totals.dropped.is_empty());
    }

    #[test]
    fn a_name_that_is_one_thing_after_another_keeps_what_each_was() {
        let dir = tempfile::tempdir().unwrap();
        let mapping = "defaults: {ttl: 20s}\n";
        let mut worker = worker_with(dir.path(), START_MS, Limits::default(), mapping);
        let mut now_ms = START_MS;
        let mut send = |worker: &mut Worker, line: &str, ticks: u32| {
            worker.receive(line);
            for _ in 0..ticks {
                now_ms += 10_000;
                worker.tick_at(now_ms);
            }
        };
        send(&mut worker, "x:3|c", 5); // it has left by then
        send(&mut worker, "x:2|h", 5);
        send(&mut worker, "x:4|c", 1);
        assert_eq!(worker.published("x"), Some(7.0), "where it was");
        drop(worker);
        let mut worker = worker_with(dir.path(), START_MS + 110_000, Limits::default(), mapping);
        worker.receive("x:1|c");
        worker.tick_at(START_MS + 120_000);
        assert_eq!(worker.published("x"), Some(8.0));
        let selection = Selection {
            matchers: vec![Matcher::metric("x")],
            start_ms: 0,
            end_ms: i64::MAX,
            repeats: true,
            part: Part::Whole,
            samples_max: 1000,
        };
        let found = worker.store.reader().select(&selection).unwrap();
        let text = |sample: &Sample| match &sample.value {
            value if value.is_stale() => "end".to_owned(),
            Value::Float(value) => value.to_string(),
            Value::Histogram(h) => format!("h{}", h.count()),
        };
        let values: Vec<String> = found[0].samples.iter().map(text).collect();
        assert_eq!(values.join(" "), "0 3 3 3 end h0 h1 h1 h1 end 3 7 8");
    }

    #[test]
    fn silence_goes_on_across_restarts_and_does_not_grow_while_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let start = |now_ms| {
            let limits = Limits { series_expiry_ms: 60_000, gauge_expiry_ms: Some(60_000), ..Limits::default() };
            worker_with(dir.path(), now_ms, limits, "")
        };
        let seen = |worker: &Worker| ["c", "h", "g"].map(|name| worker.published.snapshot().series(name).count());
        let mut worker = start(START_MS);
        worker.receive("c:5|c\nh:2|h\ng:1|g");
        let mut now_ms = START_MS;
        let mut go_on = |worker: &mut Worker, ticks: u32| {
            for _ in 0..ticks {
                now_ms += 10_000;
                worker.tick_at(now_ms);
            }
            now_ms
        };
        for _ in 0..2 {
            let now_ms = go_on(&mut worker, 3);
            assert_eq!(seen(&worker), [1, 1, 1]);
            drop(worker);
            worker = start(now_ms);
        }
        go_on(&mut worker, 3);
        assert_eq!(seen(&worker), [0, 0, 0], "none of the three was up for a minute");
        // An hour without a collector.
        worker.receive("c:1|c\nh:2|h\ng:2|g");
        let now_ms = go_on(&mut worker, 1) + 3_600_000;
        drop(worker);
        let mut worker = start(now_ms);
        (1..=5).for_each(|tick| worker.tick_at(now_ms + tick * 10_000));
        assert_eq!(seen(&worker), [1, 1, 1]);
        (6..=8).for_each(|tick| worker.tick_at(now_ms + tick * 10_000));
        assert_eq!(seen(&worker), [0, 0, 0]);
    }

    #[test]
    fn every_metric_of_its_own_has_help() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { series_per_metric: 1, ..Limits::default() };
        let mut worker = worker_with(dir.path(), START_MS, limits, "");
        worker.receive("c:1|c|#a:1\nc:1|c|#a:2\nbad");
        worker.write_one("w", &[(0, 1.0), (2, 2.0), (1, 3.0)]).unwrap();
        worker.tick_at(START_MS);
        worker.tick_at(START_MS + 10_000);
        let own = worker.published.snapshot().with_prefix("cortex_collector_");
        let names: Vec<&str> = own.families_after("").map(|(name, _)| name).collect();
        let without: Vec<_> = names.iter().filter(|name| crate::exposition::help(name).is_none()).collect();
        assert!(without.is_empty(), "{without:?}");
        for name in ["overflow_total", "dropped_total", "kernel_drops_total", "remote_write_refused_total", "series"] {
            assert!(names.contains(&format!("cortex_collector_{name}").as_str()), "{name} {names:?}");
        }
    }

    #[test]
    fn while_the_disk_refuses_live_values_are_published_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path(), START_MS);
        worker.receive("c:1|c");
        worker.tick_at(START_MS);
        worker.store.limit_pages(1);
        let many: String = (0..2000).map(|i| format!("new:1|c|#i:{i}\n")).collect();
        worker.receive(&many);
        worker.receive("c:1|c");
        worker.tick_at(START_MS + 10_000);
        assert!(worker.published.health().store_error.is_some());
        assert_eq!((worker.published("c"), worker.stored("c").last()), (Some(2.0), Some(&(0, 1.0))));
        worker.store.limit_pages(1_000_000);
        worker.tick_at(START_MS + 20_000);
        assert_eq!(worker.published.health(), Health::default());
        assert_eq!(worker.stored("c").last(), Some(&(20, 2.0)));
        assert_eq!(worker.stored("new").len(), 2 * 2000, "each began with its zero");
        worker.tick_at(START_MS + 30_000);
        assert_eq!(worker.published("cortex_collector_commit_failures_total"), Some(1.0));
    }

    #[test]
    fn a_gauge_ends_thirty_seconds_after_its_writer_also_across_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path(), START_MS);
        worker.receive("cortex_client_payload_sequence:1|g|#client_id:00000000000000ff\ng:7|g");
        worker.tick_at(START_MS + 10_000);
        drop(worker);
        let mut worker = self::worker(dir.path(), START_MS + 20_000);
        worker.tick_at(START_MS + 50_000);
        assert_eq!(worker.published("g"), Some(7.0), "its writer had thirty seconds to say that it lives");
        worker.tick_at(START_MS + 60_000);
        assert_eq!((worker.published("g"), worker.stored("g").last()), (None, Some(&(60, -1.0))));
    }

    #[test]
    fn a_clock_that_jumps_stops_nothing_and_rewrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path(), START_MS);
        worker.steady = Clock::manual(START_MS);
        worker.receive("c:1|c\ng:1|g");
        worker.tick_at(START_MS);
        for (step, jump_s) in [1i64, -1, 43_200, -43_200, 31_536_000, -31_536_000, -500_000, 500_000].iter().enumerate()
        {
            let before = worker.stored("g");
            let now_ms = worker.clock.now_ms() + jump_s * 1000;
            let value = step as f64 + 2.0;
            worker.receive(&format!("c:1|c\ng:{value}|g"));
            worker.tick_at(now_ms);
            let after = worker.stored("g");
            // At its own time, or a millisecond after a tick that was there.
            let at = worker.published.snapshot().tick_ms.unwrap();
            assert!((now_ms..=now_ms + 1).contains(&at), "{at} {now_ms}");
            assert!(before.iter().all(|sample| after.contains(sample)), "jump {jump_s}: {before:?} {after:?}");
            assert_eq!((worker.published("g"), worker.published("c")), (Some(value), Some(value)));
            let matchers = vec![Matcher::metric("c")];
            let selection =
                Selection { matchers, start_ms: at, end_ms: at, repeats: true, part: Part::Whole, samples_max: 9 };
            let found = worker.store.reader().select(&selection).unwrap();
            assert_eq!(found[0].samples[0].value, Value::Float(value), "jump {jump_s}");
            worker.clock.set_ms(at);
        }
        let stored = worker.stored("g");
        drop(worker);
        let worker = self::worker(dir.path(), START_MS);
        assert_eq!((worker.stored("g"), worker.published("c")), (stored, Some(9.0)));
    }
    #[test]
    fn how_long_a_series_is_silent_has_nothing_to_do_with_a_clock_that_is_set() {
        // Set back by two minutes, a gauge ended at each tick after it was sent; set forward, all that was silent for a moment left.
        let limits = Limits { gauge_expiry_ms: Some(60_000), series_expiry_ms: 600_000, ..Limits::default() };
        for jump_ms in [-120_000, 1_200_000] {
            let dir = tempfile::tempdir().unwrap();
            let mut worker = worker_with(dir.path(), START_MS, limits.clone(), "");
            worker.steady = Clock::manual(START_MS);
            let tick_at = |worker: &mut Worker, steady_s: i64, text: &str| {
                worker.steady.set_ms(START_MS + steady_s * 1000);
                let jump_ms = if steady_s < 20 { 0 } else { jump_ms };
                worker.receive(text);
                worker.tick_at(START_MS + steady_s * 1000 + jump_ms);
                (worker.published("g"), worker.published("c"))
            };
            assert_eq!(tick_at(&mut worker, 10, "g:1|g\nc:1|c"), (Some(1.0), Some(1.0)));
            for steady_s in [20, 30, 60] {
                assert_eq!(tick_at(&mut worker, steady_s, ""), (Some(1.0), Some(1.0)), "{jump_ms} {steady_s}");
            }
            assert_eq!(tick_at(&mut worker, 80, ""), (None, Some(1.0)), "{jump_ms}");
            assert_eq!(tick_at(&mut worker, 90, "g:2|g"), (Some(2.0), Some(1.0)), "{jump_ms}");
            assert_eq!(tick_at(&mut worker, 140, ""), (Some(2.0), Some(1.0)), "{jump_ms}");
            assert_eq!(tick_at(&mut worker, 600, ""), (None, Some(1.0)), "{jump_ms}");
            assert_eq!(tick_at(&mut worker, 620, "").1, None, "{jump_ms}");
        }
    }
}
