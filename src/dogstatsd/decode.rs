//! Datagram → messages. A message that cannot be read costs itself only.

use super::message::{Message, MessageType, parse_value};

/// Why a message could not be used; `as_str` is the `reason` label of the counted drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecodeError {
    /// No `:` or nothing before it.
    #[error("a message starts with `name:`")]
    NoName,
    /// No `|type` after the values.
    #[error("a message has `|type` after its values: c, g, ms, h or d")]
    NoType,
    /// A type that no version of the protocol has.
    #[error("the type must be c, g, ms, h or d")]
    UnknownType,
    /// A value that is not a number.
    #[error("every value must be a number")]
    BadValue,
    /// A value that is infinite or NaN, or too large for a double.
    #[error("every value must be finite")]
    NotFinite,
    /// `@rate` is not a number in (0, 1].
    #[error("the sample rate must be in (0, 1]")]
    BadRate,
    /// `s`: sets are not stored yet.
    #[error("sets are not supported yet")]
    Set,
    /// `_e{…}`: an event.
    #[error("events are not stored")]
    Event,
    /// `_sc|…`: a service check.
    #[error("service checks are not stored")]
    ServiceCheck,
}

impl DecodeError {
    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoName => "no_name",
            Self::NoType => "no_type",
            Self::UnknownType => "unknown_type",
            Self::BadValue => "bad_value",
            Self::NotFinite => "not_finite",
            Self::BadRate => "bad_rate",
            Self::Set => "set",
            Self::Event => "event",
            Self::ServiceCheck => "service_check",
        }
    }
}

/// The messages of a datagram, in their order. Blank lines and a `\r` before the newline are skipped.
pub fn decode(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// Iterates over the messages of one datagram; made by [`decode`].
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let (line, rest) = match self.rest.iter().position(|b| *b == b'\n') {
                Some(end) => (self.rest.get(..end), self.rest.get(end + 1..)),
                None => (Some(self.rest), None),
            };
            self.rest = rest.unwrap_or_default();
            let line = line.unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                return Some(decode_line(line));
            }
        }
        None
    }
}

fn decode_line(line: &[u8]) -> Result<Message<'_>, DecodeError> {
    if line.starts_with(b"_e{") {
        return Err(DecodeError::Event);
    }
    if line.starts_with(b"_sc|") {
        return Err(DecodeError::ServiceCheck);
    }
    let mut sections = line.split(|b| *b == b'|');
    let head = sections.next().unwrap_or_default();
    let colon = head.iter().position(|b| *b == b':').filter(|at| *at > 0).ok_or(DecodeError::NoName)?;
    let (name, values) = head.split_at(colon);
    let values = values.get(1..).unwrap_or_default();
    let kind = match sections.next().ok_or(DecodeError::NoType)? {
        b"c" => MessageType::Counter,
        b"g" => MessageType::Gauge,
        b"ms" => MessageType::Timer,
        b"h" => MessageType::Histogram,
        b"d" => MessageType::Distribution,
        b"s" => return Err(DecodeError::Set),
        b"" => return Err(DecodeError::NoType),
        _ => return Err(DecodeError::UnknownType),
    };
    let mut message = Message { name, kind, values, weight: 1.0, tags: b"", has_dogstatsd_sections: false };
    for section in sections {
        match section.split_first() {
            Some((b'@', rate)) => message.weight = decode_weight(rate)?,
            Some((b'#', tags)) => {
                message.tags = tags;
                message.has_dogstatsd_sections = true;
            }
            // Container id, external data, cardinality, timestamp: read past, the value counts on arrival.
            Some(_) => message.has_dogstatsd_sections = true,
            None => {}
        }
    }
    for value in values.split(|b| *b == b':') {
        parse_value(value)?;
    }
    Ok(message)
}

/// `1 / rate`; within 1e-9 of an integer it is that integer, since `rate` has been through decimal text.
fn decode_weight(rate: &[u8]) -> Result<f64, DecodeError> {
    let rate = parse_value(rate).map_err(|_| DecodeError::BadRate)?;
    if !(rate > 0.0 && rate <= 1.0) {
        return Err(DecodeError::BadRate);
    }
    let weight = 1.0 / rate;
    if !weight.is_finite() {
        return Err(DecodeError::BadRate);
    }
    let whole = weight.round();
    Ok(if (weight - whole).abs() <= 1e-9 * whole { whole } else { weight })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MessageValue::{Absolute, Delta};
    use super::*;

    fn one(line: &str) -> Result<Message<'_>, DecodeError> {
        decode(line.as_bytes()).next().expect("a message")
    }

    #[test]
    fn a_message_is_read_whole() {
        let m = one("page.views:1:2.5|h|@0.5|#env:prod,canary,path:/a:b|c:83c0a99c").unwrap();
        assert_eq!((m.name, m.kind, m.weight), (&b"page.views"[..], MessageType::Histogram, 2.0));
        assert_eq!(m.values().collect::<Vec<_>>(), [Absolute(1.0), Absolute(2.5)]);
        let tags: Vec<_> = m.tags().collect();
        assert_eq!(
            tags,
            [(&b"env"[..], Some(&b"prod"[..])), (&b"canary"[..], None), (&b"path"[..], Some(&b"/a:b"[..]))]
        );
    }

    #[test]
    fn a_message_that_cannot_be_read_costs_itself_only() {
        let got: Vec<_> = decode(
            b"a:1|c\r\n\nbroken\n:1|c\nb:x|c\nc:1|q\nd:1\ne:1|c|@2\nf:inf|g\n_e{1,1}:a|b\n_sc|n|0\ng:1|s\nz:2|c",
        )
        .map(|m| m.map(|m| m.name.to_vec()))
        .collect();
        use DecodeError::*;
        assert_eq!(
            got,
            [
                Ok(b"a".to_vec()),
                Err(NoName),
                Err(NoName),
                Err(BadValue),
                Err(UnknownType),
                Err(NoType),
                Err(BadRate),
                Err(NotFinite),
                Err(Event),
                Err(ServiceCheck),
                Err(Set),
                Ok(b"z".to_vec()),
            ]
        );
    }

    #[test]
    fn a_signed_gauge_is_a_delta_unless_a_minus_comes_from_dogstatsd() {
        let values = |line| one(line).unwrap().values().collect::<Vec<_>>();
        assert_eq!(values("g:+5|g"), [Delta(5.0)]);
        assert_eq!(values("g:+5|g|#a:b"), [Delta(5.0)]);
        assert_eq!(values("g:-5|g"), [Delta(-5.0)]);
        assert_eq!(values("g:-5|g|#a:b"), [Absolute(-5.0)]);
        assert_eq!(values("c:-5|c"), [Absolute(-5.0)]);
    }

    #[test]
    fn weights_are_whole_where_the_rate_came_from_a_whole_number() {
        for n in 1..20_000u32 {
            let rate = super::super::rate_for_weight(n);
            let line = format!("m:1|h|@{rate}");
            assert_eq!(one(&line).unwrap().weight, f64::from(n), "{line}");
            assert_eq!((1.0 / rate) as u32, n, "other servers truncate: {line}");
        }
        assert_eq!(one("m:1|c|@0.3").unwrap().weight, 1.0 / 0.3);
    }

    proptest! {
        #[test]
        fn property_test_any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for message in decode(&bytes).flatten() {
                prop_assert!(message.weight >= 1.0);
                prop_assert!(message.values().count() >= 1);
                prop_assert!(message.tags().count() <= 300);
            }
        }

        #[test]
        fn property_test_lines_like_messages_are_read_without_panic(text in "([a-z:|@#,.0-9+-]{0,40}\n?){0,6}") {
            prop_assert!(decode(text.as_bytes()).count() <= 6);
        }
    }
}
