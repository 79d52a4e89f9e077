//! Prometheus's query API, as Prometheus 3 answers it (`web/api/v1/api.go`): what its clients and Grafana's data source ask.
//!
//! What a collector does not have (rules, alerts, targets, exemplars) is answered as by a Prometheus that has none. Queries run on the blocking pool, a few at once: more would only share the same
//! cores and hold their samples longer.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing))]

mod json;
mod params;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Semaphore;
use tower_http::compression::CompressionLayer;

pub(super) use self::params::Params;
pub(crate) use self::params::parse_time_ms;
use crate::clock::Clock;
use crate::collector::Published;
use crate::exposition::help;
use crate::model::Labels;
use crate::promql::{Answer as QueryAnswer, Engine, QueryError, QueryOptions, QueryValue, STEPS_MAX};

/// How many queries run at once unless another number is wanted; the others wait, and their timeout runs meanwhile.
pub const QUERIES_MAX: usize = 4;

/// A part of a long answer.
const PART_BYTES: usize = 64 << 10;

/// The version of Prometheus whose language and answers these are. Clients read from it what they may ask.
const PROMETHEUS_VERSION: &str = "3.5.0";

/// The routes of the API.
pub fn routes(engine: Arc<Engine>, clock: Clock, published: Arc<Published>, queries_max: usize) -> Router {
    let api = Api { engine, clock, published, permits: Arc::new(Semaphore::new(queries_max)) };
    let none = |data: &'static str| get(move || async move { answer(data, &[], &[]) });
    Router::new()
        .route("/api/v1/query", get(query).post(query))
        .route("/api/v1/query_range", get(query_range).post(query_range))
        .route("/api/v1/query_exemplars", get(query_exemplars).post(query_exemplars))
        .route("/api/v1/series", get(series).post(series))
        .route("/api/v1/labels", get(label_names).post(label_names))
        .route("/api/v1/label/{name}/values", get(label_values))
        .route("/api/v1/metadata", get(metadata))
        .route("/api/v1/status/buildinfo", get(build_info))
        .route("/api/v1/status/flags", none("{}"))
        .route("/api/v1/rules", none(r#"{"groups":[]}"#))
        .route("/api/v1/alerts", none(r#"{"alerts":[]}"#))
        .route("/api/v1/alertmanagers", none(r#"{"activeAlertmanagers":[],"droppedAlertmanagers":[]}"#))
        .route("/api/v1/targets", none(r#"{"activeTargets":[],"droppedTargets":[],"droppedTargetCounts":{}}"#))
        .layer(CompressionLayer::new())
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
pub(super) struct ApiError {
    kind: &'static str,
    message: String,
}

impl ApiError {
    fn bad_data(message: String) -> Self {
        Self { kind: "bad_data", message }
    }

    pub(super) fn invalid(parameter: &str, message: &str) -> Self {
        Self::bad_data(format!("invalid parameter {parameter:?}: {message}"))
    }

    pub(super) fn internal(message: String) -> Self {
        Self { kind: "internal", message }
    }

    pub(super) fn unavailable(message: String) -> Self {
        Self { kind: "unavailable", message }
    }

    /// What is wrong with a `match[]`.
    fn of_match(error: QueryError) -> Self {
        const EMPTY: &str = "vector selector must contain at least one non-empty matcher";
        match error {
            QueryError::BadData(message) if message.ends_with(EMPTY) => {
                Self::bad_data("match[] must contain at least one non-empty matcher".to_owned())
            }
            QueryError::BadData(message) => Self::bad_data(message),
            other => other.into(),
        }
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
            "timeout" | "canceled" | "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, [(header::CONTENT_TYPE, "application/json")], json::error(self.kind, &self.message)).into_response()
    }
}

type Answer = Result<Response, ApiError>;

pub(super) fn answer(data: &str, warnings: &[String], infos: &[String]) -> Response {
    respond(json::success(data, warnings, infos))
}

fn respond(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::new(Parts(json.into()))).into_response()
}

/// A body that is given, and compressed, in parts: others have their turn between them.
struct Parts(Bytes);

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.0.len().min(PART_BYTES);
        let part = self.0.split_to(length);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

impl Api {
    /// Runs `work`, which makes the JSON of an answer, on the blocking pool once there is room, with what is left of the
    /// timeout by then. Should the client go, `work` is told.
    async fn run(
        &self,
        mut options: QueryOptions,
        work: impl FnOnce(&Engine, &QueryOptions) -> Result<String, ApiError> + Send + 'static,
    ) -> Answer {
        let asked = Instant::now();
        let timeout_max = self.engine.limits().timeout;
        let timeout = options.timeout.map_or(timeout_max, |timeout| timeout.min(timeout_max));
        let permit = tokio::time::timeout(timeout, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| ApiError::timeout("query queue"))?;
        let engine = Arc::clone(&self.engine);
        let _asker = Asker(Arc::clone(&options.is_gone));
        let run = move || {
            // Held until the work is done, also when nobody waits for it any more.
            let _permit = permit;
            options.timeout = Some(timeout.saturating_sub(asked.elapsed()));
            work(&engine, &options)
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => Ok(respond(result?)),
            Err(error) => Err(ApiError { kind: "internal", message: format!("query failed: {error}") }),
        }
    }

    /// Answers with what `data` makes of the labels of the series that any `match[]` selects between `start` and `end`, sorted.
    async fn browse(
        &self,
        params: &Params,
        data: impl FnOnce(Vec<Labels>) -> (String, Vec<String>) + Send + 'static,
    ) -> Answer {
        let start_ms = params.time_ms("start")?.unwrap_or(i64::MIN);
        let end_ms = params.time_ms("end")?.unwrap_or(i64::MAX);
        let selectors: Vec<String> = params.all("match[]").map(str::to_owned).collect();
        let work = move |engine: &Engine, options: &QueryOptions| {
            let found = engine.series(&selectors, start_ms, end_ms, options).map_err(ApiError::of_match)?;
            let (data, warnings) = data(found);
            Ok(json::success(&data, &warnings, &[]))
        };
        self.run(QueryOptions::default(), work).await
    }
}

/// Whoever waits for an answer: when the client goes, this is dropped.
struct Asker(Arc<AtomicBool>);

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is wanted of a query beside its text and times.
fn options(params: &Params) -> Result<QueryOptions, ApiError> {
    let timeout = params.duration_ms("timeout")?;
    let lookback = params.duration_ms("lookback_delta").map_err(|_| {
        let text = params.get("lookback_delta").unwrap_or_default();
        let message = format!("error parsing lookback delta duration: cannot parse {text:?} to a valid duration");
        ApiError::bad_data(message)
    })?;
    Ok(QueryOptions {
        timeout: timeout.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
        // As Prometheus: none, or less, is the default.
        lookback_ms: lookback.filter(|ms| *ms > 0),
        is_gone: Arc::default(),
    })
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

fn query_json(mut answer: QueryAnswer, limit: Option<usize>) -> String {
    let truncated = match &mut answer.value {
        QueryValue::Vector(vector) => truncate(vector, limit),
        QueryValue::Matrix(matrix) => truncate(matrix, limit),
        QueryValue::Scalar(_) | QueryValue::Text { .. } => Vec::new(),
    };
    answer.warnings.extend(truncated);
    json::success(&json::query_data(&answer.value), &answer.warnings, &answer.infos)
}

async fn query(State(api): State<Api>, params: Params) -> Answer {
    let limit = params.limit()?;
    let time_ms = params.time_ms("time")?.unwrap_or_else(|| api.clock.now_ms());
    let options = options(&params)?;
    let expression = params.get("query").unwrap_or("").to_owned();
    let work = move |engine: &Engine, options: &QueryOptions| {
        Ok(query_json(engine.instant_with(&expression, time_ms, options)?, limit))
    };
    api.run(options, work).await
}

async fn query_range(State(api): State<Api>, params: Params) -> Answer {
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
    let options = options(&params)?;
    let expression = params.get("query").unwrap_or("").to_owned();
    let work = move |engine: &Engine, options: &QueryOptions| {
        Ok(query_json(engine.range_with(&expression, start_ms, end_ms, step_ms, options)?, limit))
    };
    api.run(options, work).await
}

/// There are none: an increment has no place for one.
async fn query_exemplars(State(api): State<Api>, params: Params) -> Answer {
    let (start_ms, end_ms) = (params.time_ms("start")?, params.time_ms("end")?);
    if start_ms.is_some_and(|start_ms| end_ms.is_some_and(|end_ms| end_ms < start_ms)) {
        return Err(ApiError::bad_data("end timestamp must not be before start timestamp".to_owned()));
    }
    let expression = params.get("query").unwrap_or("").to_owned();
    let work = move |engine: &Engine, options: &QueryOptions| {
        // It is parsed before its time is looked at, and no more than that is wanted.
        let options = QueryOptions { timeout: Some(Duration::ZERO), ..options.clone() };
        match engine.instant_with(&expression, 0, &options) {
            Err(QueryError::BadData(message)) => Err(ApiError::bad_data(message)),
            _ => Ok(json::success("[]", &[], &[])),
        }
    };
    api.run(QueryOptions::default(), work).await
}

async fn series(State(api): State<Api>, params: Params) -> Answer {
    if params.all("match[]").next().is_none() {
        return Err(ApiError::bad_data("no match[] parameter provided".to_owned()));
    }
    let limit = params.limit()?;
    let answer = api.browse(&params, move |mut found| {
        let warnings = truncate(&mut found, limit);
        (json::label_sets(&found), warnings)
    });
    answer.await.map_err(|error| match error.kind {
        "bad_data" if !error.message.starts_with("invalid parameter") => ApiError::invalid("match[]", &error.message),
        _ => error,
    })
}

async fn label_names(State(api): State<Api>, params: Params) -> Answer {
    let limit = params.limit()?;
    let answer = api.browse(&params, move |found| {
        names_data(found.iter().flat_map(|labels| labels.iter().map(|(name, _)| name)).collect(), limit)
    });
    answer.await
}

async fn label_values(State(api): State<Api>, name: Result<Path<String>, PathRejection>, params: Params) -> Answer {
    let Ok(Path(name)) = name else {
        return Err(ApiError::bad_data("invalid label name: it is not UTF-8".to_owned()));
    };
    let name = unescape(&name).unwrap_or(name);
    let limit = params.limit()?;
    let answer = api
        .browse(&params, move |found| names_data(found.iter().filter_map(|labels| labels.get(&name)).collect(), limit));
    answer.await
}

/// A name that was escaped to be plain ASCII (`U__`, then `__` for `_` and `_1F600_` for any other character), `None` if it is
/// none.
fn unescape(name: &str) -> Option<String> {
    let mut rest = name.strip_prefix("U__")?;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once('_') {
        plain.push_str(before);
        let (hex, after) = after.split_once('_')?;
        rest = after;
        if hex.is_empty() {
            plain.push('_');
        } else {
            let is_hex = hex.len() <= 6 && hex.bytes().all(|b| b.is_ascii_hexdigit());
            plain.push(char::from_u32(u32::from_str_radix(hex, 16).ok().filter(|_| is_hex)?)?);
        }
    }
    plain.push_str(rest);
    Some(plain)
}

fn names_data(names: BTreeSet<&str>, limit: Option<usize>) -> (String, Vec<String>) {
    let mut names: Vec<&str> = names.into_iter().collect();
    let warnings = truncate(&mut names, limit);
    (json::strings(names), warnings)
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
    Ok(answer(&json::metadata(kinds.take(limit.unwrap_or(usize::MAX))), &[], &[]))
}

/// Grafana asks this to find out what it may ask. Whoever names an `application` or `features` is taken for a Mimir.
async fn build_info() -> Response {
    let own = concat!("cortex-metrics-", env!("CARGO_PKG_VERSION"));
    let data = format!(
        "{{\"version\":\"{PROMETHEUS_VERSION}\",\"revision\":\"{own}\",\"branch\":\"\",\"buildUser\":\"\",\
         \"buildDate\":\"\",\"goVersion\":\"\"}}"
    );
    answer(&data, &[], &[])
}

#[cfg(test)]
mod tests;
