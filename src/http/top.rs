//! `/api/v1/status/top`: which metrics take the most messages and the most series, for `cortex top`.
//!
//! Messages are counted by metric while somebody asks, and not otherwise: a count kept for each series all the time would cost each of
//! them memory, and each message of a gauge one more look at it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use foldhash::fast::RandomState;
use serde_json::{Value, json};

use super::App;
use super::api::{ApiError, Params, answer};
use crate::collector::Intake;
use crate::model::{METRIC_NAME, MetricKind, Snapshot};

/// The longest time to count.
pub(crate) const SECONDS_MAX: f64 = 60.0;
/// The most metrics to tell of.
pub(crate) const LIMIT_MAX: usize = 1000;

/// One metric.
#[derive(Debug)]
struct Row<'a> {
    name: &'a str,
    kind: MetricKind,
    series: usize,
    messages: u64,
}

/// Counts as long as it lives, also if whoever asked goes away.
struct Counting(Arc<Intake>);

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.end_count();
    }
}

/// Counts the messages of each metric for `seconds` (10), and gives the `limit` (20) metrics with the most messages (`by`) or the most
/// series, each with the label that has the most values.
pub(super) async fn status(State(app): State<App>, params: Params) -> Result<Response, ApiError> {
    let number = |name: &str, default: f64, most: f64| match params.get(name).map(str::parse::<f64>) {
        None => Ok(default),
        Some(Ok(number)) if number > 0.0 && number <= most => Ok(number),
        Some(_) => Err(ApiError::invalid(name, &format!("want a number above 0, at most {most}"))),
    };
    let wanted = Duration::from_secs_f64(number("seconds", 10.0, SECONDS_MAX)?);
    let limit = number("limit", 20.0, LIMIT_MAX as f64)? as usize;
    let by_series = match params.get("by").unwrap_or("messages") {
        "messages" => false,
        "series" => true,
        _ => return Err(ApiError::invalid("by", "want messages or series")),
    };
    // Whoever comes meanwhile counts anew afterwards.
    let _turn = app.counting.lock().await;
    let counting = Counting(Arc::clone(&app.intake));
    app.intake.begin_count();
    let began = Instant::now();
    tokio::time::sleep(wanted).await;
    let counted = app.intake.end_count();
    let seconds = began.elapsed().as_secs_f64();
    drop(counting);
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
        let top = top(all, by_series, limit);
        let metrics: Vec<Value> = top.iter().map(|row| row.json(&snapshot)).collect();
        json!({ "seconds": seconds, "messages": messages, "series": series, "metrics": metrics }).to_string()
    });
    let data = made.await.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(answer(&data, &[], &[]))
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
        let mut values: BTreeMap<&str, HashSet<&str, RandomState>> = BTreeMap::new();
        for series in snapshot.series(self.name) {
            for (label, value) in series.labels.iter().filter(|(label, _)| *label != METRIC_NAME) {
                values.entry(label).or_default().insert(value);
            }
        }
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
    use crate::model::{Labels, PublishedSeries};

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
