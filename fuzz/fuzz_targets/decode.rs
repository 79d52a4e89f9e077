//! Any bytes: each line is a message or an error, and every value is finite.

#![no_main]

use cortex_metrics::dogstatsd::{MessageValue, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    let lines = datagram.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && *line != b"\r").count();
    let mut decoded = 0;
    for message in decode(datagram) {
        decoded += 1;
        let Ok(message) = message else { continue };
        assert!(!message.name.is_empty() && message.weight >= 1.0 && message.weight.is_finite());
        assert!(message.values().count() > 0);
        for value in message.values() {
            let (MessageValue::Absolute(value) | MessageValue::Delta(value)) = value;
            assert!(value.is_finite());
        }
        message.tags().for_each(drop);
    }
    assert_eq!(decoded, lines, "no line is passed over");
});
