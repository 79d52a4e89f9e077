//! `info()`: series get the labels of the info series (`target_info`) of the same `instance` and `job`.

use hashbrown::{HashMap, HashSet};

use super::QueryError;
use super::eval::{Evaluator, Grid};
use super::functions::arg;
use super::node::{Expr, Node, Reach, Selector, TimeShift};
use super::value::{StepSeries, merge_same_labels};
use crate::model::{Labels, METRIC_NAME, Value};
use crate::store::Matcher;

const TARGET_INFO: &str = "target_info";
/// By these an info series belongs to others.
const IDENTIFYING: [&str; 2] = ["instance", "job"];

pub(super) fn eval(evaluator: &Evaluator<'_>, args: &[Node], grid: &Grid) -> Result<Vec<StepSeries>, QueryError> {
    let base = evaluator.eval_vector(arg(args, 0)?, grid)?;
    let mut matchers = match args.get(1).map(|node| &node.expr) {
        Some(Expr::Select(selector)) => selector.matchers.clone(),
        _ => Vec::new(),
    };
    // Conditions on labels choose which of them are taken.
    let wanted: Vec<Matcher> = matchers.iter().filter(|m| m.name != METRIC_NAME).cloned().collect();
    let names: Vec<Matcher> = matchers.iter().filter(|m| m.name == METRIC_NAME).cloned().collect();
    if names.is_empty() {
        matchers.push(Matcher::metric(TARGET_INFO));
    }
    let is_info = |labels: &Labels| {
        let by_default = || args.len() == 1 && labels.name() == TARGET_INFO;
        names.iter().any(|name| name.matches(labels)) || by_default()
    };
    // At the time of the step, whatever the shift of the first argument.
    let selector = Selector { name: None, matchers, shift: TimeShift::default(), reach: Reach::default() };
    let infos = evaluator.instant_vector(&selector, grid, false)?;
    let times = evaluator.instant_vector(&selector, grid, true)?;

    let mut by_identity: HashMap<(Labels, &str), Vec<usize>> = HashMap::new();
    for (at, series) in infos.iter().enumerate() {
        by_identity.entry((identity(&series.labels), series.labels.name())).or_default().push(at);
    }
    let info_names: HashSet<&str> = infos.iter().map(|series| series.labels.name()).collect();
    let mut result: Vec<StepSeries> = Vec::new();
    for series in base {
        if is_info(&series.labels) {
            result.push(series);
            continue;
        }
        let identity = identity(&series.labels);
        let none = Vec::new();
        let candidates: Vec<&Vec<usize>> =
            info_names.iter().map(|name| by_identity.get(&(identity.clone(), *name)).unwrap_or(&none)).collect();
        let mut parts: HashMap<Labels, StepSeries> = HashMap::new();
        for (step, value) in series.values.into_iter().enumerate() {
            evaluator.check_deadline()?;
            let Some(value) = value else { continue };
            let Some(labels) = enriched(&series.labels, &candidates, &infos, &times, step, &wanted)? else { continue };
            evaluator.check_room(parts.len().saturating_add(1).saturating_mul(grid.steps))?;
            if !parts.contains_key(&labels) {
                evaluator.count_labels(labels.bytes())?;
            }
            parts
                .entry(labels)
                .or_insert_with_key(|labels| StepSeries::empty(labels.clone(), grid.steps))
                .set(step, value);
        }
        result.extend(parts.into_values());
    }
    result.sort_by(|a, b| a.labels.cmp(&b.labels));
    merge_same_labels(result)
}

fn identity(labels: &Labels) -> Labels {
    labels.filtered(|name| IDENTIFYING.contains(&name))
}

/// The labels of a series with those of its info series at one step, `None` if it has none of those that were demanded.
fn enriched(
    base: &Labels,
    candidates: &[&Vec<usize>],
    infos: &[StepSeries],
    times: &[StepSeries],
    step: usize,
    wanted: &[Matcher],
) -> Result<Option<Labels>, QueryError> {
    let mut added: HashMap<&str, &str> = HashMap::new();
    for series in candidates {
        let mut newest: Option<(f64, usize)> = None;
        for at in series.iter().copied() {
            let Some(time) = times.get(at).and_then(|s| s.at(step)).and_then(Value::as_float) else { continue };
            if newest.is_some_and(|(other, _)| other == time) {
                let name = infos.get(at).map_or("", |s| s.labels.name());
                return Err(QueryError::Execution(format!("found duplicate series for info metric {name}")));
            }
            if newest.is_none_or(|(other, _)| other < time) {
                newest = Some((time, at));
            }
        }
        let Some(info) = newest.and_then(|(_, at)| infos.get(at)) else { continue };
        for (name, value) in info.labels.iter() {
            let is_wanted = wanted.is_empty() || wanted.iter().any(|m| m.name == name);
            if name == METRIC_NAME || !is_wanted {
                continue;
            }
            if added.get(name).is_some_and(|other| *other != value) {
                return Err(QueryError::Execution(format!("conflicting label: {name}")));
            }
            if base.get(name).is_none() {
                added.insert(name, value);
            }
        }
    }
    if added.is_empty() && wanted.iter().any(|m| !m.matches(&Labels::empty())) {
        return Ok(None);
    }
    let mut labels = base.clone();
    for (name, value) in added {
        labels = labels.with(name, value);
    }
    Ok(Some(labels))
}
