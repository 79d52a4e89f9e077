//! What `cortex get API_NAME` adds to the row: the account of loss and the custom metrics.

use std::collections::BTreeMap;

use super::rows::quote;
use super::{Answer, AnswerValue, Ask, AskError, ask_all};
use crate::model::METRIC_NAME;

/// The account of one API's calls, and its custom metrics.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ApiDetail {
    /// Calls that the API's clients have reported.
    pub calls: u64,
    /// Calls of these that the clients dropped, by reason.
    pub dropped: Vec<(String, u64)>,
    /// Payloads that never came, of all clients of the collector.
    pub payloads_missing: u64,
    /// Datagrams that the kernel dropped before the collector, of all senders.
    pub kernel_drops: u64,
    /// Messages that the collector refused, by reason, of all senders; not what a mapping file has it drop.
    pub refused: Vec<(String, u64)>,
    /// The newest values of the API's own metrics, sorted by name and tags.
    pub metrics: Vec<CustomMetric>,
}

/// One custom metric with its newest value.
#[derive(Debug, Clone, PartialEq)]
pub struct CustomMetric {
    /// Its name.
    pub name: String,
    /// Its tags, `api_name` left out.
    pub tags: BTreeMap<String, String>,
    /// Its value; of a histogram the count.
    pub value: f64,
    /// Of a histogram the mean; `None` of anything else.
    pub mean: Option<f64>,
}

/// The detail of one API.
pub fn detail(source: &dyn Ask, api_name: &str) -> Result<ApiDetail, AskError> {
    let name = quote(api_name);
    let [calls, dropped, payloads_missing, kernel_drops, refused, custom] = ask_all(
        source,
        &[
            format!("sum(cortex_client_calls_total{{api_name={name}}})"),
            format!("sum by (reason) (cortex_client_dropped_total{{api_name={name}}})"),
            "sum(cortex_collector_payloads_missing_total)".to_owned(),
            "sum(cortex_collector_kernel_drops_total)".to_owned(),
            "sum by (reason) (cortex_collector_dropped_total{reason!=\"mapped_drop\"})".to_owned(),
            format!("{{api_name={name}, {METRIC_NAME}!~\"cortex_(api|client|collector)_.*\"}}"),
        ],
    )?;
    let mut metrics: Vec<CustomMetric> = custom
        .into_iter()
        .map(|answer| CustomMetric {
            name: answer.labels.name().to_owned(),
            tags: answer
                .labels
                .iter()
                .filter(|(tag, _)| *tag != METRIC_NAME && *tag != "api_name")
                .map(|(tag, value)| (tag.to_owned(), value.to_owned()))
                .collect(),
            value: answer.value.float(),
            mean: match answer.value {
                AnswerValue::Histogram { count, sum } => Some(sum / count),
                AnswerValue::Float(_) => None,
            },
        })
        .collect();
    metrics.sort_by(|a, b| (&a.name, &a.tags).cmp(&(&b.name, &b.tags)));
    Ok(ApiDetail {
        calls: total(&calls),
        dropped: by_reason(&dropped),
        payloads_missing: total(&payloads_missing),
        kernel_drops: total(&kernel_drops),
        refused: by_reason(&refused),
        metrics,
    })
}

fn total(answers: &[Answer]) -> u64 {
    answers.first().map_or(0, |answer| answer.value.float().max(0.0) as u64)
}

fn by_reason(answers: &[Answer]) -> Vec<(String, u64)> {
    let mut reasons: Vec<(String, u64)> = answers
        .iter()
        .map(|a| (a.labels.get("reason").unwrap_or("unknown").to_owned(), a.value.float().max(0.0) as u64))
        .filter(|(_, count)| *count > 0)
        .collect();
    reasons.sort();
    reasons
}
