//! Names, tags and values that nobody should use: a call is dropped for a reason, or comes out of its payload as it went
//! in and alone. `fuzz/` looks for more of the same.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use cortex_metrics::client::{Client, ClientConfig, Endpoint, Kind, TagText};
use cortex_metrics::dogstatsd::{HEADER_NAME, decode};
use proptest::prelude::*;
use std::net::UdpSocket;
use std::time::Duration;

fn rogue_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z_]{1,5}",
        1 => "\\PC{0,3}",
        2 => prop::sample::select(vec!["\n", "\r", "|", "#", ",", ":", "@", "|c", "\nx:1|c", "|#a:b", "\u{0}", "\u{85}", "\u{2028}", "é", "_e{", "_e{1,1}:", "_sc|"]).prop_map(str::to_owned),
        1 => (100usize..12_000).prop_map(|length| "a".repeat(length)),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn property_test_a_rogue_call_neither_breaks_a_payload_nor_makes_another_metric(
        name in rogue_text(),
        tags in prop::collection::vec((rogue_text(), rogue_text()), 0..3),
        value in prop_oneof![Just(1.0), prop::num::f64::ANY],
        kind in prop_oneof![Just(Kind::Counter), Just(Kind::Gauge), Just(Kind::Histogram)],
    ) {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_nonblocking(true).unwrap();
        let endpoint = Endpoint::Udp { host: "127.0.0.1".to_owned(), port: server.local_addr().unwrap().port() };
        let flush_interval = Duration::from_secs(3600);
        let client = Client::<()>::new(ClientConfig { endpoint, flush_interval, ..ClientConfig::default() });
        let mut text = TagText::default();
        let outcome = match tags.iter().try_for_each(|(key, value)| text.push(key, value)) {
            Ok(()) => client.record(kind, &name, &text, value),
            Err(reason) => Err(client.refuse(reason)),
        };
        client.record(Kind::Counter, "neighbour", &TagText::default(), 3.0).unwrap();
        prop_assert!(client.flush(Duration::from_secs(5)));
        let (mut rogue, mut neighbour, mut buffer) = (0, 0, vec![0; 65_536]);
        while let Ok(length) = server.recv(&mut buffer) {
            prop_assert!(length <= 1432);
            for message in decode(buffer.get(..length).unwrap()) {
                let message = message.unwrap();
                match message.name {
                    b"neighbour" => neighbour += 1,
                    own if own == HEADER_NAME.as_bytes() || own.starts_with(b"cortex_client_") => {}
                    other => {
                        prop_assert_eq!(other, name.as_bytes());
                        prop_assert_eq!(message.tags, text.as_str().as_bytes());
                        rogue += 1;
                    }
                }
            }
        }
        prop_assert_eq!(neighbour, 1);
        let lines = if kind == Kind::Gauge && value.is_sign_negative() { 2 } else { 1 };
        prop_assert_eq!(rogue, if outcome.is_ok() { lines } else { 0 });
        let account = client.account();
        prop_assert_eq!((account.called, account.sent, account.dropped_total()), (2, 1 + u64::from(outcome.is_ok()), u64::from(outcome.is_err())));
    }
}
