//! Whole queries against series in memory; expected values are Prometheus's, from its documentation and its own tests.

use std::time::Duration;

use proptest::prelude::*;

use super::testing::{Memory, ask, histogram_of, lines};
use super::{Engine, Limits, QueryError, QueryValue};
use crate::model::Value;

/// Two APIs with two codes each: floats at 0, 10 … 60 s.
fn requests() -> Engine {
    let count = |factor: f64| (0..=6).map(|i| f64::from(i) * factor).collect::<Vec<_>>();
    Memory::default()
        .floats(&[("__name__", "req"), ("api", "a"), ("code", "200")], &count(1.0))
        .floats(&[("__name__", "req"), ("api", "a"), ("code", "500")], &count(2.0))
        .floats(&[("__name__", "req"), ("api", "b"), ("code", "200")], &count(3.0))
        .floats(&[("__name__", "req"), ("api", "b"), ("code", "500")], &count(4.0))
        .floats(&[("__name__", "limit"), ("api", "a")], &[100.0; 7])
        .floats(&[("__name__", "limit"), ("api", "b")], &[200.0; 7])
        .engine()
}

fn error(engine: &Engine, expression: &str) -> String {
    match engine.instant(expression, 60_000) {
        Ok(value) => panic!("{expression}: {:?}", lines(&value)),
        Err(error) => error.to_string(),
    }
}

/// One line of an instant query of numbers only.
fn number(expression: &str) -> String {
    ask(&Memory::default().engine(), expression, 0).join("; ")
}

#[test]
fn arithmetic_has_the_precedence_of_the_language() {
    let cases = [
        ("1 + 2 * 3", "7"),
        ("-1 ^ 2", "-1"),
        ("2 ^ 3 ^ 2", "512"),
        ("(1 + 2) * 3", "9"),
        ("5 % 3 - -5 % 3", "4"),
        ("1 / 0", "+Inf"),
        ("0 / 0", "NaN"),
        ("1 > bool 2", "0"),
        ("2 >= bool 2", "1"),
        ("0x10 + 1e1", "26"),
        ("1 atan2 1", "0.7853981633974483"),
        ("\"a\\nb\"", "\"a\\nb\""),
        ("vector(1) + 1", "{} 2"),
        ("scalar(vector(3)) + 1", "4"),
        ("time()", "0"),
        ("1m30s", "90"),
    ];
    for (expression, want) in cases {
        assert_eq!(number(expression), want, "{expression}");
    }
}

#[test]
fn matchers_select() {
    let engine = requests();
    let cases = [
        ("req{code=\"500\"}", vec!["req{api=\"a\", code=\"500\"} 12", "req{api=\"b\", code=\"500\"} 24"]),
        ("req{code!=\"500\", api=~\"a|c\"}", vec!["req{api=\"a\", code=\"200\"} 6"]),
        ("req{code!~\"2.*\", api!~\"a\"}", vec!["req{api=\"b\", code=\"500\"} 24"]),
        ("{__name__=~\"lim.t\", api=\"a\"}", vec!["limit{api=\"a\"} 100"]),
        ("{\"limit\", api=\"b\"}", vec!["limit{api=\"b\"} 200"]),
        ("limit{code=\"\", api=~\".\"}", vec!["limit{api=\"a\"} 100", "limit{api=\"b\"} 200"]),
        ("req{api=~\"\"}", vec![]),
    ];
    for (expression, want) in cases {
        assert_eq!(ask(&engine, expression, 60), want, "{expression}");
    }
}

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
fn vectors_match_one_to_one() {
    let engine = requests();
    assert_eq!(
        ask(&engine, "req{code=\"500\"} / on(api) req{code=\"200\"}", 60),
        ["{api=\"a\"} 2", "{api=\"b\"} 1.3333333333333333"]
    );
    assert_eq!(
        ask(&engine, "req{code=\"500\"} - ignoring(code) req{code=\"200\"}", 60),
        ["{api=\"a\"} 6", "{api=\"b\"} 6"]
    );
    assert_eq!(ask(&engine, "limit > on(api) req{code=\"500\"} * 5", 60), ["{api=\"a\"} 100", "{api=\"b\"} 200"]);
    assert_eq!(ask(&engine, "limit{api=\"a\"} == limit", 60), ["limit{api=\"a\"} 100"]);
    assert_eq!(ask(&engine, "limit == bool limit", 60), ["{api=\"a\"} 1", "{api=\"b\"} 1"]);
    assert!(ask(&engine, "req + limit", 60).is_empty());
}

#[test]
fn vectors_match_many_to_one_only_when_told() {
    let engine = requests();
    assert_eq!(
        ask(&engine, "req{code=\"200\"} / on(api) group_left limit", 60),
        ["{api=\"a\", code=\"200\"} 0.06", "{api=\"b\", code=\"200\"} 0.09"]
    );
    assert_eq!(
        ask(&engine, "limit{api=\"a\"} * on(api) group_right req", 60),
        ["{api=\"a\", code=\"200\"} 600", "{api=\"a\", code=\"500\"} 1200"]
    );
    assert_eq!(
        ask(&engine, "req{api=\"a\"} * on() group_left(owner) (limit{api=\"a\"} * 0 + 1)", 60),
        ["{api=\"a\", code=\"200\"} 6", "{api=\"a\", code=\"500\"} 12"]
    );
    assert!(error(&engine, "req / on(api) limit").contains("many-to-one matching must be explicit"));
    assert_eq!(
        error(&engine, "limit / on(api) req{api=\"a\"}"),
        "found duplicate series for the match group {api=\"a\"} on the right hand-side of the operation: \
         [req{api=\"a\", code=\"200\"}, req{api=\"a\", code=\"500\"}];many-to-many matching not allowed: \
         matching labels must be unique on one side"
    );
}

#[test]
fn set_operators_combine_by_labels() {
    let engine = requests();
    assert_eq!(ask(&engine, "limit and on(api) req{api=\"a\"}", 60), ["limit{api=\"a\"} 100"]);
    assert_eq!(ask(&engine, "limit unless on(api) req{api=\"a\"}", 60), ["limit{api=\"b\"} 200"]);
    assert_eq!(ask(&engine, "limit{api=\"a\"} or limit", 60), ["limit{api=\"a\"} 100", "limit{api=\"b\"} 200"]);
    assert_eq!(ask(&engine, "limit{api=\"a\"} or on() vector(0)", 60), ["limit{api=\"a\"} 100"]);
    assert_eq!(ask(&engine, "sum(no) or vector(0)", 60), ["{} 0"]);
}

#[test]
fn scalars_apply_to_every_element() {
    let engine = requests();
    assert_eq!(ask(&engine, "limit * 2", 60), ["{api=\"a\"} 200", "{api=\"b\"} 400"]);
    assert_eq!(ask(&engine, "150 < limit", 60), ["limit{api=\"b\"} 200"]);
    assert_eq!(ask(&engine, "limit < bool 150", 60), ["{api=\"a\"} 1", "{api=\"b\"} 0"]);
    assert_eq!(ask(&engine, "-limit", 60), ["{api=\"a\"} -100", "{api=\"b\"} -200"]);
}

const SAME: &str = "vector cannot contain metrics with the same labelset";

#[test]
fn names_that_fall_away_must_not_leave_equal_series() {
    let twins = Memory::default().floats(&[("__name__", "a")], &[1.0]).floats(&[("__name__", "b")], &[2.0]).engine();
    assert_eq!(error_at(&twins, "-{__name__=~\"a|b\"}"), SAME);
    assert_eq!(error_at(&twins, "max_over_time({__name__=~\"a|b\"}[5m])"), SAME);
    assert_eq!(ask(&twins, "last_over_time({__name__=~\"a|b\"}[5m])", 0), ["a 1", "b 2"]);
}

fn error_at(engine: &Engine, expression: &str) -> String {
    engine.instant(expression, 0).expect_err(expression).to_string()
}

#[test]
fn aggregations_group() {
    let engine = requests();
    let cases = [
        ("sum by (api) (req)", vec!["{api=\"a\"} 18", "{api=\"b\"} 42"]),
        ("sum without (api) (req)", vec!["{code=\"200\"} 24", "{code=\"500\"} 36"]),
        ("avg(req)", vec!["{} 15"]),
        ("min(req)", vec!["{} 6"]),
        ("max by (code) (req)", vec!["{code=\"200\"} 18", "{code=\"500\"} 24"]),
        ("count(req)", vec!["{} 4"]),
        ("group by (__name__) (req)", vec!["req 1"]),
        ("stdvar(req)", vec!["{} 45"]),
        ("quantile(0.5, req)", vec!["{} 15"]),
        ("topk(2, req)", vec!["req{api=\"b\", code=\"500\"} 24", "req{api=\"b\", code=\"200\"} 18"]),
        ("bottomk by (api) (1, req)", vec!["req{api=\"a\", code=\"200\"} 6", "req{api=\"b\", code=\"200\"} 18"]),
        ("topk(0, req)", vec![]),
        ("count_values(\"v\", limit)", vec!["{v=\"100\"} 1", "{v=\"200\"} 1"]),
        ("count_values by (api) (\"v\", req * 0)", vec!["{api=\"a\", v=\"0\"} 2", "{api=\"b\", v=\"0\"} 2"]),
        ("sum(no)", vec![]),
    ];
    for (expression, want) in cases {
        assert_eq!(ask(&engine, expression, 60), want, "{expression}");
    }
}

#[test]
fn instant_functions_map_floats() {
    let values = [("a", -2.5), ("b", 2.5), ("c", f64::NAN)];
    let memory = values
        .into_iter()
        .fold(Memory::default(), |memory, (label, value)| memory.floats(&[("__name__", "x"), ("l", label)], &[value]));
    let engine = memory.engine();
    let values = |expression: &str| -> Vec<String> {
        ask(&engine, expression, 0).iter().map(|line| line.rsplit(' ').next().unwrap_or("").to_owned()).collect()
    };
    assert_eq!(values("abs(x)"), ["2.5", "2.5", "NaN"]);
    assert_eq!(values("ceil(x)"), ["-2", "3", "NaN"]);
    assert_eq!(values("floor(x)"), ["-3", "2", "NaN"]);
    assert_eq!(values("round(x)"), ["-2", "3", "NaN"]);
    assert_eq!(values("round(x, 5)"), ["0", "5", "NaN"]);
    assert_eq!(values("sgn(x)"), ["-1", "1", "NaN"]);
    assert_eq!(values("clamp(x, -1, 1)"), ["-1", "1", "NaN"]);
    assert_eq!(values("clamp(x, 1, -1)"), Vec::<String>::new());
    assert_eq!(values("clamp_min(x, 0)"), ["0", "2.5", "NaN"]);
    assert_eq!(values("clamp_max(x, 0)"), ["-2.5", "0", "NaN"]);
    assert_eq!(values("sort(x)"), ["-2.5", "2.5", "NaN"]);
    assert_eq!(values("sort_desc(x)"), ["2.5", "-2.5", "NaN"]);
    assert_eq!(values("exp(x * 0)"), ["1", "1", "NaN"]);
    assert_eq!(values("log2(x{l=\"b\"} * 0)"), ["-Inf"]);
    assert_eq!(values("scalar(x)"), ["NaN"]);
    assert_eq!(values("scalar(x{l=\"b\"})"), ["2.5"]);
    assert_eq!(ask(&engine, "timestamp(x{l=\"a\"})", 100), ["{l=\"a\"} 0"]);
    assert_eq!(ask(&engine, "timestamp(x{l=\"a\"} * 1)", 100), ["{l=\"a\"} 100"]);
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

/// Two histograms, `h{api="a"}` of 1, 2, 3 and then 4 more, `h{api="b"}` of 0.5.
fn histograms() -> Engine {
    let of = |values: &[f64]| histogram_of(values);
    Memory::default()
        .with(&[("__name__", "h"), ("api", "a")], [(0, of(&[1.0, 2.0, 3.0])), (10, of(&[1.0, 2.0, 3.0, 4.0]))])
        .with(&[("__name__", "h"), ("api", "b")], [(0, of(&[0.5])), (10, of(&[0.5]))])
        .with(&[("__name__", "f"), ("api", "a")], [(0, Value::Float(3.0)), (10, Value::Float(3.0))])
        .engine()
}

#[test]
fn histograms_add_up_and_scale() {
    let engine = histograms();
    let cases = [
        ("h{api=\"a\"}", vec!["h{api=\"a\"} 4/10"]),
        ("sum(h)", vec!["{} 5/10.5"]),
        ("avg(h)", vec!["{} 2.5/5.25"]),
        ("sum({__name__=~\"f|h\"})", vec![]),
        ("count({__name__=~\"f|h\"})", vec!["{} 3"]),
        ("max({__name__=~\"f|h\"})", vec!["{} 3"]),
        ("h{api=\"a\"} * 2", vec!["{api=\"a\"} 8/20"]),
        ("2 * h{api=\"a\"}", vec!["{api=\"a\"} 8/20"]),
        ("h{api=\"a\"} / 2", vec!["{api=\"a\"} 2/5"]),
        ("2 / h{api=\"a\"}", vec![]),
        ("h + 1", vec![]),
        ("h{api=\"a\"} + on() h{api=\"b\"}", vec!["{} 5/10.5"]),
        ("h{api=\"a\"} - ignoring(api) h{api=\"b\"}", vec!["{} 3/9.5"]),
        ("h == h", vec!["h{api=\"a\"} 4/10", "h{api=\"b\"} 1/0.5"]),
        ("h > h", vec![]),
        ("h{api=\"a\"} + ignoring(__name__) f", vec![]),
        ("histogram_count(h)", vec!["{api=\"a\"} 4", "{api=\"b\"} 1"]),
        ("histogram_sum(h)", vec!["{api=\"a\"} 10", "{api=\"b\"} 0.5"]),
        ("histogram_avg(h{api=\"a\"})", vec!["{api=\"a\"} 2.5"]),
        ("histogram_quantile(1, h{api=\"a\"})", vec!["{api=\"a\"} 4"]),
        ("sum_over_time(h{api=\"a\"}[1m])", vec!["{api=\"a\"} 7/16"]),
        ("avg_over_time(h{api=\"a\"}[1m])", vec!["{api=\"a\"} 3.5/8"]),
        ("count_over_time(h{api=\"a\"}[1m])", vec!["{api=\"a\"} 2"]),
        ("min_over_time(h[1m])", vec![]),
        ("abs(h)", vec![]),
        ("-h{api=\"b\"}", vec!["{api=\"b\"} -1/-0.5"]),
    ];
    for (expression, want) in cases {
        assert_eq!(ask(&engine, expression, 10), want, "{expression}");
    }
}

#[test]
fn histograms_answer_to_their_classic_names() {
    let engine = histograms();
    assert_eq!(ask(&engine, "h_count", 10), ["h_count{api=\"a\"} 4", "h_count{api=\"b\"} 1"]);
    assert_eq!(ask(&engine, "h_sum{api=\"a\"}", 10), ["h_sum{api=\"a\"} 10"]);
    assert_eq!(ask(&engine, "h_bucket{api=\"a\", le=\"2.0\"}", 10), ["h_bucket{api=\"a\", le=\"2.0\"} 2"]);
    assert_eq!(ask(&engine, "h_bucket{api=\"a\", le=\"+Inf\"}", 10), ["h_bucket{api=\"a\", le=\"+Inf\"} 4"]);
    assert_eq!(ask(&engine, "count(h_bucket)", 10), ["{} 72"]);
    assert_eq!(ask(&engine, "sum by (le) (h_bucket{le=~\"0.5|4.0\"})", 10), ["{le=\"0.5\"} 1", "{le=\"4.0\"} 5"]);
    assert_eq!(ask(&engine, "histogram_quantile(0.5, sum by (le) (h_bucket{api=\"a\"}))", 10), ["{} 2"]);
    assert_eq!(ask(&engine, "count_over_time(h_count{api=\"a\"}[1m])", 10), ["{api=\"a\"} 2"]);
    assert!(ask(&engine, "f_count", 10).is_empty(), "a float has no count");
    assert!(ask(&engine, "_count", 10).is_empty());
}

#[test]
fn a_recorded_series_wins_over_a_derived_one_and_its_end_is_theirs() {
    let engine = Memory::default()
        .with(&[("__name__", "h")], [(0, histogram_of(&[1.0])), (10, Value::stale())])
        .floats(&[("__name__", "h_count")], &[42.0])
        .engine();
    assert_eq!(ask(&engine, "h_count", 5), ["h_count 42"]);
    assert_eq!(ask(&engine, "h_sum", 5), ["h_sum 1"]);
    assert!(ask(&engine, "h_sum", 10).is_empty());
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
fn histograms_have_rates() {
    let engine = histograms();
    assert_eq!(ask(&engine, "histogram_count(increase(h{api=\"a\"}[20s]))", 10), ["{api=\"a\"} 2"]);
    assert_eq!(ask(&engine, "increase(h_count{api=\"a\"}[20s])", 10), ["{api=\"a\"} 2"]);
    assert_eq!(ask(&engine, "histogram_sum(irate(h{api=\"a\"}[20s]))", 10), ["{api=\"a\"} 0.4"]);
    assert_eq!(ask(&engine, "resets(h{api=\"a\"}[20s])", 10), ["{api=\"a\"} 0"]);
}

#[test]
fn queries_stay_within_their_budget() {
    let limits = Limits { samples_max: 20, ..Limits::default() };
    let engine = Memory::default()
        .floats(&[("__name__", "x"), ("l", "a")], &[1.0; 11])
        .floats(&[("__name__", "x"), ("l", "b")], &[1.0; 11])
        .engine_within(limits);
    assert!(matches!(engine.instant("sum_over_time(x[5m])", 100_000), Err(QueryError::TooManySamples)));
    assert!(engine.instant("sum_over_time(x{l=\"a\"}[5m])", 100_000).is_ok());
    assert!(matches!(engine.instant("sum_over_time(vector(1)[100y:1ms])", 0), Err(QueryError::TooManySamples)));
    assert!(matches!(engine.range("vector(1)", 0, 100_000, 1), Err(QueryError::TooManySamples)));
    let timeout = engine.instant_within("x", 0, Duration::ZERO);
    assert_eq!(timeout.expect_err("no time").to_string(), "query timed out in expression evaluation");
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
