//! What a scrape of 99,000 counter series takes: the collector beside `statsd_exporter`, where that is there.
//!
//! `make bench-exposition` runs it. Each subject gets the same datagrams, then is asked for `/metrics` again and again: as
//! text, as text with gzip, as protobuf. Reported are the median time from the request to the last byte, the processor time
//! of the subject by the scheduler's account, what came over the wire, and the memory of the process before the first scrape,
//! after the last, and at its highest. A thousand series fewer than the collector's limit, so that its own find room.
//! `STATSD_EXPORTER=path` adds that one; without it, it is looked for on the `PATH`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(target_os = "linux")]
mod peers;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("this measures with /proc: Linux only");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpStream, UdpSocket};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    const SERIES: usize = 99_000;
    const NAMES: usize = 20;
    const PAYLOAD_BYTES: usize = 1_432;

    const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    /// What is asked for, and the headers that ask.
    const FORMATS: [(&str, &str, &str); 4] = [
        ("text", "text/plain", "identity"),
        ("text, gzip", "text/plain", "gzip"),
        ("protobuf", PROTOBUF, "identity"),
        ("protobuf, gzip", PROTOBUF, "gzip"),
    ];

    struct Subject {
        name: &'static str,
        child: Child,
        udp: u16,
        http: u16,
        _folder: tempfile::TempDir,
    }

    impl Drop for Subject {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn free_port() -> u16 {
        UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn start(name: &'static str) -> Option<Subject> {
        let (udp, http) = (free_port(), free_port());
        let folder = tempfile::tempdir().unwrap();
        let mut command = if name == "cortex-collector" {
            let mut command = Command::new(env!("CARGO_BIN_EXE_cortex-collector"));
            command.arg("--listen-udp").arg(format!("127.0.0.1:{udp}"));
            command.arg("--listen-http").arg(format!("127.0.0.1:{http}")).arg("--data-dir").arg(folder.path());
            command
        } else {
            let mut command = Command::new(crate::peers::statsd_exporter()?);
            command.args([format!("--statsd.listen-udp=127.0.0.1:{udp}"), "--statsd.listen-tcp=".into()]);
            command.args([format!("--web.listen-address=127.0.0.1:{http}"), "--statsd.read-buffer=8388608".into()]);
            command
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let subject = Subject { name, child, udp, http, _folder: folder };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", http)).is_err() {
            assert!(Instant::now() < until, "{name} does not answer");
            thread::sleep(Duration::from_millis(20));
        }
        Some(subject)
    }

    /// One increment of each of these series, in full datagrams, no faster than any subject takes them.
    fn send(port: u16, series: impl Iterator<Item = usize>) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let send = |payload: &str| {
            socket.send_to(payload.as_bytes(), ("127.0.0.1", port)).unwrap();
            thread::sleep(Duration::from_micros(500));
        };
        let mut payload = String::new();
        for at in series {
            let line = format!("requests_{}_total:1|c|#model:v{},zone:eu-1\n", at % NAMES, at / NAMES);
            if payload.len() + line.len() > PAYLOAD_BYTES {
                send(&payload);
                payload.clear();
            }
            payload += &line;
        }
        send(&payload);
    }

    impl Subject {
        /// `/metrics` as it comes, without the head; and how long it took.
        fn scrape(&self, accept: &str, encoding: &str) -> (Vec<u8>, Duration) {
            let start = Instant::now();
            let mut stream = TcpStream::connect(("127.0.0.1", self.http)).unwrap();
            write!(
                stream,
                // A 1.1 answer may come in chunks, whose heads are between the lines or in them.
                "GET /metrics HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\nAccept-Encoding: {encoding}\r\n\r\n"
            )
            .unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let took = start.elapsed();
            let head = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
            assert!(head.split(' ').nth(1) == Some("200"), "{head}");
            let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            (answer.split_off(head), took)
        }

        /// How many of the series it has.
        fn series(&self) -> usize {
            let (text, _) = self.scrape("text/plain", "identity");
            let lines = text.split(|byte| *byte == b'\n');
            lines.filter(|line| line.starts_with(b"requests_")).count()
        }

        /// Seconds that its threads have run.
        fn cpu_seconds(&self) -> f64 {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            let nanoseconds: u64 = tasks
                .filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
                .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
                .sum();
            nanoseconds as f64 / 1e9
        }

        fn memory_mib(&self, what: &str) -> f64 {
            let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
            let line = status.lines().find(|line| line.starts_with(what)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        }
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    pub(super) fn main() {
        let is_quick = std::env::args().any(|argument| argument == "quick" || argument == "--test");
        let rounds = if is_quick { 3 } else { 15 };
        println!("{SERIES} counter series; median of {rounds}\n");
        println!("  {:<18}{:<16}{:>12}{:>12}{:>12}", "", "", "ms", "CPU ms", "MiB sent");
        for name in ["cortex-collector", "statsd_exporter"] {
            let Some(subject) = start(name) else {
                println!("  {name:<18}is not on this machine: STATSD_EXPORTER=path says where");
                continue;
            };
            send(subject.udp, 0..SERIES);
            // A tick of the collector, and what the subject still has to read.
            thread::sleep(Duration::from_secs(13));
            let before = subject.memory_mib("VmRSS");
            let series = subject.series();
            assert_eq!(series, SERIES, "{name} lost some: is the machine busy?");
            for (format, accept, encoding) in FORMATS {
                let (mut times, mut cpu, mut bytes) = (Vec::new(), Vec::new(), 0);
                for _ in 0..rounds {
                    let cpu_before = subject.cpu_seconds();
                    let (body, took) = subject.scrape(accept, encoding);
                    times.push(took.as_secs_f64() * 1e3);
                    cpu.push((subject.cpu_seconds() - cpu_before) * 1e3);
                    bytes = body.len();
                }
                let (time, cpu, mib) = (median(times), median(cpu), bytes as f64 / f64::from(1 << 20));
                println!("  {:<18}{format:<16}{time:>12.1}{cpu:>12.1}{mib:>12.2}", subject.name);
            }
            // With ticks in between, in which every series changes.
            send(subject.udp, 0..SERIES);
            thread::sleep(Duration::from_secs(12));
            subject.scrape("text/plain", "identity");
            let (after, highest) = (subject.memory_mib("VmRSS"), subject.memory_mib("VmHWM"));
            println!(
                "  {:<18}memory: {before:.1} MiB before the first scrape, {after:.1} after the last and a change of every \
                 series, {highest:.1} at the highest\n",
                subject.name
            );
        }
    }
}
