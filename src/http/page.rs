//! `/`: a plain page with the table of `cortex get`, until the dashboard comes.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{App, SECURITY_HEADERS};
use crate::model::Value;
use crate::overview::{Answer, AnswerValue, Ask, AskError, Table, WINDOW, apis, table_of};
use crate::promql::{Engine, QueryValue};

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

pub(super) async fn index(State(app): State<App>) -> Response {
    let Ok(_permit) = Arc::clone(&app.page_permit).acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let page = tokio::task::spawn_blocking(move || {
        let now_ms = app.clock.now_ms();
        let source = Here { engine: &app.engine, now_ms };
        apis(&source, now_ms as f64 / 1e3, WINDOW).map(|rows| {
            let rows: Vec<_> = rows.iter().map(|row| ("", row)).collect();
            html(&table_of(&rows).without(&["env"]), app.published.health().store_error.as_deref())
        })
    });
    match page.await {
        Ok(Ok(page)) => (SECURITY_HEADERS, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, SECURITY_HEADERS, error.to_string()).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn html(table: &Table, store_error: Option<&str>) -> String {
    let row = |cells: &[String], tag: &str| -> String {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String = table.rows.iter().map(|cells| row(cells, "td")).collect();
    let content = if table.rows.is_empty() {
        "<p>No APIs yet: serve one with <code>cortex-serve predictor.py --api-name NAME</code> and send it a request.</p>"
            .to_owned()
    } else {
        format!("<table>\n<thead>{}</thead>\n<tbody>{body}</tbody>\n</table>", row(&table.headers, "th"))
    };
    let trouble = store_error.map_or_else(String::new, |error| {
        format!("<p role=\"alert\">The store takes no ticks: {}. Live values are shown.</p>", escape(error))
    });
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"10\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>cortex-metrics</title>\n<style>\
         :root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }} body {{ margin: 2rem; max-width: 70rem }} \
         table {{ border-collapse: collapse; display: block; overflow-x: auto }} \
         th, td {{ text-align: left; padding: .4rem 1.2rem .4rem 0; border-bottom: 1px solid #8884; white-space: nowrap }} \
         th {{ font-weight: 600 }} td {{ font-variant-numeric: tabular-nums }} [role=alert] {{ color: #c00 }}\
         </style></head>\n<body><h1>APIs</h1>\n{trouble}{content}\n<p>The last two weeks. \
         <a href=\"/metrics\">/metrics</a> · <a href=\"/api/v1/status/ingest\">what came in</a> · \
         <a href=\"/api/v1/status/clients\">who sends</a></p></body></html>\n"
    )
}

/// Text from outside as text in HTML.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_outside_never_becomes_markup() {
        let name = "<script>alert('x')</script>\"&";
        let table = Table { headers: vec!["api".to_owned()], rows: vec![vec![name.to_owned()]] };
        let page = html(&table, Some("<b>"));
        assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"), "{page}");
    }
}
