//! The backlog: what was taken from the table and has not left yet. It is the flusher's own, so that no call ever waits for
//! it; while nobody takes metrics, flush after flush merges into it.

use std::sync::Arc;

use super::account::DropReason;
use super::accumulator::Content;
use super::table::{Cell, Context};
use crate::dogstatsd::{MessageType, encode_line, values_per_line};

/// A context without calls for so many flushes leaves the table.
const IDLE_FLUSHES_MAX: u16 = 60;

/// A part of what accumulated in one context: what one line of a payload says.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    slot: usize,
    context: Arc<Context>,
    content: Content,
    /// How many calls it stands for.
    pub(super) calls: u64,
}

impl Piece {
    /// Writes the line (two for a negative gauge) without its last newline.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, values, weight) = match &self.content {
            Content::Counter(sum) => (MessageType::Counter, std::slice::from_ref(sum), 1),
            Content::Gauge(value) => (MessageType::Gauge, std::slice::from_ref(value), 1),
            Content::Values(values) => (MessageType::Histogram, values.as_slice(), 1),
            Content::Bucket { mean, weight } => (MessageType::Histogram, std::slice::from_ref(mean), *weight),
        };
        encode_line(out, self.context.name.as_bytes(), kind, values, weight, self.context.tags.as_bytes());
    }
}

/// Calls that had been held and are lost.
#[derive(Debug)]
pub(super) struct Loss {
    pub(super) reason: DropReason,
    pub(super) calls: u64,
    pub(super) context: Arc<Context>,
}

#[derive(Debug, Default)]
struct Slot {
    context: Option<Arc<Context>>,
    cell: Cell,
    idle_flushes: u16,
}

/// What waits to be sent, by the slots of the table.
#[derive(Debug)]
pub(super) struct Backlog {
    slots: Vec<Slot>,
    /// How many of the slots hold something, those of our own account not counted: they have no limit and take no room.
    occupied: usize,
    contexts_max: usize,
    /// Empty cells, for the table's next ones.
    pub(super) spare: Vec<Cell>,
}

impl Backlog {
    pub(super) fn new(contexts_max: usize) -> Self {
        Self { slots: Vec::new(), occupied: 0, contexts_max, spare: Vec::new() }
    }

    /// Adds what was taken from the table. What cannot be held is told.
    pub(super) fn add(&mut self, mut cells: Vec<Cell>, news: Vec<(u32, Arc<Context>)>) -> Vec<Loss> {
        for (slot, context) in news {
            let slot = slot as usize;
            if slot >= self.slots.len() {
                self.slots.resize_with(slot + 1, Slot::default);
            }
            if let Some(place) = self.slots.get_mut(slot) {
                place.context = Some(context);
                place.idle_flushes = 0;
            }
        }
        let mut losses = Vec::new();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            slot.idle_flushes = slot.idle_flushes.saturating_add(1);
            let Some(taken) = cells.get_mut(at).filter(|taken| !taken.accumulator.is_empty()) else { continue };
            // A slot that was used has a context.
            let Some(context) = &slot.context else { continue };
            slot.idle_flushes = 0;
            let count = std::mem::take(&mut taken.calls);
            let was_empty = slot.cell.accumulator.is_empty();
            let outcome = if was_empty && context.is_limited && self.occupied >= self.contexts_max {
                *taken = Cell::default();
                Err(DropReason::ContextLimit)
            } else {
                slot.cell.accumulator.merge(&mut taken.accumulator)
            };
            match outcome {
                Ok(()) => {
                    slot.cell.calls += count;
                    self.occupied += usize::from(was_empty && context.is_limited);
                }
                Err(reason) => losses.push(Loss { reason, calls: count, context: Arc::clone(context) }),
            }
        }
        self.spare = cells;
        losses
    }

    /// Takes what waits in the first slot from `from` on that has something, cut so that each line fits into
    /// `line_bytes_max`; gives the slot after it.
    pub(super) fn take_next(
        &mut self,
        from: usize,
        line_bytes_max: usize,
        mut piece: impl FnMut(Piece),
    ) -> Option<usize> {
        let rest = self.slots.get_mut(from..)?;
        let (at, slot) = rest.iter_mut().enumerate().find(|(_, slot)| !slot.cell.accumulator.is_empty())?;
        let at = from + at;
        let calls = std::mem::take(&mut slot.cell.calls);
        if let Some(context) = &slot.context {
            self.occupied -= usize::from(context.is_limited);
            let line_values = values_per_line(context.name.len() + context.tags.len(), line_bytes_max);
            slot.cell.accumulator.take(calls, line_values, |content, calls| {
                piece(Piece { slot: at, context: Arc::clone(context), content, calls });
            });
        }
        Some(at + 1)
    }

    /// Takes back what was refused.
    pub(super) fn restore(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        for piece in pieces {
            let Some(slot) = self.slots.get_mut(piece.slot) else { continue };
            self.occupied += usize::from(slot.cell.accumulator.is_empty() && piece.context.is_limited);
            slot.cell.accumulator.restore(piece.content);
            slot.cell.calls += piece.calls;
        }
    }

    /// The slots that nothing waits in and that have not been used for long, or not lately if there are too many.
    pub(super) fn resting(&self, is_crowded: bool) -> Vec<u32> {
        let idle_flushes = if is_crowded { 1 } else { IDLE_FLUSHES_MAX };
        let rests = |slot: &Slot| {
            slot.context.is_some() && slot.idle_flushes >= idle_flushes && slot.cell.accumulator.is_empty()
        };
        self.slots.iter().enumerate().filter(|(_, slot)| rests(slot)).map(|(at, _)| at as u32).collect()
    }

    /// Contexts have left the table: their slots are for others now.
    pub(super) fn forget(&mut self, slots: &[u32]) {
        for &slot in slots {
            if let Some(slot) = self.slots.get_mut(slot as usize) {
                *slot = Slot::default();
            }
            if let Some(cell) = self.spare.get_mut(slot as usize) {
                *cell = Cell::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Table;
    use super::super::table::{Kind, TagText};
    use super::*;

    fn flush(table: &mut Table<()>, backlog: &mut Backlog) -> Vec<Loss> {
        let (cells, news) = table.take(std::mem::take(&mut backlog.spare));
        backlog.add(cells, news)
    }

    fn take_all(backlog: &mut Backlog) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(next) = backlog.take_next(at, 1347, |piece| pieces.push(piece)) {
            at = next;
        }
        pieces
    }

    fn text(pieces: &[Piece]) -> Vec<String> {
        let line = |piece: &Piece| {
            let mut out = Vec::new();
            piece.encode(&mut out);
            String::from_utf8(out).unwrap()
        };
        pieces.iter().map(line).collect()
    }

    #[test]
    fn what_was_refused_merges_with_what_comes_and_the_newer_gauge_wins() {
        let (mut table, mut backlog) = (Table::new(10, 600), Backlog::new(10));
        let none = TagText::default();
        for value in [1.0, 2.0] {
            table.record(Kind::Gauge, "g", &none, value).unwrap();
            table.record(Kind::Counter, "c", &none, value).unwrap();
            table.record(Kind::Histogram, "h", &none, value).unwrap();
            flush(&mut table, &mut backlog);
            let refused = take_all(&mut backlog);
            assert_eq!(backlog.occupied, 0);
            backlog.restore(refused);
            assert_eq!(backlog.occupied, 3);
        }
        let pieces = take_all(&mut backlog);
        assert_eq!(text(&pieces), ["g:2|g", "c:3|c", "h:1:2|h"]);
        assert_eq!(pieces.iter().map(|piece| piece.calls).sum::<u64>(), 6);
    }

    #[test]
    fn while_nobody_takes_metrics_the_backlog_is_bounded_and_tells_its_losses() {
        let (mut table, mut backlog) = (Table::new(10, 600), Backlog::new(10));
        for flush_number in 0..3 {
            for i in 0..10 {
                table.record(Kind::Counter, &format!("c{flush_number}_{i}"), &TagText::default(), 1.0).unwrap();
            }
            let losses = flush(&mut table, &mut backlog);
            let lost: u64 = losses.iter().map(|loss| loss.calls).sum();
            assert_eq!(lost, if flush_number == 0 { 0 } else { 10 });
            let left = table.evict(&backlog.resting(table.is_crowded()));
            backlog.forget(&left);
        }
        assert_eq!(text(&take_all(&mut backlog)), (0..10).map(|i| format!("c0_{i}:1|c")).collect::<Vec<_>>());
    }
}
