//! Functions of labels alone: `label_replace`, `label_join`, `sort_by_label`.

use std::cmp::Ordering;

use regex::Regex;

use super::QueryError;
use super::eval::Evaluator;
use super::regex::anchored;
use super::value::{StepSeries, refuse_same_labels};

fn check_label(name: &str, role: &str, function: &str) -> Result<(), QueryError> {
    if name.is_empty() {
        return Err(QueryError::Execution(format!("invalid {role} label name in {function}(): {name}")));
    }
    Ok(())
}

/// `label_replace(v, dst, replacement, src, regex)`.
pub(super) fn replace(
    evaluator: &Evaluator<'_>,
    mut vector: Vec<StepSeries>,
    texts: &[&str],
) -> Result<Vec<StepSeries>, QueryError> {
    let [target, replacement, source, pattern] = texts else { return Ok(vector) };
    let regex: Regex = anchored(pattern, 1)
        .map_err(|_| QueryError::Execution(format!("invalid regular expression in label_replace(): {pattern}")))?;
    check_label(target, "destination", "label_replace")?;
    let references = replacement.matches('$').count();
    for series in &mut vector {
        let value = series.labels.get(source).unwrap_or("");
        // At most, before it is made.
        let made = value.len().saturating_mul(references).saturating_add(replacement.len());
        evaluator.count_labels(made.saturating_add(series.labels.bytes()))?;
        if let Some(found) = regex.captures(value) {
            let mut text = String::new();
            found.expand(replacement, &mut text);
            series.labels = series.labels.with(target, &text);
        }
    }
    refuse_same_labels(&vector)?;
    Ok(vector)
}

/// `label_join(v, dst, separator, src...)`.
pub(super) fn join(
    evaluator: &Evaluator<'_>,
    mut vector: Vec<StepSeries>,
    texts: &[&str],
) -> Result<Vec<StepSeries>, QueryError> {
    let [target, separator, sources @ ..] = texts else { return Ok(vector) };
    sources.iter().try_for_each(|source| check_label(source, "source", "label_join"))?;
    check_label(target, "destination", "label_join")?;
    for series in &mut vector {
        let values: Vec<&str> = sources.iter().map(|source| series.labels.get(source).unwrap_or("")).collect();
        let made: usize = values.iter().map(|value| value.len() + separator.len()).sum();
        evaluator.count_labels(made + series.labels.bytes())?;
        series.labels = series.labels.with(target, &values.join(separator));
    }
    refuse_same_labels(&vector)?;
    Ok(vector)
}

/// By the values of some labels, numbers in them by their size; series that are equal there by all their labels.
pub(super) fn sort(vector: &mut [StepSeries], labels: &[&str], is_descending: bool) {
    vector.sort_by(|a, b| {
        let by_label = |label: &&str| natural(a.labels.get(label).unwrap_or(""), b.labels.get(label).unwrap_or(""));
        let order = labels.iter().map(by_label).find(|order| order.is_ne()).unwrap_or(Ordering::Equal);
        let order = order.then_with(|| a.labels.cmp(&b.labels));
        if is_descending { order.reverse() } else { order }
    });
}

/// Digits compare as numbers, what stands between them as text (`natsort`).
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (chunks(a), chunks(b));
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return a.cmp(b),
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(l), Some(r)) => match (l.parse::<i64>(), r.parse::<i64>()) {
                (Ok(l), Ok(r)) => l.cmp(&r),
                _ => l.cmp(r),
            },
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Runs of digits and runs of anything else, in turn.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let is_digit = rest.chars().next()?.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != is_digit).unwrap_or(rest.len());
        let (chunk, after) = rest.split_at_checked(end)?;
        rest = after;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_labels_sort_by_their_size() {
        let mut texts = ["a10", "a2", "b", "a", "a02x", ""];
        texts.sort_by(|a, b| natural(a, b));
        assert_eq!(texts, ["", "a", "a2", "a02x", "a10", "b"]);
    }
}
