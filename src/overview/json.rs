//! A row as programs take it: `cortex get -o json`, and the collector's page.

use serde_json::{Value, json};

use super::ApiRow;

/// The row as an object; what is unknown is `null`.
pub fn row_json(row: &ApiRow) -> Value {
    json!({
        "api": row.api_name,
        "status": row.status.as_str(),
        "up_to_date": row.up_to_date,
        "stale": row.stale,
        "requested": row.requested,
        "last_update_seconds": row.last_update_seconds,
        "avg_request_seconds": row.avg_request_seconds,
        "responses": row.responses,
        "endpoint": row.endpoint,
    })
}
