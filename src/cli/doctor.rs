//! `cortex doctor`: why is my metric missing? Sends a probe as a client would and follows it: sent, received, dropped, committed,
//! answered. It tells each step, and at the first that fails the one next thing to do.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::Exit;
use super::environments::{Environments, LOCAL};
use super::get::nearest;
use super::query_url::{QueryUrl, without_password};
use crate::client::{Client, ClientConfig, Endpoint, Kind, TagText};
use crate::collector::metric_name;
use crate::config::parse_duration;
use crate::overview::{Ask as _, AskError, WINDOW, printable};

/// What is sent: a counter, so that a probe more can be told from the ones before.
const PROBE: &str = "cortex_doctor_probes_total";
/// What was sent to this machine is received at once.
const RECEIVED_WITHIN: Duration = Duration::from_secs(3);
/// How long the client may take to send.
const SENT_WITHIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(250);
/// How often the collector is asked meanwhile whether it is well.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The metric that you miss: it is looked for too
    metric: Option<String>,
    /// Where to send, in place of what the environment variables say: `udp://host:port` or `unix:///path`
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The environment to ask
    #[arg(short, long, value_name = "ENV", default_value = LOCAL)]
    env: String,
    /// How long to wait until the probe is committed; a Prometheus has to scrape it first
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "75s")]
    timeout: Duration,
}

/// A step that failed, and what to do next.
struct Failed {
    what: String,
    next: String,
}

fn failed(what: impl Into<String>, next: impl Into<String>) -> Failed {
    Failed { what: what.into(), next: next.into() }
}

fn good(text: &str) {
    println!("ok    {}", printable(text));
}

fn note(text: &str) {
    println!("      {}", printable(text));
}

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let environments = Environments::load()?;
    let environment = environments.get(&args.env)?;
    let Some(endpoint) = endpoint(args.url.as_deref())? else { return Ok(Exit::Failure) };
    let patient = Patient {
        endpoint,
        env: &args.env,
        url: without_password(&environment.url),
        source: QueryUrl::new(&environment.url),
        timeout: args.timeout,
    };
    let examined = patient.follow_a_probe().and_then(|()| match &args.metric {
        Some(metric) => patient.look_for(metric),
        None => Ok(()),
    });
    match examined {
        Ok(()) => {
            println!("\nall is well: what is sent to {} is stored, and env {} shows it", patient.endpoint, args.env);
            if args.metric.is_none() {
                println!(
                    "a metric that is missing all the same: `cortex doctor NAME`, and `client.stats()` in its process"
                );
            }
            Ok(Exit::Success)
        }
        Err(Failed { what, next }) => {
            println!("no    {}\n\nnext: {}", printable(&what), printable(&next));
            Ok(Exit::Failure)
        }
    }
}

/// Where a client would send, told with the reason; `None` if a variable names nothing, which is told too.
fn endpoint(url: Option<&str>) -> anyhow::Result<Option<Endpoint>> {
    const FORM: &str = "udp://host:port or unix:///path";
    if let Some(url) = url {
        let Some(endpoint) = Endpoint::parse(url) else { bail!("--url: got {url:?}, want {FORM}") };
        good(&format!("a client sends to {endpoint} (from --url)"));
        return Ok(Some(endpoint));
    }
    let var = |name: &str| std::env::var(name).ok();
    let (endpoint, error) = Endpoint::from_env(var);
    let from = Endpoint::variable(var);
    match (error, from) {
        (Some(error), _) => {
            println!("no    {}: a client warns and sends to {endpoint} instead", printable(&error.to_string()));
            println!("\nnext: set {} to {FORM}, or unset it", error.name);
            return Ok(None);
        }
        (None, Some((name, _))) => good(&format!("a client sends to {endpoint} (from {name})")),
        (None, None) => good(&format!("a client sends to {endpoint} (the default: CORTEX_METRICS_URL is not set)")),
    }
    note("unless its code says otherwise: MetricsClient(URL), cortex-serve --collector-url");
    Ok(Some(endpoint))
}

/// Who is examined.
struct Patient<'a> {
    endpoint: Endpoint,
    env: &'a str,
    url: String,
    source: QueryUrl,
    timeout: Duration,
}

/// What the collector knew before the probe, or after it.
struct Account {
    clients: BTreeSet<String>,
    kernel_drops: u64,
    /// Count and example by reason.
    dropped: Vec<(String, u64, String)>,
    /// Names that came with a second type, and in words what became of that.
    conflicts: Vec<(String, String)>,
    /// Whether a mapping file says what becomes of names.
    is_mapping: bool,
    sockets: Vec<String>,
}

/// A name, and what was refused of it.
fn conflict(told: &Value) -> (String, String) {
    let text = |key: &str| told.get(key).and_then(Value::as_str).unwrap_or_default();
    let messages = told.get("messages").and_then(Value::as_u64).unwrap_or(0);
    let what = format!(
        "messages of it that were dropped, since they came as a {} and {} is a {}: {messages}",
        text("type"),
        text("metric"),
        text("metricType")
    );
    (text("name").to_owned(), what)
}

impl Patient<'_> {
    fn follow_a_probe(&self) -> Result<(), Failed> {
        let before = self.probes();
        let is_collector = before.is_ok() && self.source.is_collector();
        let account = if is_collector { self.account() } else { None };
        self.send(account.as_ref())?;
        let before = before.map_err(|error| {
            failed(
                format!("env {} does not answer: {error}", self.env),
                format!(
                    "start cortex-collector, or give the environment its URL: `cortex env add {} http://HOST:9102`",
                    self.env
                ),
            )
        })?;
        match account {
            Some(before) => self.received(&before)?,
            None => note(&format!(
                "env {} ({}) is no collector: what it received and dropped is asked of the collector itself",
                self.env, self.url
            )),
        }
        self.committed(before, is_collector)
    }

    /// How many probes the query API knows of.
    fn probes(&self) -> Result<f64, AskError> {
        Ok(self.source.ask(&format!("sum({PROBE})"))?.first().map_or(0.0, |answer| answer.value.float()))
    }

    fn account(&self) -> Option<Account> {
        let clients = self.source.json("/api/v1/status/clients").ok()?;
        let ingest = self.source.json("/api/v1/status/ingest").ok()?;
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let list = |value: &Value, key: &str| -> Vec<String> {
            value.as_array().into_iter().flatten().map(|item| text(item, key)).collect()
        };
        let data = ingest.get("data")?;
        let dropped = data.get("dropped")?.as_object()?.iter();
        let of_reason = |(reason, of): (&String, &Value)| {
            (reason.clone(), of.get("count").and_then(Value::as_u64).unwrap_or(0), text(of, "example"))
        };
        Some(Account {
            clients: list(clients.get("data")?, "clientId").into_iter().collect(),
            kernel_drops: data.get("kernelDrops").and_then(Value::as_u64).unwrap_or(0),
            dropped: dropped.map(of_reason).collect(),
            conflicts: data.get("conflicts").and_then(Value::as_array).into_iter().flatten().map(conflict).collect(),
            is_mapping: data.get("mapping").is_some_and(|mapping| !mapping.is_null()),
            sockets: list(data.get("sockets")?, "socket"),
        })
    }

    fn send(&self, account: Option<&Account>) -> Result<(), Failed> {
        let config = ClientConfig { endpoint: self.endpoint.clone(), ..ClientConfig::default() };
        let client: Client = Client::new(config);
        // A call that is refused is in the account below.
        let _ = client.record(Kind::Counter, PROBE, &TagText::default(), 1.0);
        client.flush(SENT_WITHIN);
        let sent = client.account();
        let told = client.take_notices().join("; ");
        client.close(Duration::ZERO);
        if sent.sent > 0 && sent.payloads_refused == 0 {
            good(&format!(
                "sent: the system took the datagram for {}, and nobody on this machine refused it",
                self.endpoint
            ));
            return Ok(());
        }
        let listens = match account {
            Some(account) if !account.sockets.is_empty() => format!(
                "the collector of env {} listens at {}: set CORTEX_METRICS_URL to that",
                self.env,
                account.sockets.join(", ")
            ),
            _ => "start cortex-collector, or set CORTEX_METRICS_URL to where it listens: its first lines say `metrics in:`".to_owned(),
        };
        Err(failed(if told.is_empty() { format!("{} took nothing within 5 s", self.endpoint) } else { told }, listens))
    }

    fn received(&self, before: &Account) -> Result<(), Failed> {
        let deadline = Instant::now() + RECEIVED_WITHIN;
        let after = loop {
            let after = self.account();
            if after.as_ref().is_some_and(|after| after.clients.difference(&before.clients).next().is_some()) {
                break after;
            }
            if Instant::now() > deadline {
                let drops = after.map_or(0, |after| after.kernel_drops.saturating_sub(before.kernel_drops));
                let what =
                    format!("not received: the collector of env {} ({}) has not heard of it", self.env, self.url);
                if drops > 0 {
                    let next = "let the collector have a larger --receive-buffer: docs/operations.md";
                    return Err(failed(format!("{what}; the kernel dropped {drops} datagrams meanwhile"), next));
                }
                let next = format!(
                    "it listens at {}: is {} one of these, seen from here? If not, set CORTEX_METRICS_URL, or ask the right \
                     environment with -e; if so, look for a firewall between",
                    before.sockets.join(", "),
                    self.endpoint
                );
                return Err(failed(what, next));
            }
            std::thread::sleep(PAUSE);
        };
        good(&format!("received: the collector of env {} ({}) has heard of it", self.env, self.url));
        let grown = |reason: &str, count: u64| {
            let earlier = before.dropped.iter().find(|(of, ..)| of == reason).map_or(0, |(_, count, _)| *count);
            count.saturating_sub(earlier)
        };
        let mut others = 0;
        for (reason, count, example) in after.map(|after| after.dropped).unwrap_or_default() {
            let count = grown(&reason, count);
            if count > 0 && example.starts_with(PROBE) {
                let next = match reason.as_str() {
                    "mapped_drop" => "the collector's --mapping-config drops it: give it a rule for what it is to keep",
                    _ => {
                        "/api/v1/status/ingest has every reason with an example; the page Loss of the dashboard says what each means"
                    }
                };
                return Err(failed(format!("dropped: {reason}, {example:?}"), next));
            }
            others += count;
        }
        good("not dropped");
        if others > 0 {
            note(&format!("{others} messages of others were, meanwhile: /api/v1/status/ingest says why"));
        }
        Ok(())
    }

    fn committed(&self, before: f64, is_collector: bool) -> Result<(), Failed> {
        note(&format!("waiting until it is {} …", if is_collector { "committed, every 10 s" } else { "scraped" }));
        let began = Instant::now();
        let mut looked = began;
        loop {
            if self.probes().is_ok_and(|probes| probes > before) {
                break;
            }
            // What is not well need not be waited for.
            if is_collector && looked.elapsed() > HEALTH_INTERVAL {
                looked = Instant::now();
                if let Ok((status, text)) = self.source.text("/healthz")
                    && !status.is_success()
                {
                    let next = format!("mend that: {}/healthz tells when it is well", self.url);
                    return Err(failed(format!("not committed: {}", text.trim()), next));
                }
            }
            if began.elapsed() > self.timeout {
                let next = if is_collector {
                    "see what the collector's log says; it is well, by its /healthz".to_owned()
                } else {
                    format!("let {} scrape the collector, at its /metrics", self.url)
                };
                let what = format!("not to be found by a query after {} s", began.elapsed().as_secs());
                return Err(failed(what, next));
            }
            std::thread::sleep(PAUSE);
        }
        good(&format!("answered: a query finds it, {:.0} s after", began.elapsed().as_secs_f64()));
        let overflow = self.source.ask(&format!("{PROBE}{{cortex_overflow=\"true\"}}"));
        if overflow.is_ok_and(|found| !found.is_empty()) {
            note("but new series are counted together: a limit is reached, see `overflows` at /api/v1/status/ingest");
        }
        Ok(())
    }

    /// Looks for a metric of the user's.
    fn look_for(&self, metric: &str) -> Result<(), Failed> {
        const RESERVED: [&str; 3] = ["cortex_api_", "cortex_client_", "cortex_collector_"];
        let silent = |error: AskError| failed(format!("env {}: {error}", self.env), "ask again");
        if let Some(reserved) = RESERVED.iter().find(|reserved| metric.starts_with(**reserved)) {
            note(&format!("names that begin with {reserved} are ours: a client drops them as reserved_name"));
        }
        let name = metric_name(metric.as_bytes());
        if name != metric {
            note(&format!("{metric:?} is {name} here: what Prometheus does not allow in a name becomes _"));
        }
        let account = if self.source.is_collector() { self.account() } else { None };
        if account.as_ref().is_some_and(|account| account.is_mapping) {
            note("the collector's --mapping-config may give it another name: that is the one to look for");
        }
        for (_, what) in account.iter().flat_map(|account| &account.conflicts).filter(|(of, _)| *of == name) {
            note(what);
        }
        // Counted by reason, for all names together, with one line of one of them.
        let is_of_it = |example: &str| {
            example.strip_prefix(metric).is_some_and(|rest| rest.starts_with([':', '|', '#', ',', '[']))
        };
        let dropped = account.iter().flat_map(|account| &account.dropped).find(|(.., example)| is_of_it(example));
        let dropped = dropped.map(|(reason, count, example)| {
            (reason, format!("{example:?} was dropped as {reason}; of all names together {count} such messages were"))
        });
        let series = self.source.ask(&name).map_err(silent)?;
        if let Some(one) = series.first() {
            if let Some((_, what)) = dropped {
                note(&what);
            }
            good(&format!("{name} has {} series now, such as {}", series.len(), one.labels));
            return Ok(());
        }
        let known = self.source.ask(&format!("last_over_time({name}[{WINDOW}])")).map_err(silent)?;
        if !known.is_empty() {
            return Err(failed(
                format!("{name} has no series now; it had {} within {WINDOW}", known.len()),
                "see whether the process that sets it still runs: a gauge ends 30 s after the last word of its process",
            ));
        }
        if let Some((reason, what)) = dropped {
            let next = match reason.as_str() {
                "mapped_drop" => "give it a rule in the collector's --mapping-config, if it is to be kept",
                _ => "the page Loss of the dashboard says what to do about each reason",
            };
            return Err(failed(format!("{name}: {what}"), next));
        }
        let names = self.source.json("/api/v1/label/__name__/values").ok();
        let names = names.as_ref().and_then(|names| names.get("data")?.as_array());
        let names = names.into_iter().flatten().filter_map(Value::as_str);
        let near = nearest(&name, names).map_or_else(String::new, |near| format!("; did you mean {near}?"));
        Err(failed(
            format!("no series of the name {name} within {WINDOW}{near}"),
            format!(
                "ask the process that counts it for `client.stats()`: it tells what was dropped and why, and whether it sends to {}",
                self.endpoint
            ),
        ))
    }
}
