//! The program `cortex` as a user runs it, against a query API that speaks real HTTP with canned answers.
#![cfg(feature = "collector")]
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Serves `answer(path, query)` (a status line and a body) until the test ends, and says where.
fn serve(answer: impl Fn(&str, &str) -> (&'static str, String) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that hangs up early is the client's affair.
            let _ = stream.and_then(|stream| answer_one(stream, &answer));
        }
    });
    address
}

fn answer_one(mut stream: TcpStream, answer: &impl Fn(&str, &str) -> (&'static str, String)) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once("?query=").unwrap_or((target, ""));
    let (status, body) = answer(path, &percent_decoded(query));
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |digit: Option<u8>| char::from(digit.unwrap()).to_digit(16).unwrap() as u8;
        bytes.push(match byte {
            b'%' => hex(rest.next()) * 16 + hex(rest.next()),
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A Prometheus answer: a vector of these labels and values.
fn vector(elements: &[(Value, f64)]) -> (&'static str, String) {
    let element =
        |(metric, value): &(Value, f64)| json!({"metric": metric, "value": [now_seconds(), value.to_string()]});
    let result: Vec<Value> = elements.iter().map(element).collect();
    ("200 OK", json!({"status": "success", "data": {"resultType": "vector", "result": result}}).to_string())
}

/// A collector that knows the API `iris`: 1,223 good responses, 2 bad ones, 24 ms each, one replica of one for 17 minutes.
fn collector() -> SocketAddr {
    let iris = |mut labels: Value| {
        labels["api_name"] = json!("iris");
        labels
    };
    serve(move |path, query| {
        if path == "/api/v1/status/buildinfo" {
            return ("200 OK", json!({"status": "success", "data": {"revision": "cortex-metrics-0"}}).to_string());
        }
        assert_eq!(path, "/api/v1/query");
        if query.contains("api_name=\"") && !query.contains("api_name=\"iris\"") {
            return vector(&[]);
        }
        match query {
            q if q.contains("requests_total") => {
                vector(&[(iris(json!({"response_code": "200"})), 1223.0), (iris(json!({"response_code": "500"})), 2.0)])
            }
            q if q.contains("duration_seconds_sum") => vector(&[(iris(json!({})), 29.4)]),
            q if q.contains("duration_seconds_count") => vector(&[(iris(json!({})), 1225.0)]),
            q if q.contains("replica_start") => {
                vector(&[(iris(json!({"api_id": "v1", "replica": "r0"})), now_seconds() - 1030.0)])
            }
            q if q.contains("replicas_requested") => vector(&[(iris(json!({"api_id": "v1"})), 1.0)]),
            q if q.contains("cortex_api_info") => {
                vector(&[(iris(json!({"api_id": "v1", "endpoint": "http://10.0.0.7:8000"})), 1.0)])
            }
            q if q.contains("client_calls_total") => vector(&[(json!({}), 41.0)]),
            q if q.contains("client_dropped_total") => vector(&[(json!({"reason": "table_full"}), 3.0)]),
            q if q.contains("__name__!~") => vector(&[
                (iris(json!({"__name__": "my_counter", "model": "v1\u{1b}[31m"})), 40.0),
                (iris(json!({"__name__": "accuracy"})), 0.25),
            ]),
            _ => vector(&[]),
        }
    })
}

/// What the program printed and how it ended.
struct Ran {
    out: String,
    err: String,
    code: Option<i32>,
}

/// A user with a configuration directory of their own.
struct User(TempDir);

impl User {
    /// Whose environments are these; `local` is one of them, so that no real collector is asked.
    fn with(environments: &[(&str, SocketAddr)]) -> Self {
        let user = Self(tempfile::tempdir().unwrap());
        for (name, address) in environments {
            let added = user.run(&["env", "add", name, &format!("http://{address}")]);
            assert_eq!((added.code, added.err.as_str()), (Some(0), ""));
        }
        user
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cortex"));
        command.args(args).env("CORTEX_CONFIG_DIR", self.0.path()).env("http_proxy", "http://127.0.0.1:1");
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { out: text(output.stdout), err: text(output.stderr), code: output.status.code() }
    }
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn get_prints_the_table_and_names_who_did_not_answer() {
    let user = User::with(&[("local", collector()), ("prod", nobody())]);
    let ran = user.run(&["get"]);
    let want = "\
env     api    status   up-to-date   requested   last update   avg request   2XX    5XX
local   iris   live     1            1           17m           24ms          1223   2
";
    assert_eq!(ran.out, want);
    assert!(ran.err.starts_with("cortex: env prod does not answer: http://127.0.0.1:"), "{}", ran.err);
    assert!(ran.err.ends_with("`cortex env list` shows its URL\n"), "{}", ran.err);
    assert_eq!((ran.err.lines().count(), ran.code), (1, Some(0)));
}

#[test]
fn get_fails_only_if_nobody_answered() {
    let ran = User::with(&[("local", nobody())]).run(&["get"]);
    assert_eq!((ran.out.as_str(), ran.code), ("", Some(1)));
    let empty = User::with(&[("local", serve(|_, _| vector(&[])))]).run(&["get"]);
    assert_eq!((empty.out.as_str(), empty.code), ("", Some(0)));
    assert!(empty.err.starts_with("no APIs yet"), "{}", empty.err);
}

#[test]
fn who_does_not_answer_is_asked_once() {
    // Twice, it took twice the time limit.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let user = User::with(&[("local", listener.local_addr().unwrap())]);
    let counting = std::thread::spawn(move || {
        let mut asked = 0;
        // Each is hung up on; the last comes from the test.
        for stream in listener.incoming() {
            let mut byte = [0];
            if std::io::Read::read(&mut stream.unwrap(), &mut byte).unwrap() == 0 {
                return asked;
            }
            asked += 1;
        }
        asked
    });
    let ran = user.run(&["get"]);
    assert_eq!((ran.code, ran.err.lines().count()), (Some(1), 1), "{}", ran.err);
    let url = user.run(&["env", "list"]).out.lines().nth(1).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    drop(TcpStream::connect(url.trim_start_matches("http://")).unwrap());
    assert_eq!(counting.join().unwrap(), 1);
}

#[test]
fn an_environment_that_fails_halfway_does_not_hide_the_others() {
    let rows_alone = || {
        serve(|_, query| match query {
            q if q.contains("client_calls_total") => ("503 Service Unavailable", "gone".to_owned()),
            q if q.contains("replica_start") => vector(&[(json!({"api_name": "iris"}), 1.0)]),
            _ => vector(&[]),
        })
    };
    let ran = User::with(&[("local", collector()), ("prod", rows_alone())]).run(&["get", "iris"]);
    assert!(ran.out.starts_with("status   up-to-date"), "{}", ran.out);
    assert!(ran.err.starts_with("cortex: env prod does not answer: http://127.0.0.1:"), "{}", ran.err);
    assert_eq!((ran.err.lines().count(), ran.code), (1, Some(0)), "{}", ran.err);
    let ran = User::with(&[("local", rows_alone())]).run(&["get", "iris"]);
    assert_eq!((ran.out.as_str(), ran.err.lines().count(), ran.code), ("", 1, Some(1)), "{}", ran.err);
}

#[test]
fn the_window_is_the_one_asked_for_and_counts_that_may_go_back_are_asked_otherwise() {
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = asked.clone();
    // A Prometheus: it says nothing of a collector.
    let prometheus = serve(move |path, query| {
        seen.lock().unwrap().push(format!("{path} {query}"));
        vector(&[])
    });
    let user = User::with(&[("local", prometheus)]);
    assert_eq!(user.run(&["get", "--since", "1h30m"]).code, Some(0));
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    let requests = "/api/v1/query sum by (api_name, response_code) ((increase(cortex_api_requests_total[1h30m]) and \
                    resets(cortex_api_requests_total[1h30m]) > 0) or ";
    assert!(asked.iter().any(|query| query.starts_with(requests)), "{asked:#?}");
    assert!(asked.iter().all(|query| !query.contains("14d")), "{asked:#?}");
    for bad in ["", "0s", "1", "x"] {
        assert_eq!(user.run(&["get", "--since", bad]).code, Some(2), "{bad:?}");
    }
}

#[test]
fn csv_has_numbers_without_units() {
    let user = User::with(&[("local", collector())]);
    for args in [&["get", "-o", "csv"][..], &["get", "iris", "-o", "csv"]] {
        let ran = user.run(args);
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!(
            lines[0],
            "env,api,status,up_to_date,stale,requested,last_update_seconds,avg_request_seconds,responses_2xx,responses_4xx,\
             responses_5xx,endpoint"
        );
        let cells: Vec<&str> = lines[1].split(',').collect();
        assert_eq!(cells[..6], ["local", "iris", "live", "1", "0", "1"]);
        assert!((1029.0..1040.0).contains(&cells[6].parse::<f64>().unwrap()), "{}", cells[6]);
        assert_eq!(cells[7..], ["0.024", "1223", "0", "2", "http://10.0.0.7:8000"]);
    }
}

#[test]
fn watching_draws_again_and_what_is_no_table_is_refused() {
    let user = User::with(&[("local", collector())]);
    let refused = user.run(&["get", "--watch", "-o", "json"]);
    assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""));
    let mut watching = user.command(&["get", "-w"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map(Result::unwrap);
    // Not a terminal: one table after the other, without codes for one.
    let drawn: Vec<String> = lines.by_ref().take(5).collect();
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert!(drawn[0].starts_with("env     api    status"), "{drawn:?}");
    assert_eq!((drawn[2].as_str(), &drawn[..2]), ("", &drawn[3..]));
}

#[test]
fn a_name_of_metrics_alone_has_its_account_and_metrics() {
    let task = serve(|path, query| match query {
        _ if path.ends_with("buildinfo") => ("404 Not Found", String::new()),
        q if q.contains("client_calls_total") => vector(&[(json!({}), 7.0)]),
        q if q.contains("__name__!~") => vector(&[(json!({"__name__": "trained", "api_name": "task"}), 7.0)]),
        _ => vector(&[]),
    });
    let ran = User::with(&[("local", task)]).run(&["get", "task"]);
    assert_eq!(ran.code, Some(0));
    assert!(
        ran.out.starts_with("no requests: it has metrics of its own alone\n\naccount of loss: 7 calls"),
        "{}",
        ran.out
    );
    assert!(ran.out.ends_with("metric    tags   value\ntrained   -      7\n"), "{}", ran.out);
}

#[test]
fn get_one_api_prints_its_page() {
    let user = User::with(&[("local", collector())]);
    let ran = user.run(&["get", "iris"]);
    let url = user.run(&["env", "list"]).out.lines().nth(1).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let want = format!(
        "\
status   up-to-date   requested   last update   avg request   2XX    5XX
live     1            1           17m           24ms          1223   2

metrics dashboard: {url}/#/api/iris
endpoint: http://10.0.0.7:8000
account of loss: 41 calls reported, 3 (3 table_full) dropped by the client; collector: 0 payloads missing, 0 kernel drops, 0 messages refused

metric       tags                 value
accuracy     -                    0.25
my_counter   model=v1\\u{{1b}}[31m   40
"
    );
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.code), (want.as_str(), "", Some(0)));
}

#[test]
fn get_one_api_from_several_environments_tells_them_apart() {
    let user = User::with(&[("local", collector())]);
    let url = format!("http://{}/", collector());
    let grafana = "https://grafana/d/apis?orgId=1";
    assert_eq!(user.run(&["env", "add", "prod", &url, "--dashboard-url", grafana]).code, Some(0));
    let ran = user.run(&["get", "iris"]);
    assert!(ran.out.starts_with("env local\nstatus   "), "{}", ran.out);
    assert!(ran.out.contains("\n\nenv prod\nstatus   "), "{}", ran.out);
    assert!(ran.out.contains("dashboard: https://grafana/d/apis?orgId=1&var-api_name=iris\n"), "{}", ran.out);
    assert!(user.run(&["get", "iris", "-e", "prod"]).out.starts_with("status   "));
}

#[test]
fn an_api_that_is_not_there_is_answered_with_the_nearest() {
    let ran = User::with(&[("local", collector())]).run(&["get", "irs\x1b\"} or vector(1)"]);
    assert_eq!((ran.out.as_str(), ran.code), ("", Some(1)));
    assert!(ran.err.contains("not found in env local"), "{}", ran.err);
    assert!(!ran.err.contains('\x1b'), "a name cannot move the cursor: {}", ran.err);
    let ran = User::with(&[("local", collector())]).run(&["get", "irsi"]);
    assert_eq!(ran.err, "cortex: API \"irsi\" not found in env local; did you mean \"iris\"?\n");
}

#[test]
fn json_is_what_the_documentation_says() {
    let user = User::with(&[("local", collector()), ("prod", nobody())]);
    let row: Value = serde_json::from_str(&user.run(&["get", "-o", "json"]).out).unwrap();
    assert_eq!(row[0]["last_update_seconds"].as_f64().unwrap().div_euclid(60.0), 17.0);
    assert_eq!((&row[0]["env"], &row[0]["api"]), (&json!("local"), &json!("iris")));
    assert_eq!(row[0]["responses"], json!({"200": 1223, "500": 2}));
    let one: Value = serde_json::from_str(&user.run(&["get", "iris", "-e", "local", "-o", "json"]).out).unwrap();
    assert_eq!((&one[0]["endpoint"], &one[0]["status"]), (&json!("http://10.0.0.7:8000"), &json!("live")));
    assert_eq!(one[0]["account"]["dropped"], json!({"table_full": 3}));
    assert_eq!(one[0]["metrics"][0], json!({"metric": "accuracy", "tags": {}, "value": 0.25, "mean": null}));
}

#[test]
fn answers_that_make_no_sense_are_told_and_not_believed() {
    let bad = |status: &'static str, body: &'static str| {
        let ran = User::with(&[("local", serve(move |_, _| (status, body.to_owned())))]).run(&["get"]);
        assert_eq!((ran.out.as_str(), ran.code, ran.err.lines().count()), ("", Some(1), 1), "{}", ran.err);
        assert!(!ran.err.contains('\x1b'), "{}", ran.err);
        ran.err
    };
    assert!(bad("502 Bad Gateway", "<html>\x1b[2J</html>").contains("502 Bad Gateway"));
    assert!(bad("200 OK", "<html></html>").contains("not Prometheus's JSON"));
    assert!(bad("200 OK", r#"{"status":"success"}"#).contains("success without data"));
    let refused = bad("422 Unprocessable Entity", "{\"status\":\"error\",\"error\":\"too many\\u001b[2J samples\"}");
    assert!(refused.contains("too many\\u{1b}[2J samples"), "{refused}");
}

#[test]
fn environments_are_listed_added_and_removed() {
    let user = User(tempfile::tempdir().unwrap());
    assert_eq!(
        user.run(&["env", "list"]).out,
        "env     url                     dashboard\nlocal   http://127.0.0.1:9102   -\n"
    );
    user.run(&["env", "add", "prod", "https://me:secret@mimir/prometheus/", "--dashboard-url", "https://grafana/d/x"]);
    let want = "\
env     url                        dashboard
local   http://127.0.0.1:9102      -
prod    https://mimir/prometheus   https://grafana/d/x
";
    assert_eq!(user.run(&["env", "list"]).out, want);
    assert_eq!(user.run(&["env", "remove", "prod"]).code, Some(0));
    let again = user.run(&["env", "remove", "prod"]);
    assert_eq!((again.code, again.out.as_str()), (Some(1), ""));
    let missing = user.run(&["get", "-e", "prod"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.err.contains("`cortex env add prod URL` adds it"), "{}", missing.err);
    for bad in [["a b", "http://x"], ["x", "ftp://x"], ["x", "http://"]] {
        assert_eq!(user.run(&["env", "add", bad[0], bad[1]]).code, Some(1), "{bad:?}");
    }
}
