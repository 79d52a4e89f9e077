//! Time: lookback, staleness, windows, rates, subqueries, range queries.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::super::testing::{Memory, ask, lines};
use super::super::{Engine, Limits};
use super::{error, requests};
use crate::model::Value;
use crate::store::{Select, SelectedSeries, Selection, StoreError};

#[test]
fn lookback_is_five_minutes_open_to_the_left() {
    let engine = Memory::default().floats(&[("__name__", "x")], &[7.0]).engine();
    let at = |ms: i64| engine.instant("x", ms).map(|v| lines(&v)).expect("x");
    assert_eq!(at(299_999), ["x 7"]);
    assert!(at(300_000).is_empty());
    assert!(at(-1).is_empty());
}

#[test]
fn a_stale_marker_ends_a_series_at_once() {
    let samples = [(0, Value::Float(1.0)), (10, Value::stale()), (30, Value::Float(2.0))];
    let engine = Memory::default().with(&[("__name__", "x")], samples).engine();
    assert_eq!(ask(&engine, "x", 9), ["x 1"]);
    assert!(ask(&engine, "x", 10).is_empty());
    assert!(ask(&engine, "x", 29).is_empty());
    assert_eq!(ask(&engine, "count_over_time(x[1m])", 30), ["{} 2"]);
    assert_eq!(ask(&engine, "x[1m]", 30), ["x @0 1 @30 2"]);
}

#[test]
fn offset_and_at_move_the_time() {
    let engine = requests();
    let sel = "req{api=\"a\", code=\"200\"}";
    assert_eq!(ask(&engine, &format!("{sel} offset 20s"), 60), [format!("{} 4", "req{api=\"a\", code=\"200\"}")]);
    assert_eq!(ask(&engine, &format!("sum({sel} offset -20s)"), 20), ["{} 4"]);
    assert_eq!(ask(&engine, &format!("sum({sel} @ 30)"), 60), ["{} 3"]);
    assert_eq!(ask(&engine, &format!("sum({sel} @ 30 offset 10s)"), 60), ["{} 2"]);
    let value = engine.range(&format!("sum({sel} @ end()) - sum({sel} @ start())"), 10_000, 50_000, 20_000);
    assert_eq!(lines(&value.expect("range")), ["{} @10 4 @30 4 @50 4"]);
}

#[test]
fn windows_are_open_to_the_left() {
    let engine = requests();
    let sum = |range: &str| ask(&engine, &format!("sum_over_time(req{{api=\"a\",code=\"200\"}}[{range}])"), 60);
    assert_eq!(sum("10s"), ["{api=\"a\", code=\"200\"} 6"]);
    assert_eq!(sum("10001ms"), ["{api=\"a\", code=\"200\"} 11"]);
    assert_eq!(sum("20s"), ["{api=\"a\", code=\"200\"} 11"]);
}

#[test]
fn range_queries_evaluate_every_step() {
    let engine = requests();
    let range = |expression: &str| lines(&engine.range(expression, 0, 60_000, 30_000).expect("range"));
    assert_eq!(range("sum(req)"), ["{} @0 0 @30 30 @60 60"]);
    assert_eq!(range("max_over_time(limit{api=\"a\"}[1m])"), ["{api=\"a\"} @0 100 @30 100 @60 100"]);
    assert_eq!(range("1"), ["{} @0 1 @30 1 @60 1"]);
    assert_eq!(range("time() > bool 20"), ["{} @0 0 @30 1 @60 1"]);
    assert_eq!(range("sum(req) > 10"), ["{} @30 30 @60 60"]);
    assert_eq!(range("last_over_time(limit{api=\"b\"}[1m])"), ["limit{api=\"b\"} @0 200 @30 200 @60 200"]);
    assert_eq!(
        range("topk(1, req{api=\"a\"}) + 0"),
        ["{api=\"a\", code=\"200\"} @0 0", "{api=\"a\", code=\"500\"} @30 6 @60 12"]
    );
    let matrix = engine.range("req[5m]", 0, 60_000, 30_000).expect_err("a matrix").to_string();
    assert_eq!(matrix, "invalid expression type \"range vector\" for range query, must be Scalar or instant Vector");
}

#[test]
fn over_time_functions_are_those_of_the_documentation() {
    let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
    let engine = Memory::default().floats(&[("__name__", "x")], &values).engine();
    let cases = [
        ("sum", "{} 40"),
        ("avg", "{} 5"),
        ("min", "{} 2"),
        ("max", "{} 9"),
        ("count", "{} 8"),
        ("present", "{} 1"),
        ("stddev", "{} 2"),
        ("stdvar", "{} 4"),
        ("last", "x 9"),
        ("first", "x 2"),
    ];
    for (function, want) in cases {
        assert_eq!(ask(&engine, &format!("{function}_over_time(x[5m])"), 70), [want]);
    }
    assert_eq!(ask(&engine, "quantile_over_time(0.5, x[5m])", 70), ["{} 4.5"]);
    assert_eq!(ask(&engine, "sum_over_time(y[5m])", 70), Vec::<String>::new());
}

#[test]
fn absent_names_what_was_asked_for() {
    let engine = requests();
    assert_eq!(ask(&engine, "absent(no{api=\"x\", code=~\"2..\"})", 60), ["{api=\"x\"} 1"]);
    assert_eq!(ask(&engine, "absent(no{api=\"x\", api=\"y\", code=\"1\"})", 60), ["{code=\"1\"} 1"]);
    assert_eq!(ask(&engine, "absent(sum(no))", 60), ["{} 1"]);
    assert!(ask(&engine, "absent(req)", 60).is_empty());
    assert_eq!(ask(&engine, "absent_over_time(no{api=\"x\"}[5m])", 60), ["{api=\"x\"} 1"]);
    assert!(ask(&engine, "absent_over_time(req[5m])", 60).is_empty());
    let gaps = Memory::default().floats(&[("__name__", "x")], &[1.0]).engine();
    let value = gaps.range("absent(x)", 0, 600_000, 200_000).expect("range");
    assert_eq!(lines(&value), ["{} @400 1 @600 1"]);
}

#[test]
fn subqueries_evaluate_on_multiples_of_their_step() {
    let engine = requests();
    assert_eq!(ask(&engine, "max_over_time(sum(req)[1m:20s])", 65), ["{} 60"]);
    assert_eq!(ask(&engine, "sum(req)[1m:25s]", 60), ["{} @25 20 @50 50"]);
    assert_eq!(ask(&engine, "count_over_time(vector(1)[1m:10s])", 60), ["{} 6"]);
    assert_eq!(ask(&engine, "sum_over_time(sum(req)[30s:10s] offset 10s)", 60), ["{} 120"]);
    let value = engine.range("min_over_time(sum(req)[20s:10s])", 20_000, 60_000, 20_000).expect("range");
    assert_eq!(lines(&value), ["{} @20 10 @40 30 @60 50"]);
}

#[test]
fn rates_extrapolate_as_prometheus_does() {
    let counter = [0.0, 10.0, 20.0, 30.0, 0.0, 10.0];
    let engine = Memory::default().floats(&[("__name__", "c")], &counter).engine();
    // Samples at 0 … 50 s in (-10, 50]: growth 40, 10 s to the open start would go below zero, so it starts at 0.
    assert_eq!(ask(&engine, "increase(c[1m])", 50), ["{} 40"]);
    assert_eq!(ask(&engine, "rate(c[50s])", 50), ["{} 0.75"]);
    assert_eq!(ask(&engine, "delta(c[50s])", 50), ["{} 0"]);
    assert_eq!(ask(&engine, "irate(c[1m])", 50), ["{} 1"]);
    assert_eq!(ask(&engine, "irate(c[1m])", 40), ["{} 0"]);
    assert_eq!(ask(&engine, "idelta(c[1m])", 40), ["{} -30"]);
    assert_eq!(ask(&engine, "resets(c[1m])", 50), ["{} 1"]);
    assert_eq!(ask(&engine, "changes(c[1m])", 50), ["{} 5"]);
    assert!(ask(&engine, "rate(c[10s])", 50).is_empty(), "one sample has no rate");
}

#[test]
fn a_minute_of_requests_increases_by_what_was_measured_in_prometheus() {
    // 1,223 requests within a minute, in a window of two weeks: 1324.9 (measured against Prometheus 3).
    let samples = (0..=6).map(|i| (i * 10, Value::Float((1223.0 * i as f64 / 6.0).floor())));
    let engine = Memory::default().with(&[("__name__", "c")], samples).engine();
    assert_eq!(ask(&engine, "increase(c[14d])", 3600), ["{} 1324.9166666666665"]);
}

#[test]
fn series_that_only_their_names_tell_apart_are_no_obstacle_to_absence() {
    // Prometheus answers this one before it looks for equal label sets.
    let twins = Memory::default().floats(&[("__name__", "a")], &[1.0]).floats(&[("__name__", "b")], &[2.0]).engine();
    assert!(ask(&twins, "absent_over_time({__name__=~\"a|b\"}[5m])", 0).is_empty());
    assert!(error(&twins, "present_over_time({__name__=~\"a|b\"}[5m])").contains("same labelset"));
}

/// Counts how often it is read.
struct Counted(Memory, std::sync::atomic::AtomicUsize);

impl Select for Counted {
    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.1.fetch_add(1, Relaxed);
        self.0.for_each(selection, visit)
    }
}

#[test]
fn a_selector_that_stands_twice_is_read_once() {
    let source = Memory::default().floats(&[("__name__", "c")], &[3.0, 4.0, 9.0]).floats(&[("__name__", "cc")], &[1.0]);
    let source = Arc::new(Counted(source, 0.into()));
    let engine = Engine::new(source.clone(), Limits::default());
    let reads = |expression: &str| {
        let before = source.1.load(Relaxed);
        (ask(&engine, expression, 20), source.1.load(Relaxed) - before)
    };
    assert_eq!(reads("last_over_time(c[1m]) - min_over_time(c[1m])"), (vec!["{} 6".to_owned()], 1));
    assert_eq!(reads("last_over_time(c[1m]) - max_over_time(c[1m] offset 10s)"), (vec!["{} 5".to_owned()], 2));
    assert_eq!(reads("last_over_time(c[1m]) - last_over_time(cc[1m])"), (vec!["{} 8".to_owned()], 2));
    // Functions that need every sample are read for themselves.
    assert_eq!(reads("last_over_time(c[1m]) + count_over_time(c[1m])"), (vec!["{} 12".to_owned()], 2));
}
