//! The limit of datagrams a source: one sender that goes wild does not take the time of all others.
//!
//! Each source has a bucket of one second's datagrams, that fills up again as time goes by. A bucket is the moment at which it is
//! full again: so one that is full need not be kept, and of those that are not there is a bound.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use parking_lot::Mutex;

use super::limits::TOLD_MAX;

/// So many sources have a bucket of their own; what is sent from yet others shares one.
const BUCKETS_MAX: usize = 10_000;
const SECOND_NS: u64 = 1_000_000_000;

/// The buckets of all sources, and which of them sent too much.
#[derive(Debug)]
pub struct SourceLimit {
    per_second: u32,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the bucket of a source is full again, in nanoseconds.
    full_at: HashMap<SocketAddr, u64>,
    /// That of the bucket that the others share.
    others_full_at: u64,
    /// When the full ones were let go.
    swept_at: u64,
    /// Datagrams beyond the limit, of the first [`TOLD_MAX`] sources that sent such.
    beyond: HashMap<SocketAddr, u64>,
}

impl SourceLimit {
    /// A limit of so many datagrams a second, at least one.
    pub fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1), began: Instant::now(), state: Mutex::default() }
    }

    /// Datagrams a second.
    pub fn per_second(&self) -> u32 {
        self.per_second
    }

    /// The sources that sent more, those that did most first, and how many of their datagrams were beyond.
    pub fn beyond(&self) -> Vec<(String, u64)> {
        let mut beyond: Vec<_> =
            self.state.lock().beyond.iter().map(|(source, datagrams)| (name_of(*source), *datagrams)).collect();
        beyond.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        beyond
    }

    /// Whether a datagram of a sender that comes now is within the limit.
    pub(super) fn admits(&self, sender: SocketAddr) -> bool {
        self.admits_at(sender, self.began.elapsed().as_nanos() as u64)
    }

    fn admits_at(&self, sender: SocketAddr, now: u64) -> bool {
        let source = source_of(sender);
        let mut state = self.state.lock();
        let State { full_at, others_full_at, swept_at, beyond } = &mut *state;
        // Two threads may come here in another order than that of their times.
        let since_sweep = now.saturating_sub(*swept_at);
        if full_at.len() >= BUCKETS_MAX && !full_at.contains_key(&source) && since_sweep >= SECOND_NS {
            *swept_at = now;
            full_at.retain(|_, at| *at > now);
        }
        let has_room = full_at.len() < BUCKETS_MAX;
        let bucket = match full_at.get_mut(&source) {
            Some(bucket) => bucket,
            None if has_room => full_at.entry(source).or_default(),
            None => others_full_at,
        };
        let after = now.max(*bucket) + SECOND_NS / u64::from(self.per_second);
        if after <= now + SECOND_NS {
            *bucket = after;
            return true;
        }
        let is_told = beyond.len() < TOLD_MAX || beyond.contains_key(&source);
        if is_told {
            let datagrams = beyond.entry(source).or_default();
            *datagrams += 1;
            if *datagrams == 1 {
                tracing::warn!(
                    source = name_of(source),
                    "sends more than --source-limit {} datagrams a second; what is beyond is dropped",
                    self.per_second
                );
            }
        }
        false
    }
}

/// All senders of an address are one source; over loopback, where all have the same, each socket is its own.
fn source_of(sender: SocketAddr) -> SocketAddr {
    let ip = sender.ip().to_canonical();
    SocketAddr::new(ip, if ip.is_loopback() { sender.port() } else { 0 })
}

fn name_of(source: SocketAddr) -> String {
    if source.port() == 0 { source.ip().to_string() } else { source.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn sender(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_a_second_at_once_then_its_rate_and_others_are_not_touched() {
        let limit = SourceLimit::new(100);
        let admitted =
            |sender: SocketAddr, at: u64, sent: u32| (0..sent).filter(|_| limit.admits_at(sender, at * MS)).count();
        let (wild, tame) = (sender("10.0.0.1:1"), sender("10.0.0.2:1"));
        assert_eq!(admitted(wild, 5000, 1000), 100);
        assert_eq!(admitted(tame, 5000, 100), 100);
        assert_eq!(admitted(wild, 5500, 1000), 50);
        assert_eq!(admitted(sender("10.0.0.1:2"), 5500, 10), 0, "another socket of the same host");
        let over_ten_seconds: usize = (5501..15_501).map(|at| admitted(wild, at, 1)).sum();
        assert_eq!(over_ten_seconds, 1000);
        assert_eq!(admitted(wild, 90_000, 1000), 100, "what is not used is not saved beyond a second");
        assert_eq!(limit.beyond(), [("10.0.0.1".to_owned(), 900 + 950 + 10 + 9000 + 900)]);
    }

    #[test]
    fn sockets_of_this_host_are_sources_of_their_own_in_either_family() {
        let limit = SourceLimit::new(1);
        for (text, name) in [
            ("127.0.0.1:7", "127.0.0.1:7"),
            ("127.0.0.1:8", "127.0.0.1:8"),
            ("[::1]:7", "[::1]:7"),
            ("[2001:db8::1]:7", "2001:db8::1"),
            ("[::ffff:10.0.0.1]:7", "10.0.0.1"),
        ] {
            assert!(limit.admits_at(sender(text), 0), "{text}");
            assert!(!limit.admits_at(sender(text), 0), "{text}");
            assert!(limit.beyond().contains(&(name.to_owned(), 1)), "{text}");
        }
        assert!(!limit.admits_at(sender("[::ffff:127.0.0.1]:7"), 0), "the same as 127.0.0.1:7");
        assert!(!limit.admits_at(sender("10.0.0.1:9"), 0));
    }

    #[test]
    fn sources_without_number_take_bounded_memory_and_leave_room_again() {
        let limit = SourceLimit::new(10);
        let nth = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), 1);
        let admitted =
            |numbers: std::ops::Range<u32>, at: u64| numbers.filter(|n| limit.admits_at(nth(*n), at * MS)).count();
        assert_eq!(admitted(0..50_000, 2000), BUCKETS_MAX + 10);
        assert_eq!(limit.state.lock().full_at.len(), BUCKETS_MAX);
        assert_eq!(limit.beyond().len(), TOLD_MAX);
        assert!(limit.admits_at(nth(0), 2001 * MS), "who has a bucket keeps it");
        assert!(!limit.admits_at(nth(70_000), 1999 * MS), "a thread that was overtaken");
        assert_eq!(admitted(60_000..61_000, 3100), 1000, "the others are full again");
    }
}
