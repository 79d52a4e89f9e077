//! `/api/v1/status/top`: which metrics take the most messages and the most series, for `cortex top`.
//!
//! Messages are counted by metric while somebody asks, and not otherwise: a count kept for each series all the time would cost each of
//! them memory, and each message of a gauge one more look at it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use foldhash::fast::RandomState;
use serde_json::{Value, json};

use super::App;
use super::api::{ApiError, Params, answer};
use crate::collector::Intake;
use crate::model::{Labels, MetricKind, Snapshot, values_by_label};

/// The longest time to count.
pub(crate) const SECONDS_MAX: usize = 60;
/// The most metrics to tell of.
pub(crate) const LIMIT_MAX: usize = 1000;
/// So many have messages counted at once.
pub(super) const COUNTING_MAX: usize = 16;

/// One metric.
#[derive(Debug)]
struct Row<'a> {
    name: &'a str,
    kind: MetricKind,
    series: usize,
    messages: u64,
}

/// Somebody has messages counted, until it ends or whoever asked goes away.
struct Counting {
    intake: Arc<Intake>,
    before: Option<Vec<u64>>,
}

impl Counting {
    fn begin(intake: &Arc<Intake>) -> Self {
        Self { before: Some(intake.begin_count()), intake: Arc::clone(intake) }
    }

    fn end(mut self) -> Vec<(Labels, MetricKind, u64)> {
        self.before.take().map_or_else(Vec::new, |before| self.intake.end_count(&before))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.intake.end_count(&before);
        }
    }
}

/// By what to order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Messages,
    Series,
    Contexts,
}

/// Counts messages for `seconds` (10), and gives the `limit` (20) metrics with the most messages (`by`) or the most series, each with the
/// label that has the most values; or the contexts with the most messages.
pub(super) async fn status(State(app): State<App>, params: Params) -> Result<Response, ApiError> {
    let number = |name: &str, default: usize, most: usize| match params.get(name).map(str::parse::<usize>) {
        None => Ok(default),
        Some(Ok(number)) if (1..=most).contains(&number) => Ok(number),
        Some(_) => Err(ApiError::invalid(name, &format!("want a whole number from 1 to {most}"))),
    };
    let wanted = Duration::from_secs(number("seconds", 10, SECONDS_MAX)? as u64);
    let limit = number("limit", 20, LIMIT_MAX)?;
    let by = match params.get("by").unwrap_or("messages") {
        "messages" => By::Messages,
        "series" => By::Series,
        "contexts" => By::Contexts,
        _ => return Err(ApiError::invalid("by", "want messages, series or contexts")),
    };
    let Ok(_permit) = app.counting.try_acquire() else {
        return Err(ApiError::unavailable(format!("{COUNTING_MAX} others have messages counted already")));
    };
    let counting = Counting::begin(&app.intake);
    let began = Instant::now();
    tokio::time::sleep(wanted).await;
    let counted = counting.end();
    let seconds = began.elapsed().as_secs_f64();
    let snapshot = app.published.snapshot();
    // All labels are looked at, which takes some 10 ms with very many.
    let made = tokio::task::spawn_blocking(move || {
        let messages: u64 = counted.iter().map(|(_, _, count)| count).sum();
        let mut by_name: HashMap<&str, (MetricKind, u64), RandomState> = HashMap::default();
        for (labels, kind, count) in &counted {
            by_name.entry(labels.name()).or_insert((*kind, 0)).1 += count;
        }
        let all = rows(&snapshot, by_name);
        let series: usize = all.iter().map(|row| row.series).sum();
        let (what, top) = if by == By::Contexts {
            ("contexts", contexts(&counted, limit))
        } else {
            ("metrics", top(all, by == By::Series, limit).iter().map(|row| row.json(&snapshot)).collect())
        };
        json!({ "seconds": seconds, "messages": messages, "series": series, what: top }).to_string()
    });
    let data = made.await.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(answer(&data, &[], &[]))
}

/// The contexts with the most messages.
fn contexts(counted: &[(Labels, MetricKind, u64)], limit: usize) -> Vec<Value> {
    let mut all: Vec<_> = counted.iter().collect();
    all.sort_by(|(a, _, messages_of_a), (b, _, messages_of_b)| messages_of_b.cmp(messages_of_a).then_with(|| a.cmp(b)));
    let json = |(labels, kind, messages): &&(Labels, MetricKind, u64)| json!({ "context": labels.to_string(), "type": kind.as_str(), "messages": messages });
    all.iter().take(limit).map(json).collect()
}

/// All metrics: those of the newest tick, and those that came since.
fn rows<'a>(snapshot: &'a Snapshot, mut counted: HashMap<&'a str, (MetricKind, u64), RandomState>) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = snapshot
        .families_after("")
        .map(|(name, family)| {
            let messages = counted.remove(name).map_or(0, |(_, messages)| messages);
            Row { name, kind: family.kind, series: snapshot.series(name).count(), messages }
        })
        .collect();
    rows.extend(counted.into_iter().map(|(name, (kind, messages))| Row { name, kind, series: 0, messages }));
    rows
}

/// Those with the most, and something.
fn top(mut rows: Vec<Row<'_>>, by_series: bool, limit: usize) -> Vec<Row<'_>> {
    let of = |row: &Row<'_>| {
        let (series, messages) = (row.series as u64, row.messages);
        if by_series { (series, messages) } else { (messages, series) }
    };
    rows.retain(|row| of(row).0 > 0);
    rows.sort_by(|a, b| of(b).cmp(&of(a)).then_with(|| a.name.cmp(b.name)));
    rows.truncate(limit);
    rows
}

impl Row<'_> {
    fn json(&self, snapshot: &Snapshot) -> Value {
        let values = values_by_label(snapshot.series(self.name).map(|series| &series.labels));
        let widest = values.iter().max_by_key(|(_, values)| values.len());
        json!({
            "metric": self.name,
            "type": self.kind.as_str(),
            "series": self.series,
            "messages": self.messages,
            "label": widest.map(|(label, _)| label),
            "values": widest.map_or(0, |(_, values)| values.len()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{METRIC_NAME, PublishedSeries};

    #[test]
    fn the_most_come_first_and_what_has_nothing_is_left_out() {
        let mut snapshot = Snapshot::default();
        for (name, users) in [("few", 1), ("many", 5), ("silent", 3)] {
            for user in 0..users {
                let labels = Labels::from_pairs([(METRIC_NAME, name), ("zone", "eu"), ("user", &user.to_string())]);
                let value = crate::model::Value::Float(1.0);
                snapshot.insert(MetricKind::Counter, PublishedSeries { labels, start_ms: None, value });
            }
        }
        snapshot.settle();
        let (counter, gauge) = (MetricKind::Counter, MetricKind::Gauge);
        let messages = || [("few", (counter, 70)), ("many", (counter, 9)), ("new", (gauge, 9))].into_iter().collect();
        let names = |by_series, limit| {
            let top = top(rows(&snapshot, messages()), by_series, limit);
            top.iter().map(|row| (row.name, row.series, row.messages)).collect::<Vec<_>>()
        };
        assert_eq!(names(false, 9), [("few", 1, 70), ("many", 5, 9), ("new", 0, 9)]);
        assert_eq!(names(true, 9), [("many", 5, 9), ("silent", 3, 0), ("few", 1, 70)]);
        assert_eq!(names(true, 1), [("many", 5, 9)]);
        let many = rows(&snapshot, messages()).into_iter().find(|row| row.name == "many").unwrap().json(&snapshot);
        assert_eq!(
            many,
            json!({"metric": "many", "type": "counter", "series": 5, "messages": 9, "label": "user", "values": 5})
        );
    }
}
