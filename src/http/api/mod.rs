//! Prometheus's query API: `/api/v1/query`, `query_range`, `series`, `labels`, `label/{name}/values`, `status/buildinfo`.
//!
//! Grafana takes it for a Prometheus. Queries run on the blocking pool, a few at once: more would only share the same
//! cores and hold their samples longer.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

mod json;
mod params;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;

use self::params::Params;
use crate::clock::Clock;
use crate::collector::Published;
use crate::exposition::help;
use crate::model::Labels;
use crate::promql::{Engine, QueryError, QueryValue, STEPS_MAX};

/// How many queries run at once unless another number is wanted; the others wait, and their timeout runs meanwhile.
pub const QUERIES_MAX: usize = 4;

/// The routes of the API.
pub fn routes(engine: Arc<Engine>, clock: Clock, published: Arc<Published>, queries_max: usize) -> Router {
    let api = Api { engine, clock, published, permits: Arc::new(Semaphore::new(queries_max)) };
    Router::new()
        .route("/api/v1/query", get(query).post(query))
        .route("/api/v1/query_range", get(query_range).post(query_range))
        .route("/api/v1/series", get(series).post(series))
        .route("/api/v1/labels", get(label_names).post(label_names))
        .route("/api/v1/label/{name}/values", get(label_values))
        .route("/api/v1/metadata", get(metadata))
        .route("/api/v1/status/buildinfo", get(build_info))
        .with_state(api)
}

#[derive(Clone)]
struct Api {
    engine: Arc<Engine>,
    clock: Clock,
    /// For what a name is.
    published: Arc<Published>,
    permits: Arc<Semaphore>,
}

/// An error as the API answers it.
struct ApiError {
    kind: &'static str,
    message: String,
}

impl ApiError {
    fn bad_data(message: String) -> Self {
        Self { kind: "bad_data", message }
    }

    fn invalid(parameter: &str, message: &str) -> Self {
        Self::bad_data(format!("invalid parameter {parameter:?}: {message}"))
    }

    fn timeout(place: &str) -> Self {
        Self { kind: "timeout", message: format!("query timed out in {place}") }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::BadData(message) => Self::invalid("query", &message),
            other => Self { kind: other.kind(), message: other.to_string() },
        }
    }
}

impl IntoResponse for ApiError {
    /// With Prometheus's status codes (`getDefaultErrorCode`).
    fn into_response(self) -> Response {
        let status = match self.kind {
            "bad_data" => StatusCode::BAD_REQUEST,
            "execution" => StatusCode::UNPROCESSABLE_ENTITY,
            "timeout" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, [(header::CONTENT_TYPE, "application/json")], json::error(self.kind, &self.message)).into_response()
    }
}

type Answer = Result<Response, ApiError>;

fn answer(data: &str, warnings: &[String]) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json::success(data, warnings)).into_response()
}

impl Api {
    /// Runs `work` on the blocking pool once there is room, with what is left of `timeout` by then.
    async fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce(&Engine, Duration) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let asked = Instant::now();
        let permit = tokio::time::timeout(timeout, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| ApiError::timeout("query queue"))?;
        let engine = Arc::clone(&self.engine);
        let run = move || {
            // Held until the work is done, also when nobody waits for it any more.
            let _permit = permit;
            work(&engine, timeout.saturating_sub(asked.elapsed()))
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => Ok(result?),
            Err(error) => Err(ApiError { kind: "internal", message: format!("query failed: {error}") }),
        }
    }

    /// The timeout that was asked for, at most the engine's.
    fn timeout(&self, params: &Params) -> Result<Duration, ApiError> {
        let timeout_max = self.engine.limits().timeout;
        let Some(timeout_ms) = params.duration_ms("timeout")? else { return Ok(timeout_max) };
        Ok(Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0)).min(timeout_max))
    }

    /// The labels of the series that `match[]` selects between `start` and `end`.
    async fn found(&self, params: &Params) -> Result<Vec<Labels>, ApiError> {
        let start_ms = params.time_ms("start")?.unwrap_or(i64::MIN);
        let end_ms = params.time_ms("end")?.unwrap_or(i64::MAX);
        let selectors: Vec<String> = params.all("match[]").map(str::to_owned).collect();
        let timeout = self.timeout(params)?;
        self.run(timeout, move |engine, _| engine.series(&selectors, start_ms, end_ms)).await.map_err(|error| {
            let message = error.message.replace("parameter \"query\"", "parameter \"match[]\"");
            ApiError { message, ..error }
        })
    }
}

/// What this API does not know must not be taken for done.
fn refuse_unknown(params: &Params) -> Result<(), ApiError> {
    match params.get("lookback_delta") {
        Some(_) => Err(ApiError::invalid("lookback_delta", "not supported yet")),
        None => Ok(()),
    }
}

/// Cuts `items` to the limit and says so.
fn truncate<T>(items: &mut Vec<T>, limit: Option<usize>) -> Vec<String> {
    match limit {
        Some(limit) if items.len() > limit => {
            items.truncate(limit);
            vec!["results truncated due to limit".to_owned()]
        }
        _ => Vec::new(),
    }
}

fn query_answer(mut value: QueryValue, limit: Option<usize>) -> Response {
    let warnings = match &mut value {
        QueryValue::Vector(vector) => truncate(vector, limit),
        QueryValue::Matrix(matrix) => truncate(matrix, limit),
        QueryValue::Scalar(_) | QueryValue::Text { .. } => Vec::new(),
    };
    answer(&json::query_data(&value), &warnings)
}

async fn query(State(api): State<Api>, params: Params) -> Answer {
    refuse_unknown(&params)?;
    let limit = params.limit()?;
    let time_ms = params.time_ms("time")?.unwrap_or_else(|| api.clock.now_ms());
    let timeout = api.timeout(&params)?;
    let expression = params.get("query").unwrap_or("").to_owned();
    let work =
        move |engine: &Engine, timeout| engine.instant_within(&expression, time_ms, timeout).map(|answer| answer.value);
    Ok(query_answer(api.run(timeout, work).await?, limit))
}

async fn query_range(State(api): State<Api>, params: Params) -> Answer {
    refuse_unknown(&params)?;
    let limit = params.limit()?;
    let (start_ms, end_ms) = (params.required_time_ms("start")?, params.required_time_ms("end")?);
    if end_ms < start_ms {
        return Err(ApiError::invalid("end", "end timestamp must not be before start time"));
    }
    let step_ms = params
        .duration_ms("step")?
        .ok_or_else(|| ApiError::invalid("step", "cannot parse \"\" to a valid duration"))?;
    if step_ms <= 0 {
        let message = "zero or negative query resolution step widths are not accepted. Try a positive integer";
        return Err(ApiError::invalid("step", message));
    }
    if (end_ms - start_ms) / step_ms > STEPS_MAX {
        return Err(ApiError::bad_data(
            "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)"
                .to_owned(),
        ));
    }
    let timeout = api.timeout(&params)?;
    let expression = params.get("query").unwrap_or("").to_owned();
    let work = move |engine: &Engine, timeout| {
        engine.range_within(&expression, start_ms, end_ms, step_ms, timeout).map(|answer| answer.value)
    };
    Ok(query_answer(api.run(timeout, work).await?, limit))
}

async fn series(State(api): State<Api>, params: Params) -> Answer {
    let limit = params.limit()?;
    if params.all("match[]").next().is_none() {
        return Err(ApiError::bad_data("no match[] parameter provided".to_owned()));
    }
    let mut found = api.found(&params).await?;
    let warnings = truncate(&mut found, limit);
    Ok(answer(&json::label_sets(&found), &warnings))
}

async fn label_names(State(api): State<Api>, params: Params) -> Answer {
    let limit = params.limit()?;
    let found = api.found(&params).await?;
    let names: BTreeSet<&str> = found.iter().flat_map(|labels| labels.iter().map(|(name, _)| name)).collect();
    Ok(names_answer(names, limit))
}

async fn label_values(State(api): State<Api>, Path(name): Path<String>, params: Params) -> Answer {
    let limit = params.limit()?;
    let found = api.found(&params).await?;
    let values: BTreeSet<&str> = found.iter().filter_map(|labels| labels.get(&name)).collect();
    Ok(names_answer(values, limit))
}

fn names_answer(names: BTreeSet<&str>, limit: Option<usize>) -> Response {
    let mut names: Vec<&str> = names.into_iter().collect();
    let warnings = truncate(&mut names, limit);
    answer(&json::strings(names), &warnings)
}

/// What the names are that a scrape would show now: `{"up":[{"type":"gauge","help":"…","unit":""}]}`.
async fn metadata(State(api): State<Api>, params: Params) -> Answer {
    // A limit below 0 is none; 0 is 0.
    let number = |name: &str| -> Result<Option<usize>, ApiError> {
        let Some(text) = params.get(name) else { return Ok(None) };
        let number: i64 = text.parse().map_err(|_| ApiError::bad_data(format!("{name} must be a number")))?;
        Ok(usize::try_from(number).ok())
    };
    let limit = number("limit")?;
    // A name is one thing here, so that there is nothing to limit.
    number("limit_per_metric")?;
    let snapshot = api.published.snapshot();
    let wanted = params.get("metric");
    let families = snapshot.families_after("").filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name));
    let kinds = families.map(|(name, family)| (name, family.kind.as_str(), help(name).unwrap_or_default()));
    Ok(answer(&json::metadata(kinds.take(limit.unwrap_or(usize::MAX))), &[]))
}

/// Grafana asks this to find out what it talks to; our version is our own, the language is that of Prometheus 3.
async fn build_info() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    let data = format!(
        "{{\"version\":\"{version}\",\"revision\":\"\",\"branch\":\"\",\"buildUser\":\"\",\"buildDate\":\"\",\
         \"goVersion\":\"\",\"application\":\"cortex-metrics\"}}"
    );
    answer(&data, &[])
}

#[cfg(test)]
mod tests;
