//! The receiver of remote write 1.0, `POST /api/v1/write`: there when `--enable-remote-write-receiver` says so.
//!
//! Status codes decide what a sender does next: it sends again after 5xx, and gives up what it got 4xx for. So 400 is for
//! samples that will never be taken, 503 and 500 for those that could not be taken just now.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body as HttpBody, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::collector::{RemoteWriteError, RemoteWriter, WriteBatch};
use crate::remote_write::{BODY_BYTES_MAX, Body, Times};

/// So many bodies are read at once: each is in memory, compressed and not.
const BODIES_MAX: usize = 4;
/// A further one waits so long.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// A body that takes longer to come is given up: it holds a place.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// Samples may be so far ahead of our clock, as in Prometheus (`maxAheadTime`).
const AHEAD_MAX_MS: i64 = 600_000;
/// When a sender that is told to wait should try again, in seconds.
const RETRY_AFTER: &str = "1";

const MESSAGE: &str = "prometheus.WriteRequest";
const MESSAGE_V2: &str = "io.prometheus.write.v2.Request";

/// What takes remote writes.
#[derive(Clone)]
pub struct Receiver {
    writer: RemoteWriter,
    clock: Clock,
    retention_ms: i64,
    permits: Arc<Semaphore>,
}

impl Receiver {
    /// A receiver that takes samples as old as the retention allows.
    pub fn new(writer: RemoteWriter, clock: Clock, retention: Duration) -> Self {
        let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        Self { writer, clock, retention_ms, permits: Arc::new(Semaphore::new(BODIES_MAX)) }
    }

    fn times(&self) -> Times {
        let now_ms = self.clock.now_ms();
        // Nothing was measured before 1970.
        let oldest_ms = now_ms.saturating_sub(self.retention_ms).max(0);
        Times { oldest_ms, newest_ms: now_ms.saturating_add(AHEAD_MAX_MS) }
    }
}

/// The route, which says how to switch the receiver on if there is none.
pub(super) fn routes(receiver: Option<Receiver>) -> Router {
    match receiver {
        Some(receiver) => Router::new().route("/api/v1/write", post(write)).with_state(receiver),
        None => Router::new().route("/api/v1/write", post(disabled)),
    }
}

async fn disabled() -> Response {
    refuse(StatusCode::NOT_FOUND, "remote write receiver needs to be enabled with --enable-remote-write-receiver")
}

async fn write(State(receiver): State<Receiver>, headers: HeaderMap, body: HttpBody) -> Response {
    if let Err(message) = accepts(&headers) {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, &message);
    }
    let permit = tokio::time::timeout(WAIT_MAX, Arc::clone(&receiver.permits).acquire_owned()).await;
    let Ok(Ok(permit)) = permit else {
        return busy(&format!("{BODIES_MAX} remote writes are being read already"));
    };
    let body = match tokio::time::timeout(BODY_TIME_MAX, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => {
            let message = format!("remote write: {error}; want a body of at most {BODY_BYTES_MAX} bytes");
            return refuse(StatusCode::BAD_REQUEST, &message);
        }
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "remote write: the body takes too long"),
    };
    let work = move || {
        // Held until the work is done, also when nobody waits for it any more.
        let _permit = permit;
        receiver.take(&body)
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("remote write failed: {error}")))
}

impl Receiver {
    fn take(&self, compressed: &Bytes) -> Response {
        let body = match Body::decode(compressed) {
            Ok(body) => body,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let times = self.times();
        let (mut stored, mut refused, mut example) = (0, 0, None);
        let written = body.for_each_batch(times, |batch| {
            refused += batch.refused.values().sum::<u64>();
            example = example.take().or(batch.example);
            let batch = WriteBatch { series: batch.series, oldest_ms: times.oldest_ms, refused: batch.refused };
            let written = self.writer.write(batch)?;
            stored += written.stored;
            refused += written.refused + written.without_room;
            example = example.take().or(written.example);
            Ok(())
        });
        match (written, example) {
            (Ok(()), None) => StatusCode::NO_CONTENT.into_response(),
            (Ok(()), Some(example)) => {
                let message = format!("{example} ({refused} samples refused, {stored} stored)");
                refuse(StatusCode::BAD_REQUEST, &message)
            }
            (Err(error @ RemoteWriteError::Store(_)), _) => {
                tracing::error!(%error, "a remote write could not be stored: its sender will try again");
                refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
            }
            (Err(error), _) => busy(&error.to_string()),
        }
    }
}

/// Whether the headers say remote write 1.0 in snappy's block format, in Prometheus's words if not.
fn accepts(headers: &HeaderMap) -> Result<(), String> {
    let header = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned());
    let content_type = header(header::CONTENT_TYPE).filter(|text| !text.is_empty());
    let mut parts = content_type.as_deref().unwrap_or("application/x-protobuf").split(';');
    let media_type = parts.next().unwrap_or_default().trim();
    if media_type != "application/x-protobuf" {
        return Err(format!(
            "expected application/x-protobuf as the first (media) part, got {media_type} content-type"
        ));
    }
    let mut message = MESSAGE;
    for parameter in parts {
        let Some((name, value)) = parameter.trim().split_once('=') else {
            return Err(format!("expected parameters to be key-values, got {parameter} in the content-type"));
        };
        if name == "proto" {
            message = value;
        }
    }
    if message == MESSAGE_V2 {
        return Err(format!("{message} protobuf message is not accepted by this server; accepted {MESSAGE}"));
    }
    if message != MESSAGE {
        return Err(format!("unknown remote write protobuf message {message}, supported: {MESSAGE}"));
    }
    match header(header::CONTENT_ENCODING).filter(|text| !text.is_empty()) {
        Some(encoding) if !encoding.eq_ignore_ascii_case("snappy") => {
            Err(format!("{encoding} encoding (compression) is not accepted by this server; only snappy is acceptable"))
        }
        _ => Ok(()),
    }
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, format!("{message}\n")).into_response()
}

fn busy(message: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, RETRY_AFTER)], format!("{message}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_messages_and_other_compressions_are_refused_in_prometheus_words() {
        let ask = |content_type: &'static str, encoding: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
            headers.insert(header::CONTENT_ENCODING, encoding.parse().unwrap());
            accepts(&headers)
        };
        assert_eq!(accepts(&HeaderMap::new()), Ok(()));
        assert_eq!(ask("application/x-protobuf", "snappy"), Ok(()));
        assert_eq!(ask("application/x-protobuf; proto=prometheus.WriteRequest", "Snappy"), Ok(()));
        let second = ask("application/x-protobuf;proto=io.prometheus.write.v2.Request", "snappy").unwrap_err();
        assert!(second.contains("io.prometheus.write.v2.Request protobuf message is not accepted"), "{second}");
        assert!(ask("application/x-protobuf;proto", "snappy").unwrap_err().contains("key-values"));
        assert!(ask("application/x-protobuf;proto=x", "snappy").unwrap_err().contains("unknown remote write"));
        assert!(ask("application/json", "snappy").unwrap_err().contains("got application/json content-type"));
        assert!(ask("application/x-protobuf", "gzip").unwrap_err().contains("only snappy is acceptable"));
    }
}
