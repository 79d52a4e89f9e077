//! Reads a mapping file: what each field may be, and the line of whatever is wrong.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde_saphyr::{Error, Spanned};

use super::OVERFLOW_LABEL;
use super::go_regex::compile;
use super::rules::{Glob, Mapping, MetricType, Rule, Template};

/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 10 << 20;
/// The most mappings.
const MAPPINGS_MAX: usize = 10_000;
/// The longest reason, in characters.
const REASON_CHARS_MAX: usize = 300;

/// Why a mapping file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It is too large.
    #[error("the file has more than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// Something in it is wrong.
    #[error("line {line}: {reason}")]
    At {
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
}

/// `Option` everywhere: what stands there without a value is not set.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    defaults: Option<DefaultsText>,
    mappings: Option<Vec<Spanned<MappingText>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DefaultsText {
    match_type: Option<MatchType>,
    #[serde(alias = "timer_type")]
    observer_type: Option<ObserverType>,
    glob_disable_ordering: Option<bool>,
    ttl: Option<Spanned<String>>,
    histogram_options: Option<HistogramText>,
    summary_options: Option<SummaryText>,
    buckets: Option<Spanned<Vec<f64>>>,
    quantiles: Option<Vec<Spanned<QuantileText>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MappingText {
    #[serde(rename = "match")]
    pattern: Option<Spanned<String>>,
    match_type: Option<MatchType>,
    match_metric_type: Option<MetricType>,
    name: Option<Spanned<String>>,
    labels: Option<BTreeMap<String, Option<Spanned<String>>>>,
    honor_labels: Option<bool>,
    #[serde(alias = "timer_type")]
    observer_type: Option<ObserverType>,
    histogram_options: Option<Spanned<HistogramText>>,
    summary_options: Option<Spanned<SummaryText>>,
    buckets: Option<Spanned<Vec<f64>>>,
    quantiles: Option<Vec<Spanned<QuantileText>>>,
    #[serde(rename = "help")]
    _help: Option<String>,
    action: Option<Action>,
    ttl: Option<Spanned<String>>,
    scale: Option<Spanned<f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MatchType {
    #[serde(alias = "")]
    Glob,
    Regex,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ObserverType {
    Histogram,
    #[serde(alias = "")]
    Summary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    #[serde(alias = "")]
    Map,
    Drop,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistogramText {
    buckets: Option<Spanned<Vec<f64>>>,
    native_histogram_bucket_factor: Option<Spanned<f64>>,
    #[serde(rename = "native_histogram_max_buckets")]
    _max_buckets: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SummaryText {
    quantiles: Option<Vec<Spanned<QuantileText>>>,
    #[serde(alias = "max_summary_age")]
    max_age: Option<Spanned<String>>,
    #[serde(rename = "age_buckets", alias = "summary_age_buckets")]
    _age_buckets: Option<u32>,
    #[serde(rename = "buf_cap", alias = "stream_buffer_size")]
    _buf_cap: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantileText {
    quantile: f64,
    error: Option<f64>,
}

/// What observers ask for and do not get, by the first line that does.
#[derive(Debug, Default)]
struct Asked {
    summaries: Option<u64>,
    buckets: Option<u64>,
}

impl Mapping {
    /// Reads a mapping file.
    ///
    /// # Errors
    /// A file that cannot be read, that is too large, or in which something is wrong.
    pub fn read(path: &Path) -> Result<Self, MappingError> {
        // A pipe would be waited for, by the thread that also waits for signals.
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "this is no regular file").into());
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Self::parse(&bytes)
    }

    /// Reads the bytes of a mapping file.
    ///
    /// # Errors
    /// As [`Mapping::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MappingError> {
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(MappingError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            at(1 + memchr::memchr_iter(b'\n', before).count() as u64, "not UTF-8")
        })?;
        // The parser takes it for nothing.
        let is_content = |line: &&str| !line.trim_start().is_empty() && !line.trim_start().starts_with('#');
        if text.lines().find(is_content).is_some_and(is_tabbed)
            && let Some(tab) = told_tab(text, 1)
        {
            return Err(tab);
        }
        let file: Option<FileText> = serde_saphyr::from_str(text).map_err(|error| told(&error, text))?;
        let file = file.unwrap_or_default();
        let defaults = file.defaults.unwrap_or_default();
        let rules = file.mappings.unwrap_or_default();
        if let Some(first) = rules.get(MAPPINGS_MAX) {
            return Err(at(first.referenced.line(), format!("more than {MAPPINGS_MAX} mappings")));
        }
        let mut asked = Asked::default();
        let mut mapping = Self {
            is_unordered: defaults.glob_disable_ordering.unwrap_or(false),
            default_ttl_ms: ttl(defaults.ttl.as_ref())?,
            ..Self::default()
        };
        check_buckets(defaults.buckets.as_ref(), &mut asked)?;
        defaults.histogram_options.as_ref().map_or(Ok(()), |options| options.check(&mut asked))?;
        // Which quantiles summaries would have asks for none.
        let unasked = &mut Asked::default();
        check_quantiles(defaults.quantiles.as_ref(), unasked)?;
        defaults.summary_options.as_ref().map_or(Ok(()), |options| options.check(unasked))?;
        for rule in &rules {
            rule.value.check_observer(rule.referenced.line(), defaults.observer_type, &mut asked)?;
            mapping.add(&rule.value, rule.referenced.line(), defaults.match_type)?;
        }
        asked.tell(&mut mapping.notes);
        Ok(mapping)
    }

    fn add(&mut self, text: &MappingText, line: u64, default: Option<MatchType>) -> Result<(), MappingError> {
        let Some(pattern) = text.pattern.as_ref().filter(|pattern| !pattern.value.is_empty()) else {
            return Err(at(line, "a mapping without match"));
        };
        let pattern_line = pattern.referenced.line();
        if text.match_type.or(default) == Some(MatchType::Regex) {
            let regex = compile(&pattern.value).map_err(|error| at(pattern_line, format!("match: {}", why(&error))))?;
            let rule = self.rule(text, line, |template| Template::of_regex(template, &regex))?;
            self.regexes.push((regex, rule));
        } else {
            let glob = Glob::parse(&pattern.value).ok_or_else(|| {
                let reason = format!(
                    "match: got `{}`, want parts of letters, digits, `_` and `-`, or `*`, with dots between; or match_type: regex",
                    pattern.value
                );
                at(pattern_line, reason)
            })?;
            let rule = self.rule(text, line, |template| Template::of_glob(template, glob.count()))?;
            self.globs.push((glob, rule));
        }
        Ok(())
    }

    fn rule(
        &mut self,
        text: &MappingText,
        line: u64,
        template: impl Fn(&str) -> (Template, Vec<String>),
    ) -> Result<Rule, MappingError> {
        let mut template = |text: &Spanned<String>| {
            let (template, nothing) = template(&text.value);
            let line = text.referenced.line();
            self.notes.extend(
                nothing
                    .iter()
                    .map(|reference| format!("line {line}: {reference} refers to nothing that the match takes")),
            );
            template
        };
        let is_drop = text.action == Some(Action::Drop);
        let name = match text.name.as_ref().filter(|name| !name.value.is_empty()) {
            Some(name) if !is_name(&name.value) => {
                let reason =
                    format!("name: got `{}`, want letters, digits, `_` and references like `${{1}}`", name.value);
                return Err(at(name.referenced.line(), reason));
            }
            Some(name) => template(name),
            None if is_drop => Template::default(),
            None => return Err(at(line, "a mapping without name")),
        };
        let mut labels = Vec::new();
        for (label, value) in text.labels.iter().flatten() {
            if !is_label(label) {
                let reason = format!(
                    "labels: got `{label}`, want letters, digits and `_`, the first no digit, and neither `__` at the beginning nor {OVERFLOW_LABEL}"
                );
                return Err(at(value.as_ref().map_or(line, |value| value.referenced.line()), reason));
            }
            labels.push((label.clone(), value.as_ref().map(&mut template).unwrap_or_default()));
        }
        let scale = match &text.scale {
            Some(scale) if !scale.value.is_finite() => {
                return Err(at(scale.referenced.line(), format!("scale: got {}, want a finite number", scale.value)));
            }
            Some(scale) => scale.value,
            None => 1.0,
        };
        Ok(Rule {
            only: text.match_metric_type,
            is_drop,
            name,
            labels,
            honor_labels: text.honor_labels.unwrap_or(false),
            scale,
            ttl_ms: ttl(text.ttl.as_ref())?.or(self.default_ttl_ms),
        })
    }
}

impl MappingText {
    fn check_observer(&self, line: u64, default: Option<ObserverType>, asked: &mut Asked) -> Result<(), MappingError> {
        let observer_type = self.observer_type.or(default);
        if let (Some(ObserverType::Histogram), Some(options)) = (observer_type, &self.summary_options) {
            return Err(at(options.referenced.line(), "summary_options of a mapping whose observer_type is histogram"));
        }
        if let (Some(ObserverType::Summary), Some(options)) = (observer_type, &self.histogram_options) {
            return Err(at(options.referenced.line(), "histogram_options of a mapping whose observer_type is summary"));
        }
        if observer_type == Some(ObserverType::Summary) {
            asked.summaries.get_or_insert(line);
        }
        check_buckets(self.buckets.as_ref(), asked)?;
        check_quantiles(self.quantiles.as_ref(), asked)?;
        self.histogram_options.as_ref().map_or(Ok(()), |options| options.value.check(asked))?;
        self.summary_options.as_ref().map_or(Ok(()), |options| options.value.check(asked))
    }
}

impl HistogramText {
    fn check(&self, asked: &mut Asked) -> Result<(), MappingError> {
        if let Some(factor) = self.native_histogram_bucket_factor.as_ref().filter(|factor| !factor.value.is_finite()) {
            return Err(at(factor.referenced.line(), "native_histogram_bucket_factor: want a finite number"));
        }
        check_buckets(self.buckets.as_ref(), asked)
    }
}

impl SummaryText {
    fn check(&self, asked: &mut Asked) -> Result<(), MappingError> {
        if let Some(age) = &self.max_age {
            parse_duration(&age.value).map_err(|reason| at(age.referenced.line(), format!("max_age: {reason}")))?;
        }
        check_quantiles(self.quantiles.as_ref(), asked)
    }
}

impl Asked {
    fn tell(&self, notes: &mut Vec<String>) {
        let answer = "observers are exponential histograms";
        notes.extend(self.summaries.map(|line| {
            format!(
                "line {line}: a summary is asked for; {answer}: histogram_quantile() answers instead of quantile labels"
            )
        }));
        notes.extend(self.buckets.map(|line| {
            format!("line {line}: buckets are asked for; {answer}, and /metrics gives classic buckets on one ladder for all metrics")
        }));
    }
}

/// What is quoted in a reason may be as long as the file.
fn at(line: u64, reason: impl Into<String>) -> MappingError {
    let reason = reason.into();
    let cut = reason.char_indices().nth(REASON_CHARS_MAX).and_then(|(end, _)| reason.get(..end));
    MappingError::At { line, reason: cut.map_or_else(|| reason.clone(), |cut| format!("{cut}…")) }
}

fn is_tabbed(line: &str) -> bool {
    let content = line.trim_start_matches([' ', '\t']);
    !content.is_empty() && line.strip_suffix(content).is_some_and(|indent| indent.contains('\t'))
}

/// The first line from `line` on that a tab indents: the parser names the one before it.
fn told_tab(text: &str, line: u64) -> Option<MappingError> {
    let (found, _) = (1..).zip(text.lines()).find(|(number, text)| *number >= line && is_tabbed(text))?;
    Some(at(found, "a tab indents it: want spaces"))
}

/// What the parser found in the text, in the words of this file's errors.
fn told(error: &Error, text: &str) -> MappingError {
    let error = error.without_snippet();
    let location = error.location();
    let reason = match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("`{key}` is there twice"),
        Error::Budget { .. } => "more nodes, deeper or with more aliases than any mapping file".to_owned(),
        Error::MultipleDocuments { .. } => "a second document: want one".to_owned(),
        error => {
            let found = one_line(&error.to_string());
            if (found.contains("found a tab") || found.starts_with("tabs "))
                && let Some(tab) = told_tab(text, location.map_or(1, |at| at.line()))
            {
                return tab;
            }
            // It says the place at its end, which stands before it here.
            let place = location.map_or(String::new(), |at| format!(" at line {}, column {}", at.line(), at.column()));
            // What stands for a default is no word.
            found.strip_suffix(&place).unwrap_or(&found).replace("expected one of , ", "expected one of ")
        }
    };
    at(location.map_or(1, |location| location.line()), reason)
}

/// Without the pattern, which the error shows in lines of its own.
fn why(error: &regex::Error) -> String {
    let text = error.to_string();
    one_line(text.rsplit_once("error: ").map_or(&*text, |(_, why)| why))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn ttl(text: Option<&Spanned<String>>) -> Result<Option<i64>, MappingError> {
    let Some(text) = text else { return Ok(None) };
    let nanoseconds =
        parse_duration(&text.value).map_err(|reason| at(text.referenced.line(), format!("ttl: {reason}")))?;
    // What is there at all is not nothing.
    Ok((nanoseconds > 0.0).then(|| (nanoseconds / 1e6).ceil() as i64))
}

/// Nanoseconds from Go's way to write a duration: `1h30m`, `1.5s`, `500ms`, `0`.
fn parse_duration(text: &str) -> Result<f64, String> {
    let wrong = || format!("got `{text}`, want a duration like 30s, 1h30m or 500ms");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let split = |text: &'_ str, is_number: bool| {
            text.find(|c: char| (c.is_ascii_digit() || c == '.') != is_number).unwrap_or(text.len())
        };
        let (number, after) = rest.split_at_checked(split(rest, true)).ok_or_else(wrong)?;
        let (unit, after) = after.split_at_checked(split(after, false)).ok_or_else(wrong)?;
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let nanoseconds = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(wrong()),
        };
        sum += number * nanoseconds;
        rest = after;
    }
    // As in Go, what nanoseconds of 64 bits can hold: 292 years.
    if sum < i64::MAX as f64 { Ok(sum) } else { Err(wrong()) }
}

fn check_buckets(buckets: Option<&Spanned<Vec<f64>>>, asked: &mut Asked) -> Result<(), MappingError> {
    let Some(buckets) = buckets else { return Ok(()) };
    let line = buckets.referenced.line();
    if !buckets.value.is_sorted_by(|a, b| a < b) || buckets.value.iter().any(|bound| bound.is_nan()) {
        return Err(at(line, "buckets: want bounds that grow"));
    }
    asked.buckets.get_or_insert(line);
    Ok(())
}

fn check_quantiles(quantiles: Option<&Vec<Spanned<QuantileText>>>, asked: &mut Asked) -> Result<(), MappingError> {
    for quantile in quantiles.into_iter().flatten() {
        let line = quantile.referenced.line();
        let numbers = [quantile.value.quantile, quantile.value.error.unwrap_or(0.0)];
        if !numbers.iter().all(|number| (0.0..=1.0).contains(number)) {
            return Err(at(line, "quantiles: want numbers from 0 to 1"));
        }
        asked.summaries.get_or_insert(line);
    }
    Ok(())
}

/// Letters, digits, `_`, `$1` and `${1}`, the first no digit.
fn is_name(text: &str) -> bool {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        rest = if c == '$' {
            let inner = after.strip_prefix('{').unwrap_or(after);
            let digits = inner.trim_start_matches(|c: char| c.is_ascii_digit());
            if digits.len() == inner.len() {
                return false;
            }
            digits.strip_prefix('}').unwrap_or(digits)
        } else if c == '_' || c.is_ascii_alphabetic() || (c.is_ascii_digit() && rest.len() < text.len()) {
            after
        } else {
            return false;
        };
    }
    true
}

fn is_label(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !text.starts_with("__")
        && text != OVERFLOW_LABEL
}
