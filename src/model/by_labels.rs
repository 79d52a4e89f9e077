//! Finds numbers by labels, and keeps no labels itself: whoever gives a number has them.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::Labels;

/// The numbers of series by their labels, at some five bytes each. `labels_of` says whose labels a number stands for.
#[derive(Debug, Default)]
pub struct ByLabels {
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl ByLabels {
    /// The number of the series with these labels.
    pub fn get<'a>(&self, labels: &Labels, labels_of: impl Fn(u32) -> Option<&'a Labels>) -> Option<u32> {
        self.numbers.find(self.hasher.hash_one(labels), |number| labels_of(*number) == Some(labels)).copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Puts a number in the place of the one with the same labels, if there is one.
    pub fn insert<'a>(&mut self, labels: &Labels, number: u32, labels_of: impl Fn(u32) -> Option<&'a Labels>) {
        let is_same = |other: &u32| *other == number || labels_of(*other) == Some(labels);
        let hash_of = |other: &u32| labels_of(*other).map_or(0, |labels| self.hasher.hash_one(labels));
        match self.numbers.entry(self.hasher.hash_one(labels), is_same, hash_of) {
            Entry::Occupied(mut place) => *place.get_mut() = number,
            Entry::Vacant(place) => drop(place.insert(number)),
        }
    }

    /// Forgets a number, if these labels stand for it.
    pub fn remove(&mut self, labels: &Labels, number: u32) {
        if let Ok(place) = self.numbers.find_entry(self.hasher.hash_one(labels), |other| *other == number) {
            place.remove();
        }
    }
}
