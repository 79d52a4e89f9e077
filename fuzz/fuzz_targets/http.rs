//! Any text as the parameters of any endpoint of the API, in the address and as a form: an answer in Prometheus's JSON, within the
//! bounds of a query, and never a panic.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use cortex_metrics::clock::Clock;
use cortex_metrics::http::api::routes;
use cortex_metrics::model::{Labels, Sample, Value};
use cortex_metrics::promql::{Engine, Limits};
use cortex_metrics::store::{Select, SelectedSeries, Selection, StoreError};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt as _;

const ENDPOINTS: [&str; 8] =
    ["query", "query_range", "query_exemplars", "series", "labels", "label/l/values", "metadata", "rules"];

struct One;

impl Select for One {
    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let labels = Labels::from_pairs([("__name__", "a"), ("l", "x")]);
        let samples: Vec<Sample> =
            (0..20).map(|at| Sample { timestamp_ms: at * 30_000, value: Value::Float(at as f64) }).collect();
        if selection.matchers.iter().all(|m| m.matches(&labels)) { visit(SelectedSeries { labels, samples }) } else { Ok(()) }
    }
}

static API: LazyLock<(Runtime, Router)> = LazyLock::new(|| {
    let limits = Limits { samples_max: 20_000, timeout: Duration::from_secs(2), ..Limits::default() };
    let engine = Arc::new(Engine::new(Arc::new(One), limits));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    (runtime, routes(engine, Clock::manual(300_000), Arc::default(), 1))
});

fn ask(request: Request<Body>) {
    let (runtime, api) = &*API;
    runtime.block_on(async {
        let answer = api.clone().oneshot(request).await.expect("an answer");
        let status = answer.status().as_u16();
        assert!([200, 400, 422, 503].contains(&status), "{status}");
        let body = to_bytes(answer.into_body(), 64 << 20).await.expect("a body");
        assert!(body.starts_with(if status == 200 { b"{\"status\":\"success\"" } else { b"{\"status\":\"error\",\"er" }));
    });
}

fuzz_target!(|input: (u8, &str)| {
    let endpoint = ENDPOINTS[usize::from(input.0) % ENDPOINTS.len()];
    let path = format!("/api/v1/{endpoint}");
    let in_address = Request::get(format!("{path}?{}", input.1)).body(Body::empty());
    in_address.into_iter().for_each(ask);
    if !["label/l/values", "metadata", "rules"].contains(&endpoint) {
        let form = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
        form.body(Body::from(input.1.to_owned())).into_iter().for_each(ask);
    }
});
