//! The table: context → accumulator. The hot path ends here.
//!
//! A context is kept as the two texts that a datagram needs, so that nothing is encoded again when it is sent, and stays in
//! the table between flushes, so that its next call allocates nothing.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

use super::account::{Account, DropReason};
use super::accumulator::{Accumulator, Content};
use crate::dogstatsd::{MessageType, encode_line, values_per_line};

/// What a call does to its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Adds to a total.
    Counter,
    /// Sets a value.
    Gauge,
    /// Records a value of a distribution.
    Histogram,
}

/// A context without calls for so many flushes leaves the table.
const IDLE_FLUSHES_MAX: u16 = 60;
/// How many different warnings are remembered.
const WARNINGS_MAX: usize = 1_000;

/// The tags of a call as a datagram has them, `key:value,key:value`; made by pushing, checked on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagText(String);

impl TagText {
    /// Adds a tag. A key must not be empty or hold `:`, `,`, `|`, `#` or control characters. In a value, `,`, `|` and
    /// control characters, which would end it, become `_`.
    pub fn push(&mut self, key: &str, value: &str) -> Result<(), DropReason> {
        if key.is_empty() || key.contains([':', ',', '|', '#']) || key.contains(char::is_control) {
            return Err(DropReason::BadTags);
        }
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(key);
        self.0.push(':');
        self.0.extend(value.chars().map(|c| if c == ',' || c == '|' || c.is_control() { '_' } else { c }));
        Ok(())
    }

    /// Adds tags that are text already.
    pub fn push_text(&mut self, text: &str) {
        if !text.is_empty() {
            if !self.0.is_empty() {
                self.0.push(',');
            }
            self.0.push_str(text);
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a datagram can carry `name`, and the table take it.
fn is_good_name(name: &str) -> bool {
    !name.is_empty() && !name.contains([':', '|', '@', '#', ',']) && !name.contains(char::is_control)
}

/// Name, kind and tags: what is counted together.
#[derive(Debug)]
pub(super) struct Context {
    kind: Kind,
    name: Box<str>,
    tags: Box<str>,
}

/// A part of what accumulated in one context: what one line of a payload says.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    context: Arc<Context>,
    content: Content,
    /// How many calls it stands for.
    pub(super) calls: u64,
}

impl Piece {
    /// Writes the line (two for a negative gauge) without its last newline.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, values, weight) = match &self.content {
            Content::Counter(sum) => (MessageType::Counter, std::slice::from_ref(sum), 1),
            Content::Gauge(value) => (MessageType::Gauge, std::slice::from_ref(value), 1),
            Content::Values(values) => (MessageType::Histogram, values.as_slice(), 1),
            Content::Bucket { mean, weight } => (MessageType::Histogram, std::slice::from_ref(mean), *weight),
        };
        encode_line(out, self.context.name.as_bytes(), kind, values, weight, self.context.tags.as_bytes());
    }
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    context: Arc<Context>,
    accumulator: Accumulator,
    calls: u64,
    idle_flushes: u16,
}

/// All contexts of a process, and the account of its calls.
#[derive(Debug)]
pub(super) struct Table {
    entries: HashTable<Entry>,
    hasher: RandomState,
    contexts_max: usize,
    context_bytes_max: usize,
    account: Account,
    /// What the collector has been told of the account: calls, and drops by reason.
    reported: Account,
    warned: HashSet<Box<str>>,
    /// True once a call has come: from then on there must be a flusher.
    has_flusher: bool,
}

impl Table {
    pub(super) fn new(contexts_max: usize, context_bytes_max: usize) -> Self {
        Self {
            entries: HashTable::new(),
            hasher: RandomState::default(),
            contexts_max,
            context_bytes_max,
            account: Account::default(),
            reported: Account::default(),
            warned: HashSet::new(),
            has_flusher: false,
        }
    }

    /// True for the first who asks, and again after `no_flusher`: he has to start it.
    pub(super) fn wants_flusher(&mut self) -> bool {
        !std::mem::replace(&mut self.has_flusher, true)
    }

    /// The flusher could not be started.
    pub(super) fn no_flusher(&mut self) {
        self.has_flusher = false;
    }

    /// One call.
    pub(super) fn record(&mut self, kind: Kind, name: &str, tags: &TagText, value: f64) -> Result<(), DropReason> {
        self.account.called += 1;
        let outcome = self.add(kind, name, tags.as_str(), value);
        match outcome {
            Ok(()) => self.account.held += 1,
            Err(reason) => self.account.drop_calls(reason, 1),
        }
        outcome
    }

    /// Counts a call that was found wrong before it got here.
    pub(super) fn refuse(&mut self, reason: DropReason) {
        self.account.called += 1;
        self.account.drop_calls(reason, 1);
    }

    fn add(&mut self, kind: Kind, name: &str, tags: &str, value: f64) -> Result<(), DropReason> {
        if !value.is_finite() {
            return Err(DropReason::NotFinite);
        }
        if kind == Kind::Counter && value < 0.0 {
            return Err(DropReason::NegativeIncrement);
        }
        let entry = self.entry(kind, name, tags)?;
        entry.accumulator.add(value)?;
        entry.calls += 1;
        Ok(())
    }

    fn entry(&mut self, kind: Kind, name: &str, tags: &str) -> Result<&mut Entry, DropReason> {
        let hash = hash_of(&self.hasher, kind, name, tags);
        let is_it = |entry: &Entry| {
            let context = &entry.context;
            entry.hash == hash && context.kind == kind && *context.name == *name && *context.tags == *tags
        };
        let is_full = self.entries.len() >= self.contexts_max;
        match self.entries.entry(hash, is_it, |entry| entry.hash) {
            Slot::Occupied(slot) => Ok(slot.into_mut()),
            Slot::Vacant(_) if !is_good_name(name) => Err(DropReason::BadName),
            Slot::Vacant(_) if name.len() + tags.len() > self.context_bytes_max => Err(DropReason::TooLong),
            Slot::Vacant(_) if is_full => Err(DropReason::ContextLimit),
            Slot::Vacant(slot) => {
                let context = Arc::new(Context { kind, name: name.into(), tags: tags.into() });
                let accumulator = Accumulator::new(kind);
                Ok(slot.insert(Entry { hash, context, accumulator, calls: 0, idle_flushes: 0 }).into_mut())
            }
        }
    }

    /// Takes everything that has accumulated; the contexts stay. Values are cut so that each line fits into `line_bytes_max`.
    pub(super) fn take(&mut self, line_bytes_max: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.entries.retain(|entry| {
            let before = pieces.len();
            entry.take(line_bytes_max, &mut pieces);
            entry.idle_flushes = if pieces.len() == before { entry.idle_flushes + 1 } else { 0 };
            entry.idle_flushes < IDLE_FLUSHES_MAX
        });
        pieces
    }

    /// Adds to the table what the account says that has not been reported yet, as counters of our own.
    pub(super) fn add_report(&mut self, api_name: &str) {
        let mut tags = TagText::default();
        if !api_name.is_empty() && tags.push("api_name", api_name).is_err() {
            return;
        }
        let calls = self.account.called - self.reported.called;
        if calls > 0 && self.add_own("cortex_client_calls_total", tags.as_str(), calls) {
            self.reported.called = self.account.called;
        }
        for reason in DropReason::ALL {
            let (Some(now), Some(told)) = (
                self.account.dropped.get(reason as usize).copied(),
                self.reported.dropped.get(reason as usize).copied(),
            ) else {
                continue;
            };
            let mut tags = tags.clone();
            let is_told = now == told
                || (tags.push("reason", reason.as_str()).is_ok()
                    && self.add_own("cortex_client_dropped_total", tags.as_str(), now - told));
            if let Some(reported) = self.reported.dropped.get_mut(reason as usize).filter(|_| is_told) {
                *reported = now;
            }
        }
    }

    fn add_own(&mut self, name: &str, tags: &str, count: u64) -> bool {
        self.entry(Kind::Counter, name, tags).and_then(|entry| entry.accumulator.add(count as f64)).is_ok()
    }

    /// What was in `pieces` has left.
    pub(super) fn sent(&mut self, pieces: &[Piece]) -> u64 {
        let calls = pieces.iter().map(|piece| piece.calls).sum();
        self.account.held -= calls;
        self.account.sent += calls;
        self.account.payloads_sent += 1;
        calls
    }

    /// A payload was refused; `pieces`, its own and all that was to follow, go back to where they came from. A gauge that
    /// has been set since stays as it is.
    pub(super) fn restore(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        self.account.payloads_refused += 1;
        for piece in pieces {
            let context = &piece.context;
            let restored = self.entry(context.kind, &context.name, &context.tags).and_then(|entry| {
                entry.accumulator.restore(piece.content)?;
                entry.calls += piece.calls;
                Ok(())
            });
            if let Err(reason) = restored {
                self.lose(reason, piece.calls);
            }
        }
    }

    /// `calls` that were held are lost.
    pub(super) fn lose(&mut self, reason: DropReason, calls: u64) {
        self.account.held -= calls;
        self.account.drop_calls(reason, calls);
    }

    /// All calls that are held are lost; says how many.
    pub(super) fn lose_all(&mut self, reason: DropReason) -> u64 {
        let calls = self.account.held;
        self.entries.clear();
        self.lose(reason, calls);
        calls
    }

    /// `calls` that counted as sent turned out to have been refused.
    pub(super) fn refused_late(&mut self, calls: u64) {
        self.account.sent -= calls;
        self.account.drop_calls(DropReason::LateRefusal, calls);
    }

    pub(super) fn account(&self) -> Account {
        self.account.clone()
    }

    pub(super) fn is_first_warning(&mut self, key: &str) -> bool {
        self.warned.len() < WARNINGS_MAX && self.warned.insert(key.into())
    }
}

fn hash_of(hasher: &RandomState, kind: Kind, name: &str, tags: &str) -> u64 {
    let mut state = hasher.build_hasher();
    name.hash(&mut state);
    tags.hash(&mut state);
    state.write_u8(kind as u8);
    state.finish()
}

impl Entry {
    fn take(&mut self, line_bytes_max: usize, pieces: &mut Vec<Piece>) {
        let calls = std::mem::take(&mut self.calls);
        let context = &self.context;
        let line_values = values_per_line(context.name.len() + context.tags.len(), line_bytes_max);
        self.accumulator.take(calls, line_values, |content, calls| {
            pieces.push(Piece { context: Arc::clone(context), content, calls });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(table: &mut Table) -> Vec<String> {
        let mut lines: Vec<String> = table
            .take(1347)
            .iter()
            .map(|piece| {
                let mut out = Vec::new();
                piece.encode(&mut out);
                String::from_utf8(out).unwrap()
            })
            .collect();
        lines.sort();
        lines
    }

    fn tags(pairs: &[(&str, &str)]) -> TagText {
        let mut tags = TagText::default();
        pairs.iter().for_each(|(k, v)| tags.push(k, v).unwrap());
        tags
    }

    #[test]
    fn calls_of_one_context_become_one_line() {
        let mut table = Table::new(10, 600);
        let v1 = tags(&[("model", "v1")]);
        for value in [1.0, 2.0, 3.0] {
            table.record(Kind::Counter, "c", &v1, value).unwrap();
            table.record(Kind::Gauge, "g", &v1, value).unwrap();
            table.record(Kind::Histogram, "h", &TagText::default(), value).unwrap();
        }
        assert_eq!(lines(&mut table), ["c:6|c|#model:v1", "g:3|g|#model:v1", "h:1:2:3|h"]);
        assert_eq!(lines(&mut table), [""; 0], "what was taken is not sent again");
    }

    #[test]
    fn many_values_fall_into_buckets_and_keep_count_and_sum() {
        let mut table = Table::new(10, 600);
        let values: Vec<f64> = (1..=100_000).map(|i| f64::from(i) / 1000.0).collect();
        values.iter().for_each(|v| table.record(Kind::Histogram, "h", &TagText::default(), *v).unwrap());
        let mut weights = 0.0;
        let mut sum = 0.0;
        let lines = lines(&mut table);
        for line in &lines {
            let message = crate::dogstatsd::decode(line.as_bytes()).next().unwrap().unwrap();
            for value in message.values() {
                let crate::dogstatsd::MessageValue::Absolute(value) = value else { panic!("{value:?}") };
                weights += message.weight;
                sum += value * message.weight;
            }
        }
        assert_eq!(weights, 100_000.0);
        let exact: f64 = values.iter().sum();
        assert!((sum - exact).abs() / exact < 1e-12, "{sum} for {exact}");
        assert!(lines.len() <= 512, "{} lines", lines.len());
    }

    #[test]
    fn what_a_datagram_cannot_carry_is_dropped_for_its_reason() {
        let mut table = Table::new(2, 600);
        let none = TagText::default();
        let mut reason = |kind, name: &str, value| table.record(kind, name, &none, value).err();
        assert_eq!(reason(Kind::Counter, "", 1.0), Some(DropReason::BadName));
        assert_eq!(reason(Kind::Counter, "a\nb:1|c", 1.0), Some(DropReason::BadName));
        assert_eq!(reason(Kind::Counter, &"a".repeat(10_000), 1.0), Some(DropReason::TooLong));
        assert_eq!(reason(Kind::Counter, "a", -1.0), Some(DropReason::NegativeIncrement));
        assert_eq!(reason(Kind::Gauge, "a", f64::NAN), Some(DropReason::NotFinite));
        assert_eq!(reason(Kind::Counter, "a", f64::MAX), None);
        assert_eq!(reason(Kind::Counter, "a", f64::MAX), Some(DropReason::NotFinite));
        assert_eq!(reason(Kind::Counter, "b", 1.0), None);
        assert_eq!(reason(Kind::Counter, "c", 1.0), Some(DropReason::ContextLimit));
        let account = table.account();
        assert_eq!((account.called, account.held, account.dropped_total()), (9, 2, 7));
    }

    #[test]
    fn tags_cannot_end_their_section_or_message() {
        assert_eq!(tags(&[("a", "x,y|z\n#:w")]).as_str(), "a:x_y_z_#:w");
        for key in ["", "a:b", "a,b", "a|b", "a\nb", "#a"] {
            assert_eq!(TagText::default().push(key, "v"), Err(DropReason::BadTags), "{key:?}");
        }
    }

    #[test]
    fn a_restored_gauge_does_not_overwrite_a_newer_one_and_counters_add_up() {
        let mut table = Table::new(10, 600);
        let none = TagText::default();
        table.record(Kind::Gauge, "g", &none, 1.0).unwrap();
        table.record(Kind::Counter, "c", &none, 1.0).unwrap();
        let refused = table.take(1347);
        table.record(Kind::Gauge, "g", &none, 2.0).unwrap();
        table.record(Kind::Counter, "c", &none, 2.0).unwrap();
        table.restore(refused);
        assert_eq!(lines(&mut table), ["c:3|c", "g:2|g"]);
        assert_eq!(table.account().held, 4);
    }

    #[test]
    fn the_account_is_reported_once() {
        let mut table = Table::new(10, 600);
        table.record(Kind::Counter, "c", &TagText::default(), -1.0).unwrap_err();
        table.add_report("iris");
        assert_eq!(
            lines(&mut table),
            [
                "cortex_client_calls_total:1|c|#api_name:iris",
                "cortex_client_dropped_total:1|c|#api_name:iris,reason:negative_increment"
            ]
        );
        table.add_report("iris");
        assert_eq!(lines(&mut table), [""; 0]);
    }
}
