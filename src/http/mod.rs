//! What the collector serves over HTTP: `/metrics`, the query API, health, status, and a page.
//!
//! Everything here reads what the recorder has published or committed; nothing waits for the intake.

pub mod api;
mod page;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use tokio::sync::Semaphore;
use tower_http::compression::CompressionLayer;

use crate::clock::Clock;
use crate::collector::{Intake, Published};
use crate::exposition;
use crate::promql::Engine;

/// What the handlers read.
#[derive(Clone)]
pub struct App {
    /// Evaluates queries over the store.
    pub engine: Arc<Engine>,
    /// What was published last.
    pub published: Arc<Published>,
    /// For the status of intake and senders.
    pub intake: Arc<Intake>,
    /// The time of queries that name none: now, but never before the newest tick, should the clock have gone back.
    pub clock: Clock,
    /// One page is made at a time: each asks for two weeks of every API.
    page_permit: Arc<Semaphore>,
}

impl App {
    /// An app over these parts.
    pub fn new(engine: Arc<Engine>, published: Arc<Published>, intake: Arc<Intake>) -> Self {
        let clock = published.clock();
        Self { engine, published, intake, clock, page_permit: Arc::new(Semaphore::new(1)) }
    }
}

/// Scripts, frames and foreign content have no place on our pages: names and tags in them come from outside.
const SECURITY_HEADERS: [(HeaderName, &str); 3] = [
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// All routes of the collector.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/metrics", get(metrics).layer(CompressionLayer::new()))
        .route("/healthz", get(healthz))
        .route("/api/v1/status/ingest", get(status::ingest))
        .route("/api/v1/status/clients", get(status::clients))
        .with_state(app.clone())
        .merge(api::routes(app.engine, app.clock))
}

async fn metrics(State(app): State<App>, headers: HeaderMap) -> impl IntoResponse {
    let wants_protobuf = headers.get_all(header::ACCEPT).iter().any(prefers_protobuf);
    let body = tokio::task::spawn_blocking(move || {
        let families = &app.published.snapshot().families;
        if wants_protobuf {
            (exposition::PROTOBUF_CONTENT_TYPE, exposition::render_protobuf(families))
        } else {
            (exposition::CONTENT_TYPE, exposition::render(families).into_bytes())
        }
    });
    match body.await {
        Ok((content_type, body)) => ([(header::CONTENT_TYPE, content_type)], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Whether a scraper would rather have delimited protobuf than text, by the order or the `q` of what it accepts.
fn prefers_protobuf(accept: &HeaderValue) -> bool {
    let quality = |range: &str| {
        let q = range.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
        q.and_then(|q| q.trim().parse::<f64>().ok()).unwrap_or(1.0)
    };
    let ranges = accept.to_str().unwrap_or_default().split(',').map(str::trim);
    let of = |kind: &str, parameter: &str| {
        let matching = ranges.clone().filter(|range| range.starts_with(kind) && range.contains(parameter));
        matching.map(quality).fold(0.0, f64::max)
    };
    let protobuf = of("application/vnd.google.protobuf", "encoding=delimited");
    protobuf > 0.0 && protobuf >= of("text/plain", "").max(of("application/openmetrics-text", ""))
}

async fn healthz(State(app): State<App>) -> impl IntoResponse {
    match app.published.health().store_error {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("the store takes no ticks: {error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_the_format_that_it_prefers() {
        let prefers = |accept: &'static str| prefers_protobuf(&HeaderValue::from_static(accept));
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        assert!(prefers(protobuf));
        // As Prometheus 3 sends it, with native histograms and without.
        assert!(prefers(
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
             application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        ));
        assert!(!prefers(
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,\
             application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.3,*/*;q=0.1"
        ));
        assert!(!prefers("*/*") && !prefers("") && !prefers("text/html"));
        assert!(!prefers("application/vnd.google.protobuf;encoding=text"));
    }
}
