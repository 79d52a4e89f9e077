//! Takes datagrams from a socket, many at a time where the system can.
//!
//! On Linux that is `recvmmsg` with `SO_RXQ_OVFL`: a batch costs one system call, and the kernel tells with it how many
//! datagrams it has dropped since the socket was opened. Elsewhere it is `recv`, one at a time, and drops stay unknown.

use std::io;

use socket2::Socket;

/// No UDP datagram is longer. One of a Unix socket may be: then its end is cut off, and we are told.
const DATAGRAM_BYTES_MAX: usize = 65_535;

#[cfg(target_os = "linux")]
pub(super) use linux::Receiver;
#[cfg(not(target_os = "linux"))]
pub(super) use portable::Receiver;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::AsRawFd as _;

    use super::{DATAGRAM_BYTES_MAX, Socket, io};

    /// Datagrams in one system call.
    const BATCH: usize = 32;
    /// Room for one control message with a `u32`, aligned as `cmsghdr` is.
    const CONTROL_WORDS: usize = 4;

    /// The buffers for one batch.
    pub(in super::super) struct Receiver {
        buffers: Vec<Box<[u8]>>,
        /// How long each datagram is, and whether that is all of it.
        lengths: Vec<(usize, bool)>,
        kernel_drops: Option<u32>,
    }

    impl Receiver {
        /// The buffers, for a socket that from now on tells what the kernel drops.
        #[allow(unsafe_code)]
        pub(in super::super) fn new(socket: &Socket) -> io::Result<Self> {
            let on: libc::c_int = 1;
            // SAFETY: the pointer and the size are those of a c_int that outlives the call.
            let outcome = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_RXQ_OVFL,
                    std::ptr::from_ref(&on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            if outcome != 0 {
                return Err(io::Error::last_os_error());
            }
            let buffers = vec![vec![0; DATAGRAM_BYTES_MAX].into_boxed_slice(); BATCH];
            Ok(Self { buffers, lengths: Vec::with_capacity(BATCH), kernel_drops: None })
        }

        /// Waits for at least one datagram, as long as the socket's read timeout, and takes what is there.
        #[allow(unsafe_code)]
        pub(in super::super) fn receive(&mut self, socket: &Socket) -> io::Result<()> {
            self.lengths.clear();
            self.kernel_drops = None;
            let mut controls = [[0_u64; CONTROL_WORDS]; BATCH];
            let mut buffers = self.buffers.iter_mut();
            let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|_| {
                let (start, length) =
                    buffers.next().map_or((std::ptr::null_mut(), 0), |buffer| (buffer.as_mut_ptr(), buffer.len()));
                libc::iovec { iov_base: start.cast(), iov_len: length }
            });
            let mut parts = vectors.iter_mut().zip(controls.iter_mut());
            let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|_| {
                // SAFETY: mmsghdr is a C struct of integers and pointers, for which zeros are valid.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                if let Some((vector, control)) = parts.next() {
                    header.msg_hdr.msg_iov = vector;
                    header.msg_hdr.msg_iovlen = 1;
                    header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                    header.msg_hdr.msg_controllen = size_of_val(control) as _;
                }
                header
            });
            // SAFETY: every header points to a buffer, a vector and a control area that live until after the call.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    headers.len() as libc::c_uint,
                    libc::MSG_WAITFORONE,
                    std::ptr::null_mut(),
                )
            };
            if count < 0 {
                return Err(io::Error::last_os_error());
            }
            for header in headers.iter().take(count as usize) {
                let is_whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
                self.lengths.push((header.msg_len as usize, is_whole));
                self.kernel_drops = drops_of(&header.msg_hdr).or(self.kernel_drops);
            }
            Ok(())
        }

        /// The datagrams of the last batch, and whether each is whole.
        pub(in super::super) fn datagrams(&self) -> impl Iterator<Item = (&[u8], bool)> {
            let lengths = self.lengths.iter();
            self.buffers
                .iter()
                .zip(lengths)
                .filter_map(|(buffer, (length, whole))| Some((buffer.get(..*length)?, *whole)))
        }

        /// How many datagrams the kernel had dropped on this socket until the last batch, in 32 bits that wrap; `None`
        /// if it did not say: none yet.
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

    use super::{DATAGRAM_BYTES_MAX, Socket, io};

    /// The buffer for one datagram.
    pub(in super::super) struct Receiver {
        buffer: Vec<u8>,
        length: Option<usize>,
    }

    impl Receiver {
        pub(in super::super) fn new(_: &Socket) -> io::Result<Self> {
            Ok(Self { buffer: vec![0; DATAGRAM_BYTES_MAX], length: None })
        }

        pub(in super::super) fn receive(&mut self, mut socket: &Socket) -> io::Result<()> {
            self.length = None;
            self.length = Some(socket.read(&mut self.buffer)?);
            Ok(())
        }

        /// `recv` does not tell when it cuts: a full buffer is taken for that.
        pub(in super::super) fn datagrams(&self) -> impl Iterator<Item = (&[u8], bool)> {
            let datagram = self.length.and_then(|length| self.buffer.get(..length));
            datagram.into_iter().map(|datagram| (datagram, datagram.len() < DATAGRAM_BYTES_MAX))
        }

        pub(in super::super) fn kernel_drops(&self) -> Option<u32> {
            None
        }
    }
}
