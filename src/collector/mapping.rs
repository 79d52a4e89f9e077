//! The one place where names become Prometheus names and tags become labels.
//!
//! The rules are those of Prometheus's data model ("Metric names and labels"): a name matches `[a-zA-Z_:][a-zA-Z0-9_:]*`, a
//! label `[a-zA-Z_][a-zA-Z0-9_]*`. Whatever else stands there becomes `_`. A mapping file can say otherwise for names that it
//! knows: `rules` finds out, and `file` reads it. Clients without `DogStatsD`'s tags write theirs into the name: [`Named`] takes them out.

mod file;
mod go_regex;
mod rules;
#[cfg(test)]
mod tests;

pub use file::MappingError;
pub use rules::Mapping;
pub(super) use rules::{Found, Mapped, MetricType};

use std::borrow::Cow;

use crate::dogstatsd::Message;
use crate::model::{Labels, METRIC_NAME};

/// A message's name and tags, also those that stand within the name, as three other dialects of `StatsD` write them
/// (`statsd_exporter`, "Tagging Extensions"): Librato's `name#key=value,key=value`, `InfluxDB`'s `name,key=value,key=value`, `SignalFX`'s
/// `name[key=value,key=value]` with the brackets anywhere. What is not made of such pairs altogether is a name as it stands.
pub(super) struct Named<'a> {
    pub(super) name: Cow<'a, [u8]>,
    within: Vec<Tag<'a>>,
    message: &'a Message<'a>,
}

type Tag<'a> = (&'a [u8], Option<&'a [u8]>);

impl<'a> Named<'a> {
    pub(super) fn of(message: &'a Message<'a>) -> Self {
        let (name, within) = signalfx(message.name)
            .or_else(|| librato_or_influxdb(message.name))
            .unwrap_or_else(|| (message.name.into(), Vec::new()));
        Self { name, within, message }
    }

    /// The tags in their order, those within the name first.
    pub(super) fn tags(&self) -> impl Iterator<Item = Tag<'a>> {
        self.within.iter().copied().chain(self.message.tags())
    }
}

fn signalfx(name: &[u8]) -> Option<(Cow<'_, [u8]>, Vec<Tag<'_>>)> {
    let (before, after) = name.split_at_checked(memchr::memchr(b'[', name)?)?;
    let (tags, after) = after.split_at_checked(memchr::memchr(b']', after)?)?;
    let name = Some([before, after.strip_prefix(b"]")?].concat()).filter(|name| !name.is_empty())?;
    Some((name.into(), pairs(tags.strip_prefix(b"[")?)?))
}

fn librato_or_influxdb(name: &[u8]) -> Option<(Cow<'_, [u8]>, Vec<Tag<'_>>)> {
    let (name, tags) = name.split_at_checked(memchr::memchr2(b'#', b',', name).filter(|at| *at > 0)?)?;
    Some((name.into(), pairs(tags.get(1..)?)?))
}

/// All tags of a text like `key=value,key=value`, if it is one.
fn pairs(text: &[u8]) -> Option<Vec<Tag<'_>>> {
    let tags = text.split(|b| *b == b',').filter(|tag| !tag.is_empty());
    let pair = |tag: &'_ [u8]| memchr::memchr(b'=', tag).filter(|at| *at > 0);
    let pairs: Option<Vec<_>> =
        tags.map(|tag| pair(tag).and_then(|at| Some((tag.get(..at)?, tag.get(at + 1..))))).collect();
    pairs.filter(|pairs| !pairs.is_empty())
}

/// The labels that a message's name and tags make, or what its name was mapped to, and how many tags fell away: those without
/// a key, and those whose label an earlier tag already has.
pub(super) fn series_of(named: &Named<'_>, mapped: Option<&Mapped>) -> (Labels, usize) {
    let name = mapped.map_or_else(|| metric_name(&named.name), |mapped| mapped.name.clone());
    let labels = || mapped.iter().flat_map(|mapped| mapped.labels.iter().cloned());
    let honor_labels = mapped.is_some_and(|mapped| mapped.honor_labels);
    // Each with whether it is a tag.
    let mut pairs = vec![(METRIC_NAME.to_owned(), name, false)];
    if !honor_labels {
        pairs.extend(labels().map(|(label, value)| (label, value, false)));
    }
    let mut fallen = 0;
    for (key, value) in named.tags() {
        if key.is_empty() {
            fallen += 1;
            continue;
        }
        let value = value.map_or_else(|| "true".into(), String::from_utf8_lossy);
        pairs.push((label_name(key), value.into_owned(), true));
    }
    pairs.sort_by(|a, b| a.0.cmp(&b.0)); // stable: the first of equal names stays first
    pairs.dedup_by(|later, earlier| {
        let is_same = later.0 == earlier.0;
        fallen += usize::from(is_same && earlier.2); // that the mapping's label wins is meant
        is_same
    });
    let pairs = pairs.into_iter().map(|(label, value, _)| (label, value));
    // Of equal names the first wins that has a value.
    (Labels::from_pairs(pairs.chain(honor_labels.then(labels).into_iter().flatten())), fallen)
}

/// The metric name for the name in a message, which is not empty.
pub fn metric_name(name: &[u8]) -> String {
    identifier(name)
}

/// The label of the series that takes what is beyond a limit.
pub(super) const OVERFLOW_LABEL: &str = "cortex_overflow";

/// The label name for a tag's key. Names that Prometheus and the registry use themselves get the prefix `tag_`.
fn label_name(key: &[u8]) -> String {
    let name = identifier(key);
    let is_taken = ["le", "quantile", OVERFLOW_LABEL].contains(&name.as_str()) || name.starts_with("__");
    if is_taken { format!("tag_{name}") } else { name }
}

fn identifier(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let starts_with_digit = text.starts_with(|c: char| c.is_ascii_digit());
    let rest = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    starts_with_digit.then_some('_').into_iter().chain(rest).collect()
}
