//! What a client is made with: where it sends, how often, and what every message carries.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::dogstatsd::{Header, LINE_OVERHEAD_MAX};

/// Where a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `udp://host:port`. The host is resolved by the flusher, never by a caller.
    Udp {
        /// A name or an address, IPv6 without its brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// `unix:///path`: a Unix datagram socket.
    Unix(PathBuf),
}

impl Default for Endpoint {
    fn default() -> Self {
        Self::Udp { host: "127.0.0.1".to_owned(), port: Self::PORT_DEFAULT }
    }
}

/// A URL that names no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: got {got:?}, want udp://host:port or unix:///path")]
pub struct MetricsUrlError {
    /// The argument or environment variable that held it.
    pub name: String,
    /// What it held.
    pub got: String,
}

impl Endpoint {
    /// The collector's own default port.
    pub const PORT_DEFAULT: u16 = 9125;

    /// Reads `udp://host:port`, `udp://[v6]:port`, `unix:///path` or `unixgram:///path`. The port may be left out.
    pub fn parse(url: &str) -> Option<Self> {
        let url = url.trim();
        if let Some(path) = url.strip_prefix("unix://").or_else(|| url.strip_prefix("unixgram://")) {
            return (path.starts_with('/') && path.len() > 1 && path.len() < 108).then(|| Self::Unix(path.into()));
        }
        let rest = url.strip_prefix("udp://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']')?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => match rest.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Some(Self::PORT_DEFAULT), |p| p.parse().ok().filter(|p| *p != 0))?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        (!host.is_empty() && host.chars().all(is_name)).then(|| Self::Udp { host: host.to_owned(), port })
    }

    /// The variable of the environment that names the endpoint, and the URL that it stands for: `CORTEX_METRICS_URL`, then
    /// `DD_DOGSTATSD_URL`, then `DD_AGENT_HOST` with `DD_DOGSTATSD_PORT`. `None`: none does.
    pub fn variable(var: impl Fn(&str) -> Option<String>) -> Option<(&'static str, String)> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        for name in ["CORTEX_METRICS_URL", "DD_DOGSTATSD_URL"] {
            if let Some(url) = set(name) {
                return Some((name, url));
            }
        }
        let (host, port) = (set("DD_AGENT_HOST"), set("DD_DOGSTATSD_PORT"));
        if host.is_none() && port.is_none() {
            return None;
        }
        let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
        let port = port.unwrap_or_else(|| "8125".to_owned()); // Datadog's own default
        let url = if host.contains(':') { format!("udp://[{host}]:{port}") } else { format!("udp://{host}:{port}") };
        Some(("DD_AGENT_HOST and DD_DOGSTATSD_PORT", url))
    }

    /// The endpoint that the environment names ([`Endpoint::variable`]), or the default. A variable that names none is
    /// returned as an error beside the default.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> (Self, Option<MetricsUrlError>) {
        let Some((name, url)) = Self::variable(var) else { return (Self::default(), None) };
        match Self::parse(&url) {
            Some(endpoint) => (endpoint, None),
            None => (Self::default(), Some(MetricsUrlError { name: name.to_owned(), got: url })),
        }
    }

    /// The largest payload that goes in one datagram: 1432 bytes fit an Ethernet frame with UDP and IPv6 headers to
    /// spare, 8192 is what Datadog's agent reads from a Unix socket.
    pub fn payload_bytes_max(&self) -> usize {
        match self {
            Self::Udp { .. } => 1432,
            Self::Unix(_) => 8192,
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Udp { host, port } if host.contains(':') => write!(f, "udp://[{host}]:{port}"),
            Self::Udp { host, port } => write!(f, "udp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// What a client is made with.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Where it sends.
    pub endpoint: Endpoint,
    /// How often it sends. Default 1 s; a shorter one costs datagrams, a longer one loses more when the process is killed.
    pub flush_interval: Duration,
    /// Tags that every user metric carries, as the text of a datagram; a call's own tags come first. Default none.
    pub constant_tags: String,
    /// Whether payloads name their sender and the account is sent along. Default true.
    pub telemetry: bool,
    /// The API whose account this is (`CORTEX_API_NAME`); empty if unknown.
    pub api_name: String,
    /// How many contexts one flush may hold; calls for more are dropped and counted. Default 10,000.
    pub contexts_max: usize,
    /// The largest payload in bytes, at least [`ClientConfig::PAYLOAD_BYTES`]'s first; `None` is the endpoint's own.
    pub payload_bytes_max: Option<usize>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            endpoint: Endpoint::default(),
            flush_interval: Duration::from_secs(1),
            constant_tags: String::new(),
            telemetry: true,
            api_name: String::new(),
            contexts_max: 10_000,
            payload_bytes_max: None,
        }
    }
}

impl ClientConfig {
    /// What [`ClientConfig::payload_bytes_max`] may be: room for a name with some tags, and what UDP over IPv4 carries.
    pub const PAYLOAD_BYTES: RangeInclusive<usize> = 512..=65_507;

    /// What a payload can hold beside its header.
    pub fn lines_bytes_max(&self) -> usize {
        let bytes = self.payload_bytes_max.unwrap_or_else(|| self.endpoint.payload_bytes_max());
        bytes.max(*Self::PAYLOAD_BYTES.start()) - Header::BYTES_MAX
    }

    /// The longest name with tags that always fits: a negative gauge takes two lines, which stay together.
    pub fn context_bytes_max(&self) -> usize {
        (self.lines_bytes_max() - 1) / 2 - LINE_OVERHEAD_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(host: &str, port: u16) -> Endpoint {
        Endpoint::Udp { host: host.to_owned(), port }
    }

    #[test]
    fn urls_name_endpoints() {
        assert_eq!(Endpoint::parse("udp://collector:9000"), Some(udp("collector", 9000)));
        assert_eq!(Endpoint::parse("udp://10.0.0.1"), Some(udp("10.0.0.1", 9125)));
        assert_eq!(Endpoint::parse("udp://[::1]:9125/"), Some(udp("::1", 9125)));
        assert_eq!(Endpoint::parse("udp://[::1]"), Some(udp("::1", 9125)));
        assert_eq!(Endpoint::parse("unix:///run/m.sock"), Some(Endpoint::Unix("/run/m.sock".into())));
        for bad in [
            "",
            "collector",
            "http://x:1",
            "udp://",
            "udp://x:0",
            "udp://x:y",
            "udp://x:99999",
            "unix://m",
            "udp://a b:1",
        ] {
            assert_eq!(Endpoint::parse(bad), None, "{bad}");
        }
        for url in ["udp://[::1]:9125", "udp://h:1", "unix:///a"] {
            assert_eq!(Endpoint::parse(url).unwrap().to_string(), url);
        }
    }

    #[test]
    fn the_environment_is_asked_in_order_and_a_bad_value_is_told() {
        let of = |vars: &'static [(&'static str, &'static str)]| {
            Endpoint::from_env(move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(of(&[]), (udp("127.0.0.1", 9125), None));
        assert_eq!(of(&[("DD_AGENT_HOST", "agent")]), (udp("agent", 8125), None));
        assert_eq!(of(&[("DD_AGENT_HOST", "fe80::1"), ("DD_DOGSTATSD_PORT", "1")]), (udp("fe80::1", 1), None));
        let both = &[("CORTEX_METRICS_URL", "udp://a:1"), ("DD_DOGSTATSD_URL", "udp://b:2")];
        assert_eq!(of(both), (udp("a", 1), None));
        let (endpoint, error) = of(&[("DD_DOGSTATSD_PORT", "many")]);
        assert_eq!(endpoint, Endpoint::default());
        assert_eq!(
            error.unwrap().to_string(),
            "DD_AGENT_HOST and DD_DOGSTATSD_PORT: got \"udp://127.0.0.1:many\", want udp://host:port or unix:///path"
        );
    }
}
