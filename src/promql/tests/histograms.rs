//! Native histograms, and the classic names they answer to.

use super::super::testing::{Memory, ask, histogram_of};
use crate::model::Value;
use crate::promql::Engine;

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
fn a_name_that_was_recorded_and_then_a_part_of_a_histogram_is_one_series_and_the_other_way_round() {
    let float = |value: f64| Value::Float(value);
    let engine = Memory::default()
        .with(&[("__name__", "k_count")], [(0, float(7.0)), (10, float(9.0)), (20, Value::stale())])
        .with(
            &[("__name__", "k")],
            [(20, histogram_of(&[])), (30, histogram_of(&[1.0, 2.0])), (40, histogram_of(&[1.0, 2.0, 3.0]))],
        )
        .with(&[("__name__", "h")], [(0, histogram_of(&[1.0])), (10, Value::stale())])
        .with(&[("__name__", "h_count")], [(10, float(0.0)), (20, float(5.0)), (400, float(6.0))])
        .with(&[("__name__", "h_bucket"), ("le", "1.0")], [(100, float(3.0))])
        .engine();
    let at = |expression: &str, times: &[i64]| -> Vec<String> {
        times.iter().map(|time| ask(&engine, expression, *time).join(";")).collect()
    };
    assert_eq!(at("k_count", &[5, 15, 20, 35, 40]), ["k_count 7", "k_count 9", "k_count 0", "k_count 2", "k_count 3"]);
    assert_eq!(at("count_over_time(k_count[1m])", &[40]), ["{} 5"]);
    assert_eq!(at("increase(k_count[20s1ms])", &[40]), ["{} 3"]);
    assert_eq!(at("last_over_time(k_count[35s])", &[40]), ["k_count 3"]);
    assert_eq!(at("h_count", &[5, 10, 30]), ["h_count 1", "h_count 0", "h_count 5"]);
    assert_eq!(at("count_over_time(h_count[1m])", &[30]), ["{} 3"]);
    assert_eq!(at("h_bucket{le=\"1.0\"}", &[5, 10, 100]), ["h_bucket{le=\"1.0\"} 1", "", "h_bucket{le=\"1.0\"} 3"]);
    assert_eq!(at("count(h_bucket)", &[5, 100]), ["{} 36", "{} 1"]);
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
fn sums_of_histograms_lose_nothing_to_cancellation() {
    let memory = [("a", 1e100), ("b", 1.0), ("c", -1e100)].into_iter().fold(Memory::default(), |memory, (l, value)| {
        memory.with(&[("__name__", "h"), ("l", l)], [(0, histogram_of(&[value]))])
    });
    assert_eq!(ask(&memory.engine(), "histogram_sum(sum(h))", 0), ["{} 1"]);
}
