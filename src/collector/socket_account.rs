//! The account of one socket: what came through it, and what the kernel had to drop at it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::listener::Place;

/// What is known of one socket. Its counters stand alone, nothing is read because of them: relaxed ordering suffices.
#[derive(Debug)]
pub struct SocketAccount {
    place: String,
    receive_buffer_bytes: Option<u64>,
    datagrams: AtomicU64,
    truncated: AtomicU64,
    kernel_drops: AtomicU64,
}

impl SocketAccount {
    pub(super) fn new(place: &Place, receive_buffer_bytes: Option<u64>) -> Self {
        Self {
            place: place.to_string(),
            receive_buffer_bytes,
            datagrams: AtomicU64::new(0),
            truncated: AtomicU64::new(0),
            kernel_drops: AtomicU64::new(0),
        }
    }

    /// Where it listens, such as `udp://127.0.0.1:9125`.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What the kernel granted for datagrams that wait, in bytes, in the unit in which it is asked for; `None` for a Unix
    /// socket, which holds up its senders instead of dropping.
    pub fn receive_buffer_bytes(&self) -> Option<u64> {
        self.receive_buffer_bytes
    }

    /// Datagrams received.
    pub fn datagrams(&self) -> u64 {
        self.datagrams.load(Ordering::Relaxed)
    }

    /// Those of them whose end did not fit into the buffer.
    pub fn truncated(&self) -> u64 {
        self.truncated.load(Ordering::Relaxed)
    }

    /// Datagrams that the kernel dropped since the receive buffer was full.
    pub fn kernel_drops(&self) -> u64 {
        self.kernel_drops.load(Ordering::Relaxed)
    }

    pub(super) fn saw_datagrams(&self, datagrams: u64, truncated: u64) {
        self.datagrams.fetch_add(datagrams, Ordering::Relaxed);
        self.truncated.fetch_add(truncated, Ordering::Relaxed);
    }

    /// Notes the kernel's own count of its drops. That has 32 bits and wraps, and one that was read before another may be
    /// noted after it: what is behind ours says nothing new.
    pub(super) fn saw_kernel_drops(&self, drops: u32) {
        let _ = self.kernel_drops.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |known| {
            let ahead = drops.wrapping_sub(known as u32);
            (ahead <= u32::MAX / 2).then(|| known + u64::from(ahead))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_count_wraps_and_may_come_late() {
        let account = SocketAccount::new(&Place::Udp("127.0.0.1:9125".parse().unwrap()), None);
        let mut wanted = 0;
        for (told, more) in
            [(0, 0), (7, 7), (5, 0), (7, 0), (1 << 31, (1 << 31) - 7), (u32::MAX, (1 << 31) - 1), (2, 3)]
        {
            account.saw_kernel_drops(told);
            wanted += more;
            assert_eq!(account.kernel_drops(), wanted, "told {told}");
        }
        account.saw_kernel_drops(u32::MAX);
        assert_eq!(account.kernel_drops(), wanted, "from before the wrap");
    }
}
