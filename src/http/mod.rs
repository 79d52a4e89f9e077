//! What the collector serves over HTTP: `/metrics`, the query API, health, status, and the page.
//!
//! Everything here reads what the recorder has published or committed; nothing waits for the intake.

pub mod api;
mod apis;
mod dashboard;
mod serve;
mod status;
mod top;
mod write;

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;

pub use self::serve::serve;
pub(crate) use self::top::{LIMIT_MAX as TOP_LIMIT_MAX, SECONDS_MAX as TOP_SECONDS_MAX};
pub use self::write::Receiver;

use crate::clock::Clock;
use crate::collector::{Health, Intake, Published};
use crate::exposition;
use crate::model::{Ladder, Snapshot};
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
    /// The rows of `cortex get` that were made last.
    rows: apis::Rows,
    /// The bounds of classic buckets.
    ladder: Ladder,
    /// A scraper that reads slowly holds the snapshot that it reads.
    scrape_permits: Arc<Semaphore>,
    /// The collector's own figures are there when the others are not.
    self_permits: Arc<Semaphore>,
    /// The snapshots that are being read.
    read: Arc<Mutex<Vec<Weak<Snapshot>>>>,
    /// What takes remote writes, if anything.
    receiver: Option<Receiver>,
    /// How many queries run at once.
    queries_max: usize,
    /// The pages of other origins that may ask the query API; `None`: those of none.
    cors_origin: Option<HeaderValue>,
    /// One for each who may have messages counted.
    counting: Arc<Semaphore>,
    /// The clock of the intake.
    steady: Clock,
    /// A collector whose newest tick is older is not well.
    tick_age_max: Duration,
}

/// So many ticks may be missing,
const TICKS_MISSING_MAX: u32 = 3;
/// and for so long at least: a disk may take its time.
const TICK_AGE_MAX_LEAST: Duration = Duration::from_secs(15);
/// So many scrapes are answered at once; one more gets 503.
const SCRAPES_MAX: usize = 16;
/// Of the collector's own figures alone so many more.
const SELF_SCRAPES_MAX: usize = 4;
/// A scrape takes no longer, however slowly it is read.
const SCRAPE_MAX: Duration = Duration::from_secs(60);
/// So many snapshots are read at once, however many ticks slow scrapers see come and go; a scraper beyond that gets the youngest of them.
const SNAPSHOTS_MAX: usize = 2;

impl App {
    /// An app over these parts.
    pub fn new(engine: Arc<Engine>, published: Arc<Published>, intake: Arc<Intake>, ladder: Ladder) -> Self {
        let clock = published.clock();
        let permits = |most| Arc::new(Semaphore::new(most));
        let (scrape_permits, self_permits) = (permits(SCRAPES_MAX), permits(SELF_SCRAPES_MAX));
        Self {
            engine,
            published,
            intake,
            clock,
            rows: apis::Rows::default(),
            ladder,
            scrape_permits,
            self_permits,
            read: Arc::default(),
            receiver: None,
            queries_max: api::QUERIES_MAX,
            cors_origin: None,
            counting: permits(top::COUNTING_MAX),
            steady: Clock::steady(),
            tick_age_max: Duration::from_secs(30),
        }
    }

    /// Lets the pages of this origin (`https://grafana.example.com`) ask the query API from a browser.
    #[must_use]
    pub fn with_cors_origin(self, cors_origin: Option<HeaderValue>) -> Self {
        Self { cors_origin, ..self }
    }

    /// Reads what the intake's own clock says: the same as that of its listeners.
    #[must_use]
    pub fn with_steady(self, steady: Clock) -> Self {
        Self { steady, ..self }
    }

    /// Is well while ticks come in this interval, in place of 10 s.
    #[must_use]
    pub fn with_interval(self, interval: Duration) -> Self {
        Self { tick_age_max: (interval * TICKS_MISSING_MAX).max(TICK_AGE_MAX_LEAST), ..self }
    }

    /// The newest snapshot; if slow scrapers hold many, the youngest of those.
    fn snapshot(&self) -> Arc<Snapshot> {
        let newest = self.published.snapshot();
        let mut read = self.read.lock();
        read.retain(|held| held.strong_count() > 0);
        let held: Vec<Arc<Snapshot>> = read.iter().filter_map(Weak::upgrade).collect();
        if held.iter().any(|held| Arc::ptr_eq(held, &newest)) {
            return newest;
        }
        if held.len() >= SNAPSHOTS_MAX
            && let Some(youngest) = held.last()
        {
            return Arc::clone(youngest);
        }
        read.push(Arc::downgrade(&newest));
        newest
    }

    /// Takes remote writes too.
    #[must_use]
    pub fn with_receiver(self, receiver: Option<Receiver>) -> Self {
        Self { receiver, ..self }
    }

    /// How many queries run at once, in place of [`api::QUERIES_MAX`].
    #[must_use]
    pub fn with_queries_max(self, queries_max: usize) -> Self {
        Self { queries_max, ..self }
    }
}

/// All routes of the collector.
pub fn router(app: App) -> Router {
    let mut queries = api::routes(app.engine.clone(), app.clock.clone(), Arc::clone(&app.published), app.queries_max);
    if let Some(origin) = app.cors_origin.clone() {
        let cors = CorsLayer::new().allow_origin(origin).allow_methods([Method::GET, Method::POST]);
        queries = queries.layer(cors.allow_headers([header::ACCEPT, header::CONTENT_TYPE]));
    }
    Router::new()
        .route("/metrics", get(metrics).layer(CompressionLayer::new()))
        .route("/metrics/self", get(metrics_self).layer(CompressionLayer::new()))
        .route("/healthz", get(healthz))
        .route("/api/v1/status/ingest", get(status::ingest))
        .route("/api/v1/status/clients", get(status::clients))
        .route("/api/v1/status/top", get(top::status))
        .route("/api/v1/status/apis", get(apis::status).layer(CompressionLayer::new()))
        .with_state(app.clone())
        .merge(dashboard::routes())
        .merge(write::routes(app.receiver))
        .merge(queries)
        .fallback(nothing_there)
}

async fn nothing_there() -> impl IntoResponse {
    let text = "nothing is here: / is the dashboard, /metrics is for scrapers, /api/v1/query for PromQL, /healthz for health\n";
    (StatusCode::NOT_FOUND, text)
}

/// The newest tick.
async fn metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    scrape(&app, &headers, &app.scrape_permits, App::snapshot)
}

/// The collector's own series of the newest tick, and what the system says of its process.
async fn metrics_self(State(app): State<App>, headers: HeaderMap) -> Response {
    scrape(&app, &headers, &app.self_permits, |app| {
        let mut own = app.published.snapshot().with_prefix("cortex_collector_");
        exposition::insert_process(&mut own);
        Arc::new(own)
    })
}

fn scrape(
    app: &App,
    headers: &HeaderMap,
    permits: &Arc<Semaphore>,
    snapshot: impl FnOnce(&App) -> Arc<Snapshot>,
) -> Response {
    let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
        let text = "as many scrapes as may be are being answered already\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let (snapshot, ladder) = (snapshot(app), app.ladder.clone());
    let (content_type, chunks): (_, Box<dyn Iterator<Item = Vec<u8>> + Send>) = if prefers_protobuf(headers) {
        (exposition::PROTOBUF_CONTENT_TYPE, Box::new(exposition::protobuf_chunks(snapshot, ladder)))
    } else {
        (exposition::CONTENT_TYPE, Box::new(exposition::text_chunks(snapshot, ladder)))
    };
    let body = Body::new(Chunks { rest: chunks, began: Instant::now(), _permit: permit });
    ([(header::CONTENT_TYPE, content_type), (header::VARY, "accept")], body).into_response()
}

/// A body whose parts are made when the connection has room for them.
struct Chunks {
    rest: Box<dyn Iterator<Item = Vec<u8>> + Send>,
    began: Instant,
    /// Given back with the last part, or when the scraper is gone.
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.began.elapsed() > SCRAPE_MAX {
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut))));
        }
        Poll::Ready(self.rest.next().map(|chunk| Ok(Frame::data(chunk.into()))))
    }
}

/// Whether a scraper would rather have delimited protobuf than text, by the `q` of what it accepts (RFC 9110, 12.5.1).
fn prefers_protobuf(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    // As everywhere the most special range counts.
    let (mut protobuf, mut text, mut any_text, mut any) = (0.0_f64, None, None, None);
    for range in accepted.flat_map(|accept| accept.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: HashMap<String, &str> = parts
            .filter_map(|part| part.split_once('='))
            .map(|(name, value)| (name.trim_end().to_ascii_lowercase(), value.trim_start().trim_matches('"')))
            .collect();
        let q = parameters.get("q").map_or(1.0, |q| q.parse().unwrap_or(0.0));
        let q = if (0.0..=1.0).contains(&q) { q } else { 0.0 };
        let best = |before: &mut Option<f64>| *before = Some(before.map_or(q, |before| before.max(q)));
        match kind.as_str() {
            "application/vnd.google.protobuf" => {
                let is_ours = parameters.get("proto").is_none_or(|proto| *proto == "io.prometheus.client.MetricFamily")
                    && parameters.get("encoding") == Some(&"delimited");
                protobuf = protobuf.max(if is_ours { q } else { 0.0 });
            }
            "text/plain" => best(&mut text),
            "text/*" => best(&mut any_text),
            "*/*" => best(&mut any),
            _ => {}
        }
    }
    protobuf > 0.0 && protobuf >= text.or(any_text).or(any).unwrap_or(0.0)
}

async fn healthz(State(app): State<App>) -> impl IntoResponse {
    match wrong(app.published.health(), app.published.age(), app.tick_age_max) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(wrong) => (StatusCode::SERVICE_UNAVAILABLE, wrong),
    }
}

/// What is wrong, a line each; `None` if nothing is.
fn wrong(health: Health, age: Duration, age_max: Duration) -> Option<String> {
    let committing = health.store_error.map(|error| format!("the store takes no ticks: {error}\n"));
    let sealing =
        health.sealing_error.map(|error| format!("what is stored cannot be moved into the file of its day: {error}\n"));
    let late = (age > age_max).then(|| format!("the newest tick was {} s ago\n", age.as_secs()));
    let lines: String = committing.into_iter().chain(sealing).chain(late).collect();
    (!lines.is_empty()).then_some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collector::Registry;
    use crate::promql::Limits;
    use crate::store::{Restored, Store};

    fn app() -> App {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        let engine = Engine::new(Arc::new(store.reader()), Limits::default());
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        App::new(Arc::new(engine), Arc::default(), Arc::new(intake), Ladder::default())
    }

    #[tokio::test]
    async fn a_collector_that_never_made_a_tick_is_not_well_for_long() {
        let answer = |tick_age_max| async move { healthz(State(App { tick_age_max, ..app() })).await.into_response() };
        assert_eq!(answer(Duration::from_secs(3600)).await.status(), StatusCode::OK);
        assert_eq!(answer(Duration::ZERO).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn a_client_was_heard_by_the_machines_clock_whatever_the_intakes_says() {
        // The intake's clock takes no part in jumps: after a step of the machine's by an hour clients were heard an hour ago.
        let app = app().with_steady(Clock::manual(5_000));
        app.intake.datagram(b"cortex_client_payload_sequence:1|g|#client_id:00000000000000aa", 3_000);
        let before = Clock::System.now_ms();
        let axum::Json(answer) = status::clients(State(app)).await;
        let after = Clock::System.now_ms();
        let heard = answer["data"][0]["lastHeard"].as_f64().unwrap() * 1e3;
        assert!((before - 2_000..=after - 2_000).contains(&(heard.round() as i64)), "{heard} {before}");
    }

    #[test]
    fn scrapers_that_do_not_read_hold_a_place_until_they_go() {
        let app = app();
        let answer = || scrape(&app, &HeaderMap::new(), &app.scrape_permits, App::snapshot);
        let mut held: Vec<Response> = (0..SCRAPES_MAX).map(|_| answer()).collect();
        assert!(held.iter().all(|response| response.status() == StatusCode::OK));
        assert_eq!(answer().status(), StatusCode::SERVICE_UNAVAILABLE);
        held.pop();
        assert_eq!(answer().status(), StatusCode::OK);
        assert_eq!(answer().status(), StatusCode::OK, "the one before is gone");
    }

    #[test]
    fn a_store_that_cannot_commit_or_seal_is_not_healthy() {
        let of = |store: Option<&str>, sealing: Option<&str>| {
            let health = Health { store_error: store.map(str::to_owned), sealing_error: sealing.map(str::to_owned) };
            wrong(health, Duration::from_secs(10), Duration::from_secs(15))
        };
        assert_eq!(of(None, None), None);
        let late = wrong(Health::default(), Duration::from_secs(200), Duration::from_secs(180));
        assert_eq!(late.unwrap(), "the newest tick was 200 s ago\n");
        assert_eq!(of(Some("full"), None).unwrap(), "the store takes no ticks: full\n");
        let sealing = "what is stored cannot be moved into the file of its day: gone\n";
        assert_eq!(of(None, Some("gone")).unwrap(), sealing);
        assert_eq!(of(Some("full"), Some("gone")).unwrap(), format!("the store takes no ticks: full\n{sealing}"));
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_prefers() {
        let prefers_all = |accept: &[&'static str]| {
            let values = accept.iter().map(|accept| (header::ACCEPT, HeaderValue::from_static(accept)));
            prefers_protobuf(&values.collect())
        };
        let prefers = |accept: &'static str| prefers_all(&[accept]);
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
        assert!(!prefers("application/vnd.google.protobuf;proto=foo.Bar;encoding=delimited"));
        assert!(!prefers("application/vnd.google.protobufx;encoding=delimited"));
        assert!(prefers("Application/VND.google.Protobuf; Encoding=\"delimited\"; Q=0.5, text/plain; q=0.4"));
        for q in ["0", "abc", "1e9", "-1", "NaN", ""] {
            let protobuf = format!("application/vnd.google.protobuf;encoding=delimited;q={q}");
            let headers = [(header::ACCEPT, HeaderValue::from_str(&protobuf).unwrap())].into_iter().collect();
            assert!(!prefers_protobuf(&headers), "{q}");
        }
        let little = "application/vnd.google.protobuf;encoding=delimited;q=0.1";
        assert!(!prefers_all(&["*/*", little]) && !prefers_all(&[little, "text/*;q=0.9"]));
        assert!(!prefers_all(&["text/plain", little]) && prefers_all(&["text/plain;q=0", "*/*", little]));
    }
}
