//! What a query may take, and text that means no good.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::{Memory, lines};
use super::requests;
use crate::promql::{Limits, QueryError, QueryOptions, QueryValue};

#[test]
fn queries_stay_within_their_budget() {
    let limits = Limits { samples_max: 20, ..Limits::default() };
    let engine = Memory::default()
        .floats(&[("__name__", "x"), ("l", "a")], &[1.0; 11])
        .floats(&[("__name__", "x"), ("l", "b")], &[1.0; 11])
        .engine_within(limits);
    assert!(engine.instant("sum_over_time(x[5m])", 100_000).is_ok(), "one series at a time");
    assert!(matches!(engine.instant("x[5m]", 100_000), Err(QueryError::TooManySamples)));
    assert!(engine.instant("x{l=\"a\"}[5m]", 100_000).is_ok());
    assert!(matches!(engine.range("x", 0, 100_000, 9_000), Err(QueryError::TooManySamples)));
    assert!(matches!(engine.instant("sum_over_time(vector(1)[100y:1ms])", 0), Err(QueryError::TooManySamples)));
    assert!(matches!(engine.range("vector(1)", 0, 100_000, 1), Err(QueryError::TooManySamples)));
    let no_time = QueryOptions { timeout: Some(Duration::ZERO), ..QueryOptions::default() };
    let timeout = "query timed out in expression evaluation";
    assert_eq!(engine.instant_with("x", 0, &no_time).expect_err("no time").to_string(), timeout);
    for selector in ["x", "x_bucket"] {
        let found = engine.series(&[selector.to_owned()], 0, 100_000, &no_time);
        assert_eq!(found.expect_err("no time").to_string(), timeout);
    }
}

#[test]
fn labels_that_a_query_makes_are_bounded() {
    let one = Memory::default().floats(&[("__name__", "one"), ("l", "v")], &[1.0]);
    let many = (0..200).fold(one, |all, i| all.floats(&[("__name__", "x"), ("i", &i.to_string())], &[1.0]));
    let engine = many.engine_within(Limits { samples_max: 100_000, ..Limits::default() });
    let refused = |expression: &str| matches!(engine.instant(expression, 0), Err(QueryError::TooManySamples));
    let nested = |depth: usize| {
        (0..depth)
            .fold("one".to_owned(), |inner, _| format!("label_replace({inner}, \"l\", \"$1$1\", \"l\", \"(.*)\")"))
    };
    assert!(engine.instant(&nested(10), 0).is_ok());
    assert!(refused(&nested(24)));
    let long = "v".repeat(30_000);
    assert!(refused(&format!("label_replace(x, \"l\", \"{long}\", \"\", \"\")")));
    assert!(engine.instant(&format!("label_replace(one, \"l\", \"{long}\", \"\", \"\")"), 0).is_ok());
    assert!(refused(&format!("x * on () group_left (l) label_replace(one, \"l\", \"{long}\", \"\", \"\")")));
    assert!(refused(&format!("label_join(x, \"l\", \"{long}\", \"i\", \"i\")")));
}

/// 127 of them were each within the bound of one: 11 seconds and 500 MiB, whatever the timeout.
#[test]
fn regular_expressions_of_a_query_are_bounded_together() {
    let engine = requests();
    let query = |count: usize, pattern: &str| {
        let matchers: Vec<String> = (0..count).map(|i| format!("api=~\"{pattern}|{i}\"")).collect();
        engine.instant(&format!("req{{{}}}", matchers.join(",")), 60_000)
    };
    let large = "(a{1,100}){1,100}";
    assert!(query(1, large).is_ok());
    assert!(query(64, large).expect_err("too much").to_string().contains("exceeds size limit"));
    assert!(query(127, "[a-z]+(-[0-9]+)*").is_ok());
    let many: Vec<String> = (0..4000).map(|i| format!("model-{i}")).collect();
    assert!(query(1, &many.join("|")).is_ok());
}

#[test]
fn a_query_that_nobody_waits_for_ends() {
    let gone = QueryOptions { is_gone: Arc::new(true.into()), ..QueryOptions::default() };
    let ended = requests().range_with("rate(req[1m])", 0, 60_000, 10_000, &gone);
    assert!(matches!(ended, Err(QueryError::Canceled)));
}

#[test]
fn a_query_may_look_back_as_far_as_it_wants() {
    let engine = Memory::default().floats(&[("__name__", "x")], &[1.0, 2.0]).engine();
    let found = |lookback_ms, time_ms| {
        let options = QueryOptions { lookback_ms: Some(lookback_ms), ..QueryOptions::default() };
        lines(&engine.instant_with("x", time_ms, &options).expect("answered").value)
    };
    assert!(found(5_000, 15_000).is_empty());
    assert_eq!(found(5_001, 15_000), ["x 2"]);
    assert_eq!(found(3_600_000, 3_609_999), ["x 2"]);
    assert_eq!(found(i64::MAX, 1 << 51), ["x 2"]);
}

#[test]
fn the_deepest_expressions_accepted_fit_a_small_stack() {
    let deep = [
        format!("{}x", "-".repeat(256)),
        format!("x{}", " + x".repeat(256)),
        format!("x{}", " ^ x".repeat(256)),
        format!("{}x{}{}", "sum(".repeat(64), ")".repeat(64), " or vector(1)".repeat(200)),
        format!("{}x{}", "max_over_time((0 - ".repeat(32), ")[1m:10s])".repeat(32)),
    ];
    let run = move || {
        let engine = requests();
        deep.iter().for_each(|expression| {
            let _ = engine.instant(expression, 60_000);
        });
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(run).expect("a thread");
    thread.join().expect("no overflow");
}

#[test]
fn times_and_steps_out_of_range_are_errors() {
    let engine = requests();
    for time_ms in [i64::MAX, i64::MIN, (1 << 52) + 1] {
        assert!(engine.instant("req", time_ms).is_err());
    }
    assert!(engine.instant("req offset -100000y", (1 << 52) - 1).is_err());
    assert!(engine.range("req", 0, 10, 0).is_err());
    assert!(engine.range("req", 10, 0, 1).is_err());
    assert!(engine.range("req", 0, 10, i64::MAX).is_ok());
}

/// What the fuzzer began with or found interesting.
#[test]
fn what_the_fuzzer_found_stays_right() {
    let engine = requests();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/promql");
    let seeds: Vec<_> = std::fs::read_dir(folder).expect("seeds").map(|seed| seed.expect("a seed").path()).collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        let bytes = std::fs::read(seed).expect("a seed");
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        let _ = engine.instant(text, 60_000);
        let _ = engine.range(text, 0, 60_000, 20_000);
    }
}

/// Pieces of expressions, in any order: mostly wrong, sometimes right.
fn expression_like() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "req",
        "limit",
        "h",
        "h_bucket",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "5m",
        "1m:10s",
        ":",
        "1",
        "-1",
        "1e300",
        "NaN",
        "Inf",
        "+",
        "-",
        "*",
        "/",
        "%",
        "^",
        "==",
        "!=",
        ">",
        "bool",
        "and",
        "or",
        "unless",
        "on(api)",
        "ignoring(code)",
        "group_left",
        "group_right(x)",
        "sum",
        "avg",
        "topk",
        "quantile",
        "count_values",
        "by (api)",
        "without ()",
        "rate",
        "anchored",
        "smoothed",
        "step()",
        "min_of",
        "label_replace",
        "label_join",
        "info",
        "limitk",
        "1_0",
        "last_over_time",
        "quantile_over_time",
        "histogram_quantile",
        "absent",
        "scalar",
        "vector",
        "time()",
        "clamp",
        "round",
        "sort",
        "offset",
        "@",
        "start()",
        "end()",
        ",",
        "\"v\"",
        "api=\"a\"",
        "code=~\"2.*\"",
        "#",
        "'",
    ]);
    prop::collection::vec(pieces, 1..16).prop_map(|pieces| pieces.join(" "))
}

/// Expressions that parse, of functions and operators over each other.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "req",
        "limit",
        "h",
        "h_bucket",
        "1",
        "NaN",
        "req @ 30",
        "req offset -1m",
        "vector(0)",
        "scalar(limit)",
        "no",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(4, 24, 3, |inner| {
        let window = prop::sample::select(vec!["rate", "sum_over_time", "max_over_time", "last_over_time", "changes"]);
        let op = prop::sample::select(vec!["+", "/", "% bool", "== bool", ">", "and", "or", "* on(api) group_left"]);
        let over =
            prop::sample::select(vec!["sum", "avg by (api)", "topk(2,", "quantile(0.9,", "stddev", "abs", "sort"]);
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(l, op, r)| format!("({l} {op} {r})")),
            (window, inner.clone()).prop_map(|(f, e)| format!("{f}(({e})[1m:20s])")),
            (over, inner.clone()).prop_map(|(f, e)| {
                let open = if f.ends_with(',') { "" } else { "(" };
                format!("{f}{open}{e})")
            }),
            inner.prop_map(|e| format!("histogram_quantile(0.5, {e})")),
        ]
    })
}

proptest! {
    #[test]
    fn property_test_expression_like_garbage_never_panics(text in expression_like()) {
        let engine = requests();
        let _ = engine.instant(&text, 60_000);
        let _ = engine.range(&text, 0, 60_000, 20_000);
    }

    #[test]
    fn property_test_a_range_query_is_an_instant_query_at_every_step(text in expression()) {
        let engine = requests();
        let Ok(QueryValue::Matrix(matrix)) = engine.range(&text, 0, 60_000, 20_000) else { return Ok(()) };
        for time_ms in [0, 20_000, 40_000, 60_000] {
            let mut instant = match engine.instant(&text, time_ms) {
                Ok(QueryValue::Vector(vector)) => vector.into_iter().map(|s| (s.labels, s.sample)).collect(),
                Ok(QueryValue::Scalar(sample)) => vec![(crate::model::Labels::empty(), sample)],
                other => panic!("{text}: {other:?}"),
            };
            instant.sort_by(|a, b| a.0.cmp(&b.0));
            let at_step = matrix.iter().filter_map(|s| {
                let sample = s.samples.iter().find(|sample| sample.timestamp_ms == time_ms)?;
                Some((s.labels.clone(), sample.clone()))
            });
            let range: Vec<_> = at_step.collect();
            prop_assert_eq!(format!("{:?}", instant), format!("{:?}", range), "{} at {}", text, time_ms);
        }
    }
}
