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

use super::account::{Account, DropReason, Outcome};
use super::accumulator::Accumulator;
use super::memo::{Identity, Memo, Recognized};

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

/// No datagram is longer: what would make a text of tags longer is refused before it is copied.
const TAGS_BYTES_MAX: usize = 65_536;
/// How many different warnings are remembered.
const WARNINGS_MAX: usize = 1_000;

/// The tags of a call as a datagram has them, `key:value,key:value`; made by pushing, checked on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagText(String);

impl TagText {
    /// No tags, in a buffer that was used before: then pushing allocates nothing.
    pub fn reusing(mut buffer: String) -> Self {
        buffer.clear();
        Self(buffer)
    }

    /// The buffer, for [`TagText::reusing`].
    pub fn into_buffer(self) -> String {
        self.0
    }

    /// Adds a tag. A key must not be empty or hold `:`, `,`, `|`, `#` or control characters. In a value, `,`, `|` and
    /// control characters, which would end it, become `_`. Text that fits into no datagram is [`DropReason::TooLong`].
    pub fn push(&mut self, key: &str, value: &str) -> Result<(), DropReason> {
        if self.0.len() + key.len() + value.len() > TAGS_BYTES_MAX {
            return Err(DropReason::TooLong);
        }
        if key.is_empty() || has_any(key, |c| matches!(c, ':' | ',' | '|' | '#')) {
            return Err(DropReason::BadTags);
        }
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(key);
        self.0.push(':');
        let ends_a_value = |c| matches!(c, ',' | '|');
        if has_any(value, ends_a_value) {
            self.0.extend(value.chars().map(|c| if ends_a_value(c) || c.is_control() { '_' } else { c }));
        } else {
            self.0.push_str(value);
        }
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

    /// Brings the tags into the order of their keys; of equal keys the first stays. The same tags in another order are
    /// the same context.
    pub fn sort(&mut self) {
        let key = |tag: &str| tag.split_once(':').map_or(tag.len(), |(key, _)| key.len());
        let key = |tag| str::get(tag, ..key(tag)).unwrap_or(tag);
        let mut tags = self.0.split(',');
        let mut last = tags.next().map(key);
        if tags.all(|tag| last.replace(key(tag)) < last) {
            return;
        }
        let mut tags: Vec<&str> = self.0.split(',').collect();
        tags.sort_by(|a, b| key(a).cmp(key(b)));
        tags.dedup_by(|later, earlier| key(later) == key(earlier));
        self.0 = tags.join(",");
    }
}

/// Whether `text` holds a control character or one that `is_wanted`. Plain ASCII, the usual case, is told byte by byte.
fn has_any(text: &str, is_wanted: impl Fn(char) -> bool + Copy) -> bool {
    let is_bad = |c: char| is_wanted(c) || c.is_control();
    if text.is_ascii() { text.bytes().any(|b| is_bad(char::from(b))) } else { text.chars().any(is_bad) }
}

/// Whether a datagram can carry `name`, and the table take it. What begins with `_e{` is an event.
fn is_good_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with("_e{") && !has_any(name, |c| matches!(c, ':' | '|' | '@' | '#' | ','))
}

/// Name, kind and tags: what is counted together.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) kind: Kind,
    pub(super) name: Box<str>,
    pub(super) tags: Box<str>,
    /// False for our own account, which must get through when there are too many contexts.
    pub(super) is_limited: bool,
}

impl Context {
    fn is(&self, kind: Kind, name: &str, tags: &str) -> bool {
        self.kind == kind && *self.name == *name && *self.tags == *tags
    }
}

/// What has accumulated in one context, and from how many calls.
#[derive(Debug, Default)]
pub(super) struct Cell {
    pub(super) accumulator: Accumulator,
    pub(super) calls: u64,
}

#[derive(Debug)]
struct Known {
    hash: u64,
    context: Arc<Context>,
}

/// All contexts of a process by their slots, what has accumulated in them since the last flush, and the account of calls.
#[derive(Debug)]
pub(super) struct Table<K> {
    pub(super) memo: Memo<K>,
    /// A context's slot, by the hash of its text.
    slots: HashTable<u32>,
    hasher: RandomState,
    contexts: Vec<Option<Known>>,
    /// Slots whose contexts have left.
    free: Vec<u32>,
    /// Contexts that are new since the last flush.
    news: Vec<(u32, Arc<Context>)>,
    /// Grows when a slot changes hands: what the memo learned before is void.
    epoch: u32,
    /// By slot; shorter than `contexts` until a slot is used.
    cells: Vec<Cell>,
    /// How many of the cells hold something.
    occupied: usize,
    contexts_max: usize,
    context_bytes_max: usize,
    account: Account,
    /// What the collector has been told of the account: calls, and drops by reason.
    reported: Account,
    warned: HashSet<Box<str>>,
    /// True once a call has come: from then on there must be a flusher.
    has_flusher: bool,
    /// Nothing is taken any more.
    is_closed: bool,
}

impl<K> Table<K> {
    pub(super) fn new(contexts_max: usize, context_bytes_max: usize) -> Self {
        Self {
            memo: Memo::default(),
            slots: HashTable::new(),
            hasher: RandomState::default(),
            contexts: Vec::new(),
            free: Vec::new(),
            news: Vec::new(),
            epoch: 0,
            cells: Vec::new(),
            occupied: 0,
            contexts_max,
            context_bytes_max,
            account: Account::default(),
            reported: Account::default(),
            warned: HashSet::new(),
            has_flusher: false,
            is_closed: false,
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
        let taken = if self.is_closed { Err(DropReason::Closed) } else { check(kind, value) };
        let slot = taken.and_then(|()| self.slot(kind, name, tags.as_str(), true));
        let outcome = slot.and_then(|slot| self.add(slot, kind, value));
        self.count(outcome)
    }

    /// One call whose arguments were seen before; `Err` if they were not, with what the memo says of that.
    #[inline]
    pub(super) fn record_known(
        &mut self,
        kind: Kind,
        identity: &Identity,
        value: f64,
    ) -> Result<Result<(), DropReason>, bool> {
        match self.memo.recognize(identity, self.epoch) {
            // The other way is the one that starts a flusher.
            Recognized::Slot(_) if !self.has_flusher => Err(false),
            Recognized::Slot(slot) => {
                let outcome = check(kind, value).and_then(|()| self.add(slot, kind, value));
                Ok(self.count(outcome))
            }
            Recognized::Nothing { is_lesson } => Err(is_lesson),
        }
    }

    /// Remembers by its identity what `record` has just taken.
    pub(super) fn learn(&mut self, kind: Kind, name: &str, tags: &str, identity: Identity, keep: K) -> Option<K> {
        match self.slot(kind, name, tags, true) {
            Ok(slot) => self.memo.learn(identity, slot, self.epoch, keep),
            Err(_) => Some(keep),
        }
    }

    /// Counts a call that was found wrong before it got here.
    pub(super) fn refuse(&mut self, reason: DropReason) {
        self.account.called += 1;
        self.account.drop_calls(reason, 1);
    }

    #[inline]
    fn count(&mut self, outcome: Result<(), DropReason>) -> Result<(), DropReason> {
        self.account.called += 1;
        match outcome {
            Ok(()) => self.account.held += 1,
            Err(reason) => self.account.drop_calls(reason, 1),
        }
        outcome
    }

    #[inline]
    fn add(&mut self, slot: u32, kind: Kind, value: f64) -> Result<(), DropReason> {
        let is_full = self.occupied >= self.contexts_max;
        let cell = self.cell(slot);
        let was_empty = cell.accumulator.is_empty();
        if was_empty && is_full {
            return Err(DropReason::ContextLimit);
        }
        cell.accumulator.add(kind, value)?;
        cell.calls += 1;
        self.occupied += usize::from(was_empty);
        Ok(())
    }

    #[inline]
    fn cell(&mut self, slot: u32) -> &mut Cell {
        let slot = slot as usize;
        if slot >= self.cells.len() {
            self.cells.resize_with(self.contexts.len().max(slot + 1), Cell::default);
        }
        #[allow(clippy::indexing_slicing)] // just made sure of
        &mut self.cells[slot]
    }

    /// The slot of a context, which is made if it is new.
    fn slot(&mut self, kind: Kind, name: &str, tags: &str, is_limited: bool) -> Result<u32, DropReason> {
        let hash = hash_of(&self.hasher, kind, name, tags);
        let known = |slot: &u32| self.contexts.get(*slot as usize).and_then(Option::as_ref);
        let is_it =
            |slot: &u32| known(slot).is_some_and(|known| known.hash == hash && known.context.is(kind, name, tags));
        // As many as one flush may hold wait to be sent, as many were in the last flush, and as many are in this one.
        let is_full = self.occupied >= self.contexts_max || self.slots.len() >= 3 * self.contexts_max;
        match self.slots.entry(hash, is_it, |slot| known(slot).map_or(0, |known| known.hash)) {
            Slot::Occupied(slot) => Ok(*slot.get()),
            Slot::Vacant(vacant) => {
                check_context(name, tags, self.context_bytes_max)?;
                if is_full && is_limited {
                    return Err(DropReason::ContextLimit);
                }
                let slot = self.free.pop().unwrap_or(self.contexts.len() as u32);
                vacant.insert(slot);
                let context = Arc::new(Context { kind, name: name.into(), tags: tags.into(), is_limited });
                self.news.push((slot, Arc::clone(&context)));
                let known = Some(Known { hash, context });
                match self.contexts.get_mut(slot as usize) {
                    Some(place) => *place = known,
                    None => self.contexts.push(known),
                }
                Ok(slot)
            }
        }
    }

    /// Takes what has accumulated, leaving `cells`, which must be empty ones, in its place; and tells which contexts are
    /// new. The contexts stay. This is all that a flush holds up calls for.
    pub(super) fn take(&mut self, cells: Vec<Cell>) -> (Vec<Cell>, Vec<(u32, Arc<Context>)>) {
        self.occupied = 0;
        (std::mem::replace(&mut self.cells, cells), std::mem::take(&mut self.news))
    }

    /// Whether there are so many contexts that those which rest must leave.
    pub(super) fn is_crowded(&self) -> bool {
        self.slots.len() > self.contexts_max
    }

    /// Lets contexts leave, unless they have been used since they were taken; says which have left.
    pub(super) fn evict(&mut self, slots: &[u32]) -> Vec<u32> {
        let mut left = Vec::with_capacity(slots.len());
        for &slot in slots {
            let is_used = self.cells.get(slot as usize).is_some_and(|cell| !cell.accumulator.is_empty());
            let Some(place) = self.contexts.get_mut(slot as usize).filter(|_| !is_used) else { continue };
            let Some(known) = place.take() else { continue };
            if let Ok(entry) = self.slots.find_entry(known.hash, |at| *at == slot) {
                entry.remove();
            }
            if let Some(cell) = self.cells.get_mut(slot as usize) {
                *cell = Cell::default();
            }
            self.free.push(slot);
            left.push(slot);
        }
        if !left.is_empty() {
            self.epoch = self.epoch.wrapping_add(1);
        }
        left
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
        // Not a call: neither counted nor limited.
        let Ok(slot) = self.slot(Kind::Counter, name, tags, false) else { return false };
        self.cell(slot).accumulator.add(Kind::Counter, count as f64).is_ok()
    }

    /// Enters what a flush has done.
    pub(super) fn settle(&mut self, outcome: &Outcome) {
        self.account.settle(outcome);
    }

    /// Nothing is taken any more, and all calls that are held are lost; says how many.
    pub(super) fn close(&mut self, reason: DropReason) -> u64 {
        // What was recognized takes the long way from now on, where this is looked at.
        (self.is_closed, self.has_flusher) = (true, false);
        let calls = self.account.held;
        self.cells = Vec::new();
        self.occupied = 0;
        self.account.held = 0;
        self.account.drop_calls(reason, calls);
        calls
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(super) fn account(&self) -> Account {
        self.account.clone()
    }

    pub(super) fn is_first_warning(&mut self, key: &str) -> bool {
        self.warned.len() < WARNINGS_MAX && self.warned.insert(key.into())
    }
}

/// Whether a call can be taken at all: what every call is checked for, without a client.
///
/// # Errors
/// The reason for which it would be dropped. `context_bytes_max` is [`ClientConfig::context_bytes_max`](super::ClientConfig).
pub fn check_call(
    kind: Kind,
    name: &str,
    tags: &TagText,
    value: f64,
    context_bytes_max: usize,
) -> Result<(), DropReason> {
    check(kind, value).and_then(|()| check_context(name, tags.as_str(), context_bytes_max))
}

fn check_context(name: &str, tags: &str, bytes_max: usize) -> Result<(), DropReason> {
    if !is_good_name(name) {
        Err(DropReason::BadName)
    } else if name.len() + tags.len() > bytes_max {
        Err(DropReason::TooLong)
    } else {
        Ok(())
    }
}

/// Whether a value can be taken at all.
fn check(kind: Kind, value: f64) -> Result<(), DropReason> {
    if !value.is_finite() {
        Err(DropReason::NotFinite)
    } else if kind == Kind::Counter && value < 0.0 {
        Err(DropReason::NegativeIncrement)
    } else {
        Ok(())
    }
}

fn hash_of(hasher: &RandomState, kind: Kind, name: &str, tags: &str) -> u64 {
    let mut state = hasher.build_hasher();
    name.hash(&mut state);
    tags.hash(&mut state);
    state.write_u8(kind as u8);
    state.finish()
}

#[cfg(test)]
mod tests {
    use super::super::backlog::Backlog;
    use super::*;

    fn table(contexts_max: usize) -> Table<()> {
        Table::new(contexts_max, 600)
    }

    /// What a flush would send, sorted.
    fn lines(table: &mut Table<()>, backlog: &mut Backlog) -> Vec<String> {
        let (cells, news) = table.take(std::mem::take(&mut backlog.spare));
        assert!(backlog.add(cells, news).is_empty());
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(next) = backlog.take_next(at, 1347, |piece| pieces.push(piece)) {
            at = next;
        }
        let mut lines: Vec<String> = pieces
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
        let (mut table, mut backlog) = (table(10), Backlog::new(10));
        let v1 = tags(&[("model", "v1")]);
        for value in [1.0, 2.0, 3.0] {
            table.record(Kind::Counter, "c", &v1, value).unwrap();
            table.record(Kind::Gauge, "g", &v1, value).unwrap();
            table.record(Kind::Histogram, "h", &TagText::default(), value).unwrap();
        }
        assert_eq!(lines(&mut table, &mut backlog), ["c:6|c|#model:v1", "g:3|g|#model:v1", "h:1:2:3|h"]);
        assert_eq!(lines(&mut table, &mut backlog), [""; 0], "what was taken is not sent again");
    }

    #[test]
    fn what_a_datagram_cannot_carry_is_dropped_for_its_reason() {
        let mut table = table(2);
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
    fn tags_in_another_order_are_the_same_and_the_first_of_equal_keys_stays() {
        for (pairs, sorted) in [
            (&[("b", "2"), ("a", "1")][..], "a:1,b:2"),
            (&[("a", "1"), ("b", "2")], "a:1,b:2"),
            (&[("b", "1"), ("a", "x"), ("b", "2")], "a:x,b:1"),
            (&[("a", "2"), ("a", "1")], "a:2"),
            (&[("a-b", "1"), ("a", "3:4")], "a:3:4,a-b:1"),
            (&[], ""),
        ] {
            let mut tags = tags(pairs);
            tags.sort();
            assert_eq!(tags.as_str(), sorted);
        }
    }

    #[test]
    fn a_text_of_tags_that_no_datagram_holds_is_not_copied() {
        let mut tags = TagText::default();
        assert_eq!(tags.push("key", &"v".repeat(1 << 20)), Err(DropReason::TooLong));
        assert!(tags.into_buffer().capacity() < TAGS_BYTES_MAX);
    }

    #[test]
    fn a_sum_that_only_its_rest_takes_beyond_a_double_is_refused() {
        let (mut table, mut backlog) = (table(10), Backlog::new(10));
        let none = TagText::default();
        table.record(Kind::Counter, "c", &none, f64::MAX).unwrap();
        let refused = (0..30).filter(|_| table.record(Kind::Counter, "c", &none, 9e291).is_err()).count();
        assert!(refused > 0);
        assert_eq!(lines(&mut table, &mut backlog), ["c:1.7976931348623157e308|c"]);
    }

    #[test]
    fn what_comes_after_the_end_is_dropped_and_counted() {
        let mut table = table(10);
        table.record(Kind::Counter, "c", &TagText::default(), 1.0).unwrap();
        assert_eq!(table.close(DropReason::Closed), 1);
        assert_eq!(table.record(Kind::Counter, "c", &TagText::default(), 1.0), Err(DropReason::Closed));
        let account = table.account();
        assert_eq!((account.called, account.held, account.dropped_total()), (2, 0, 2));
    }

    #[test]
    fn the_account_is_reported_once() {
        let (mut table, mut backlog) = (table(10), Backlog::new(10));
        table.record(Kind::Counter, "c", &TagText::default(), -1.0).unwrap_err();
        table.add_report("iris");
        assert_eq!(
            lines(&mut table, &mut backlog),
            [
                "cortex_client_calls_total:1|c|#api_name:iris",
                "cortex_client_dropped_total:1|c|#api_name:iris,reason:negative_increment"
            ]
        );
        table.add_report("iris");
        assert_eq!(lines(&mut table, &mut backlog), [""; 0]);
    }

    fn identity(address: usize) -> Identity {
        let mut identity = Identity::new(0);
        assert!(identity.push(address));
        identity
    }

    #[test]
    fn what_was_learned_counts_in_its_context_until_the_context_leaves() {
        let (mut table, mut backlog) = (table(10), Backlog::new(10));
        assert_eq!(table.record_known(Kind::Counter, &identity(1), 1.0), Err(false), "nobody knows it");
        table.record(Kind::Counter, "c", &TagText::default(), 1.0).unwrap();
        table.learn(Kind::Counter, "c", "", identity(1), ());
        assert_eq!(table.record_known(Kind::Counter, &identity(1), 1.0), Err(false), "there is no flusher");
        assert!(table.wants_flusher());
        assert_eq!(table.record_known(Kind::Counter, &identity(1), 1.0), Ok(Ok(())));
        assert_eq!(table.record_known(Kind::Counter, &identity(1), -1.0), Ok(Err(DropReason::NegativeIncrement)));
        assert_eq!(table.evict(&[0]), [0; 0], "it holds something");
        assert_eq!(lines(&mut table, &mut backlog), ["c:2|c"]);
        assert_eq!(table.evict(&[0]), [0]);
        backlog.forget(&[0]);
        table.record(Kind::Gauge, "g", &TagText::default(), 5.0).unwrap();
        assert_eq!(table.record_known(Kind::Counter, &identity(1), 1.0), Err(true), "its slot is another's");
        assert_eq!(lines(&mut table, &mut backlog), ["g:5|g"]);
    }

    #[test]
    fn contexts_are_limited_by_flush_and_those_that_rest_make_room() {
        let (mut table, mut backlog) = (table(100), Backlog::new(100));
        let none = TagText::default();
        for flush in 0..50 {
            for i in 0..100 {
                table.record(Kind::Counter, &format!("c{flush}_{i}"), &none, 1.0).unwrap();
            }
            assert_eq!(table.record(Kind::Counter, "more", &none, 1.0), Err(DropReason::ContextLimit));
            // Our own account comes on top: it takes nobody's room.
            table.add_report("iris");
            assert_eq!(lines(&mut table, &mut backlog).len(), 102, "flush {flush}");
            let resting = backlog.resting(table.is_crowded());
            let left = table.evict(&resting);
            backlog.forget(&left);
        }
        assert!(table.contexts.len() <= 300, "{} slots", table.contexts.len());
    }
}
