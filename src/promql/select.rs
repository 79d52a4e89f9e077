//! Selection: what a selector's matchers find, the classic names of histograms among it.
//!
//! A histogram `h` also answers to `h_count`, `h_sum` and `h_bucket{le="..."}`, as if it had been recorded in classic
//! buckets on the [`Ladder`]. This happens here, before any operator, so that everything else sees
//! ordinary float series.

use crate::model::{AtMost, ExponentialHistogram, Labels, Ladder, METRIC_NAME, Sample, Value};
use crate::store::{MatchOp, Matcher, Select, SelectedSeries, Selection, StoreError};

/// A part of a histogram that has a classic name.
#[derive(Debug, Clone, Copy)]
enum Part {
    Count,
    Sum,
    Buckets,
}

/// The label of a classic bucket's upper bound.
const LE: &str = "le";

/// Visits what the matchers say, one series at a time: first what was recorded under that name, then what a histogram
/// makes of it.
pub(super) fn for_each(
    source: &dyn Select,
    ladder: &Ladder,
    selection: &Selection,
    visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let Some((base, part)) = classic_part(&selection.matchers) else { return source.for_each(selection, visit) };
    let mut recorded: hashbrown::HashSet<Labels> = hashbrown::HashSet::new();
    source.for_each(selection, &mut |series| {
        recorded.insert(series.labels.clone());
        visit(series)
    })?;
    for_each_derived(source, ladder, selection, base, part, &mut |series| {
        // Where both exist, the recorded series is the truth.
        if recorded.contains(&series.labels) { Ok(()) } else { visit(series) }
    })
}

/// The labels of what [`for_each`] would find. Only for a classic name does it take a look at samples.
pub(super) fn labels(source: &dyn Select, ladder: &Ladder, selection: &Selection) -> Result<Vec<Labels>, StoreError> {
    if classic_part(&selection.matchers).is_none() {
        return source.labels(selection);
    }
    let mut found = Vec::new();
    for_each(source, ladder, selection, &mut |series| {
        found.push(series.labels);
        Ok(())
    })?;
    Ok(found)
}

/// The base name and the part, if the matchers demand a name with one of the classic suffixes.
fn classic_part(matchers: &[Matcher]) -> Option<(&str, Part)> {
    let name = matchers.iter().find_map(|matcher| match &matcher.op {
        MatchOp::Equal(name) if matcher.name == METRIC_NAME => Some(name.as_str()),
        _ => None,
    })?;
    let (base, part) = [("_count", Part::Count), ("_sum", Part::Sum), ("_bucket", Part::Buckets)]
        .into_iter()
        .find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?, part)))?;
    (!base.is_empty()).then_some((base, part))
}

fn for_each_derived(
    source: &dyn Select,
    ladder: &Ladder,
    selection: &Selection,
    base: &str,
    part: Part,
    visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    // The name and `le` come into being below; only the other labels can be asked of the base.
    let of_base = |m: &&Matcher| m.name != METRIC_NAME && m.name != LE;
    let mut matchers: Vec<Matcher> = selection.matchers.iter().filter(of_base).cloned().collect();
    matchers.push(Matcher::metric(base));
    let samples_max = selection.samples_max;
    let without_buckets = !matches!(part, Part::Buckets);
    source.for_each(&Selection { matchers, without_buckets, ..*selection }, &mut |series| {
        // Float samples of the base are not of a histogram, but its end is its parts' end.
        let of_histogram = |s: &Sample| s.value.as_histogram().is_some() || s.value.is_stale();
        if !series.samples.iter().any(|s| s.value.as_histogram().is_some()) {
            return Ok(());
        }
        let mut wanted = parts(&series.labels, ladder, base, part);
        wanted.retain(|(labels, _)| selection.matchers.iter().all(|m| m.matches(labels)));
        if series.samples.len().saturating_mul(wanted.len()) > samples_max {
            return Err(StoreError::TooManySamples(samples_max));
        }
        let reads: Vec<Read> = wanted.iter().map(|(_, read)| *read).collect();
        let mut columns: Vec<Vec<Sample>> = vec![Vec::with_capacity(series.samples.len()); wanted.len()];
        for sample in series.samples.iter().filter(|s| of_histogram(s)) {
            let values = match sample.value.as_histogram() {
                Some(h) => read_all(h, &reads).into_iter().map(Value::Float).collect(),
                None => vec![Value::stale(); reads.len()],
            };
            for (column, value) in columns.iter_mut().zip(values) {
                column.push(Sample { timestamp_ms: sample.timestamp_ms, value });
            }
        }
        wanted
            .into_iter()
            .zip(columns)
            .filter(|(_, samples)| !samples.is_empty())
            .try_for_each(|((labels, _), samples)| visit(SelectedSeries { labels, samples }))
    })
}

/// How one derived series reads a histogram.
#[derive(Debug, Clone, Copy)]
enum Read {
    Count,
    Sum,
    AtMost(f64),
}

/// What each of `reads` sees in a histogram, bounds in ascending order: one pass over the buckets for all of them.
fn read_all(h: &ExponentialHistogram, reads: &[Read]) -> Vec<f64> {
    let needs_buckets = reads.iter().any(|read| matches!(read, Read::AtMost(_)));
    let mut buckets = needs_buckets.then(|| AtMost::new(h));
    let mut read = |read: &Read| match *read {
        Read::Count => h.count(),
        Read::Sum => h.sum(),
        Read::AtMost(bound) => buckets.as_mut().map_or(0.0, |buckets| buckets.count(bound)),
    };
    reads.iter().map(&mut read).collect()
}

/// The series that one histogram series stands for.
fn parts(labels: &Labels, ladder: &Ladder, base: &str, part: Part) -> Vec<(Labels, Read)> {
    match part {
        Part::Count => vec![(labels.with(METRIC_NAME, &format!("{base}_count")), Read::Count)],
        Part::Sum => vec![(labels.with(METRIC_NAME, &format!("{base}_sum")), Read::Sum)],
        Part::Buckets => {
            let named = labels.with(METRIC_NAME, &format!("{base}_bucket"));
            let bound = |(bound, le): (f64, &str)| {
                let read = if bound.is_infinite() { Read::Count } else { Read::AtMost(bound) };
                (named.with(LE, le), read)
            };
            ladder.bounds().map(bound).collect()
        }
    }
}
