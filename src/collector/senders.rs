//! Who sends: the processes that name themselves in their payloads, when each was heard, and what of theirs never came.

use std::collections::HashMap;

use crate::dogstatsd::Header;

/// A process that was silent for so long has ended; its gauges end too.
const SILENCE_MAX_MS: i64 = 30_000;
/// After so long its figures are folded into the totals. Longer than the silence, so that a status page still shows it.
const FORGET_MS: i64 = 600_000;
/// So many are told apart.
const SENDERS_MAX: usize = 65_536;
/// When there are more, so many make room at once: to look for them takes a millisecond.
const SENDERS_LEAVE: usize = SENDERS_MAX / 16;
/// A number so far ahead of the last is not a gap but a broken or hostile sender.
const GAP_MAX: u64 = 1_000_000;

/// A payload so far behind the newest is not told from one that came twice: it counts as neither.
const WINDOW: u64 = u128::BITS as u64;

/// What is known of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderStatus {
    /// Its id, random per process and fork.
    pub client_id: u64,
    /// When it was first heard, in milliseconds since the Unix epoch.
    pub first_heard_ms: i64,
    /// When it was last heard.
    pub last_heard_ms: i64,
    /// Payloads that came since, one that came twice counted once.
    pub payloads: u64,
    /// Payloads numbered since, that did not come.
    pub payloads_missing: u64,
}

#[derive(Debug)]
struct Sender {
    first_heard_ms: i64,
    last_heard_ms: i64,
    /// The least number that was seen: what came before it went to an earlier collector.
    first: u64,
    last: u64,
    /// Which of the newest numbers came: the lowest bit is `last`.
    came: u128,
    payloads: u64,
}

impl Sender {
    fn missing(&self) -> u64 {
        if self.payloads == 0 { 0 } else { (self.last - self.first + 1).saturating_sub(self.payloads) }
    }

    /// Notes a number. On the way a datagram may be doubled, and what came twice must not hide what never came.
    fn note(&mut self, sequence: u64) {
        let ahead = sequence.saturating_sub(self.last);
        self.came = u32::try_from(ahead).ok().and_then(|ahead| self.came.checked_shl(ahead)).unwrap_or(0);
        self.last += ahead;
        let behind = self.last - sequence;
        if behind >= WINDOW || self.came >> behind & 1 == 1 {
            return;
        }
        self.came |= 1 << behind;
        // The first of all may be overtaken on the way, as any other.
        self.first = self.first.min(sequence);
        self.payloads += 1;
    }
}

/// All processes heard of late.
#[derive(Debug, Default)]
pub struct Senders {
    senders: HashMap<u64, Sender>,
    missing_forgotten: u64,
}

impl Senders {
    /// A payload with this header came.
    pub fn heard(&mut self, header: Header, now_ms: i64) {
        let Header { client_id, sequence } = header;
        if self.senders.len() >= SENDERS_MAX && !self.senders.contains_key(&client_id) {
            self.make_room();
        }
        let sender = self.senders.entry(client_id).or_insert(Sender {
            first_heard_ms: now_ms,
            last_heard_ms: now_ms,
            first: sequence,
            last: sequence,
            came: 0,
            payloads: 0,
        });
        let is_far = sequence > sender.last.saturating_add(GAP_MAX) || sequence < sender.first.saturating_sub(GAP_MAX);
        if sender.payloads == 0 || is_far {
            // Numbered anew: start over, but keep what was missing until now.
            self.missing_forgotten += sender.missing();
            (sender.first, sender.last, sender.came, sender.payloads) = (sequence, sequence, 0, 0);
        }
        sender.last_heard_ms = now_ms;
        sender.note(sequence);
    }

    /// Forgets those who sent one payload only, since an id that is made up for each is heard no second time, and of these
    /// and then of the others those that were silent for longest.
    fn make_room(&mut self) {
        let rank = |sender: &Sender| (sender.payloads > 1, sender.last_heard_ms);
        let mut ranks: Vec<_> = self.senders.iter().map(|(id, sender)| (rank(sender), *id)).collect();
        ranks.select_nth_unstable(SENDERS_LEAVE);
        for (_, id) in ranks.into_iter().take(SENDERS_LEAVE) {
            self.missing_forgotten += self.senders.remove(&id).map_or(0, |sender| sender.missing());
        }
    }

    /// Notes a process that an earlier collector heard: it gets the time of silence to say that it lives.
    pub fn expect(&mut self, client_id: u64, now_ms: i64) {
        if self.senders.len() < SENDERS_MAX {
            self.senders.entry(client_id).or_insert(Sender {
                first_heard_ms: now_ms,
                last_heard_ms: now_ms,
                first: 0,
                last: 0,
                came: 0,
                payloads: 0,
            });
        }
    }

    /// Whether the process was heard within the last 30 s.
    pub fn is_alive(&self, client_id: u64, now_ms: i64) -> bool {
        self.senders.get(&client_id).is_some_and(|sender| now_ms - sender.last_heard_ms <= SILENCE_MAX_MS)
    }

    /// Folds the figures of processes that ended long ago.
    pub fn forget(&mut self, now_ms: i64) {
        let folded = &mut self.missing_forgotten;
        self.senders.retain(|_, sender| {
            let keep = now_ms - sender.last_heard_ms <= FORGET_MS;
            if !keep {
                *folded += sender.missing();
            }
            keep
        });
    }

    /// All payloads that never came.
    pub fn missing_total(&self) -> u64 {
        self.missing_forgotten + self.senders.values().map(Sender::missing).sum::<u64>()
    }

    /// Each process of the last ten minutes, by id.
    pub fn status(&self) -> Vec<SenderStatus> {
        let mut all: Vec<SenderStatus> = self
            .senders
            .iter()
            .filter(|(_, sender)| sender.payloads > 0)
            .map(|(client_id, sender)| SenderStatus {
                client_id: *client_id,
                first_heard_ms: sender.first_heard_ms,
                last_heard_ms: sender.last_heard_ms,
                payloads: sender.payloads,
                payloads_missing: sender.missing(),
            })
            .collect();
        all.sort_by_key(|status| status.client_id);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(senders: &mut Senders, client_id: u64, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            senders.heard(Header { client_id, sequence }, 0);
        }
    }

    #[test]
    fn payloads_that_never_came_are_counted_and_stay_counted() {
        let mut senders = Senders::default();
        heard(&mut senders, 1, [1, 2, 5, 6]);
        heard(&mut senders, 2, [40, 41]); // began before this collector
        assert_eq!(senders.missing_total(), 2);
        heard(&mut senders, 1, [4]); // late, not lost
        assert_eq!(senders.missing_total(), 1);
        senders.forget(FORGET_MS + 1);
        assert_eq!((senders.missing_total(), senders.status().len()), (1, 0));
    }

    #[test]
    fn a_payload_that_comes_before_the_one_sent_first_makes_no_loss() {
        // It was taken for a new beginning, so that those that had come already were missing.
        let mut senders = Senders::default();
        heard(&mut senders, 1, [12, 10, 13, 14]);
        assert_eq!((senders.missing_total(), senders.status()[0].payloads), (1, 4));
        heard(&mut senders, 1, [11]);
        assert_eq!(senders.missing_total(), 0);
    }

    #[test]
    fn what_came_twice_hides_nothing_that_never_came() {
        let mut senders = Senders::default();
        heard(&mut senders, 1, [1, 2, 2, 4]);
        assert_eq!((senders.missing_total(), senders.status()[0].payloads), (1, 3));
        heard(&mut senders, 1, [4, 1, 3, 3]);
        assert_eq!((senders.missing_total(), senders.status()[0].payloads), (0, 4));
        // Far behind none is told from another: what never came stays counted.
        heard(&mut senders, 1, 6..200);
        assert_eq!(senders.missing_total(), 1);
        heard(&mut senders, 1, [1, 2, 5, 60, 71, 72]);
        assert_eq!(senders.missing_total(), 1);
        heard(&mut senders, 1, [1000]);
        assert_eq!(senders.missing_total(), 1 + 800);
        heard(&mut senders, 1, [1000 - WINDOW + 1, 1000 - WINDOW]);
        assert_eq!(senders.missing_total(), 800, "one of them is near enough");
    }

    #[test]
    fn a_sender_known_from_before_a_restart_is_alive_for_the_time_of_silence() {
        let mut senders = Senders::default();
        senders.expect(7, 0);
        assert!(senders.is_alive(7, SILENCE_MAX_MS));
        assert!(!senders.is_alive(7, SILENCE_MAX_MS + 1));
        heard(&mut senders, 7, [10, 12]);
        assert_eq!(senders.missing_total(), 1);
        assert!(!senders.is_alive(8, 0));
    }

    #[test]
    fn ids_that_are_made_up_take_no_place_from_those_who_go_on() {
        let mut senders = Senders::default();
        heard(&mut senders, 1, [1, 4]);
        for client_id in 100..100 + 3 * SENDERS_MAX as u64 {
            senders.heard(Header { client_id, sequence: 7 }, 1000);
            assert!(senders.senders.len() <= SENDERS_MAX);
        }
        senders.heard(Header { client_id: 2, sequence: 1 }, 1000);
        assert!(senders.is_alive(1, 1000) && senders.is_alive(2, 1000));
        assert_eq!(senders.missing_total(), 2);
        // Where all go on, the longest-silent makes room.
        let mut senders = Senders::default();
        for client_id in 0..=SENDERS_MAX as u64 {
            [1, 2, 5].into_iter().for_each(|sequence| senders.heard(Header { client_id, sequence }, client_id as i64));
        }
        assert!(!senders.is_alive(0, 0) && senders.is_alive(SENDERS_MAX as u64, SENDERS_MAX as i64));
        assert_eq!(senders.missing_total(), 2 * (SENDERS_MAX as u64 + 1), "what they miss stays counted");
    }

    #[test]
    fn a_jump_of_the_numbers_is_not_a_loss_of_millions() {
        let mut senders = Senders::default();
        heard(&mut senders, 1, [1, 3, 8_000_000_000_000_000, 8_000_000_000_000_001, 1]);
        assert_eq!(senders.missing_total(), 1);
    }
}
