//! The registry: every live series and its value.
//!
//! Counters and histograms are cumulative and never go back. What changed since the last tick is what the recorder takes. A
//! set is a gauge to all who read: how many different members came in the tick. Past a limit, what would be a new series goes
//! into one series of its name, with the label `cortex_overflow="true"`: totals stay exact, and memory stays bounded.
//! A series that was silent for long leaves the registry; it comes back with the value that the store has of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroI64;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::limits::{
    Beyond, Conflict, FOUND_KEPT_MS, LABEL_BYTES_PER_SERIES, Limit, Limits, OVERFLOW_SHARE, Overflow, STORED_PER_SERIES,
};
use super::mapping::{Found, Mapping, MetricType, Named, OVERFLOW_LABEL, metric_name, series_of};
use super::senders::Senders;
use super::shard::{Effect, Gathered, Part, Write, check};
use crate::dogstatsd::{HEADER_NAME, Message, MessageType};
use crate::exposition::{help, own_kind};
use crate::model::{ByLabels, ExponentialHistogram, Labels, METRIC_NAME, MetricKind, SeriesId, Value, values_by_label};
use crate::store::{Earlier, Known, Reader, Restored, StartedSeries, Tick};

/// The longest name with tags that becomes a series of its own, in bytes.
const CONTEXT_BYTES_MAX: usize = 4096;
/// The most tags that it has. What is beyond a limit or refused is read anew each time, and each tag takes its time.
const TAGS_MAX: usize = 128;
/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// A gauge or a set that ended keeps its place for so long: where processes come and go all the time, threads learn the ways to all
/// series anew no more often than that.
const ENDED_KEPT_MS: i64 = 60_000;
/// So many members of a set are told apart in a tick.
const SET_MEMBERS_MAX: usize = 10_000;
/// So many of all sets together: at 16 bytes or so each, they never take more than some 20 MB.
const ALL_SETS_MEMBERS_MAX: usize = 1_000_000;
/// The writer of a set, on disk: this, then the id if it is known.
const SET_WRITER: &str = "set";
/// What the classic form of a histogram adds to its name: no other metric may have such a name.
const CLASSIC_SUFFIXES: [&str; 3] = ["_bucket", "_count", "_sum"];
/// The prefix that no sender may use: what the collector says of itself.
const OWN_PREFIX: &str = "cortex_collector_";
/// What no mapping file touches: `cortex get` asks for these names.
const MAPPED_NEVER: [&str; 2] = ["cortex_api_", "cortex_client_"];

/// Why a well-formed message is not stored; `as_str` is the `reason` of the counted drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The name is already used with another type.
    #[error("the name is already used as a {known}, not as a {got}")]
    TypeConflict {
        /// What it is.
        known: &'static str,
        /// What the message would have it be.
        got: &'static str,
    },
    /// The name reads like a part of a histogram, or is that of a histogram whose parts are other metrics.
    #[error("the name meets those of a histogram: <name>_bucket, _count and _sum are its own")]
    PartOfHistogram,
    /// The name is reserved for the collector itself.
    #[error("names that start with {OWN_PREFIX} are the collector's own")]
    ReservedName,
    /// A counter cannot go back.
    #[error("a counter cannot go back")]
    NegativeCounter,
    /// The value, or what it would make of the total, is not finite.
    #[error("the total would not be finite")]
    NotFinite,
    /// The name is that of the header, and it is none: [`crate::dogstatsd::Header`] says what is.
    #[error(
        "{HEADER_NAME} is a gauge with a whole number from 1 and the tag client_id of 16 hexadecimal digits, nothing else"
    )]
    BadHeader,
    /// The name is too long.
    #[error("the name takes more than {NAME_BYTES_MAX} bytes")]
    TooLong,
    /// The set, or all sets together, have as many members as are told apart in a tick.
    #[error("the set has {SET_MEMBERS_MAX} values already in this tick, or all sets {ALL_SETS_MEMBERS_MAX}")]
    SetLimit,
    /// The mapping file says so.
    #[error("the mapping file says that it is to be dropped")]
    MappedDrop,
    /// The mapping file makes no name of it.
    #[error("the references in the mapping's name have nothing to refer to")]
    MappedToNothing,
    /// There are too many series, and too many names among them.
    #[error("a limit of series is met, and there are as many names beyond it as may be; is a name made of data?")]
    SeriesLimit,
}

impl Refusal {
    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TypeConflict { .. } | Self::PartOfHistogram => "type_conflict",
            Self::ReservedName => "reserved_name",
            Self::BadHeader => "bad_header",
            Self::NegativeCounter => "negative_counter",
            Self::NotFinite => "total_not_finite",
            Self::TooLong => "too_long",
            Self::SetLimit => "set_limit",
            Self::MappedDrop => "mapped_drop",
            Self::MappedToNothing => "mapped_to_nothing",
            Self::SeriesLimit => "series_limit",
        }
    }
}

/// What a name is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    Counter,
    Gauge,
    Set,
    Histogram,
}

impl Usage {
    pub(super) fn of(message: MessageType) -> Self {
        match message {
            MessageType::Counter => Self::Counter,
            MessageType::Gauge => Self::Gauge,
            MessageType::Set => Self::Set,
            MessageType::Timer | MessageType::Histogram | MessageType::Distribution => Self::Histogram,
        }
    }

    fn of_own(kind: MetricKind) -> Self {
        match kind {
            MetricKind::Counter => Self::Counter,
            MetricKind::Gauge => Self::Gauge,
            MetricKind::Histogram => Self::Histogram,
        }
    }

    /// What it is to those who read.
    fn kind(self) -> MetricKind {
        match self {
            Self::Counter => MetricKind::Counter,
            Self::Gauge | Self::Set => MetricKind::Gauge,
            Self::Histogram => MetricKind::Histogram,
        }
    }

    /// What it is to a mapping file.
    pub(super) fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge | Self::Set => MetricType::Gauge,
            Self::Histogram => MetricType::Observer,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Set => "set",
            Self::Histogram => "histogram",
        }
    }
}

/// What a value is multiplied by: timers come in milliseconds and are kept in seconds.
pub(super) fn timer_factor(kind: MessageType) -> f64 {
    if kind == MessageType::Timer { 1e-3 } else { 1.0 }
}

fn is_never_mapped(name: &[u8]) -> bool {
    MAPPED_NEVER.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// The place of what the mapping file drops, where nothing is.
pub(super) const DROPPED: u32 = u32::MAX;

/// Where the values of a message go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Resolved {
    /// The place of the series, or [`DROPPED`].
    pub(super) at: u32,
    /// What the mapping file multiplies values by; 1 if it does not.
    pub(super) scale: f64,
    /// Whether the way there may be remembered: what is beyond a limit comes in too many spellings.
    pub(super) is_routable: bool,
    /// How many tags fall away each time.
    pub(super) tags_dropped: u8,
}

#[derive(Debug)]
enum LiveValue {
    Counter(f64),
    Gauge(f64),
    /// Shared with what was published until it changes.
    Histogram(Arc<ExponentialHistogram>),
    /// Hashes of the members that came since the last tick. That two of 10,000 have the same is less likely than 3e-12.
    /// In a place of its own: there are few sets, and the others are small.
    #[allow(clippy::box_collection)]
    Set(Box<HashSet<u64, RandomState>>),
}

impl LiveValue {
    fn new(usage: Usage) -> Self {
        match usage {
            Usage::Counter => Self::Counter(0.0),
            Usage::Gauge => Self::Gauge(0.0),
            Usage::Histogram => Self::Histogram(Arc::default()),
            Usage::Set => Self::Set(Box::default()),
        }
    }
}

/// Its flags have nothing to do with each other.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug)]
struct Live {
    id: SeriesId,
    labels: Labels,
    usage: Usage,
    value: LiveValue,
    /// For a gauge or a set, the process that wrote it last, if it named itself.
    writer_id: u64,
    has_writer: bool,
    /// When it last changed: at which tick, by the clock that nobody sets.
    changed_ms: i64,
    /// What the mapping file says instead of the registry's limits.
    ttl_ms: Option<NonZeroI64>,
    is_new: bool,
    is_changed: bool,
    is_ended: bool,
    is_writer_changed: bool,
    /// How many expiries had begun when somebody was told the way here last.
    told_in: u32,
}

// There is one for each series: a line of the processor's cache, and no more.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Option<Live>>() == 64);

impl Live {
    /// The process that wrote it last; `None` if it did not name itself.
    fn writer(&self) -> Option<u64> {
        self.has_writer.then_some(self.writer_id)
    }

    fn set_writer(&mut self, writer: Option<u64>) {
        (self.has_writer, self.writer_id) = (writer.is_some(), writer.unwrap_or_default());
    }

    fn is_own(&self) -> bool {
        self.labels.name().starts_with(OWN_PREFIX)
    }

    fn is_overflow(&self) -> bool {
        self.labels.get(OVERFLOW_LABEL).is_some()
    }
}

/// What is known of a name.
#[derive(Debug)]
struct Name {
    usage: Usage,
    /// How many series it has in the registry.
    series: usize,
    /// Whether one of them is for what is beyond a limit.
    has_overflow: bool,
}

impl Name {
    fn is_overflow_alone(&self) -> bool {
        self.has_overflow && self.series == 1
    }
}

/// Every live series.
#[derive(Debug)]
pub struct Registry {
    limits: Limits,
    mapping: Option<Mapping>,
    /// What the store knows; asked only where it has no room for more.
    history: Option<Reader>,
    /// A place stays a series' own as long as a shard may remember the way there.
    series: Vec<Option<Live>>,
    free: Vec<u32>,
    by_labels: ByLabels,
    names: HashMap<Box<str>, Name, RandomState>,
    next_id: u32,
    changed: Vec<u32>,
    /// Members in all sets since the last tick.
    members: usize,
    own: usize,
    /// What the labels of all series take, and of these the collector's own.
    label_bytes: usize,
    own_bytes: usize,
    /// How many series the store knows, and what their labels take; with those that it is about to be told of.
    stored: (usize, usize),
    beyond: Beyond,
    overflow_series: usize,
    /// Names that have nothing but such a series.
    overflow_names: usize,
    /// When the last tick was, by the clock that nobody sets.
    now_ms: i64,
    /// How often series began to be let go.
    expiries: u32,
    /// The messages by place, while somebody has them counted, and how many do.
    counted: Vec<u64>,
    counting: usize,
}

/// A number that was not given yet; the store refuses those that are too great.
fn next_id(next: &mut u32) -> SeriesId {
    let id = SeriesId(*next);
    *next = next.saturating_add(1);
    id
}

/// What labels the series at a place has.
fn labels_of<'a>(series: &'a [Option<Live>]) -> impl Fn(u32) -> Option<&'a Labels> {
    |at| Some(&series.get(at as usize)?.as_ref()?.labels)
}

impl Registry {
    /// A registry that goes on where the store ended: totals as last committed, gauges until their writers turn out to be gone.
    /// Series that had ended stay in the store until somebody writes to them.
    pub fn new(restored: Restored) -> Self {
        Self::with_limits(restored, Limits::default())
    }

    /// The same with other bounds than the default ones.
    pub fn with_limits(restored: Restored, limits: Limits) -> Self {
        let mut registry = Self {
            limits,
            mapping: None,
            history: None,
            series: Vec::new(),
            free: Vec::new(),
            by_labels: ByLabels::default(),
            names: HashMap::default(),
            next_id: restored.next_id,
            changed: Vec::new(),
            members: 0,
            own: 0,
            label_bytes: 0,
            own_bytes: 0,
            stored: (0, 0),
            beyond: Beyond::default(),
            overflow_series: 0,
            overflow_names: 0,
            now_ms: restored.last_tick_ms.unwrap_or(0),
            expiries: 0,
            counted: Vec::new(),
            counting: 0,
        };
        let last_tick_ms = registry.now_ms;
        for series in restored.series {
            registry.add_stored(&series.labels);
            let of_set = series.writer.strip_prefix(SET_WRITER);
            let usage = if of_set.is_some() { Usage::Set } else { Usage::of_own(series.kind) };
            if series.value.is_stale() {
                continue;
            }
            // The members of before are gone with the tick that counted them.
            let is_changed = of_set.is_some() && series.value != Value::Float(0.0);
            let value = match series.value {
                Value::Float(_) if of_set.is_some() => LiveValue::Set(Box::default()),
                Value::Float(value) if usage == Usage::Counter => LiveValue::Counter(value),
                Value::Float(value) => LiveValue::Gauge(value),
                Value::Histogram(histogram) => LiveValue::Histogram(histogram),
            };
            let writer = u64::from_str_radix(of_set.unwrap_or(&series.writer), 16).ok();
            let at = registry.insert(series.id, &series.labels, usage, value);
            if let Some(live) = registry.live_mut(at) {
                live.set_writer(writer);
                live.changed_ms = series.last_ms.min(last_tick_ms); // the clock may have been set back since
                live.is_new = false;
            }
            if is_changed {
                registry.mark_changed(at);
            }
        }
        registry
    }

    /// Maps names by the rules of a mapping file. They hold for what is resolved from now on; series that the store gave
    /// get their expiry by their names, until somebody writes to them.
    #[must_use]
    pub fn with_mapping(mut self, mapping: Mapping) -> Self {
        for live in self.series.iter_mut().flatten().filter(|live| !is_never_mapped(live.labels.name().as_bytes())) {
            live.ttl_ms = mapping.ttl_of_series(live.labels.name()).and_then(NonZeroI64::new);
        }
        self.mapping = Some(mapping);
        self
    }

    /// Asks what the store knows already: that comes back where the store has no room for more.
    #[must_use]
    pub fn with_history(self, history: Reader) -> Self {
        Self { history: Some(history), ..self }
    }

    /// Other rules. Whoever remembers ways must forget them.
    pub(super) fn set_mapping(&mut self, mapping: Mapping) {
        self.mapping = Some(mapping);
    }

    /// The rules, if there are any.
    pub fn mapping(&self) -> Option<&Mapping> {
        self.mapping.as_ref()
    }

    /// Goes on at `now_ms`. That nobody was heard while no collector listened is not their silence.
    pub(super) fn resume(&mut self, now_ms: i64) {
        let away_ms = now_ms.saturating_sub(self.now_ms);
        self.series.iter_mut().flatten().for_each(|live| live.changed_ms = live.changed_ms.saturating_add(away_ms));
        self.now_ms = now_ms;
    }

    fn live_mut(&mut self, at: u32) -> Option<&mut Live> {
        self.series.get_mut(at as usize)?.as_mut()
    }

    fn lives(&self) -> impl Iterator<Item = (u32, &Live)> {
        self.series.iter().enumerate().filter_map(|(at, live)| Some((at as u32, live.as_ref()?)))
    }

    fn find(&self, labels: &Labels) -> Option<u32> {
        self.by_labels.get(labels, labels_of(&self.series))
    }

    /// A series that is new to the registry, and until a tick says otherwise to the store.
    fn insert(&mut self, id: SeriesId, labels: &Labels, usage: Usage, value: LiveValue) -> u32 {
        let live = Live {
            id,
            labels: labels.clone(),
            usage,
            value,
            writer_id: 0,
            has_writer: false,
            changed_ms: self.now_ms,
            ttl_ms: None,
            is_new: true,
            is_changed: false,
            is_ended: false,
            is_writer_changed: false,
            told_in: 0,
        };
        if live.is_own() {
            self.own += 1;
            self.own_bytes += labels.bytes();
        }
        self.label_bytes += labels.bytes();
        let is_overflow = live.is_overflow();
        self.overflow_series += usize::from(is_overflow);
        let name = self.names.entry(labels.name().into()).or_insert(Name { usage, series: 0, has_overflow: false });
        self.overflow_names -= usize::from(name.is_overflow_alone());
        name.series += 1;
        name.has_overflow |= is_overflow;
        self.overflow_names += usize::from(name.is_overflow_alone());
        let at = self.free.pop().unwrap_or(self.series.len() as u32);
        // What was counted here was another's.
        if let Some(count) = self.counted.get_mut(at as usize) {
            *count = 0;
        }
        match self.series.get_mut(at as usize) {
            Some(place) => *place = Some(live),
            None => self.series.push(Some(live)),
        }
        self.by_labels.insert(labels, at, labels_of(&self.series));
        at
    }

    fn remove(&mut self, at: u32) -> Option<Live> {
        let live = self.series.get_mut(at as usize)?.take()?;
        self.free.push(at);
        self.by_labels.remove(&live.labels, at);
        if live.is_own() {
            self.own -= 1;
            self.own_bytes -= live.labels.bytes();
        }
        self.label_bytes -= live.labels.bytes();
        let is_overflow = live.is_overflow();
        self.overflow_series -= usize::from(is_overflow);
        // A name is free when nobody has it any more, whatever the store still has of it.
        if let Some(name) = self.names.get_mut(live.labels.name()) {
            self.overflow_names -= usize::from(name.is_overflow_alone());
            name.series -= 1;
            name.has_overflow &= !is_overflow;
            self.overflow_names += usize::from(name.is_overflow_alone());
            if name.series == 0 {
                self.names.remove(live.labels.name());
            }
        }
        Some(live)
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.series.len() - self.free.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The metrics beyond a limit, the first thousand of them.
    pub fn overflows(&self) -> &BTreeMap<String, Overflow> {
        self.beyond.overflows()
    }

    /// How many messages went into `cortex_overflow` series, by limit.
    pub fn overflow_messages(&self) -> &BTreeMap<&'static str, u64> {
        self.beyond.messages()
    }

    /// The names that came with a second type, each with that type; the first thousand of them.
    pub fn conflicts(&self) -> impl Iterator<Item = (&str, &Conflict)> {
        self.beyond.conflicts()
    }

    /// The writers of the gauges that live.
    pub fn writers(&self) -> impl Iterator<Item = u64> {
        self.lives().filter(|(_, live)| !live.is_ended).filter_map(|(_, live)| live.writer())
    }

    /// The series of a message, made if it may begin: only a message that is taken begins one.
    pub(super) fn resolve(&mut self, message: &Message<'_>, usage: Usage) -> Result<Resolved, Refusal> {
        let named = Named::of(message);
        if named.name.len() > NAME_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        let (mapped, ttl_ms) = match self.map(&named.name, usage) {
            Found::Drop => return Ok(Resolved { at: DROPPED, scale: 1.0, is_routable: true, tags_dropped: 0 }),
            Found::Mapped(mapped) => (Some(Arc::clone(&mapped)), mapped.ttl_ms),
            Found::Unmapped { ttl_ms } => (None, ttl_ms),
        };
        let mapped = mapped.as_deref();
        let scale = mapped.map_or(1.0, |mapped| mapped.scale);
        check(message, usage, scale)?;
        if mapped.is_some_and(|mapped| mapped.name.is_empty()) {
            return Err(Refusal::MappedToNothing);
        }
        let is_too_long =
            message.name.len() + message.tags.len() > CONTEXT_BYTES_MAX || named.tags().nth(TAGS_MAX).is_some();
        let (labels, fallen) = if is_too_long {
            let name = mapped.map_or_else(|| metric_name(&named.name), |mapped| mapped.name.clone());
            (Labels::from_pairs([(METRIC_NAME, name)]), 0)
        } else {
            series_of(&named, mapped)
        };
        if labels.name().len() > NAME_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        if labels.name().starts_with(OWN_PREFIX) {
            return Err(Refusal::ReservedName);
        }
        if labels.name() == HEADER_NAME {
            return Err(Refusal::BadHeader); // spelled otherwise, or mapped to it
        }
        if let Some(conflict) = self.conflict(labels.name(), usage) {
            return Err(self.refuse(labels.name(), conflict));
        }
        if !is_too_long && let Some(at) = self.find(&labels) {
            self.set_ttl(at, ttl_ms);
            let told_in = self.expiries;
            if let Some(live) = self.live_mut(at) {
                live.told_in = told_in;
            }
            return Ok(Resolved { at, scale, is_routable: true, tags_dropped: fallen as u8 });
        }
        let is_long =
            |(name, value): &(&str, &str)| *name != METRIC_NAME && value.len() > self.limits.label_value_bytes;
        let long = labels.iter().find(is_long).map_or("", |(label, _)| label);
        let limit = if is_too_long || !long.is_empty() {
            Some(Limit::LabelValueBytes)
        } else {
            self.limit_met_by(&labels, usage)
        };
        let at = match limit {
            Some(limit) => self.overflow(labels.name(), usage, limit, long)?,
            None => self.begin(&labels, usage),
        };
        self.set_ttl(at, ttl_ms);
        Ok(Resolved { at, scale, is_routable: limit.is_none(), tags_dropped: fallen as u8 })
    }

    /// Why there is no room for one more series.
    fn limit_met_by(&self, labels: &Labels, usage: Usage) -> Option<Limit> {
        let Limits { series, series_per_metric, .. } = self.limits;
        let bytes_max = series.saturating_mul(LABEL_BYTES_PER_SERIES);
        if self.names.get(labels.name()).is_some_and(|name| name.series >= series_per_metric) {
            Some(Limit::SeriesPerMetric)
        } else if self.len() - self.own - self.overflow_series >= series {
            Some(Limit::Series)
        } else if self.label_bytes - self.own_bytes + labels.bytes() > bytes_max {
            Some(Limit::LabelBytes)
        } else if !self.has_room_in_store(labels, usage, STORED_PER_SERIES) {
            Some(Limit::StoredSeries)
        } else {
            None
        }
    }

    /// Whether the store may know these labels, where it may have so many series for each that there may be: what it knows takes no more.
    fn has_room_in_store(&self, labels: &Labels, usage: Usage, per_series: usize) -> bool {
        let series_max = self.limits.series.saturating_mul(per_series);
        let bytes_max = series_max.saturating_mul(LABEL_BYTES_PER_SERIES);
        let (stored, bytes) = self.stored;
        let has_room = stored.saturating_sub(self.own) < series_max
            && bytes.saturating_sub(self.own_bytes) + labels.bytes() <= bytes_max;
        has_room || self.history.as_ref().is_some_and(|history| history.knows(labels, usage.kind()))
    }

    /// What the store knows: how many series, and the bytes of their labels. Until it says so again, each that begins is one more.
    pub fn set_stored(&mut self, series: usize, label_bytes: usize) {
        self.stored = (series, label_bytes);
    }

    fn add_stored(&mut self, labels: &Labels) {
        self.stored = (self.stored.0 + 1, self.stored.1 + labels.bytes());
    }

    /// What the mapping file says of a message's name. Names of our own mean the same everywhere.
    fn map(&mut self, name: &[u8], usage: Usage) -> Found {
        match &mut self.mapping {
            Some(mapping) if !is_never_mapped(name) => mapping.find(name, usage.metric_type()),
            _ => Found::Unmapped { ttl_ms: None },
        }
    }

    fn set_ttl(&mut self, at: u32, ttl_ms: Option<i64>) {
        if let Some(live) = self.live_mut(at) {
            live.ttl_ms = ttl_ms.and_then(NonZeroI64::new);
        }
    }

    fn begin(&mut self, labels: &Labels, usage: Usage) -> u32 {
        let id = next_id(&mut self.next_id);
        self.add_stored(labels);
        let at = self.insert(id, labels, usage, LiveValue::new(usage));
        if let Some(live) = self.live_mut(at).filter(|_| usage == Usage::Set) {
            // That it is a set is stored with its writer, named or not.
            live.is_writer_changed = true;
        }
        self.mark_changed(at);
        at
    }

    /// The series for what is beyond a limit; `long` is the label whose value is too long, if one is.
    fn overflow(&mut self, name: &str, usage: Usage, limit: Limit, long: &str) -> Result<u32, Refusal> {
        let labels = Labels::from_pairs([(METRIC_NAME, name), (OVERFLOW_LABEL, "true")]);
        let is_new_name = !self.names.contains_key(name);
        let at = match self.find(&labels) {
            Some(at) => at,
            // A name that has series may have one more; of names there are only so many, at once and in the store.
            None if is_new_name
                && (self.overflow_names > self.limits.series / OVERFLOW_SHARE
                    || !self.has_room_in_store(&labels, usage, STORED_PER_SERIES + 1)) =>
            {
                return Err(Refusal::SeriesLimit);
            }
            None => self.begin(&labels, usage),
        };
        if self.beyond.count(name, limit, self.now_ms) {
            let overflow = self.explain(name, limit, long);
            self.beyond.tell(name, overflow);
        }
        Ok(at)
    }

    /// Which label it is that takes so many values, or so many bytes.
    fn explain(&self, name: &str, limit: Limit, long: &str) -> Overflow {
        let of_all = matches!(limit, Limit::Series | Limit::LabelBytes | Limit::StoredSeries);
        // Asked for each name that comes beyond all series, and all are looked at: once in a while is enough, while what was found is there.
        // What the store knows does not go that soon.
        let is_in_memory =
            |told: &Overflow| self.names.get(&*told.metric).is_some_and(|name| name.series >= told.values);
        let is_there = |told: &Overflow| limit == Limit::StoredSeries || is_in_memory(told);
        let is_new = |told: &Overflow| self.now_ms - told.found_ms < FOUND_KEPT_MS;
        let is_known = |told: &&Overflow| of_all && told.limit == limit && is_new(told) && is_there(told);
        if let Some(told) = self.overflows().values().find(is_known) {
            return told.clone();
        }
        let found = |metric: &str, label: &str, values| Overflow {
            limit,
            messages: 1,
            metric: metric.to_owned(),
            label: label.to_owned(),
            values,
            found_ms: self.now_ms,
        };
        if limit == Limit::LabelValueBytes {
            return found(name, long, 0);
        }
        if limit == Limit::StoredSeries
            && let Some((metric, label, values)) = self.history.as_ref().and_then(Reader::widest)
        {
            return found(&metric, &label, values);
        }
        let by_bytes = limit == Limit::LabelBytes;
        let mut metrics: HashMap<&str, usize, RandomState> = HashMap::default();
        for (_, live) in self.lives().filter(|(_, live)| of_all && !live.is_own()) {
            *metrics.entry(live.labels.name()).or_default() += if by_bytes { live.labels.bytes() } else { 1 };
        }
        let widest = metrics.into_iter().max_by_key(|(_, weight)| *weight).map_or(name, |(metric, _)| metric);
        let of_widest = self.lives().map(|(_, live)| &live.labels).filter(|labels| labels.name() == widest);
        let values = values_by_label(of_widest);
        let weight = |values: &HashSet<&str, RandomState>| {
            if by_bytes { values.iter().map(|value| value.len()).sum() } else { values.len() }
        };
        let (label, values) = values
            .iter()
            .max_by_key(|(_, values)| weight(values))
            .map_or(("", 0), |(label, values)| (*label, values.len()));
        found(widest, label, values)
    }

    /// What else has the name already, or one that a histogram's classic form would share with it.
    fn conflict(&self, name: &str, usage: Usage) -> Option<Conflict> {
        let with = |metric: &str, known: Usage| {
            Some(Conflict { got: usage.as_str(), known: known.as_str(), metric: metric.to_owned(), messages: 0 })
        };
        let known = self.names.get(name).map(|name| name.usage);
        // Whoever came first with a name of ours would make it unusable for what it is.
        let is_other = |known: &Usage| *known != usage;
        if let Some(other) = own_kind(name).map(Usage::of_own).filter(is_other).or(known.filter(is_other)) {
            return with(name, other);
        }
        if known.is_some() {
            return None;
        }
        for suffix in CLASSIC_SUFFIXES {
            // The parts of ours are nobody's name even before the first of it comes.
            let is_histogram = |base: &str| {
                own_kind(base) == Some(MetricKind::Histogram)
                    || self.names.get(base).is_some_and(|base| base.usage == Usage::Histogram)
            };
            if let Some(base) = name.strip_suffix(suffix).filter(|base| is_histogram(base)) {
                return with(base, Usage::Histogram);
            }
            let part = format!("{name}{suffix}");
            if usage == Usage::Histogram
                && let Some(other) = self.names.get(part.as_str())
            {
                return with(&part, other.usage);
            }
        }
        None
    }

    /// Counts what a conflict refuses, and tells of it once.
    fn refuse(&mut self, name: &str, conflict: Conflict) -> Refusal {
        let Conflict { got, known, .. } = conflict;
        let refusal =
            if conflict.metric == name { Refusal::TypeConflict { known, got } } else { Refusal::PartOfHistogram };
        self.beyond.conflict(name, conflict, &refusal);
        refusal
    }

    fn mark_changed(&mut self, at: u32) {
        let Some(live) = self.live_mut(at) else { return };
        if !std::mem::replace(&mut live.is_changed, true) {
            self.changed.push(at);
        }
    }

    /// Does what one message comes to.
    pub(super) fn apply(&mut self, at: u32, effect: Effect, writer: Option<u64>) -> Result<(), Refusal> {
        match effect {
            Effect::Gather(gathered) => self.add_part(Part { at, messages: 1, gathered }),
            Effect::Write(write) => self.write(at, write, writer),
        }
    }

    /// Adds what a shard gathered.
    pub(super) fn add_part(&mut self, part: Part) -> Result<(), Refusal> {
        let Part { at, messages, gathered } = part;
        let Some(live) = self.live_mut(at) else { return Err(Refusal::NotFinite) };
        match (&mut live.value, gathered) {
            (LiveValue::Counter(total), Gathered::Count(sum)) => {
                let grown = *total + sum;
                if !grown.is_finite() {
                    return Err(Refusal::NotFinite);
                }
                *total = grown;
            }
            (LiveValue::Histogram(total), Gathered::Values(values)) => {
                if !(total.sum() + values.sum()).is_finite() || !(total.count() + values.count()).is_finite() {
                    return Err(Refusal::NotFinite);
                }
                Arc::make_mut(total).merge(&values);
            }
            _ => return Err(Refusal::NotFinite),
        }
        live.is_ended = false;
        self.mark_changed(at);
        self.count(at, messages);
        Ok(())
    }

    /// Writes to a gauge or a set. A change to a gauge that has ended starts from 0.
    pub(super) fn write(&mut self, at: u32, write: Write, writer: Option<u64>) -> Result<(), Refusal> {
        let all_members = self.members;
        let Some(live) = self.live_mut(at) else { return Ok(()) };
        let mut grown = 0;
        match (&mut live.value, write) {
            (LiveValue::Gauge(last), Write::Set(value)) => *last = value,
            (LiveValue::Gauge(last), Write::Change(delta)) => {
                let after = if live.is_ended { delta } else { *last + delta };
                if !after.is_finite() {
                    return Err(Refusal::NotFinite);
                }
                *last = after;
            }
            (LiveValue::Set(members), Write::Member(hash)) if !members.contains(&hash) => {
                if members.len() >= SET_MEMBERS_MAX || all_members >= ALL_SETS_MEMBERS_MAX {
                    return Err(Refusal::SetLimit);
                }
                members.insert(hash);
                grown = 1;
            }
            _ => {}
        }
        live.is_writer_changed |= live.writer() != writer;
        live.set_writer(writer);
        live.is_ended = false;
        self.members += grown;
        self.mark_changed(at);
        self.count(at, 1);
        Ok(())
    }

    /// Counts the messages of each series from now on; gives what was counted for others so far.
    pub(super) fn begin_count(&mut self) -> Vec<u64> {
        self.counting += 1;
        self.counted.clone()
    }

    /// The series with messages since then, and how many. The last one ends the counting.
    pub(super) fn end_count(&mut self, before: &[u64]) -> Vec<(Labels, MetricKind, u64)> {
        let counts = self.counted.iter().zip(before.iter().chain(std::iter::repeat(&0)));
        // A place that became another's meanwhile began anew.
        let counts = counts.map(|(now, before)| now.checked_sub(*before).unwrap_or(*now));
        let counted = counts.zip(&self.series).filter(|(count, _)| *count > 0);
        let counted = counted
            .filter_map(|(count, live)| live.as_ref().map(|live| (live.labels.clone(), live.usage.kind(), count)))
            .collect();
        self.counting -= 1;
        if self.counting == 0 {
            self.counted = Vec::new();
        }
        counted
    }

    #[inline]
    fn count(&mut self, at: u32, messages: u64) {
        if self.counting == 0 {
            return;
        }
        if self.counted.len() <= at as usize {
            self.counted.resize(self.series.len(), 0);
        }
        if let Some(count) = self.counted.get_mut(at as usize) {
            *count += messages;
        }
    }

    /// Adds to one of the collector's own counters (`delta`), or sets one of its gauges.
    pub fn record_own(&mut self, kind: MetricKind, name: &str, label: Option<(&str, &str)>, value: f64) {
        let name = format!("{OWN_PREFIX}{name}");
        debug_assert!(help(&name).is_some(), "{name} has no help");
        let labels = Labels::from_pairs(label.into_iter().chain([(METRIC_NAME, name.as_str())]));
        let usage = Usage::of_own(kind);
        let at = match self.find(&labels) {
            Some(at) => at,
            None if self.conflict(&name, usage).is_some() => return,
            None => self.begin(&labels, usage),
        };
        let Some(live) = self.live_mut(at) else { return };
        if let LiveValue::Counter(current) | LiveValue::Gauge(current) = &mut live.value {
            let next = if kind == MetricKind::Counter { *current + value } else { value };
            let is_same = next == *current && !live.is_new && !live.is_ended;
            *current = next;
            live.is_ended = false;
            if !is_same {
                self.mark_changed(at);
            }
        }
    }

    /// Ends the gauges whose writers are no longer alive, and those of senders that do not name themselves if they were
    /// silent for longer than [`Limits::gauge_expiry_ms`]; and all that were silent for longer than their mapping allows.
    pub fn end_gauges(&mut self, senders: &Senders, now_ms: i64) {
        let expiry_ms = self.limits.gauge_expiry_ms;
        let is_silent =
            |live: &Live, ms: Option<i64>| ms.is_some_and(|ms| now_ms - live.changed_ms > ms) && !live.is_changed;
        let is_gone = |live: &Live| match live.writer() {
            _ if is_silent(live, live.ttl_ms.map(NonZeroI64::get)) => true,
            Some(writer) => !senders.is_alive(writer, now_ms),
            None => is_silent(live, expiry_ms),
        };
        let gone: Vec<u32> = self
            .lives()
            .filter(|(_, live)| live.usage.kind() == MetricKind::Gauge && !live.is_ended && !live.is_own())
            .filter(|(_, live)| is_gone(live))
            .map(|(at, _)| at)
            .collect();
        for at in gone {
            if let Some(live) = self.live_mut(at) {
                live.is_ended = true;
            }
            self.mark_changed(at);
        }
    }

    /// The series that may go: those that were silent for longer than [`Limits::series_expiry_ms`] or their mapping says, and
    /// gauges and sets that ended before `ended_ms`.
    fn leaving(&self, ended_ms: i64) -> impl Iterator<Item = u32> {
        let expiry_ms = |live: &Live| live.ttl_ms.map_or(self.limits.series_expiry_ms, NonZeroI64::get);
        let may_go = move |live: &Live| {
            let before_ms = match live.usage {
                _ if live.is_ended => ended_ms,
                Usage::Gauge => i64::MIN,
                _ => self.now_ms.saturating_sub(expiry_ms(live)),
            };
            live.changed_ms < before_ms && !live.is_changed && !live.is_own()
        };
        self.lives().filter(move |(_, live)| may_go(live)).map(|(at, _)| at)
    }

    /// Whether there is any series to let go. From here on those are marked to which somebody is told the way; then all
    /// shards must be cleared, and then [`Registry::remove_leaving`].
    pub(super) fn begin_expiry(&mut self) -> bool {
        let any = self.leaving(self.now_ms.saturating_sub(ENDED_KEPT_MS)).next().is_some();
        self.expiries = self.expiries.wrapping_add(u32::from(any));
        any
    }

    /// Lets go of the series that are silent even now and to which no shard remembers the way, and ends them in the tick. Of
    /// those that ended all go: the ways are learned anew in any case.
    pub(super) fn remove_leaving(&mut self, tick: &mut Tick) {
        let was_told = |at: &u32| {
            let live = self.series.get(*at as usize).and_then(Option::as_ref);
            live.is_some_and(|live| live.told_in == self.expiries)
        };
        let leaving: Vec<u32> = self.leaving(i64::MAX).filter(|at| !was_told(at)).collect();
        for live in leaving.into_iter().filter_map(|at| self.remove(at)) {
            if !live.is_ended {
                tick.samples.push((live.id, Value::stale()));
            }
            tick.ended.push(live.id);
        }
    }

    /// Series are gone from the store: those that live begin anew there.
    pub fn forget(&mut self, gone: &HashSet<SeriesId>) {
        let mut again = Vec::new();
        for (at, live) in self.series.iter_mut().enumerate() {
            if let Some(live) = live.as_mut().filter(|live| gone.contains(&live.id)) {
                live.id = next_id(&mut self.next_id);
                live.is_new = true;
                if !live.is_ended {
                    again.push(at as u32);
                }
            }
        }
        again.into_iter().for_each(|at| self.mark_changed(at));
    }

    /// Begins a tick: the places of the series that changed since the last one.
    pub(super) fn take_changed(&mut self, now_ms: i64) -> Vec<u32> {
        self.now_ms = now_ms;
        std::mem::take(&mut self.changed)
    }

    /// Takes the values of some of them into the tick. A series that is new to the registry began at `start_ms`, unless
    /// `find` knows it from before: then it goes on from there.
    pub(super) fn take(
        &mut self,
        places: &[u32],
        tick: &mut Tick,
        start_ms: i64,
        find: impl Fn(&Labels, MetricKind) -> Option<Known>,
    ) {
        for &at in places {
            let Some(live) = self.series.get_mut(at as usize).and_then(Option::as_mut) else { continue };
            live.is_changed = false;
            live.changed_ms = self.now_ms;
            let kind = live.usage.kind();
            if std::mem::take(&mut live.is_new) {
                tick.started.push(live.start(start_ms, find(&live.labels, kind)));
            }
            if std::mem::take(&mut live.is_writer_changed) {
                let id = live.writer().map_or_else(String::new, |id| format!("{id:016x}"));
                tick.writers.push((live.id, if live.usage == Usage::Set { format!("{SET_WRITER}{id}") } else { id }));
            }
            let value = match &mut live.value {
                LiveValue::Set(members) => {
                    let members = std::mem::take(members).len();
                    self.members -= members;
                    // The next tick counts anew, if only to say that nothing came.
                    if members > 0 && !live.is_ended {
                        live.is_changed = true;
                        self.changed.push(at);
                    }
                    if live.is_ended { Value::stale() } else { Value::Float(members as f64) }
                }
                _ if live.is_ended => Value::stale(),
                LiveValue::Counter(value) | LiveValue::Gauge(value) => Value::Float(*value),
                LiveValue::Histogram(histogram) => Value::Histogram(Arc::clone(histogram)),
            };
            tick.samples.push((live.id, value));
        }
    }
}

impl Live {
    /// Begins in the store, at 0 or where it was.
    fn start(&mut self, start_ms: i64, known: Option<Known>) -> StartedSeries {
        let mut earlier = None;
        if let Some(known) = known {
            self.id = known.id;
            // The store has the writer of before, and of before a set was a gauge.
            self.is_writer_changed |= self.usage.kind() == MetricKind::Gauge;
            match (&mut self.value, known.value) {
                (LiveValue::Counter(total), Some(Value::Float(before))) => {
                    *total = (*total + before).min(f64::MAX); // both were taken
                    earlier = Some(Box::new(Earlier { since_ms: known.since_ms, value: Value::Float(before) }));
                }
                (LiveValue::Histogram(total), Some(Value::Histogram(before))) => {
                    Arc::make_mut(total).merge(&before);
                    earlier = Some(Box::new(Earlier { since_ms: known.since_ms, value: Value::Histogram(before) }));
                }
                _ => {}
            }
        }
        StartedSeries { id: self.id, labels: self.labels.clone(), kind: self.usage.kind(), start_ms, earlier }
    }
}

#[cfg(test)]
mod tests {
    use super::super::intake::Intake;
    use super::super::limits::TOLD_MAX;
    use super::*;
    use crate::store::RestoredSeries;

    fn intake() -> Intake {
        limited(Limits::default())
    }

    fn limited(limits: Limits) -> Intake {
        Intake::new(Registry::with_limits(Restored::default(), limits), 0)
    }

    /// Why each line was refused, if it was.
    fn apply(intake: &Intake, text: &str) -> Vec<Option<&'static str>> {
        let dropped =
            || -> BTreeMap<_, _> { intake.lock().totals.dropped.iter().map(|(r, d)| (*r, d.count)).collect() };
        let refusal = |line: &str| {
            let before = dropped();
            intake.datagram(line.as_bytes(), 0);
            dropped().into_iter().find(|(reason, count)| before.get(reason) != Some(count)).map(|(reason, _)| reason)
        };
        text.lines().map(refusal).collect()
    }

    fn tick(intake: &Intake, timestamp_ms: i64) -> Tick {
        intake.take(timestamp_ms, timestamp_ms, timestamp_ms - 10, |_, _| None)
    }

    fn changes(intake: &Intake) -> Vec<String> {
        intake.gather();
        let names: HashMap<SeriesId, String> =
            intake.lock().registry.lives().map(|(_, live)| (live.id, live.labels.to_string())).collect();
        let text = |value: &Value| match value {
            v if v.is_stale() => "stale".to_owned(),
            Value::Float(v) => v.to_string(),
            Value::Histogram(h) => format!("count {} sum {}", h.count(), h.sum()),
        };
        let mut changes: Vec<String> =
            tick(intake, 20).samples.iter().map(|(id, value)| format!("{} {}", names[id], text(value))).collect();
        changes.sort();
        changes
    }

    #[test]
    fn messages_of_one_series_add_up_whatever_the_order_of_their_tags() {
        let intake = intake();
        assert_eq!(apply(&intake, "c:1|c|#a:1,b:2\nc:2|c|@0.5|#b:2,a:1\nc:1:2|c|#a:1,b:2"), [None; 3]);
        apply(&intake, "g:5|g\ng:+2|g\ng:-1|g\nt:1500|ms\nt:0.5|h\nh:2|d|@0.25");
        assert_eq!(changes(&intake), [r#"c{a="1", b="2"} 8"#, "g 6", "h count 4 sum 8", "t count 2 sum 2"]);
        assert_eq!(changes(&intake), [""; 0], "what was taken has not changed");
    }

    #[test]
    fn a_message_that_is_refused_changes_nothing() {
        let intake = intake();
        apply(&intake, "m:1|c");
        let got = apply(&intake, "m:1|g\nm:1:-1|c\nm:1e308:1e308|c\nh:1:1|h|@1e-308\ncortex_collector_x:1|c\nm:1|c");
        let not_finite = Some("total_not_finite");
        let want =
            [Some("type_conflict"), Some("negative_counter"), not_finite, not_finite, Some("reserved_name"), None];
        assert_eq!(got, want);
        assert_eq!(changes(&intake), ["m 2"]);
    }

    #[test]
    fn a_total_that_would_not_be_finite_keeps_what_it_has_and_counts_what_it_lost() {
        let intake = intake();
        assert_eq!(apply(&intake, "m:1.7e308|c\nh:1.7e308|h"), [None; 2]);
        assert_eq!(changes(&intake).len(), 2);
        let not_finite = Some("total_not_finite");
        assert_eq!(
            apply(&intake, "m:1e307|c\nm:1e307|c\nh:1e308|h\ng:1e308|g\ng:+1e308|g"),
            [not_finite, not_finite, not_finite, None, not_finite]
        );
        assert_eq!(changes(&intake), [format!("g {}", 1e308)]);
        assert_eq!(intake.lock().totals.dropped["total_not_finite"].count, 4);
        assert_eq!(apply(&intake, "m:1|c"), [None]);
        assert_eq!(changes(&intake), [format!("m {}", 1.7e308)]);
    }

    #[test]
    fn a_message_that_is_refused_begins_no_series_and_takes_no_name() {
        let intake = intake();
        let got = apply(&intake, "m:-1|c\nm:1e308:1e308|c\nm:1|g\nx:+1e308:+1e308|g\nx:1|c");
        let not_finite = Some("total_not_finite");
        assert_eq!(got, [Some("negative_counter"), not_finite, None, not_finite, None]);
        assert_eq!((changes(&intake), intake.lock().registry.len()), (vec!["m 1".to_owned(), "x 1".to_owned()], 2));
    }

    #[test]
    fn a_name_that_reads_like_a_part_of_a_histogram_is_a_conflict() {
        let intake = intake();
        let conflict = Some("type_conflict");
        let got = apply(&intake, "h:1|h\nh_count:1|c\nh_sum:1|g\nh_max:1|g\nx_bucket:1|c\nx:1|h\nx:1|c");
        assert_eq!(got, [None, conflict, conflict, None, None, conflict, None]);
        // Histograms too, whichever comes first.
        let got = apply(&intake, "h_count:5|h\nh_sum:2|ms\nh_bucket:3|d\ny_sum:1|h\ny:1|h\nh_count_sum:1|h\nh:2|h");
        assert_eq!(got, [conflict, conflict, conflict, None, conflict, None, None]);
    }

    #[test]
    fn parts_of_our_own_histograms_are_reserved_before_they_come() {
        let intake = intake();
        let conflict = Some("type_conflict");
        const OWN_HISTOGRAMS: [&str; 3] = [
            "cortex_api_request_duration_seconds",
            "cortex_api_request_first_byte_seconds",
            "cortex_api_request_queue_seconds",
        ];
        let parts =
            OWN_HISTOGRAMS.map(|name| format!("{name}_count:1|c\n{name}_sum:1|g\n{name}_bucket:1|c\n")).concat();
        assert_eq!(apply(&intake, &parts), [conflict; 9]);
        assert_eq!(apply(&intake, &OWN_HISTOGRAMS.map(|name| format!("{name}:0.1|h\n")).concat()), [None; 3]);
    }

    #[test]
    fn names_of_ours_have_their_types_before_they_come() {
        // A gauge of that name refused all requests that were counted after it.
        let intake = intake();
        let conflict = Some("type_conflict");
        let got = apply(
            &intake,
            "cortex_api_requests_total:5|g\ncortex_api_in_flight_requests:x|s\ncortex_api_request_duration_seconds:1|c\n\
             cortex_api_requests_total:1|c\ncortex_api_in_flight_requests:1|g\ncortex_api_request_duration_seconds:1|h\n\
             cortex_api_of_another:1|g\nprocess_open_fds:1|c",
        );
        assert_eq!(got, [conflict, conflict, conflict, None, None, None, None, None]);
    }

    #[test]
    fn a_conflict_is_told_with_both_types() {
        let refusal = Refusal::TypeConflict { known: "counter", got: "set" };
        assert_eq!(refusal.to_string(), "the name is already used as a counter, not as a set");
        let intake = intake();
        let got = apply(&intake, "n:1|c\nn:1|s\nn:1|ms\nm:1|ms\nm:1|h\nm:1|d");
        let conflict = Some("type_conflict");
        assert_eq!(got, [None, conflict, conflict, None, None, None]);
        apply(&intake, "n:1|s\nm_count:1|g\nq_sum:1|g\nq:1|h\nok:1|c");
        let state = intake.lock();
        let told: Vec<_> =
            state.registry.conflicts().map(|(name, c)| (name, c.got, c.known, &*c.metric, c.messages)).collect();
        let want = [
            ("m_count", "gauge", "histogram", "m", 1),
            ("n", "histogram", "counter", "n", 1),
            ("n", "set", "counter", "n", 2),
            ("q", "histogram", "gauge", "q_sum", 1),
        ];
        assert_eq!(told, want);
        drop(state);
        (0..2 * TOLD_MAX).for_each(|i| intake.datagram(format!("p{i}:1|c\np{i}:1|g").as_bytes(), 0));
        assert_eq!(intake.lock().registry.conflicts().count(), TOLD_MAX, "however many there are");
    }

    #[test]
    fn a_name_is_free_when_the_last_series_that_has_it_left() {
        let intake = limited(Limits { series_expiry_ms: 100_000, gauge_expiry_ms: Some(1), ..Limits::default() });
        assert_eq!(apply(&intake, "g:1|g|#a:1\ng:1|g|#a:2\nc:1|c\nh:1|h"), [None; 4]);
        tick(&intake, 1000);
        intake.lock().registry.end_gauges(&Senders::default(), 2000);
        let ended_at = |timestamp_ms| {
            let mut tick = tick(&intake, timestamp_ms);
            intake.expire(&mut tick);
            tick.ended.len()
        };
        let conflict = Some("type_conflict");
        assert_eq!((ended_at(3000), ended_at(3000 + ENDED_KEPT_MS)), (0, 0), "they have only just ended");
        assert_eq!(apply(&intake, "g:1|h"), [conflict]);
        assert_eq!(ended_at(3000 + ENDED_KEPT_MS + 1), 2);
        assert_eq!(apply(&intake, "g:1|h\ng:1|g\nc:1|g\nh_sum:1|c"), [None, conflict, conflict, conflict]);
        assert_eq!(ended_at(101_001), 2, "the counter and the histogram were silent for long");
        assert_eq!(apply(&intake, "c:1|g\nh_sum:1|c\nh:1|h"), [None, None, conflict]);
    }

    #[test]
    fn processes_that_come_and_go_leave_room_and_all_at_once() {
        let intake = limited(Limits { series: 2000, gauge_expiry_ms: Some(1), ..Limits::default() });
        let (mut expiries, mut most) = (0, 0);
        for at in 1..=200 {
            let of_tick: String = (0..100).map(|i| format!("busy:1|g|#process:{at}-{i}\n")).collect();
            intake.datagram(of_tick.as_bytes(), 0);
            let now_ms = at * 10_000;
            intake.lock().registry.end_gauges(&Senders::default(), now_ms);
            let before = intake.lock().registry.expiries;
            intake.expire(&mut tick(&intake, now_ms));
            expiries += intake.lock().registry.expiries - before;
            most = most.max(intake.lock().registry.len());
        }
        assert!(intake.lock().registry.overflows().is_empty());
        assert!(most <= 1000 && (20..=30).contains(&expiries), "{most} series, {expiries} times");
    }

    #[test]
    fn past_a_limit_what_would_be_a_new_series_goes_into_one_of_its_name() {
        let intake = limited(Limits { series: 6, series_per_metric: 3, ..Limits::default() });
        let lines: String = (0..10).map(|i| format!("c:1|c|#zone:a,user:{i}\nh:{i}|h|#user:{i}\n")).collect();
        assert_eq!(apply(&intake, &lines), vec![None; 20]);
        let got = changes(&intake);
        let is_own = |text: &str| got.iter().any(|line| line == text);
        assert_eq!(got.len(), 8, "three of each name, and one for the rest");
        assert!(
            is_own(r#"c{cortex_overflow="true"} 7"#) && is_own(r#"h{cortex_overflow="true"} count 7 sum 42"#),
            "{got:?}"
        );
        // All series together are too many, whatever their name, and one name more than a tenth of six; what is there goes on.
        assert_eq!(
            apply(&intake, "g:7|g|#a:1\ng:8|g|#a:2\ns:x|s\ns:y|s|#a:1\nc:1|c|#zone:a,user:0"),
            [None, None, Some("series_limit"), Some("series_limit"), None]
        );
        assert_eq!(changes(&intake), [r#"c{user="0", zone="a"} 2"#, r#"g{cortex_overflow="true"} 8"#]);
        let state = intake.lock();
        let overflow = &state.registry.overflows()["c"];
        assert_eq!((overflow.limit, overflow.messages), (Limit::SeriesPerMetric, 7));
        assert_eq!((overflow.label.as_str(), overflow.values), ("user", 3), "the label that explodes");
    }

    #[test]
    fn a_value_beyond_all_measure_overflows_too_and_its_total_is_exact() {
        let intake = intake();
        let long = "v".repeat(2049);
        let tags: String = (0..2000).map(|i| format!("t{i}:v,")).collect();
        let name = "n".repeat(1025);
        let text = format!("m:1|c|#a:{long}\nm:2|c|#{tags}\nm:4|c|#cortex_overflow:true\nm:8|c\n{name}:1|c");
        assert_eq!(apply(&intake, &text), [None, None, None, None, Some("too_long")]);
        let want = ["m 8", r#"m{cortex_overflow="true"} 3"#, r#"m{tag_cortex_overflow="true"} 4"#];
        assert_eq!(changes(&intake), want);
        let overflow = intake.lock().registry.overflows()["m"].clone();
        assert_eq!((overflow.limit, overflow.label.as_str(), overflow.values), (Limit::LabelValueBytes, "a", 0));
        // Each tag takes its time, of lines that are read anew whenever they come.
        let tags = |number: usize| (0..number).map(|i| format!("t{i},")).collect::<String>();
        apply(&intake, &format!("m:16|c|#{}\nm:32|c|#{}", tags(TAGS_MAX), tags(TAGS_MAX + 1)));
        let got = changes(&intake);
        assert_eq!(got[0], r#"m{cortex_overflow="true"} 35"#);
        assert!(got.len() == 2 && got[1].ends_with(" 16"), "{got:?}");
    }

    #[test]
    fn the_label_that_explodes_is_the_one_that_does_it_now() {
        // The first that ever did was named for good, of the metric and of all that came beyond all series.
        let limits = Limits { series: 18, series_per_metric: 10, series_expiry_ms: 1000, ..Limits::default() };
        let intake = limited(limits);
        let many = |name: &str, label: &str| {
            (0..15).for_each(|i| drop(apply(&intake, &format!("{name}:1|c|#{label}:{i},other:same"))));
        };
        let told = |name: &str| {
            let overflow = intake.lock().registry.overflows()[name].clone();
            (overflow.limit.as_str(), overflow.metric, overflow.label, overflow.messages)
        };
        let is = |limit, metric: &str, label: &str, messages| (limit, metric.to_owned(), label.to_owned(), messages);
        let leave = |at_ms| {
            let mut ticked = tick(&intake, at_ms);
            intake.expire(&mut ticked);
            assert_eq!(intake.lock().registry.len(), 0);
        };
        many("m", "user");
        assert_eq!(told("m"), is("series_per_metric", "m", "user", 5));
        many("all", "job");
        many("late", "x");
        assert_eq!(told("late"), is("series", "m", "user", 15));
        leave({
            tick(&intake, 10_000);
            12_000
        });
        many("m", "session");
        assert_eq!(told("m"), is("series_per_metric", "m", "user", 10), "all series are not looked at all the time");
        tick(&intake, 71_000);
        many("m", "session");
        assert_eq!(told("m"), is("series_per_metric", "m", "session", 15));
        tick(&intake, 80_000);
        many("later", "y");
        many("late", "y");
        assert_eq!(told("late").1, "m");
    }

    #[test]
    fn only_names_that_have_nothing_else_are_too_many_beyond_a_limit() {
        let intake = limited(Limits { series: 20, gauge_expiry_ms: Some(1), ..Limits::default() });
        let long = "v".repeat(3000);
        for name in 0..10 {
            let text = format!("n{name}:1|c\nn{name}:1|c|#u:{long}");
            assert_eq!(apply(&intake, &text), [None; 2]);
        }
        let alone = |names: std::ops::Range<u32>| -> Vec<Option<&str>> {
            names.flat_map(|name| apply(&intake, &format!("m{name}:1|g|#u:{long}"))).collect()
        };
        assert_eq!(alone(0..5), [None, None, None, Some("series_limit"), Some("series_limit")]);
        assert_eq!(apply(&intake, "m0:2|g"), [None], "it has another one now");
        assert_eq!(alone(3..5), [None, Some("series_limit")]);
        // Gone with their gauges, and room for others.
        tick(&intake, 1000);
        intake.lock().registry.end_gauges(&Senders::default(), 2000);
        tick(&intake, 3000);
        intake.expire(&mut tick(&intake, 3000 + ENDED_KEPT_MS + 1));
        assert_eq!(intake.lock().registry.overflow_names, 0);
        assert_eq!(alone(5..9), [None, None, None, Some("series_limit")]);
    }

    #[test]
    fn messages_are_counted_for_each_who_asks_and_by_nobody_else() {
        let intake = intake();
        let counts = |counted: Vec<(Labels, MetricKind, u64)>| -> Vec<(String, u64)> {
            counted.into_iter().map(|(labels, _, count)| (labels.to_string(), count)).collect()
        };
        let of = |a: u64, g: u64| vec![("a".to_owned(), a), ("g".to_owned(), g)];
        apply(&intake, "a:1|c\ng:1|g");
        assert!(intake.lock().registry.counted.is_empty());
        let first = intake.begin_count();
        apply(&intake, "a:1:2|c\na:1|c\ng:1|g\na:1|g");
        let second = intake.begin_count();
        apply(&intake, "a:1|c\ng:1|g\ng:2|g");
        assert_eq!(counts(intake.end_count(&second)), of(1, 2));
        apply(&intake, "a:1|c");
        assert_eq!(counts(intake.end_count(&first)), of(4, 3));
        assert!(intake.lock().registry.counted.is_empty(), "the last one ends it");
        apply(&intake, "a:1|c");
        assert!(intake.lock().registry.counted.is_empty());
    }

    #[test]
    fn labels_have_room_for_so_many_bytes_in_all() {
        let intake = limited(Limits { series: 10, ..Limits::default() });
        let value = |i: u32| format!("{i:0>960}");
        (0..10).for_each(|i| intake.datagram(format!("c:1|c|#short:{i},long:{}", value(i)).as_bytes(), 0));
        assert_eq!(apply(&intake, "other:1|c\nfits:1|c|#a:b"), [None; 2], "what is short finds room");
        let got = changes(&intake);
        assert!(got.contains(&r#"c{cortex_overflow="true"} 5"#.to_owned()) && got.len() == 5 + 1 + 2, "{got:?}");
        let overflow = intake.lock().registry.overflows()["c"].clone();
        assert_eq!((overflow.limit, overflow.label.as_str(), overflow.values), (Limit::LabelBytes, "long", 5));
        let registry = &intake.lock().registry;
        let of_all: usize = registry.lives().map(|(_, live)| live.labels.bytes()).sum();
        assert_eq!(registry.label_bytes, of_all);
    }

    #[test]
    fn series_that_come_and_go_too_fast_for_the_store_are_counted_together() {
        let intake = limited(Limits { series: 10, gauge_expiry_ms: Some(1), ..Limits::default() });
        let mut now_ms = 0;
        for i in 0..12 {
            let lines: String = (0..9).map(|k| format!("g:1|g|#process:{i}-{k}\n")).collect();
            intake.datagram(lines.as_bytes(), 0);
            for _ in 0..3 {
                now_ms += ENDED_KEPT_MS + 10_000;
                intake.lock().registry.end_gauges(&Senders::default(), now_ms);
                intake.expire(&mut tick(&intake, now_ms));
            }
        }
        let mut state = intake.lock();
        assert!(state.registry.is_empty());
        let overflow = &state.registry.overflows()["g"];
        assert_eq!((overflow.limit, overflow.messages), (Limit::StoredSeries, 12 * 9 - 100));
        state.registry.set_stored(50, 2000);
        drop(state);
        apply(&intake, "g:2|g|#process:7");
        assert_eq!(changes(&intake), [r#"g{process="7"} 2"#], "as soon as the store has room");
    }

    #[test]
    fn a_million_series_of_one_metric_take_the_memory_of_few() {
        let intake = limited(Limits { series_per_metric: 100, ..Limits::default() });
        let before = "kept:1|c|#a:1";
        assert_eq!(apply(&intake, before), [None]);
        for i in 0..10_000 {
            intake.datagram(format!("c:1|c|#user:{i},other:{}\nn{i}:1|g", i % 7).as_bytes(), 0);
        }
        assert_eq!(apply(&intake, before), [None]);
        intake.gather();
        let got = changes(&intake);
        assert!(got.contains(&r#"c{cortex_overflow="true"} 9900"#.to_owned()));
        assert!(got.contains(&r#"kept{a="1"} 2"#.to_owned()));
        assert!(intake.shard().lock().is_empty(), "a thread begins with nothing");
    }

    #[test]
    fn silent_series_leave_and_come_back_where_they_were() {
        let intake = limited(Limits { series_expiry_ms: 1000, ..Limits::default() });
        apply(&intake, "c:5|c|#a:1\nh:2|h\ng:7|g\nbusy:1|c");
        let mut first = tick(&intake, 1000);
        intake.expire(&mut first);
        assert_eq!((first.started.len(), first.ended.len()), (4, 0));
        apply(&intake, "busy:1|c");
        let mut second = tick(&intake, 2001);
        // What comes while the series is on its way out keeps it.
        assert!(intake.lock().registry.begin_expiry());
        apply(&intake, "h:3|h");
        intake.expire(&mut second);
        let value_of = |tick: &Tick, id| tick.samples.iter().find(|(i, _)| *i == id).map(|(_, value)| value.clone());
        let id_of = |name: &str| first.started.iter().find(|s| s.labels.name() == name).unwrap().id;
        assert_eq!(second.ended, [id_of("c")]);
        assert!(value_of(&second, id_of("c")).unwrap().is_stale());
        assert_eq!(intake.lock().registry.len(), 3, "the gauge stays: nobody said that it is over");
        assert_eq!(apply(&intake, "c:2|c|#a:1\nc:1|c|#a:2"), [None, None]);
        let known = |labels: &Labels, _| {
            (labels.get("a") == Some("1")).then(|| Known {
                id: id_of("c"),
                since_ms: 3,
                value: Some(Value::Float(5.0)),
            })
        };
        let third = intake.take(3000, 3000, 2001, known);
        assert_eq!(value_of(&third, id_of("c")), Some(Value::Float(7.0)));
        let earlier = |a: &str| {
            let started = third.started.iter().find(|s| s.labels.get("a") == Some(a)).unwrap();
            (started.since_ms(), started.earlier.as_ref().map(|earlier| earlier.value.clone()))
        };
        assert_eq!((earlier("1"), earlier("2")), ((3, Some(Value::Float(5.0))), (2001, None)));
        assert_eq!(value_of(&third, id_of("h")).unwrap().as_histogram().unwrap().count(), 2.0);
    }

    #[test]
    fn places_given_away_are_not_written_to_by_those_who_knew_the_way() {
        let intake = limited(Limits { series_expiry_ms: 1000, ..Limits::default() });
        apply(&intake, "old:1|c");
        tick(&intake, 1000);
        intake.expire(&mut tick(&intake, 3000));
        assert_eq!(intake.lock().registry.len(), 0);
        apply(&intake, "new:1|c\nold:1|c");
        assert_eq!(changes(&intake), ["new 1", "old 1"]);
    }

    #[test]
    fn gauges_end_with_their_writer_and_come_back_with_the_next() {
        let intake = intake();
        intake.datagram(b"cortex_client_payload_sequence:1|g|#client_id:0000000000000001\na:1|g\nc:1|c", 0);
        apply(&intake, "b:1|g");
        let end = |now_ms| {
            let mut state = intake.lock();
            let super::super::intake::IntakeState { registry, senders, .. } = &mut *state;
            registry.end_gauges(senders, now_ms);
        };
        end(30_000);
        assert_eq!(changes(&intake), ["a 1", "b 1", "c 1"]);
        end(30_001);
        assert_eq!(changes(&intake), ["a stale"]);
        apply(&intake, "a:+3|g");
        assert_eq!(changes(&intake), ["a 3"], "a delta starts from 0 again");
    }

    #[test]
    fn gauges_without_a_writer_end_if_a_flag_says_when() {
        let intake = limited(Limits { gauge_expiry_ms: Some(60_000), ..Limits::default() });
        apply(&intake, "a:1|g\nb:1|g");
        tick(&intake, 10_000);
        apply(&intake, "b:1|g");
        tick(&intake, 20_000);
        let end = |now_ms| {
            intake.lock().registry.end_gauges(&Senders::default(), now_ms);
            changes(&intake)
        };
        assert_eq!(end(70_000), [""; 0]);
        assert_eq!(end(70_001), ["a stale"]);
        apply(&intake, "a:+2|g");
        assert_eq!(changes(&intake), ["a 2"]);
    }

    #[test]
    fn a_set_counts_different_members_in_each_tick() {
        let intake = intake();
        assert_eq!(apply(&intake, "s:a|s\ns:b|s\ns:a|s|@0.1\ns:a:b|s\ns:1|s|#k:v"), [None; 5]);
        assert_eq!(changes(&intake), ["s 3", r#"s{k="v"} 1"#]);
        apply(&intake, "s:b|s");
        assert_eq!(changes(&intake), ["s 1", r#"s{k="v"} 0"#], "the next tick counts anew");
        assert_eq!(changes(&intake), ["s 0"]);
        assert_eq!(changes(&intake), [""; 0], "a quiet set stays at 0");
        assert_eq!(apply(&intake, "s:1|g\nx:1|g\nx:1|s"), [Some("type_conflict"), None, Some("type_conflict")]);
    }

    #[test]
    fn a_set_is_exact_up_to_its_bound_and_tells_of_what_is_beyond() {
        let intake = intake();
        let fill = |set: usize| {
            (0..SET_MEMBERS_MAX).for_each(|i| intake.datagram(format!("s{set}:user-{i}|s").as_bytes(), 0));
            assert!(intake.lock().totals.dropped.get("set_limit").is_none_or(|dropped| dropped.count == 1));
        };
        fill(0);
        let got = apply(&intake, "s0:user-7|s\ns0:one more|s");
        assert_eq!(got, [None, Some("set_limit")], "what is a member already is none too many");
        assert_eq!(changes(&intake), [format!("s0 {SET_MEMBERS_MAX}")]);
        (0..ALL_SETS_MEMBERS_MAX / SET_MEMBERS_MAX).for_each(fill);
        assert_eq!(apply(&intake, "small:a|s"), [Some("set_limit")], "all sets together have a bound too");
        changes(&intake);
        assert_eq!(apply(&intake, "small:a|s"), [None]);
    }

    #[test]
    fn a_set_of_before_a_restart_is_counted_anew_and_ends_with_its_writer() {
        let before = intake();
        before.datagram(b"cortex_client_payload_sequence:1|g|#client_id:00000000000000ff\ns:a|s", 0);
        before.datagram(b"anonymous:a|s", 0);
        let tick = tick(&before, 20);
        let series = tick.started.iter().zip(&tick.samples).zip(&tick.writers).map(|((started, sample), writer)| {
            assert_eq!(started.kind, MetricKind::Gauge);
            RestoredSeries {
                id: started.id,
                labels: started.labels.clone(),
                kind: started.kind,
                start_ms: started.start_ms,
                value: sample.1.clone(),
                last_ms: tick.timestamp_ms,
                writer: writer.1.clone(),
            }
        });
        let restored = Restored { last_tick_ms: Some(20), next_id: 9, series: series.collect() };
        let after = Intake::new(Registry::new(restored), 0);
        assert_eq!(after.lock().registry.writers().collect::<Vec<_>>(), [255]);
        assert_eq!(apply(&after, "anonymous:b|s\nanonymous:1|g"), [None, Some("type_conflict")]);
        assert_eq!(changes(&after), ["anonymous 1", "s 0"]);
        after.lock().registry.end_gauges(&Senders::default(), 30_001);
        assert_eq!(changes(&after), ["anonymous 0", "s stale"]);
    }

    #[test]
    fn totals_go_on_where_the_store_ended() {
        let series = |id, name: &str, kind, value| RestoredSeries {
            id: SeriesId(id),
            labels: Labels::from_pairs([(METRIC_NAME, name)]),
            kind,
            start_ms: 1,
            value,
            last_ms: 5,
            writer: "00000000000000ff".to_owned(),
        };
        let restored = Restored {
            last_tick_ms: Some(5),
            next_id: 9,
            series: vec![
                series(1, "c", MetricKind::Counter, Value::Float(41.0)),
                series(2, "g", MetricKind::Gauge, Value::stale()),
                series(3, "alive", MetricKind::Gauge, Value::Float(1.0)),
            ],
        };
        let intake = Intake::new(Registry::new(restored), 0);
        assert_eq!(intake.lock().registry.writers().collect::<Vec<_>>(), [255, 255]);
        assert_eq!(apply(&intake, "c:1|c\nnew:1|c\nalive:1|c\ng:1|c"), [None, None, Some("type_conflict"), None]);
        let tick = tick(&intake, 20);
        assert!(tick.samples.contains(&(SeriesId(1), Value::Float(42.0))));
        assert_eq!((tick.samples.len(), tick.started.len()), (3, 2), "what had ended holds no name");
    }
}
