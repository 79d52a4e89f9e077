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
    /// How many samples each value stands for: `1 / rate`, at least 1.
    pub weight: f64,
    /// The text of the tags without its `#`, empty if there are none.
    pub tags: &'a [u8],
    /// Whether `-5` changes the gauge.
    pub(super) minus_is_delta: bool,
}

impl<'a> Message<'a> {
    /// The values in their order; none of a set.
    pub fn values(&self) -> impl Iterator<Item = MessageValue> + use<'a> {
        let plus_is_delta = self.kind == MessageType::Gauge;
        let minus_is_delta = plus_is_delta && self.minus_is_delta;
        let numbers = if self.kind == MessageType::Set { &[] } else { self.values };
        let mut first = Some(self.first);
        numbers.split(|b| *b == b':').filter(|text| !text.is_empty()).filter_map(move |text| {
            let value = first.take().map_or_else(|| parse_value(text), Ok).ok()?;
            Some(match text.first() {
                Some(b'+') if plus_is_delta => MessageValue::Delta(value),
                Some(b'-') if minus_is_delta => MessageValue::Delta(value),
                _ => MessageValue::Absolute(value),
            })
        })
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

/// What is before the first `separator`, and what is after it.
pub(super) fn split_at(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == separator)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// A finite decimal number; never `inf` or `nan`.
pub(super) fn parse_value(text: &[u8]) -> Result<f64, DecodeError> {
    let text = std::str::from_utf8(text).map_err(|_| DecodeError::BadValue)?;
    let value: f64 = text.parse().map_err(|_| DecodeError::BadValue)?;
    if value.is_finite() { Ok(value) } else { Err(DecodeError::NotFinite) }
}
