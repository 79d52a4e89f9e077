//! `/api/v1/status/ingest` and `/api/v1/status/clients`: the account of what came in, and of who sends.

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::App;
use crate::clock::Clock;
use crate::collector::printable;

/// What came in since the start, and what was dropped with one example a reason.
pub(super) async fn ingest(State(app): State<App>) -> Json<Value> {
    let state = app.intake.lock();
    let dropped: Map<String, Value> = state
        .totals
        .dropped
        .iter()
        .map(|(reason, d)| ((*reason).to_owned(), json!({ "count": d.count, "example": d.example })))
        .collect();
    let sockets: Vec<Value> = app
        .intake
        .sockets()
        .iter()
        .map(|socket| {
            json!({
                "socket": socket.place(),
                "datagrams": socket.datagrams(),
                "truncated": socket.truncated(),
                "kernelDrops": socket.kernel_drops(),
                "receiveBufferBytes": socket.receive_buffer_bytes(),
            })
        })
        .collect();
    let source_limit = app.intake.source_limit().map(|limit| {
        let beyond = limit.beyond();
        let beyond = beyond.iter().map(|(source, datagrams)| json!({ "source": source, "datagrams": datagrams }));
        json!({ "datagramsPerSecond": limit.per_second(), "beyond": beyond.collect::<Vec<_>>() })
    });
    let overflows: Vec<Value> = state
        .registry
        .overflows()
        .iter()
        .map(|(name, overflow)| {
            json!({
                "name": name,
                "messages": overflow.messages,
                "limit": overflow.limit.as_str(),
                "metric": overflow.metric,
                "label": overflow.label,
                "values": overflow.values,
            })
        })
        .collect();
    let conflicts: Vec<Value> = state
        .registry
        .conflicts()
        .map(|(name, conflict)| {
            json!({
                "name": name,
                "type": conflict.got,
                "messages": conflict.messages,
                "metric": conflict.metric,
                "metricType": conflict.known,
            })
        })
        .collect();
    Json(json!({
        "status": "success",
        "data": {
            "sockets": sockets,
            "datagrams": state.totals.datagrams,
            "messages": state.totals.messages,
            "events": state.totals.events,
            "serviceChecks": state.totals.service_checks,
            "dropped": dropped,
            "timestamps": state.totals.timestamps,
            "unknownFields": {
                "count": state.totals.unknown_fields,
                "example": printable(&state.totals.unknown_field),
            },
            "repeatedFields": state.totals.repeated_fields,
            "emptyValues": state.totals.empty_values,
            "kernelDrops": app.intake.sockets().iter().map(|socket| socket.kernel_drops()).sum::<u64>(),
            "payloadsMissing": state.senders.missing_total(),
            "tagsDropped": state.totals.tags_dropped,
            "series": state.registry.len(),
            "mapping": state.registry.mapping().map(|mapping| json!({
                "mappings": mapping.len(),
                "error": state.mapping_error,
            })),
            "sourceLimit": source_limit,
            "overflows": overflows,
            "conflicts": conflicts,
        }
    }))
}

/// The processes that name themselves, heard within the last ten minutes. Times in seconds since the Unix epoch, by the
/// machine's clock as it is now.
pub(super) async fn clients(State(app): State<App>) -> Json<Value> {
    let senders = app.intake.lock().senders.status();
    let ahead_ms = Clock::System.now_ms() - app.steady.now_ms();
    let clients: Vec<Value> = senders
        .iter()
        .map(|sender| {
            json!({
                "clientId": format!("{:016x}", sender.client_id),
                "firstHeard": (sender.first_heard_ms + ahead_ms) as f64 / 1e3,
                "lastHeard": (sender.last_heard_ms + ahead_ms) as f64 / 1e3,
                "payloads": sender.payloads,
                "payloadsMissing": sender.payloads_missing,
            })
        })
        .collect();
    Json(json!({ "status": "success", "data": clients }))
}
