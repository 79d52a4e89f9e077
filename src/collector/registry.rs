//! The registry: every live series and its value.
//!
//! A message finds its series by the raw bytes of its type, name and tags, one hash look-up; only the first message with
//! these bytes goes through the mapping. Counters and histograms are cumulative and never go back. What changed since the
//! last tick is what the recorder takes.

use std::collections::{HashMap, HashSet};
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
            Self::SeriesLimit => "series_limit",
        }
    }
}

#[derive(Debug)]
enum LiveValue {
    Float(f64),
    Histogram(ExponentialHistogram),
}

#[derive(Debug)]
struct Live {
    id: SeriesId,
    labels: Labels,
    kind: MetricKind,
    value: LiveValue,
    /// For a gauge, the process that set it last; `None` if it did not name itself.
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
    kinds: HashMap<Box<str>, MetricKind, RandomState>,
    /// Raw type, name and tags → place in `series`.
    routes: HashMap<Box<[u8]>, usize, RandomState>,
    route: Vec<u8>,
    next_id: u64,
    changed: Vec<usize>,
    tags_dropped: u64,
}

impl Registry {
    /// A registry that goes on where the store ended: totals as last committed, gauges until their writers turn out to be gone.
    pub fn new(restored: Restored) -> Self {
        let mut registry = Self {
            series: Vec::with_capacity(restored.series.len()),
            by_labels: HashMap::default(),
            kinds: HashMap::default(),
            routes: HashMap::default(),
            route: Vec::new(),
            next_id: restored.next_id,
            changed: Vec::new(),
            tags_dropped: 0,
        };
        for series in restored.series {
            let is_ended = series.value.is_stale();
            let value = match series.value {
                Value::Float(_) if is_ended => LiveValue::Float(0.0),
                Value::Float(value) => LiveValue::Float(value),
                Value::Histogram(histogram) => LiveValue::Histogram(Arc::unwrap_or_clone(histogram)),
            };
            let writer = u64::from_str_radix(&series.writer, 16).ok();
            registry.insert(Live {
                id: series.id,
                labels: series.labels,
                kind: series.kind,
                value,
                writer,
                is_new: false,
                is_changed: false,
                is_ended,
                is_writer_changed: false,
            });
        }
        registry
    }

    fn insert(&mut self, live: Live) -> usize {
        let at = self.series.len();
        self.kinds.insert(live.labels.name().into(), live.kind);
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
        let kind = match message.kind {
            MessageType::Counter => MetricKind::Counter,
            MessageType::Gauge => MetricKind::Gauge,
            MessageType::Timer | MessageType::Histogram | MessageType::Distribution => MetricKind::Histogram,
        };
        let at = self.route(message, kind)?;
        let Some(live) = self.series.get_mut(at) else { return Ok(()) };
        match &mut live.value {
            LiveValue::Float(total) if kind == MetricKind::Counter => {
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
            LiveValue::Float(last) => {
                let before = if live.is_ended { 0.0 } else { *last };
                let after = message.values().fold(before, |gauge, value| match value {
                    MessageValue::Absolute(value) => value,
                    MessageValue::Delta(delta) => gauge + delta,
                });
                if !after.is_finite() {
                    return Err(Refusal::NotFinite);
                }
                *last = after;
                live.is_writer_changed |= live.writer != writer;
                live.writer = writer;
            }
            LiveValue::Histogram(histogram) => {
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
        }
        live.is_ended = false;
        self.mark_changed(at);
        Ok(())
    }

    fn mark_changed(&mut self, at: usize) {
        if let Some(live) = self.series.get_mut(at).filter(|live| !live.is_changed) {
            live.is_changed = true;
            self.changed.push(at);
        }
    }

    /// The series of a message: by its raw bytes, or through the mapping if these are new.
    fn route(&mut self, message: &Message<'_>, kind: MetricKind) -> Result<usize, Refusal> {
        self.route.clear();
        self.route.push(kind as u8);
        self.route.extend_from_slice(message.name);
        self.route.push(b'|');
        self.route.extend_from_slice(message.tags);
        if let Some(at) = self.routes.get(self.route.as_slice()) {
            return Ok(*at);
        }
        if message.name.len() + message.tags.len() > CONTEXT_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        let (labels, fallen) = series_of(message);
        if labels.name().starts_with(OWN_PREFIX) {
            return Err(Refusal::ReservedName);
        }
        let at = self.series_at(labels, kind)?;
        self.tags_dropped += fallen as u64;
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        self.routes.insert(self.route.as_slice().into(), at);
        Ok(at)
    }

    fn series_at(&mut self, labels: Labels, kind: MetricKind) -> Result<usize, Refusal> {
        match self.kinds.get(labels.name()) {
            Some(known) if *known != kind => return Err(Refusal::TypeConflict),
            None if self.meets_a_histogram(labels.name(), kind) => return Err(Refusal::TypeConflict),
            _ => {}
        }
        if let Some(at) = self.by_labels.get(&labels) {
            return Ok(*at);
        }
        // The account must find room when nothing else does.
        if self.series.len() >= SERIES_MAX && !labels.name().starts_with(OWN_PREFIX) {
            return Err(Refusal::SeriesLimit);
        }
        let id = SeriesId(self.next_id);
        self.next_id += 1;
        let value = match kind {
            MetricKind::Histogram => LiveValue::Histogram(ExponentialHistogram::default()),
            MetricKind::Counter | MetricKind::Gauge => LiveValue::Float(0.0),
        };
        let live = Live {
            id,
            labels,
            kind,
            value,
            writer: None,
            is_new: true,
            is_changed: false,
            is_ended: false,
            is_writer_changed: false,
        };
        Ok(self.insert(live))
    }

    /// Whether a new name would read like a part of a histogram's classic form, or a new histogram's like a name there is.
    fn meets_a_histogram(&self, name: &str, kind: MetricKind) -> bool {
        CLASSIC_SUFFIXES.iter().any(|suffix| match kind {
            MetricKind::Histogram => self.kinds.contains_key(format!("{name}{suffix}").as_str()),
            _ => name.strip_suffix(suffix).is_some_and(|base| self.kinds.get(base) == Some(&MetricKind::Histogram)),
        })
    }

    /// Adds to one of the collector's own counters (`delta`), or sets one of its gauges.
    pub fn record_own(&mut self, kind: MetricKind, name: &str, label: Option<(&str, &str)>, value: f64) {
        let name = format!("{OWN_PREFIX}{name}");
        let labels = Labels::from_pairs(label.into_iter().chain([(METRIC_NAME, name.as_str())]));
        let Ok(at) = self.series_at(labels, kind) else { return };
        let Some(live) = self.series.get_mut(at) else { return };
        if let LiveValue::Float(current) = &mut live.value {
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
            .filter(|(_, live)| live.kind == MetricKind::Gauge && !live.is_ended)
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
        self.kinds.clear();
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
        for at in std::mem::take(&mut self.changed) {
            let Some(live) = self.series.get_mut(at) else { continue };
            live.is_changed = false;
            if std::mem::take(&mut live.is_new) {
                tick.started.push(StartedSeries {
                    id: live.id,
                    labels: live.labels.clone(),
                    kind: live.kind,
                    start_ms,
                });
            }
            if std::mem::take(&mut live.is_writer_changed) {
                let writer = live.writer.map_or_else(String::new, |id| format!("{id:016x}"));
                tick.writers.push((live.id, writer));
            }
            let value = match &live.value {
                _ if live.is_ended => Value::stale(),
                LiveValue::Float(value) => Value::Float(*value),
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
    fn totals_go_on_where_the_store_ended() {
        let series = |id, name: &str, kind, value| RestoredSeries {
            id: SeriesId(id),
            labels: Labels::from_pairs([(METRIC_NAME, name)]),
            kind,
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
