//! Any message: `decode(encode(x)) = x`.

#![no_main]

#[path = "../properties.rs"]
#[allow(dead_code)]
mod properties;

use arbitrary::Arbitrary;
use cortex_metrics::dogstatsd::MessageType;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Line {
    kind: u8,
    name: Vec<u8>,
    values: Vec<f64>,
    weight: u32,
    tags: Vec<u8>,
}

fuzz_target!(|line: Line| {
    let kind = match line.kind % 5 {
        0 => MessageType::Counter,
        1 => MessageType::Gauge,
        2 => MessageType::Timer,
        3 => MessageType::Histogram,
        _ => MessageType::Distribution,
    };
    properties::encoded_is_decoded(&line.name, kind, &line.values, line.weight, &line.tags);
});
