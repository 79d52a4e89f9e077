//! The transport: hands a payload to the operating system, and finds out whether somebody took it.
//!
//! What every error means for the account, wherever it comes from:
//!
//! | the system says | the payload | the socket |
//! |---|---|---|
//! | an error is pending before the send | not sent; the one before it was refused late | kept |
//! | `ECONNREFUSED` from `send` over UDP | the same: it came in between | kept |
//! | any error right after the send (`SO_ERROR`) | refused: on the same host the answer is immediate | kept if a port is closed |
//! | `EAGAIN`, `ENOBUFS`, `ENOMEM` | refused: a queue is full, which says nothing about the peer | kept |
//! | `EMSGSIZE` | can never be sent: dropped, and counted as too long | opened anew |
//! | `ENOENT`, `ECONNREFUSED`, `EACCES`, … of a Unix socket | refused, never late: the receiver's queue is the only one | none is connected |
//! | all others (`EPERM` of a firewall, no route, the interface is gone, …) | refused | opened anew |
//!
//! A refused payload is held by whoever called: nothing of it has left.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::config::Endpoint;
use super::resolver::Lookup;
use super::udp::Udp;
use super::unix::Unix;

/// Why a payload did not leave.
#[derive(Debug)]
pub(super) struct Refusal {
    /// What the operating system said.
    pub(super) error: io::Error,
    /// True if the payload before this one was refused too, though it seemed to have left.
    pub(super) is_late: bool,
}

impl Refusal {
    /// True if this payload is larger than the way to the endpoint allows: it would be refused for ever.
    pub(super) fn is_too_long(&self) -> bool {
        self.error.raw_os_error() == Some(libc::EMSGSIZE)
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { error, is_late: false }
    }
}

/// Whether a queue on the way was full: it says nothing about the peer.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

/// The way to the endpoint; opened when it is first needed.
#[derive(Debug)]
pub(super) struct Transport {
    endpoint: Endpoint,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Udp(Box<Udp>),
    Unix(Unix),
}

impl Transport {
    /// A host name begins to be looked up now, so that it is known when the first payload comes.
    pub(super) fn new(endpoint: Endpoint) -> Self {
        let way = match &endpoint {
            Endpoint::Udp { host, port } => Way::Udp(Box::new(Udp::new(host, *port, Lookup::default()))),
            Endpoint::Unix(path) => Way::Unix(Unix::new(path)),
        };
        Self { endpoint, way }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends one payload. It waits for nothing but a look-up that has just begun, and for room in a full Unix socket:
    /// 40 and 25 ms at most, the latter in all payloads since `begin_flush` together.
    pub(super) fn send(&mut self, payload: &[u8]) -> Result<(), Refusal> {
        match &mut self.way {
            Way::Udp(udp) => udp.send(payload),
            Way::Unix(unix) => Ok(unix.send(payload)?),
        }
    }

    /// A flush begins: there is patience again.
    pub(super) fn begin_flush(&mut self) {
        if let Way::Unix(unix) = &mut self.way {
            unix.begin_flush();
        }
    }

    /// Waits for a look-up under way, at most `patience` from its start, and until its thread is gone.
    pub(super) fn settle(&mut self, patience: Duration) {
        if let Way::Udp(udp) = &mut self.way {
            udp.settle(patience);
        }
    }
}
