//! Nothing is lost silently: whatever is called, and whoever listens or does not, `called = sent + held + dropped`, and
//! what was sent is what arrives.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use cortex_metrics::client::{Client, ClientConfig, Endpoint, Kind, TagText};
use cortex_metrics::dogstatsd::{HEADER_NAME, MessageType, MessageValue, decode};
use proptest::prelude::*;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Larger than any interval a test takes: only the test flushes.
const NEVER: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
enum Step {
    Call(Kind, u8, f64),
    Flush,
    Open,
    Close,
    Fork,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![Just(Kind::Counter), Just(Kind::Gauge), Just(Kind::Histogram)];
    let value = prop_oneof![8 => 0.0..1e6f64, 1 => -10.0..0.0f64, 1 => Just(f64::NAN)];
    let call = (kind, 0u8..5, value).prop_map(|(kind, name, value)| Step::Call(kind, name, value));
    prop::collection::vec(
        prop_oneof![20 => call, 2 => Just(Step::Flush), 1 => Just(Step::Open), 1 => Just(Step::Close), 1 => Just(Step::Fork)],
        1..400,
    )
}

/// What a server makes of the datagrams: counters' sums, gauges' last values, histograms' counts and sums.
#[derive(Debug, Default, PartialEq)]
struct Totals {
    counters: BTreeMap<String, f64>,
    gauges: BTreeMap<String, f64>,
    histograms: BTreeMap<String, (f64, f64)>,
}

impl Totals {
    fn add(&mut self, kind: MessageType, name: String, value: f64, weight: f64) {
        match kind {
            MessageType::Counter => *self.counters.entry(name).or_default() += value * weight,
            MessageType::Gauge => drop(self.gauges.insert(name, value)),
            _ => {
                let (count, sum) = self.histograms.entry(name).or_default();
                *count += weight;
                *sum += value * weight;
            }
        }
    }

    fn receive(&mut self, server: &UdpSocket) {
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = server.recv(&mut buffer) {
            assert!(length <= 1432, "a payload of {length} bytes");
            for message in decode(&buffer[..length]).map(Result::unwrap) {
                let name = String::from_utf8(message.name.to_vec()).unwrap();
                for value in message.values() {
                    let (MessageValue::Absolute(value) | MessageValue::Delta(value)) = value;
                    if name != HEADER_NAME && !name.starts_with("cortex_client_") {
                        self.add(message.kind, name.clone(), value, message.weight);
                    }
                }
            }
        }
    }
}

fn open(port: u16) -> UdpSocket {
    let server = UdpSocket::bind(("127.0.0.1", port)).unwrap();
    server.set_nonblocking(true).unwrap();
    server
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn property_test_called_is_sent_and_held_and_dropped_and_what_is_sent_arrives(steps in steps(), telemetry: bool) {
        let mut server = Some(open(0));
        let port = server.as_ref().unwrap().local_addr().unwrap().port();
        let endpoint = Endpoint::Udp { host: "127.0.0.1".to_owned(), port };
        let client = Client::<()>::new(ClientConfig { endpoint, flush_interval: NEVER, telemetry, ..ClientConfig::default() });
        let (mut arrived, mut wanted) = (Totals::default(), Totals::default());
        let (mut called, mut dropped) = (0, 0);
        for step in steps {
            match step {
                Step::Call(kind, name, value) => {
                    called += 1;
                    let (name, wire) = match kind {
                        Kind::Counter => (format!("c{name}"), MessageType::Counter),
                        Kind::Gauge => (format!("g{name}"), MessageType::Gauge),
                        Kind::Histogram => (format!("h{name}"), MessageType::Histogram),
                    };
                    match client.record(kind, &name, &TagText::default(), value) {
                        Ok(()) => wanted.add(wire, name, value, 1.0),
                        Err(_) => dropped += 1,
                    }
                }
                Step::Flush => prop_assert!(client.flush(TIMEOUT)),
                Step::Open if server.is_none() => server = Some(open(port)),
                Step::Close => {
                    if let Some(open) = server.take() {
                        arrived.receive(&open);
                    }
                }
                Step::Open => {}
                // What is held goes through the time without a thread.
                Step::Fork => {
                    client.before_fork();
                    client.after_fork();
                }
            }
            let account = client.account();
            prop_assert_eq!(account.called, called);
            prop_assert_eq!(account.dropped_total(), dropped);
            prop_assert_eq!(account.called, account.sent + account.held + account.dropped_total());
        }
        // In the end somebody listens: everything that was held arrives, merged.
        let server = server.unwrap_or_else(|| open(port));
        prop_assert!(client.flush(TIMEOUT));
        arrived.receive(&server);
        prop_assert_eq!(client.account().held, 0);
        prop_assert_eq!(arrived.gauges, wanted.gauges);
        prop_assert_eq!(arrived.counters.keys().collect::<Vec<_>>(), wanted.counters.keys().collect::<Vec<_>>());
        for (name, sum) in &wanted.counters {
            prop_assert!((arrived.counters[name] - sum).abs() <= sum.abs() * 1e-12);
        }
        prop_assert_eq!(arrived.histograms.keys().collect::<Vec<_>>(), wanted.histograms.keys().collect::<Vec<_>>());
        for (name, (count, sum)) in &wanted.histograms {
            let (got_count, got_sum) = arrived.histograms[name];
            prop_assert_eq!(got_count, *count);
            prop_assert!((got_sum - sum).abs() <= 1e-12 * 1e6 * count, "{} for {}", got_sum, sum);
        }
    }
}
