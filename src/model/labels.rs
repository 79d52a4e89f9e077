//! A series' name and labels: sorted, without duplicates, cheap to clone.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use arcstr::ArcStr;
use foldhash::fast::RandomState;

/// The label that holds a series' name, as in Prometheus.
pub const METRIC_NAME: &str = "__name__";

/// The labels of one series, its name among them as `__name__`.
///
/// Invariants: sorted by label name, each name once, no empty names, no empty values (to Prometheus an empty value is an absent label).
///
/// All of them are one piece of text behind a single pointer, since there are more of these than there are series: each name and each value after
/// its length ([`push`] writes it), and nothing for the name that every series has. Equal labels are equal text; the order is that of the pairs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Labels(ArcStr);

impl Labels {
    /// No labels at all, not even a name: what `sum(x)` returns.
    pub fn empty() -> Self {
        Self(ArcStr::new())
    }

    /// Labels from pairs in any order. Of equal names the first wins; empty names and values are left out.
    pub fn from_pairs<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let is_label = |(name, value): &(N, V)| !name.as_ref().is_empty() && !value.as_ref().is_empty();
        let mut pairs: Vec<(N, V)> = pairs.into_iter().filter(is_label).collect();
        pairs.sort_by(|a, b| a.0.as_ref().cmp(b.0.as_ref())); // stable: the first of equal names stays first
        pairs.dedup_by(|later, earlier| later.0.as_ref() == earlier.0.as_ref());
        Self::packed(pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref())))
    }

    /// From pairs that fulfil the invariants.
    fn packed<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut text = String::new();
        for (name, value) in pairs {
            push(&mut text, if name == METRIC_NAME { "" } else { name });
            push(&mut text, value);
        }
        Self(text.into())
    }

    /// The value of one label, `None` if the series does not have it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// The series' name, empty if it has none.
    pub fn name(&self) -> &str {
        self.get(METRIC_NAME).unwrap_or("")
    }

    /// All pairs in the order of their names, `__name__` among them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (name, value) = (take(&mut rest)?, take(&mut rest)?);
            Some((if name.is_empty() { METRIC_NAME } else { name }, value))
        })
    }

    /// How many labels there are, the name counted.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// How long all of them are together, in bytes: about what they take in memory.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// True if there is neither name nor label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The labels whose names `keep` accepts.
    #[must_use]
    pub fn filtered(&self, mut keep: impl FnMut(&str) -> bool) -> Self {
        Self::packed(self.iter().filter(|(name, _)| keep(name)))
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

/// The different values of each label of these series, their names left out.
pub fn values_by_label<'a>(
    series: impl IntoIterator<Item = &'a Labels>,
) -> BTreeMap<&'a str, HashSet<&'a str, RandomState>> {
    let mut values: BTreeMap<&str, HashSet<&str, RandomState>> = BTreeMap::new();
    for (label, value) in series.into_iter().flat_map(Labels::iter).filter(|(label, _)| *label != METRIC_NAME) {
        values.entry(label).or_default().insert(value);
    }
    values
}

/// Bits of a length that one character holds.
const LENGTH_BITS: u32 = 6;
/// Set in a character of a length that another one follows.
const MORE: u8 = 1 << LENGTH_BITS;

/// Appends the length of `part` in bytes, six bits a character, the lowest first, and then `part` itself.
fn push(text: &mut String, part: &str) {
    let mut length = part.len();
    while length >= usize::from(MORE) {
        text.push(char::from(length as u8 & (MORE - 1) | MORE));
        length >>= LENGTH_BITS;
    }
    text.push(char::from(length as u8));
    text.push_str(part);
}

/// Takes from the front what [`push`] has appended; `None` at the end.
fn take<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let (mut length, mut shift, mut at) = (0, 0, 0);
    loop {
        let byte = *rest.as_bytes().get(at)?;
        length |= usize::from(byte & (MORE - 1)) << shift;
        at += 1;
        shift += LENGTH_BITS;
        if byte & MORE == 0 {
            break;
        }
    }
    let (part, after) = rest.get(at..)?.split_at_checked(length)?;
    *rest = after;
    Some(part)
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_are_sorted_deduplicated_and_never_empty() {
        let labels =
            Labels::from_pairs([("b", "2"), ("a", "1"), ("b", "3"), ("c", ""), ("", "d"), (METRIC_NAME, "up")]);
        assert_eq!(labels.iter().collect::<Vec<_>>(), [(METRIC_NAME, "up"), ("a", "1"), ("b", "2")]);
        assert_eq!(labels.name(), "up");
        assert_eq!(labels.get("c"), None);
        assert_eq!(labels.with("a", "").to_string(), "up{b=\"2\"}");
        assert_eq!(labels.with("a", "x").without_name().to_string(), "{a=\"x\", b=\"2\"}");
    }

    proptest! {
        #[test]
        fn property_test_packed_labels_are_the_pairs_and_their_order(
            mut a in prop::collection::btree_map("__name__|.{1,3}", ".{1,3}", 0..4),
            b in prop::collection::btree_map("__name__|.{1,3}", ".{1,3}", 0..4),
            long in 0..20_000_usize,
        ) {
            a.insert("long".to_owned(), "ä".repeat(long) + "x");
            let (left, right) = (Labels::from_pairs(&a), Labels::from_pairs(&b));
            prop_assert!(left.iter().eq(a.iter().map(|(n, v)| (n.as_str(), v.as_str()))));
            prop_assert_eq!(left.len(), a.len());
            prop_assert_eq!(left.cmp(&right), a.iter().cmp(b.iter()));
            prop_assert_eq!(left == right, a == b);
        }
    }

    #[test]
    fn display_escapes_what_would_end_the_value() {
        let labels = Labels::from_pairs([(METRIC_NAME, "m"), ("path", "a\"b\\c\nd")]);
        assert_eq!(labels.to_string(), r#"m{path="a\"b\\c\nd"}"#);
        assert_eq!(Labels::empty().to_string(), "{}");
    }
}
