//! What the collector serves over HTTP: `/metrics`, the query API, health, status, and a page.
//!
//! Everything here reads what the recorder has published or committed; nothing waits for the intake.

pub mod api;
mod page;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use tokio::sync::Semaphore;

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
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/api/v1/status/ingest", get(status::ingest))
        .route("/api/v1/status/clients", get(status::clients))
        .with_state(app.clone())
        .merge(api::routes(app.engine, app.clock))
}

async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let text = tokio::task::spawn_blocking(move || exposition::render(&app.published.snapshot().families)).await;
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz(State(app): State<App>) -> impl IntoResponse {
    match app.published.health().store_error {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("the store takes no ticks: {error}\n")),
    }
}
