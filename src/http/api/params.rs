//! The parameters of a request: from the address, from a form in the body, or both, as Prometheus takes them.

use axum::extract::{Form, FromRequest, Query, Request};
use axum::http::{Method, header};

use super::ApiError;
use crate::clock::days_from_civil;
use crate::promql::parse_duration_ms;

/// The parameters in order, those of the body first.
pub(in crate::http) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequest<S> for Params {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Query(address) = Query::<Vec<(String, String)>>::try_from_uri(request.uri())
            .map_err(|error| ApiError::bad_data(format!("error parsing the query string: {error}")))?;
        let is_form = request.method() == Method::POST
            && request
                .headers()
                .get(header::CONTENT_TYPE)
                .is_some_and(|content_type| content_type.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
        let mut params = Vec::new();
        if is_form {
            let Form(body) = Form::<Vec<(String, String)>>::from_request(request, state)
                .await
                .map_err(|error| ApiError::bad_data(format!("error parsing form values: {error}")))?;
            params = body;
        }
        params.extend(address);
        Ok(Self(params))
    }
}

impl Params {
    /// The first value of that name, `None` if there is none or it is empty.
    pub(in crate::http) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(n, _)| n == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of that name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A time that may be missing.
    pub(super) fn time_ms(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let wrong = || {
            ApiError::invalid(
                name,
                &format!("invalid time value for '{name}': cannot parse {text:?} to a valid timestamp"),
            )
        };
        parse_time_ms(text).ok_or_else(wrong).map(Some)
    }

    /// A time that must be there.
    pub(super) fn required_time_ms(&self, name: &str) -> Result<i64, ApiError> {
        let text = self.get(name).unwrap_or_default();
        parse_time_ms(text)
            .ok_or_else(|| ApiError::invalid(name, &format!("cannot parse {text:?} to a valid timestamp")))
    }

    /// A duration that may be missing.
    pub(super) fn duration_ms(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let parse = |text| parse_duration_ms(text).ok_or(text);
        self.get(name)
            .map(parse)
            .transpose()
            .map_err(|text| ApiError::invalid(name, &format!("cannot parse {text:?} to a valid duration")))
    }

    /// How many series or names to return at most; `None`: all.
    pub(super) fn limit(&self) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.get("limit") else { return Ok(None) };
        match text.parse::<i64>() {
            Ok(limit) if limit < 0 => Err(ApiError::invalid("limit", "limit must be non-negative")),
            Ok(limit) => Ok(usize::try_from(limit).ok().filter(|limit| *limit > 0)),
            Err(error) => {
                use std::num::IntErrorKind::{NegOverflow, PosOverflow};
                let is_far = matches!(error.kind(), PosOverflow | NegOverflow);
                let why = if is_far { "value out of range" } else { "invalid syntax" };
                Err(ApiError::invalid("limit", &format!("strconv.Atoi: parsing {text:?}: {why}")))
            }
        }
    }
}

/// The first and the last time that Prometheus's client libraries know, and how they write it.
const TIME_MIN: (&str, i64) = ("-292273086-05-16T16:47:06Z", i64::MIN / 1000 * 1000 + 62_135_596_801_000);
const TIME_MAX: (&str, i64) =
    ("292277025-08-18T07:12:54.999999999Z", i64::MAX / 1000 * 1000 - 62_135_596_801_000 + 999);

/// Milliseconds since the Unix epoch of seconds (`1435781451.781`) or RFC 3339 (`2015-07-01T20:11:05.781Z`).
pub(crate) fn parse_time_ms(text: &str) -> Option<i64> {
    let far = [TIME_MIN, TIME_MAX].into_iter().find(|(name, _)| *name == text);
    if let Some((_, ms)) = far {
        return Some(ms);
    }
    match text.parse::<f64>() {
        // 2^43 seconds is beyond what the engine takes, and far from where the cast would bend it.
        Ok(seconds) => (seconds.abs() < (1i64 << 43) as f64).then(|| (seconds * 1000.0).round() as i64),
        Err(_) => parse_rfc3339_ms(text),
    }
}

/// RFC 3339's `date-time`: `YYYY-MM-DDTHH:MM:SS[.fraction](Z|±HH:MM)`. A leap second is the second after it. By hand,
/// since this is the one place that reads dates.
fn parse_rfc3339_ms(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is_at = |at: usize, wanted: &[u8]| text.as_bytes().get(at).is_some_and(|b| wanted.contains(b));
    if !(is_at(4, b"-") && is_at(7, b"-") && is_at(10, b"Tt ") && is_at(13, b":") && is_at(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction_ms, zone) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(fraction) => {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, zone) = fraction.split_at_checked(digits).filter(|(digits, _)| !digits.is_empty())?;
            let thousandths = digits.bytes().chain(std::iter::repeat(b'0')).take(3);
            (thousandths.fold(0, |ms, digit| ms * 10 + i64::from(digit - b'0')), zone)
        }
    };
    let offset_minutes = match zone.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let zone_at = text.len() - zone.len();
            let (hours, minutes) = (number(zone_at + 1, zone_at + 3)?, number(zone_at + 4, zone_at + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some((seconds - offset_minutes * 60) * 1000 + fraction_ms)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_seconds_or_dates() {
        let cases = [
            ("0", 0),
            ("1435781451.781", 1_435_781_451_781),
            ("-1.5", -1500),
            ("1.5e9", 1_500_000_000_000),
            ("1970-01-01T00:00:00Z", 0),
            ("2015-07-01T20:10:51.781Z", 1_435_781_451_781),
            ("2015-07-01T22:10:51.7819+02:00", 1_435_781_451_781),
            ("2015-07-01t14:40:51z", 1_435_761_651_000),
            ("2024-02-29T12:00:00-05:30", 1_709_227_800_000),
            ("1969-12-31T23:59:59.5Z", -500),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
        ];
        for (text, want) in cases {
            assert_eq!(parse_time_ms(text), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let wrong = [
            "",
            "now",
            "NaN",
            "inf",
            "1e300",
            "2015-07-01",
            "2015-07-01T20:10:51",
            "2015-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2015-07-01T24:00:00Z",
            "2015-07-01T20:10:51.Z",
            "2015-07-01T20:10:51+2:00",
            "2015-07-01T20:10:5éZ",
            "+015-07-01T20:10:51Z",
        ];
        for text in wrong {
            assert_eq!(parse_time_ms(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn property_test_no_text_panics(text in "[0-9TZtz:.+é-]{0,30}") {
            let _ = parse_time_ms(&text);
        }

        #[test]
        fn property_test_days_follow_each_other(year in 0i64..9999, month in 1i64..=12) {
            let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            let first = days_from_civil(year, month, 1);
            prop_assert_eq!(first + days_in_month(year, month), days_from_civil(next.0, next.1, 1));
        }
    }
}
