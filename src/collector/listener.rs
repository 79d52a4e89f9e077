//! The listener: a thread that empties one socket into the intake.
//!
//! On stop it first connects its socket to itself: from then on the kernel refuses what others send, so that a client on
//! this host knows at once and holds it, while everything that the kernel had accepted before is still read.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::intake::Intake;
use super::receive::Receiver;
use crate::clock::Clock;

/// Asked of the kernel for what arrives while we are busy; it grants at most `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
/// A quiet listener looks so often whether it shall stop.
const STOP_POLL: Duration = Duration::from_millis(250);

/// A bound socket that nobody reads yet, or the thread that reads it.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    socket: Arc<Socket>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Binds a UDP socket. A port that is taken is an error: two collectors never share one.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        // Best effort: a smaller buffer works too, and drops are counted.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
        socket.bind(&address.into())?;
        socket.set_read_timeout(Some(STOP_POLL))?;
        let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no address"))?;
        Ok(Self { address, socket: Arc::new(socket), stopping: Arc::default(), thread: None })
    }

    /// Where it listens, with the port that the kernel gave for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the kernel granted for datagrams that wait, in bytes.
    pub fn receive_buffer_bytes(&self) -> usize {
        self.socket.recv_buffer_size().unwrap_or(0)
    }

    /// Starts the thread.
    pub fn start(&mut self, intake: Arc<Intake>, clock: Clock) -> io::Result<()> {
        let mut receiver = Receiver::new(&self.socket)?;
        let (socket, stopping) = (Arc::clone(&self.socket), Arc::clone(&self.stopping));
        let thread = thread::Builder::new().name("cortex-listener".into()).spawn(move || {
            loop {
                // Read before receiving: what arrives before the flag is set is read after it.
                let is_last = stopping.load(Ordering::Acquire);
                match receiver.receive(&socket) {
                    Ok(()) => take(&receiver, &intake, &clock),
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock | ErrorKind::TimedOut if is_last => return,
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
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
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        if let Err(error) = self.socket.connect(&SocketAddr::new(ip, self.address.port()).into()) {
            tracing::warn!(%error, "the socket could not be closed to senders before it is emptied");
        }
        // From here a read that finds nothing ends the thread, without waiting.
        let _ = SockRef::from(&*self.socket).set_nonblocking(true);
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn take(receiver: &Receiver, intake: &Intake, clock: &Clock) {
    let now_ms = clock.now_ms();
    let mut state = intake.lock();
    receiver.datagrams().for_each(|datagram| state.datagram(datagram, now_ms));
    state.totals.kernel_drops = receiver.kernel_drops();
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::super::registry::Registry;
    use super::*;
    use crate::store::Restored;

    fn intake() -> Arc<Intake> {
        Arc::new(Intake::new(Registry::new(Restored::default()), 0))
    }

    #[test]
    fn a_stop_reads_what_was_accepted_and_refuses_what_comes_later() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let intake = intake();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(listener.address()).unwrap();
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
        let first = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(Listener::bind(first.address()).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn what_the_kernel_drops_is_counted() {
        let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        SockRef::from(&*listener.socket).set_recv_buffer_size(1).unwrap();
        let intake = intake();
        // The option must be on before the drops: the thread starts, then waits for the lock.
        let held = intake.lock();
        listener.start(Arc::clone(&intake), Clock::manual(0)).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..1000 {
            client.send_to(&[b'x'; 1000], listener.address()).unwrap();
        }
        drop(held);
        // A datagram that is received tells of the drops before it: one that is dropped itself does not.
        let mut sent = 1000;
        let is_all_known = |sent: u64| {
            let totals = &intake.lock().totals;
            totals.datagrams + totals.kernel_drops == sent
        };
        while !is_all_known(sent) && sent < 2000 {
            client.send_to(b"c:1|c", listener.address()).unwrap();
            sent += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        listener.stop();
        let totals = intake.lock().totals.clone();
        assert!(totals.kernel_drops > 0 || cfg!(not(target_os = "linux")));
        assert_eq!(totals.datagrams + totals.kernel_drops, sent);
    }
}
