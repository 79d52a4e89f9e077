//! Selectors, operators, aggregations and functions of instant vectors.

use super::super::testing::{Memory, ask};
use super::{error, error_at, number, requests};

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
         [{__name__=\"req\", api=\"a\", code=\"500\"}, {__name__=\"req\", api=\"a\", code=\"200\"}];many-to-many matching not allowed: \
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
fn topk_of_nothing_is_nothing_but_a_k_that_is_no_number_is_an_error() {
    let engine = requests();
    assert!(ask(&engine, "topk(NaN, no)", 60).is_empty());
    assert_eq!(error(&engine, "topk(NaN, req)"), "Scalar value NaN overflows int64");
    assert_eq!(error(&engine, "bottomk(1e300, req)").split_once(' ').map(|(word, _)| word), Some("Scalar"));
    assert!(ask(&engine, "topk(scalar(no) * 0 > bool 1, req)", 60).is_empty());
}

#[test]
fn a_side_without_a_series_is_filled() {
    let engine = Memory::default()
        .floats(&[("__name__", "l"), ("x", "a")], &[10.0])
        .floats(&[("__name__", "l"), ("x", "b")], &[20.0])
        .floats(&[("__name__", "r"), ("x", "a")], &[100.0])
        .floats(&[("__name__", "r"), ("x", "c")], &[300.0])
        .floats(&[("__name__", "many"), ("x", "a"), ("y", "1")], &[1.0])
        .floats(&[("__name__", "many"), ("x", "d"), ("y", "2")], &[2.0])
        .floats(&[("__name__", "fill"), ("x", "a")], &[7.0])
        .engine();
    let sorted = |expression: &str| {
        let mut lines = ask(&engine, expression, 0);
        lines.sort();
        lines
    };
    assert_eq!(sorted("l + fill(0) r"), [r#"{x="a"} 110"#, r#"{x="b"} 20"#, r#"{x="c"} 300"#]);
    assert_eq!(sorted("l - fill_left(5) r"), [r#"{x="a"} -90"#, r#"{x="c"} -295"#]);
    assert_eq!(sorted("l - fill_right(-1) r"), [r#"{x="a"} -90"#, r#"{x="b"} 21"#]);
    assert_eq!(sorted("l - fill_right(1) fill_left(2) r"), [r#"{x="a"} -90"#, r#"{x="b"} 19"#, r#"{x="c"} -298"#]);
    assert_eq!(sorted("r * on (x) group_right fill_right(3) many"), [r#"{x="a", y="1"} 100"#, r#"{x="d", y="2"} 6"#]);
    assert_eq!(sorted("many + on (x) group_left fill_left(0) r"), [r#"{x="a", y="1"} 101"#, r#"{x="c"} 300"#]);
    assert_eq!(sorted("no + fill(1) l"), [r#"{x="a"} 11"#, r#"{x="b"} 21"#]);
    assert!(sorted("no + fill_right(1) l").is_empty());
    assert_eq!(sorted("l == fill(20) r"), [r#"l{x="b"} 20"#]);
    // A metric may have the name.
    assert_eq!(sorted("l + fill"), [r#"{x="a"} 17"#]);
    for (wrong, why) in [
        ("l + fill(0) 1", "only allowed between instant vectors"),
        ("l and fill(0) r", "not allowed for set operators"),
        ("l + fill() r", "in fill modifier, expected number"),
        ("l + fill(0) fill(1) r", "unknown function with name \"fill\""),
    ] {
        let error = engine.instant(wrong, 0).expect_err(wrong).to_string();
        assert!(error.contains(why), "{wrong}: {error}");
    }
}
