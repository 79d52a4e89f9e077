//! The intake: what all listeners share. One lock, taken once for a batch of datagrams.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};

use super::registry::Registry;
use super::senders::Senders;
use crate::dogstatsd::{HEADER_NAME, Header, Message, MessageType, MessageValue, decode};

/// A reason is logged again after so long.
const LOG_AGAIN_MS: i64 = 60_000;
/// An example is cut to so many characters.
const EXAMPLE_CHARS_MAX: usize = 200;

/// The registry, the senders and the account of what came in.
#[derive(Debug)]
pub struct Intake {
    state: Mutex<IntakeState>,
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
}

/// What came in since the start of this process.
#[derive(Debug, Clone, Default)]
pub struct IntakeTotals {
    /// Datagrams received.
    pub datagrams: u64,
    /// Messages in them, those that were dropped included.
    pub messages: u64,
    /// Messages dropped, by reason.
    pub dropped: BTreeMap<&'static str, Dropped>,
    /// Datagrams that the kernel dropped because the receive buffer was full (`SO_RXQ_OVFL`).
    pub kernel_drops: u64,
}

/// Messages dropped for one reason.
#[derive(Debug, Clone, Default)]
pub struct Dropped {
    /// How many.
    pub count: u64,
    /// The newest that was logged, its bytes made printable.
    pub example: String,
    logged_ms: Option<i64>,
}

impl Intake {
    /// An intake for `registry`.
    pub fn new(registry: Registry, now_ms: i64) -> Self {
        let mut senders = Senders::default();
        registry.writers().for_each(|writer| senders.expect(writer, now_ms));
        Self { state: Mutex::new(IntakeState { registry, senders, totals: IntakeTotals::default() }) }
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
        for message in decode(datagram) {
            self.totals.messages += 1;
            let refused = match &message {
                Ok(message) => {
                    if let Some(header) = header_of(message) {
                        writer = self.senders.heard(header, now_ms).then_some(header.client_id);
                        continue;
                    }
                    self.registry.apply(message, writer).err().map(|refusal| (refusal.as_str(), refusal.to_string()))
                }
                Err(error) => Some((error.as_str(), error.to_string())),
            };
            if let Some((reason, words)) = refused {
                let example = message.map_or(datagram, |message| message.name);
                self.totals.drop(reason, &words, example, now_ms);
            }
        }
    }
}

impl IntakeTotals {
    fn drop(&mut self, reason: &'static str, words: &str, example: &[u8], now_ms: i64) {
        let dropped = self.dropped.entry(reason).or_default();
        dropped.count += 1;
        if dropped.logged_ms.is_none_or(|logged| now_ms - logged >= LOG_AGAIN_MS) {
            dropped.logged_ms = Some(now_ms);
            let text = String::from_utf8_lossy(example);
            dropped.example = text.chars().take(EXAMPLE_CHARS_MAX).flat_map(char::escape_debug).collect();
            tracing::warn!(reason, count = dropped.count, example = dropped.example, "message dropped: {words}");
        }
    }
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
}
