//! Asks a query URL: the HTTP API of Prometheus, wherever it is.

use std::sync::OnceLock;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use ureq::Body;
use ureq::http::{Response, StatusCode};

use crate::model::Labels;
use crate::overview::{Answer, AnswerValue, Ask, AskError};

/// A query that takes longer is given up.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever is there takes a connection sooner; who is not must not hold up what the others answered.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Of what is sent and received at once.
const BUFFER_BYTES: usize = 16 << 10;
/// An answer that is longer is not read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A query URL.
#[derive(Debug)]
pub(super) struct QueryUrl {
    url: String,
    /// The URL as it may be shown: without a password.
    shown: String,
    agent: ureq::Agent,
    /// Or why nobody answered.
    is_collector: OnceLock<Result<bool, String>>,
}

/// The part of Prometheus's JSON that an instant query returns.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
struct Data {
    result: Vec<Series>,
}

#[derive(Debug, Deserialize)]
struct Series {
    #[serde(default)]
    metric: std::collections::BTreeMap<String, String>,
    value: Option<(f64, String)>,
    histogram: Option<(f64, Histogram)>,
}

#[derive(Debug, Deserialize)]
struct Histogram {
    count: String,
    sum: String,
}

impl QueryUrl {
    pub(super) fn new(url: &str) -> Self {
        Self::within(url, TIMEOUT)
    }

    /// Gives up what takes longer than `timeout`.
    pub(super) fn within(url: &str, timeout: Duration) -> Self {
        let mut config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .timeout_connect(Some(timeout.min(CONNECT_TIMEOUT)))
            .http_status_as_error(false)
            // Several questions at once: the default buffers are 256 KiB each.
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .user_agent(concat!("cortex/", env!("CARGO_PKG_VERSION")));
        let host = url.split("://").nth(1).unwrap_or_default();
        if ["127.", "localhost", "[::1]"].iter().any(|loopback| host.starts_with(loopback)) {
            // A proxy of the environment would look on its own machine.
            config = config.proxy(None);
        }
        Self {
            url: url.to_owned(),
            shown: without_password(url),
            agent: config.build().into(),
            is_collector: OnceLock::new(),
        }
    }

    /// Posts a form to an endpoint of the API; gives the status and the answer.
    pub(super) fn post(&self, endpoint: &str, form: &[(&str, String)]) -> Result<(StatusCode, String), AskError> {
        let url = format!("{}/api/v1/{endpoint}", self.url);
        let form = form.iter().map(|(name, value)| (*name, value.as_str()));
        self.read(self.agent.post(&url).send_form(form))
    }

    fn read(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<(StatusCode, String), AskError> {
        let mut response = answer.map_err(|error| self.unreachable(&error))?;
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        Ok((response.status(), text.map_err(|error| self.unreachable(&error))?))
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> AskError {
        AskError::Unreachable(format!("{}: {error}", self.shown))
    }
}

/// A URL without the user and password before its host.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or(host))
}

impl QueryUrl {
    /// The JSON at a path of the server.
    pub(super) fn json(&self, path: &str) -> Result<Value, AskError> {
        let (status, text) = self.text(path)?;
        let json = serde_json::from_str(&text);
        json.map_err(|_| self.unreachable(&format_args!("{path}: {status}, and the answer is not JSON")))
    }

    /// The status and the text at a path of the server.
    pub(super) fn text(&self, path: &str) -> Result<(StatusCode, String), AskError> {
        self.read(self.agent.get(format!("{}{path}", self.url)).call())
    }

    /// Whether a collector answers there, from what it says it is built from; not, if it does not tell.
    fn asks_collector(&self) -> Result<bool, AskError> {
        let (_, text) = self.text("/api/v1/status/buildinfo")?;
        let info: Value = serde_json::from_str(&text).unwrap_or_default();
        let revision = info.pointer("/data/revision").and_then(Value::as_str);
        Ok(revision.is_some_and(|revision| revision.starts_with("cortex-metrics-")))
    }
}

impl Ask for QueryUrl {
    fn is_collector(&self) -> bool {
        let is_collector = self.is_collector.get_or_init(|| self.asks_collector().map_err(|error| error.to_string()));
        is_collector.as_ref().is_ok_and(|is_collector| *is_collector)
    }

    fn ask(&self, expr: &str) -> Result<Vec<Answer>, AskError> {
        // Nobody is waited for twice.
        if let Some(Err(why)) = self.is_collector.get() {
            return Err(AskError::Unreachable(why.clone()));
        }
        let url = format!("{}/api/v1/query", self.url);
        let (status, text) = self.read(self.agent.get(&url).query("query", expr).call())?;
        let envelope: Envelope = serde_json::from_str(&text)
            .map_err(|_| self.unreachable(&format_args!("{status}, and the answer is not Prometheus's JSON")))?;
        if envelope.status != "success" {
            return Err(AskError::Refused { expr: expr.to_owned(), message: envelope.error });
        }
        let Some(Data { result }) = envelope.data else {
            return Err(self.unreachable(&"success without data"));
        };
        Ok(result.into_iter().filter_map(answer).collect())
    }
}

fn answer(series: Series) -> Option<Answer> {
    let value = match (series.value, series.histogram) {
        (Some((_, value)), _) => AnswerValue::Float(value.parse().ok()?),
        (None, Some((_, h))) => AnswerValue::Histogram { count: h.count.parse().ok()?, sum: h.sum.parse().ok()? },
        (None, None) => return None,
    };
    Some(Answer { labels: Labels::from_pairs(series.metric), value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::METRIC_NAME;

    #[test]
    fn a_password_is_never_shown() {
        assert_eq!(without_password("https://me:se@cret@mimir/p?a=b@c"), "https://mimir/p?a=b@c");
        assert_eq!(without_password("http://127.0.0.1:9102"), "http://127.0.0.1:9102");
    }

    #[test]
    fn floats_and_histograms_are_read() {
        let text = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"c","a":"b"},"value":[1.5,"+Inf"]},
            {"metric":{},"histogram":[1,{"count":"3","sum":"0.5","buckets":[[0,"1","2","3"]]}]},
            {"metric":{"x":"y"}}]}}"#;
        let envelope: Envelope = serde_json::from_str(text).unwrap();
        let answers: Vec<Answer> = envelope.data.unwrap().result.into_iter().filter_map(answer).collect();
        assert_eq!(
            answers,
            [
                Answer {
                    labels: Labels::from_pairs([(METRIC_NAME, "c"), ("a", "b")]),
                    value: AnswerValue::Float(f64::INFINITY)
                },
                Answer { labels: Labels::empty(), value: AnswerValue::Histogram { count: 3.0, sum: 0.5 } },
            ]
        );
    }
}
