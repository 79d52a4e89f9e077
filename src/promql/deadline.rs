//! When a query ends without an answer.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::QueryError;

/// Until when a query may run, and whether anybody still waits for it.
pub(super) struct Deadline {
    /// `None`: so far away that it cannot be told.
    at: Option<Instant>,
    is_gone: Arc<AtomicBool>,
    /// How often it was asked for: the clock is read every so many times.
    asked: Cell<u32>,
}

impl Deadline {
    /// `timeout` from now, or as soon as `is_gone`.
    pub(super) fn new(timeout: Duration, is_gone: &Arc<AtomicBool>) -> Self {
        Self { at: Instant::now().checked_add(timeout), is_gone: Arc::clone(is_gone), asked: Cell::new(0) }
    }

    /// An error if the query has run too long, or for nobody. Cheap enough for every step of every series.
    pub(super) fn check(&self) -> Result<(), QueryError> {
        const EVERY: u32 = 64;
        let asked = self.asked.get();
        self.asked.set(asked.wrapping_add(1));
        if asked.is_multiple_of(EVERY) { self.look() } else { Ok(()) }
    }

    /// As [`Deadline::check`], before work on very many values.
    pub(super) fn look(&self) -> Result<(), QueryError> {
        // Relaxed: no more than the flag is told.
        if self.is_gone.load(Ordering::Relaxed) {
            return Err(QueryError::Canceled);
        }
        match self.at {
            Some(at) if Instant::now() >= at => Err(QueryError::Timeout),
            _ => Ok(()),
        }
    }
}
