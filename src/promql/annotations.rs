//! Annotations: what Prometheus says beside an answer, in its words (`util/annotations`).

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::node::Span;
use super::parse::position;

/// So many of each kind go into an answer; of more, how many they were.
const SHOWN_MAX: usize = 10;
/// So many are told apart.
const KEPT_MAX: usize = 1000;

/// Messages, and where each was last said: of the same message at two places Prometheus keeps the later one.
type Said = BTreeMap<String, usize>;

/// What was said so far during one query.
pub(super) struct Annotations<'a> {
    text: &'a str,
    warnings: RefCell<Said>,
    infos: RefCell<Said>,
}

impl<'a> Annotations<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, warnings: RefCell::default(), infos: RefCell::default() }
    }

    fn warning(&self, span: Span, message: &str) {
        add(&self.warnings, span, message);
    }

    fn info(&self, span: Span, message: &str) {
        add(&self.infos, span, message);
    }

    pub(super) fn invalid_quantile(&self, span: Span, q: f64) {
        self.warning(span, &format!("quantile value should be between 0 and 1, got {}", shortest(q)));
    }

    pub(super) fn invalid_ratio(&self, span: Span, ratio: f64, to: f64) {
        let (ratio, to) = (shortest(ratio), shortest(to));
        self.warning(span, &format!("ratio value should be between -1 and 1, got {ratio}, capping to {to}"));
    }

    pub(super) fn bad_bucket_label(&self, span: Span, name: &str, label: &str) {
        self.warning(
            span,
            &format!(
                "bucket label \"le\" is missing or has a malformed value of \"{label}\" for metric name \"{name}\""
            ),
        );
    }

    pub(super) fn mixed_floats_histograms(&self, span: Span, name: &str) {
        self.warning(span, &format!("encountered a mix of histograms and floats for metric name \"{name}\""));
    }

    pub(super) fn mixed_in_aggregation(&self, span: Span) {
        self.warning(span, "encountered a mix of histograms and floats for aggregation");
    }

    pub(super) fn mixed_classic_native(&self, span: Span, name: &str) {
        self.warning(
            span,
            &format!("vector contains a mix of classic and native histograms for metric name \"{name}\""),
        );
    }

    pub(super) fn not_counter(&self, span: Span, name: &str) {
        self.warning(span, &format!("this native histogram metric is not a counter: \"{name}\""));
    }

    pub(super) fn not_gauge(&self, span: Span, name: &str) {
        self.warning(span, &format!("this native histogram metric is not a gauge: \"{name}\""));
    }

    pub(super) fn possible_non_counter(&self, span: Span, name: &str) {
        self.info(
            span,
            &format!("metric might not be a counter, name does not end in _total/_sum/_count/_bucket: \"{name}\""),
        );
    }

    pub(super) fn forced_monotonicity(&self, span: Span, name: &str) {
        self.info(
            span,
            &format!(
                "input to histogram_quantile needed to be fixed for monotonicity (see \
                 https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile) \
                 for metric name \"{name}\""
            ),
        );
    }

    pub(super) fn incompatible_types(&self, span: Span, operator: &str, types: [&str; 2]) {
        let [lhs, rhs] = types;
        self.info(
            span,
            &format!(
                "incompatible sample types encountered for binary operator \"{operator}\": {lhs} {operator} {rhs}"
            ),
        );
    }

    pub(super) fn ignored_in_aggregation(&self, span: Span, aggregation: &str) {
        self.info(span, &format!("ignored histogram in {aggregation} aggregation"));
    }

    pub(super) fn ignored_in_mixed_range(&self, span: Span, name: &str) {
        self.info(
            span,
            &format!("ignored histograms in a range containing both floats and histograms for metric name \"{name}\""),
        );
    }

    /// Warnings and infos, sorted.
    pub(super) fn into_lists(self) -> (Vec<String>, Vec<String>) {
        let shown = |said: RefCell<Said>, kind: &str| {
            let said = said.into_inner();
            let more = said.len().saturating_sub(SHOWN_MAX);
            let with_place =
                |(message, at): (String, usize)| format!("PromQL {kind}: {message} ({})", position(self.text, at));
            let mut list: Vec<String> = said.into_iter().take(SHOWN_MAX).map(with_place).collect();
            if more > 0 {
                list.push(format!("{more} more {kind} annotations omitted"));
            }
            list
        };
        (shown(self.warnings, "warning"), shown(self.infos, "info"))
    }
}

fn add(said: &RefCell<Said>, span: Span, message: &str) {
    let mut said = said.borrow_mut();
    if let Some(at) = said.get_mut(message) {
        *at = span.start;
    } else if said.len() < KEPT_MAX {
        said.insert(message.to_owned(), span.start);
    }
}

/// A float as Go's `%g` writes it: the shortest digits, with an exponent below 1e-4 and from 1e6 on.
pub(super) fn shortest(value: f64) -> String {
    if !value.is_finite() {
        return crate::model::format_float(value);
    }
    let exponential = format!("{value:e}");
    let (mantissa, exponent) = exponential.split_once('e').unwrap_or((&exponential, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..6).contains(&power) {
        return format!("{value}");
    }
    format!("{mantissa}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
}
