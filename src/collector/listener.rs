//! The listener: a thread that empties one socket into the intake.
//!
//! On stop it first connects its socket to itself: from then on the kernel refuses what others send, so that a client on
//! this host knows at once and holds it, while everything that the kernel had accepted before is still read.
//!
//! One thread reads a socket, so that what one sender sends to it is applied in the order in which it was sent.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::intake::Intake;
use super::receive::{self, Receiver};
use super::socket_account::SocketAccount;
use crate::clock::Clock;

/// A quiet listener looks so often whether it shall stop.
const STOP_POLL: Duration = Duration::from_millis(250);

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

/// A bound socket that nobody reads yet, or the thread that reads it.
#[derive(Debug)]
pub struct Listener {
    place: Place,
    account: Arc<SocketAccount>,
    socket: Arc<Socket>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Binds a UDP socket, with room for `receive_buffer_bytes` of datagrams that wait while we are busy if the kernel grants
    /// as much. A port that is taken is an error: two collectors never share one.
    pub fn bind(address: SocketAddr, receive_buffer_bytes: usize) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
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
        socket.bind(&address).or_else(|error| {
            if error.kind() != ErrorKind::AddrInUse || !is_abandoned(&path) {
                return Err(error);
            }
            fs::remove_file(&path)?;
            socket.bind(&address)
        })?;
        fs::set_permissions(&path, fs::Permissions::from_mode(UNIX_MODE))?;
        socket.set_read_timeout(Some(STOP_POLL))?;
        Ok(Self::new(Place::Unix(path), socket, None))
    }

    fn new(place: Place, socket: Socket, receive_buffer_bytes: Option<u64>) -> Self {
        let account = Arc::new(SocketAccount::new(&place, receive_buffer_bytes));
        Self { place, account, socket: Arc::new(socket), stopping: Arc::default(), thread: None }
    }

    /// Where it listens, with the port that the kernel gave for port 0.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What comes through it and what is lost at it.
    pub fn account(&self) -> &Arc<SocketAccount> {
        &self.account
    }

    /// Starts the thread.
    pub fn start(&mut self, intake: Arc<Intake>, clock: Clock) -> io::Result<()> {
        let mut receiver = Receiver::new(&self.socket)?;
        let (socket, stopping, account) =
            (Arc::clone(&self.socket), Arc::clone(&self.stopping), Arc::clone(&self.account));
        let thread = thread::Builder::new().name("cortex-listener".into()).spawn(move || {
            loop {
                // Read before receiving: what arrives before the flag is set is read after it.
                let is_last = stopping.load(Ordering::Acquire);
                match receiver.receive(&socket) {
                    Ok(()) => take(&receiver, &account, &intake, &clock),
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                            // No datagram tells of the drops at the end of a burst: none came after them.
                            if let Some(drops) = receive::kernel_drops(&socket) {
                                account.saw_kernel_drops(drops);
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
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Refuses what is sent from now on, reads what the kernel had accepted, and ends the thread.
    pub fn stop(mut self) {
        let outcome = match &self.place {
            Place::Udp(address) => {
                let ip = match address.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                    ip => ip,
                };
                self.socket.connect(&SocketAddr::new(ip, address.port()).into())
            }
            Place::Unix(path) => close_unix(&self.socket, path),
        };
        if let Err(error) = outcome {
            tracing::warn!(place = %self.place, %error, "the socket could not be closed to senders before it is emptied");
        }
        // From here a read that finds nothing ends the thread, without waiting.
        let _ = SockRef::from(&*self.socket).set_nonblocking(true);
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn take(receiver: &Receiver, account: &SocketAccount, intake: &Intake, clock: &Clock) {
    let now_ms = clock.now_ms();
    let (mut datagrams, mut truncated) = (0, 0);
    let mut state = intake.lock();
    for (datagram, is_whole) in receiver.datagrams() {
        datagrams += 1;
        if is_whole {
            state.datagram(datagram, now_ms);
        } else {
            truncated += 1;
            state.truncated_datagram(datagram, now_ms);
        }
    }
    account.saw_datagrams(datagrams, truncated);
    if let Some(drops) = receiver.kernel_drops() {
        account.saw_kernel_drops(drops);
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
fn close_unix(socket: &Socket, path: &Path) -> io::Result<()> {
    let outcome = socket.connect(&SockAddr::unix(path)?);
    fs::remove_file(path)?;
    outcome
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::super::registry::Registry;
    use super::*;
    use crate::store::Restored;

    const BUFFER_BYTES: usize = 8 << 20;

    fn bind(address: &str) -> io::Result<Listener> {
        Listener::bind(address.parse().unwrap(), BUFFER_BYTES)
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
        listener.start(Arc::clone(&intake), Clock::manual(0)).unwrap();
        listener.stop();
        assert_eq!(intake.lock().totals.datagrams, 100);
        let _ = client.send(b"c:1|c");
        assert!(client.take_error().unwrap().is_some(), "a later sender learns that nobody listens");
    }

    #[test]
    fn a_taken_port_is_refused() {
        let first = bind("127.0.0.1:0").unwrap();
        assert_eq!(Listener::bind(udp(&first), BUFFER_BYTES).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_kernel_drops_is_counted_also_at_the_end_of_a_burst() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), 4096).unwrap();
        assert_eq!(listener.account().receive_buffer_bytes(), Some(4096));
        let intake = intake();
        // The thread takes a batch at most, then waits for the lock: the rest does not fit.
        let held = intake.lock();
        listener.start(Arc::clone(&intake), Clock::manual(0)).unwrap();
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
        listener.start(Arc::clone(&intake), Clock::manual(0)).unwrap();
        listener.stop();
        assert_eq!(intake.lock().totals.datagrams, 5);
        assert!(client.send(b"c:1|c").is_err(), "one who was connected learns that nobody listens");
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_a_living_one_and_a_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        drop(Listener::bind_unix(&path).unwrap());
        assert!(path.exists(), "as a kill leaves it");
        let living = Listener::bind_unix(&path).unwrap();
        assert_eq!(Listener::bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(living);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert_eq!(Listener::bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
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
        listener.start(Arc::clone(&intake), Clock::manual(0)).unwrap();
        let account = Arc::clone(listener.account());
        listener.stop();
        assert_eq!((account.datagrams(), account.truncated(), account.kernel_drops()), (2, 2, 0));
        let totals = intake.lock().totals.clone();
        assert_eq!((totals.datagrams, totals.messages), (2, 65_535 / 6 + 2));
        assert_eq!(totals.dropped["truncated"].count, 2);
    }

    #[test]
    fn several_sockets_feed_one_intake_ipv6_too() {
        let intake = intake();
        let mut listeners: Vec<_> =
            ["127.0.0.1:0", "127.0.0.1:0", "[::1]:0"].iter().filter_map(|address| bind(address).ok()).collect();
        assert!(listeners.len() >= 2, "a host without IPv6 has the first two");
        for listener in &mut listeners {
            listener.start(Arc::clone(&intake), Clock::manual(0)).unwrap();
            let client = UdpSocket::bind((udp(listener).ip(), 0)).unwrap();
            client.send_to(b"c:1|c", udp(listener)).unwrap();
        }
        let sent = listeners.len() as u64;
        listeners.into_iter().for_each(Listener::stop);
        assert_eq!(intake.lock().totals.messages, sent);
    }
}
