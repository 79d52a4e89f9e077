//! What must hold of any bytes that are decoded, and of anything that is encoded. The fuzz targets look for a counterexample
//! for as long as they are let; `tests/protocol.rs` tries some in every test run.

use cortex_metrics::dogstatsd::{GaugeMinus, Message, MessageType, MessageValue, decode, encode_line};

/// Any bytes: each line is messages, an error, an event or a service check, in their order; what a message says is within
/// its bounds, and comes back when it is encoded.
pub fn decoded_bytes_are_accounted_for(datagram: &[u8]) {
    let bare = |line: &&[u8]| !line.strip_suffix(b"\r").unwrap_or(line).trim_ascii().is_empty();
    let lines = datagram.split(|byte| *byte == b'\n').filter(bare).count() as u64;
    let mut counts = Vec::new();
    for gauge_minus in [GaugeMinus::Auto, GaugeMinus::Delta, GaugeMinus::Absolute] {
        let mut messages = decode(datagram).with_gauge_minus(gauge_minus);
        let (mut place, mut with_messages, mut count) = (None, 0, 0_usize);
        while let Some(message) = messages.next() {
            count += 1;
            let line = messages.line();
            let here = line.as_ptr() as usize - datagram.as_ptr() as usize;
            assert!(place <= Some(here), "lines are in their order");
            with_messages += u64::from(place != Some(here));
            place = Some(here);
            match message {
                Ok(message) => check_message(&message, line),
                Err(error) => assert!(!error.as_str().is_empty() && !error.to_string().is_empty()),
            }
        }
        let tally = messages.tally();
        assert_eq!(with_messages + tally.events + tally.service_checks, lines, "no line is passed over");
        counts.push((count, tally));
    }
    assert!(counts.iter().all(|count| *count == counts[0]), "what a minus says changes nothing else");
}

fn check_message(message: &Message<'_>, line: &[u8]) {
    assert!(!message.name.is_empty() && !message.name.iter().any(|b| matches!(b, b':' | b'|' | b'\n')));
    assert!(line.starts_with(message.name));
    assert!(message.weight >= 1.0 && message.weight.is_finite());
    assert!(!message.tags.contains(&b'|'));
    assert!(message.tags().all(|(key, _)| !key.contains(&b',') && !key.contains(&b':')));
    let values = numbers(message);
    assert!(values.iter().all(|value| value.is_finite()));
    match message.member() {
        Some(member) => assert!(values.is_empty() && !member.is_empty()),
        None => assert!(!values.is_empty()),
    }
    let has_delta = message.values().any(|value| matches!(value, MessageValue::Delta(_)));
    assert!(!has_delta || message.kind == MessageType::Gauge);
    if message.kind != MessageType::Set && message.weight.fract() == 0.0 && message.weight <= f64::from(u32::MAX) {
        encoded_is_decoded(message.name, message.kind, &values, message.weight as u32, message.tags);
    }
}

fn numbers(message: &Message<'_>) -> Vec<f64> {
    let number = |value| match value {
        MessageValue::Absolute(value) | MessageValue::Delta(value) => value,
    };
    message.values().map(number).collect()
}

/// What a datagram can carry comes out of it as it went in, alone and bit by bit. Anything else is passed over here.
pub fn encoded_is_decoded(name: &[u8], kind: MessageType, values: &[f64], weight: u32, tags: &[u8]) {
    let is_name = !name.is_empty()
        && !name.iter().any(|b| matches!(b, b':' | b'|' | b'\n'))
        && !name.starts_with(b"_e{")
        && kind != MessageType::Set;
    let is_tags = !tags.iter().any(|b| matches!(b, b'|' | b'\n')) && !tags.ends_with(b"\r");
    let is_values = !values.is_empty() && values.iter().all(|value| value.is_finite());
    if !is_name || !is_tags || !is_values || weight == 0 {
        return;
    }
    let mut lines = Vec::new();
    encode_line(&mut lines, name, kind, values, weight, tags);
    let mut decoded: Vec<Message<'_>> = decode(&lines).map(|message| message.expect("well-formed")).collect();
    let message = decoded.pop().expect("a message");
    assert_eq!((message.name, message.kind, message.tags), (name, kind, tags));
    assert_eq!(message.weight, f64::from(weight));
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&numbers(&message)), bits(values));
    // A negative gauge is set to 0 before, for those who take it as a change.
    let zeros: Vec<_> = decoded.iter().map(|message| (message.name, message.kind, numbers(message))).collect();
    let is_negative = kind == MessageType::Gauge && values.iter().any(|value| value.is_sign_negative());
    assert_eq!(zeros, vec![(name, kind, vec![0.0]); usize::from(is_negative)]);
}
