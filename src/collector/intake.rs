//! The intake: what all listeners share. One lock, taken once for a batch of datagrams.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::registry::Registry;
use super::senders::Senders;
use super::socket_account::SocketAccount;
use crate::dogstatsd::{GaugeMinus, HEADER_NAME, Header, Message, MessageType, MessageValue, Tally, decode};

/// A reason is logged again after so long.
const LOG_AGAIN_MS: i64 = 60_000;
/// An example is cut to so many characters.
const EXAMPLE_CHARS_MAX: usize = 200;

/// The registry, the senders and the account of what came in.
#[derive(Debug)]
pub struct Intake {
    state: Mutex<IntakeState>,
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
    gauge_minus: GaugeMinus,
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
        let (totals, gauge_minus) = (IntakeTotals::default(), GaugeMinus::default());
        Self { state: Mutex::new(IntakeState { registry, senders, totals, gauge_minus }), sockets: Vec::new() }
    }

    /// Reads `-5` of gauges in this way instead of [`GaugeMinus::Auto`].
    #[must_use]
    pub fn with_gauge_minus(self, gauge_minus: GaugeMinus) -> Self {
        self.state.lock().gauge_minus = gauge_minus;
        self
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

    /// Takes the lock: for a batch of datagrams, or to take what changed.
    pub fn lock(&self) -> MutexGuard<'_, IntakeState> {
        self.state.lock()
    }
}

impl IntakeState {
    /// Applies all messages of one datagram. What cannot be used is counted by its reason.
    pub fn datagram(&mut self, datagram: &[u8], now_ms: i64) {
        self.totals.datagrams += 1;
        let mut writer = None;
        let mut messages = decode(datagram).with_gauge_minus(self.gauge_minus);
        while let Some(message) = messages.next() {
            self.totals.messages += 1;
            match message {
                Ok(message) => {
                    if let Some(header) = header_of(&message) {
                        writer = self.senders.heard(header, now_ms).then_some(header.client_id);
                    } else if let Err(refusal) = self.registry.apply(&message, writer) {
                        self.totals.drop(refusal.as_str(), &refusal, messages.line(), now_ms);
                    }
                }
                Err(error) => self.totals.drop(error.as_str(), &error, messages.line(), now_ms),
            }
        }
        self.totals.add(&messages.tally());
    }

    /// Applies the messages of a datagram whose end did not fit into the buffer, all but the last.
    pub fn truncated_datagram(&mut self, datagram: &[u8], now_ms: i64) {
        let end = datagram.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        let (whole, cut) = datagram.split_at(end);
        self.datagram(whole, now_ms);
        self.totals.messages += 1;
        self.totals.drop("truncated", &"the datagram is too long, its last message was cut off", cut, now_ms);
    }
}

impl IntakeTotals {
    fn drop(&mut self, reason: &'static str, words: &dyn Display, example: &[u8], now_ms: i64) {
        let dropped = self.dropped.entry(reason).or_default();
        dropped.count += 1;
        if dropped.logged_ms.is_none_or(|logged| now_ms - logged >= LOG_AGAIN_MS) {
            dropped.logged_ms = Some(now_ms);
            dropped.example = printable(example);
            tracing::warn!(reason, count = dropped.count, example = dropped.example, "message dropped: {words}");
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

fn header_of(message: &Message<'_>) -> Option<Header> {
    if message.name != HEADER_NAME.as_bytes() || message.kind != MessageType::Gauge {
        return None;
    }
    match message.values().next()? {
        MessageValue::Absolute(sequence) => Header::decode(sequence, message.tags),
        MessageValue::Delta(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Restored;

    #[test]
    fn a_datagram_names_its_sender_and_each_bad_message_costs_itself() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let mut state = intake.lock();
        let datagram =
            b"cortex_client_payload_sequence:1|g|#client_id:00000000000000ff\ng:1|g\nbad\nbad\nworse|x\ng:1|c";
        state.datagram(datagram, 0);
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
        let mut state = intake.lock();
        let example = |state: &IntakeState| state.totals.dropped["unknown_type"].example.clone();
        state.datagram(b"good:1|c\nfirst:1|\xffx\ngood:1|c", 0);
        state.datagram(b"second:1|x", LOG_AGAIN_MS - 1);
        assert_eq!(example(&state), "first:1|\u{fffd}x");
        state.datagram(b"third\t:1|x|#user:17", LOG_AGAIN_MS);
        assert_eq!(example(&state), "third\\t:1|x|#user:17");
        assert_eq!(state.totals.dropped["unknown_type"].count, 3);
        state.datagram(&[b"a:1|", &[b'y'; 5000][..]].concat(), 2 * LOG_AGAIN_MS);
        assert_eq!(example(&state).len(), EXAMPLE_CHARS_MAX);
    }

    #[test]
    fn what_is_passed_over_is_counted() {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let mut state = intake.lock();
        state.datagram(b"_e{1,1}:a|b\n_sc|n|0\n_sc|n|3|m:x\nc:1::2|c|@0.5|@1|T1|#a:b|#c:d|zz:9\nc:1|q|T1|yy", 0);
        let totals = &state.totals;
        assert_eq!((totals.messages, totals.events, totals.service_checks), (2, 1, 2));
        assert_eq!((totals.timestamps, totals.repeated_fields, totals.empty_values), (1, 2, 1));
        assert_eq!((totals.unknown_fields, &*totals.unknown_field), (1, &b"zz:9"[..]), "not those of what is refused");
    }

    #[test]
    fn a_flag_settles_what_a_minus_says() {
        for (gauge_minus, plain, tagged) in
            [(GaugeMinus::Auto, 4.0, -6.0), (GaugeMinus::Delta, 4.0, 4.0), (GaugeMinus::Absolute, -6.0, -6.0)]
        {
            let intake = Intake::new(Registry::new(Restored::default()), 0).with_gauge_minus(gauge_minus);
            let mut state = intake.lock();
            state.datagram(b"p:10|g\np:-6|g\nt:10|g|#a:b\nt:-6|g|#a:b", 0);
            let tick = state.registry.take_changes(20, 10);
            let values: Vec<_> = tick.samples.iter().map(|(_, value)| value.as_float().unwrap()).collect();
            assert_eq!(values, [plain, tagged], "{gauge_minus:?}");
        }
    }
}
