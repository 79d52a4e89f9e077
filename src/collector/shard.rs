//! A shard: what one ingest thread holds for itself.
//!
//! A message finds its series by the raw bytes of its type, name and tags, one hash look-up. What a counter or a histogram
//! gets is added up here, where no other thread comes, until the recorder takes it: sums do not depend on their order.
//! Whatever does depend on the order of the messages of one sender (gauges, sets, headers, new series, refusals) becomes
//! an [`Op`], and those are applied to the registry batch after batch.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::registry::{DROPPED, Refusal, Registry, Resolved, Usage, timer_factor};
use crate::dogstatsd::{
    DecodeError, GaugeMinus, HEADER_NAME, Header, Message, MessageType, MessageValue, Tally, decode,
};
use crate::model::ExponentialHistogram;

/// So many spellings of names and tags are remembered for each series that there may be; then they are learned anew.
const ROUTES_PER_SERIES: usize = 2;
/// The bytes of these spellings, for each series that there may be.
const ROUTE_BYTES_PER_SERIES: usize = 512;

/// What must happen in the order of the datagrams.
#[derive(Debug)]
pub(super) enum Op<'a> {
    /// The messages that follow are of this sender; `None`: of one that does not name itself.
    From(Option<Header>),
    /// A gauge or a set is written.
    Write { at: u32, write: Write, line: &'a [u8] },
    /// The raw bytes are new.
    Unrouted { message: Message<'a>, usage: Usage, line: &'a [u8] },
    /// A message cannot be used.
    Drop { why: Why, line: &'a [u8] },
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
}

impl Why {
    /// The word for it in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable(error) => error.as_str(),
            Self::Refused(refusal) => refusal.as_str(),
            Self::Truncated => "truncated",
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
}

/// What a slot has gathered since the recorder took it last.
#[derive(Debug)]
pub(super) enum Gathered {
    /// Nothing yet, or nothing ever: gauges and sets are not gathered.
    Nothing,
    Count(f64),
    Values(Box<ExponentialHistogram>),
}

#[derive(Debug)]
struct Slot {
    /// The place of the series in the registry.
    at: u32,
    usage: Usage,
    /// What the mapping file multiplies values by.
    scale: f64,
    /// How many messages are in `gathered`.
    messages: u64,
    gathered: Gathered,
}

#[derive(Debug)]
struct Route {
    /// Type, name, `|`, tags.
    key: Box<[u8]>,
    slot: u32,
}

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
    routes: HashTable<Route>,
    hasher: RandomState,
    /// The same in all shards: members of a set must meet.
    member_hasher: foldhash::quality::RandomState,
    key_bytes: usize,
    slots: Vec<Slot>,
    changed: Vec<u32>,
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
            key_bytes: 0,
            slots: Vec::new(),
            changed: Vec::new(),
            gauge_minus,
            series_max,
        }
    }

    /// Reads one datagram: what can be gathered is, the rest goes into the batch.
    pub(super) fn datagram<'a>(&mut self, datagram: &'a [u8], batch: &mut Batch<'a>) {
        batch.datagrams += 1;
        let mut messages = decode(datagram).with_gauge_minus(self.gauge_minus);
        let before = batch.ops.len();
        while let Some(message) = messages.next() {
            batch.messages += 1;
            let op = match message {
                Ok(message) => match header_of(&message) {
                    Some(header) => Some(Op::From(Some(header))),
                    None => self.message(message, messages.line()),
                },
                Err(error) => Some(Op::Drop { why: error.into(), line: messages.line() }),
            };
            if let Some(op) = op {
                if batch.ops.len() == before && !matches!(op, Op::From(_)) {
                    batch.ops.push(Op::From(None));
                }
                batch.ops.push(op);
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
        batch.ops.push(Op::Drop { why: Why::Truncated, line: cut });
    }

    fn message<'a>(&mut self, message: Message<'a>, line: &'a [u8]) -> Option<Op<'a>> {
        let usage = Usage::of(message.kind);
        let hash = self.hash(usage, &message);
        let Some(route) = self.routes.find(hash, |route| is_key_of(&route.key, usage, &message)) else {
            return Some(Op::Unrouted { message, usage, line });
        };
        let slot = route.slot;
        match self.add(slot, &message) {
            Ok(None) => None,
            Ok(Some((at, write))) => Some(Op::Write { at, write, line }),
            Err(refusal) => Some(Op::Drop { why: refusal.into(), line }),
        }
    }

    fn hash(&self, usage: Usage, message: &Message<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(message.name);
        hasher.write_u8(usage as u8);
        hasher.write(message.tags);
        hasher.finish()
    }

    /// Adds all values of a message, or none; what cannot be gathered is returned.
    fn add(&mut self, slot: u32, message: &Message<'_>) -> Result<Option<(u32, Write)>, Refusal> {
        let Self { slots, changed, member_hasher, .. } = self;
        let number = slot;
        let Some(slot) = slots.get_mut(slot as usize) else { return Ok(None) };
        let scale = slot.scale;
        match slot.usage {
            _ if slot.at == DROPPED => return Err(Refusal::MappedDrop),
            Usage::Counter => {
                let amount = count_of(message, scale)?;
                match &mut slot.gathered {
                    Gathered::Count(sum) if !(*sum + amount).is_finite() => return Err(Refusal::NotFinite),
                    Gathered::Count(sum) => *sum += amount,
                    gathered => *gathered = Gathered::Count(amount),
                }
            }
            Usage::Histogram => {
                check_values(message, scale)?;
                if matches!(slot.gathered, Gathered::Nothing) {
                    slot.gathered = Gathered::Values(Box::default());
                }
                if let Gathered::Values(histogram) = &mut slot.gathered {
                    record_all(histogram, message, scale);
                }
            }
            Usage::Gauge => return Ok(Some((slot.at, write_of(message, scale)?))),
            Usage::Set => {
                let hash = member_hasher.hash_one(message.member().unwrap_or_default());
                return Ok(Some((slot.at, Write::Member(hash))));
            }
        }
        if slot.messages == 0 {
            changed.push(number);
        }
        slot.messages += 1;
        Ok(None)
    }

    /// Adds a message whose series is known and remembers the way there.
    pub(super) fn route(
        &mut self,
        message: &Message<'_>,
        usage: Usage,
        resolved: Resolved,
    ) -> Result<Option<Write>, Refusal> {
        let hash = self.hash(usage, message);
        // An earlier message of the same batch may have been the first.
        if let Some(route) = self.routes.find(hash, |route| is_key_of(&route.key, usage, message)) {
            let slot = route.slot;
            return Ok(self.add(slot, message)?.map(|(_, write)| write));
        }
        let slot = self.slots.len() as u32;
        let Resolved { at, scale, .. } = resolved;
        self.slots.push(Slot { at, usage, scale, messages: 0, gathered: Gathered::Nothing });
        let mut key = Vec::with_capacity(message.name.len() + message.tags.len() + 2);
        key.push(usage as u8);
        key.extend_from_slice(message.name);
        key.push(b'|');
        key.extend_from_slice(message.tags);
        self.key_bytes += key.len();
        let Self { routes, hasher, .. } = self;
        routes.insert_unique(hash, Route { key: key.into(), slot }, |route| hash_of_key(hasher, &route.key));
        Ok(self.add(slot, message)?.map(|(_, write)| write))
    }

    /// What a message comes to whose way is not remembered.
    pub(super) fn effect_of(&self, message: &Message<'_>, usage: Usage, scale: f64) -> Result<Effect, Refusal> {
        Ok(match usage {
            Usage::Counter => Effect::Gather(Gathered::Count(count_of(message, scale)?)),
            Usage::Histogram => {
                check_values(message, scale)?;
                let mut histogram = Box::default();
                record_all(&mut histogram, message, scale);
                Effect::Gather(Gathered::Values(histogram))
            }
            Usage::Gauge => Effect::Write(write_of(message, scale)?),
            Usage::Set => {
                Effect::Write(Write::Member(self.member_hasher.hash_one(message.member().unwrap_or_default())))
            }
        })
    }

    /// Whether so many spellings are remembered that they must be learned anew.
    pub(super) fn is_full(&self) -> bool {
        self.slots.len() >= ROUTES_PER_SERIES * self.series_max.max(1024)
            || self.key_bytes >= ROUTE_BYTES_PER_SERIES * self.series_max.max(1024)
    }

    /// Whether nothing is remembered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.slots.is_empty()
    }

    /// Takes what was gathered.
    pub(super) fn take(&mut self) -> Vec<Part> {
        let Self { changed, slots, .. } = self;
        let part = |slot: u32| {
            let slot = slots.get_mut(slot as usize)?;
            let gathered = std::mem::replace(&mut slot.gathered, Gathered::Nothing);
            Some(Part { at: slot.at, messages: std::mem::take(&mut slot.messages), gathered })
        };
        changed.drain(..).filter_map(part).collect()
    }

    /// Gives what was gathered to the registry and forgets all ways: places there may then be given to other series.
    pub(super) fn clear(&mut self, registry: &mut Registry) -> u64 {
        let refused = self.take().into_iter().map(|part| registry.add_part(part)).sum();
        self.routes = HashTable::new();
        self.slots = Vec::new();
        self.key_bytes = 0;
        refused
    }
}

fn is_key_of(key: &[u8], usage: Usage, message: &Message<'_>) -> bool {
    let name_end = message.name.len() + 1;
    key.len() == name_end + 1 + message.tags.len()
        && key.first() == Some(&(usage as u8))
        && key.get(1..name_end) == Some(message.name)
        && key.get(name_end + 1..) == Some(message.tags)
}

fn hash_of_key(hasher: &RandomState, key: &[u8]) -> u64 {
    let (usage, rest) = key.split_first().unwrap_or((&0, &[]));
    // No name has a `|`.
    let name_end = rest.iter().position(|b| *b == b'|').unwrap_or(rest.len());
    let (name, tags) = rest.split_at(name_end);
    let mut hasher = hasher.build_hasher();
    hasher.write(name);
    hasher.write_u8(*usage);
    hasher.write(tags.get(1..).unwrap_or_default());
    hasher.finish()
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

fn check_values(message: &Message<'_>, scale: f64) -> Result<(), Refusal> {
    let (mut count, mut sum) = (0.0, 0.0);
    for value in message.values() {
        let (MessageValue::Absolute(value) | MessageValue::Delta(value)) = value;
        count += message.weight;
        sum += value * scale * message.weight;
    }
    if f64::is_finite(count) && f64::is_finite(sum) { Ok(()) } else { Err(Refusal::NotFinite) }
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
        Usage::Histogram => check_values(message, scale),
        Usage::Set => Ok(()),
    }
}

fn header_of(message: &Message<'_>) -> Option<Header> {
    if message.kind != MessageType::Gauge || message.name != HEADER_NAME.as_bytes() {
        return None;
    }
    match message.values().next()? {
        MessageValue::Absolute(sequence) => Header::decode(sequence, message.tags),
        MessageValue::Delta(_) => None,
    }
}
