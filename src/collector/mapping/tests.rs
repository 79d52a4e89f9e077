//! Tables of what names, tags and mapping files come to.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::intake::{Intake, IntakeState};
use super::super::limits::Limits;
use super::super::registry::{Registry, Usage};
use super::*;
use crate::dogstatsd::{GaugeMinus, decode};
use crate::model::Value;
use crate::store::{Restored, RestoredSeries};

fn of(line: &[u8]) -> (String, usize) {
    let (labels, fallen) = series_of(&Named::of(&decode(line).next().unwrap().unwrap()), None);
    (labels.to_string(), fallen)
}

#[test]
fn names_and_tags_become_what_prometheus_allows() {
    let cases: [(&[u8], &str, usize); 9] = [
        (b"my_counter:1|c|#model:v1", r#"my_counter{model="v1"}"#, 0),
        (b"page.views-total:1|c", "page_views_total", 0),
        (b"5xx:1|c", "_5xx", 0),
        (b"m:1|c|#canary", r#"m{canary="true"}"#, 0),
        (b"m:1|c|#le:1,quantile:2,__name__:x", r#"m{tag___name__="x", tag_le="1", tag_quantile="2"}"#, 0),
        (b"m:1|c|#a.b:1,a-b:2,a_b:3", r#"m{a_b="1"}"#, 2),
        (b"m:1|c|#:nokey,k:", "m", 1),
        (b"m:1|c|#url:http://x/y", r#"m{url="http://x/y"}"#, 0),
        (b"m\xff\xc3\xa9:1|c|#k:\xff", "m__{k=\"\u{fffd}\"}", 0),
    ];
    for (line, series, fallen) in cases {
        assert_eq!(of(line), (series.to_owned(), fallen), "{}", String::from_utf8_lossy(line));
    }
}

/// The series of each line under a mapping file, `dropped` or `nameless`.
fn mapped(file: &str, line: &str) -> String {
    let mut mapping = Mapping::parse(file.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{file}"));
    let message = decode(line.as_bytes()).next().unwrap().unwrap();
    let kind = Usage::of(message.kind).metric_type();
    let found = mapping.find(message.name, kind);
    assert_eq!(mapping.find(message.name, kind), found, "what is remembered is the same");
    match found {
        Found::Drop => "dropped".to_owned(),
        Found::Mapped(mapped) if mapped.name.is_empty() => "nameless".to_owned(),
        Found::Mapped(mapped) => series_of(&Named::of(&message), Some(&mapped)).0.to_string(),
        Found::Unmapped { .. } => series_of(&Named::of(&message), None).0.to_string(),
    }
}

fn all_mapped(file: &str, cases: &[(&str, &str)]) {
    for (line, want) in cases {
        assert_eq!(mapped(file, line), *want, "{line}\n{file}");
    }
}

/// The examples of statsd_exporter's README, section "Metric Mapping and Configuration", as of 0.30: what it says that
/// comes of them.
#[test]
fn the_examples_of_the_original_come_to_what_it_says() {
    all_mapped(
        r#"
mappings:
- match: "test.dispatcher.*.*.*"
  name: "dispatcher_events_total"
  labels:
    processor: "$1"
    action: "$2"
    outcome: "$3"
    job: "test_dispatcher"
- match: "*.signup.*.*"
  name: "signup_events_total"
  labels:
    provider: "$2"
    outcome: "$3"
    job: "${1}_server"
"#,
        &[
            (
                "test.dispatcher.FooProcessor.send.success:1|c",
                r#"dispatcher_events_total{action="send", job="test_dispatcher", outcome="success", processor="FooProcessor"}"#,
            ),
            (
                "foo_product.signup.facebook.failure:1|c",
                r#"signup_events_total{job="foo_product_server", outcome="failure", provider="facebook"}"#,
            ),
            ("test.web-server.foo.bar:1|c", "test_web_server_foo_bar"),
        ],
    );
    all_mapped(
        "mappings:\n- match: \"test.*.*.counter\"\n  name: \"${2}_total\"\n  labels:\n    provider: \"$1\"\n",
        &[("test.a.requests.counter:1|c", r#"requests_total{provider="a"}"#)],
    );
    all_mapped(
        r#"
mappings:
- match: "test\\.(\\w+)\\.(\\w+)\\.counter"
  match_type: regex
  name: "${2}_total"
  labels:
    provider: "$1"
- match: "(.*)\\.(.*)--(.*)\\.status\\.(.*)\\.count"
  match_type: regex
  name: "request_total"
  labels:
    hostname: "$1"
    exec: "$2"
    protocol: "$3"
    code: "$4"
"#,
        &[
            ("test.a.requests.counter:1|c", r#"requests_total{provider="a"}"#),
            (
                "web1.nginx--http.status.200.count:1|c",
                r#"request_total{code="200", exec="nginx", hostname="web1", protocol="http"}"#,
            ),
        ],
    );
    all_mapped(
        "mappings:\n- match: \".+\"\n  match_type: regex\n  name: \"$0\"\n  labels:\n    statsd_metric_name: \"$0\"\n",
        &[("my.statsd_counter:1|c", r#"my_statsd_counter{statsd_metric_name="my.statsd_counter"}"#)],
    );
    all_mapped(
        "mappings:\n- match: \"http.request.*\"\n  help: \"Total number of http requests\"\n  name: \"http_requests_total\"\n  labels:\n    code: \"$1\"\n",
        &[("http.request.404:1|c", r#"http_requests_total{code="404"}"#)],
    );
    all_mapped(
        r#"
mappings:
- match: "test.timing.*.*.*"
  name: "my_timer"
  labels:
    provider: "$2"
    outcome: "$3"
    job: "${1}_server"
- match: "."
  match_type: regex
  action: drop
  name: "dropped"
"#,
        &[
            ("test.timing.api.x.ok:1|ms", r#"my_timer{job="api_server", outcome="ok", provider="x"}"#),
            ("whatever:1|c", "dropped"),
        ],
    );
    let by_type =
        "mappings:\n- match: test.foo.*\n  name: test_foo\n  match_metric_type: counter\n  labels:\n    provider: $1\n";
    all_mapped(by_type, &[("test.foo.a:1|c", r#"test_foo{provider="a"}"#), ("test.foo.a:1|g", "test_foo_a")]);
}

/// Cases after those of `pkg/mapper/mapper_test.go` and `pkg/mapper/fsm` of statsd_exporter 0.30, and the edges of its code.
#[test]
fn globs_match_as_they_do_in_the_original() {
    let unordered = "defaults:\n  glob_disable_ordering: true\n";
    let rules = |list: &[(&str, &str)]| -> String {
        let rule =
            |(glob, name): &(&str, &str)| format!("- match: '{glob}'\n  name: {name}\n  labels: {{l: \"${{1}}_x\"}}\n");
        format!("mappings:\n{}", list.iter().map(rule).collect::<String>())
    };
    let order = rules(&[("order.*.*", "a"), ("order.*.bbb", "b"), ("order.ccc.bbb", "c")]);
    all_mapped(&order, &[("order.good.bbb:1|c", r#"a{l="good_x"}"#), ("order.ccc.bbb:1|c", r#"a{l="ccc_x"}"#)]);
    let cases = [
        ("order.good.bbb:1|c", r#"b{l="good_x"}"#),
        ("order.ccc.bbb:1|c", r#"c{l="_x"}"#),
        ("order.a.b:1|c", r#"a{l="a_x"}"#),
    ];
    all_mapped(&format!("{unordered}{order}"), &cases);
    // What is taken on a way that leads nowhere is forgotten.
    let back = rules(&[("back.*.bbb", "b"), ("back.test.aaa", "a")]);
    for file in [back.clone(), format!("{unordered}{back}")] {
        let cases = [
            ("back.good.bbb:1|c", r#"b{l="good_x"}"#),
            ("back.test.bbb:1|c", r#"b{l="test_x"}"#),
            ("back.test.aaa:1|c", r#"a{l="_x"}"#),
        ];
        all_mapped(&file, &cases);
    }
    let crossed = rules(&[("*.dummy.*", "one"), ("full.name.*", "two")]);
    all_mapped(&crossed, &[("full.name.t:1|c", r#"two{l="t_x"}"#), ("w.dummy.t:1|c", r#"one{l="w_x"}"#)]);
    // The leftmost part decides: `a.*.*` before `*.b.c`.
    let left = format!("{unordered}{}", rules(&[("*.b.c", "star_first"), ("a.*.*", "a_first")]));
    all_mapped(&left, &[("a.b.c:1|c", r#"a_first{l="b_x"}"#)]);
    // As many parts as the glob has, no more and no less; a part may be empty.
    let one = rules(&[("*", "one"), ("*.*", "two")]);
    let cases = [
        ("x:1|c", r#"one{l="x_x"}"#),
        ("x.:1|c", r#"two{l="x_x"}"#),
        (".:1|c", r#"two{l="_x"}"#),
        ("x.y.z:1|c", "x_y_z"),
    ];
    all_mapped(&one, &cases);
    // A part that begins with a digit, dashes, a beginning of a longer glob, the same glob twice.
    let odd = rules(&[("a.99test.b--c", "digits"), ("p.q.r", "long"), ("p.q", "short"), ("p.q", "never")]);
    let cases =
        [("a.99test.b--c:1|c", r#"digits{l="_x"}"#), ("p.q:1|c", r#"short{l="_x"}"#), ("p.q.r:1|c", r#"long{l="_x"}"#)];
    all_mapped(&odd, &cases);
    // A letter is itself, whatever its case.
    all_mapped(&rules(&[("a.B", "m")]), &[("a.b:1|c", "a_b"), ("a.B:1|c", r#"m{l="_x"}"#)]);
}

#[test]
fn globs_come_before_regexes_and_these_in_their_order() {
    let file = r"
mappings:
- {match: 'a\..*', match_type: regex, name: first_regex}
- {match: 'a\.b', match_type: regex, name: second_regex}
- {match: a.b, name: glob}
- {match: '^c$', match_type: regex, name: whole}
- {match: 'c', match_type: regex, name: anywhere}
";
    let cases = [
        ("a.b:1|c", "glob"),
        ("a.c:1|c", "first_regex"),
        ("c:1|c", "whole"),
        ("xcx:1|c", "anywhere"),
        ("d.e:1|c", "d_e"),
    ];
    all_mapped(file, &cases);
    // The default of match_type, and what says otherwise.
    let file = "defaults: {match_type: regex}\nmappings:\n- {match: 'a.b', name: r}\n- {match: a.*, match_type: glob, name: g}\n";
    all_mapped(file, &[("a.b:1|c", "g"), ("axb:1|c", "r")]);
}

#[test]
fn a_type_may_have_a_rule_of_its_own() {
    let file = r"
mappings:
- {match: m.*, match_metric_type: counter, name: counter}
- {match: m.*, match_metric_type: gauge, name: gauge}
- {match: m.*, match_metric_type: observer, name: observer}
- {match: 'r\.', match_type: regex, match_metric_type: timer, name: timer}
- {match: 'r\.', match_type: regex, name: other}
";
    for (kind, name) in
        [("c", "counter"), ("g", "gauge"), ("s", "gauge"), ("ms", "observer"), ("h", "observer"), ("d", "observer")]
    {
        assert_eq!(mapped(file, &format!("m.x:1|{kind}")), name);
    }
    all_mapped(file, &[("r.x:1|ms", "timer"), ("r.x:1|c", "other")]);
}

#[test]
fn templates_take_what_they_refer_to() {
    // (match, template, line, what the label is)
    let globs = [
        ("t.*.*", "$1", Some("a")),
        ("t.*.*", "${2}-${1}", Some("b-a")),
        ("t.*.*", "$1.$2", Some("a.b")),
        ("t.*.*", "${1", Some("a")),
        ("t.*.*", "$1}x", Some("ax")),
        ("t.*.*", "$1_x", None),
        ("t.*.*", "${1}_x", Some("a_x")),
        ("t.*.*", "$1$2", None),
        ("t.*.*", "$3", None),
        ("t.*.*", "$0", None),
        ("t.*.*", "100%$", Some("100%$")),
        ("t.*.*", "$-$", Some("$-$")),
        ("t.*.*", "$1-$10", Some("a-")),
        ("t.*.*", "é$1", Some("éa")),
    ];
    let regexes = [
        (r"t\.(\w+)\.(?P<last>\w+)", "$1", Some("a")),
        (r"t\.(\w+)\.(?P<last>\w+)", "$last", Some("b")),
        (r"t\.(\w+)\.(?P<last>\w+)", "${last}x", Some("bx")),
        (r"t\.(\w+)\.(?P<last>\w+)", "$lastx", None),
        (r"t\.(\w+)\.(?P<last>\w+)", "$0", Some("t.a.b")),
        (r"t\.(\w+)\.(?P<last>\w+)", "$1_x", None),
        (r"t\.(\w+)\.(?P<last>\w+)", "$1$2", Some("ab")),
        (r"t\.(\w+)\.(?P<last>\w+)", "$$1", Some("$1")),
        (r"t\.(\w+)\.(?P<last>\w+)", "${1", Some("${1")),
        (r"t\.(\w+)\.(?P<last>\w+)", "$", Some("$")),
        (r"t\.(x)?", "[$1]", Some("[]")),
    ];
    let globs = globs.map(|case| ("glob", case));
    for (match_type, (pattern, template, want)) in globs.into_iter().chain(regexes.map(|case| ("regex", case))) {
        let file = format!(
            "mappings:\n- match: '{pattern}'\n  match_type: {match_type}\n  name: m\n  labels:\n    l: '{template}'\n"
        );
        let want = want.map_or("m".to_owned(), |want| format!("m{{l=\"{want}\"}}"));
        assert_eq!(mapped(&file, "t.a.b:1|c"), want, "{match_type} {template}");
    }
}

#[test]
fn what_refers_to_nothing_is_told_with_its_line() {
    let file = "mappings:\n- match: a.*\n  name: ${1}_$2\n  labels:\n    l: $1_total\n- match: (a)\n  match_type: regex\n  name: $1\n  labels: {l: $x}\n";
    let mapping = Mapping::parse(file.as_bytes()).unwrap();
    let want = ["line 3: $2 refers", "line 5: $1_total refers", "line 9: $x refers"];
    assert_eq!(mapping.notes().len(), 3, "{:?}", mapping.notes());
    assert!(mapping.notes().iter().zip(want).all(|(note, want)| note.starts_with(want)), "{:?}", mapping.notes());
    assert_eq!(mapped("mappings:\n- {match: a.*, name: $7}\n", "a.b:1|c"), "nameless");
}

#[test]
fn mapped_names_are_made_valid_as_in_the_original() {
    // pkg/mapper/escape_test.go: a run of dashes is one `_`; everything else that is not allowed is one for each.
    let file = "mappings:\n- {match: 'x\\.(.*)', match_type: regex, name: $1}\n";
    let cases = [
        ("x.clean:1|c", "clean"),
        ("x.0starts:1|c", "_0starts"),
        ("x.a--b---c:1|c", "a_b_c"),
        ("x.a-b.c d:1|c", "a_b_c_d"),
        ("x.with😱emoji:1|c", "with_emoji"),
        ("x.__.__:1|c", "_____"),
    ];
    all_mapped(file, &cases);
}

#[test]
fn labels_of_the_mapping_and_tags_meet_as_honor_labels_says() {
    let rule = |honor: bool| {
        format!("mappings:\n- {{match: m.*, name: m, honor_labels: {honor}, labels: {{a: $1, b: fixed, empty: ''}}}}\n")
    };
    let line = "m.x:1|c|#a:tag,c:tag,empty:tag";
    assert_eq!(mapped(&rule(false), line), r#"m{a="x", b="fixed", c="tag"}"#);
    assert_eq!(mapped(&rule(true), line), r#"m{a="tag", b="fixed", c="tag", empty="tag"}"#);
    assert_eq!(mapped(&rule(true), "m.x:1|c|#a:"), r#"m{a="x", b="fixed"}"#, "a tag without a value is no label");
    let names = "mappings:\n- {match: m, name: m, labels: {le: '1', quantile: '0.5'}}\n";
    all_mapped(names, &[("m:1|g", r#"m{le="1", quantile="0.5"}"#), ("m:1|h", r#"m{tag_le="1", tag_quantile="0.5"}"#)]);
    // Scalars of other kinds are the text that stands there.
    let file = "mappings:\n- match: m\n  name: m\n  labels:\n    code: 200\n    on: true\n    nothing:\n    none: ~\n";
    assert_eq!(mapped(file, "m:1|c"), r#"m{code="200", on="true"}"#);
}

#[test]
fn what_a_mapping_replaces_is_no_tag_that_fell_away() {
    let mut mapping = Mapping::parse(b"mappings:\n- {match: m, name: m, labels: {a: x}}\n").unwrap();
    let message = decode(b"m:1|c|#a:1,b:1,b:2").next().unwrap().unwrap();
    let Found::Mapped(mapped) = mapping.find(b"m", MetricType::Counter) else { panic!() };
    assert_eq!(series_of(&Named::of(&message), Some(&mapped)).1, 1);
}

/// statsd_exporter's `config.example.yml` has these fields, and older releases the others (its CHANGELOG, 0.15 to 0.20).
#[test]
fn all_fields_of_the_original_are_read_the_older_ones_too() {
    let file = r"
defaults:
  observer_type: histogram
  histogram_options:
    native_histogram_bucket_factor: 1.1
    native_histogram_max_buckets: 160
    buckets: [.005, .01, 1, 2.5, +.inf]
  summary_options:
    quantiles:
      - quantile: 0.99
        error: 0.001
    max_age: 5m
    age_buckets: 2
    buf_cap: 1000
  match_type: glob
  glob_disable_ordering: true
  ttl: 0
mappings:
  - match: a.*
    name: a
    help: Latency of the application
    histogram_options: {native_histogram_bucket_factor: 1.005, buckets: [0.01, 0.011]}
    labels: {}
  - &base
    match: b.*
    observer_type: summary
    name: b
    action: map
  - <<: *base
    match: c.*
    ttl: 1m20s
    scale: 1e-6
";
    all_mapped(file, &[("a.x:1|ms", "a"), ("b.x:1|ms", "b"), ("c.x:1|ms", "b")]);
    let notes = Mapping::parse(file.as_bytes()).unwrap().notes().join("\n");
    assert!(
        notes.contains("line 7: buckets are asked for") && notes.contains("line 25: a summary is asked for"),
        "{notes}"
    );
    let old = r"
defaults:
  timer_type: histogram
  buckets: [.005, .01]
  quantiles: [{quantile: 0.5, error: 0.1}]
mappings:
- match: a.*
  match_metric_type: timer
  timer_type: histogram
  buckets: [0.01, 0.025]
  name: a
- match: b.*
  timer_type: summary
  quantiles:
    - quantile: 0.99
      error: 0.001
  summary_options:
    max_summary_age: 30s
    summary_age_buckets: 3
    stream_buffer_size: 1000
  name: b
";
    all_mapped(old, &[("a.x:1|ms", "a"), ("a.x:1|c", "a_x"), ("b.x:1|ms", "b")]);
    for empty in ["", "# nothing\n", "mappings:\n", "defaults:\nmappings: []\n", "---\n"] {
        assert!(Mapping::parse(empty.as_bytes()).unwrap().is_empty(), "{empty:?}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_line_and_the_reason() {
    let rule = |fields: &str| format!("mappings:\n- match: a.*\n  name: m\n  {fields}\n").into_bytes();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"mapings: []".into(), "line 1: unknown field `mapings`"),
        (rule("nmae: x"), "line 4: unknown field `nmae`"),
        (b"defaults:\n  ttl: 1h\n  tll: 1h\n".into(), "line 3: unknown field `tll`"),
        (rule("labels: {a: x}\n  histogram_options: {bucket: [1]}"), "line 5: unknown field `bucket`"),
        (rule("name: n"), "line 4: `name` is there twice"),
        (rule("labels:\n    a: x\n    a: y"), "line 6: `a` is there twice"),
        (b"mappings:\n- match: *.test.*\n  name: x\n".into(), "line 2: "),
        (
            b"mappings:\n- match: \"a\\.b\"\n  name: x\n".into(),
            "line 2: while parsing a quoted scalar, found unknown escape",
        ),
        (b"mappings:\n\t- match: a\n".into(), "line 2: a tab indents it: want spaces"),
        (b"mappings:\n- match: a\n\tname: x\n".into(), "line 3: a tab indents it"),
        (b"mappings:\n- match: a\n  \tname: x\n".into(), "line 3: a tab indents it"),
        (b"# the first\n\n\tmappings:\n".into(), "line 3: a tab indents it"),
        (
            b"mappings:\n- match: a\n  name: x\n  action: no\n".into(),
            "line 4: unknown variant `no`, expected one of map, drop",
        ),
        (b"mappings: 5\n".into(), "line 1: expected sequence"),
        (b"mappings: [5]\n".into(), "line 1: "),
        (b"a: 1\n---\nb: 2\n".into(), "line "),
        (b"---\nmappings: []\n---\nmappings: []\n".into(), "line 4: a second document: want one"),
        (b"mappings:\n- match: a\n  name: \xff\n".into(), "line 3: not UTF-8"),
        (b"mappings:\n- name: m\n".into(), "line 2: a mapping without match"),
        (b"mappings:\n- match: ''\n  name: m\n".into(), "line 2: a mapping without match"),
        (b"mappings:\n- match: a\n\n- match: b\n  name: m\n".into(), "line 2: a mapping without name"),
        (b"mappings:\n- match: a\n  name: ''\n".into(), "line 2: a mapping without name"),
        (b"mappings:\n- match: a\n  name: 0foo\n".into(), "line 3: name: got `0foo`"),
        (b"mappings:\n- match: a\n  name: a.b\n".into(), "line 3: name: got `a.b`"),
        (b"mappings:\n- match: a\n  name: $x\n".into(), "line 3: name: got `$x`"),
        (b"mappings:\n- match: bad!!line.*\n  name: x\n".into(), "line 2: match: got `bad!!line.*`"),
        (b"mappings:\n- match: a..b\n  name: x\n".into(), "line 2: match: got `a..b`"),
        (b"mappings:\n- match: 9a\n  name: x\n".into(), "line 2: match: got `9a`"),
        (b"mappings:\n- match: a*\n  name: x\n".into(), "line 2: match: got `a*`"),
        (b"mappings:\n- match: 'a('\n  match_type: regex\n  name: x\n".into(), "line 2: match: unclosed group"),
        (
            b"mappings:\n- match: '(\\w{999}){999}'\n  match_type: regex\n  name: x\n".into(),
            "line 2: match: Compiled regex exceeds size limit",
        ),
        (rule("match_type: globb"), "line 4: unknown variant `globb`"),
        (rule("match_metric_type: set"), "line 4: unknown variant `set`"),
        (rule("observer_type: wrong"), "line 4: unknown variant `wrong`"),
        (rule("action: keep"), "line 4: unknown variant `keep`"),
        (rule("labels:\n    a-b: x"), "line 5: labels: got `a-b`"),
        (rule("labels:\n    ok: x\n    __name__: x"), "line 6: labels: got `__name__`"),
        (rule("labels: {cortex_overflow: x}"), "line 4: labels: got `cortex_overflow`"),
        (rule("ttl: 30"), "line 4: ttl: got `30`, want a duration like"),
        (rule("ttl: 1d"), "line 4: ttl: got `1d`"),
        (rule("ttl: -5s"), "line 4: ttl: got `-5s`"),
        (rule("ttl: 1h30"), "line 4: ttl: got `1h30`"),
        (rule("ttl: 300000000h"), "line 4: ttl: got"),
        (b"defaults:\n  ttl: soon\n".into(), "line 2: ttl: got `soon`"),
        (rule("scale: much"), "line 4: invalid floating point"),
        (rule("scale: .inf"), "line 4: scale: got inf"),
        (rule("honor_labels: perhaps"), "line 4: "),
        (rule("histogram_options: {buckets: [1, 1]}"), "line 4: buckets: want bounds that grow"),
        (rule("buckets: [1, .nan]"), "line 4: buckets: want bounds that grow"),
        (rule("summary_options:\n    quantiles:\n    - {quantile: 99}"), "line 6: quantiles: want numbers from 0 to 1"),
        (rule("summary_options: {max_age: 5}"), "line 4: max_age: got `5`"),
        (
            rule("observer_type: histogram\n  summary_options: {max_age: 5m}"),
            "line 5: summary_options of a mapping whose observer_type is histogram",
        ),
        (
            rule("observer_type: summary\n  histogram_options: {buckets: [1]}"),
            "line 5: histogram_options of a mapping whose observer_type is summary",
        ),
        (
            b"defaults: {timer_type: histogram}\nmappings:\n- match: a\n  name: m\n  summary_options: {}\n".into(),
            "line 5: summary_options of",
        ),
    ];
    for (file, want) in cases {
        let text = String::from_utf8_lossy(&file).into_owned();
        let error = Mapping::parse(&file).map(drop).expect_err(&text).to_string();
        assert!(error.starts_with(want) && !error.contains('\n'), "{text}\n got {error}\nwant {want}");
    }
}

#[test]
fn a_pipe_is_no_mapping_file() {
    // Whoever reads one waits until somebody writes: the collector did not start, and on SIGHUP did not stop any more.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(Mapping::read(&path).unwrap_err().to_string().contains("this is no regular file"));
}

#[test]
fn a_file_has_bounds() {
    let many = |count| format!("mappings:\n{}", "- {match: a.*, name: m}\n".repeat(count));
    assert_eq!(Mapping::parse(many(10_000).as_bytes()).unwrap().len(), 10_000);
    let error = Mapping::parse(many(10_001).as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "line 10002: more than 10000 mappings");
    let large = format!("# {}\n", "x".repeat(10 << 20));
    assert_eq!(Mapping::parse(large.as_bytes()).unwrap_err().to_string(), "the file has more than 10485760 bytes");
    let long = format!("mappings:\n- match: {}!\n  name: m\n", "x".repeat(1000));
    assert!(Mapping::parse(long.as_bytes()).unwrap_err().to_string().len() < 320);
    let wide: String = (0..130_000).map(|i| format!("    l{i}: x\n")).collect();
    let error = Mapping::parse(format!("mappings:\n- match: a\n  labels:\n{wide}").as_bytes()).unwrap_err();
    assert!(error.to_string().contains(": more nodes, deeper"), "{error}");
    let deep = Mapping::parse("[".repeat(1 << 20).as_bytes()).unwrap_err();
    assert!(deep.to_string().starts_with("line 1: "), "{deep}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("large"), large).unwrap();
    assert!(matches!(Mapping::read(&folder.path().join("large")), Err(MappingError::TooLarge)));
    assert!(matches!(Mapping::read(&folder.path().join("none")), Err(MappingError::Io(_))));
    // Aliases of aliases: a file of a kilobyte that would be read for ever.
    let bomb: String = (1..30)
        .map(|i| format!("- &a{i} {{match: a, name: m, labels: {{l: x}}, <<: [*a{0}, *a{0}]}}\n", i - 1))
        .collect();
    let _ = Mapping::parse(format!("mappings:\n- &a0 {{match: a, name: m}}\n{bomb}").as_bytes());
}

fn intake(file: &str) -> Intake {
    let mapping = Mapping::parse(file.as_bytes()).unwrap();
    let registry = Registry::with_limits(Restored::default(), Limits::default()).with_mapping(mapping);
    Intake::new(registry, 0).with_gauge_minus(GaugeMinus::Delta)
}

/// What changed by a tick, as text and in the order of their places.
fn tick(intake: &Intake, names: &mut BTreeMap<u32, String>, timestamp_ms: i64) -> Vec<String> {
    let mut state = intake.lock();
    let IntakeState { registry, senders, .. } = &mut *state;
    registry.end_gauges(senders, timestamp_ms);
    drop(state);
    let mut tick = intake.take(timestamp_ms, timestamp_ms, timestamp_ms - 10, |_, _| None);
    intake.expire(&mut tick);
    names.extend(tick.started.iter().map(|started| (started.id.0, started.labels.to_string())));
    let text = |value: &Value| match value {
        value if value.is_stale() => "stale".to_owned(),
        Value::Float(value) => value.to_string(),
        Value::Histogram(h) => format!("count {} sum {}", h.count(), h.sum()),
    };
    tick.samples.iter().map(|(id, value)| format!("{} {}", names[&id.0], text(value))).collect()
}

#[test]
fn scale_multiplies_all_values_timers_after_they_are_seconds() {
    let intake = intake(
        "mappings:\n- {match: c, name: c_bytes, scale: 1024}\n- {match: g, name: g, scale: 0.5}\n- {match: t, name: t, scale: 1000}\n- {match: h, name: h, scale: 0.25}\n- {match: back, name: back, scale: -1}\n- {match: big, name: big, scale: 1e308}\n",
    );
    for _ in 0..2 {
        intake.datagram(
            b"c:2|c|@0.5\ng:8|g\ng:+2|g\ng:-1|g\nt:3|ms\nh:4:8|h\nback:-3|c\nback:3|c\nbig:10|c\nbig:10|h\nbig:10|g",
            0,
        );
    }
    let got = tick(&intake, &mut BTreeMap::default(), 10);
    assert_eq!(got, ["c_bytes 8192", "g 4.5", "t count 2 sum 6", "h count 4 sum 6", "back 6"]);
    let dropped: Vec<_> = intake.lock().totals.dropped.iter().map(|(reason, d)| (*reason, d.count)).collect();
    assert_eq!(dropped, [("negative_counter", 2), ("total_not_finite", 6)]);
}

#[test]
fn what_is_dropped_is_counted_by_a_reason_of_its_own_and_begins_nothing() {
    let intake = intake(
        "mappings:\n- {match: keep.*, name: kept, labels: {l: $1}}\n- {match: '.', match_type: regex, action: drop}\n",
    );
    intake.datagram(
        b"keep.x:1|c\nother:1|c|#a:1\nother:2|g\nother:2|g\nother:1|s\nother:-1|c\ncortex_api_requests_total:1|c",
        0,
    );
    let got = tick(&intake, &mut BTreeMap::default(), 10);
    assert_eq!(got, [r#"kept{l="x"} 1"#, "cortex_api_requests_total 1"]);
    let state = intake.lock();
    assert_eq!(state.totals.dropped["mapped_drop"].count, 5);
    assert_eq!(state.totals.dropped["mapped_drop"].example, "other:1|c|#a:1");
    assert_eq!(state.totals.dropped.len(), 1);
    drop(state);
    let nameless = self::intake("mappings:\n- {match: a.*, name: $2}\n");
    nameless.datagram(b"a.b:1|c\na.b:1|c", 0);
    assert_eq!(nameless.lock().totals.dropped["mapped_to_nothing"].count, 2);
}

#[test]
fn a_name_that_a_mapping_makes_has_one_type_and_may_not_be_the_collectors_own() {
    let intake = intake(
        "mappings:\n- {match: a.*, name: one}\n- {match: own.*, name: cortex_collector_x}\n- {match: 'l\\.(.*)', match_type: regex, name: $1$1}\n",
    );
    let long = "n".repeat(1000);
    intake.datagram(format!("a.c:1|c\na.g:1|g\nown.x:1|c\nl.{long}:1|c").as_bytes(), 0);
    assert_eq!(tick(&intake, &mut BTreeMap::default(), 10), ["one 1"]);
    let dropped: Vec<_> = intake.lock().totals.dropped.iter().map(|(reason, d)| (*reason, d.count)).collect();
    assert_eq!(dropped, [("reserved_name", 1), ("too_long", 1), ("type_conflict", 1)]);
}

#[test]
fn series_leave_after_the_ttl_of_their_mapping() {
    let intake = intake(
        "defaults: {ttl: 1m}\nmappings:\n- {match: short.*, name: 'short_$1', ttl: 20s}\n- {match: 'x\\.', match_type: regex, name: x, ttl: 0}\n",
    );
    let mut names = BTreeMap::default();
    let header = b"cortex_client_payload_sequence:1|g|#client_id:00000000000000ff\nshort.live:1|g";
    intake.datagram(b"short.c:1|c\nshort.g:1|g\nshort.h:1|h\nshort.s:a|s\nunmapped:1|g\nx.y:1|c", 0);
    intake.datagram(header, 0);
    assert_eq!(tick(&intake, &mut names, 10_000).len(), 7);
    intake.datagram(b"short.c:1|c", 0);
    let alive = b"cortex_client_payload_sequence:2|g|#client_id:00000000000000ff";
    intake.datagram(alive, 30_000);
    assert_eq!(tick(&intake, &mut names, 30_000), ["short_s 0", "short_c 2"], "the set counts anew");
    // Whether the sender lives or not: what it does not set ends.
    assert_eq!(tick(&intake, &mut names, 30_001), ["short_g stale", "short_live stale", "short_h stale"]);
    assert_eq!(tick(&intake, &mut names, 50_001), ["short_s stale", "short_c stale"]);
    assert_eq!(tick(&intake, &mut names, 70_000), [""; 0]);
    assert_eq!(tick(&intake, &mut names, 70_001), ["unmapped stale", "x stale"], "a ttl of 0 is that of the defaults");
    intake.datagram(b"short.g:+5|g", 0);
    assert_eq!(tick(&intake, &mut names, 80_000), ["short_g 5"], "it comes back as a new one");
    tick(&intake, &mut names, 10_000_000);
    tick(&intake, &mut names, 20_000_000);
    assert_eq!(intake.lock().registry.len(), 0, "nothing stays");
}

#[test]
fn series_of_before_a_restart_have_the_ttl_of_their_name() {
    let series = |id, name: &str| RestoredSeries {
        id: crate::model::SeriesId(id),
        labels: Labels::from_pairs([(METRIC_NAME, name)]),
        kind: crate::model::MetricKind::Gauge,
        value: Value::Float(1.0),
        last_ms: 1,
        writer: String::new(),
        start_ms: 0,
    };
    let restored = Restored {
        last_tick_ms: Some(1000),
        next_id: 9,
        series: vec![series(1, "named"), series(2, "other"), series(3, "made_x"), series(4, "cortex_api_info")],
    };
    let mapping = "defaults: {ttl: 20s}\nmappings:\n- {match: n.*, name: named, ttl: 5s}\n- {match: m.*, name: 'made_$1', ttl: 5s}\n";
    let registry = Registry::new(restored).with_mapping(Mapping::parse(mapping.as_bytes()).unwrap());
    let intake = Intake::new(registry, 1000);
    let mut names = [(1, "named".to_owned()), (2, "other".to_owned()), (3, "made_x".to_owned())].into();
    assert_eq!(tick(&intake, &mut names, 6001), ["named stale"]);
    // Nobody knows which mapping made a name out of parts.
    assert_eq!(tick(&intake, &mut names, 21_001), ["other stale", "made_x stale"]);
    assert_eq!(tick(&intake, &mut names, 600_000), [""; 0], "our own names are not mapped");
}

#[test]
fn other_rules_take_effect_at_once_and_what_was_gathered_stays() {
    let intake = intake("mappings:\n- {match: a.*, name: before, labels: {l: $1}}\n- {match: d, action: drop}\n");
    let mut names = BTreeMap::default();
    let lines = b"a.x:1|c\na.x:1|c\nb:1|c\nd:1|c";
    intake.datagram(lines, 0);
    intake
        .set_mapping(Mapping::parse(b"mappings:\n- {match: a.*, name: after}\n- {match: b, action: drop}\n").unwrap());
    intake.datagram(lines, 0);
    assert_eq!(tick(&intake, &mut names, 10), [r#"before{l="x"} 2"#, "b 1", "after 2", "d 1"]);
    assert_eq!(intake.lock().totals.dropped["mapped_drop"].count, 2);
}

#[test]
fn names_made_of_data_are_not_remembered_for_ever() {
    let mut mapping = Mapping::parse(b"mappings:\n- {match: a.*, name: m, labels: {l: $1}}\n").unwrap();
    for i in 0..10_000 {
        assert!(matches!(mapping.find(format!("a.{i}").as_bytes(), MetricType::Counter), Found::Mapped(_)));
        assert!(mapping.find(format!("{i}").as_bytes(), MetricType::Gauge) == Found::Unmapped { ttl_ms: None });
    }
    assert!(mapping.remembered.iter().all(|names| names.len() <= 4096));
}

/// Pieces that make files which nearly are ones.
fn pieces() -> impl Strategy<Value = String> {
    let words = [
        "mappings:\n",
        "- ",
        "  ",
        "match: ",
        "a.*\n",
        "name: ",
        "m\n",
        "$1",
        "${",
        "}",
        "labels: {",
        "a: x",
        "}\n",
        ", ",
        "'",
        "\"",
        "\\",
        "ttl: ",
        "1h",
        "0\n",
        "match_type: regex\n",
        "(",
        ")",
        "[",
        "]",
        "*",
        "&a ",
        "*a\n",
        "<<: ",
        "|\n",
        ">\n",
        "? ",
        "!!",
        "%",
        "#",
        "\t",
        "---\n",
        "defaults:\n",
        "quantiles:\n",
        "buckets: [",
        "1, ",
        "é",
        "\u{feff}",
        "scale: ",
        "1e999\n",
        "action: drop\n",
        "\n",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn property_test_no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Mapping::parse(&bytes);
    }

    #[test]
    fn property_test_what_is_nearly_a_file_does_not_panic(file in pieces(), name in "[a.x-]{1,9}") {
        if let Ok(mut mapping) = Mapping::parse(file.as_bytes()) {
            let _ = mapping.find(name.as_bytes(), MetricType::Observer);
        }
    }

    /// Any name at all comes to a valid one.
    #[test]
    fn property_test_names_are_valid(name in prop::collection::vec(any::<u8>(), 1..40)) {
        let file = b"mappings:\n- {match: '(?s)(.*)', match_type: regex, name: $1}\n";
        let Found::Mapped(mapped) = Mapping::parse(file).unwrap().find(&name, MetricType::Gauge) else { panic!() };
        prop_assert!(mapped.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        prop_assert!(!mapped.name.starts_with(|c: char| c.is_ascii_digit()));
    }

    /// Globs in order, by a plain reading of the rules: the first whose parts fit.
    #[test]
    fn property_test_the_first_glob_that_fits_wins(
        globs in prop::collection::vec("[ab*](\\.[ab*]){0,3}", 1..8),
        name in "[ab](\\.[ab]){0,3}",
        is_unordered: bool,
    ) {
        let rules: String = globs.iter().enumerate().map(|(i, glob)| format!("- {{match: '{glob}', name: 'n{i}'}}\n")).collect();
        let file = format!("defaults: {{glob_disable_ordering: {is_unordered}}}\nmappings:\n{rules}");
        let parts: Vec<&str> = name.split('.').collect();
        let fits = |glob: &str| {
            let wanted: Vec<&str> = glob.split('.').collect();
            wanted.len() == parts.len() && wanted.iter().zip(&parts).all(|(w, p)| *w == "*" || w == p)
        };
        let mut fitting: Vec<usize> = (0..globs.len()).filter(|i| fits(&globs[*i])).collect();
        if is_unordered {
            // `*` after all letters, from left to right.
            fitting.sort_by_key(|i| globs[*i].replace('*', "~"));
        }
        let want = fitting.first().map_or_else(|| name.replace('.', "_"), |i| format!("n{i}"));
        prop_assert_eq!(mapped(&file, &format!("{name}:1|c")), want);
    }
}
