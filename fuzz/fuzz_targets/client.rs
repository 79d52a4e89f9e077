//! Whatever a call's name and tags are: it is dropped for a reason, or it comes out of the payload as it went in, alone.

#![no_main]

use arbitrary::Arbitrary;
use cortex_metrics::client::{Kind, TagText, check_call};
use cortex_metrics::dogstatsd::{MessageType, MessageValue, Payload, decode, encode_line};
use libfuzzer_sys::fuzz_target;

const PAYLOAD_BYTES: usize = 1432;
const CONTEXT_BYTES: usize = 600;

#[derive(Debug, Arbitrary)]
struct Call {
    kind: u8,
    name: String,
    tags: Vec<(String, String)>,
    value: f64,
}

fuzz_target!(|calls: Vec<Call>| {
    let mut payload = Payload::new(PAYLOAD_BYTES);
    let mut wanted = Vec::new();
    for call in calls {
        let (kind, message) = match call.kind % 3 {
            0 => (Kind::Counter, MessageType::Counter),
            1 => (Kind::Gauge, MessageType::Gauge),
            _ => (Kind::Histogram, MessageType::Histogram),
        };
        let mut tags = TagText::default();
        if call.tags.iter().any(|(key, value)| tags.push(key, value).is_err())
            || check_call(kind, &call.name, &tags, call.value, CONTEXT_BYTES).is_err()
        {
            continue;
        }
        let mut line = Vec::new();
        encode_line(&mut line, call.name.as_bytes(), message, &[call.value], 1, tags.as_str().as_bytes());
        if payload.push(&line) {
            if message == MessageType::Gauge && call.value.is_sign_negative() {
                wanted.push((call.name.clone(), message, 0.0, tags.clone()));
            }
            wanted.push((call.name, message, call.value, tags));
        }
    }
    assert!(payload.bytes().len() <= PAYLOAD_BYTES);
    let mut messages = decode(payload.bytes());
    for (name, kind, value, tags) in wanted {
        let message = messages.next().expect("as many as went in").expect("well-formed");
        assert_eq!((message.name, message.kind, message.weight), (name.as_bytes(), kind, 1.0));
        assert_eq!(message.tags, tags.as_str().as_bytes());
        let values: Vec<MessageValue> = message.values().collect();
        let (&[MessageValue::Absolute(got)] | &[MessageValue::Delta(got)]) = values.as_slice() else {
            panic!("{values:?}")
        };
        assert_eq!(got.to_bits(), value.to_bits());
    }
    assert!(messages.next().is_none(), "more came out than went in");
});
