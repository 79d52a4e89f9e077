//! The listener: the threads that empty one socket into the intake.
//!
//! On stop it first connects its socket to itself: from then on the kernel refuses what others send, so that a client on
//! this host knows at once and holds it, while everything that the kernel had accepted before is still read.
//!
//! Several threads may read one socket. One at a time receives a batch and numbers it; then it reads the messages while the
//! next thread receives; what depends on the order is applied in that of the numbers.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use socket2::{Domain, SockAddr, Socket, Type};

use super::intake::Intake;
use super::receive::{self, Arrival, Receiver};
use super::socket_account::SocketAccount;
use super::source_limit::SourceLimit;
use crate::clock::Clock;

/// A quiet listener looks so often whether it shall stop.
const STOP_POLL: Duration = Duration::from_millis(250);

/// When a busy socket is empty, it is left alone for so long: what comes meanwhile costs one call and one waking of the
/// thread, where each datagram might cost its own (`make bench-ingest`, shape A: less than half). At a million datagrams a
/// second these are 1,000.
const PAUSE: Duration = Duration::from_millis(1);
/// No pause with a smaller receive buffer: this one has room for 2,500 short datagrams.
const PAUSE_BUFFER_BYTES_MIN: u64 = 1 << 20;

/// Who may write to a Unix socket: its owner and its group.
const UNIX_MODE: u32 = 0o660;

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A UDP address, its port known.
    Udp(SocketAddr),
    /// The file of a Unix datagram socket.
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A bound socket that nobody reads yet, or the threads that read it.
#[derive(Debug)]
pub struct Listener {
    place: Place,
    /// The file of a Unix socket.
    file: Option<(u64, u64)>,
    source: Arc<Source>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads of one socket share.
#[derive(Debug)]
struct Source {
    socket: Socket,
    account: Arc<SocketAccount>,
    stopping: AtomicBool,
    /// Held by the thread that receives.
    received: Mutex<Received>,
    /// Whether it may wait until there is more.
    may_pause: bool,
    /// How many batches have been applied.
    applied: Mutex<u64>,
    was_applied: Condvar,
}

/// What a thread that receives knows of those before it.
#[derive(Debug, Default)]
struct Received {
    /// How many batches there were.
    batches: u64,
    /// When the newest came.
    at: Option<Instant>,
    /// Whether it left nothing, and more than one datagram will come in a pause.
    is_ahead: bool,
}

/// A batch's place in the order of its socket; the next one's turn comes when it is dropped.
struct Turn<'a> {
    source: &'a Source,
    number: u64,
}

impl Turn<'_> {
    fn wait(&self) {
        let mut applied = self.source.applied.lock();
        while *applied != self.number {
            self.source.was_applied.wait(&mut applied);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.wait();
        *self.source.applied.lock() += 1;
        self.source.was_applied.notify_all();
    }
}

impl Source {
    fn new(socket: Socket, account: SocketAccount) -> Arc<Self> {
        // A Unix socket has no such buffer: who sends would wait.
        let may_pause = account.receive_buffer_bytes().is_some_and(|bytes| bytes >= PAUSE_BUFFER_BYTES_MIN);
        Arc::new(Self {
            socket,
            account: Arc::new(account),
            stopping: AtomicBool::new(false),
            received: Mutex::default(),
            may_pause,
            applied: Mutex::new(0),
            was_applied: Condvar::new(),
        })
    }

    /// Waits for a batch, and takes its number.
    fn receive(&self, buffers: &mut Receiver, limit: Option<&SourceLimit>) -> io::Result<Turn<'_>> {
        let mut received = self.received.lock();
        let has_paused = std::mem::take(&mut received.is_ahead);
        if has_paused {
            thread::sleep(PAUSE);
        }
        buffers.receive(&self.socket)?;
        if let Some(limit) = limit {
            buffers.limit(|sender| limit.admits(sender));
        }
        if let Some(drops) = buffers.kernel_drops() {
            self.account.saw_kernel_drops(drops);
        }
        if self.may_pause {
            let now = Instant::now();
            let before = received.at.replace(now);
            // It must gather more than one datagram, else it costs a waking and saves none.
            let pays = if has_paused {
                buffers.datagrams().nth(1).is_some()
            } else {
                before.is_some_and(|before| now.duration_since(before) < PAUSE)
            };
            received.is_ahead = pays && buffers.is_emptied();
        }
        let turn = Turn { source: self, number: received.batches };
        received.batches += 1;
        Ok(turn)
    }

    /// Takes batch after batch until the listener stops.
    fn run(&self, mut receiver: Receiver, intake: &Intake, clock: &Clock) {
        let shard = intake.shard();
        loop {
            // Read before receiving: what arrives before the flag is set is read after it.
            let is_last = self.stopping.load(Ordering::Acquire);
            match self.receive(&mut receiver, intake.source_limit()) {
                Ok(turn) => {
                    intake.receive(&shard, receiver.datagrams(), || turn.wait(), clock.now_ms());
                    let truncated = receiver.datagrams().filter(|(_, arrival)| *arrival == Arrival::Truncated).count();
                    self.account.saw_datagrams(receiver.datagrams().count() as u64, truncated as u64);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        // No datagram tells of the drops at the end of a burst: none came after them.
                        if let Some(drops) = receive::kernel_drops(&self.socket) {
                            self.account.saw_kernel_drops(drops);
                        }
                        if is_last {
                            return;
                        }
                    }
                    ErrorKind::Interrupted => {}
                    // The refusal of something we never sent, or the like: costs nothing, must not spin.
                    _ => {
                        tracing::warn!(%error, "receiving failed");
                        thread::sleep(STOP_POLL);
                        if is_last {
                            return;
                        }
                    }
                },
            }
        }
    }
}

impl Listener {
    /// Binds a UDP socket, with room for `receive_buffer_bytes` of datagrams that wait while we are busy if the kernel grants
    /// as much. A port that is taken is an error: two collectors never share one. With `only_v6`, `[::]` leaves the port's IPv4
    /// addresses to another socket.
    pub fn bind(address: SocketAddr, receive_buffer_bytes: usize, only_v6: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        if only_v6 {
            socket.set_only_v6(true)?;
        }
        // One who may go beyond the system's limit has said here how far. Best effort: a smaller buffer works too, and drops
        // are counted.
        let _ = receive::force_receive_buffer(&socket, receive_buffer_bytes)
            .or_else(|_| socket.set_recv_buffer_size(receive_buffer_bytes));
        socket.bind(&address.into())?;
        socket.set_read_timeout(Some(STOP_POLL))?;
        let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no address"))?;
        let granted = granted_bytes(&socket)?;
        Ok(Self::new(Place::Udp(address), socket, Some(granted)))
    }

    /// Binds a Unix datagram socket, mode 0660, in place of one that nobody listens on. Its file goes when the listener stops.
    ///
    /// # Errors
    /// Somebody listens there, something else than a socket is there, or the folder cannot be written.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        // Absolute, so that a client finds it wherever it runs.
        let path = std::path::absolute(path)?;
        let address = SockAddr::unix(&path)?;
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
        // Linux makes the file with the mode of its socket, less the umask: nobody else may write before the mode is set.
        let mode = || fs::Permissions::from_mode(UNIX_MODE);
        fs::File::from(OwnedFd::from(socket.try_clone()?))
            .set_permissions(mode())
            .or_else(|error| if cfg!(target_os = "linux") { Err(error) } else { Ok(()) })?;
        socket.bind(&address).or_else(|error| {
            if error.kind() != ErrorKind::AddrInUse || !is_abandoned(&path) {
                return Err(error);
            }
            fs::remove_file(&path)?;
            socket.bind(&address)
        })?;
        fs::set_permissions(&path, mode())?;
        socket.set_read_timeout(Some(STOP_POLL))?;
        Ok(Self::new(Place::Unix(path), socket, None))
    }

    fn new(place: Place, socket: Socket, receive_buffer_bytes: Option<u64>) -> Self {
        let account = SocketAccount::new(&place, receive_buffer_bytes);
        let file = if let Place::Unix(path) = &place { identity(path).ok() } else { None };
        Self { place, file, source: Source::new(socket, account), threads: Vec::new() }
    }

    /// Where it listens, with the port that the kernel gave for port 0.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What comes through it and what is lost at it.
    pub fn account(&self) -> &Arc<SocketAccount> {
        &self.source.account
    }

    /// Starts so many threads, at least one.
    pub fn start(&mut self, intake: &Arc<Intake>, clock: &Clock, threads: usize) -> io::Result<()> {
        for _ in 0..threads.max(1) {
            let receiver = Receiver::new(&self.source.socket, intake.source_limit().is_some())?;
            let (source, intake, clock) = (Arc::clone(&self.source), Arc::clone(intake), clock.clone());
            let thread = thread::Builder::new().name("cortex-listener".into());
            self.threads.push(thread.spawn(move || source.run(receiver, &intake, &clock))?);
        }
        Ok(())
    }

    /// Refuses what is sent from now on, reads what the kernel had accepted, and ends the threads.
    pub fn stop(mut self) {
        let outcome = match &self.place {
            Place::Udp(address) => {
                let ip = match address.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                    ip => ip,
                };
                self.source.socket.connect(&SocketAddr::new(ip, address.port()).into())
            }
            Place::Unix(path) => close_unix(&self.source.socket, path, self.file.take()),
        };
        if let Err(error) = outcome {
            tracing::warn!(place = %self.place, %error, "the socket could not be closed to senders before it is emptied");
        }
        // From here a read that finds nothing ends its thread, without waiting.
        let _ = self.source.socket.set_nonblocking(true);
        self.source.stopping.store(true, Ordering::Release);
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

impl Drop for Listener {
    /// A collector that cannot start after all leaves no file behind.
    fn drop(&mut self) {
        if let (Place::Unix(path), Some(file)) = (&self.place, self.file.take()) {
            let _ = close_unix(&self.source.socket, path, Some(file));
        }
    }
}

/// What the kernel granted, in the unit in which it was asked for: Linux doubles that for its own book-keeping.
fn granted_bytes(socket: &Socket) -> io::Result<u64> {
    let bytes = socket.recv_buffer_size()? as u64;
    Ok(if cfg!(target_os = "linux") { bytes / 2 } else { bytes })
}

/// Whether the file is a socket that nobody listens on: what a collector leaves that was killed.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket
        && UnixDatagram::unbound()
            .and_then(|probe| probe.connect(path))
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Refuses what others send from now on, and takes the file away, so that a later collector finds none.
/// What stands there now may be another's, if somebody removed ours to put it there.
fn close_unix(socket: &Socket, path: &Path, file: Option<(u64, u64)>) -> io::Result<()> {
    let outcome = socket.connect(&SockAddr::unix(path)?);
    if file == Some(identity(path)?) {
        fs::remove_file(path)?;
    }
    outcome
}

/// Which file is there: its device and its number.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::UdpSocket;

    use super::super::registry::Registry;
    use super::*;
    use crate::store::Restored;

    const BUFFER_BYTES: usize = 8 << 20;

    fn bind(address: &str) -> io::Result<Listener> {
        Listener::bind(address.parse().unwrap(), BUFFER_BYTES, false)
    }

    fn intake() -> Arc<Intake> {
        Arc::new(Intake::new(Registry::new(Restored::default()), 0))
    }

    fn udp(listener: &Listener) -> SocketAddr {
        let Place::Udp(address) = listener.place() else { panic!("not UDP") };
        *address
    }

    #[test]
    fn a_stop_reads_what_was_accepted_and_refuses_what_comes_later() {
        let mut listener = bind("127.0.0.1:0").unwrap();
        let intake = intake();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(udp(&listener)).unwrap();
        for _ in 0..100 {
            client.send(b"c:1|c").unwrap();
        }
        listener.start(&intake, &Clock::manual(0), 1).unwrap();
        listener.stop();
        assert_eq!(intake.lock().totals.datagrams, 100);
        let _ = client.send(b"c:1|c");
        assert!(client.take_error().unwrap().is_some(), "a later sender learns that nobody listens");
    }

    #[test]
    fn a_taken_port_is_refused() {
        let first = bind("127.0.0.1:0").unwrap();
        assert_eq!(Listener::bind(udp(&first), BUFFER_BYTES, false).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_kernel_drops_is_counted_also_at_the_end_of_a_burst() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), 4096, false).unwrap();
        assert_eq!(listener.account().receive_buffer_bytes(), Some(4096));
        let intake = intake();
        // The thread takes a batch at most, then waits for the lock: the rest does not fit.
        let held = intake.lock();
        listener.start(&intake, &Clock::manual(0), 1).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..1000 {
            client.send_to(&[b'x'; 1000], udp(&listener)).unwrap();
        }
        drop(held);
        let account = Arc::clone(listener.account());
        listener.stop();
        assert!(account.kernel_drops() > 900);
        assert_eq!(account.datagrams() + account.kernel_drops(), 1000);
        assert_eq!(intake.lock().totals.datagrams, account.datagrams());
    }

    #[test]
    fn a_unix_socket_is_read_to_its_end_and_closed_to_later_senders() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let mut listener = Listener::bind_unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(listener.place().to_string(), format!("unix://{}", path.display()));
        let client = UnixDatagram::unbound().unwrap();
        client.connect(&path).unwrap();
        // As many as the shortest queue takes.
        (0..5).for_each(|_| assert_eq!(client.send(b"c:1|c").unwrap(), 5));
        let intake = intake();
        listener.start(&intake, &Clock::manual(0), 1).unwrap();
        listener.stop();
        assert_eq!(intake.lock().totals.datagrams, 5);
        assert!(client.send(b"c:1|c").is_err(), "one who was connected learns that nobody listens");
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_a_living_one_and_a_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        drop(UnixDatagram::bind(&path).unwrap());
        assert!(path.exists(), "as a kill leaves it");
        let living = Listener::bind_unix(&path).unwrap();
        assert_eq!(Listener::bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(living);
        fs::write(&path, "mine").unwrap();
        assert_eq!(Listener::bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_listener_that_never_started_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let listener = Listener::bind_unix(&path).unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_another_put_in_the_place_of_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let first = Listener::bind_unix(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Listener::bind_unix(&path).unwrap();
        first.stop();
        assert!(path.exists());
        second.stop();
        assert!(!path.exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn of_a_datagram_that_is_too_long_the_whole_messages_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let mut listener = Listener::bind_unix(&path).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        let line = b"c:1|c\n";
        client.send_to(&line.repeat(12_000), &path).unwrap();
        client.send_to(&b"x".repeat(70_000), &path).unwrap();
        let intake = intake();
        listener.start(&intake, &Clock::manual(0), 1).unwrap();
        let account = Arc::clone(listener.account());
        listener.stop();
        assert_eq!((account.datagrams(), account.truncated(), account.kernel_drops()), (2, 2, 0));
        let totals = intake.lock().totals.clone();
        assert_eq!((totals.datagrams, totals.messages), (2, 65_535 / 6 + 2));
        assert_eq!(totals.dropped["truncated"].count, 2);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_source_sends_beyond_its_limit_is_counted_and_others_are_heard() {
        let limit = Arc::new(SourceLimit::new(10));
        let intake = Intake::new(Registry::new(Restored::default()), 0).with_source_limit(Some(limit));
        let intake = Arc::new(intake);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let (mut udp_listener, mut unix) = (bind("127.0.0.1:0").unwrap(), Listener::bind_unix(&path).unwrap());
        let [wild, tame] = [(), ()].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        for i in 1..=1000 {
            let header = format!("cortex_client_payload_sequence:{i}|g|#client_id:00000000000000ff\n");
            wild.send_to(format!("{header}wild:1|c\n\nwild:1|c").as_bytes(), udp(&udp_listener)).unwrap();
        }
        tame.send_to(b"tame:1|c", udp(&udp_listener)).unwrap();
        // Too many at once for a socket's queue: they are sent while they are read.
        let started = Instant::now();
        unix.start(&intake, &Clock::manual(0), 1).unwrap();
        udp_listener.start(&intake, &Clock::manual(0), 1).unwrap();
        for _ in 0..100 {
            UnixDatagram::unbound().unwrap().send_to(b"unix:1|c", &path).unwrap();
        }
        udp_listener.stop();
        let most = 10 * (started.elapsed().as_secs() + 2);
        unix.stop();
        let state = intake.lock();
        let admitted = 1000 - intake.source_limit().unwrap().beyond()[0].1;
        assert!((10..=most).contains(&admitted), "{admitted}");
        assert_eq!(intake.source_limit().unwrap().beyond()[0].0, wild.local_addr().unwrap().to_string());
        assert_eq!((state.totals.datagrams, state.totals.messages), (1101, 3101));
        let dropped = &state.totals.dropped["source_limit"];
        assert_eq!((dropped.count, &*dropped.example), (2 * (1000 - admitted), "wild:1|c"));
        let sender = &state.senders.status()[0];
        assert_eq!((sender.payloads, sender.payloads_missing), (1000, 0), "what came is not missing");
        drop(state);
        let tick = intake.take(20, 20, 10, |_, _| None);
        let value_of = |name: &str| {
            let id = tick.started.iter().find(|series| series.labels.name() == name).unwrap().id;
            tick.samples.iter().find(|(other, _)| *other == id).unwrap().1.as_float().unwrap()
        };
        assert_eq!((value_of("wild"), value_of("tame"), value_of("unix")), (2.0 * admitted as f64, 1.0, 100.0));
    }

    #[test]
    fn several_sockets_feed_one_intake_ipv6_too() {
        let intake = intake();
        let mut listeners: Vec<_> =
            ["127.0.0.1:0", "127.0.0.1:0", "[::1]:0"].iter().filter_map(|address| bind(address).ok()).collect();
        assert!(listeners.len() >= 2, "a host without IPv6 has the first two");
        for listener in &mut listeners {
            listener.start(&intake, &Clock::manual(0), 1).unwrap();
            let client = UdpSocket::bind((udp(listener).ip(), 0)).unwrap();
            client.send_to(b"c:1|c", udp(listener)).unwrap();
        }
        let sent = listeners.len() as u64;
        listeners.into_iter().for_each(Listener::stop);
        assert_eq!(intake.lock().totals.messages, sent);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_busy_socket_is_read_many_datagrams_at_a_time() {
        // A thread was woken for nearly every datagram that came by itself.
        let mut listener = bind("127.0.0.1:0").unwrap();
        if !listener.source.may_pause {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "root gets the buffer that it asks for");
            return;
        }
        let intake = intake();
        listener.start(&intake, &Clock::manual(0), 1).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(udp(&listener)).unwrap();
        for _ in 0..4000 {
            client.send(b"c:1|c").unwrap();
            let until = Instant::now() + Duration::from_micros(40);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        }
        let source = Arc::clone(&listener.source);
        listener.stop();
        let batches = source.received.lock().batches;
        assert_eq!(intake.lock().totals.datagrams, 4000);
        assert!(batches < 1500, "{batches}");
    }

    #[test]
    fn a_socket_that_holds_little_is_read_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let unix = Listener::bind_unix(&folder.path().join("metrics.sock")).unwrap();
        let small = Listener::bind("127.0.0.1:0".parse().unwrap(), 64 << 10, false).unwrap();
        assert!(!unix.source.may_pause && !small.source.may_pause);
    }

    #[test]
    fn messages_of_a_sender_keep_their_order_whatever_the_number_of_threads() {
        let mut listener = bind("127.0.0.1:0").unwrap();
        let intake = intake();
        listener.start(&intake, &Clock::manual(0), 4).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(udp(&listener)).unwrap();
        const SENT: u64 = 20_000;
        for i in 1..=SENT {
            // A gauge is set, changed and set again; each number is a series that is new, then known.
            let text = format!("g:{i}|g|#a:b\nd:{i}|g|#a:b\nd:+1|g|#a:b\nc:1|c\nnew:{i}|g|#n:{}\nh:{i}|h", i / 10);
            client.send(text.as_bytes()).unwrap();
            while i % 50 == 0 && intake.lock().totals.datagrams < i.saturating_sub(100) {
                thread::yield_now();
            }
        }
        listener.stop();
        let totals = intake.lock().totals.clone();
        assert_eq!((totals.datagrams, totals.messages, totals.dropped.len()), (SENT, 6 * SENT, 0));
        let tick = intake.take(20, 20, 10, |_, _| None);
        let names: HashMap<_, _> =
            tick.started.iter().map(|started| (started.id, started.labels.to_string())).collect();
        let values: HashMap<_, _> = tick.samples.iter().map(|(id, value)| (names[id].clone(), value)).collect();
        let value_of = |series: &str| values[series];
        let last = SENT as f64;
        assert_eq!(value_of(r#"g{a="b"}"#).as_float(), Some(last));
        assert_eq!(value_of(r#"d{a="b"}"#).as_float(), Some(last + 1.0));
        assert_eq!(value_of("c").as_float(), Some(last));
        assert_eq!(value_of("h").as_histogram().unwrap().count(), last);
        for n in 0..SENT / 10 {
            let newest = (10 * n + 9) as f64;
            assert_eq!(value_of(&format!("new{{n=\"{n}\"}}")).as_float(), Some(newest), "{n}");
        }
    }
}
