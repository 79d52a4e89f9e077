//! The memo: arguments that were seen before, recognized by the addresses of their objects instead of by their text.
//!
//! An address names the same text only as long as its object lives and cannot change. Whoever teaches the memo hands over
//! a `K` that keeps the objects alive, and teaches only what cannot change.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

/// How many arguments are remembered. Past that each new one takes the place of the oldest.
const ENTRIES_MAX: usize = 16_384;
/// One miss in so many is learned: what comes again is soon known, what never comes again costs little.
const MISSES_PER_LESSON: u32 = 8;
/// The longest identity: a word for what is done, the name, six tags.
const WORDS_MAX: usize = 1 + 1 + 2 * 6;

/// What is done to which objects: a first word of the caller's own, then their addresses.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Of all words; made while they are added.
    hash: u64,
    len: usize,
    words: [usize; WORDS_MAX],
}

impl Identity {
    /// An identity that begins with `word`, which tells apart what the addresses do not.
    #[inline]
    pub fn new(word: usize) -> Self {
        let mut words = [0; WORDS_MAX];
        words[0] = word;
        Self { hash: word as u64, len: 1, words }
    }

    /// Adds an address. False if there is no room: then the arguments have no identity.
    #[must_use]
    #[inline]
    pub fn push(&mut self, address: usize) -> bool {
        let Some(word) = self.words.get_mut(self.len) else { return false };
        *word = address;
        self.len += 1;
        // Addresses are nobody's to choose, so a hash that is only quick will do. The factor is 2^64 over the golden ratio.
        self.hash = (self.hash.rotate_left(5) ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        true
    }

    /// The last multiplication leaves the low bits poor.
    fn hash(&self) -> u64 {
        self.hash ^ (self.hash >> 32)
    }
}

impl PartialEq for Identity {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let words = self.words.iter().zip(&other.words).take(self.len);
        self.len == other.len
            && self.hash == other.hash
            && words.fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

/// What was recognized.
#[derive(Debug, Clone, Copy)]
pub(super) enum Recognized {
    /// The slot of the context.
    Slot(u32),
    /// Nothing; `is_lesson` says that this one is to be learned.
    Nothing { is_lesson: bool },
}

#[derive(Debug)]
struct Entry<K> {
    identity: Identity,
    slot: u32,
    /// The table's epoch when this was learned: in another the slot may be someone else's.
    epoch: u32,
    /// Keeps the objects alive that the addresses are of.
    kept: K,
}

#[derive(Debug)]
pub(super) struct Memo<K> {
    entries: HashTable<Entry<K>>,
    /// The hashes of the entries in the order of their coming; once full, `oldest` is where the next one goes.
    order: Vec<u64>,
    oldest: usize,
    misses: u32,
}

impl<K> Default for Memo<K> {
    fn default() -> Self {
        Self { entries: HashTable::new(), order: Vec::new(), oldest: 0, misses: 0 }
    }
}

impl<K> Memo<K> {
    #[inline]
    pub(super) fn recognize(&mut self, identity: &Identity, epoch: u32) -> Recognized {
        match self.entries.find(identity.hash(), |entry| entry.identity == *identity) {
            Some(entry) if entry.epoch == epoch => Recognized::Slot(entry.slot),
            Some(_) => Recognized::Nothing { is_lesson: true },
            None => {
                self.misses = self.misses.wrapping_add(1);
                Recognized::Nothing { is_lesson: self.misses.is_multiple_of(MISSES_PER_LESSON) }
            }
        }
    }

    /// Remembers the slot of an identity. What need no longer be kept is given back, to be dropped outside of any lock.
    pub(super) fn learn(&mut self, identity: Identity, slot: u32, epoch: u32, keep: K) -> Option<K> {
        let hash = identity.hash();
        match self.entries.entry(hash, |entry| entry.identity == identity, |entry| entry.identity.hash()) {
            Slot::Occupied(mut entry) => {
                entry.get_mut().slot = slot;
                entry.get_mut().epoch = epoch;
                return Some(keep);
            }
            Slot::Vacant(vacant) => drop(vacant.insert(Entry { identity, slot, epoch, kept: keep })),
        }
        let Some(oldest) = self.order.get_mut(self.oldest).filter(|_| self.entries.len() > ENTRIES_MAX) else {
            self.order.push(hash);
            return None;
        };
        let forgotten = std::mem::replace(oldest, hash);
        self.oldest = (self.oldest + 1) % ENTRIES_MAX;
        let entry = self.entries.find_entry(forgotten, |entry| entry.identity.hash() == forgotten).ok()?;
        Some(entry.remove().0.kept)
    }

    /// Forgets everything.
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn identity(address: usize) -> Identity {
        let mut identity = Identity::new(7);
        assert!(identity.push(address));
        identity
    }

    #[test]
    fn every_eighth_stranger_is_learned_and_known_from_then_on() {
        let mut memo = Memo::default();
        let lessons = (0..80)
            .filter(|i| match memo.recognize(&identity(*i), 0) {
                Recognized::Nothing { is_lesson } => {
                    if is_lesson {
                        memo.learn(identity(*i), *i as u32, 0, ());
                    }
                    is_lesson
                }
                Recognized::Slot(_) => panic!("{i} was never learned"),
            })
            .count();
        assert_eq!(lessons, 10);
        assert!(matches!(memo.recognize(&identity(7), 0), Recognized::Slot(7)));
        let in_another_epoch = memo.recognize(&identity(7), 1);
        assert!(matches!(in_another_epoch, Recognized::Nothing { is_lesson: true }));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_is_let_go() {
        let mut memo = Memo::default();
        let kept = Arc::new(());
        let extra = 1_000;
        for i in 0..ENTRIES_MAX + extra {
            drop(memo.learn(identity(i), 0, 0, Arc::clone(&kept)));
        }
        assert_eq!(Arc::strong_count(&kept), 1 + ENTRIES_MAX);
        assert!(matches!(memo.recognize(&identity(extra - 1), 0), Recognized::Nothing { .. }));
        assert!(matches!(memo.recognize(&identity(extra), 0), Recognized::Slot(0)));
        drop(memo.take());
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn too_many_tags_have_no_identity() {
        let mut identity = Identity::new(0);
        assert_eq!((0..20).filter(|i| identity.push(*i)).count(), WORDS_MAX - 1);
    }
}
