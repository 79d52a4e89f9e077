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
}

/// One value of a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MessageValue {
    /// Add to a counter, set a gauge, or record in a histogram.
    Absolute(f64),
    /// Change a gauge by this much.
    Delta(f64),
}

/// One well-formed message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Message<'a> {
    /// The name, never empty; any bytes but `:`, `|` and newline.
    pub name: &'a [u8],
    /// What the values mean.
    pub kind: MessageType,
    /// The values' text, separated by `:`. Each of them has been found to be a finite number.
    pub(super) values: &'a [u8],
    /// How many samples each value stands for: `1 / rate`, at least 1.
    pub weight: f64,
    /// The text of the tags without its `#`, empty if there are none.
    pub tags: &'a [u8],
    /// True if there was any section after the type and the rate: then the sender speaks `DogStatsD`.
    pub(super) has_dogstatsd_sections: bool,
}

impl<'a> Message<'a> {
    /// The values in their order.
    pub fn values(&self) -> impl Iterator<Item = MessageValue> + use<'a> {
        let signed_is_delta = self.kind == MessageType::Gauge;
        let minus_is_delta = signed_is_delta && !self.has_dogstatsd_sections;
        self.values.split(|b| *b == b':').filter_map(move |text| {
            let value = parse_value(text).ok()?;
            Some(match text.first() {
                Some(b'+') if signed_is_delta => MessageValue::Delta(value),
                Some(b'-') if minus_is_delta => MessageValue::Delta(value),
                _ => MessageValue::Absolute(value),
            })
        })
    }

    /// The tags in their order: key and value; a tag without `:` has no value. Empty tags are skipped.
    pub fn tags(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        self.tags.split(|b| *b == b',').filter(|tag| !tag.is_empty()).map(|tag| {
            match tag.iter().position(|b| *b == b':') {
                Some(colon) => {
                    let (key, value) = tag.split_at(colon);
                    (key, value.get(1..))
                }
                None => (tag, None),
            }
        })
    }
}

/// A finite number as `strtod` and Rust read it; never `inf` or `nan`.
pub(super) fn parse_value(text: &[u8]) -> Result<f64, DecodeError> {
    let text = std::str::from_utf8(text).map_err(|_| DecodeError::BadValue)?;
    let value: f64 = text.parse().map_err(|_| DecodeError::BadValue)?;
    if value.is_finite() { Ok(value) } else { Err(DecodeError::NotFinite) }
}
