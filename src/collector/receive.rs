//! Takes datagrams from a socket, many at a time where the system can.
//!
//! On Linux that is `recvmmsg` with `SO_RXQ_OVFL`: a batch costs one system call, and the kernel tells with it how many
//! datagrams it has dropped since the socket was opened; it does so only with a datagram that came after them, so the same
//! count is also there to be asked for (`SO_MEMINFO`). Elsewhere it is `recv`, one at a time, and drops stay unknown.

use std::io;
use std::net::SocketAddr;

use socket2::Socket;

/// What a datagram is when it has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    Whole,
    /// Its end did not fit into the buffer.
    Truncated,
    /// Its source has sent too many.
    BeyondLimit,
}

/// No UDP datagram is longer. One of a Unix socket may be: then its end is cut off, and we are told.
const DATAGRAM_BYTES_MAX: usize = 65_535;

#[cfg(target_os = "linux")]
pub(super) use linux::{Receiver, force_receive_buffer, kernel_drops};
#[cfg(not(target_os = "linux"))]
pub(super) use portable::{Receiver, force_receive_buffer, kernel_drops};

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::AsRawFd as _;

    use socket2::{SockAddr, SockAddrStorage};

    use super::{Arrival, DATAGRAM_BYTES_MAX, Socket, SocketAddr, io};

    /// Datagrams in one system call.
    const BATCH: usize = 64;
    /// Room for one control message with a `u32`, aligned as `cmsghdr` is.
    const CONTROL_WORDS: usize = 4;

    /// The buffers for one batch, and what tells the kernel of them: made once, since each batch would cost as much again.
    pub(in super::super) struct Receiver {
        /// Pointed to by `vectors`, these by `headers`; none of them is moved or dropped before the receiver is.
        buffers: Box<[u8]>,
        _vectors: Box<[libc::iovec]>,
        headers: Box<[libc::mmsghdr]>,
        /// For the first datagram of a batch alone: once there was a drop, the kernel takes its time to tell with each.
        control: Box<[u64; CONTROL_WORDS]>,
        /// Who sent each datagram; empty where nobody wants to know.
        senders: Box<[SockAddrStorage]>,
        /// How long each datagram is.
        lengths: Vec<(usize, Arrival)>,
        kernel_drops: Option<u32>,
    }

    // SAFETY: the pointers in vectors and headers lead to the heap, to what the receiver itself owns, and move with it.
    #[allow(unsafe_code)]
    unsafe impl Send for Receiver {}

    #[allow(unsafe_code)]
    fn set_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the pointer and the size are those of a c_int that outlives the call.
        let outcome = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sets the receive buffer beyond `net.core.rmem_max`, which takes `CAP_NET_ADMIN`.
    pub(in super::super) fn force_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
        let bytes = libc::c_int::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        set_option(socket, libc::SO_RCVBUFFORCE, bytes)
    }

    /// How many datagrams the kernel has dropped on this socket, in 32 bits that wrap; `None` before Linux 4.12.
    #[allow(unsafe_code)]
    pub(in super::super) fn kernel_drops(socket: &Socket) -> Option<u32> {
        let mut figures = [0_u32; libc::SK_MEMINFO_DROPS as usize + 1];
        let mut length = size_of_val(&figures) as libc::socklen_t;
        // SAFETY: the pointer and the length are those of an array of u32 that outlives the call; the kernel writes no more.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                figures.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let is_whole = outcome == 0 && length as usize == size_of_val(&figures);
        figures.last().copied().filter(|_| is_whole)
    }

    impl Receiver {
        /// `with_senders`: the kernel shall tell who sent each datagram.
        #[allow(unsafe_code)]
        pub(in super::super) fn new(socket: &Socket, with_senders: bool) -> io::Result<Self> {
            set_option(socket, libc::SO_RXQ_OVFL, 1)?;
            // In one piece: so much comes from the system untouched, and takes what datagrams fill.
            let mut buffers = vec![0; BATCH * DATAGRAM_BYTES_MAX].into_boxed_slice();
            let vector =
                |buffer: &mut [u8]| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let mut vectors: Box<[libc::iovec]> = buffers.chunks_mut(DATAGRAM_BYTES_MAX).map(vector).collect();
            let header = |vector: &mut libc::iovec| {
                // SAFETY: mmsghdr is a C struct of integers and pointers, for which zeros are valid.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
                header
            };
            let mut headers: Box<[libc::mmsghdr]> = vectors.iter_mut().map(header).collect();
            let senders = if with_senders { BATCH } else { 0 };
            let mut senders: Box<[SockAddrStorage]> = (0..senders).map(|_| SockAddrStorage::zeroed()).collect();
            for (header, sender) in headers.iter_mut().zip(&mut senders) {
                header.msg_hdr.msg_name = std::ptr::from_mut(sender).cast();
            }
            let (control, lengths) = (Box::new([0; CONTROL_WORDS]), Vec::with_capacity(BATCH));
            Ok(Self { buffers, _vectors: vectors, headers, control, senders, lengths, kernel_drops: None })
        }

        /// Waits for at least one datagram, as long as the socket's read timeout, and takes what is there.
        #[allow(unsafe_code)]
        pub(in super::super) fn receive(&mut self, socket: &Socket) -> io::Result<()> {
            self.lengths.clear();
            self.kernel_drops = None;
            if let Some(first) = self.headers.first_mut() {
                // What the kernel writes over; lengths and flags it only writes.
                first.msg_hdr.msg_control = self.control.as_mut_ptr().cast();
                first.msg_hdr.msg_controllen = size_of_val(&*self.control) as _;
            }
            for header in self.headers.iter_mut().take(self.senders.len()) {
                header.msg_hdr.msg_namelen = size_of::<SockAddrStorage>() as _;
            }
            // SAFETY: every header points to a vector, and that to a buffer, and to the place of a sender or to none, which live as
            // long as self does.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    self.headers.len() as libc::c_uint,
                    libc::MSG_WAITFORONE,
                    std::ptr::null_mut(),
                )
            };
            if count < 0 {
                return Err(io::Error::last_os_error());
            }
            let received = self.headers.iter().take(count as usize);
            let length = |header: &libc::mmsghdr| {
                let is_whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
                (header.msg_len as usize, if is_whole { Arrival::Whole } else { Arrival::Truncated })
            };
            self.lengths.extend(received.map(length));
            self.kernel_drops = self.headers.first().and_then(|first| drops_of(&first.msg_hdr));
            Ok(())
        }

        /// Whether there was no more to take.
        pub(in super::super) fn is_emptied(&self) -> bool {
            self.lengths.len() < BATCH
        }

        /// Asks of each datagram of the last batch whether its sender is within the limit. One without an address, as those of Unix
        /// sockets mostly are, is not asked about.
        #[allow(unsafe_code)]
        pub(in super::super) fn limit(&mut self, mut admits: impl FnMut(SocketAddr) -> bool) {
            for (((_, arrival), header), sender) in self.lengths.iter_mut().zip(&self.headers).zip(&mut self.senders) {
                let length = header.msg_hdr.msg_namelen.min(size_of::<SockAddrStorage>() as _);
                let storage = std::mem::replace(sender, SockAddrStorage::zeroed());
                // SAFETY: the storage was zeroed, and the kernel wrote an address of this length over it.
                let sender = unsafe { SockAddr::new(storage, length) };
                if sender.as_socket().is_some_and(|sender| !admits(sender)) {
                    *arrival = Arrival::BeyondLimit;
                }
            }
        }

        /// The datagrams of the last batch.
        pub(in super::super) fn datagrams(&self) -> impl Iterator<Item = (&[u8], Arrival)> {
            let lengths = self.lengths.iter();
            self.buffers
                .chunks(DATAGRAM_BYTES_MAX)
                .zip(lengths)
                .filter_map(|(buffer, (length, arrival))| Some((buffer.get(..*length)?, *arrival)))
        }

        /// How many datagrams the kernel had dropped on this socket before the last batch, in 32 bits that wrap; `None` if it
        /// did not say: none yet.
        pub(in super::super) fn kernel_drops(&self) -> Option<u32> {
            self.kernel_drops
        }
    }

    /// The value of the control message `SO_RXQ_OVFL`, if the kernel sent one: it does once there was a drop.
    #[allow(unsafe_code)]
    fn drops_of(header: &libc::msghdr) -> Option<u32> {
        // SAFETY: the kernel filled msg_control and set msg_controllen; the CMSG functions stay within them.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(header);
            while let Some(message) = control.as_ref() {
                if message.cmsg_level == libc::SOL_SOCKET && message.cmsg_type == libc::SO_RXQ_OVFL {
                    return Some(libc::CMSG_DATA(control).cast::<u32>().read_unaligned());
                }
                control = libc::CMSG_NXTHDR(header, control);
            }
        }
        None
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use std::io::Read as _;

    use super::{Arrival, DATAGRAM_BYTES_MAX, Socket, SocketAddr, io};

    pub(in super::super) fn force_receive_buffer(_: &Socket, _: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn kernel_drops(_: &Socket) -> Option<u32> {
        None
    }

    /// The buffer for one datagram.
    pub(in super::super) struct Receiver {
        buffer: Vec<u8>,
        length: Option<usize>,
    }

    impl Receiver {
        pub(in super::super) fn new(_: &Socket, with_senders: bool) -> io::Result<Self> {
            if with_senders {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(Self { buffer: vec![0; DATAGRAM_BYTES_MAX], length: None })
        }

        pub(in super::super) fn receive(&mut self, mut socket: &Socket) -> io::Result<()> {
            self.length = None;
            self.length = Some(socket.read(&mut self.buffer)?);
            Ok(())
        }

        /// Nobody knows the sender here.
        pub(in super::super) fn limit(&mut self, _: impl FnMut(SocketAddr) -> bool) {}

        /// One datagram a call tells nothing of the next.
        pub(in super::super) fn is_emptied(&self) -> bool {
            false
        }

        /// `recv` does not tell when it cuts: a full buffer is taken for that.
        pub(in super::super) fn datagrams(&self) -> impl Iterator<Item = (&[u8], Arrival)> {
            let datagram = self.length.and_then(|length| self.buffer.get(..length));
            datagram.into_iter().map(|datagram| {
                let is_whole = datagram.len() < DATAGRAM_BYTES_MAX;
                (datagram, if is_whole { Arrival::Whole } else { Arrival::Truncated })
            })
        }

        pub(in super::super) fn kernel_drops(&self) -> Option<u32> {
            None
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_comes_with_a_datagram_and_what_is_asked_for_are_the_same_count() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let socket = Socket::from(server);
        socket.set_recv_buffer_size(4096).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut receiver = Receiver::new(&socket, false).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut taken = 0;
        for round in 1..=3 {
            for _ in 0..100 {
                client.send_to(b"c:1|c", address).unwrap();
            }
            let known = receiver.kernel_drops();
            receiver.receive(&socket).unwrap();
            taken += receiver.datagrams().count() as u64;
            assert_eq!(receiver.kernel_drops(), known, "the drops came after what was taken");
            client.send_to(b"c:1|c", address).unwrap();
            receiver.receive(&socket).unwrap();
            taken += 1;
            let drops = receiver.kernel_drops().unwrap();
            assert_eq!(kernel_drops(&socket), Some(drops));
            assert_eq!(taken + u64::from(drops), round * 101);
        }
    }
}
