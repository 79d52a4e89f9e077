//! The last hour of one API in two lines of block characters: requests a second, and the 99th percentile of their duration.

use serde_json::Value;

use super::get::short;
use super::query_url::QueryUrl;
use crate::overview::{Ask as _, Table, milliseconds, quote};

/// One character each two minutes.
const POINTS: usize = 30;
const STEP_SECONDS: f64 = 120.0;
/// Four scrapes of a minute: a rate needs two.
const RATE_WINDOW: &str = "4m";

/// The table; `None` if there were no requests, or nobody says.
pub(super) fn last_hour(source: &QueryUrl, api_name: &str, now: f64) -> Option<Table> {
    let of = |metric: &str| format!("rate({metric}{{api_name={}}}[{RATE_WINDOW}])", quote(api_name));
    let duration = "cortex_api_request_duration_seconds";
    let native = format!("histogram_quantile(0.99, sum({}))", of(duration));
    let p99 = if source.is_collector() {
        native
    } else {
        // Whoever scraped text has classic buckets alone.
        format!("{native} or histogram_quantile(0.99, sum by (le) ({}))", of(&format!("{duration}_bucket")))
    };
    let rates = range(source, format!("sum({})", of("cortex_api_requests_total")), now)?;
    let quantiles = range(source, p99, now)?;
    let highest = most(&rates).filter(|most| *most > 0.0)?;
    let longest = most(&quantiles).map_or_else(|| "-".to_owned(), milliseconds);
    Some(Table {
        headers: ["last hour", "", "at most"].map(str::to_owned).to_vec(),
        rows: vec![
            vec!["requests/s".to_owned(), bars(&rates), short(highest)],
            vec!["p99".to_owned(), bars(&quantiles), longest],
        ],
    })
}

/// The values of the one series of `expr`, the newest last.
fn range(source: &QueryUrl, expr: String, now: f64) -> Option<Vec<Option<f64>>> {
    let start = now - STEP_SECONDS * (POINTS - 1) as f64;
    let form =
        [("query", expr), ("start", start.to_string()), ("end", now.to_string()), ("step", STEP_SECONDS.to_string())];
    let (status, text) = source.post("query_range", &form).ok()?;
    let answer: Value = serde_json::from_str(&text).ok().filter(|_| status.is_success())?;
    let mut points = vec![None; POINTS];
    for point in answer.pointer("/data/result/0/values").and_then(Value::as_array).into_iter().flatten() {
        let at = ((point.get(0)?.as_f64()? - start) / STEP_SECONDS).round();
        let value = point.get(1)?.as_str()?.parse().ok().filter(|value: &f64| value.is_finite());
        if let Some(slot) = points.get_mut(at as usize) {
            *slot = value;
        }
    }
    Some(points)
}

fn most(points: &[Option<f64>]) -> Option<f64> {
    points.iter().flatten().copied().reduce(f64::max)
}

/// Bars from 0 to the highest; a space where nothing is known.
fn bars(points: &[Option<f64>]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = most(points).unwrap_or(0.0).max(f64::MIN_POSITIVE);
    let bar = |point: &Option<f64>| {
        let level = point.map(|value| (value.max(0.0) / most * 7.0).round() as usize);
        level.and_then(|level| BARS.get(level).copied()).unwrap_or(' ')
    };
    points.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_reach_from_nothing_to_the_highest_and_a_gap_is_a_gap() {
        let points = [Some(0.0), Some(1.0), None, Some(7.0), Some(3.4), Some(-1.0)];
        assert_eq!(bars(&points), "▁▂ █▄▁");
        assert_eq!(bars(&[Some(0.0), None]), "▁ ");
    }
}
