//! The socket: sends a payload, and finds out whether somebody took it.
//!
//! A connected UDP socket to a closed port of the same host learns of the refusal at once. Reading `SO_ERROR` after a
//! `send` that succeeded tells that this very payload was refused; `ECONNREFUSED` from `send` itself tells that an earlier
//! one was, and that this one was not sent.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};

use socket2::{Domain, SockAddr, Socket, Type};

use super::config::Endpoint;

/// Why a payload did not leave.
#[derive(Debug)]
pub(super) struct Refusal {
    /// What the operating system said.
    pub(super) error: io::Error,
    /// True if the payload before this one was refused too, though it seemed to have left.
    pub(super) is_late: bool,
}

/// A socket to the endpoint, opened when it is first needed and anew after a refusal.
#[derive(Debug)]
pub(super) struct Transport {
    endpoint: Endpoint,
    socket: Option<Socket>,
}

impl Transport {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, socket: None }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends one payload, without waiting for anything but the resolution of a name.
    pub(super) fn send(&mut self, payload: &[u8]) -> Result<(), Refusal> {
        let now = |error| Refusal { error, is_late: false };
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(connect(&self.endpoint).map_err(now)?),
        };
        let outcome = match socket.send(payload) {
            Ok(_) => match socket.take_error() {
                Ok(None) => Ok(()),
                Ok(Some(error)) | Err(error) => Err(now(error)),
            },
            Err(error) => Err(Refusal { is_late: error.kind() == ErrorKind::ConnectionRefused, error }),
        };
        // A full buffer says nothing about the peer; everything else may mean that it has moved.
        if outcome.as_ref().is_err_and(|refusal| refusal.error.kind() != ErrorKind::WouldBlock) {
            self.socket = None;
        }
        outcome
    }
}

fn connect(endpoint: &Endpoint) -> io::Result<Socket> {
    let (socket, address) = match endpoint {
        Endpoint::Udp { host, port } => {
            let mut addresses = (host.as_str(), *port).to_socket_addrs()?;
            let address = addresses.next().ok_or_else(|| io::Error::other("the name has no address"))?;
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
            let any: SocketAddr = match address {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            socket.bind(&any.into())?;
            (socket, address.into())
        }
        Endpoint::Unix(path) => (Socket::new(Domain::UNIX, Type::DGRAM, None)?, SockAddr::unix(path)?),
    };
    socket.connect(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn every_payload_to_a_closed_port_of_this_host_is_known_to_be_refused() {
        // A plain send alternates between ok and ECONNREFUSED here: half the payloads would be lost unnoticed.
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut transport = Transport::new(Endpoint::Udp { host: "127.0.0.1".into(), port });
        for _ in 0..10 {
            let refusal = transport.send(b"a:1|c").unwrap_err();
            assert_eq!((refusal.error.kind(), refusal.is_late), (ErrorKind::ConnectionRefused, false));
        }
        let server = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        transport.send(b"a:2|c").unwrap();
        let mut buffer = [0; 10];
        let n = server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"a:2|c");
    }

    #[test]
    fn a_name_without_address_and_a_socket_without_file_are_refusals() {
        let mut transport = Transport::new(Endpoint::Udp { host: "no-such-host.invalid".into(), port: 1 });
        assert!(!transport.send(b"a:1|c").unwrap_err().is_late);
        let mut transport = Transport::new(Endpoint::Unix("/nonexistent/m.sock".into()));
        assert_eq!(transport.send(b"a:1|c").unwrap_err().error.kind(), ErrorKind::NotFound);
    }
}
