//! The intake: from a batch of datagrams to the registry.
//!
//! Each thread that receives has a [`Shard`], in which it reads its batch and adds up what counters and histograms get,
//! beside the other threads. Then, in the order in which the socket gave the batches, it takes the one lock that all share
//! for whatever depends on that order: so the messages of one sender keep theirs, whatever the number of threads.
//! A shard is locked before the state, never the other way round, and nobody locks two shards.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::mapping::Mapping;
use super::receive::Arrival;
use super::registry::{Refusal, Registry, Usage};
use super::senders::Senders;
use super::shard::{Batch, Op, Part, Shard, Why};
use super::socket_account::SocketAccount;
use super::source_limit::SourceLimit;
use crate::dogstatsd::{GaugeMinus, Message, Tally};
use crate::model::{Labels, MetricKind};
use crate::store::{Known, Tick};

/// So many series are taken or given while the lock is held: some tenths of a millisecond.
const LOCKED_MAX: usize = 1000;

/// What must happen in order is held until a batch is read, or until it is so much: a batch may have half a million lines.
const OPS_MAX: usize = 4096;

/// A reason is logged again after so long.
const LOG_AGAIN_MS: i64 = 60_000;
/// An example is cut to so many characters.
const EXAMPLE_CHARS_MAX: usize = 200;

/// The registry, the senders and the account of what came in; and the shards of the threads that receive.
#[derive(Debug)]
pub struct Intake {
    state: Mutex<IntakeState>,
    shards: Mutex<Vec<Arc<Mutex<Shard>>>>,
    gauge_minus: GaugeMinus,
    member_hasher: foldhash::quality::RandomState,
    sockets: Vec<Arc<SocketAccount>>,
    source_limit: Option<Arc<SourceLimit>>,
}

/// What the lock of an [`Intake`] guards.
#[derive(Debug)]
pub struct IntakeState {
    /// Every live series.
    pub registry: Registry,
    /// The processes that send.
    pub senders: Senders,
    /// What came in since the start.
    pub totals: IntakeTotals,
    /// Why the mapping file was not read anew when it was last asked for.
    pub mapping_error: Option<String>,
    /// How many shards there are.
    shards: usize,
}

/// What came in since the start of this process.
#[derive(Debug, Clone, Default)]
pub struct IntakeTotals {
    /// Datagrams received.
    pub datagrams: u64,
    /// Messages in them, those that were dropped included; events and service checks are not.
    pub messages: u64,
    /// Events, which are not kept.
    pub events: u64,
    /// Service checks, which are not kept.
    pub service_checks: u64,
    /// Timestamps of messages that were counted when they arrived.
    pub timestamps: u64,
    /// Sections of kinds that are not known, passed over.
    pub unknown_fields: u64,
    /// The newest of them, cut to 200 bytes.
    pub unknown_field: Vec<u8>,
    /// Rates and tags that a later section of the same message replaced.
    pub repeated_fields: u64,
    /// Empty texts among the values of a message, passed over.
    pub empty_values: u64,
    /// Tags of messages that were read: those without a key, and those whose label an earlier one has.
    pub tags_dropped: u64,
    /// Messages dropped, by reason.
    pub dropped: BTreeMap<&'static str, Dropped>,
    /// When the newest batch came.
    now_ms: i64,
}

/// Messages dropped for one reason.
#[derive(Debug, Clone, Default)]
pub struct Dropped {
    /// How many.
    pub count: u64,
    /// The line of the newest that was logged, its bytes made printable.
    pub example: String,
    logged_ms: Option<i64>,
}

impl Intake {
    /// An intake for `registry`.
    pub fn new(mut registry: Registry, now_ms: i64) -> Self {
        registry.resume(now_ms);
        let mut senders = Senders::default();
        registry.writers().for_each(|writer| senders.expect(writer, now_ms));
        Self {
            state: Mutex::new(IntakeState {
                registry,
                senders,
                totals: IntakeTotals::default(),
                mapping_error: None,
                shards: 0,
            }),
            sockets: Vec::new(),
            source_limit: None,
            shards: Mutex::default(),
            gauge_minus: GaugeMinus::default(),
            member_hasher: foldhash::quality::RandomState::default(),
        }
    }

    /// Reads `-5` of gauges in this way instead of [`GaugeMinus::Auto`].
    #[must_use]
    pub fn with_gauge_minus(self, gauge_minus: GaugeMinus) -> Self {
        Self { gauge_minus, ..self }
    }

    /// A shard for one thread that receives.
    pub fn shard(&self) -> Arc<Mutex<Shard>> {
        let mut state = self.lock();
        state.shards += 1;
        let series_max = state.registry.limits().series;
        drop(state);
        let shard = Arc::new(Mutex::new(Shard::new(self.gauge_minus, self.member_hasher.clone(), series_max)));
        self.shards.lock().push(Arc::clone(&shard));
        shard
    }

    /// Applies a batch of datagrams. What cannot be used is counted by its reason.
    /// `turn` waits until the batches that the same socket gave before are applied.
    pub(super) fn receive<'a>(
        &self,
        shard: &Mutex<Shard>,
        datagrams: impl Iterator<Item = (&'a [u8], Arrival)>,
        turn: impl FnOnce(),
        now_ms: i64,
    ) {
        let mut shard = shard.lock();
        let mut batch = Batch::default();
        let mut turn = Some(turn);
        for (datagram, arrival) in datagrams {
            match arrival {
                Arrival::Whole => shard.datagram(datagram, &mut batch),
                Arrival::Truncated => shard.truncated_datagram(datagram, &mut batch),
                Arrival::BeyondLimit => Shard::datagram_beyond_limit(datagram, &mut batch),
            }
            if shard.is_due() {
                shard.settle(|parts| self.hand_over(parts)); // sums have no order
            }
            if batch.ops.len() >= OPS_MAX {
                if let Some(turn) = turn.take() {
                    turn();
                }
                self.lock().apply(&mut shard, std::mem::take(&mut batch), now_ms);
            }
        }
        if let Some(turn) = turn {
            turn();
        }
        self.lock().apply(&mut shard, batch, now_ms);
    }

    /// Applies one datagram, from a thread that has no shard of its own.
    pub fn datagram(&self, datagram: &[u8], now_ms: i64) {
        let shard = self.shards.lock().first().map(Arc::clone);
        let shard = shard.unwrap_or_else(|| self.shard());
        self.receive(&shard, std::iter::once((datagram, Arrival::Whole)), || (), now_ms);
    }

    /// Shows these sockets in the account.
    #[must_use]
    pub fn with_sockets(self, sockets: Vec<Arc<SocketAccount>>) -> Self {
        Self { sockets, ..self }
    }

    /// The sockets that feed it.
    pub fn sockets(&self) -> &[Arc<SocketAccount>] {
        &self.sockets
    }

    /// Shows this limit in the account.
    #[must_use]
    pub fn with_source_limit(self, source_limit: Option<Arc<SourceLimit>>) -> Self {
        Self { source_limit, ..self }
    }

    /// The limit of datagrams for each source, if there is one.
    pub fn source_limit(&self) -> Option<&SourceLimit> {
        self.source_limit.as_deref()
    }

    /// Takes the lock: for the account, or to take what changed.
    pub fn lock(&self) -> MutexGuard<'_, IntakeState> {
        self.state.lock()
    }

    /// Gives what the shards have gathered to the registry, without holding up those who receive for long.
    pub fn gather(&self) {
        for shard in self.shards() {
            let mut shard = shard.lock();
            shard.settle(|parts| self.hand_over(parts));
            let parts = shard.take();
            drop(shard);
            self.hand_over(parts);
        }
    }

    /// Counts the messages of each series from now on; what this gives is to be given back to [`Intake::end_count`].
    pub fn begin_count(&self) -> Vec<u64> {
        self.gather(); // what came before
        self.lock().registry.begin_count()
    }

    /// Ends that: the series with messages since, and how many.
    pub fn end_count(&self, before: &[u64]) -> Vec<(Labels, MetricKind, u64)> {
        self.gather();
        self.lock().registry.end_count(before)
    }

    fn hand_over(&self, parts: Vec<Part>) {
        let mut parts = parts.into_iter().peekable();
        while parts.peek().is_some() {
            self.lock().add_parts(parts.by_ref().take(LOCKED_MAX));
        }
    }

    /// Takes what changed since the last tick as one of `timestamp_ms`; series that are new began at `start_ms`, unless
    /// `find` knows them from before. From `now_ms`, of a clock that nobody sets, they are silent.
    pub fn take(
        &self,
        timestamp_ms: i64,
        now_ms: i64,
        start_ms: i64,
        find: impl Fn(&Labels, MetricKind) -> Option<Known>,
    ) -> Tick {
        self.gather();
        let mut tick = Tick { timestamp_ms, ..Tick::default() };
        let changed = self.lock().registry.take_changed(now_ms);
        for places in changed.chunks(LOCKED_MAX) {
            self.lock().registry.take(places, &mut tick, start_ms, &find);
        }
        tick
    }

    /// Lets go of the series that were silent for long, and ends them in the tick.
    pub fn expire(&self, tick: &mut Tick) {
        self.expire_while(tick, || ());
    }

    /// The same, where something happens between the steps.
    fn expire_while(&self, tick: &mut Tick, meanwhile: impl FnOnce()) {
        if !self.lock().registry.begin_expiry() {
            return;
        }
        // No thread may go on to know the way to a place that is given away. Whoever writes there meanwhile keeps it, and
        // so does one who only learns the way: what it gathers there the registry does not know yet.
        self.clear_shards();
        meanwhile();
        self.lock().registry.remove_leaving(tick);
    }

    /// Maps names by other rules from now on. What was gathered before goes where the old rules said.
    pub fn set_mapping(&self, mapping: Mapping) {
        let mut state = self.lock();
        state.registry.set_mapping(mapping);
        state.mapping_error = None;
        drop(state);
        self.clear_shards();
    }

    fn clear_shards(&self) {
        for shard in self.shards() {
            let mut shard = shard.lock();
            shard.settle(|parts| self.hand_over(parts));
            self.hand_over(shard.clear());
        }
    }

    fn shards(&self) -> Vec<Arc<Mutex<Shard>>> {
        self.shards.lock().clone()
    }
}

impl IntakeState {
    /// Applies what a batch holds beside what its shard has gathered, in the order of its messages.
    fn apply(&mut self, shard: &mut Shard, batch: Batch<'_>, now_ms: i64) {
        self.totals.now_ms = now_ms;
        self.totals.datagrams += batch.datagrams;
        self.totals.messages += batch.messages;
        batch.tallies.iter().for_each(|tally| self.totals.add(tally));
        for drops in &batch.drops {
            self.totals.drop(drops.why, drops.count, drops.line, now_ms);
        }
        let mut writer = None;
        for op in batch.ops {
            match op {
                Op::From(header) => {
                    writer = header.map(|header| header.client_id);
                    if let Some(header) = header {
                        self.senders.heard(header, now_ms);
                    }
                }
                Op::Unrouted { message, line } => {
                    if let Err(refusal) = self.unrouted(shard, &message, writer) {
                        self.totals.drop(refusal.into(), 1, line, now_ms);
                    }
                }
                Op::Apply { at, effect, line } => {
                    if let Err(refusal) = self.registry.apply(at, effect, writer) {
                        self.totals.drop(refusal.into(), 1, line, now_ms);
                    }
                }
            }
        }
        self.totals.tags_dropped += shard.take_tags_dropped();
    }

    /// Adds what a shard gathered. No total refuses that: it is never so large.
    fn add_parts(&mut self, parts: impl IntoIterator<Item = Part>) {
        for part in parts {
            let messages = part.messages;
            if let Err(refusal) = self.registry.add_part(part) {
                let now_ms = self.totals.now_ms;
                self.totals.drop(refusal.into(), messages, b"", now_ms);
            }
        }
    }

    /// A message whose raw bytes are new to the shard.
    fn unrouted(&mut self, shard: &mut Shard, message: &Message<'_>, writer: Option<u64>) -> Result<(), Refusal> {
        let resolved = self.registry.resolve(message, Usage::of(message.kind))?;
        let at = resolved.at;
        let is_full = shard.is_full(self.shards);
        if is_full || shard.is_due() {
            shard.settle(|parts| self.add_parts(parts));
        }
        if is_full {
            self.add_parts(shard.clear());
        }
        let effect = if resolved.is_routable {
            shard.route(message, resolved)?
        } else {
            shard.drop_tags(resolved.tags_dropped);
            Some(shard.effect_of(message, resolved.scale)?)
        };
        effect.map_or(Ok(()), |effect| self.registry.apply(at, effect, writer))
    }
}

impl IntakeTotals {
    fn drop(&mut self, why: Why, count: u64, example: &[u8], now_ms: i64) {
        let reason = why.as_str();
        let dropped = self.dropped.entry(reason).or_default();
        dropped.count += count;
        if why == Why::Refused(Refusal::MappedDrop) {
            // Nothing to tell of: somebody wants it so.
            if dropped.example.is_empty() {
                dropped.example = printable(example);
            }
        } else if dropped.logged_ms.is_none_or(|logged| now_ms - logged >= LOG_AGAIN_MS) {
            dropped.logged_ms = Some(now_ms);
            dropped.example = printable(example);
            tracing::warn!(reason, count = dropped.count, example = dropped.example, "message dropped: {why}");
        }
    }

    fn add(&mut self, tally: &Tally<'_>) {
        self.events += tally.events;
        self.service_checks += tally.service_checks;
        self.timestamps += tally.timestamps;
        self.unknown_fields += tally.unknown_fields;
        self.repeated_fields += tally.repeated_fields;
        self.empty_values += tally.empty_values;
        if !tally.unknown_field.is_empty() {
            self.unknown_field.clear();
            self.unknown_field.extend(tally.unknown_field.iter().take(EXAMPLE_CHARS_MAX));
        }
    }
}

/// Bytes from outside as text of one line, cut where it gets long.
pub(crate) fn printable(bytes: &[u8]) -> String {
    // What is cut off is not looked at: no character takes more than four bytes.
    let bytes = bytes.get(..4 * EXAMPLE_CHARS_MAX).unwrap_or(bytes);
    String::from_utf8_lossy(bytes).chars().take(EXAMPLE_CHARS_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::limits::Limits;
    use super::super::shard::Gathered;
    use super::*;
    use crate::model::ExponentialHistogram;
    use crate::store::Restored;

    #[test]
    fn a_datagram_names_its_sender_and_each_bad_message_costs_itself() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let datagram =
            b"cortex_client_payload_sequence:1|g|#client_id:00000000000000ff\ng:1|g\nbad\nbad\nworse|x\ng:1|c";
        intake.datagram(datagram, 0);
        let state = intake.lock();
        assert_eq!((state.totals.datagrams, state.totals.messages), (1, 6));
        let dropped: Vec<_> = state.totals.dropped.iter().map(|(reason, d)| (*reason, d.count)).collect();
        assert_eq!(dropped, [("no_name", 3), ("type_conflict", 1)]);
        assert_eq!(state.registry.writers().collect::<Vec<_>>(), [255]);
        assert_eq!(state.senders.status().len(), 1);
        assert_eq!(state.registry.len(), 1, "the header is not a series");
    }

    #[test]
    fn one_example_a_reason_is_the_line_itself_and_a_newer_one_comes_after_a_minute() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let example = |intake: &Intake| intake.lock().totals.dropped["unknown_type"].example.clone();
        intake.datagram(b"good:1|c\nfirst:1|\xffx\ngood:1|c", 0);
        intake.datagram(b"second:1|x", LOG_AGAIN_MS - 1);
        assert_eq!(example(&intake), "first:1|\u{fffd}x");
        intake.datagram(b"third\t:1|x|#user:17", LOG_AGAIN_MS);
        assert_eq!(example(&intake), "third\\t:1|x|#user:17");
        assert_eq!(intake.lock().totals.dropped["unknown_type"].count, 3);
        intake.datagram(&[b"a:1|", &[b'y'; 5000][..]].concat(), 2 * LOG_AGAIN_MS);
        assert_eq!(example(&intake).len(), EXAMPLE_CHARS_MAX);
    }

    #[test]
    fn a_count_that_comes_while_silent_series_leave_stays_with_its_series() {
        // A shard that was cleared learned the way to a silent series and gathered there, while others were still being
        // cleared; the place then went to another series, and the count with it.
        let limits = Limits { series_expiry_ms: 1000, ..Limits::default() };
        let intake = Intake::new(Registry::with_limits(Restored::default(), limits), 0);
        let shards = [intake.shard(), intake.shard(), intake.shard()];
        let send = |shard: usize, text: &str| {
            intake.receive(&shards[shard], std::iter::once((text.as_bytes(), Arrival::Whole)), || (), 0);
        };
        (0..3).for_each(|shard| send(shard, "old:1|c\nsilent:1|c\nh:1|h"));
        let first = intake.take(1000, 1000, 990, |_, _| None);
        let id_of = |name: &str| first.started.iter().find(|s| s.labels.name() == name).unwrap().id;
        let mut second = intake.take(3000, 3000, 2990, |_, _| None);
        intake.expire_while(&mut second, || send(1, "old:10|c\nh:2|h"));
        assert_eq!(second.ended, [id_of("silent")]);
        send(2, "new:100|c\nold:1000|c\nh:2|h");
        let third = intake.take(4000, 4000, 3990, |_, _| None);
        let new = third.started.iter().find(|s| s.labels.name() == "new").unwrap().id;
        let value_of = |id| third.samples.iter().find(|(other, _)| *other == id).unwrap().1.clone();
        assert_eq!((value_of(id_of("old")).as_float(), value_of(new).as_float()), (Some(1013.0), Some(100.0)));
        assert_eq!(value_of(id_of("h")).as_histogram().unwrap().count(), 5.0);
        // A mark of before keeps nothing for good.
        let mut last = intake.take(6000, 6000, 5990, |_, _| None);
        intake.expire(&mut last);
        assert_eq!((last.ended.len(), intake.lock().registry.len()), (3, 0));
    }

    #[test]
    fn what_is_passed_over_is_counted() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        intake.datagram(b"_e{1,1}:a|b\n_sc|n|0\n_sc|n|3|m:x\nc:1::2|c|@0.5|@1|T1|#a:b|#c:d|zz:9\nc:1|q|T1|yy", 0);
        let totals = intake.lock().totals.clone();
        assert_eq!((totals.messages, totals.events, totals.service_checks), (2, 1, 2));
        assert_eq!((totals.timestamps, totals.repeated_fields, totals.empty_values), (1, 2, 1));
        assert_eq!((totals.unknown_fields, &*totals.unknown_field), (1, &b"zz:9"[..]), "not those of what is refused");
    }

    #[test]
    fn spellings_of_one_histogram_do_not_add_up_to_more_memory_than_a_shard_may_take() {
        // Each spelling gathers a histogram of its own, of 4 KiB if its values are far apart: 200,000 took 800 MB.
        let spellings = |values: &'static str| {
            (0..4096).map(move |i| format!("h:{values}|h|#a{}\n", ",".repeat(i % 64) + &" ".repeat(i / 64)))
        };
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let shard = intake.shard();
        let mut heaviest = 0;
        for _ in 0..2 {
            for lines in spellings("0.001:60").collect::<Vec<_>>().chunks(50) {
                intake.receive(&shard, std::iter::once((lines.concat().as_bytes(), Arrival::Whole)), || (), 0);
                heaviest = heaviest.max(shard.lock().histogram_bytes());
            }
        }
        // Values that wait make them as heavy, all at once.
        for values in ["0.001", "60"] {
            let lines: String = spellings(values).skip(1).collect();
            intake.receive(&shard, std::iter::once((lines.as_bytes(), Arrival::Whole)), || (), 0);
            shard.lock().settle(|parts| {
                let bytes = |part: &Part| match &part.gathered {
                    Gathered::Values(histogram) => histogram.bytes(),
                    Gathered::Count(_) => 0,
                };
                heaviest = heaviest.max(parts.iter().map(bytes).sum());
                intake.hand_over(parts);
            });
        }
        assert!((6 << 20..10 << 20).contains(&heaviest), "{heaviest}");
        let tick = intake.take(20, 20, 10, |_, _| None);
        let count: f64 = tick.samples.iter().map(|(_, value)| value.as_histogram().unwrap().count()).sum();
        assert_eq!(count, 4.0 * 4096.0 + 2.0 * 4095.0);
    }

    #[test]
    fn the_bytes_of_spellings_are_bounded_in_all_shards_together() {
        let limits = Limits { series: 1024, ..Limits::default() };
        let intake = Intake::new(Registry::with_limits(Restored::default(), limits), 0);
        let shards = [intake.shard(), intake.shard(), intake.shard(), intake.shard()];
        let mut most = 0;
        for i in 0..1500 {
            let line = format!("c:1|c|#a{}", ",".repeat(1 + i));
            for shard in &shards {
                intake.receive(shard, std::iter::once((line.as_bytes(), Arrival::Whole)), || (), 0);
            }
            most = most.max(shards.iter().map(|shard| shard.lock().key_bytes()).sum());
        }
        assert!((256 * 1024..=512 * 1024 + 4 * 4096).contains(&most), "{most}");
        let tick = intake.take(20, 20, 10, |_, _| None);
        assert_eq!(tick.samples[0].1.as_float(), Some(4.0 * 1500.0));
    }

    #[test]
    fn of_what_is_beyond_a_limit_only_who_sent_it_is_read() {
        // A name that began like the header's was taken for it, and its line read.
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let shard = intake.shard();
        let header = "cortex_client_payload_sequence:1|g|#client_id:00000000000000ff";
        let datagrams = [
            format!("{header}\na:1|c\n\nb:1|c\n"),
            format!("{}_:1|c|#user:1\na:1|c", header.split(':').next().unwrap()),
            format!("a:1|c\n{header}"),
            header.replace(":1|", ":x|"),
            header.to_owned(),
            String::new(),
        ];
        for (datagram, lines) in datagrams.iter().zip([2, 2, 2, 1, 0, 0]) {
            let before = intake.lock().totals.dropped.get("source_limit").map_or(0, |dropped| dropped.count);
            intake.receive(&shard, std::iter::once((datagram.as_bytes(), Arrival::BeyondLimit)), || (), 0);
            let after = intake.lock().totals.dropped["source_limit"].count;
            assert_eq!(after - before, lines, "{datagram}");
        }
        let state = intake.lock();
        assert_eq!((state.totals.datagrams, state.totals.messages), (6, 7 + 2));
        assert_eq!(state.totals.dropped["source_limit"].example, "a:1|c");
        assert_eq!((state.registry.len(), state.senders.status()[0].payloads), (0, 1));
    }

    #[test]
    fn what_a_total_cannot_take_costs_none_that_came_with_it() {
        // Whatever had come in the same tick was refused with it, and the example was the name of the series.
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        intake.datagram(b"lat:1.7e308|h|#a:b\nneg:-1.7e308|h\nc:1.7e308|c\nw:1|h|@1e-307\nw:1|h|@1e-307", 0);
        intake.take(20, 20, 10, |_, _| None);
        let good = "lat:1|h|#a:b\nlat:1:2|h|@0.5|#a:b\nneg:-1|h\nneg:5|ms\nc:1|c\nw:1|h\n".repeat(100);
        let large = "lat:1.7e308|h|#a:b\nneg:-1.7e308|h|@0.95\nc:1.7e308|c\nw:1|h|@6e-309\n";
        intake.datagram([&*good, large, &*good].concat().as_bytes(), 0);
        let tick = intake.take(40, 40, 30, |_, _| None);
        let dropped = intake.lock().totals.dropped["total_not_finite"].clone();
        assert_eq!((dropped.count, dropped.example.as_str()), (4, "lat:1.7e308|h|#a:b"));
        let mut counts: Vec<f64> = tick
            .samples
            .iter()
            .map(|(_, value)| value.as_histogram().map_or(0.0, ExponentialHistogram::count))
            .collect();
        counts.sort_by(f64::total_cmp);
        assert_eq!(counts[..3], [0.0, 1.0 + 200.0 * 2.0, 1.0 + 200.0 * 5.0], "c, neg, lat");
        assert!(counts.len() == 4 && (1e307..3e307).contains(&counts[3]), "{counts:?}");
    }

    #[test]
    fn what_comes_back_to_a_total_that_has_no_room_stays_finite() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        intake.datagram(b"c:1.5e308|c\nh:1.5e308|h\nw:1|h|@1e-308", 0);
        let first = intake.take(20, 20, 10, |_, _| None);
        let before = |labels: &Labels, _| {
            let started = first.started.iter().find(|started| started.labels == *labels)?;
            let value = first.samples.iter().find(|(id, _)| *id == started.id).map(|(_, value)| value.clone());
            Some(Known { id: started.id, since_ms: 10, value })
        };
        let again = Intake::new(Registry::new(Restored::default()), 0);
        again.datagram(b"c:1.5e308|c\nh:1.5e308|h\nw:1|h|@6e-309", 0);
        let second = again.take(40, 40, 30, before);
        for (_, value) in &second.samples {
            let Some(h) = value.as_histogram() else {
                assert_eq!(value.as_float(), Some(f64::MAX));
                continue;
            };
            let buckets = h.positive().counts.iter();
            assert!(h.sum().is_finite() && h.count().is_finite() && buckets.copied().all(f64::is_finite));
            assert!(h.sum() == f64::MAX || h.count() == f64::MAX);
        }
        assert_eq!(second.samples.len(), 3);
    }

    #[test]
    fn a_value_that_a_sum_cannot_take_costs_itself_alone() {
        // Three such values made the sum of all that had come in the tick infinite, and all was refused.
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let one = "lat:1|h\n".repeat(50);
        intake.datagram(format!("{one}lat:1.7e308|h\nlat:1.7e308|h|@0.5\nlat:1.7e308|h\n{one}").as_bytes(), 0);
        let tick = intake.take(20, 20, 10, |_, _| None);
        assert_eq!(tick.samples[0].1.as_histogram().unwrap().count(), 101.0);
        let dropped = intake.lock().totals.dropped["total_not_finite"].clone();
        assert_eq!((dropped.count, dropped.example.as_str()), (2, "lat:1.7e308|h|@0.5"));
    }

    #[test]
    fn values_that_wait_are_recorded_beside_those_that_do_not() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let (most, more) = (f64::MAX, 6000);
        let waiting = "a:1|h\nb:1000|ms\na:-1e100|h\n".repeat(more);
        intake.datagram(format!("{waiting}a:{most}|h\nb:2:3|h|@0.5\nb:5|d\n{waiting}").as_bytes(), 0);
        let tick = intake.take(20, 20, 10, |_, _| None);
        let value_of = |name: &str| {
            let id = tick.started.iter().find(|series| series.labels.name() == name).unwrap().id;
            let value = &tick.samples.iter().find(|(other, _)| *other == id).unwrap().1;
            let histogram = value.as_histogram().unwrap();
            (histogram.count(), histogram.sum())
        };
        let more = 2.0 * more as f64;
        assert_eq!(value_of("a"), (2.0 * more + 1.0, most), "what is added is less than half of its last bit");
        assert_eq!(value_of("b"), (more + 5.0, more + 15.0));
        assert!(intake.lock().totals.dropped.is_empty());
        assert!(intake.take(30, 30, 10, |_, _| None).samples.is_empty());
    }

    #[test]
    fn a_header_that_says_nothing_is_dropped_and_does_not_deafen_to_those_that_do() {
        // Its name became a gauge, and what is a known series was not looked at any more: all clients fell silent.
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let id = "00000000000000aa";
        for text in [
            format!("cortex_client_payload_sequence:0|g|#client_id:{id}"),
            format!("cortex_client_payload_sequence:+1|g|#client_id:{id}"),
            format!("cortex_client_payload_sequence:1|c|#client_id:{id}"),
            format!("cortex_client_payload_sequence:1.5|g|#client_id:{id}"),
            format!("cortex_client_payload_sequence:1|g|#client_id:{}", "z".repeat(16)),
            "cortex_client_payload_sequence:1|g|#client_id:+0000000000000aa".to_owned(),
            format!("cortex_client_payload_sequence#client_id={id}:1|g"),
            format!("cortex_client_payload_sequence[client_id={id}]:1|g"),
            format!("cortex.client.payload_sequence:1|g|#client_id:{id}"),
            "cortex_client_payload_sequence:1|g".to_owned(),
        ] {
            intake.datagram(text.as_bytes(), 0);
            intake.datagram(text.as_bytes(), 0);
        }
        for sequence in 1..=5 {
            let text = format!("cortex_client_payload_sequence:{sequence}|g|#client_id:{id}\nw:7|g");
            intake.datagram(text.as_bytes(), 5);
        }
        let state = intake.lock();
        assert_eq!((state.totals.dropped["bad_header"].count, state.registry.len()), (20, 1));
        let clients: Vec<_> = state.senders.status().iter().map(|s| (s.client_id, s.payloads)).collect();
        assert_eq!(clients, [(0xaa, 5)]);
        assert_eq!(state.registry.writers().collect::<Vec<_>>(), [0xaa]);
    }

    #[test]
    fn what_a_batch_holds_does_not_grow_with_its_lines() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let (junk, gauges) = ("a\n".repeat(32_000), "g:1|g\n".repeat(10_000));
        let mut shard = Shard::new(GaugeMinus::default(), intake.member_hasher.clone(), 1000);
        let mut batch = Batch::default();
        (0..32).for_each(|_| shard.datagram(junk.as_bytes(), &mut batch));
        assert_eq!((batch.ops.len(), batch.drops.len(), batch.drops[0].count), (0, 1, 32 * 32_000));
        // Gauges have their order: they are applied as soon as they are many, once it is the batch's turn.
        let (mut turns, mut applied) = (0, 0);
        let shard = intake.shard();
        let datagrams = [(gauges.as_bytes(), Arrival::Whole); 32].into_iter();
        let datagrams = datagrams.inspect(|_| applied = intake.lock().totals.messages);
        intake.receive(&shard, datagrams, || turns += 1, 0);
        assert_eq!((intake.lock().totals.messages, applied, turns), (320_000, 310_000, 1));
    }

    #[test]
    fn a_flag_settles_what_a_minus_says() {
        for (gauge_minus, plain, tagged) in
            [(GaugeMinus::Auto, 4.0, -6.0), (GaugeMinus::Delta, 4.0, 4.0), (GaugeMinus::Absolute, -6.0, -6.0)]
        {
            let intake = Intake::new(Registry::new(Restored::default()), 0).with_gauge_minus(gauge_minus);
            intake.datagram(b"p:10|g\np:-6|g\nt:10|g|#a:b\nt:-6|g|#a:b", 0);
            let tick = intake.take(20, 20, 10, |_, _| None);
            let values: Vec<_> = tick.samples.iter().map(|(_, value)| value.as_float().unwrap()).collect();
            assert_eq!(values, [plain, tagged], "{gauge_minus:?}");
        }
    }

    proptest! {
        #[test]
        fn property_test_what_is_known_counts_as_what_is_new(lines in proptest::collection::vec((
            select(&["a", "b", "a:"][..]),
            select(&["1", "2", "2.5", "007", ".5", "-1", "+1", "1:2", "1::2", "", "x", "1e3", "0000000000000012"][..]),
            select(&["c", "g", "h", "ms", "d", "s", " c", "q"][..]),
            select(&[
                "", "|#t:1", "|@0.5", "|@0.5|#t:1", "|#t:1|@0.25", "|#t:1|c:box", "|T5|#t:1", "|#t:1|T0", "|zz:1",
                "|#t:1|#t:2", ":3|c", "|", "\r",
            ][..]),
        ), 1..60)) {
            let lines: Vec<String> = lines.iter().map(|(name, value, kind, after)| format!("{name}:{value}|{kind}{after}")).collect();
            // All through one shard; then each through one that knows nothing.
            let outcomes = [false, true].map(|is_anew| {
                let intake = Intake::new(Registry::new(Restored::default()), 0);
                for line in &lines {
                    if is_anew {
                        intake.receive(&intake.shard(), std::iter::once((line.as_bytes(), Arrival::Whole)), || (), 0);
                    } else {
                        intake.datagram(line.as_bytes(), 0);
                    }
                }
                let tick = intake.take(20, 20, 10, |_, _| None);
                let values: Vec<_> = tick.samples.iter().map(|(id, value)| {
                    let labels = tick.started.iter().find(|series| series.id == *id).unwrap().labels.to_string();
                    let buckets = value.as_histogram().map(|histogram| (histogram.count(), histogram.buckets()));
                    (labels, value.as_float(), buckets)
                }).collect();
                let totals = intake.lock().totals.clone();
                let dropped: Vec<_> = totals.dropped.iter().map(|(reason, dropped)| (*reason, dropped.count)).collect();
                let counts = (totals.messages, totals.timestamps, totals.unknown_fields, totals.repeated_fields, totals.empty_values);
                (values, dropped, counts)
            });
            let [known, anew] = outcomes;
            prop_assert_eq!(known, anew);
        }
    }
}
