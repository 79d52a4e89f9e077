//! `cortex-collector`: puts the parts together and runs them until it is told to stop.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::http::HeaderValue;
use clap::{Parser, Subcommand, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::collector::{
    Intake, Limits, Listener, Mapping, Place, Published, Recorder, RecorderConfig, Registry, SourceLimit,
};
use crate::config::{default_data_dir, parse_duration, parse_size};
use crate::dogstatsd::GaugeMinus;
use crate::http::{self, App, Receiver};
use crate::memory;
use crate::model::Ladder;
use crate::promql::{self, Engine};
use crate::store::{self, Store};
use crate::telemetry;

/// Queries that still run when everything is stored get so long to end.
const HTTP_GRACE: Duration = Duration::from_millis(500);

/// The deepest expression that is accepted takes a quarter of this.
const QUERY_STACK_BYTES: usize = 8 << 20;

/// What limits a receive buffer.
const SYSCTL: &str = if cfg!(target_os = "macos") { "kern.ipc.maxsockbuf" } else { "net.core.rmem_max" };

/// Takes StatsD and DogStatsD datagrams, keeps them on disk, serves them to Prometheus, PromQL and the browser.
#[derive(Debug, Parser)]
#[command(
    name = "cortex-collector",
    version,
    after_help = "Example:\n  cortex-collector --data-dir /var/lib/cortex-metrics\n\nThen: cortex get, or open http://127.0.0.1:9102/"
)]
pub struct CollectorArgs {
    #[command(subcommand)]
    command: Option<CollectorCommand>,

    /// Where datagrams are taken: an address with a port, 0 for any free one; several with commas between or the flag repeated
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "CORTEX_COLLECTOR_LISTEN_UDP",
        default_value = "127.0.0.1:9125",
        value_delimiter = ',',
        value_parser = address
    )]
    listen_udp: Vec<SocketAddr>,

    /// Where datagrams are taken too: a Unix datagram socket, made with mode 0660
    #[arg(long, value_name = "PATH", env = "CORTEX_COLLECTOR_LISTEN_UNIX")]
    listen_unix: Option<PathBuf>,

    /// Room for datagrams that wait at a UDP socket, 4KiB to 512MiB; the log says at start if the kernel grants less
    #[arg(long, value_name = "SIZE", env = "CORTEX_COLLECTOR_RECEIVE_BUFFER", default_value = "8MiB", value_parser = receive_buffer)]
    receive_buffer: usize,

    /// Where HTTP is served: /, /metrics, /api/v1/query, /healthz. There is no login: keep it on loopback or behind a proxy
    #[arg(long, value_name = "ADDRESS", env = "CORTEX_COLLECTOR_LISTEN_HTTP", default_value = "127.0.0.1:9102", value_parser = address)]
    listen_http: SocketAddr,

    /// Where samples are kept [default: $XDG_STATE_HOME/cortex-metrics or ~/.local/state/cortex-metrics]
    #[arg(long, value_name = "DIR", env = "CORTEX_COLLECTOR_DATA_DIR", global = true)]
    data_dir: Option<PathBuf>,

    /// How long samples are kept, 1h to 100y
    #[arg(long, value_name = "DURATION", env = "CORTEX_COLLECTOR_RETENTION", default_value = "14d", value_parser = retention)]
    retention: Duration,

    /// How large the store may get, 1MiB to 100TiB: beyond that the oldest days go, whatever --retention says [default: no limit]
    #[arg(long, value_name = "SIZE", env = "CORTEX_COLLECTOR_RETENTION_SIZE", value_parser = retention_size)]
    retention_size: Option<u64>,

    /// Time between ticks, the resolution of everything that is stored: 1s to 1m
    #[arg(long, value_name = "DURATION", env = "CORTEX_COLLECTOR_INTERVAL", default_value = "10s", value_parser = interval)]
    interval: Duration,

    /// What -5 says to a gauge: a change (delta), a value (absolute), or a value only in messages with DogStatsD sections (auto)
    #[arg(long, value_name = "HOW", env = "CORTEX_COLLECTOR_GAUGE_MINUS", default_value = "auto")]
    gauge_minus: Minus,

    /// A mapping file of statsd_exporter, which makes labels of the parts of names; read anew on SIGHUP
    #[arg(long, value_name = "PATH", env = "CORTEX_COLLECTOR_MAPPING_CONFIG")]
    mapping_config: Option<PathBuf>,

    /// Threads that read each socket
    #[arg(
        long,
        value_name = "N",
        env = "CORTEX_COLLECTOR_INGEST_THREADS",
        default_value = "1",
        value_parser = clap::value_parser!(u8).range(1..=64)
    )]
    ingest_threads: u8,

    /// How many datagrams a second one source may send over UDP: an address, or over loopback a socket; what is beyond is counted and
    /// dropped [default: no limit]
    #[arg(
        long,
        value_name = "N",
        env = "CORTEX_COLLECTOR_SOURCE_LIMIT",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    source_limit: Option<u32>,

    /// How many series there may be; what would be further ones goes into one a metric, marked as overflow
    #[arg(
        long,
        value_name = "N",
        env = "CORTEX_COLLECTOR_SERIES_MAX",
        default_value = "100000",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    series_max: u32,

    /// How many series of one metric there may be
    #[arg(
        long,
        value_name = "N",
        env = "CORTEX_COLLECTOR_SERIES_PER_METRIC_MAX",
        default_value = "10000",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    series_per_metric_max: u32,

    /// How long the value of a label may be, in bytes
    #[arg(
        long,
        value_name = "BYTES",
        env = "CORTEX_COLLECTOR_LABEL_VALUE_BYTES_MAX",
        default_value = "2048",
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    label_value_bytes_max: u32,

    /// Counters and histograms that were silent for so long leave memory and /metrics; they come back where they were
    #[arg(long, value_name = "DURATION", env = "CORTEX_COLLECTOR_SERIES_EXPIRY", default_value = "24h", value_parser = expiry)]
    series_expiry: Duration,

    /// Gauges of senders that do not name themselves end after so long a silence [default: never]
    #[arg(long, value_name = "DURATION", env = "CORTEX_COLLECTOR_GAUGE_EXPIRY", value_parser = expiry)]
    gauge_expiry: Option<Duration>,

    /// Upper bounds of histograms' classic buckets, in scrapes and in queries: at most 200 ascending numbers with commas between
    /// [default: the powers of two from 2^-14 to 2^20]
    #[arg(
        long,
        value_name = "BOUNDS",
        env = "CORTEX_COLLECTOR_CLASSIC_BUCKETS",
        value_parser = Ladder::parse,
        allow_hyphen_values = true
    )]
    classic_buckets: Option<Ladder>,

    /// Take samples of Prometheus's remote write 1.0 at /api/v1/write, as old as the retention
    #[arg(long, env = "CORTEX_COLLECTOR_ENABLE_REMOTE_WRITE_RECEIVER")]
    enable_remote_write_receiver: bool,

    /// How long a query may take, 1s to 1h
    #[arg(long, value_name = "DURATION", env = "CORTEX_COLLECTOR_QUERY_TIMEOUT", default_value = "2m", value_parser = query_timeout)]
    query_timeout: Duration,

    /// How many samples a query may hold in memory at once
    #[arg(
        long,
        value_name = "N",
        env = "CORTEX_COLLECTOR_QUERY_MAX_SAMPLES",
        default_value = "50000000",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    query_max_samples: u32,

    /// How many queries run at once; others wait for them
    #[arg(
        long,
        value_name = "N",
        env = "CORTEX_COLLECTOR_QUERY_MAX_CONCURRENCY",
        default_value = "4",
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    query_max_concurrency: u16,

    /// Scheme and host of the pages that may ask the query API from a browser [default: none]
    #[arg(long, value_name = "ORIGIN", env = "CORTEX_COLLECTOR_CORS_ORIGIN", value_parser = cors_origin)]
    cors_origin: Option<HeaderValue>,

    /// The least grave of what is logged to stderr
    #[arg(long, value_name = "LEVEL", env = "CORTEX_COLLECTOR_LOG_LEVEL", default_value = "info")]
    log_level: LogLevel,
}

#[derive(Debug, Subcommand)]
enum CollectorCommand {
    /// Copy the data directory to a new one, also while a collector uses it
    #[command(
        after_help = "Example:\n  cortex-collector backup /backup/cortex-metrics --data-dir /var/lib/cortex-metrics\n\nA collector with the copy as its --data-dir has what the copied one had stored."
    )]
    Backup {
        /// Where to: a directory that is empty, or not there yet
        #[arg(value_name = "DEST")]
        target: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    Error,
    #[value(alias = "warning")]
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Minus {
    Auto,
    Delta,
    Absolute,
}

impl From<Minus> for GaugeMinus {
    fn from(minus: Minus) -> Self {
        match minus {
            Minus::Auto => Self::Auto,
            Minus::Delta => Self::Delta,
            Minus::Absolute => Self::Absolute,
        }
    }
}

fn retention(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(3600), Duration::from_secs(100 * 365 * 86_400), "1h to 100y")
}

fn expiry(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(60), Duration::from_secs(100 * 365 * 86_400), "1m to 100y")
}

fn cors_origin(text: &str) -> Result<HeaderValue, String> {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or_default();
    // With a path a browser would find it equal to none, and `*` would let every page of the web read what is here.
    let is_host = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    let origin = HeaderValue::from_str(text).ok().filter(|_| is_host);
    origin.ok_or_else(|| format!("got {text:?}, want http://HOST[:PORT] or https://HOST[:PORT]"))
}

fn query_timeout(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(1), Duration::from_secs(3600), "1s to 1h")
}

fn interval(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(1), Duration::from_secs(60), "1s to 1m")
}

fn receive_buffer(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text)?;
    let is_within = (4 << 10..=512 << 20).contains(&bytes);
    usize::try_from(bytes).ok().filter(|_| is_within).ok_or_else(|| format!("got {text}, want 4KiB to 512MiB"))
}

fn retention_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    let is_within = (1 << 20..=100 << 40).contains(&bytes);
    is_within.then_some(bytes).ok_or_else(|| format!("got {text}, want 1MiB to 100TiB"))
}

fn bounded(text: &str, least: Duration, most: Duration, range: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if (least..=most).contains(&duration) { Ok(duration) } else { Err(format!("got {text}, want {range}")) }
}

/// Runs the collector until SIGTERM or SIGINT.
///
/// # Errors
/// A mapping file that cannot be used, a port that is taken, a data directory that cannot be used, a signal handler that cannot be installed.
pub fn run(args: CollectorArgs) -> anyhow::Result<()> {
    memory::return_early();
    telemetry::init(args.log_level.into());
    telemetry::end_if_a_thread_panics("cortex-");
    let clock = Clock::System;
    let steady = Clock::steady();
    let Some(data_dir) = args.data_dir.or_else(|| default_data_dir(|name| std::env::var_os(name))) else {
        bail!("neither --data-dir nor XDG_STATE_HOME nor HOME is set: say where to keep data with --data-dir DIR");
    };

    if let Some(CollectorCommand::Backup { target }) = &args.command {
        return backup(&data_dir, target);
    }

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(QUERY_STACK_BYTES)
        .enable_all()
        .build()?;
    // Before anything else: SIGHUP ends nothing. The others do while the mapping file is read, which may take its time.
    let hangup = runtime.block_on(async { signal(SignalKind::hangup()) })?;
    let mapping = args.mapping_config.as_deref().map(read_mapping).transpose()?;
    // Before anything is accepted: a signal that comes from here on finds what was accepted stored.
    let mut signals = runtime.block_on(async { Signals::with(hangup) })?;
    let mut listeners = bind(&args.listen_udp, args.receive_buffer, args.listen_unix.as_deref())?;
    let http_socket = std::net::TcpListener::bind(args.listen_http)
        .with_context(|| format!("--listen-http {}: cannot listen; is another program there?", args.listen_http))?;
    http_socket.set_nonblocking(true)?;
    let http_address = http_socket.local_addr()?;
    let (store, restored) = Store::open(&data_dir).context("--data-dir")?;

    let published = Arc::new(Published::new(&restored));
    let ladder = args.classic_buckets.unwrap_or_default();
    let query_limits = promql::Limits {
        samples_max: args.query_max_samples as usize,
        timeout: args.query_timeout,
        ..promql::Limits::default()
    };
    let engine = Arc::new(Engine::new(Arc::new(store.reader()), query_limits).with_ladder(ladder.clone()));
    let limits = Limits {
        series: args.series_max as usize,
        series_per_metric: args.series_per_metric_max as usize,
        label_value_bytes: args.label_value_bytes_max as usize,
        series_expiry_ms: args.series_expiry.as_millis() as i64,
        gauge_expiry_ms: args.gauge_expiry.map(|expiry| expiry.as_millis() as i64),
    };
    let mut registry = Registry::with_limits(restored, limits).with_history(store.reader());
    if let Some(mapping) = mapping {
        registry = registry.with_mapping(mapping);
    }
    let intake = Intake::new(registry, steady.now_ms()).with_gauge_minus(args.gauge_minus.into());
    let intake = intake.with_source_limit(args.source_limit.map(|limit| Arc::new(SourceLimit::new(limit))));
    let intake = intake.with_sockets(listeners.iter().map(|listener| Arc::clone(listener.account())).collect());
    let intake = Arc::new(intake);
    let config =
        RecorderConfig { interval: args.interval, retention: args.retention, retention_size: args.retention_size };
    let recorder =
        Recorder::start(config, Arc::clone(&intake), store, Arc::clone(&published), clock.clone(), steady.clone())?;
    let receiver = args.enable_remote_write_receiver.then(|| Receiver::new(recorder.writer(), clock, args.retention));
    for listener in &mut listeners {
        listener.start(&intake, &steady, args.ingest_threads.into())?;
    }
    announce(&listeners, args.receive_buffer as u64, http_address, &data_dir)?;

    let refused = runtime.block_on(async {
        let (stop_http, http_stopped) = oneshot::channel::<()>();
        let app = App::new(engine, published, Arc::clone(&intake), ladder)
            .with_steady(steady)
            .with_interval(args.interval)
            .with_receiver(receiver)
            .with_queries_max(args.query_max_concurrency.into())
            .with_cors_origin(args.cors_origin);
        let router = http::router(app);
        let listener = TcpListener::from_std(http_socket)?;
        let server = tokio::spawn(http::serve(listener, router, async { drop(http_stopped.await) }));
        let signal = signals.end(|| {
            let (path, intake) = (args.mapping_config.clone(), Arc::clone(&intake));
            move || reload(path.as_deref(), &intake)
        });
        tracing::info!("{}: storing what has come in", signal.await);
        // Senders are refused first, then everything the kernel had accepted is read, and only then is the last tick made.
        let refused = tokio::task::spawn_blocking(move || {
            listeners.into_iter().for_each(Listener::stop);
            recorder.stop()
        })
        .await?;
        let _ = stop_http.send(());
        let _ = tokio::time::timeout(HTTP_GRACE, server).await;
        anyhow::Ok(refused)
    })?;
    runtime.shutdown_timeout(HTTP_GRACE);
    if let Some(why) = refused {
        bail!("stopped, but what came since the disk refused could not be stored and is lost: {why}");
    }
    tracing::info!("stored and stopped");
    Ok(())
}

/// What is heard from its construction on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn with(hangup: Signal) -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hangup })
    }

    /// Waits for one that ends the program. With SIGHUP a thread does what `reload` gives; a disk may be slow, or a network's: signals
    /// are heard meanwhile, and however many come, one thread does it, once more.
    async fn end<R: FnOnce() + Send + 'static>(&mut self, reload: impl Fn() -> R) -> &'static str {
        let (mut reloading, mut is_asked) = (JoinSet::new(), false);
        loop {
            if reloading.is_empty() && std::mem::take(&mut is_asked) {
                reloading.spawn_blocking(reload());
            }
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => is_asked = true,
                Some(_) = reloading.join_next() => {}
            }
        }
    }
}

/// Copies a data directory, and says what.
fn backup(data_dir: &Path, target: &Path) -> anyhow::Result<()> {
    let (mut files, mut all) = (0, 0);
    store::backup(data_dir, target, |file, bytes| {
        (files, all) = (files + 1, all + bytes);
        // Whoever reads has seen enough: the copy goes on.
        let _ = writeln!(io::stdout(), "{}   {bytes} bytes", file.display());
    })
    .with_context(|| format!("cannot copy {} to {}", data_dir.display(), target.display()))?;
    let _ = writeln!(io::stdout(), "{}   {all} bytes in {files} files", target.display());
    Ok(())
}

/// Reads the mapping file and says what whoever wrote it should know.
fn read_mapping(path: &Path) -> anyhow::Result<Mapping> {
    let mapping = Mapping::read(path).with_context(|| format!("--mapping-config {}", path.display()))?;
    mapping.notes().iter().for_each(|note| tracing::warn!(path = %path.display(), "{note}"));
    tracing::info!(path = %path.display(), mappings = mapping.len(), "mapping names");
    Ok(mapping)
}

/// Reads the mapping file anew; if it cannot be used, the rules of before stay.
fn reload(path: Option<&Path>, intake: &Intake) {
    let Some(path) = path else {
        tracing::info!("SIGHUP: there is no --mapping-config to read anew");
        return;
    };
    match read_mapping(path) {
        Ok(mapping) => intake.set_mapping(mapping),
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!("SIGHUP: {error}; the rules of before stay");
            intake.lock().mapping_error = Some(error);
        }
    }
}

fn bind(udp: &[SocketAddr], receive_buffer_bytes: usize, unix: Option<&Path>) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    let why = |what: String, error: io::Error| {
        let hint = if error.kind() == io::ErrorKind::AddrInUse { "; is another collector running there?" } else { "" };
        anyhow::Error::new(error).context(format!("{what}: cannot listen{hint}"))
    };
    for address in udp {
        // `[::]` alone takes IPv4 too, which then is another's.
        let only_v6 = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            && address.port() != 0
            && udp.iter().any(|other| other.is_ipv4() && other.port() == address.port());
        if only_v6 {
            tracing::info!("--listen-udp {address}: takes IPv6 alone, since an IPv4 address with this port is given");
        }
        let listener = Listener::bind(*address, receive_buffer_bytes, only_v6);
        listeners.push(listener.map_err(|error| why(format!("--listen-udp {address}"), error))?);
    }
    if let Some(path) = unix {
        let listener = Listener::bind_unix(path);
        listeners.push(listener.map_err(|error| why(format!("--listen-unix {}", path.display()), error))?);
    }
    Ok(listeners)
}

/// An address with a port; a name stands for its first address, an IPv4 one if it has any.
fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Some(port) = text.strip_prefix(':').filter(|port| port.parse::<u16>().is_ok()) {
        return Err(format!(
            "which address? 127.0.0.1:{port} is this machine alone, 0.0.0.0:{port} whoever reaches it"
        ));
    }
    if text.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err("want an address and a port: 127.0.0.1:9125, [::1]:9125, localhost:9125".to_owned());
    }
    let all: Vec<SocketAddr> = text.to_socket_addrs().map_err(|error| error.to_string())?.collect();
    let address = all.iter().find(|address| address.is_ipv4()).or(all.first());
    address.copied().ok_or_else(|| "no address is known for that name".to_owned())
}

/// Says where it listens and where its data is: on stdout, for people and for scripts that asked for a free port.
fn announce(listeners: &[Listener], wanted_bytes: u64, http: SocketAddr, data_dir: &Path) -> io::Result<()> {
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let mut out = io::stdout().lock();
    for listener in listeners {
        writeln!(out, "metrics in:  {}", listener.place())?;
    }
    writeln!(out, "dashboard:   http://{http}/")?;
    writeln!(out, "data:        {}", data_dir.display())?;
    out.flush()?;
    let mut reachable = vec![("--listen-http", http)];
    for listener in listeners {
        let granted_bytes = listener.account().receive_buffer_bytes();
        tracing::info!(place = %listener.place(), receive_buffer_bytes = granted_bytes, "taking metrics");
        if let Some(granted) = granted_bytes.filter(|granted| *granted < wanted_bytes) {
            tracing::info!(
                "--receive-buffer: the kernel grants {granted} of {wanted_bytes} bytes; to raise that: sysctl -w {SYSCTL}={wanted_bytes}"
            );
        }
        if let Place::Udp(address) = listener.place() {
            reachable.push(("--listen-udp", *address));
        }
    }
    for (flag, address) in reachable {
        if !address.ip().is_loopback() {
            tracing::warn!("{flag} {address} is reachable from other hosts, and there is no login");
        }
    }
    Ok(())
}
