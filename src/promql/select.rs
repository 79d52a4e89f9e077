//! Selection: what a selector's matchers find, the classic names of histograms among it.
//!
//! A histogram `h` also answers to `h_count`, `h_sum` and `h_bucket{le="..."}`, as if it had been recorded in classic
//! buckets on the [`Ladder`]. This happens here, before any operator, so that everything else sees
//! ordinary float series.

use std::collections::BTreeMap;

use super::deadline::Deadline;
use super::{LOOKBACK_MS, QueryError};
use crate::model::{AtMost, ExponentialHistogram, Labels, Ladder, METRIC_NAME, Sample, Value};
use crate::store::{MatchOp, Matcher, Part, Select, SelectedSeries, Selection, StoreError};

/// The classic names of a histogram's parts; all of it is needed for the buckets.
const PARTS: [(&str, Part); 3] = [("_count", Part::Count), ("_sum", Part::Sum), ("_bucket", Part::Whole)];
/// The label of a classic bucket's upper bound.
const LE: &str = "le";

/// Visits what the matchers say, one series at a time: what was recorded under that name, and what a histogram makes of it. A
/// name may be the one after the other: then both are one series.
pub(super) fn for_each(
    source: &dyn Select,
    ladder: &Ladder,
    selection: &Selection,
    look: &dyn Fn() -> Result<(), StoreError>,
    visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let Some((base, part)) = classic_part(&selection.matchers) else {
        return source.for_each_while(selection, look, visit);
    };
    if source.labels_while(selection, look)?.is_empty() {
        return for_each_derived(source, ladder, selection, base, part, look, visit);
    }
    // Where one ends and the other begins is known if each value stands at every tick.
    let selection = &Selection { repeats: true, ..selection.clone() };
    let (mut derived, mut held) = (BTreeMap::new(), 0);
    for_each_derived(source, ladder, selection, base, part, look, &mut |SelectedSeries { labels, samples }| {
        held += samples.len();
        derived.insert(labels, samples);
        if held > selection.samples_max { Err(StoreError::TooManySamples(selection.samples_max)) } else { Ok(()) }
    })?;
    source.for_each_while(selection, look, &mut |SelectedSeries { labels, samples }| {
        let samples = match derived.remove(&labels) {
            Some(derived) => merged(samples, derived),
            None => samples,
        };
        visit(SelectedSeries { labels, samples })
    })?;
    derived.into_iter().try_for_each(|(labels, samples)| visit(SelectedSeries { labels, samples }))
}

/// Samples of a recorded series and of one that a histogram makes. While both exist, the recorded one is the truth.
fn merged(recorded: Vec<Sample>, derived: Vec<Sample>) -> Vec<Sample> {
    let is_recorded = |time: i64| {
        let before = recorded.partition_point(|sample| sample.timestamp_ms <= time).checked_sub(1);
        let before = before.and_then(|at| recorded.get(at));
        before.is_some_and(|before| !before.value.is_stale() && time - before.timestamp_ms <= LOOKBACK_MS)
    };
    let mut samples: Vec<Sample> = derived.into_iter().filter(|sample| !is_recorded(sample.timestamp_ms)).collect();
    samples.extend(recorded);
    // Where one ends as the other begins, it goes on.
    samples.sort_by_key(|sample| (sample.timestamp_ms, sample.value.is_stale()));
    samples.dedup_by_key(|sample| sample.timestamp_ms);
    samples
}

/// The labels of what [`for_each`] would find, in any order, perhaps twice. Only for a classic name does it take a look at samples.
pub(super) fn labels(
    source: &dyn Select,
    ladder: &Ladder,
    selection: &Selection,
    deadline: &Deadline,
) -> Result<Vec<Labels>, QueryError> {
    let look = || deadline.look().map_err(|_| StoreError::Stopped);
    let ended = |error| deadline.look().err().unwrap_or(QueryError::from(error));
    let mut found = source.labels_while(selection, &look).map_err(ended)?;
    let Some((base, part)) = classic_part(&selection.matchers) else { return Ok(found) };
    // What has a count is a histogram.
    let of_base = Selection { matchers: matchers_of_base(selection, base), part: Part::Count, ..*selection };
    let visited = source.for_each_while(&of_base, &look, &mut |series| {
        look()?;
        let labels = renamed(&series.labels, base, part);
        if part == Part::Whole {
            found.extend(buckets(ladder, selection, &labels).1);
        } else if selection.matchers.iter().all(|matcher| matcher.matches(&labels)) {
            found.push(labels);
        }
        Ok(())
    });
    visited.map_err(ended)?;
    Ok(found)
}

/// The base name and the part, if the matchers demand a name with one of the classic suffixes.
fn classic_part(matchers: &[Matcher]) -> Option<(&str, Part)> {
    let name = matchers.iter().find_map(|matcher| match &matcher.op {
        MatchOp::Equal(name) if matcher.name == METRIC_NAME => Some(name.as_str()),
        _ => None,
    })?;
    let (base, part) = PARTS.into_iter().find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?, part)))?;
    (!base.is_empty()).then_some((base, part))
}

/// What is asked of the base of a classic name: the name and `le` come into being here.
fn matchers_of_base(selection: &Selection, base: &str) -> Vec<Matcher> {
    let of_base = |m: &&Matcher| m.name != METRIC_NAME && m.name != LE;
    let mut matchers: Vec<Matcher> = selection.matchers.iter().filter(of_base).cloned().collect();
    matchers.push(Matcher::metric(base));
    matchers
}

/// The labels of a part of a histogram `base`, but for `le`.
fn renamed(labels: &Labels, base: &str, part: Part) -> Labels {
    let suffix = PARTS.into_iter().find(|(_, named)| *named == part).map_or("", |(suffix, _)| suffix);
    labels.with(METRIC_NAME, &format!("{base}{suffix}"))
}

/// The wanted buckets, in the order of their bounds: bounds and labels.
fn buckets(ladder: &Ladder, selection: &Selection, labels: &Labels) -> (Vec<f64>, Vec<Labels>) {
    let bounds = ladder.bounds().map(|(bound, le)| (bound, labels.with(LE, le)));
    bounds.filter(|(_, labels)| selection.matchers.iter().all(|m| m.matches(labels))).unzip()
}

fn for_each_derived(
    source: &dyn Select,
    ladder: &Ladder,
    selection: &Selection,
    base: &str,
    part: Part,
    look: &dyn Fn() -> Result<(), StoreError>,
    visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let matchers = matchers_of_base(selection, base);
    source.for_each_while(&Selection { matchers, part, ..*selection }, look, &mut |series| {
        let labels = renamed(&series.labels, base, part);
        if part == Part::Whole {
            return for_each_bucket(ladder, selection, &labels, &series.samples, visit);
        }
        let is_wanted = selection.matchers.iter().all(|matcher| matcher.matches(&labels));
        if is_wanted { visit(SelectedSeries { labels, samples: series.samples }) } else { Ok(()) }
    })
}

/// Visits the wanted buckets of a histogram, in the order of their bounds.
fn for_each_bucket(
    ladder: &Ladder,
    selection: &Selection,
    labels: &Labels,
    samples: &[Sample],
    visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    if !samples.iter().any(|s| s.value.as_histogram().is_some()) {
        return Ok(());
    }
    let (bounds, names) = buckets(ladder, selection, labels);
    if samples.len().saturating_mul(bounds.len()) > selection.samples_max {
        return Err(StoreError::TooManySamples(selection.samples_max));
    }
    let mut columns: Vec<Vec<Sample>> = vec![Vec::with_capacity(samples.len()); bounds.len()];
    for sample in samples {
        // Float samples of the base are not of a histogram, but its end is its buckets' end.
        let values = match &sample.value {
            Value::Histogram(h) => counts(h, &bounds).into_iter().map(Value::Float).collect(),
            other if other.is_stale() => vec![Value::stale(); bounds.len()],
            Value::Float(_) => continue,
        };
        for (column, value) in columns.iter_mut().zip(values) {
            column.push(Sample { timestamp_ms: sample.timestamp_ms, value });
        }
    }
    let series = names.into_iter().zip(columns).filter(|(_, samples)| !samples.is_empty());
    series.into_iter().try_for_each(|(labels, samples)| visit(SelectedSeries { labels, samples }))
}

/// How many values of a histogram are at or below each of these bounds, which ascend: one pass over the buckets for all of them.
fn counts(h: &ExponentialHistogram, bounds: &[f64]) -> Vec<f64> {
    let mut buckets = AtMost::new(h);
    bounds.iter().map(|bound| if bound.is_infinite() { h.count() } else { buckets.count(*bound) }).collect()
}
