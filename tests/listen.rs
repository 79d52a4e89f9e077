//! The program `cortex-collector` at all of its sockets: what is sent to them is in `/metrics` and in the account.
#![cfg(feature = "collector")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cortex_metrics::client::{Client, ClientConfig, Endpoint, Kind, TagText};
use serde_json::{Value, json};

struct Collector {
    child: Child,
    /// What it said of its sockets, in its order.
    places: Vec<String>,
    http: String,
}

impl Collector {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cortex-collector"))
            .args(["--listen-http", "127.0.0.1:0", "--interval", "1s", "--data-dir"])
            .arg(folder.join("data"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let (mut places, mut http) = (Vec::new(), String::new());
        // All that it says: it would not start if nobody read it.
        loop {
            let line = lines.next().unwrap();
            let (what, place) = line.split_once(':').unwrap();
            match what {
                "metrics in" => places.push(place.trim().to_owned()),
                "dashboard" => place.trim().trim_start_matches("http://").trim_end_matches('/').clone_into(&mut http),
                _ => break,
            }
        }
        Self { child, places, http }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// Waits until `/metrics` has these lines: a tick is made every second.
    fn has(&self, wanted: &[&str]) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let text = self.get("/metrics");
            if wanted.iter().all(|line| text.lines().any(|got| got == *line)) {
                return;
            }
            assert!(Instant::now() < until, "{wanted:?} are not in\n{text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn udp_addresses_and_a_unix_socket_feed_one_account() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.sock");
    let socket = path.to_str().unwrap();
    let mut collector = Collector::start(
        folder.path(),
        &[
            "--listen-udp",
            "127.0.0.1:0,127.0.0.1:0",
            "--listen-unix",
            socket,
            "--gauge-minus",
            "absolute",
            "--receive-buffer",
            "64KiB",
        ],
    );
    let [first, second, unix] = &collector.places[..] else { panic!("{:?}", collector.places) };
    assert_eq!(unix, &format!("unix://{socket}"));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for place in [first, second] {
        udp.send_to(b"hits:1|c|#from:udp\nbroken", place.trim_start_matches("udp://")).unwrap();
    }
    let raw = UnixDatagram::unbound().unwrap();
    raw.send_to(b"level:7|g\nlevel:-5|g\n_e{1,1}:a|b\nhits:1|c|#from:udp|new:field\nhits:1|q|#from:unix", &path)
        .unwrap();
    let flush_interval = Duration::from_secs(3600);
    let client = Client::<()>::new(ClientConfig {
        endpoint: Endpoint::Unix(path.clone()),
        flush_interval,
        ..ClientConfig::default()
    });
    client.record(Kind::Counter, "calls", &TagText::default(), 4.0).unwrap();
    assert!(client.flush(Duration::from_secs(5)));
    collector.has(&[
        "hits{from=\"udp\"} 3",
        "level -5",
        "calls 4",
        "cortex_collector_events_total 1",
        "cortex_collector_dropped_total{reason=\"no_name\"} 2",
        "cortex_collector_ignored_total{part=\"unknown_field\"} 1",
    ]);
    let status: Value = serde_json::from_str(&collector.get("/api/v1/status/ingest")).unwrap();
    let data = &status["data"];
    assert_eq!(
        data["dropped"],
        json!({
            "no_name": { "count": 2, "example": "broken" },
            "unknown_type": { "count": 1, "example": "hits:1|q|#from:unix" },
        })
    );
    assert_eq!(data["unknownFields"], json!({ "count": 1, "example": "new:field" }));
    assert_eq!((&data["datagrams"], &data["events"], &data["kernelDrops"]), (&json!(4), &json!(1), &json!(0)));
    let socket = |place: &str, datagrams: u64, bytes: Value| json!({ "socket": place, "datagrams": datagrams, "truncated": 0, "kernelDrops": 0, "receiveBufferBytes": bytes });
    assert_eq!(
        data["sockets"],
        json!([socket(first, 1, json!(65_536)), socket(second, 1, json!(65_536)), socket(unix, 2, Value::Null)])
    );

    // The longest datagram of UDP fits: none is cut off. (65,535 bytes less the headers of IP and UDP.)
    let longest = format!("long:1|c\n{}", "#".repeat(65_507 - 9));
    assert_eq!(udp.send_to(longest.as_bytes(), first.trim_start_matches("udp://")).unwrap(), 65_507);
    let too_long = udp.send_to(&vec![0; 65_508], first.trim_start_matches("udp://"));
    assert_eq!(too_long.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    // That of a Unix socket can be longer than any buffer.
    raw.send_to(format!("cut:1|c\n{}", "x".repeat(70_000)).as_bytes(), &path).unwrap();
    collector.has(&["long 1", "cut 1", "cortex_collector_dropped_total{reason=\"truncated\"} 1"]);
    let status: Value = serde_json::from_str(&collector.get("/api/v1/status/ingest")).unwrap();
    let truncated: Vec<_> = (0..3).map(|at| &status["data"]["sockets"][at]["truncated"]).collect();
    assert_eq!(truncated, [&json!(0), &json!(0), &json!(1)]);

    // A set is a gauge that falls back to 0 in the tick after.
    raw.send_to(b"visitors:ann|s\nvisitors:bob|s\nvisitors:ann|s", &path).unwrap();
    collector.has(&["# TYPE visitors gauge", "visitors 0"]);
    let most: Value = serde_json::from_str(&collector.get("/api/v1/query?query=max_over_time(visitors[10m])")).unwrap();
    assert_eq!(most["data"]["result"][0]["value"][1], "2", "{most}");

    let id = collector.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert!(collector.child.wait().unwrap().success());
    assert!(!path.exists(), "the socket goes with its collector");
}

#[test]
fn one_port_takes_both_families_and_a_name_stands_for_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let both = format!("127.0.0.1:{port}, [::]:{port}");
    let collector = Collector::start(folder.path(), &["--listen-udp", &both, "--listen-udp", "localhost:0"]);
    let [v4, v6, named] = &collector.places[..] else { panic!("{:?}", collector.places) };
    assert_eq!((v4, v6), (&format!("udp://127.0.0.1:{port}"), &format!("udp://[::]:{port}")));
    let send = |from: &str, to: &str| {
        UdpSocket::bind(from).unwrap().send_to(b"hits:1|c", to).unwrap();
    };
    send("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    send("[::1]:0", &format!("[::1]:{port}"));
    send("127.0.0.1:0", named.strip_prefix("udp://").unwrap());
    collector.has(&["hits 3"]);
    let status: Value = serde_json::from_str(&collector.get("/api/v1/status/ingest")).unwrap();
    let datagrams: Vec<_> = (0..3).map(|at| &status["data"]["sockets"][at]["datagrams"]).collect();
    assert_eq!(datagrams, [&json!(1); 3]);

    drop(collector);
    // An IPv4 address in the clothes of IPv6 is one. (Elsewhere than on Linux loopback has one address.)
    if cfg!(target_os = "linux") {
        let folder = tempfile::tempdir().unwrap();
        let mapped = format!("127.0.0.1:{port},[::ffff:127.0.0.2]:{port}");
        let collector = Collector::start(folder.path(), &["--listen-udp", &mapped]);
        send("127.0.0.1:0", &format!("127.0.0.2:{port}"));
        collector.has(&["hits 1"]);
    }

    // Alone it takes both.
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(folder.path(), &["--listen-udp", "[::]:0"]);
    let port = collector.places[0].rsplit_once(':').unwrap().1;
    send("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    send("[::1]:0", &format!("[::1]:{port}"));
    collector.has(&["hits 2"]);
}

#[test]
fn an_address_that_cannot_be_used_is_told_with_what_would_do() {
    for (address, wanted) in [
        (":9125", "0.0.0.0:9125"),
        ("9125", "127.0.0.1:9125"),
        ("localhost", "localhost:9125"),
        ("127.0.0.1:99999", "want an address and a port"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cortex-collector"));
        let output = command.args(["--listen-udp", address]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(wanted), "{address}: {text}");
    }
}
