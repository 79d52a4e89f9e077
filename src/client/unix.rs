//! A Unix datagram socket: a file that may be missing, dead, full, or another one by now.
//!
//! The path is looked up with every payload, which costs a microsecond and means that a receiver that was started again
//! needs no attention. What the system takes is in the receiver's queue: nothing is refused later.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::transport::is_full;

/// How long the payloads of one flush wait for room, together. The queue of a Unix socket is short (10 datagrams, unless
/// `net.unix.max_dgram_qlen` says otherwise), so that it is full again and again while the receiver is at work.
const PATIENCE: Duration = Duration::from_millis(50);
/// A payload must fit into the send buffer with room to spare, whatever the system's default is.
const SEND_BUFFER_BYTES_MIN: usize = 65_536;

#[derive(Debug)]
pub(super) struct Unix {
    path: PathBuf,
    socket: Option<Socket>,
    patience: Duration,
}

impl Unix {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), socket: None, patience: PATIENCE }
    }

    pub(super) fn begin_flush(&mut self) {
        self.patience = PATIENCE;
    }

    pub(super) fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        let address = SockAddr::unix(&self.path)?;
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(open()?),
        };
        let outcome = match socket.send_to_with_flags(payload, &address, libc::MSG_DONTWAIT) {
            Err(error) if is_full(&error) && !self.patience.is_zero() => {
                let since = Instant::now();
                socket.set_write_timeout(Some(self.patience))?;
                let outcome = socket.send_to(payload, &address);
                // A signal that interrupts it is as good as no room.
                self.patience = self.patience.saturating_sub(since.elapsed());
                outcome.map_err(|error| if is_interrupted(&error) { ErrorKind::WouldBlock.into() } else { error })
            }
            outcome => outcome,
        };
        outcome.map(drop)
    }
}

fn is_interrupted(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Interrupted
}

fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    if socket.send_buffer_size()? < SEND_BUFFER_BYTES_MIN {
        socket.set_send_buffer_size(SEND_BUFFER_BYTES_MIN)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn received(server: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 100];
        let n = server.recv(&mut buffer).unwrap();
        buffer[..n].to_vec()
    }

    #[test]
    fn a_missing_and_a_dead_socket_refuse_and_a_new_one_in_its_place_takes_the_next_payload() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.sock");
        let mut unix = Unix::new(&path);
        assert_eq!(unix.send(b"a:1|c").unwrap_err().kind(), ErrorKind::NotFound);
        let server = UnixDatagram::bind(&path).unwrap();
        unix.send(b"a:2|c").unwrap();
        assert_eq!(received(&server), b"a:2|c");
        drop(server);
        assert_eq!(unix.send(b"a:3|c").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        let old = UnixDatagram::bind(&path).unwrap();
        unix.send(b"a:4|c").unwrap();
        // Replaced while the old one is still open somewhere.
        std::fs::remove_file(&path).unwrap();
        let new = UnixDatagram::bind(&path).unwrap();
        unix.send(b"a:5|c").unwrap();
        assert_eq!(received(&old), b"a:4|c");
        assert_eq!(received(&new), b"a:5|c");
    }

    #[test]
    fn a_full_socket_refuses_and_takes_again_when_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.sock");
        let server = UnixDatagram::bind(&path).unwrap();
        let mut unix = Unix::new(&path);
        unix.patience = Duration::from_millis(1);
        let mut sent = 0;
        let error = loop {
            match unix.send(&[b'x'; 50]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(is_full(&error), "{error}");
        assert!(unix.patience.is_zero(), "it waited for room, once for the whole flush");
        assert!(is_full(&unix.send(b"a:1|c").unwrap_err()));
        for _ in 0..sent {
            assert_eq!(received(&server), [b'x'; 50]);
        }
        unix.send(b"a:2|c").unwrap();
        assert_eq!(received(&server), b"a:2|c");
    }

    #[test]
    fn a_slow_receiver_is_waited_for_and_the_largest_payload_fits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.sock");
        let server = UnixDatagram::bind(&path).unwrap();
        let receiver = std::thread::spawn(move || {
            let mut buffer = [0; 10_000];
            (0..2_000).map(|_| server.recv(&mut buffer).unwrap()).sum::<usize>()
        });
        let mut unix = Unix::new(&path);
        for _ in 0..2_000 {
            while unix.send(&[b'x'; 8192]).is_err() {
                unix.begin_flush();
            }
        }
        assert_eq!(receiver.join().unwrap(), 2_000 * 8192);
    }
}
