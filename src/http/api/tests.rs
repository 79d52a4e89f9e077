//! The API over a real socket: bytes in, bytes out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use tokio::runtime::Runtime;

use super::*;
use crate::model::{ExponentialHistogram, Sample, Value};
use crate::promql::Limits;
use crate::store::{Select, SelectedSeries, Selection, StoreError};

/// `up{job="a"}` is 1 and then 2, `h` a histogram, at 0 s and 10 s.
struct Fixed;

impl Select for Fixed {
    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let sample = |timestamp_ms, value| Sample { timestamp_ms, value };
        let mut h = ExponentialHistogram::default();
        h.record(1.0, 2.0);
        let series = [
            SelectedSeries {
                labels: Labels::from_pairs([("__name__", "up"), ("job", "a")]),
                samples: vec![sample(0, Value::Float(1.0)), sample(10_000, Value::Float(2.0))],
            },
            SelectedSeries {
                labels: Labels::from_pairs([("__name__", "h")]),
                samples: vec![sample(0, Value::Histogram(Arc::new(h)))],
            },
        ];
        let matches = |s: &SelectedSeries| selection.matchers.iter().all(|m| m.matches(&s.labels));
        let part = |s: SelectedSeries| SelectedSeries { samples: selection.part.of_all(s.samples), ..s };
        series.into_iter().filter(matches).map(part).filter(|s| !s.samples.is_empty()).try_for_each(visit)
    }
}

/// Serves the API on a port of its own and sends it one request each; returns status and body.
fn ask(requests: &[String]) -> Vec<(u16, String)> {
    let (_runtime, address) = serve(Fixed);
    requests.iter().map(|request| exchange(address, request)).collect()
}

fn serve(select: impl Select + 'static) -> (Runtime, SocketAddr) {
    let runtime = Runtime::new().expect("a runtime");
    let engine = Arc::new(Engine::new(Arc::new(select), Limits::default()));
    let app = routes(engine, Clock::manual(15_000), Arc::default(), QUERIES_MAX);
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("an address");
    runtime.spawn(async move { axum::serve(listener, app).await });
    (runtime, address)
}

fn exchange(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("answered");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    (status, body.to_owned())
}

fn get_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

fn get_one(path: &str) -> (u16, String) {
    ask(&[get_request(path)]).remove(0)
}

fn post_one(path: &str, body: &str) -> (u16, String) {
    let head = "Host: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded";
    ask(&[format!("POST {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())]).remove(0)
}

#[test]
fn an_instant_query_answers_at_its_time_or_now() {
    let up = |time: &str, value: &str| {
        let result = format!(r#"[{{"metric":{{"__name__":"up","job":"a"}},"value":[{time},"{value}"]}}]"#);
        (200, format!(r#"{{"status":"success","data":{{"resultType":"vector","result":{result}}}}}"#))
    };
    assert_eq!(get_one("/api/v1/query?query=up"), up("15", "2"));
    assert_eq!(get_one("/api/v1/query?query=up&time=1.5"), up("1.500", "1"));
    assert_eq!(get_one("/api/v1/query?query=up&time=1970-01-01T00:00:12Z"), up("12", "2"));
    assert_eq!(post_one("/api/v1/query", "query=up%7Bjob%3D%22a%22%7D&time=11"), up("11", "2"));
    assert_eq!(post_one("/api/v1/query?time=11", "query=up"), up("11", "2"));
}

#[test]
fn a_range_query_answers_every_step() {
    let want = concat!(
        r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"job":"a"},"#,
        r#""values":[[0,"2"],[5,"2"],[10,"4"]]}]}}"#
    );
    let query = "query=up*2&start=0&end=10&step=5";
    assert_eq!(get_one(&format!("/api/v1/query_range?{query}")), (200, want.to_owned()));
    assert_eq!(post_one("/api/v1/query_range", query), (200, want.to_owned()));
}

#[test]
fn scalars_strings_and_histograms_have_their_own_forms() {
    let data = |kind: &str, result: &str| {
        (200, format!(r#"{{"status":"success","data":{{"resultType":"{kind}","result":{result}}}}}"#))
    };
    assert_eq!(get_one("/api/v1/query?query=1%2B1"), data("scalar", r#"[15,"2"]"#));
    assert_eq!(get_one("/api/v1/query?query=%22a%22"), data("string", r#"[15,"a"]"#));
    let h = r#"[{"metric":{"__name__":"h"},"histogram":[15,{"count":"2","sum":"2","buckets":[[0,"0.9785720620877001","1","2"]]}]}]"#;
    assert_eq!(get_one("/api/v1/query?query=h"), data("vector", h));
}

#[test]
fn errors_have_prometheus_kinds_and_codes() {
    let cases = [
        ("/api/v1/query?query=up%20%2B", 400, "bad_data", "invalid parameter \\\"query\\\": 1:5: parse error"),
        ("/api/v1/query", 400, "bad_data", "invalid parameter \\\"query\\\""),
        ("/api/v1/query?query=no(up)", 400, "bad_data", "unknown function with name"),
        ("/api/v1/query?query=up&time=soon", 400, "bad_data", "cannot parse \\\"soon\\\" to a valid timestamp"),
        ("/api/v1/query?query=up&limit=-1", 400, "bad_data", "\\\"limit\\\": limit must be non-negative"),
        ("/api/v1/query?query=up&limit=x", 400, "bad_data", "parsing \\\"x\\\": invalid syntax"),
        ("/api/v1/query?query=up&limit=99999999999999999999", 400, "bad_data", "value out of range"),
        ("/api/v1/query?query=up&timeout=0", 503, "timeout", "query timed out in"),
        ("/api/v1/query?query=up&lookback_delta=far", 400, "bad_data", "cannot parse \\\"far\\\" to a valid duration"),
        ("/api/v1/query?query=topk(NaN%2Ctime()%3Cbool%200%20or%20up)", 400, "bad_data", "set operator"),
        ("/api/v1/query?query=sum_over_time(vector(1)%5B100y%3A1ms%5D)", 422, "execution", "too many samples"),
        ("/api/v1/query_range?query=up&start=0&end=11001&step=1", 400, "bad_data", "11,000 points"),
        ("/api/v1/query_range?query=up&start=1&end=0&step=1", 400, "bad_data", "end timestamp must not be before"),
        ("/api/v1/query_range?query=up&start=0&end=1&step=0", 400, "bad_data", "zero or negative"),
        ("/api/v1/query_range?query=up&start=0&end=1", 400, "bad_data", "parameter \\\"step\\\""),
        ("/api/v1/query_range?query=up%5B5m%5D&start=0&end=1&step=1", 400, "bad_data", "range vector"),
        ("/api/v1/series", 400, "bad_data", "no match[] parameter provided"),
        ("/api/v1/series?match[]=1", 400, "bad_data", "invalid parameter \\\"match[]\\\": "),
        ("/api/v1/series?match[]={}", 400, "bad_data", "match[] must contain at least one non-empty matcher"),
        ("/api/v1/labels?match[]=1%2B", 400, "bad_data", "parse error"),
        ("/api/v1/label/%ff/values", 400, "bad_data", "invalid label name"),
        ("/api/v1/metadata?limit=x", 400, "bad_data", "limit must be a number"),
        ("/api/v1/query_exemplars?query=%2B", 400, "bad_data", "1:2: parse error"),
        ("/api/v1/query_exemplars?query=up&start=2&end=1", 400, "bad_data", "end timestamp must not be before"),
    ];
    let requests: Vec<String> = cases.iter().map(|(path, ..)| get_request(path)).collect();
    for ((path, status, kind, message), (got_status, body)) in cases.into_iter().zip(ask(&requests)) {
        assert_eq!(got_status, status, "{path}: {body}");
        assert!(body.starts_with(&format!(r#"{{"status":"error","errorType":"{kind}","error":""#)), "{path}: {body}");
        assert!(body.contains(message), "{path}: {body}");
    }
}

/// Gives the same series for as long as it is visited; says when it begins and when it ends.
struct Endless(std::sync::mpsc::SyncSender<()>);

impl Select for Endless {
    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.0.send(()).expect("somebody waits");
        let mut ended = Ok(());
        while ended.is_ok() {
            ended = Fixed.for_each(selection, visit);
        }
        self.0.send(()).expect("somebody waits");
        ended
    }

    fn labels(&self, selection: &Selection) -> Result<Vec<Labels>, StoreError> {
        Fixed.labels(selection)
    }
}

#[test]
fn a_query_ends_when_its_client_goes() {
    let (steps, step) = std::sync::mpsc::sync_channel(1);
    let wait = || step.recv_timeout(Duration::from_secs(60)).expect("long before the query's time is over");
    let (_runtime, address) = serve(Endless(steps));
    for path in ["/api/v1/query?query=count(rate(up[1m]))", "/api/v1/series?match[]=h_count"] {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.write_all(get_request(path).as_bytes()).expect("sent");
        wait();
        drop(stream);
        wait();
    }
}

#[test]
fn series_and_labels_can_be_browsed() {
    let data = |data: &str| (200, format!(r#"{{"status":"success","data":{data}}}"#));
    assert_eq!(
        get_one("/api/v1/series?match[]=up&match[]=h"),
        data(r#"[{"__name__":"h"},{"__name__":"up","job":"a"}]"#)
    );
    assert_eq!(get_one("/api/v1/series?match[]=h_sum"), data(r#"[{"__name__":"h_sum"}]"#));
    assert_eq!(get_one("/api/v1/labels"), data(r#"["__name__","job"]"#));
    assert_eq!(get_one("/api/v1/label/job/values"), data(r#"["a"]"#));
    assert_eq!(get_one("/api/v1/label/__name__/values?match[]=h"), data(r#"["h"]"#));
    let cut = r#"{"status":"success","data":["__name__"],"warnings":["results truncated due to limit"]}"#;
    assert_eq!(get_one("/api/v1/labels?limit=1"), (200, cut.to_owned()));
    assert_eq!(get_one("/api/v1/label/U__job/values"), data(r#"["a"]"#));
    assert_eq!(get_one("/api/v1/label/U__j_6F_b/values"), data(r#"["a"]"#));
    assert_eq!(
        get_one("/api/v1/series?match[]=up&start=-292273086-05-16T16:47:06Z&end=292277025-08-18T07:12:54.999999999Z").0,
        200
    );
}

#[test]
fn what_grafana_asks_of_a_prometheus_that_has_none_of_it_is_answered() {
    let data = |data: &str| (200, format!(r#"{{"status":"success","data":{data}}}"#));
    assert_eq!(get_one("/api/v1/query?query=1%2B1&time=4").0, 200, "save and test");
    assert!(get_one("/api/v1/status/buildinfo").1.contains(r#""version":"3.5.0","#));
    assert_eq!(get_one("/api/v1/query_exemplars?query=up&start=0&end=1"), data("[]"));
    assert_eq!(post_one("/api/v1/query_exemplars", "query=up"), data("[]"));
    assert_eq!(get_one("/api/v1/rules"), data(r#"{"groups":[]}"#));
    assert_eq!(get_one("/api/v1/alerts"), data(r#"{"alerts":[]}"#));
    assert_eq!(get_one("/api/v1/status/flags"), data("{}"));
    assert_eq!(get_one("/api/v1/metadata?limit=1&limit_per_metric=1&metric=up"), data("{}"));
}

#[test]
fn warnings_and_infos_come_with_the_answer() {
    let (status, body) = get_one("/api/v1/query?query=rate(up%5B1m%5D)");
    assert_eq!(status, 200);
    assert!(body.contains(r#","infos":["PromQL info: metric might not be a counter"#), "{body}");
    let (status, body) = get_one("/api/v1/query?query=quantile(2%2Cup)");
    assert_eq!(status, 200);
    assert!(body.contains(r#","warnings":["PromQL warning: quantile value should be between 0 and 1"#), "{body}");
}

#[test]
fn names_in_plain_ascii_are_unescaped_or_left_alone() {
    let cases = [
        ("U__job", Some("job")),
        ("U__http_2e_status__code", Some("http.status_code")),
        ("U___1F600_", Some("😀")),
        ("U__", Some("")),
        ("job", None),
        ("U__a_b", None),
        ("U__a_", None),
        ("U___zz_", None),
        ("U___110000_", None),
        ("U___0000061_", None),
        ("U___D800_", None),
        ("U___+61_", None),
    ];
    for (name, want) in cases {
        assert_eq!(unescape(name).as_deref(), want, "{name}");
    }
}

#[test]
fn what_the_fuzzer_begins_with_is_answered_as_prometheus_does() {
    // As in fuzz/fuzz_targets/http.rs.
    const ENDPOINTS: [&str; 8] =
        ["query", "query_range", "query_exemplars", "series", "labels", "label/l/values", "metadata", "rules"];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/http");
    let mut requests = Vec::new();
    for seed in std::fs::read_dir(folder).expect("seeds") {
        let seed = std::fs::read(seed.expect("a seed").path()).expect("read");
        let Some((endpoint, parameters)) = seed.split_first() else { continue };
        let plain = |byte: &u8| {
            if byte.is_ascii_graphic() && *byte != b'#' {
                char::from(*byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        };
        let parameters: String = parameters.iter().map(plain).collect();
        requests.push(get_request(&format!(
            "/api/v1/{}?{parameters}",
            ENDPOINTS[usize::from(*endpoint) % ENDPOINTS.len()]
        )));
    }
    assert!(requests.len() > 50);
    for ((status, body), request) in ask(&requests).into_iter().zip(&requests) {
        assert!([200, 400, 422, 503].contains(&status), "{request}: {status} {body}");
        let json: serde_json::Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{request}: {error}"));
        assert_eq!(json["status"], if status == 200 { "success" } else { "error" }, "{request}");
    }
}
