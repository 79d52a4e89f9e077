//! What a mapping file makes of a name: `docs/mapping.md`.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use regex::bytes::Regex;
use serde::Deserialize;

/// What so many names of a type come to is remembered: they are few, unless they are made of data.
const REMEMBERED_MAX: usize = 4096;

/// What a mapping tells apart: sets are gauges, timers and distributions observers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum MetricType {
    Counter,
    Gauge,
    #[serde(alias = "timer")]
    Observer,
}

/// The rules of a mapping file, read with [`Mapping::read`].
#[derive(Debug, Default)]
pub struct Mapping {
    /// In the order of the file, like the regexes.
    pub(super) globs: Vec<(Glob, Rule)>,
    pub(super) regexes: Vec<(Regex, Rule)>,
    /// Of globs, the most specific one wins and not the first.
    pub(super) is_unordered: bool,
    /// The expiry of series that no rule is for.
    pub(super) default_ttl_ms: Option<i64>,
    pub(super) notes: Vec<String>,
    /// By the type.
    pub(super) remembered: [HashMap<Box<[u8]>, Found, RandomState>; 3],
}

/// What becomes of one name.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Found {
    /// No rule is for it, but there may be an expiry for all.
    Unmapped {
        ttl_ms: Option<i64>,
    },
    /// It is dropped.
    Drop,
    Mapped(Arc<Mapped>),
}

/// What a rule makes of one name.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Mapped {
    /// Empty if the references in it have nothing to refer to.
    pub(in super::super) name: String,
    pub(in super::super) labels: Vec<(String, String)>,
    /// Tags of the message win over labels.
    pub(in super::super) honor_labels: bool,
    pub(in super::super) scale: f64,
    pub(in super::super) ttl_ms: Option<i64>,
}

/// What is done with a name that matches.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) only: Option<MetricType>,
    pub(super) is_drop: bool,
    pub(super) name: Template,
    pub(super) labels: Vec<(String, Template)>,
    pub(super) honor_labels: bool,
    pub(super) scale: f64,
    pub(super) ttl_ms: Option<i64>,
}

impl Mapping {
    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.globs.len() + self.regexes.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What whoever wrote the file should know of it.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What becomes of a name.
    pub(in super::super) fn find(&mut self, name: &[u8], kind: MetricType) -> Found {
        if let Some(found) = self.remembered.get(kind as usize).and_then(|names| names.get(name)) {
            return found.clone();
        }
        let found = self.look_up(name, kind);
        if let Some(names) = self.remembered.get_mut(kind as usize) {
            if names.len() >= REMEMBERED_MAX {
                names.clear();
            }
            names.insert(name.into(), found.clone());
        }
        found
    }

    fn look_up(&self, name: &[u8], kind: MetricType) -> Found {
        let is_for = |rule: &Rule| rule.only.is_none_or(|only| only == kind);
        let parts: Vec<&[u8]> = name.split(|b| *b == b'.').collect();
        let mut globs = self.globs.iter().filter(|(glob, rule)| is_for(rule) && glob.matches(&parts));
        let glob =
            if self.is_unordered { globs.min_by(|(a, _), (b, _)| a.stars().cmp(b.stars())) } else { globs.next() };
        if let Some((glob, rule)) = glob {
            let captures = glob.captures(&parts);
            return rule.apply(kind, |at| captures.get(at - 1).copied());
        }
        // As Go reads what is no UTF-8.
        let name = &*String::from_utf8_lossy(name);
        for (regex, rule) in self.regexes.iter().filter(|(_, rule)| is_for(rule)) {
            if let Some(captures) = regex.captures(name.as_bytes()) {
                return rule.apply(kind, |at| captures.get(at).map(|group| group.as_bytes()));
            }
        }
        Found::Unmapped { ttl_ms: self.default_ttl_ms }
    }

    /// The expiry of a series that is known by its name alone.
    pub(in super::super) fn ttl_of_series(&self, name: &str) -> Option<i64> {
        let rules = self.globs.iter().map(|(_, rule)| rule).chain(self.regexes.iter().map(|(_, rule)| rule));
        let mut fitting = rules.filter(|rule| !rule.is_drop && rule.name.is_just(name));
        fitting.next().map_or(self.default_ttl_ms, |rule| rule.ttl_ms)
    }
}

impl Rule {
    fn apply<'a>(&self, kind: MetricType, capture: impl Fn(usize) -> Option<&'a [u8]>) -> Found {
        if self.is_drop {
            return Found::Drop;
        }
        let name_of = |label: &str| match label {
            // A histogram has its own.
            "le" | "quantile" if kind == MetricType::Observer => format!("tag_{label}"),
            _ => label.to_owned(),
        };
        let labels = self.labels.iter().map(|(label, value)| (name_of(label), value.fill(&capture)));
        Found::Mapped(Arc::new(Mapped {
            name: escaped(&self.name.fill(&capture)),
            labels: labels.collect(),
            honor_labels: self.honor_labels,
            scale: self.scale,
            ttl_ms: self.ttl_ms,
        }))
    }
}

/// Parts between dots; `None` is `*`.
#[derive(Debug)]
pub(super) struct Glob(Vec<Option<Box<[u8]>>>);

impl Glob {
    /// Parts of letters, digits, `_` and `-`, or `*`; a part does not begin with `-`, nor the first with a digit.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let part = |(at, part): (usize, &str)| {
            let is_first = |b: u8| b.is_ascii_alphabetic() || b == b'_' || (at > 0 && b.is_ascii_digit());
            match part.as_bytes() {
                [b'*'] => Some(None),
                [first, rest @ ..]
                    if is_first(*first) && rest.iter().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(b)) =>
                {
                    Some(Some(part.as_bytes().into()))
                }
                _ => None,
            }
        };
        text.split('.').enumerate().map(part).collect::<Option<_>>().map(Self)
    }

    /// How many there are to refer to.
    pub(super) fn count(&self) -> usize {
        self.stars().filter(|is_star| *is_star).count()
    }

    /// Sorted by this, the most specific is the first.
    fn stars(&self) -> impl Iterator<Item = bool> {
        self.0.iter().map(Option::is_none)
    }

    fn matches(&self, parts: &[&[u8]]) -> bool {
        self.0.len() == parts.len()
            && self.0.iter().zip(parts).all(|(want, part)| want.as_deref().is_none_or(|want| want == *part))
    }

    fn captures<'a>(&self, parts: &[&'a [u8]]) -> Vec<&'a [u8]> {
        self.stars().zip(parts).filter(|(is_star, _)| *is_star).map(|(_, part)| *part).collect()
    }
}

/// Text with references to what was captured.
#[derive(Debug, Default)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Capture(usize),
}

impl Template {
    /// A template of a glob. What a `$` refers to is the longest text of letters, digits, `_` and `$` after it, whether in
    /// braces or not; also what refers to nothing.
    pub(super) fn of_glob(text: &str, count: usize) -> (Self, Vec<String>) {
        let is_reference = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        Self::parse(text, |rest| {
            let inner = rest.strip_prefix('{').unwrap_or(rest);
            let end = inner.find(|c| !is_reference(c)).unwrap_or(inner.len());
            let (reference, after) = inner.split_at_checked(end)?;
            if reference.is_empty() {
                return None;
            }
            let at = reference.parse().ok().filter(|at| (1..=count).contains(at));
            Some((at.map(Piece::Capture), after.strip_prefix('}').unwrap_or(after)))
        })
    }

    /// A template of a regex: `$name`, as long as it gets, or `${name}`; `$$` is a `$`.
    pub(super) fn of_regex(text: &str, regex: &Regex) -> (Self, Vec<String>) {
        let is_reference = |c: char| c.is_ascii_alphanumeric() || c == '_';
        Self::parse(text, |rest| {
            if let Some(after) = rest.strip_prefix('$') {
                return Some((Some(Piece::Text("$".to_owned())), after));
            }
            let (reference, after) = if let Some(inner) = rest.strip_prefix('{') {
                inner.split_once('}').filter(|(reference, _)| reference.chars().all(is_reference))?
            } else {
                rest.split_at_checked(rest.find(|c| !is_reference(c)).unwrap_or(rest.len()))?
            };
            if reference.is_empty() {
                return None;
            }
            let at = reference.parse().ok().filter(|at| *at < regex.captures_len());
            let named = || regex.capture_names().position(|name| name == Some(reference));
            Some((at.or_else(named).map(Piece::Capture), after))
        })
    }

    /// `reference` is given what follows a `$`: the piece it comes to, if it refers to anything, and what is after it.
    fn parse<'a>(
        text: &'a str,
        reference: impl Fn(&'a str) -> Option<(Option<Piece>, &'a str)>,
    ) -> (Self, Vec<String>) {
        let (mut pieces, mut nothing) = (Vec::new(), Vec::new());
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            literal.push_str(before);
            let Some((piece, end)) = reference(after) else {
                literal.push('$');
                rest = after;
                continue;
            };
            if let Some(piece) = piece {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
                pieces.push(piece);
            } else {
                let written = after.len() - end.len();
                nothing.push(format!("${}", after.get(..written).unwrap_or_default()));
            }
            rest = end;
        }
        literal.push_str(rest);
        pieces.push(Piece::Text(literal));
        pieces.retain(|piece| *piece != Piece::Text(String::new()));
        (Self(pieces), nothing)
    }

    /// Whether it is this text and nothing else.
    fn is_just(&self, text: &str) -> bool {
        matches!(self.0.as_slice(), [Piece::Text(own)] if own == text)
    }

    fn fill<'a>(&self, capture: impl Fn(usize) -> Option<&'a [u8]>) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Capture(at) => String::from_utf8_lossy(capture(*at).unwrap_or_default()).into_owned(),
        };
        self.0.iter().map(piece).collect()
    }
}

/// The name of a metric as statsd_exporter would have it: what is not allowed becomes `_`, several dashes one of them.
fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 1);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        out.push('_');
    }
    let mut before = None;
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !(c == '-' && before == Some('-')) {
            out.push('_');
        }
        before = Some(c);
    }
    out
}
