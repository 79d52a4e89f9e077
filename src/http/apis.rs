//! `/api/v1/status/apis`: the rows of `cortex get`, for the page.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use tokio::sync::Mutex;

use super::App;
use super::api::{ApiError, Params, answer};
use crate::config::parse_duration;
use crate::model::Value;
use crate::overview::{Answer, AnswerValue, Ask, AskError, WINDOW, apis, row_json};
use crate::promql::{Engine, QueryValue};

/// Rows of this age are as good as new ones: a tick comes every 10 s.
const FRESH: Duration = Duration::from_secs(1);

/// The rows that were made last. Whoever holds the lock makes them: one at a time, since each asks for two weeks of every API,
/// and whoever waited finds them made.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows(Arc<Mutex<Option<Made>>>);

#[derive(Debug)]
struct Made {
    since: String,
    at: Instant,
    json: String,
}

/// The engine of this process as something that can be asked, now.
struct Here<'a> {
    engine: &'a Engine,
    now_ms: i64,
}

impl Ask for Here<'_> {
    fn ask(&self, expr: &str) -> Result<Vec<Answer>, AskError> {
        let value = self
            .engine
            .instant(expr, self.now_ms)
            .map_err(|error| AskError::Refused { expr: expr.to_owned(), message: error.to_string() })?;
        let QueryValue::Vector(samples) = value else { return Ok(Vec::new()) };
        let answer = |labels, value: Value| {
            let value = match value {
                Value::Float(value) => AnswerValue::Float(value),
                Value::Histogram(h) => AnswerValue::Histogram { count: h.count(), sum: h.sum() },
            };
            Answer { labels, value }
        };
        Ok(samples.into_iter().map(|sample| answer(sample.labels, sample.sample.value)).collect())
    }
}

/// The rows of the last `since` (14d), as `cortex get -o json` prints them, without `env`: a collector does not know by which name
/// it is asked.
pub(super) async fn status(State(app): State<App>, params: Params) -> Result<Response, ApiError> {
    let since = params.get("since").unwrap_or(WINDOW).trim().to_owned();
    match parse_duration(&since) {
        Ok(length) if length >= Duration::from_secs(1) => {}
        Ok(_) => return Err(ApiError::invalid("since", &format!("got {since}, want 1s or more"))),
        Err(wrong) => return Err(ApiError::invalid("since", &wrong)),
    }
    // Held until they are made, also when nobody waits for them any more.
    let mut newest = Arc::clone(&app.rows.0).lock_owned().await;
    if let Some(made) = newest.as_ref().filter(|made| made.since == since && made.at.elapsed() < FRESH) {
        return Ok(answer(&made.json, &[], &[]));
    }
    let make = move || {
        let now_ms = app.clock.now_ms();
        let source = Here { engine: &app.engine, now_ms };
        let rows = apis(&source, now_ms as f64 / 1e3, &since)?;
        let json = rows.iter().map(row_json).collect::<serde_json::Value>().to_string();
        *newest = Some(Made { since, at: Instant::now(), json: json.clone() });
        Ok::<_, AskError>(json)
    };
    match tokio::task::spawn_blocking(make).await {
        Ok(Ok(json)) => Ok(answer(&json, &[], &[])),
        Ok(Err(error)) => Err(ApiError::internal(error.to_string())),
        Err(error) => Err(ApiError::internal(format!("the rows failed: {error}"))),
    }
}
