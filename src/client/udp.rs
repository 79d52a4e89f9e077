//! UDP: a connected socket, which learns of the refusals of its own host at once.
//!
//! A plain `send` to a closed port alternates between ok, with the payload refused, and `ECONNREFUSED`, with the payload not
//! sent. So whatever is pending on the socket is read before each send, and again right after it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::resolver::{Lookup, Resolver};
use super::transport::{Refusal, is_full};

#[derive(Debug)]
pub(super) struct Udp {
    peers: Resolver,
    /// The address to try first: the one that took the last payload, or the one after it if that was refused late.
    first: Option<SocketAddr>,
    open: Option<Open>,
}

/// A socket that is connected to one of the peers.
#[derive(Debug)]
struct Open {
    address: SocketAddr,
    socket: Socket,
}

impl Udp {
    pub(super) fn new(host: &str, port: u16, lookup: Lookup) -> Self {
        Self { peers: Resolver::new(host, port, lookup), first: None, open: None }
    }

    pub(super) fn settle(&mut self, patience: Duration) {
        self.peers.settle(patience);
    }

    /// Sends to the address that took the last payload, and if that refuses, to the others that the name stands for: a
    /// refused payload has not arrived anywhere.
    pub(super) fn send(&mut self, payload: &[u8]) -> Result<(), Refusal> {
        if let Some(open) = &self.open
            && let Some(error) = open.socket.take_error()?
        {
            self.refused_late();
            return Err(Refusal { error, is_late: true });
        }
        let addresses = self.peers.addresses().to_vec();
        if addresses.is_empty() {
            return Err(self.peers.error().into());
        }
        let mut outcome = self.send_to_one_of(&addresses, payload);
        match &outcome {
            Ok(()) => self.peers.delivered(),
            Err(refusal) if refusal.is_late => self.refused_late(),
            Err(_) if self.peers.has_moved() => {
                let addresses = self.peers.addresses().to_vec();
                outcome = self.send_to_one_of(&addresses, payload);
            }
            Err(_) => {}
        }
        outcome
    }

    /// The address in use refused a payload that it seemed to take: the next payload tries the one after it.
    fn refused_late(&mut self) {
        self.peers.has_moved();
        let addresses = self.peers.addresses();
        let used = addresses.iter().position(|address| Some(*address) == self.first);
        self.first = addresses.iter().cycle().nth(used.map_or(0, |used| used + 1)).copied();
    }

    fn send_to_one_of(&mut self, addresses: &[SocketAddr], payload: &[u8]) -> Result<(), Refusal> {
        // The others in the resolver's order, after the first and then before it.
        let first = addresses.iter().position(|address| Some(*address) == self.first).unwrap_or(0);
        let mut outcome = Ok(());
        for address in addresses.iter().cycle().skip(first).take(addresses.len()) {
            outcome = self.send_to(*address, payload);
            self.first = Some(*address);
            match &outcome {
                Err(refusal) if !refusal.is_late && !is_full(&refusal.error) && !refusal.is_too_long() => {}
                _ => return outcome,
            }
        }
        outcome
    }

    fn send_to(&mut self, address: SocketAddr, payload: &[u8]) -> Result<(), Refusal> {
        let open = match self.open.take() {
            Some(open) if open.address == address => self.open.insert(open),
            _ => self.open.insert(Open { address, socket: connect(address)? }),
        };
        let outcome = match open.socket.send(payload) {
            Ok(_) => match open.socket.take_error() {
                Ok(None) => Ok(()),
                Ok(Some(error)) | Err(error) => Err(Refusal::from(error)),
            },
            Err(error) => Err(Refusal { is_late: error.kind() == ErrorKind::ConnectionRefused, error }),
        };
        // A closed port may open again, a full queue gets empty; everything else may be over only for a new socket.
        let is_kept = |error: &io::Error| error.kind() == ErrorKind::ConnectionRefused || is_full(error);
        if outcome.as_ref().is_err_and(|refusal| !is_kept(&refusal.error)) {
            self.open = None;
        }
        outcome
    }
}

fn connect(address: SocketAddr) -> io::Result<Socket> {
    // The port that the system picks may be the very one that a stopped collector has left: connected to itself, the
    // socket would take every payload and keep the collector from coming back. Holding on to it brings another.
    let mut unusable = Vec::new();
    for _ in 0..10 {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        socket.connect(&address.into())?;
        socket.set_nonblocking(true)?;
        if socket.local_addr()?.as_socket().is_none_or(|own| own.port() != address.port()) {
            return Ok(socket);
        }
        unusable.push(socket);
    }
    Err(ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::{Arc, Mutex};

    use super::*;

    fn closed_port() -> u16 {
        UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn received(server: &UdpSocket) -> String {
        let mut buffer = [0; 100];
        let n = server.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    fn named(addresses: &Arc<Mutex<Vec<SocketAddr>>>) -> Udp {
        let addresses = Arc::clone(addresses);
        let resolve = move |_: &str, _| Ok(addresses.lock().unwrap().clone());
        let hour = Duration::from_secs(3600);
        let lookup = Lookup { resolve: Arc::new(resolve), refresh: hour, retry_min: Duration::ZERO, patience: hour };
        Udp::new("collector", 7, lookup)
    }

    #[test]
    fn every_payload_to_a_closed_port_of_this_host_is_known_to_be_refused() {
        // A plain send alternates between ok and ECONNREFUSED here: half the payloads would be lost unnoticed.
        let port = closed_port();
        let mut udp = Udp::new("127.0.0.1", port, Lookup::default());
        for _ in 0..10 {
            let refusal = udp.send(b"a:1|c").unwrap_err();
            assert_eq!((refusal.error.kind(), refusal.is_late), (ErrorKind::ConnectionRefused, false));
        }
        let server = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        udp.send(b"a:2|c").unwrap();
        assert_eq!(received(&server), "a:2|c");
    }

    #[test]
    fn a_refusal_that_comes_later_counts_for_the_payload_before_and_holds_this_one() {
        // What another host's answer looks like: the error is pending when the next payload comes.
        let port = closed_port();
        let mut udp = Udp::new("127.0.0.1", port, Lookup::default());
        udp.send(b"a:1|c").unwrap_err();
        udp.open.as_ref().unwrap().socket.send(b"a:2|c").unwrap();
        let server = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        assert!(udp.send(b"a:3|c").unwrap_err().is_late);
        udp.send(b"a:3|c").unwrap();
        assert_eq!(received(&server), "a:3|c");
    }

    #[test]
    fn an_address_that_refuses_late_makes_way_for_the_next() {
        let port = closed_port();
        let server = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let addresses: Vec<SocketAddr> =
            ["127.0.0.2", "127.0.0.1"].map(|ip| format!("{ip}:{port}").parse().unwrap()).into();
        let mut udp = named(&Arc::new(Mutex::new(addresses.clone())));
        let second = UdpSocket::bind(addresses[0]).unwrap();
        udp.send(b"a:1|c").unwrap();
        assert_eq!(received(&second), "a:1|c");
        drop(second);
        udp.open.as_ref().unwrap().socket.send(b"a:2|c").unwrap();
        assert!(udp.send(b"a:3|c").unwrap_err().is_late);
        udp.send(b"a:3|c").unwrap();
        assert_eq!(received(&server), "a:3|c");
    }

    #[test]
    fn all_addresses_of_a_name_are_tried_and_the_one_that_took_it_is_kept() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let addresses = Arc::new(Mutex::new(vec![
            SocketAddr::new("::1".parse().unwrap(), port),
            SocketAddr::new("127.0.0.2".parse().unwrap(), port),
            SocketAddr::new("127.0.0.1".parse().unwrap(), port),
        ]));
        let mut udp = named(&addresses);
        for payload in ["a:1|c", "a:2|c"] {
            udp.send(payload.as_bytes()).unwrap();
            assert_eq!(received(&server), payload);
            assert_eq!(udp.open.as_ref().unwrap().address, server.local_addr().unwrap());
        }
        drop(server);
        assert!(!udp.send(b"a:3|c").unwrap_err().is_late, "all three refused it");
        let second = UdpSocket::bind(("127.0.0.2", port)).unwrap();
        udp.send(b"a:4|c").unwrap();
        assert_eq!(received(&second), "a:4|c");
    }

    #[test]
    fn a_name_that_moved_after_a_refusal_is_followed_with_the_same_payload() {
        let old = closed_port();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addresses = Arc::new(Mutex::new(vec![SocketAddr::new("127.0.0.1".parse().unwrap(), old)]));
        let mut udp = named(&addresses);
        udp.send(b"a:1|c").unwrap_err();
        *addresses.lock().unwrap() = vec![server.local_addr().unwrap()];
        udp.send(b"a:2|c").unwrap();
        assert_eq!(received(&server), "a:2|c");
    }

    #[test]
    fn a_name_that_does_not_resolve_holds_everything_until_it_does() {
        let addresses = Arc::new(Mutex::new(Vec::new()));
        let mut udp = named(&addresses);
        let refusal = udp.send(b"a:1|c").unwrap_err();
        assert!(!refusal.is_late && refusal.error.to_string().contains("no address"), "{}", refusal.error);
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        *addresses.lock().unwrap() = vec![server.local_addr().unwrap()];
        while udp.send(b"a:1|c").is_err() {
            udp.settle(Duration::from_secs(3600));
        }
        assert_eq!(received(&server), "a:1|c");
    }

    #[test]
    fn a_payload_that_no_datagram_can_hold_is_told_apart() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut udp = Udp::new("127.0.0.1", server.local_addr().unwrap().port(), Lookup::default());
        assert!(udp.send(&vec![0; 70_000]).unwrap_err().is_too_long());
        udp.send(b"a:1|c").unwrap();
        assert_eq!(received(&server), "a:1|c");
    }
}
