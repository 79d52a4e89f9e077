//! The registry: every live series and its value.
//!
//! A message finds its series by the raw bytes of its type, name and tags, one hash look-up; only the first message with
//! these bytes goes through the mapping. Counters and histograms are cumulative and never go back. What changed since the
//! last tick is what the recorder takes. A set is a gauge to all who read: how many different members came in the tick.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::mapping::series_of;
use super::senders::Senders;
use crate::dogstatsd::{Message, MessageType, MessageValue};
use crate::model::{ExponentialHistogram, Labels, METRIC_NAME, MetricKind, SeriesId, Value};
use crate::store::{Restored, StartedSeries, Tick};

/// How many series there may be. A sender with an unbounded tag must not take the memory of the others.
const SERIES_MAX: usize = 100_000;
/// How many spellings of names and tags are remembered; then they are learned anew.
const ROUTES_MAX: usize = 4 * SERIES_MAX;
/// The longest name with tags that becomes a series, in bytes. What is longer is no metric, and takes the memory of many.
const CONTEXT_BYTES_MAX: usize = 4096;
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

/// Why a well-formed message is not stored; `as_str` is the `reason` of the counted drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The name is already used with another type.
    #[error("the name is already used with another type")]
    TypeConflict,
    /// The name is reserved for the collector itself.
    #[error("names that start with {OWN_PREFIX} are the collector's own")]
    ReservedName,
    /// A counter cannot go back.
    #[error("a counter cannot go back")]
    NegativeCounter,
    /// The value, or what it would make of the total, is not finite.
    #[error("the total would not be finite")]
    NotFinite,
    /// Name and tags are too long.
    #[error("name and tags take more than {CONTEXT_BYTES_MAX} bytes")]
    TooLong,
    /// The set, or all sets together, have as many members as are told apart in a tick.
    #[error("the set has {SET_MEMBERS_MAX} values already in this tick, or all sets {ALL_SETS_MEMBERS_MAX}")]
    SetLimit,
    /// There are too many series.
    #[error("there are {SERIES_MAX} series already; is a tag unbounded?")]
    SeriesLimit,
}

impl Refusal {
    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TypeConflict => "type_conflict",
            Self::ReservedName => "reserved_name",
            Self::NegativeCounter => "negative_counter",
            Self::NotFinite => "total_not_finite",
            Self::TooLong => "too_long",
            Self::SetLimit => "set_limit",
            Self::SeriesLimit => "series_limit",
        }
    }
}

/// What a name is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usage {
    Counter,
    Gauge,
    Set,
    Histogram,
}

impl Usage {
    fn of(message: MessageType) -> Self {
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
}

#[derive(Debug)]
enum LiveValue {
    Counter(f64),
    Gauge(f64),
    Histogram(ExponentialHistogram),
    /// Hashes of the members that came since the last tick. That two of 10,000 have the same is less likely than 3e-12.
    Set(HashSet<u64, RandomState>),
}

/// What all sets share.
#[derive(Debug, Default)]
struct Members {
    /// The slower variant, whose hashes are spread over all 64 bits.
    hasher: foldhash::quality::RandomState,
    /// How many there are in all sets since the last tick.
    len: usize,
}

impl LiveValue {
    fn new(usage: Usage) -> Self {
        match usage {
            Usage::Counter => Self::Counter(0.0),
            Usage::Gauge => Self::Gauge(0.0),
            Usage::Histogram => Self::Histogram(ExponentialHistogram::default()),
            Usage::Set => Self::Set(HashSet::default()),
        }
    }

    /// Adds all values of a message, or none. A change to a gauge that has ended starts from 0.
    fn add(&mut self, message: &Message<'_>, is_ended: bool, all: &mut Members) -> Result<(), Refusal> {
        match self {
            Self::Counter(total) => {
                let mut grown = *total;
                for value in message.values() {
                    let (MessageValue::Absolute(value) | MessageValue::Delta(value)) = value;
                    if value < 0.0 {
                        return Err(Refusal::NegativeCounter);
                    }
                    grown += value * message.weight;
                }
                if !grown.is_finite() {
                    return Err(Refusal::NotFinite);
                }
                *total = grown;
            }
            Self::Gauge(last) => {
                let before = if is_ended { 0.0 } else { *last };
                let after = message.values().fold(before, |gauge, value| match value {
                    MessageValue::Absolute(value) => value,
                    MessageValue::Delta(delta) => gauge + delta,
                });
                if !after.is_finite() {
                    return Err(Refusal::NotFinite);
                }
                *last = after;
            }
            Self::Histogram(histogram) => {
                let factor = if message.kind == MessageType::Timer { 1e-3 } else { 1.0 };
                let absolute = |value: MessageValue| {
                    let (MessageValue::Absolute(value) | MessageValue::Delta(value)) = value;
                    value * factor
                };
                let (mut count, mut sum) = (histogram.count(), histogram.sum());
                for value in message.values() {
                    count += message.weight;
                    sum += absolute(value) * message.weight;
                }
                if !(sum.is_finite() && count.is_finite()) {
                    return Err(Refusal::NotFinite);
                }
                message.values().for_each(|value| histogram.record(absolute(value), message.weight));
            }
            Self::Set(members) => {
                let hash = all.hasher.hash_one(message.member().unwrap_or_default());
                if !members.contains(&hash) {
                    if members.len() >= SET_MEMBERS_MAX || all.len >= ALL_SETS_MEMBERS_MAX {
                        return Err(Refusal::SetLimit);
                    }
                    members.insert(hash);
                    all.len += 1;
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Live {
    id: SeriesId,
    labels: Labels,
    usage: Usage,
    value: LiveValue,
    /// For a gauge or a set, the process that wrote it last; `None` if it did not name itself.
    writer: Option<u64>,
    is_new: bool,
    is_changed: bool,
    is_ended: bool,
    is_writer_changed: bool,
}

/// Every live series.
#[derive(Debug)]
pub struct Registry {
    series: Vec<Live>,
    by_labels: HashMap<Labels, usize, RandomState>,
    usages: HashMap<Box<str>, Usage, RandomState>,
    /// Raw type, name and tags → place in `series`.
    routes: HashMap<Box<[u8]>, usize, RandomState>,
    route: Vec<u8>,
    next_id: u64,
    changed: Vec<usize>,
    tags_dropped: u64,
    members: Members,
}

impl Registry {
    /// A registry that goes on where the store ended: totals as last committed, gauges until their writers turn out to be gone.
    pub fn new(restored: Restored) -> Self {
        let mut registry = Self {
            series: Vec::with_capacity(restored.series.len()),
            by_labels: HashMap::default(),
            usages: HashMap::default(),
            routes: HashMap::default(),
            route: Vec::new(),
            next_id: restored.next_id,
            changed: Vec::new(),
            tags_dropped: 0,
            members: Members::default(),
        };
        for series in restored.series {
            let is_ended = series.value.is_stale();
            let of_set = series.writer.strip_prefix(SET_WRITER);
            let usage = if of_set.is_some() { Usage::Set } else { Usage::of_own(series.kind) };
            // The members of before are gone with the tick that counted them.
            let is_changed = of_set.is_some() && !is_ended && series.value != Value::Float(0.0);
            let value = match series.value {
                Value::Float(_) if of_set.is_some() => LiveValue::Set(HashSet::default()),
                Value::Float(value) if usage == Usage::Counter => LiveValue::Counter(value),
                Value::Float(value) => LiveValue::Gauge(if is_ended { 0.0 } else { value }),
                Value::Histogram(histogram) => LiveValue::Histogram(Arc::unwrap_or_clone(histogram)),
            };
            let writer = u64::from_str_radix(of_set.unwrap_or(&series.writer), 16).ok();
            let at = registry.insert(Live {
                id: series.id,
                labels: series.labels,
                usage,
                value,
                writer,
                is_new: false,
                is_changed: false,
                is_ended,
                is_writer_changed: false,
            });
            if is_changed {
                registry.mark_changed(at);
            }
        }
        registry
    }

    fn insert(&mut self, live: Live) -> usize {
        let at = self.series.len();
        self.usages.insert(live.labels.name().into(), live.usage);
        self.by_labels.insert(live.labels.clone(), at);
        self.series.push(live);
        at
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// How many tags fell away since the start: those without a key and those whose label was taken.
    pub fn tags_dropped(&self) -> u64 {
        self.tags_dropped
    }

    /// The writers of the gauges that live.
    pub fn writers(&self) -> impl Iterator<Item = u64> {
        self.series.iter().filter(|live| !live.is_ended).filter_map(|live| live.writer)
    }

    /// Applies one message, all of its values or none.
    pub fn apply(&mut self, message: &Message<'_>, writer: Option<u64>) -> Result<(), Refusal> {
        let usage = Usage::of(message.kind);
        self.route.clear();
        self.route.push(usage as u8);
        self.route.extend_from_slice(message.name);
        self.route.push(b'|');
        self.route.extend_from_slice(message.tags);
        match self.routes.get(self.route.as_slice()) {
            Some(at) => self.add(*at, message, writer),
            None => self.apply_unrouted(message, usage, writer),
        }
    }

    fn add(&mut self, at: usize, message: &Message<'_>, writer: Option<u64>) -> Result<(), Refusal> {
        let Some(live) = self.series.get_mut(at) else { return Ok(()) };
        live.value.add(message, live.is_ended, &mut self.members)?;
        if live.usage.kind() == MetricKind::Gauge {
            live.is_writer_changed |= live.writer != writer;
            live.writer = writer;
        }
        live.is_ended = false;
        self.mark_changed(at);
        Ok(())
    }

    /// A message whose raw bytes are new: it goes through the mapping. A series begins only with a message that it takes.
    fn apply_unrouted(&mut self, message: &Message<'_>, usage: Usage, writer: Option<u64>) -> Result<(), Refusal> {
        if message.name.len() + message.tags.len() > CONTEXT_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        let (labels, fallen) = series_of(message);
        if labels.name().starts_with(OWN_PREFIX) {
            return Err(Refusal::ReservedName);
        }
        let at = if let Some(at) = self.find(&labels, usage)? {
            self.add(at, message, writer)?;
            at
        } else {
            let mut value = LiveValue::new(usage);
            value.add(message, false, &mut self.members)?;
            let at = self.begin(labels, usage, value);
            if let Some(live) = self.series.get_mut(at).filter(|_| usage.kind() == MetricKind::Gauge) {
                // That it is a set is stored with its writer, named or not.
                live.is_writer_changed = usage == Usage::Set || writer.is_some();
                live.writer = writer;
            }
            self.mark_changed(at);
            at
        };
        self.tags_dropped += fallen as u64;
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        self.routes.insert(self.route.as_slice().into(), at);
        Ok(())
    }

    fn mark_changed(&mut self, at: usize) {
        if let Some(live) = self.series.get_mut(at).filter(|live| !live.is_changed) {
            live.is_changed = true;
            self.changed.push(at);
        }
    }

    /// The series with these labels; `None` if it may begin.
    fn find(&self, labels: &Labels, usage: Usage) -> Result<Option<usize>, Refusal> {
        match self.usages.get(labels.name()) {
            Some(known) if *known != usage => return Err(Refusal::TypeConflict),
            None if self.meets_a_histogram(labels.name(), usage) => return Err(Refusal::TypeConflict),
            _ => {}
        }
        match self.by_labels.get(labels) {
            Some(at) => Ok(Some(*at)),
            // The account must find room when nothing else does.
            None if self.series.len() >= SERIES_MAX && !labels.name().starts_with(OWN_PREFIX) => {
                Err(Refusal::SeriesLimit)
            }
            None => Ok(None),
        }
    }

    fn begin(&mut self, labels: Labels, usage: Usage, value: LiveValue) -> usize {
        let id = SeriesId(self.next_id);
        self.next_id += 1;
        self.insert(Live {
            id,
            labels,
            usage,
            value,
            writer: None,
            is_new: true,
            is_changed: false,
            is_ended: false,
            is_writer_changed: false,
        })
    }

    /// Whether a new name would read like a part of a histogram's classic form, or a new histogram's like a name there is.
    fn meets_a_histogram(&self, name: &str, usage: Usage) -> bool {
        CLASSIC_SUFFIXES.iter().any(|suffix| match usage {
            Usage::Histogram => self.usages.contains_key(format!("{name}{suffix}").as_str()),
            _ => name.strip_suffix(suffix).is_some_and(|base| self.usages.get(base) == Some(&Usage::Histogram)),
        })
    }

    /// Adds to one of the collector's own counters (`delta`), or sets one of its gauges.
    pub fn record_own(&mut self, kind: MetricKind, name: &str, label: Option<(&str, &str)>, value: f64) {
        let name = format!("{OWN_PREFIX}{name}");
        let labels = Labels::from_pairs(label.into_iter().chain([(METRIC_NAME, name.as_str())]));
        let usage = Usage::of_own(kind);
        let at = match self.find(&labels, usage) {
            Ok(Some(at)) => at,
            Ok(None) => self.begin(labels, usage, LiveValue::new(usage)),
            Err(_) => return,
        };
        let Some(live) = self.series.get_mut(at) else { return };
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

    /// Ends the gauges whose writers are no longer alive. Gauges of senders that do not name themselves stay.
    pub fn end_gauges(&mut self, senders: &Senders, now_ms: i64) {
        let gone: Vec<usize> = self
            .series
            .iter()
            .enumerate()
            .filter(|(_, live)| live.usage.kind() == MetricKind::Gauge && !live.is_ended)
            .filter(|(_, live)| live.writer.is_some_and(|writer| !senders.is_alive(writer, now_ms)))
            .map(|(at, _)| at)
            .collect();
        for at in gone {
            if let Some(live) = self.series.get_mut(at) {
                live.is_ended = true;
            }
            self.mark_changed(at);
        }
    }

    /// Forgets series that are gone from the store. One that has come back since begins anew.
    pub fn forget(&mut self, gone: &HashSet<SeriesId>) {
        let old = std::mem::take(&mut self.series);
        self.by_labels.clear();
        self.usages.clear();
        self.routes.clear();
        self.changed.clear();
        for mut live in old {
            let is_gone = gone.contains(&live.id);
            if is_gone && live.is_ended {
                continue;
            }
            if is_gone {
                live.id = SeriesId(self.next_id);
                self.next_id += 1;
                live.is_new = true;
                live.is_changed = true;
            }
            let is_changed = live.is_changed;
            let at = self.insert(live);
            if is_changed {
                self.changed.push(at);
            }
        }
    }

    /// Takes what changed since the last call, as a tick of `timestamp_ms`; series that are new began at `start_ms`.
    pub fn take_changes(&mut self, timestamp_ms: i64, start_ms: i64) -> Tick {
        let mut tick = Tick { timestamp_ms, ..Tick::default() };
        self.members.len = 0;
        for at in std::mem::take(&mut self.changed) {
            let Some(live) = self.series.get_mut(at) else { continue };
            live.is_changed = false;
            if std::mem::take(&mut live.is_new) {
                tick.started.push(StartedSeries {
                    id: live.id,
                    labels: live.labels.clone(),
                    kind: live.usage.kind(),
                    start_ms,
                });
            }
            if std::mem::take(&mut live.is_writer_changed) {
                let id = live.writer.map_or_else(String::new, |id| format!("{id:016x}"));
                tick.writers.push((live.id, if live.usage == Usage::Set { format!("{SET_WRITER}{id}") } else { id }));
            }
            let value = match &mut live.value {
                LiveValue::Set(members) => {
                    let members = std::mem::take(members).len();
                    // The next tick counts anew, if only to say that nothing came.
                    if members > 0 && !live.is_ended {
                        live.is_changed = true;
                        self.changed.push(at);
                    }
                    if live.is_ended { Value::stale() } else { Value::Float(members as f64) }
                }
                _ if live.is_ended => Value::stale(),
                LiveValue::Counter(value) | LiveValue::Gauge(value) => Value::Float(*value),
                LiveValue::Histogram(histogram) => Value::Histogram(Arc::new(histogram.clone())),
            };
            tick.samples.push((live.id, value));
        }
        tick
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dogstatsd::{Header, decode};
    use crate::store::RestoredSeries;

    fn registry() -> Registry {
        Registry::new(Restored::default())
    }

    fn apply(registry: &mut Registry, text: &str) -> Vec<Option<Refusal>> {
        decode(text.as_bytes()).map(|m| registry.apply(&m.unwrap(), None).err()).collect()
    }

    fn changes(registry: &mut Registry) -> Vec<String> {
        let names: HashMap<SeriesId, String> = registry.series.iter().map(|l| (l.id, l.labels.to_string())).collect();
        let tick = registry.take_changes(20, 10);
        let text = |value: &Value| match value {
            v if v.is_stale() => "stale".to_owned(),
            Value::Float(v) => v.to_string(),
            Value::Histogram(h) => format!("count {} sum {}", h.count(), h.sum()),
        };
        tick.samples.iter().map(|(id, value)| format!("{} {}", names[id], text(value))).collect()
    }

    #[test]
    fn messages_of_one_series_add_up_whatever_the_order_of_their_tags() {
        let mut registry = registry();
        assert_eq!(apply(&mut registry, "c:1|c|#a:1,b:2\nc:2|c|@0.5|#b:2,a:1\nc:1:2|c|#a:1,b:2"), [None; 3]);
        apply(&mut registry, "g:5|g\ng:+2|g\ng:-1|g\nt:1500|ms\nt:0.5|h\nh:2|d|@0.25");
        assert_eq!(changes(&mut registry), [r#"c{a="1", b="2"} 8"#, "g 6", "t count 2 sum 2", "h count 4 sum 8"]);
        assert_eq!(changes(&mut registry), [""; 0], "what was taken has not changed");
    }

    #[test]
    fn a_message_that_is_refused_changes_nothing() {
        let mut registry = registry();
        apply(&mut registry, "m:1|c");
        let got =
            apply(&mut registry, "m:1|g\nm:1:-1|c\nm:1e308:1e308|c\nh:1:1|h|@1e-308\ncortex_collector_x:1|c\nm:1|c");
        use Refusal::*;
        assert_eq!(
            got,
            [Some(TypeConflict), Some(NegativeCounter), Some(NotFinite), Some(NotFinite), Some(ReservedName), None]
        );
        assert_eq!(changes(&mut registry), ["m 2"]);
    }

    #[test]
    fn a_message_that_is_refused_begins_no_series_and_takes_no_name() {
        let mut registry = registry();
        let got = apply(&mut registry, "m:-1|c\nm:1e308:1e308|c\nm:1|g\nx:+1e308:+1e308|g\nx:1|c");
        use Refusal::*;
        assert_eq!(got, [Some(NegativeCounter), Some(NotFinite), None, Some(NotFinite), None]);
        assert_eq!((changes(&mut registry), registry.len()), (vec!["m 1".to_owned(), "x 1".to_owned()], 2));
    }

    #[test]
    fn a_name_that_reads_like_a_part_of_a_histogram_is_a_conflict() {
        let mut registry = registry();
        let conflict = Some(Refusal::TypeConflict);
        let got = apply(&mut registry, "h:1|h\nh_count:1|c\nh_sum:1|g\nh_max:1|g\nx_bucket:1|c\nx:1|h\nx:1|c");
        assert_eq!(got, [None, conflict, conflict, None, None, conflict, None]);
    }

    #[test]
    fn a_name_with_tags_beyond_all_measure_is_refused() {
        let mut registry = registry();
        let tags: String = (0..2000).map(|i| format!("t{i}:v,")).collect();
        assert_eq!(apply(&mut registry, &format!("m:1|c|#{tags}\nm:1|c")), [Some(Refusal::TooLong), None]);
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn gauges_end_with_their_writer_and_come_back_with_the_next() {
        let mut registry = registry();
        let mut senders = Senders::default();
        senders.heard(Header { client_id: 1, sequence: 1 }, 0);
        for (text, writer) in [("a:1|g", Some(1)), ("b:1|g", None), ("c:1|c", Some(1))] {
            registry.apply(&decode(text.as_bytes()).next().unwrap().unwrap(), writer).unwrap();
        }
        registry.end_gauges(&senders, 30_000);
        assert_eq!(changes(&mut registry), ["a 1", "b 1", "c 1"]);
        registry.end_gauges(&senders, 30_001);
        assert_eq!(changes(&mut registry), ["a stale"]);
        apply(&mut registry, "a:+3|g");
        assert_eq!(changes(&mut registry), ["a 3"], "a delta starts from 0 again");
    }

    #[test]
    fn a_set_counts_different_members_in_each_tick() {
        let mut registry = registry();
        assert_eq!(apply(&mut registry, "s:a|s\ns:b|s\ns:a|s|@0.1\ns:a:b|s\ns:1|s|#k:v"), [None; 5]);
        assert_eq!(changes(&mut registry), ["s 3", r#"s{k="v"} 1"#]);
        apply(&mut registry, "s:b|s");
        assert_eq!(changes(&mut registry), ["s 1", r#"s{k="v"} 0"#], "the next tick counts anew");
        assert_eq!(changes(&mut registry), ["s 0"]);
        assert_eq!(changes(&mut registry), [""; 0], "a quiet set stays at 0");
        assert_eq!(
            apply(&mut registry, "s:1|g\nx:1|g\nx:1|s"),
            [Some(Refusal::TypeConflict), None, Some(Refusal::TypeConflict)]
        );
    }

    #[test]
    fn a_set_is_exact_up_to_its_bound_and_tells_of_what_is_beyond() {
        let mut registry = registry();
        let fill = |registry: &mut Registry, set: usize| {
            (0..SET_MEMBERS_MAX)
                .map(|i| apply(registry, &format!("s{set}:user-{i}|s")))
                .for_each(|got| assert_eq!(got, [None]));
        };
        fill(&mut registry, 0);
        let got = apply(&mut registry, "s0:user-7|s\ns0:one more|s");
        assert_eq!(got, [None, Some(Refusal::SetLimit)], "what is a member already is none too many");
        assert_eq!(changes(&mut registry), [format!("s0 {SET_MEMBERS_MAX}")]);
        for set in 0..ALL_SETS_MEMBERS_MAX / SET_MEMBERS_MAX {
            fill(&mut registry, set);
        }
        assert_eq!(apply(&mut registry, "small:a|s"), [Some(Refusal::SetLimit)], "all sets together have a bound too");
        changes(&mut registry);
        assert_eq!(apply(&mut registry, "small:a|s"), [None]);
    }

    #[test]
    fn a_set_of_before_a_restart_is_counted_anew_and_ends_with_its_writer() {
        let mut before = registry();
        before.apply(&decode(b"s:a|s").next().unwrap().unwrap(), Some(255)).unwrap();
        before.apply(&decode(b"anonymous:a|s").next().unwrap().unwrap(), None).unwrap();
        let tick = before.take_changes(20, 10);
        let series = tick.started.iter().zip(&tick.samples).zip(&tick.writers).map(|((started, sample), writer)| {
            assert_eq!(started.kind, MetricKind::Gauge);
            RestoredSeries {
                id: started.id,
                labels: started.labels.clone(),
                kind: started.kind,
                start_ms: started.start_ms,
                value: sample.1.clone(),
                writer: writer.1.clone(),
            }
        });
        let mut after = Registry::new(Restored { last_tick_ms: Some(20), next_id: 9, series: series.collect() });
        assert_eq!(after.writers().collect::<Vec<_>>(), [255]);
        assert_eq!(apply(&mut after, "anonymous:b|s\nanonymous:1|g"), [None, Some(Refusal::TypeConflict)]);
        assert_eq!(changes(&mut after), ["s 0", "anonymous 1"]);
        after.end_gauges(&Senders::default(), 30_001);
        assert_eq!(changes(&mut after), ["anonymous 0", "s stale"]);
    }

    #[test]
    fn totals_go_on_where_the_store_ended() {
        let series = |id, name: &str, kind, value| RestoredSeries {
            id: SeriesId(id),
            labels: Labels::from_pairs([(METRIC_NAME, name)]),
            kind,
            start_ms: 1,
            value,
            writer: "00000000000000ff".to_owned(),
        };
        let mut registry = Registry::new(Restored {
            last_tick_ms: Some(5),
            next_id: 9,
            series: vec![
                series(1, "c", MetricKind::Counter, Value::Float(41.0)),
                series(2, "g", MetricKind::Gauge, Value::stale()),
            ],
        });
        assert_eq!(registry.writers().collect::<Vec<_>>(), [255]);
        apply(&mut registry, "c:1|c\nnew:1|c");
        let tick = registry.take_changes(20, 10);
        assert_eq!(tick.samples, [(SeriesId(1), Value::Float(42.0)), (SeriesId(9), Value::Float(1.0))]);
        assert_eq!(tick.started.len(), 1);
    }
}
