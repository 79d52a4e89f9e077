//! A shard: what one ingest thread holds for itself.
//!
//! A message finds its series by the raw bytes around its value, one hash look-up: what the sections say was read when
//! they came for the first time. What a counter or a histogram gets is added up here, where no other thread comes, until the
//! recorder takes it: sums do not depend on their order. Values of histograms first wait until there are some thousand.
//! Whatever does depend on the order of the messages of one sender (gauges, sets, headers, new series, refusals) becomes
//! an [`Op`], and those are applied to the registry batch after batch.

use std::borrow::Cow;
use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::registry::{DROPPED, Refusal, Resolved, Usage, timer_factor};
use crate::dogstatsd::{
    DecodeError, GaugeMinus, HEADER_NAME, Header, Message, MessageType, MessageValue, Tally, decode,
};
use crate::model::ExponentialHistogram;

/// So many spellings of names and tags are remembered for each series that there may be; then they are learned anew.
const ROUTES_PER_SERIES: usize = 2;
/// So many bytes of histograms are gathered in a shard; then they are handed over before the recorder asks. A series comes in
/// any number of spellings, and each has a histogram of its own.
const GATHERED_BYTES_MAX: usize = 8 << 20;
/// Values of histograms wait until they are so many, then they are recorded, one histogram after the other. A histogram is rarely
/// in the processor's caches when a value of it comes: recorded at once, each costs more than all else that its message does.
const PENDING_MAX: usize = 4096;
/// No value that is gathered is larger, nor any count: then what is gathered fits into every total that is finite, be it the largest
/// double there is, and nothing is refused because of what came beside it. A larger one goes to the registry by itself.
const GATHERED_MAX: f64 = 1e100;
/// The bytes of these spellings, for each series that there may be, in all shards together.
const ROUTE_BYTES_PER_SERIES: usize = 512;

/// A [`Route`] finds no key beyond.
const KEYS_MAX: usize = 1 << 31;

/// What must happen in the order of the datagrams.
#[derive(Debug)]
pub(super) enum Op<'a> {
    /// The messages that follow are of this sender; `None`: of one that does not name itself.
    From(Option<Header>),
    /// A series changes by what cannot be gathered.
    Apply { at: u32, effect: Effect, line: &'a [u8] },
    /// The raw bytes are new.
    Unrouted { message: Message<'a>, line: &'a [u8] },
}

/// Messages of a batch that cannot be used, for one reason; their order means nothing.
#[derive(Debug)]
pub(super) struct Drops<'a> {
    pub(super) why: Why,
    pub(super) count: u64,
    /// The first of them.
    pub(super) line: &'a [u8],
}

/// Why a message is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Why {
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the datagram is too long, its last message was cut off")]
    Truncated,
    #[error("the source sends more datagrams a second than --source-limit")]
    SourceLimit,
}

impl Why {
    /// The word for it in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable(error) => error.as_str(),
            Self::Refused(refusal) => refusal.as_str(),
            Self::Truncated => "truncated",
            Self::SourceLimit => "source_limit",
        }
    }
}

/// What all values of a message do to a gauge or a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Write {
    /// The gauge is set.
    Set(f64),
    /// The gauge is changed by that.
    Change(f64),
    /// The set gets a member, given by its hash.
    Member(u64),
}

/// What a batch of datagrams held, beside what went into the slots.
#[derive(Debug, Default)]
pub(super) struct Batch<'a> {
    pub(super) ops: Vec<Op<'a>>,
    pub(super) datagrams: u64,
    pub(super) messages: u64,
    pub(super) tallies: Vec<Tally<'a>>,
    pub(super) drops: Vec<Drops<'a>>,
}

impl<'a> Batch<'a> {
    fn drop(&mut self, why: Why, line: &'a [u8]) {
        // There are few reasons.
        match self.drops.iter_mut().find(|drops| drops.why.as_str() == why.as_str()) {
            Some(drops) => drops.count += 1,
            None => self.drops.push(Drops { why, count: 1, line }),
        }
    }
}

/// What was gathered for a series since the recorder took it last.
#[derive(Debug)]
pub(super) enum Gathered {
    Count(f64),
    Values(Box<ExponentialHistogram>),
}

/// Where a message goes. It has the place of the key beside that of the slot, so that nobody waits for one to look at the other.
#[derive(Debug, Clone, Copy)]
struct Route {
    slot: u32,
    key_at: u32,
}

/// All that a message of a known series changes, half a line of the processor's cache.
#[derive(Debug)]
#[repr(align(32))]
struct Slot {
    /// What a counter has gathered.
    sum: f64,
    /// What the mapping file multiplies values by.
    scale: f64,
    /// The place of the series in the registry.
    at: u32,
    /// How many messages it has gathered.
    messages: u32,
    /// Which of the shard's histograms has what it has gathered, or [`NO_HISTOGRAM`].
    histogram: u32,
    kind: MessageType,
    /// How many tags of each message fall away.
    tags_dropped: u8,
}

const NO_HISTOGRAM: u32 = u32::MAX;

/// What a shard gathered for one series.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) at: u32,
    pub(super) messages: u64,
    pub(super) gathered: Gathered,
}

/// What one message comes to, apart from any slot.
#[derive(Debug)]
pub(super) enum Effect {
    Gather(Gathered),
    Write(Write),
}

/// One ingest thread's own.
#[derive(Debug)]
pub struct Shard {
    /// By their keys.
    routes: HashTable<Route>,
    hasher: RandomState,
    /// The keys, one after the other in few pages of memory: what is spread costs more to look up than all the rest. Each
    /// is the lengths of two texts, and these: the name, and what follows the value, `type|#tags` and whatever else does not
    /// differ from message to message.
    keys: Vec<u8>,
    /// The same in all shards: members of a set must meet.
    member_hasher: foldhash::quality::RandomState,
    slots: Vec<Slot>,
    changed: Vec<u32>,
    histograms: Vec<ExponentialHistogram>,
    /// Values that are not in their slots yet, each with the number of its slot.
    pending: Vec<(u32, f64)>,
    /// What the histograms take.
    gathered_bytes: usize,
    /// Tags that fell away since somebody asked.
    tags_dropped: u64,
    gauge_minus: GaugeMinus,
    series_max: usize,
}

impl Shard {
    pub(super) fn new(
        gauge_minus: GaugeMinus,
        member_hasher: foldhash::quality::RandomState,
        series_max: usize,
    ) -> Self {
        Self {
            routes: HashTable::new(),
            hasher: RandomState::default(),
            member_hasher,
            keys: Vec::new(),
            slots: Vec::new(),
            changed: Vec::new(),
            histograms: Vec::new(),
            pending: Vec::new(),
            gathered_bytes: 0,
            tags_dropped: 0,
            gauge_minus,
            series_max,
        }
    }

    /// Reads one datagram: what can be gathered is, the rest goes into the batch.
    pub(super) fn datagram<'a>(&mut self, datagram: &'a [u8], batch: &mut Batch<'a>) {
        batch.datagrams += 1;
        let mut messages = decode(datagram).with_gauge_minus(self.gauge_minus);
        let before = batch.ops.len();
        let push = |batch: &mut Batch<'a>, line: &'a [u8], op: Result<Option<Op<'a>>, Why>| match op {
            Ok(None) => {}
            Ok(Some(op)) => {
                if batch.ops.len() == before && !matches!(op, Op::From(_)) {
                    batch.ops.push(Op::From(None));
                }
                batch.ops.push(op);
            }
            Err(why) => batch.drop(why, line),
        };
        while messages.next_line() {
            let line = messages.line();
            if let Some(plain) = messages.plain()
                && let Some(slot) = self.find(plain.name, plain.sections)
                && let Some(kind) = self.slots.get(slot as usize).map(|slot| slot.kind)
            {
                batch.messages += 1;
                let op = self.known(slot, &plain.message(kind), line);
                push(batch, line, op);
                continue;
            }
            while let Some(message) = messages.next_of_line() {
                batch.messages += 1;
                let op = match message {
                    // Never a series: what is routed is not looked at for what it says.
                    Ok(message) if message.name == HEADER_NAME.as_bytes() => {
                        header_of(&message).map(|header| Some(Op::From(Some(header)))).ok_or(Refusal::BadHeader.into())
                    }
                    Ok(message) => self.message(message, line),
                    Err(error) => Err(error.into()),
                };
                push(batch, line, op);
            }
        }
        let tally = messages.tally();
        if tally != Tally::default() {
            batch.tallies.push(tally);
        }
    }

    /// Reads a datagram whose end did not fit into the buffer: all messages but the last.
    pub(super) fn truncated_datagram<'a>(&mut self, datagram: &'a [u8], batch: &mut Batch<'a>) {
        let end = datagram.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        let (whole, cut) = datagram.split_at(end);
        self.datagram(whole, batch);
        batch.messages += 1;
        batch.drop(Why::Truncated, cut);
    }

    /// Reads of a datagram whose source has sent too many who sent it, and counts the rest by lines: nothing else of it is looked at.
    pub(super) fn datagram_beyond_limit<'a>(datagram: &'a [u8], batch: &mut Batch<'a>) {
        batch.datagrams += 1;
        let mut rest = datagram;
        if datagram.starts_with(HEADER_NAME.as_bytes())
            && let Some(Ok(message)) = decode(datagram).next()
            && let Some(header) = header_of(&message).filter(|_| message.name == HEADER_NAME.as_bytes())
        {
            batch.messages += 1;
            batch.ops.push(Op::From(Some(header)));
            let end = memchr::memchr(b'\n', datagram).map_or(datagram.len(), |newline| newline + 1);
            rest = datagram.get(end..).unwrap_or_default();
        }
        let (mut lines, mut first, mut begin) = (0, rest, 0);
        for end in memchr::memchr_iter(b'\n', rest).chain([rest.len()]) {
            if end > begin {
                if lines == 0 {
                    first = rest.get(begin..end).unwrap_or_default();
                }
                lines += 1;
            }
            begin = end + 1;
        }
        batch.messages += lines;
        if lines > 0 {
            batch.drops.push(Drops { why: Why::SourceLimit, count: lines, line: first });
        }
    }

    fn message<'a>(&mut self, message: Message<'a>, line: &'a [u8]) -> Result<Option<Op<'a>>, Why> {
        match self.find(message.name, &sections_of(&message)) {
            Some(slot) => self.known(slot, &message, line),
            None => Ok(Some(Op::Unrouted { message, line })),
        }
    }

    #[inline]
    fn known<'a>(&mut self, slot: u32, message: &Message<'a>, line: &'a [u8]) -> Result<Option<Op<'a>>, Why> {
        let apart = self.add(slot, message)?;
        Ok(apart.map(|(at, effect)| Op::Apply { at, effect, line }))
    }

    #[inline]
    fn find(&self, name: &[u8], sections: &[u8]) -> Option<u32> {
        let hash = hash_of(&self.hasher, name, sections);
        let is_it = |route: &Route| key_at(&self.keys, *route) == Some((name, sections));
        Some(self.routes.find(hash, is_it)?.slot)
    }

    /// Adds all values of a message, or none; what cannot be gathered is returned.
    #[inline]
    fn add(&mut self, number: u32, message: &Message<'_>) -> Result<Option<(u32, Effect)>, Refusal> {
        let apart = self.add_values(number, message)?;
        self.tags_dropped += self.slots.get(number as usize).map_or(0, |slot| u64::from(slot.tags_dropped));
        Ok(apart)
    }

    #[inline]
    fn add_values(&mut self, number: u32, message: &Message<'_>) -> Result<Option<(u32, Effect)>, Refusal> {
        let Self { slots, changed, histograms, pending, gathered_bytes, .. } = self;
        let Some(slot) = slots.get_mut(number as usize) else { return Ok(None) };
        let scale = slot.scale;
        match Usage::of(slot.kind) {
            _ if slot.at == DROPPED => return Err(Refusal::MappedDrop),
            Usage::Counter => {
                let count = count_of(message, scale)?;
                if count > GATHERED_MAX {
                    return Ok(Some((slot.at, Effect::Gather(Gathered::Count(count)))));
                }
                slot.sum += count;
            }
            Usage::Histogram => {
                if let Some(value) = pending_of(message, scale) {
                    pending.push((number, value));
                    return Ok(None);
                }
                if values_of(message, scale)? > GATHERED_MAX {
                    return Ok(Some((slot.at, Effect::Gather(histogram_of(message, scale)))));
                }
                slot.record(histograms, gathered_bytes, |histogram| record_all(histogram, message, scale));
            }
            Usage::Gauge => return Ok(Some((slot.at, Effect::Write(write_of(message, scale)?)))),
            Usage::Set => {
                let hash = self.member_hasher.hash_one(message.member().unwrap_or_default());
                return Ok(Some((slot.at, Effect::Write(Write::Member(hash)))));
            }
        }
        slot.count_messages(number, 1, changed);
        Ok(None)
    }

    /// Whether it is time to [`Shard::settle`].
    pub(super) fn is_due(&self) -> bool {
        self.pending.len() >= PENDING_MAX || self.is_heavy()
    }

    /// Records the values that wait, and gives away what is gathered as soon as it is too much to keep.
    pub(super) fn settle(&mut self, mut give: impl FnMut(Vec<Part>)) {
        self.record_pending(GATHERED_BYTES_MAX);
        while self.is_heavy() {
            give(self.take_recorded());
            self.record_pending(GATHERED_BYTES_MAX);
        }
    }

    /// Brings values that wait into their slots, all of a slot together, until so much is gathered.
    fn record_pending(&mut self, bytes_max: usize) {
        let Self { slots, pending, changed, histograms, gathered_bytes, .. } = self;
        pending.sort_unstable_by_key(|(slot, _)| *slot);
        while *gathered_bytes < bytes_max
            && let Some((number, _)) = pending.last().copied()
        {
            let from = pending.iter().rposition(|(slot, _)| *slot != number).map_or(0, |before| before + 1);
            let values = pending.drain(from..);
            let Some(slot) = slots.get_mut(number as usize) else { continue };
            slot.count_messages(number, values.len() as u32, changed);
            slot.record(histograms, gathered_bytes, |histogram| {
                values.for_each(|(_, value)| histogram.record(value, 1.0));
            });
        }
    }

    /// Adds a message whose series is known and remembers the way there.
    pub(super) fn route(&mut self, message: &Message<'_>, resolved: Resolved) -> Result<Option<Effect>, Refusal> {
        let sections = sections_of(message);
        // An earlier message of the same batch may have been the first.
        let slot = self.find(message.name, &sections).unwrap_or_else(|| {
            let route = Route { slot: self.slots.len() as u32, key_at: self.keys.len() as u32 };
            let Resolved { at, scale, tags_dropped, .. } = resolved;
            let (histogram, kind) = (NO_HISTOGRAM, message.kind);
            self.slots.push(Slot { sum: 0.0, scale, at, messages: 0, histogram, kind, tags_dropped });
            for text in [message.name, &sections] {
                self.keys.extend_from_slice(&(text.len() as u16).to_ne_bytes()); // a datagram is shorter than that
            }
            self.keys.extend_from_slice(message.name);
            self.keys.extend_from_slice(&sections);
            let Self { routes, hasher, keys, .. } = self;
            routes.insert_unique(hash_of(hasher, message.name, &sections), route, |route| {
                let (name, sections) = key_at(keys, *route).unwrap_or_default();
                hash_of(hasher, name, sections)
            });
            route.slot
        });
        Ok(self.add(slot, message)?.map(|(_, effect)| effect))
    }

    /// What a message comes to whose way is not remembered.
    pub(super) fn effect_of(&self, message: &Message<'_>, scale: f64) -> Result<Effect, Refusal> {
        Ok(match Usage::of(message.kind) {
            Usage::Counter => Effect::Gather(Gathered::Count(count_of(message, scale)?)),
            Usage::Histogram => {
                values_of(message, scale)?;
                Effect::Gather(histogram_of(message, scale))
            }
            Usage::Gauge => Effect::Write(write_of(message, scale)?),
            Usage::Set => {
                Effect::Write(Write::Member(self.member_hasher.hash_one(message.member().unwrap_or_default())))
            }
        })
    }

    /// Counts tags that fell away from a message whose way is not remembered.
    pub(super) fn drop_tags(&mut self, tags: u8) {
        self.tags_dropped += u64::from(tags);
    }

    /// How many fell away since this was asked.
    pub(super) fn take_tags_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.tags_dropped)
    }

    /// Whether so many spellings are remembered that they must be learned anew, where there are so many shards.
    pub(super) fn is_full(&self, shards: usize) -> bool {
        self.slots.len() >= ROUTES_PER_SERIES * self.series_max.max(1024)
            || self.keys.len() >= (ROUTE_BYTES_PER_SERIES * self.series_max.max(1024) / shards.max(1)).min(KEYS_MAX)
    }

    /// Whether nothing is remembered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.slots.is_empty()
    }

    /// Whether so much is gathered that it must be taken at once.
    fn is_heavy(&self) -> bool {
        self.gathered_bytes >= GATHERED_BYTES_MAX
    }

    #[cfg(test)]
    pub(super) fn key_bytes(&self) -> usize {
        self.keys.len()
    }

    /// What the histograms take, added up anew.
    #[cfg(test)]
    pub(super) fn histogram_bytes(&self) -> usize {
        self.histograms.iter().map(ExponentialHistogram::bytes).sum()
    }

    /// Takes what was gathered.
    pub(super) fn take(&mut self) -> Vec<Part> {
        self.record_pending(usize::MAX);
        self.take_recorded()
    }

    fn take_recorded(&mut self) -> Vec<Part> {
        self.gathered_bytes = 0;
        let Self { changed, slots, histograms, .. } = self;
        let part = |slot: u32| {
            let slot = slots.get_mut(slot as usize)?;
            let gathered = match histograms.get_mut(std::mem::replace(&mut slot.histogram, NO_HISTOGRAM) as usize) {
                Some(histogram) => Gathered::Values(Box::new(std::mem::take(histogram))),
                None => Gathered::Count(std::mem::take(&mut slot.sum)),
            };
            Some(Part { at: slot.at, messages: u64::from(std::mem::take(&mut slot.messages)), gathered })
        };
        let parts = changed.drain(..).filter_map(part).collect();
        *histograms = Vec::new();
        parts
    }

    /// Takes what was gathered and forgets all ways: once the registry has it, places there may be given to other series.
    pub(super) fn clear(&mut self) -> Vec<Part> {
        let parts = self.take();
        self.routes = HashTable::new();
        self.slots = Vec::new();
        self.keys = Vec::new();
        parts
    }
}

impl Slot {
    /// Lets something be recorded in its histogram, and keeps the account of what such take.
    fn record(
        &mut self,
        histograms: &mut Vec<ExponentialHistogram>,
        gathered_bytes: &mut usize,
        record: impl FnOnce(&mut ExponentialHistogram),
    ) {
        let mut before = 0;
        if self.histogram == NO_HISTOGRAM {
            self.histogram = histograms.len() as u32;
            histograms.push(ExponentialHistogram::default());
        } else {
            before = histograms.get(self.histogram as usize).map_or(0, ExponentialHistogram::bytes);
        }
        let Some(histogram) = histograms.get_mut(self.histogram as usize) else { return };
        record(histogram);
        // It may get smaller when it gets coarser.
        *gathered_bytes = (*gathered_bytes + histogram.bytes()).saturating_sub(before);
    }

    /// Counts messages in what is gathered in it, the slot of that number.
    #[inline]
    fn count_messages(&mut self, number: u32, messages: u32, changed: &mut Vec<u32>) {
        if self.messages == 0 {
            changed.push(number);
        }
        self.messages = self.messages.saturating_add(messages);
    }
}

/// The name and the sections of a route.
#[inline]
fn key_at(keys: &[u8], route: Route) -> Option<(&[u8], &[u8])> {
    let ([a, b, c, d], rest) = keys.get(route.key_at as usize..)?.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(usize::from(u16::from_ne_bytes([*a, *b])))?;
    Some((name, rest.get(..usize::from(u16::from_ne_bytes([*c, *d])))?))
}

#[inline]
fn hash_of(hasher: &RandomState, name: &[u8], sections: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(name);
    hasher.write(sections);
    hasher.finish()
}

/// What stands for all messages of this name, type and tags.
fn sections_of<'a>(message: &Message<'a>) -> Cow<'a, [u8]> {
    if !message.sections.is_empty() {
        return message.sections.into();
    }
    let kind = message.kind.as_str().as_bytes();
    if message.tags.is_empty() { kind.into() } else { [kind, b"|#", message.tags].concat().into() }
}

/// What a message adds to a counter.
fn count_of(message: &Message<'_>, scale: f64) -> Result<f64, Refusal> {
    let mut amount = 0.0;
    for value in message.values() {
        let (MessageValue::Absolute(value) | MessageValue::Delta(value)) = value;
        let value = value * scale;
        if value < 0.0 {
            return Err(Refusal::NegativeCounter);
        }
        amount += value * message.weight;
    }
    if amount.is_finite() { Ok(amount) } else { Err(Refusal::NotFinite) }
}

fn write_of(message: &Message<'_>, scale: f64) -> Result<Write, Refusal> {
    let write = message.values().fold(Write::Change(0.0), |write, value| match (write, value) {
        (_, MessageValue::Absolute(value)) => Write::Set(value * scale),
        (Write::Set(before), MessageValue::Delta(delta)) => Write::Set(before + delta * scale),
        (Write::Change(before), MessageValue::Delta(delta)) => Write::Change(before + delta * scale),
        (Write::Member(_), MessageValue::Delta(_)) => write,
    });
    match write {
        Write::Set(amount) | Write::Change(amount) if !amount.is_finite() => Err(Refusal::NotFinite),
        _ => Ok(write),
    }
}

/// The value of a message of a histogram that has one and no rate, unless it is enormous.
#[inline]
fn pending_of(message: &Message<'_>, scale: f64) -> Option<f64> {
    let value = message.single().filter(|_| message.weight == 1.0)? * (timer_factor(message.kind) * scale);
    (value.abs() <= GATHERED_MAX).then_some(value)
}

/// The most that a message adds to count or sum of a histogram, timers in milliseconds and none of its values against another.
fn values_of(message: &Message<'_>, scale: f64) -> Result<f64, Refusal> {
    let (mut count, mut sum) = (0.0_f64, 0.0);
    for value in message.values() {
        let (MessageValue::Absolute(value) | MessageValue::Delta(value)) = value;
        count += message.weight;
        sum += (value * scale).abs() * message.weight;
    }
    let most = count.max(sum);
    if most.is_finite() { Ok(most) } else { Err(Refusal::NotFinite) }
}

fn histogram_of(message: &Message<'_>, scale: f64) -> Gathered {
    let mut histogram = Box::default();
    record_all(&mut histogram, message, scale);
    Gathered::Values(histogram)
}

fn record_all(histogram: &mut ExponentialHistogram, message: &Message<'_>, scale: f64) {
    let factor = timer_factor(message.kind) * scale;
    for value in message.values() {
        let (MessageValue::Absolute(value) | MessageValue::Delta(value)) = value;
        histogram.record(value * factor, message.weight);
    }
}

/// Whether a message may be taken at all, whatever its series holds.
pub(super) fn check(message: &Message<'_>, usage: Usage, scale: f64) -> Result<(), Refusal> {
    match usage {
        Usage::Counter => count_of(message, scale).map(drop),
        Usage::Gauge => write_of(message, scale).map(drop),
        Usage::Histogram => values_of(message, scale).map(drop),
        Usage::Set => Ok(()),
    }
}

fn header_of(message: &Message<'_>) -> Option<Header> {
    if message.kind != MessageType::Gauge {
        return None;
    }
    let mut values = message.values();
    match (values.next()?, values.next()) {
        (MessageValue::Absolute(sequence), None) => Header::decode(sequence, message.tags),
        _ => None,
    }
}
