//! One message as it stands in a datagram: slices of the bytes received, nothing copied.

use super::decode::DecodeError;

/// What the `|type` section says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// `c`: adds to a total.
    Counter,
    /// `g`: sets a value, or changes it by a signed amount.
    Gauge,
    /// `ms`: a duration in milliseconds.
    Timer,
    /// `h`: a value of a distribution.
    Histogram,
    /// `d`: the same; Datadog aggregates it elsewhere.
    Distribution,
    /// `s`: a member of a set, any text.
    Set,
}

impl MessageType {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "c",
            Self::Gauge => "g",
            Self::Timer => "ms",
            Self::Histogram => "h",
            Self::Distribution => "d",
            Self::Set => "s",
        }
    }
}

/// One value of a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MessageValue {
    /// Add to a counter, set a gauge, or record in a histogram.
    Absolute(f64),
    /// Change a gauge by this much.
    Delta(f64),
}

/// What `-5` says to a gauge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GaugeMinus {
    /// A value in messages with `DogStatsD` sections, a change in all others.
    #[default]
    Auto,
    /// Always a change, as to `StatsD`.
    Delta,
    /// Always a value, as to Datadog's server.
    Absolute,
}

/// One well-formed message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Message<'a> {
    /// The name, never empty; any bytes but `:`, `|` and newline.
    pub name: &'a [u8],
    /// What the values mean.
    pub kind: MessageType,
    /// The text before the type. Unless it is a set's, numbers separated by `:`, all found to be finite.
    pub(super) values: &'a [u8],
    /// The first of the numbers, since most messages have no other; 0 in a set.
    pub(super) first: f64,
    /// Whether that is the only one.
    pub(super) is_single: bool,
    /// How many samples each value stands for: `1 / rate`, at least 1.
    pub weight: f64,
    /// The text of the tags without its `#`, empty if there are none.
    pub tags: &'a [u8],
    /// Whether `-5` changes the gauge.
    pub(super) minus_is_delta: bool,
    /// The type and all that follows it, if none of it can differ from one message to the next: no rate, no timestamp,
    /// nothing to be counted. Else empty.
    pub(crate) sections: &'a [u8],
}

/// A line as most are, of which no more is known than where its number ends: one without a sign.
#[derive(Debug, Clone, Copy)]
pub struct Plain<'a> {
    /// What is before the first `:`.
    pub name: &'a [u8],
    /// What is after the number's `|`.
    pub(crate) sections: &'a [u8],
    text: &'a [u8],
    value: f64,
}

impl<'a> Plain<'a> {
    #[inline]
    pub(super) fn of(line: &'a [u8]) -> Option<Self> {
        let (name, body) = split_at(line, b':')?;
        let (value, length) = short_unsigned(body)?;
        let (text, after) = body.split_at_checked(length)?;
        let [b'|', sections @ ..] = after else { return None };
        Some(Self { name, sections, text, value })
    }

    /// The message, whose sections say that it is of this kind and has no rate.
    #[inline]
    pub fn message(&self, kind: MessageType) -> Message<'a> {
        Message {
            name: self.name,
            kind,
            values: self.text,
            first: self.value,
            is_single: true,
            weight: 1.0,
            tags: &[],
            minus_is_delta: false,
            sections: self.sections,
        }
    }
}

impl<'a> Message<'a> {
    /// The values in their order; none of a set.
    pub fn values(&self) -> Values<'a> {
        let is_gauge = self.kind == MessageType::Gauge;
        Values {
            rest: (self.kind != MessageType::Set).then_some(self.values),
            first: Some(self.first),
            is_single: self.is_single,
            plus_is_delta: is_gauge,
            minus_is_delta: is_gauge && self.minus_is_delta,
        }
    }

    /// The value, if the message has no other.
    pub fn single(&self) -> Option<f64> {
        self.is_single.then_some(self.first)
    }

    /// The member that the message adds to a set, never empty; `None` if it is of another type.
    pub fn member(&self) -> Option<&'a [u8]> {
        (self.kind == MessageType::Set).then_some(self.values)
    }

    /// The tags in their order: key and value; a tag without `:` has no value. Empty tags are skipped, and a `#` that some
    /// clients write before each key.
    pub fn tags(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let bare = |tag: &'a [u8]| tag.strip_prefix(b"#").unwrap_or(tag);
        self.tags.split(|b| *b == b',').map(bare).filter(|tag| !tag.is_empty()).map(|tag| match split_at(tag, b':') {
            Some((key, value)) => (key, Some(value)),
            None => (tag, None),
        })
    }
}

/// Iterates over the values of one message; made by [`Message::values`].
#[derive(Debug, Clone)]
pub struct Values<'a> {
    rest: Option<&'a [u8]>,
    /// The first value, parsed already.
    first: Option<f64>,
    is_single: bool,
    plus_is_delta: bool,
    minus_is_delta: bool,
}

impl Iterator for Values<'_> {
    type Item = MessageValue;

    fn next(&mut self) -> Option<MessageValue> {
        loop {
            let rest = self.rest.take()?;
            let (text, after) = if self.is_single { (rest, None) } else { head(rest, b':') };
            self.rest = after;
            if text.is_empty() {
                continue;
            }
            let value = self.first.take().map_or_else(|| parse_value(text), Ok).ok()?;
            return Some(match text.first() {
                Some(b'+') if self.plus_is_delta => MessageValue::Delta(value),
                Some(b'-') if self.minus_is_delta => MessageValue::Delta(value),
                _ => MessageValue::Absolute(value),
            });
        }
    }
}

/// What is before the first `separator`, and what is after it.
#[inline]
pub(super) fn split_at(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = position(separator, text)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// Where the byte is first. It is near most often: choosing at run time what is best for long texts takes longer than
/// looking with what every processor of this kind has.
#[inline]
fn position(byte: u8, text: &[u8]) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    if let Some(one) = memchr::arch::x86_64::sse2::memchr::One::new(byte) {
        return one.find(text);
    }
    memchr::memchr(byte, text)
}

/// What is before the first `separator`, and what is after it if there is one.
pub(super) fn head(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    split_at(text, separator).map_or((text, None), |(head, after)| (head, Some(after)))
}

/// The powers of ten that divide the digits of a short number.
const TENS: [f64; 16] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

/// A finite decimal number; never `inf` or `nan`.
pub(super) fn parse_value(text: &[u8]) -> Result<f64, DecodeError> {
    if let Some(value) = parse_short(text) {
        return Ok(value);
    }
    let text = std::str::from_utf8(text).map_err(|_| DecodeError::BadValue)?;
    let value: f64 = text.parse().map_err(|_| DecodeError::BadValue)?;
    if value.is_finite() { Ok(value) } else { Err(DecodeError::NotFinite) }
}

/// A number of at most 15 digits with or without a point, as nearly all values are, and its length: the digits and the power
/// of ten are doubles exactly, so that one division rounds once (Clinger, "How to read floating point numbers
/// accurately", 1990).
fn short_unsigned(text: &[u8]) -> Option<(f64, usize)> {
    let (mut number, mut length, mut point) = (0_u64, 0, None);
    for byte in text {
        match byte {
            b'0'..=b'9' => number = number.wrapping_mul(10).wrapping_add(u64::from(byte - b'0')),
            b'.' if point.is_none() => point = Some(length + 1),
            _ => break,
        }
        length += 1;
    }
    let digits = length - usize::from(point.is_some());
    if digits == 0 || digits > 15 {
        return None;
    }
    Some((number as f64 / TENS.get(point.map_or(0, |point| length - point))?, length))
}

fn parse_short(text: &[u8]) -> Option<f64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    let (value, length) = short_unsigned(digits)?;
    (length == digits.len()).then_some(if is_negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn property_test_short_numbers_are_what_the_standard_library_reads(text in "[+-]?[0-9]{0,9}[.]?[0-9]{0,9}") {
            let want = text.parse::<f64>().ok().map(f64::to_bits);
            prop_assert_eq!(parse_value(text.as_bytes()).ok().map(f64::to_bits), want);
        }
    }
}
