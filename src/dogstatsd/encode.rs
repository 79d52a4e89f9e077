//! Messages → payloads: what the client sends.
//!
//! A payload begins with a header message that names its sender, then holds whole messages and never passes its
//! maximum. `docs/datagram.md` describes the bytes.

use std::io::Write as _;

use super::MessageType;

/// The name of the header message: a gauge with the number of the payload, tagged `client_id`.
pub const HEADER_NAME: &str = "cortex_client_payload_sequence";

/// Who sends a payload, and which one of his it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Random for each process and fork.
    pub client_id: u64,
    /// 1 for the first payload that left, then one more each.
    pub sequence: u64,
}

impl Header {
    /// No header is longer: name, 20 digits, tag, newline.
    pub const BYTES_MAX: usize = HEADER_NAME.len() + 1 + 20 + "|g|#client_id:0123456789abcdef\n".len();

    /// Writes the message with its newline.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self { client_id, sequence } = self;
        let _ = writeln!(out, "{HEADER_NAME}:{sequence}|g|#client_id:{client_id:016x}");
    }

    /// Reads back what `encode` wrote: the value and the tags' text of a gauge named [`HEADER_NAME`].
    pub fn decode(sequence: f64, tags: &[u8]) -> Option<Self> {
        let id = tags.strip_prefix(b"client_id:")?;
        // `from_str_radix` would take a sign.
        let is_id = id.len() == 16 && id.iter().all(u8::is_ascii_hexdigit);
        let client_id = u64::from_str_radix(std::str::from_utf8(id).ok().filter(|_| is_id)?, 16).ok()?;
        let is_number = (1.0..9e15).contains(&sequence) && sequence.fract() == 0.0;
        is_number.then_some(Self { client_id, sequence: sequence as u64 })
    }
}

/// A payload under construction: whole lines, never more than `bytes_max`.
#[derive(Debug)]
pub struct Payload {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Payload {
    /// An empty payload. `bytes_max` is what its transport carries in one datagram, less what the header takes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes_max), bytes_max }
    }

    /// Adds a line (or several that belong together), without its last newline. False, with nothing changed, if it does not fit.
    pub fn push(&mut self, line: &[u8]) -> bool {
        let newline = usize::from(!self.bytes.is_empty());
        if self.bytes.len() + newline + line.len() > self.bytes_max {
            return false;
        }
        if newline == 1 {
            self.bytes.push(b'\n');
        }
        self.bytes.extend_from_slice(line);
        true
    }

    /// The lines so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets the lines, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// The most that a line with one value adds to its name and tags: `:value|ms|@rate|#`.
pub const LINE_OVERHEAD_MAX: usize = 2 * VALUE_BYTES_MAX + 8;

/// The most that `encode_value` writes.
const VALUE_BYTES_MAX: usize = 26;

/// How many values fit beside a name and tags of `context_bytes` into a line of `line_bytes_max`; at least 1.
pub fn values_per_line(context_bytes: usize, line_bytes_max: usize) -> usize {
    (line_bytes_max.saturating_sub(context_bytes + LINE_OVERHEAD_MAX) / (VALUE_BYTES_MAX + 1)).max(1)
}

/// Writes one line without its newline: `name:value:…|type|@rate|#tags`. `weight` above 1 becomes a rate.
///
/// A negative gauge becomes two lines, `0` and then the value, since plain `StatsD` reads `-5` as a decrement.
pub fn encode_line(out: &mut Vec<u8>, name: &[u8], kind: MessageType, values: &[f64], weight: u32, tags: &[u8]) {
    if kind == MessageType::Gauge && values.iter().any(|v| v.is_sign_negative()) {
        encode_plain_line(out, name, kind, &[0.0], weight, tags);
        out.push(b'\n');
    }
    encode_plain_line(out, name, kind, values, weight, tags);
}

fn encode_plain_line(out: &mut Vec<u8>, name: &[u8], kind: MessageType, values: &[f64], weight: u32, tags: &[u8]) {
    out.extend_from_slice(name);
    for value in values {
        out.push(b':');
        encode_value(out, *value);
    }
    out.extend_from_slice(match kind {
        MessageType::Counter => b"|c",
        MessageType::Gauge => b"|g",
        MessageType::Timer => b"|ms",
        MessageType::Histogram => b"|h",
        MessageType::Distribution => b"|d",
        MessageType::Set => b"|s",
    });
    if weight > 1 {
        out.extend_from_slice(b"|@");
        encode_value(out, rate_for_weight(weight));
    }
    if !tags.is_empty() {
        out.extend_from_slice(b"|#");
        out.extend_from_slice(tags);
    }
}

/// Writes a finite number in the shortest form that reads back as itself; an exponent only where plain digits would be
/// many, since not every server reads one.
pub fn encode_value(out: &mut Vec<u8>, value: f64) {
    let size = value.abs();
    let _ =
        if size != 0.0 && !(1e-5..1e17).contains(&size) { write!(out, "{value:e}") } else { write!(out, "{value}") };
}

/// The sample rate for `weight` samples: the next double below `1 / weight`, so that servers which compute
/// `int(1 / rate)` get `weight` (with `1 / weight` itself many would get one less). 1 for a weight of 0 or 1.
pub fn rate_for_weight(weight: u32) -> f64 {
    if weight <= 1 { 1.0 } else { (1.0 / f64::from(weight)).next_down() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{MessageValue, decode};
    use super::*;

    fn line(name: &str, kind: MessageType, values: &[f64], weight: u32, tags: &str) -> String {
        let mut out = Vec::new();
        encode_line(&mut out, name.as_bytes(), kind, values, weight, tags.as_bytes());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_what_every_dogstatsd_server_reads() {
        assert_eq!(line("my_counter", MessageType::Counter, &[1.0], 1, "model:v1"), "my_counter:1|c|#model:v1");
        assert_eq!(line("h", MessageType::Histogram, &[0.25, 100.0], 1, ""), "h:0.25:100|h");
        assert_eq!(line("h", MessageType::Histogram, &[2.0], 4, "a:b"), "h:2|h|@0.24999999999999997|#a:b");
        assert_eq!(line("g", MessageType::Gauge, &[-5.0], 1, "a:b"), "g:0|g|#a:b\ng:-5|g|#a:b");
    }

    #[test]
    fn values_are_short_and_bounded() {
        let text = |v: f64| line("", MessageType::Counter, &[v], 1, "");
        assert_eq!(text(9_007_199_254_740_993.0), ":9007199254740992|c");
        assert_eq!(text(1e300), ":1e300|c");
        for value in
            [f64::MAX, -f64::MAX, f64::MIN_POSITIVE, -5e-324, -1.234_567_890_123_456_7e-5, 99_999_999_999_999_990.0]
        {
            let mut out = Vec::new();
            encode_value(&mut out, value);
            assert!(out.len() <= VALUE_BYTES_MAX, "{value} takes {}", out.len());
        }
    }

    #[test]
    fn a_header_is_read_back_and_within_its_bound() {
        let header = Header { client_id: u64::MAX, sequence: u64::MAX };
        let mut out = Vec::new();
        header.encode(&mut out);
        assert_eq!(out.len(), Header::BYTES_MAX);
        assert_eq!(Header::decode(7.0, b"client_id:00000000000000ff"), Some(Header { client_id: 255, sequence: 7 }));
        assert_eq!(Header::decode(0.0, b"client_id:00000000000000ff"), None);
        assert_eq!(Header::decode(1.0, b"client_id:ff"), None);
    }

    #[test]
    fn a_payload_takes_whole_lines_up_to_its_last_byte() {
        let mut payload = Payload::new(11);
        assert!(payload.push(b"aaaaa"));
        assert!(!payload.push(b"bbbbbb"));
        assert!(payload.push(b"bbbbb"));
        assert_eq!(payload.bytes(), b"aaaaa\nbbbbb");
    }

    proptest! {
        #[test]
        fn property_test_decode_gives_back_what_was_encoded(
            name in "[a-zA-Z_][a-zA-Z0-9_.]{0,20}",
            tags in "([a-z]{1,5}:[a-z/=:]{0,5},?){0,3}",
            values in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::SUBNORMAL, 1..8),
            weight in 1u32..10_000,
        ) {
            let values: Vec<f64> = values;
            let text = line(&name, MessageType::Histogram, &values, weight, &tags);
            let mut messages = decode(text.as_bytes());
            let message = messages.next().unwrap().unwrap();
            prop_assert_eq!(message.name, name.as_bytes());
            prop_assert_eq!(message.tags, tags.as_bytes());
            prop_assert_eq!(message.weight, f64::from(weight));
            let got: Vec<MessageValue> = message.values().collect();
            let want: Vec<MessageValue> = values.iter().copied().map(MessageValue::Absolute).collect();
            prop_assert_eq!(got, want);
            prop_assert!(messages.next().is_none());
        }
    }
}
