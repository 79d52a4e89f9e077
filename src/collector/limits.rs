//! The limits of a registry, and the account of what came beyond them, or with a second type.

use std::collections::BTreeMap;

use super::mapping::OVERFLOW_LABEL;

/// The bytes of all labels together, for each series that there may be: few series with very long labels take the memory of many.
pub(super) const LABEL_BYTES_PER_SERIES: usize = 512;
/// So many series the store may know, for each that there may be at once, and so many times their bytes: it keeps the labels of those
/// that are gone as long as it has a sample of them.
pub(super) const STORED_PER_SERIES: usize = 10;
/// So many names there may be that have nothing but a series for what is beyond a limit, as a part of all series.
pub(super) const OVERFLOW_SHARE: usize = 10;
/// What was found out of why a metric is beyond a limit is looked at again after so long, if it still is.
pub(super) const FOUND_KEPT_MS: i64 = 60_000;
/// So many metrics beyond a limit are told of, and so many conflicts.
pub(super) const TOLD_MAX: usize = 1000;

/// The bounds of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Series in all, the collector's own and those for what is beyond not counted. Default 100,000. Two limits follow from it: all
    /// labels together take at most 512 bytes for each, and the store knows at most ten times as many, of all the retention.
    pub series: usize,
    /// Series of one name. Default 10,000.
    pub series_per_metric: usize,
    /// The longest value of a label, in bytes. Default 2048, as in Mimir.
    pub label_value_bytes: usize,
    /// Counters, histograms and sets that were silent for so long leave memory, in milliseconds. Default 24 h.
    pub series_expiry_ms: i64,
    /// Gauges of senders that do not name themselves end after so long a silence, in milliseconds. Default: never.
    pub gauge_expiry_ms: Option<i64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            series: 100_000,
            series_per_metric: 10_000,
            label_value_bytes: 2048,
            series_expiry_ms: 86_400_000,
            gauge_expiry_ms: None,
        }
    }
}

/// A limit that a new series would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::series`].
    Series,
    /// [`Limits::series_per_metric`].
    SeriesPerMetric,
    /// [`Limits::label_value_bytes`], or those of name and tags in all: 4096 bytes, 128 tags.
    LabelValueBytes,
    /// What the labels of all series take.
    LabelBytes,
    /// What the store knows of all the retention: series come and go too fast.
    StoredSeries,
}

impl Limit {
    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Series => "series",
            Self::SeriesPerMetric => "series_per_metric",
            Self::LabelValueBytes => "label_value_bytes",
            Self::LabelBytes => "label_bytes",
            Self::StoredSeries => "stored_series",
        }
    }
}

/// What became of one metric beyond a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overflow {
    /// The limit that it meets.
    pub limit: Limit,
    /// How many messages went into its `cortex_overflow` series.
    pub messages: u64,
    /// The metric with the label that takes the most values, or the most bytes: itself, unless all series together are too many.
    pub metric: String,
    /// That label, or the one whose value is too long; empty if there is none, or if name and tags together are too long or too many.
    pub label: String,
    /// How many values the label had when the limit was met; 0 if one is too long.
    pub values: usize,
    /// When that was found out.
    pub(super) found_ms: i64,
}

/// What was refused because its name has another type, or meets that of a histogram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The type of what was refused.
    pub got: &'static str,
    /// The type that stays.
    pub known: &'static str,
    /// The metric that has it: the same name, or the histogram whose part the name is, or what would be such a part.
    pub metric: String,
    /// How many messages were refused.
    pub messages: u64,
}

/// What came beyond a limit, or with a second type, since the start. Of the first [`TOLD_MAX`] of each it is known which, and the log has each once.
#[derive(Debug, Default)]
pub(super) struct Beyond {
    overflows: BTreeMap<String, Overflow>,
    /// By limit.
    messages: BTreeMap<&'static str, u64>,
    /// When it was last found out why a metric is beyond a limit, once more.
    again_ms: i64,
    /// By name and refused type.
    conflicts: BTreeMap<(String, &'static str), Conflict>,
}

impl Beyond {
    pub(super) fn overflows(&self) -> &BTreeMap<String, Overflow> {
        &self.overflows
    }

    pub(super) fn messages(&self) -> &BTreeMap<&'static str, u64> {
        &self.messages
    }

    pub(super) fn conflicts(&self) -> impl Iterator<Item = (&str, &Conflict)> {
        self.conflicts.iter().map(|((name, _), conflict)| (name.as_str(), conflict))
    }

    /// Counts a message beyond a limit. Whether it is to be [`Beyond::tell`]ed why its metric is there: what it was may have gone, and
    /// something else come. To find that out all series are looked at, so it is done for one metric a tick.
    pub(super) fn count(&mut self, name: &str, limit: Limit, now_ms: i64) -> bool {
        *self.messages.entry(limit.as_str()).or_default() += 1;
        let Some(overflow) = self.overflows.get_mut(name) else { return self.overflows.len() < TOLD_MAX };
        overflow.messages += 1;
        let is_due = now_ms - overflow.found_ms >= FOUND_KEPT_MS && now_ms != self.again_ms;
        if is_due {
            self.again_ms = now_ms;
        }
        is_due
    }

    /// What was found out of a metric beyond a limit, with its first message or later.
    pub(super) fn tell(&mut self, name: &str, overflow: Overflow) {
        let before = self.overflows.get(name);
        let messages = before.map_or(1, |before| before.messages);
        let of = |overflow: &Overflow| (overflow.limit, overflow.metric.clone(), overflow.label.clone());
        if before.map(of) == Some(of(&overflow)) {
            self.overflows.insert(name.to_owned(), Overflow { messages, ..overflow });
            return;
        }
        let Overflow { limit, metric, label, values, .. } = &overflow;
        tracing::warn!(
            metric = name,
            limit = limit.as_str(),
            widest_metric = metric,
            label,
            values,
            "a limit of series is met: what would be new series of this metric goes into one with {OVERFLOW_LABEL}=\"true\""
        );
        self.overflows.insert(name.to_owned(), Overflow { messages, ..overflow });
    }

    /// Counts what a conflict refuses, in the words of `refusal`.
    pub(super) fn conflict(&mut self, name: &str, conflict: Conflict, refusal: &dyn std::fmt::Display) {
        let key = (name.to_owned(), conflict.got);
        if let Some(told) = self.conflicts.get_mut(&key) {
            // What it meets may have gone, and something else come.
            *told = Conflict { messages: told.messages + 1, ..conflict };
        } else if self.conflicts.len() < TOLD_MAX {
            let Conflict { got, known, metric: other, .. } = &conflict;
            tracing::warn!(name, r#type = got, other, other_type = known, "messages are dropped: {refusal}");
            self.conflicts.insert(key, Conflict { messages: 1, ..conflict });
        }
    }
}
