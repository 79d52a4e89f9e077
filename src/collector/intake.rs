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
use super::registry::{Refusal, Registry, Usage};
use super::senders::Senders;
use super::shard::{Batch, Effect, Op, Part, Shard, Why};
use super::socket_account::SocketAccount;
use crate::dogstatsd::{GaugeMinus, Header, Message, Tally};
use crate::model::{Labels, MetricKind};
use crate::store::{Known, Tick};

/// A batch is applied as soon as so much of it is left to apply: datagrams may be large, and all of it unreadable.
const OPS_MAX: usize = 4096;
/// So many series are taken or given while the lock is held: some tenths of a millisecond.
const LOCKED_MAX: usize = 1000;

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
    /// Messages dropped, by reason.
    pub dropped: BTreeMap<&'static str, Dropped>,
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
    pub fn new(registry: Registry, now_ms: i64) -> Self {
        let mut senders = Senders::default();
        registry.writers().for_each(|writer| senders.expect(writer, now_ms));
        Self {
            state: Mutex::new(IntakeState { registry, senders, totals: IntakeTotals::default(), mapping_error: None }),
            sockets: Vec::new(),
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
        let series_max = self.lock().registry.limits().series;
        let shard = Arc::new(Mutex::new(Shard::new(self.gauge_minus, self.member_hasher.clone(), series_max)));
        self.shards.lock().push(Arc::clone(&shard));
        shard
    }

    /// Applies a batch of datagrams, each with whether it is whole. What cannot be used is counted by its reason.
    /// `turn` waits until the batches that the same socket gave before are applied.
    pub fn receive<'a>(
        &self,
        shard: &Mutex<Shard>,
        datagrams: impl Iterator<Item = (&'a [u8], bool)>,
        turn: impl FnOnce(),
        now_ms: i64,
    ) {
        let mut shard = shard.lock();
        let mut batch = Batch::default();
        let mut turn = Some(turn);
        for (datagram, is_whole) in datagrams {
            if is_whole {
                shard.datagram(datagram, &mut batch);
            } else {
                shard.truncated_datagram(datagram, &mut batch);
            }
            if batch.ops.len() >= OPS_MAX {
                if let Some(turn) = turn.take() {
                    turn();
                }
                self.lock().apply(&mut shard, &std::mem::take(&mut batch), now_ms);
            }
        }
        if let Some(turn) = turn.take() {
            turn();
        }
        self.lock().apply(&mut shard, &batch, now_ms);
    }

    /// Applies one datagram, from a thread that has no shard of its own.
    pub fn datagram(&self, datagram: &[u8], now_ms: i64) {
        let shard = self.shards.lock().first().map(Arc::clone);
        let shard = shard.unwrap_or_else(|| self.shard());
        self.receive(&shard, std::iter::once((datagram, true)), || (), now_ms);
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

    /// Takes the lock: for the account, or to take what changed.
    pub fn lock(&self) -> MutexGuard<'_, IntakeState> {
        self.state.lock()
    }

    /// Gives what the shards have gathered to the registry, without holding up those who receive for long.
    pub fn gather(&self) {
        for shard in self.shards() {
            let parts = shard.lock().take();
            let mut parts = parts.into_iter().peekable();
            while parts.peek().is_some() {
                let mut state = self.lock();
                let refused: u64 = parts.by_ref().take(LOCKED_MAX).map(|part| state.registry.add_part(part)).sum();
                state.refuse(refused);
            }
        }
    }

    /// Takes what changed since the last tick as one of `timestamp_ms`; series that are new began at `start_ms`, unless
    /// `find` knows them from before.
    pub fn take(&self, timestamp_ms: i64, start_ms: i64, find: impl Fn(&Labels, MetricKind) -> Option<Known>) -> Tick {
        self.gather();
        let mut tick = Tick { timestamp_ms, ..Tick::default() };
        let changed = self.lock().registry.take_changed(timestamp_ms);
        for places in changed.chunks(LOCKED_MAX) {
            self.lock().registry.take(places, &mut tick, start_ms, &find);
        }
        tick
    }

    /// Lets go of the series that were silent for long, and ends them in the tick.
    pub fn expire(&self, tick: &mut Tick) {
        if !self.lock().registry.look_for_silent() {
            return;
        }
        // No thread may go on to know the way to a place that is given away; a series to which one is told the way meanwhile stays.
        self.clear_shards();
        self.lock().registry.remove_silent(tick);
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
            let mut state = self.lock();
            let refused = shard.clear(&mut state.registry);
            state.refuse(refused);
        }
    }

    fn shards(&self) -> Vec<Arc<Mutex<Shard>>> {
        self.shards.lock().clone()
    }
}

impl IntakeState {
    /// Applies what a batch holds beside what its shard has gathered, in the order of its messages.
    fn apply(&mut self, shard: &mut Shard, batch: &Batch<'_>, now_ms: i64) {
        self.totals.datagrams += batch.datagrams;
        self.totals.messages += batch.messages;
        batch.tallies.iter().for_each(|tally| self.totals.add(tally));
        if shard.is_heavy() {
            let refused = shard.take().into_iter().map(|part| self.registry.add_part(part)).sum();
            self.refuse(refused);
        }
        let mut writer = None;
        for op in &batch.ops {
            match op {
                Op::From(header) => {
                    let heard = |header: &Header| self.senders.heard(*header, now_ms).then_some(header.client_id);
                    writer = header.as_ref().and_then(heard);
                }
                Op::Unrouted { message, usage, line } => {
                    if let Err(refusal) = self.unrouted(shard, message, *usage, writer) {
                        self.totals.drop(refusal.into(), line, now_ms);
                    }
                }
                Op::Drop { why, line } => self.totals.drop(*why, line, now_ms),
                Op::Write { at, write, line } => {
                    if let Err(refusal) = self.registry.write(*at, *write, writer) {
                        self.totals.drop(refusal.into(), line, now_ms);
                    }
                }
            }
        }
    }

    /// A message whose raw bytes are new to the shard.
    fn unrouted(
        &mut self,
        shard: &mut Shard,
        message: &Message<'_>,
        usage: Usage,
        writer: Option<u64>,
    ) -> Result<(), Refusal> {
        let resolved = self.registry.resolve(message, usage)?;
        let at = resolved.at;
        if shard.is_full() {
            let refused = shard.clear(&mut self.registry);
            self.refuse(refused);
        }
        let write = if resolved.is_routable {
            shard.route(message, usage, resolved)?
        } else {
            match shard.effect_of(message, usage, resolved.scale)? {
                Effect::Gather(gathered) => {
                    let refused = self.registry.add_part(Part { at, messages: 1, gathered });
                    self.refuse(refused);
                    None
                }
                Effect::Write(write) => Some(write),
            }
        };
        write.map_or(Ok(()), |write| self.registry.write(at, write, writer))
    }
}

impl IntakeState {
    /// Messages that were gathered, and whose total would not be finite. Their lines are gone: the series is the example.
    fn refuse(&mut self, count: u64) {
        if count > 0 {
            let dropped = self.totals.dropped.entry(Refusal::NotFinite.as_str()).or_default();
            dropped.count += count;
            if let Some(labels) = self.registry.take_refused() {
                dropped.example = printable(labels.to_string().as_bytes());
                tracing::warn!(count, series = %labels, "messages dropped: their total is beyond what a double can hold");
            }
        }
    }
}

impl IntakeTotals {
    fn drop(&mut self, why: Why, example: &[u8], now_ms: i64) {
        let reason = why.as_str();
        let dropped = self.dropped.entry(reason).or_default();
        dropped.count += 1;
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

    use super::super::registry::Limits;
    use super::*;
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
    fn what_is_passed_over_is_counted() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        intake.datagram(b"_e{1,1}:a|b\n_sc|n|0\n_sc|n|3|m:x\nc:1::2|c|@0.5|@1|T1|#a:b|#c:d|zz:9\nc:1|q|T1|yy", 0);
        let totals = intake.lock().totals.clone();
        assert_eq!((totals.messages, totals.events, totals.service_checks), (2, 1, 2));
        assert_eq!((totals.timestamps, totals.repeated_fields, totals.empty_values), (1, 2, 1));
        assert_eq!((totals.unknown_fields, &*totals.unknown_field), (1, &b"zz:9"[..]), "not those of what is refused");
    }

    #[test]
    fn a_series_that_a_shard_finds_while_silent_ones_leave_stays() {
        let limits = Limits { series_expiry_ms: 100, ..Limits::default() };
        let intake = Intake::new(Registry::with_limits(Restored::default(), limits), 0);
        let (first, second) = (intake.shard(), intake.shard());
        let send = |shard: &Mutex<Shard>, line: &str| {
            intake.receive(shard, std::iter::once((line.as_bytes(), true)), || (), 0);
        };
        send(&first, "found:1|c\nsilent:1|c");
        let mut tick = intake.take(10, 0, |_, _| None);
        intake.take(1000, 10, |_, _| None);
        assert!(intake.lock().registry.look_for_silent());
        intake.clear_shards();
        // Between the two steps of letting go.
        send(&second, "found:2|c");
        intake.lock().registry.remove_silent(&mut tick);
        assert_eq!(tick.ended.len(), 1);
        send(&first, "new:5|c");
        let tick = intake.take(1010, 1000, |_, _| None);
        let mut values: Vec<_> = tick.samples.iter().map(|(_, value)| value.as_float().unwrap()).collect();
        values.sort_by(f64::total_cmp);
        assert_eq!(values, [3.0, 5.0], "what was found goes on, and what is new has its own");
        assert!(intake.lock().totals.dropped.is_empty());
    }

    #[test]
    fn a_flag_settles_what_a_minus_says() {
        for (gauge_minus, plain, tagged) in
            [(GaugeMinus::Auto, 4.0, -6.0), (GaugeMinus::Delta, 4.0, 4.0), (GaugeMinus::Absolute, -6.0, -6.0)]
        {
            let intake = Intake::new(Registry::new(Restored::default()), 0).with_gauge_minus(gauge_minus);
            intake.datagram(b"p:10|g\np:-6|g\nt:10|g|#a:b\nt:-6|g|#a:b", 0);
            let tick = intake.take(20, 10, |_, _| None);
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
                        intake.receive(&intake.shard(), std::iter::once((line.as_bytes(), true)), || (), 0);
                    } else {
                        intake.datagram(line.as_bytes(), 0);
                    }
                }
                let tick = intake.take(20, 10, |_, _| None);
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
