//! The state of all series after one tick: what a scrape shows.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroI64;
use std::ops::Bound;

use super::{Labels, MetricKind, Value};

/// Where in a snapshot a series stands, as long as it is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

/// One series.
#[derive(Debug, Clone)]
pub struct PublishedSeries {
    /// Its name and labels.
    pub labels: Labels,
    /// When it began at zero, in milliseconds since the Unix epoch; `None` if that is not known. (Not 0, since a series then
    /// takes 8 bytes less.)
    pub start_ms: Option<NonZeroI64>,
    /// What it is; the stale marker while it has ended.
    pub value: Value,
}

/// The series of one name.
#[derive(Debug, Clone)]
pub struct Family {
    /// What the name is.
    pub kind: MetricKind,
    /// In the order of their labels, unless series were added since [`Snapshot::settle`].
    places: Vec<Place>,
    is_settled: bool,
}

/// Of so many series the labels are asked for at once.
const AHEAD: usize = 16;

/// All series, each with one value. Its copy shares labels and histograms.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// When the tick was, `None` before the first of a new data directory.
    pub tick_ms: Option<i64>,
    series: Vec<Option<PublishedSeries>>,
    free: Vec<Place>,
    families: BTreeMap<Box<str>, Family>,
}

impl Snapshot {
    /// Adds a series that is not in it.
    pub fn insert(&mut self, kind: MetricKind, series: PublishedSeries) -> Place {
        let name = series.labels.name();
        if !self.families.contains_key(name) {
            self.families.insert(name.into(), Family { kind, places: Vec::new(), is_settled: true });
        }
        let place = self.free.pop().unwrap_or(Place(self.series.len() as u32));
        if let Some(family) = self.families.get_mut(name) {
            family.places.push(place);
            family.is_settled = family.places.len() == 1;
        }
        match self.series.get_mut(place.0 as usize) {
            Some(empty) => *empty = Some(series),
            None => self.series.push(Some(series)),
        }
        place
    }

    /// Gives a series another value.
    pub fn set(&mut self, place: Place, value: Value) {
        if let Some(Some(series)) = self.series.get_mut(place.0 as usize) {
            series.value = value;
        }
    }

    /// Takes series out.
    pub fn remove(&mut self, places: impl IntoIterator<Item = Place>) {
        let mut names = BTreeSet::new();
        for place in places {
            let Some(series) = self.series.get_mut(place.0 as usize).and_then(Option::take) else { continue };
            self.free.push(place);
            if !names.contains(series.labels.name()) {
                names.insert(series.labels.name().to_owned());
            }
        }
        // Once a name, however many of its series go.
        for name in names {
            let Some(family) = self.families.get_mut(&*name) else { continue };
            let series = &self.series;
            family.places.retain(|place| series.get(place.0 as usize).is_some_and(Option::is_some));
            if family.places.is_empty() {
                self.families.remove(&*name);
            }
        }
    }

    /// Brings series that were added into the order of their labels: to be called before anybody reads.
    pub fn settle(&mut self) {
        let series = &self.series;
        let labels = |place: &Place| series.get(place.0 as usize)?.as_ref().map(|series| &series.labels);
        for family in self.families.values_mut().filter(|family| !family.is_settled) {
            // A sort that finds what is in order already.
            family.places.sort_by(|a, b| labels(a).cmp(&labels(b)));
            family.is_settled = true;
        }
    }

    /// The names in their order, from the first one that is after `name`.
    pub fn families_after(&self, name: &str) -> impl Iterator<Item = (&str, &Family)> {
        let range = self.families.range::<str, _>((Bound::Excluded(name), Bound::Unbounded));
        range.map(|(name, family)| (&**name, family))
    }

    /// The family of a name.
    pub fn family(&self, name: &str) -> Option<&Family> {
        self.families.get(name)
    }

    /// The series of a family in the order of their labels, those that have ended left out, each with its number among all
    /// of the family; from number `from` on.
    pub fn series_from<'a>(
        &'a self,
        family: &'a Family,
        from: usize,
    ) -> impl Iterator<Item = (usize, &'a PublishedSeries)> {
        let places = family.places.get(from..).unwrap_or_default();
        let series_at = |place: &Place| self.series.get(place.0 as usize)?.as_ref();
        let series = (from..).step_by(AHEAD).zip(places.chunks(AHEAD)).flat_map(move |(from, places)| {
            // Labels lie anywhere in memory. Asked for one after the other, each would be waited for.
            let ahead: usize = places.iter().filter_map(series_at).map(|series| series.labels.bytes()).sum();
            std::hint::black_box(ahead);
            (from..).zip(places).filter_map(move |(at, place)| Some((at, series_at(place)?)))
        });
        series.filter(|(_, series)| !series.value.is_stale())
    }

    /// The series of a name that have not ended.
    pub fn series(&self, name: &str) -> impl Iterator<Item = &PublishedSeries> {
        self.family(name).into_iter().flat_map(|family| self.series_from(family, 0)).map(|(_, series)| series)
    }

    /// The families alone whose names begin with `prefix`.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> Self {
        let mut part = Self { tick_ms: self.tick_ms, ..Self::default() };
        let from = self.families.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        for (_, family) in from.take_while(|(name, _)| name.starts_with(prefix)) {
            for (_, series) in self.series_from(family, 0) {
                part.insert(family.kind, series.clone());
            }
        }
        part.settle();
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::METRIC_NAME;

    fn series(name: &str, label: &str) -> PublishedSeries {
        let labels = Labels::from_pairs([(METRIC_NAME, name), ("a", label)]);
        PublishedSeries { labels, start_ms: None, value: Value::Float(1.0) }
    }

    fn listed(snapshot: &Snapshot) -> Vec<String> {
        let families = snapshot.families_after("");
        families.flat_map(|(name, _)| snapshot.series(name)).map(|series| series.labels.to_string()).collect()
    }

    #[test]
    fn series_are_in_order_whenever_they_came_and_a_place_is_used_again() {
        let mut snapshot = Snapshot::default();
        let (gauge, counter) = (MetricKind::Gauge, MetricKind::Counter);
        let first = snapshot.insert(gauge, series("b", "3"));
        snapshot.insert(gauge, series("b", "1"));
        snapshot.insert(counter, series("a", "9"));
        snapshot.settle();
        let ended = snapshot.insert(gauge, series("b", "2"));
        snapshot.settle();
        assert_eq!(listed(&snapshot), [r#"a{a="9"}"#, r#"b{a="1"}"#, r#"b{a="2"}"#, r#"b{a="3"}"#]);
        snapshot.set(ended, Value::stale());
        snapshot.remove([first]);
        assert_eq!(listed(&snapshot), [r#"a{a="9"}"#, r#"b{a="1"}"#]);
        snapshot.set(ended, Value::Float(2.0));
        assert_eq!(snapshot.insert(counter, series("c", "1")), first);
        snapshot.settle();
        assert_eq!(listed(&snapshot), [r#"a{a="9"}"#, r#"b{a="1"}"#, r#"b{a="2"}"#, r#"c{a="1"}"#]);
        assert_eq!(listed(&snapshot.with_prefix("b")), [r#"b{a="1"}"#, r#"b{a="2"}"#]);
        snapshot.remove([first]);
        assert!(snapshot.family("c").is_none() && snapshot.family("b").is_some());
    }
}
