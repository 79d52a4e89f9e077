//! A series' name and labels: sorted, without duplicates, cheap to clone.

use std::fmt;
use std::sync::Arc;

/// The label that holds a series' name, as in Prometheus.
pub const METRIC_NAME: &str = "__name__";

/// The labels of one series, its name among them as `__name__`.
///
/// Invariants: sorted by label name, each name once, no empty values (to Prometheus an empty value is an absent label).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Arc<[(Box<str>, Box<str>)]>);

impl Labels {
    /// No labels at all, not even a name: what `sum(x)` returns.
    pub fn empty() -> Self {
        Self(Arc::from([]))
    }

    /// Labels from pairs in any order. Of equal names the first wins; empty values are left out.
    pub fn from_pairs<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<Box<str>>,
        V: Into<Box<str>>,
    {
        let mut pairs: Vec<(Box<str>, Box<str>)> = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        pairs.sort_by(|a, b| a.0.cmp(&b.0)); // stable: the first of equal names stays first
        pairs.dedup_by(|later, earlier| later.0 == earlier.0);
        Self(pairs.into())
    }

    /// The value of one label, `None` if the series does not have it.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    /// The series' name, empty if it has none.
    pub fn name(&self) -> &str {
        self.get(METRIC_NAME).unwrap_or("")
    }

    /// All pairs in the order of their names, `__name__` among them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How many labels there are, the name counted.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is neither name nor label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The labels whose names `keep` accepts.
    #[must_use]
    pub fn filtered(&self, mut keep: impl FnMut(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|(name, _)| keep(name)).cloned().collect())
    }

    /// The same labels without the name: what most `PromQL` operations return.
    #[must_use]
    pub fn without_name(&self) -> Self {
        self.filtered(|name| name != METRIC_NAME)
    }

    /// The same labels with one set to `value`, or removed if `value` is empty.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        Self::from_pairs(std::iter::once((name, value)).chain(self.iter().filter(|(n, _)| *n != name)))
    }
}

impl fmt::Display for Labels {
    /// As Prometheus writes a series: `name{label="value"}`, with `\`, `"` and newlines escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let mut separator = "{";
        for (name, value) in self.iter().filter(|(name, _)| *name != METRIC_NAME) {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            write!(f, "{separator}{name}=\"{value}\"")?;
            separator = ", ";
        }
        match (separator, self.name()) {
            ("{", "") => f.write_str("{}"),
            ("{", _) => Ok(()),
            _ => f.write_str("}"),
        }
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_sorted_deduplicated_and_never_empty() {
        let labels = Labels::from_pairs([("b", "2"), ("a", "1"), ("b", "3"), ("c", ""), (METRIC_NAME, "up")]);
        assert_eq!(labels.iter().collect::<Vec<_>>(), [(METRIC_NAME, "up"), ("a", "1"), ("b", "2")]);
        assert_eq!(labels.name(), "up");
        assert_eq!(labels.get("c"), None);
        assert_eq!(labels.with("a", "").to_string(), "up{b=\"2\"}");
        assert_eq!(labels.with("a", "x").without_name().to_string(), "{a=\"x\", b=\"2\"}");
    }

    #[test]
    fn display_escapes_what_would_end_the_value() {
        let labels = Labels::from_pairs([(METRIC_NAME, "m"), ("path", "a\"b\\c\nd")]);
        assert_eq!(labels.to_string(), r#"m{path="a\"b\\c\nd"}"#);
        assert_eq!(Labels::empty().to_string(), "{}");
    }
}
