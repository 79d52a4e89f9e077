//! Datagram → messages. A message that cannot be read costs itself only.

use super::message::{GaugeMinus, Message, MessageType, Plain, head, parse_value, split_at};

/// Why a message could not be read; `as_str` is the `reason` label of the counted drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecodeError {
    /// No `:` or nothing before it.
    #[error("a message starts with `name:`")]
    NoName,
    /// No `|type` after the values.
    #[error("a message has `|type` after its values: c, g, ms, h, d or s; was it cut off?")]
    NoType,
    /// A type that no version of the protocol has.
    #[error("the type must be c, g, ms, h, d or s")]
    UnknownType,
    /// A value that is not a number, or none at all.
    #[error("every value must be a decimal number")]
    BadValue,
    /// A value that is infinite or NaN, or too large for a double.
    #[error("every value must be finite")]
    NotFinite,
    /// `@rate` is not a number in (0, 1].
    #[error("the sample rate must be a number above 0 and at most 1")]
    BadRate,
    /// `T` is not followed by seconds since the Unix epoch.
    #[error("a timestamp must be a whole number of seconds above 0")]
    BadTimestamp,
    /// `_e{…` that is not an event.
    #[error("an event is `_e{{title bytes,text bytes}}:title|text`, the title not empty")]
    BadEvent,
    /// `_sc|…` that is not a service check.
    #[error("a service check is `_sc|name|status`, the status 0 to 3")]
    BadServiceCheck,
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
            Self::BadTimestamp => "bad_timestamp",
            Self::BadEvent => "bad_event",
            Self::BadServiceCheck => "bad_service_check",
        }
    }
}

/// The messages of a datagram, in their order. Blank lines and a `\r` before the newline are skipped.
///
/// # Examples
/// ```
/// use cortex_metrics::dogstatsd::{MessageValue, decode};
///
/// let mut messages = decode(b"hits:3|c|#page:home\n_e{5,2}:title|ok\noops\n");
/// let hits = messages.next().unwrap().unwrap();
/// assert_eq!((hits.name, hits.tags), (&b"hits"[..], &b"page:home"[..]));
/// assert_eq!(hits.values().collect::<Vec<_>>(), [MessageValue::Absolute(3.0)]);
/// assert_eq!(messages.next().unwrap().unwrap_err().as_str(), "no_name");
/// assert_eq!((messages.line(), messages.tally().events), (&b"oops"[..], 1));
/// assert!(messages.next().is_none());
/// ```
pub fn decode(datagram: &[u8]) -> Messages<'_> {
    Messages {
        rest: datagram,
        line: &[],
        is_begun: true,
        same_name: None,
        gauge_minus: GaugeMinus::default(),
        tally: Tally { unknown_field: &[], ..Tally::default() },
    }
}

/// Iterates over the metric messages of one datagram, readable or not; made by [`decode`]. Events and service checks,
/// which carry no number, are counted on the way.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
    line: &'a [u8],
    /// Whether the first message of the line was given.
    is_begun: bool,
    /// `name:1|c:2|c`: the name, and what is left of the line after a sample.
    same_name: Option<(&'a [u8], &'a [u8])>,
    gauge_minus: GaugeMinus,
    tally: Tally<'a>,
}

/// What was met in a datagram beside messages, and what was passed over in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally<'a> {
    /// `_e{…}` lines.
    pub events: u64,
    /// `_sc|…` lines.
    pub service_checks: u64,
    /// Timestamps: the value counts when it arrives.
    pub timestamps: u64,
    /// Sections of a kind that is not known.
    pub unknown_fields: u64,
    /// Sections of which a later one of their kind was used: rates, tags.
    pub repeated_fields: u64,
    /// Empty texts among the values.
    pub empty_values: u64,
    /// The newest section of a kind that is not known; empty if there was none.
    pub unknown_field: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Reads `-5` of gauges in this way instead of [`GaugeMinus::Auto`].
    #[must_use]
    pub fn with_gauge_minus(self, gauge_minus: GaugeMinus) -> Self {
        Self { gauge_minus, ..self }
    }

    /// The line of the message that was given last.
    pub fn line(&self) -> &'a [u8] {
        self.line
    }

    /// Goes on to the next line that is not blank; false after the last. What the line before still had is passed over.
    pub fn next_line(&mut self) -> bool {
        self.same_name = None;
        while !self.rest.is_empty() {
            let (line, rest) = split_at(self.rest, b'\n').unwrap_or((self.rest, &[]));
            self.rest = rest;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.trim_ascii_start().is_empty() {
                continue;
            }
            self.line = line;
            self.is_begun = false;
            return true;
        }
        false
    }

    /// The line as most are, if it is one: a single number without a sign.
    #[inline]
    pub fn plain(&self) -> Option<Plain<'a>> {
        Plain::of(self.line)
    }

    /// The next message of the line; `None` after its last, and for an event or a service check, now counted.
    pub fn next_of_line(&mut self) -> Option<Result<Message<'a>, DecodeError>> {
        if let Some((name, body)) = self.same_name.take() {
            return Some(self.decode_sample(name, body));
        }
        if std::mem::replace(&mut self.is_begun, true) {
            return None;
        }
        self.decode_line(self.line)
    }

    /// What was counted until now.
    pub fn tally(&self) -> Tally<'a> {
        self.tally
    }

    /// What a line is; `None` for an event or a service check, now counted.
    fn decode_line(&mut self, line: &'a [u8]) -> Option<Result<Message<'a>, DecodeError>> {
        if line.first() == Some(&b'_') {
            if let Some(event) = line.strip_prefix(b"_e{") {
                return if is_event(event) {
                    self.tally.events += 1;
                    None
                } else {
                    Some(Err(DecodeError::BadEvent))
                };
            }
            if let Some(check) = line.strip_prefix(b"_sc|") {
                return if is_service_check(check) {
                    self.tally.service_checks += 1;
                    None
                } else {
                    Some(Err(DecodeError::BadServiceCheck))
                };
            }
        }
        // A `|` before the first `:` ends the name too: then there is no value.
        let end = memchr::memchr2(b':', b'|', line).filter(|end| *end > 0);
        let (Some(name), Some([b':', body @ ..])) =
            (end.and_then(|at| line.get(..at)), end.and_then(|at| line.get(at..)))
        else {
            return Some(Err(DecodeError::NoName));
        };
        Some(self.decode_sample(name, body))
    }

    /// `body` is `value[:value…]|type[|section…]`, and maybe the next sample of the same name after a `:`.
    fn decode_sample(&mut self, name: &'a [u8], body: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let (values, after) = split_at(body, b'|').ok_or(DecodeError::NoType)?;
        let (text, mut sections) = head(after, b'|');
        let mut is_last_section = false;
        // The first that is wrong; the rest is read all the same, to where the next sample is.
        let mut bad = None;
        let kind = if let Some(kind) = kind_of(text) {
            kind
        } else {
            let own = split_at(text, b':').map_or(text, |(own, _)| own);
            // Whatever becomes of this sample, the next one is there.
            self.same_name = after.get(own.len() + 1..).filter(|_| own.len() < text.len()).map(|rest| (name, rest));
            is_last_section = self.same_name.is_some();
            bad = if own.is_empty() { Some(DecodeError::NoType) } else { Some(DecodeError::UnknownType) };
            bad = bad.filter(|_| kind_of(own).is_none());
            kind_of(own).unwrap_or(MessageType::Counter) // nobody's, if it is bad
        };
        let mut message = Message {
            name,
            kind,
            values,
            first: 0.0,
            is_single: false,
            weight: 1.0,
            tags: b"",
            minus_is_delta: false,
            sections: b"",
        };
        let (mut passed, mut has_passed) = (Tally { unknown_field: &[], ..Tally::default() }, false);
        let (mut has_rate, mut has_tags, mut is_dogstatsd) = (false, false, false);
        let mut offset = text.len() + 1;
        while !is_last_section {
            let Some(rest) = sections else { break };
            let section;
            (section, sections) = head(rest, b'|');
            match section {
                [b'@', rate @ ..] => {
                    let mut weight = decode_weight(rate);
                    if weight.is_err()
                        && !is_dogstatsd
                        && let Some((rate, _)) = split_at(rate, b':')
                    {
                        weight = decode_weight(rate);
                        self.same_name = after.get(offset + 1 + rate.len() + 1..).map(|rest| (name, rest));
                        is_last_section = true;
                    }
                    if std::mem::replace(&mut has_rate, true) {
                        (passed.repeated_fields, has_passed) = (passed.repeated_fields + 1, true);
                    }
                    match weight {
                        Ok(weight) => message.weight = weight,
                        Err(error) => bad = bad.or(Some(error)),
                    }
                }
                [b'#', tags @ ..] => {
                    if std::mem::replace(&mut has_tags, true) {
                        (passed.repeated_fields, has_passed) = (passed.repeated_fields + 1, true);
                    }
                    message.tags = tags;
                    is_dogstatsd = true;
                }
                [b'c' | b'e', b':', ..] | [b'c', b'a', b'r', b'd', b':', ..] => is_dogstatsd = true,
                [b'T', seconds @ ..] => {
                    (is_dogstatsd, has_passed) = (true, true);
                    passed.timestamps += 1;
                    if !is_timestamp(seconds) {
                        bad = bad.or(Some(DecodeError::BadTimestamp));
                    }
                }
                [] => {}
                _ => {
                    (is_dogstatsd, has_passed) = (true, true);
                    passed.unknown_fields += 1;
                    passed.unknown_field = section;
                }
            }
            offset += section.len() + 1;
        }
        if let Some(error) = bad {
            return Err(error);
        }
        if !(has_rate || has_passed || is_last_section) {
            message.sections = after;
        }
        message.minus_is_delta = match self.gauge_minus {
            GaugeMinus::Auto => !is_dogstatsd,
            GaugeMinus::Delta => true,
            GaugeMinus::Absolute => false,
        };
        let empty = read_values(&mut message)?;
        if empty > 0 {
            (passed.empty_values, has_passed) = (empty, true);
        }
        if has_passed {
            self.tally.add(&passed);
        }
        Ok(message)
    }
}

/// Reads the values of a message of which the rest is known; how many empty texts are among them.
#[inline]
fn read_values(message: &mut Message<'_>) -> Result<u64, DecodeError> {
    let values = message.values;
    if message.kind == MessageType::Set {
        return if values.is_empty() { Err(DecodeError::BadValue) } else { Ok(0) };
    }
    let (mut first, mut rest, mut empty) = (None, Some(values), 0);
    while let Some(text) = rest {
        let value;
        (value, rest) = head(text, b':');
        message.is_single = first.is_none() && rest.is_none() && value.len() == values.len();
        if value.is_empty() {
            empty += 1;
            continue;
        }
        let value = parse_value(value)?;
        first = first.or(Some(value));
    }
    message.first = first.ok_or(DecodeError::BadValue)?;
    Ok(empty)
}

impl Tally<'_> {
    fn add(&mut self, passed: &Self) {
        self.timestamps += passed.timestamps;
        self.unknown_fields += passed.unknown_fields;
        self.repeated_fields += passed.repeated_fields;
        self.empty_values += passed.empty_values;
        if !passed.unknown_field.is_empty() {
            self.unknown_field = passed.unknown_field;
        }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(message) = self.next_of_line() {
                return Some(message);
            }
            if !self.next_line() {
                return None;
            }
        }
    }
}

/// The type of that name. `StatsD` allows white space around it.
fn kind_of(text: &[u8]) -> Option<MessageType> {
    Some(match text {
        b"c" => MessageType::Counter,
        b"g" => MessageType::Gauge,
        b"ms" => MessageType::Timer,
        b"h" => MessageType::Histogram,
        b"d" => MessageType::Distribution,
        b"s" => MessageType::Set,
        _ => {
            let trimmed = text.trim_ascii();
            return if trimmed.len() < text.len() { kind_of(trimmed) } else { None };
        }
    })
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

/// A whole number above 0 that fits into an `i64`.
fn is_timestamp(text: &[u8]) -> bool {
    number(text).is_some_and(|seconds| seconds > 0 && i64::try_from(seconds).is_ok())
}

fn number(text: &[u8]) -> Option<u64> {
    // `parse` would take a sign.
    text.first().filter(|b| b.is_ascii_digit())?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether `text`, what follows `_e{`, is `title bytes,text bytes}:title|text` and maybe sections. Clients whose language counts a
/// text in characters, or in units of UTF-16, say that many.
fn is_event(text: &[u8]) -> bool {
    let lengths = split_at(text, b'}').and_then(|(lengths, rest)| Some((split_at(lengths, b',')?, rest)));
    let Some(((title, text), rest)) = lengths else { return false };
    let (Some(title), Some(text), Some(rest)) = (number(title), number(text), rest.strip_prefix(b":")) else {
        return false;
    };
    let end = title.saturating_add(1).saturating_add(text);
    let fits = |at: &dyn Fn(u64) -> Option<usize>| {
        let is_pipe = |at: usize| rest.get(at) == Some(&b'|');
        at(title).is_some_and(is_pipe) && at(end).is_some_and(|end| end == rest.len() || is_pipe(end))
    };
    let by_units = |text: &str, units_of: fn(char) -> usize| {
        fits(&|wanted| {
            let mut units = 0;
            let mut ends = text.char_indices().map(|(at, c)| {
                units += units_of(c) as u64;
                (at + c.len_utf8(), units)
            });
            ends.find(|(_, units)| *units >= wanted).and_then(|(end, units)| (units == wanted).then_some(end))
        })
    };
    title > 0
        && (fits(&|at| usize::try_from(at).ok())
            || !rest.is_ascii()
                && std::str::from_utf8(rest).is_ok_and(|rest| by_units(rest, |_| 1) || by_units(rest, char::len_utf16)))
}

/// Whether `text`, what follows `_sc|`, is `name|status` and maybe sections.
fn is_service_check(text: &[u8]) -> bool {
    let mut sections = text.split(|b| *b == b'|');
    sections.next().is_some_and(|name| !name.is_empty()) && matches!(sections.next(), Some([b'0'..=b'3']))
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
            b"a:1|c\r\n\nbroken\n:1|c\nb:x|c\nc:1|q\nd:1\ne:1|c|@2\nf:inf|g\n_e{1,1}:a|b\n_sc|n|0\n_e{9,1}:a|b\n_sc|n|9\nz:2|c",
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
                Err(BadEvent),
                Err(BadServiceCheck),
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
            // A line may hold several samples of its name, each after a colon.
            prop_assert!(decode(text.as_bytes()).count() <= text.matches([':', '\n']).count() + 1);
        }
    }
}
