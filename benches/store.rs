//! What two weeks on disk take, beside Prometheus with the same samples, where that is there.
//!
//! `make bench-store` runs all of it; `cargo bench --bench store -- disk queries` a part: `disk`, `append`, `start`, `get`, `queries`. With
//! `quick` everything is smaller. The workload is made up, from a fixed seed, after what the project's demo records: for each
//! API the series that `cortex-serve` sends, with a day's rhythm of requests, and a few of the predictor's own. Prometheus
//! gets one sample of every series at every tick by remote write, as if it had scraped.
//!
//! `make DIR` only writes two weeks of 100 APIs to a data directory, for whoever wants to look at them (`make bench-dashboard`).

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cortex_metrics::model::{ExponentialHistogram, Labels, METRIC_NAME, MetricKind, SeriesId, Value};
use cortex_metrics::store::{StartedSeries, Store, Tick};
use prost::Message as _;

const TICK_MS: i64 = 10_000;
const DAY_MS: i64 = 86_400_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [what, folder] = args.as_slice()
        && what == "make"
    {
        fs::create_dir_all(folder).unwrap();
        made(Path::new(folder), &mut Workload::new(100, true), 14);
        return;
    }
    let is_quick = args.iter().any(|arg| arg == "quick");
    let parts: Vec<&str> = args.iter().map(String::as_str).filter(|arg| *arg != "quick").collect();
    let wants = |part: &str| parts.is_empty() || parts.contains(&part);
    if wants("append") {
        append(is_quick);
    }
    if wants("disk") {
        disk(is_quick);
    }
    if wants("start") {
        start(is_quick);
    }
    if wants("get") {
        get(is_quick);
    }
    if wants("queries") {
        queries(is_quick);
    }
}

/// xorshift64*: the same workload in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (self.next().max(1e-12), self.next());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    fn poisson(&mut self, mean: f64) -> u32 {
        if mean > 30.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u32;
        }
        let (limit, mut product, mut count) = ((-mean).exp(), self.next(), 0);
        while product > limit {
            product *= self.next();
            count += 1;
        }
        count
    }
}

struct Series {
    labels: Labels,
    kind: MetricKind,
    value: Value,
    is_changed: bool,
}

/// APIs under load.
struct Workload {
    random: Random,
    series: Vec<Series>,
    apis: usize,
    with_histograms: bool,
}

const PER_API: usize = 13;

impl Workload {
    fn new(apis: usize, with_histograms: bool) -> Self {
        let mut series = Vec::new();
        for api in 0..apis {
            let api = format!("api-{api}");
            let mut add = |name: &str, kind: MetricKind, labels: &[(&str, &str)]| {
                let mut pairs = vec![(METRIC_NAME, name), ("api_name", &api)];
                pairs.extend(labels);
                let value = if kind == MetricKind::Histogram {
                    Value::Histogram(Arc::new(ExponentialHistogram::default()))
                } else {
                    Value::Float(0.0)
                };
                series.push(Series { labels: Labels::from_pairs(pairs), kind, value, is_changed: true });
            };
            use MetricKind::{Counter, Gauge, Histogram};
            for code in ["200", "400", "500"] {
                add("cortex_api_requests_total", Counter, &[("api_id", "a1"), ("response_code", code)]);
            }
            for process in ["11-af", "12-b0"] {
                let labels = [("api_id", "a1"), ("replica", "r1"), ("process", process)];
                add("cortex_api_in_flight_requests", Gauge, &labels);
                add("cortex_api_in_flight_requests_peak", Gauge, &labels);
            }
            add("cortex_api_replica_start_timestamp_seconds", Gauge, &[("api_id", "a1"), ("replica", "r1")]);
            add("cortex_api_info", Gauge, &[("api_id", "a1"), ("endpoint", "http://127.0.0.1:8888")]);
            for class in ["setosa", "virginica"] {
                add("predictions_total", Counter, &[("model", "v1"), ("class", class)]);
            }
            add("model_confidence", Gauge, &[("model", "v1")]);
            add("batch_bytes_total", Counter, &[("model", "v1")]);
            add("cortex_api_request_duration_seconds", Histogram, &[("api_id", "a1")]);
            assert_eq!(series.len() % (PER_API + 1), 0);
        }
        Self { random: Random(0x9e37_79b9_7f4a_7c15), series, apis, with_histograms }
    }

    fn step(&mut self, time_ms: i64) {
        let random = &mut self.random;
        let rhythm = 1.0 - (std::f64::consts::TAU * time_ms as f64 / DAY_MS as f64).cos();
        for api in 0..self.apis {
            let of_api = &mut self.series[api * (PER_API + 1)..(api + 1) * (PER_API + 1)];
            // From a request a minute to fifty a second; every fifth API sleeps at night.
            let mean =
                [0.16, 2.0, 20.0, 100.0, 500.0][api % 5] * if api % 5 == 4 { rhythm.max(0.0) } else { 0.2 + rhythm };
            let requests = random.poisson(mean);
            let failed = random.poisson(f64::from(requests) * 0.01).min(requests);
            let broken = random.poisson(f64::from(requests) * 0.001).min(requests - failed);
            let mut add = |at: usize, grown: f64| {
                if let Value::Float(value) = &mut of_api[at].value {
                    *value += grown;
                    of_api[at].is_changed |= grown != 0.0;
                }
            };
            add(0, f64::from(requests - failed - broken));
            add(1, f64::from(failed));
            add(2, f64::from(broken));
            let first = f64::from(random.poisson(f64::from(requests) * 0.7).min(requests));
            add(9, first);
            add(10, f64::from(requests) - first);
            add(12, (f64::from(requests) * (1500.0 + 300.0 * random.next())).floor());
            let mut set = |at: usize, value: f64| {
                let value = Value::Float(value);
                of_api[at].is_changed |= of_api[at].value != value;
                of_api[at].value = value;
            };
            for process in 0..2 {
                let in_flight = f64::from(random.poisson(mean / 200.0));
                set(3 + 2 * process, in_flight);
                set(4 + 2 * process, in_flight + f64::from(random.poisson(mean / 400.0)));
            }
            set(7, 1_795_000_000.25);
            set(8, 1.0);
            if requests > 0 {
                set(11, (0.8 + 0.1 * random.normal()).clamp(0.0, 1.0));
            }
            if self.with_histograms && requests > 0 {
                let Value::Histogram(histogram) = &mut of_api[PER_API].value else { unreachable!() };
                let histogram = Arc::make_mut(histogram);
                (0..requests).for_each(|_| histogram.record(0.024 * (0.5 * random.normal()).exp(), 1.0));
                of_api[PER_API].is_changed = true;
            }
        }
    }

    /// What changed, as a tick. Only histograms, or only the others.
    fn tick(&mut self, time_ms: i64, is_first: bool, keep: impl Fn(&Series) -> bool) -> Tick {
        let mut tick = Tick { timestamp_ms: time_ms, ..Tick::default() };
        for (id, series) in (1..).map(SeriesId).zip(&mut self.series) {
            if !keep(series) {
                continue;
            }
            if is_first {
                tick.started.push(StartedSeries {
                    id,
                    labels: series.labels.clone(),
                    kind: series.kind,
                    start_ms: time_ms - TICK_MS,
                    earlier: None,
                });
            }
            if std::mem::take(&mut series.is_changed) || is_first {
                tick.samples.push((id, series.value.clone()));
            }
        }
        tick
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn size_of(folder: &Path, keep: impl Fn(&str) -> bool + Copy) -> u64 {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of(&entry.path(), keep),
            Ok(meta) if keep(entry.file_name().to_str().unwrap()) => meta.len(),
            _ => 0,
        })
        .sum()
}

/// Ten thousand series change at every tick; each tick is synced.
fn append(is_quick: bool) {
    let folder = tempfile::tempdir_in("target").unwrap();
    let (mut store, _) = Store::open(folder.path()).unwrap();
    let mut times = Vec::new();
    let labels = |id: u32| Labels::from_pairs([(METRIC_NAME, "c".to_owned()), ("id", id.to_string())]);
    let ticks = if is_quick { 20 } else { 200 };
    for at in 1..=ticks {
        let mut tick = Tick { timestamp_ms: at * TICK_MS, ..Tick::default() };
        for id in 1..=10_000u32 {
            if at == 1 {
                let (kind, labels) = (MetricKind::Counter, labels(id));
                let series = StartedSeries { id: SeriesId(id), labels, kind, start_ms: 0, earlier: None };
                tick.started.push(series);
            }
            tick.samples.push((SeriesId(id), Value::Float(f64::from(at as u32 * (id % 100)))));
        }
        let begun = Instant::now();
        store.append(&tick).unwrap();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let of = format!("median of {ticks}");
    let took = median(times);
    println!(
        "append: a tick of 10,000 changed series, synced: {took:.1} ms ({of}); {:.2} % of a core at one in 10 s",
        took / 100.0
    );
}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<FloatSample>,
    #[prost(message, repeated, tag = "4")]
    histograms: Vec<NativeHistogram>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FloatSample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NativeHistogram {
    #[prost(uint64, tag = "1")]
    count_int: u64,
    #[prost(double, tag = "3")]
    sum: f64,
    #[prost(sint32, tag = "4")]
    schema: i32,
    #[prost(double, tag = "5")]
    zero_threshold: f64,
    #[prost(uint64, tag = "6")]
    zero_count_int: u64,
    #[prost(message, repeated, tag = "11")]
    positive_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "12")]
    positive_deltas: Vec<i64>,
    #[prost(int64, tag = "15")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

fn native(h: &ExponentialHistogram, timestamp: i64) -> NativeHistogram {
    let mut last = 0;
    let deltas = h.positive().counts.iter().map(|count| {
        let delta = *count as i64 - last;
        last = *count as i64;
        delta
    });
    let positive_deltas: Vec<i64> = deltas.collect();
    let length = positive_deltas.len() as u32;
    let spans = if length == 0 { vec![] } else { vec![Span { offset: h.positive().offset, length }] };
    NativeHistogram {
        count_int: h.count() as u64,
        sum: h.sum(),
        schema: h.schema().into(),
        zero_threshold: 2.938_735_877_055_719e-39,
        zero_count_int: h.zero_count() as u64,
        positive_spans: spans,
        positive_deltas,
        timestamp,
    }
}

/// A program that answers HTTP, ended when this is dropped.
struct Program {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Program {
    /// `PROMETHEUS=path`, one on the `PATH`, or Debian's, unpacked.
    fn prometheus() -> Option<Self> {
        let unpacked = || {
            let made = Command::new("tests/debian-package").args(["prometheus", "forky"]).output().ok()?;
            let folder = String::from_utf8(made.stdout).ok()?;
            Some(PathBuf::from(folder.trim()).join("usr/bin/prometheus")).filter(|path| path.exists())
        };
        let path = std::env::var_os("PROMETHEUS").map(PathBuf::from).or_else(unpacked)?;
        let folder = tempfile::tempdir_in("target").unwrap().keep();
        fs::write(folder.join("prometheus.yml"), "global: {scrape_interval: 10s}\n").unwrap();
        let port = free_port();
        let child = Command::new(path)
            .args([
                "--web.enable-remote-write-receiver",
                "--enable-feature=native-histograms",
                "--web.enable-admin-api",
            ])
            .args(["--storage.tsdb.retention.time=60d", "--query.lookback-delta=5m"])
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let program = Self { child, port, folder };
        program.wait_for("/-/ready");
        Some(program)
    }

    fn collector(data: &Path) -> Self {
        let port = free_port();
        let child = Command::new(env!("CARGO_BIN_EXE_cortex-collector"))
            .args(["--data-dir", data.to_str().unwrap(), "--listen-udp", "127.0.0.1:0", "--log-level", "error"])
            .args(["--listen-http", &format!("127.0.0.1:{port}")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port, folder: data.to_owned() }
    }

    fn wait_for(&self, path: &str) {
        for _ in 0..30_000 {
            if self.get(path).is_some_and(|(status, _)| status == 200) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("no answer at {path}");
    }

    fn get(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), &[])
    }

    fn post(&self, path: &str, headers: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        self.ask(&head, body).unwrap()
    }

    fn ask(&self, head: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let status = std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()?;
        Some((status, answer))
    }

    fn write(&self, series: Vec<TimeSeries>) {
        let body =
            snap::raw::Encoder::new().compress_vec(&WriteRequest { timeseries: series }.encode_to_vec()).unwrap();
        let headers = "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\nX-Prometheus-Remote-Write-Version: 0.1.0\r\n";
        let (status, answer) = self.post("/api/v1/write", headers, &body);
        assert_eq!(status / 100, 2, "{}", String::from_utf8_lossy(&answer));
    }

    /// What all of it takes on disk, in blocks as Prometheus keeps them.
    fn blocks_bytes(&self) -> u64 {
        let (status, answer) = self.post("/api/v1/admin/tsdb/snapshot", "", &[]);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        size_of(&self.folder.join("data/snapshots"), |_| true)
    }

    /// The median time of an answer in ms, of `times` questions, and what the last one said.
    fn time(&self, path: &str, times: usize) -> (f64, usize) {
        let mut length = 0;
        let took = (0..times).map(|_| {
            let begun = Instant::now();
            let (status, answer) = self.get(path).unwrap();
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
            length = answer.len();
            begun.elapsed().as_secs_f64() * 1e3
        });
        (median(took.collect()), length)
    }
}

/// Collects one sample of each series at each tick, and sends them by the hour.
#[derive(Default)]
struct Remote {
    pending: BTreeMap<usize, TimeSeries>,
    ticks: usize,
}

impl Remote {
    fn tick(&mut self, workload: &Workload, time_ms: i64, keep: impl Fn(&Series) -> bool, to: &Program) {
        for (at, series) in workload.series.iter().enumerate().filter(|(_, series)| keep(series)) {
            let of = self.pending.entry(at).or_insert_with(|| TimeSeries {
                labels: series.labels.iter().map(|(n, v)| Label { name: n.to_owned(), value: v.to_owned() }).collect(),
                ..TimeSeries::default()
            });
            match &series.value {
                Value::Float(value) => of.samples.push(FloatSample { value: *value, timestamp: time_ms }),
                Value::Histogram(h) => of.histograms.push(native(h, time_ms)),
            }
        }
        self.ticks += 1;
        if self.ticks.is_multiple_of(180) {
            self.send(to);
        }
    }

    fn send(&mut self, to: &Program) {
        let mut all: Vec<TimeSeries> = std::mem::take(&mut self.pending).into_values().collect();
        while !all.is_empty() {
            let rest = all.split_off(all.len().min(200));
            to.write(std::mem::replace(&mut all, rest));
        }
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// A day of the workload, counters and gauges apart from histograms, in bytes a sample.
fn disk(is_quick: bool) {
    let (apis, hours) = if is_quick { (10, 6) } else { (20, 24) };
    let is_histogram = |series: &Series| series.kind == MetricKind::Histogram;
    for (what, wants_histograms) in [("counters and gauges", false), ("exponential histograms", true)] {
        let keep = |series: &Series| is_histogram(series) == wants_histograms;
        let mut workload = Workload::new(apis, wants_histograms);
        let folder = tempfile::tempdir_in("target").unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let prometheus = Program::prometheus();
        let mut remote = Remote::default();
        let end = now_ms() / DAY_MS * DAY_MS;
        let start = end - hours * 3_600_000;
        let (mut samples, mut changes) = (0usize, 0usize);
        let each = workload.series.iter().filter(|series| keep(series)).count();
        for time_ms in (start..end).step_by(TICK_MS as usize) {
            workload.step(time_ms);
            let tick = workload.tick(time_ms, time_ms == start, keep);
            samples += each;
            changes += tick.samples.len();
            store.append(&tick).unwrap();
            if let Some(prometheus) = &prometheus {
                remote.tick(&workload, time_ms, keep, prometheus);
            }
        }
        // A tick of the next day: all that is wanted is in the files then.
        store.append(&Tick { timestamp_ms: end, ..Tick::default() }).unwrap();
        while size_of(folder.path(), |name| name.ends_with("journal")) > 0 || !store.is_sealed() {
            thread::sleep(Duration::from_millis(10));
        }
        drop(store);
        let ours = size_of(folder.path(), |name| name.starts_with("20") && !name.ends_with("journal"));
        let of_each = |bytes: u64| bytes as f64 / samples as f64;
        println!(
            "disk, {what}: {hours} h of {each} series, {samples} samples, {changes} of them changes\n  ours        {ours:>12} bytes {:>8.3} a sample",
            of_each(ours)
        );
        if let Some(prometheus) = prometheus {
            remote.send(&prometheus);
            let theirs = prometheus.blocks_bytes();
            println!(
                "  Prometheus  {theirs:>12} bytes {:>8.3} a sample; ours is {:.2} of it",
                of_each(theirs),
                ours as f64 / theirs as f64
            );
            let folder = prometheus.folder.clone();
            drop(prometheus);
            let _ = fs::remove_dir_all(folder);
        } else {
            println!("  Prometheus is not here: PROMETHEUS=path");
        }
    }
}

/// Two weeks of ten thousand series, killed in the middle of a window: how long until a query over all of it is answered.
fn start(is_quick: bool) {
    let (apis, days) = if is_quick { (50, 1) } else { (715, 14) };
    let folder = tempfile::tempdir_in("target").unwrap();
    let series = made(folder.path(), &mut Workload::new(apis, false), days);
    let bytes = size_of(folder.path(), |_| true);
    let query = "/api/v1/query?query=count(count_over_time(cortex_api_requests_total[1h]))";
    let took = (0..5).map(|_| {
        let begun = Instant::now();
        let collector = Program::collector(folder.path());
        collector.wait_for(query);
        begun.elapsed().as_secs_f64()
    });
    let took = median(took.collect());
    println!(
        "start: {days} days of {series} series, {:.0} MiB: {took:.2} s until a query is answered (median of 5)",
        bytes as f64 / 1_048_576.0
    );
}

/// `cortex get` over two weeks of a hundred APIs, histograms included.
fn get(is_quick: bool) {
    let (apis, days) = if is_quick { (100, 2) } else { (100, 14) };
    let data = tempfile::tempdir_in("target").unwrap();
    made(data.path(), &mut Workload::new(apis, true), days);
    let home = tempfile::tempdir().unwrap();
    let cortex = |args: &[&str]| {
        let begun = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cortex"));
        let done = command.args(args).env_remove("XDG_CONFIG_HOME").env("HOME", home.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        begun.elapsed().as_secs_f64() * 1e3
    };
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let collector = Program::collector(data.path());
        collector.wait_for("/healthz");
        cortex(&["env", "add", "bench", &format!("http://127.0.0.1:{}", collector.port)]);
        cold.push(cortex(&["get", "-e", "bench"]));
        warm.extend((0..5).map(|_| cortex(&["get", "-e", "bench"])));
        if let Some(file) = std::env::var_os("BENCH_KEEP") {
            println!("{}", collector.port);
            let _ = fs::write(file, collector.port.to_string());
            thread::sleep(Duration::from_secs(600));
        }
    }
    let (cold, warm) = (median(cold), median(warm));
    println!(
        "get: {apis} APIs x 3 codes x {days} days: {cold:.0} ms from a collector just started, {warm:.0} ms again (medians of 5 and 25)"
    );
}

/// Fills a data directory up to now.
fn made(folder: &Path, workload: &mut Workload, days: i64) -> usize {
    let (mut store, _) = Store::open(folder).unwrap();
    let end = now_ms();
    let start = end - days * DAY_MS;
    let (begun, with_histograms) = (Instant::now(), workload.with_histograms);
    for time_ms in (start..end).step_by(TICK_MS as usize) {
        workload.step(time_ms);
        let keep = |series: &Series| with_histograms || series.kind != MetricKind::Histogram;
        store.append(&workload.tick(time_ms, time_ms < start + TICK_MS, keep)).unwrap();
        if (time_ms - start) % DAY_MS < TICK_MS {
            eprintln!("day {} of {days} ({:.0} s)", (time_ms - start) / DAY_MS, begun.elapsed().as_secs_f64());
        }
    }
    while !store.is_sealed() {
        thread::sleep(Duration::from_millis(10));
    }
    workload.apis * if with_histograms { PER_API + 1 } else { PER_API }
}

/// The same samples asked of both.
fn queries(is_quick: bool) {
    let (apis, days) = if is_quick { (34, 1) } else { (334, 14) };
    let keep = |series: &Series| series.labels.name() == "cortex_api_requests_total";
    let folder = tempfile::tempdir_in("target").unwrap();
    let mut workload = Workload::new(apis, false);
    let (mut store, _) = Store::open(folder.path()).unwrap();
    let prometheus = Program::prometheus();
    let mut remote = Remote::default();
    let end = now_ms() / TICK_MS * TICK_MS;
    let start = end - days * DAY_MS;
    // All of it for a day, a tenth of the series before.
    for time_ms in (start..=end).step_by(TICK_MS as usize) {
        workload.step(time_ms);
        store.append(&workload.tick(time_ms, time_ms == start, keep)).unwrap();
        if let Some(prometheus) = &prometheus {
            remote.tick(&workload, time_ms, keep, prometheus);
        }
        if (time_ms - start) % DAY_MS == 0 {
            eprintln!("queries: day {} of {days}", (time_ms - start) / DAY_MS);
        }
    }
    while !store.is_sealed() {
        thread::sleep(Duration::from_millis(10));
    }
    drop(store);
    if let Some(prometheus) = &prometheus {
        remote.send(prometheus);
    }
    let collector = Program::collector(folder.path());
    collector.wait_for("/healthz");
    let (end_s, start_s) = (end / 1000, start / 1000);
    let range = |query: &str, start: i64, step: i64| {
        let query: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
        format!("/api/v1/query_range?query={query}&start={start}&end={end_s}&step={step}")
    };
    let panel = (end_s - start_s) / 1000;
    let questions = [
        (
            "a panel over all days at 1,000 points, one API",
            range("sum by (response_code) (rate(cortex_api_requests_total{api_name=\"api-3\"}[1h]))", start_s, panel),
        ),
        (
            "sum by (api_name) (rate(cortex_api_requests_total[1m])) over 24 h",
            range("sum by (api_name) (rate(cortex_api_requests_total[1m]))", end_s - 86_400, 86),
        ),
    ];
    for (what, path) in questions {
        let (ours, length) = collector.time(&path, 5);
        println!("query: {what}, {} series: ours {ours:.0} ms, {length} bytes (median of 5)", apis * 3);
        if let Some(prometheus) = &prometheus {
            let (theirs, length) = prometheus.time(&path, 5);
            println!("  Prometheus {theirs:.0} ms, {length} bytes; ours is {:.2} of it", ours / theirs);
        }
    }
    if let Some(prometheus) = prometheus {
        let folder = prometheus.folder.clone();
        drop(prometheus);
        let _ = fs::remove_dir_all(folder);
    }
}
