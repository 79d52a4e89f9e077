//! The wall clock: the one place that reads it, and a clock for tests that stands still.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the time comes from.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's own.
    System,
    /// The machine's own, but never before this time: that of the newest tick.
    NotBefore(Arc<AtomicI64>),
    /// One that a test sets, in milliseconds since the Unix epoch.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands at `now_ms` until it is set.
    pub fn manual(now_ms: i64) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(now_ms)))
    }

    /// Milliseconds since the Unix epoch; negative before it.
    pub fn now_ms(&self) -> i64 {
        match self {
            Self::System => match SystemTime::now().duration_since(UNIX_EPOCH) {
                Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
                Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
            },
            // Relaxed: a reader that sees the tick before the newest asks for a moment earlier, no more.
            Self::NotBefore(least) => Self::System.now_ms().max(least.load(Ordering::Relaxed)),
            // Relaxed: a test's clock orders nothing else.
            Self::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Sets a manual clock; the machine's own stays as it is.
    pub fn set_ms(&self, now_ms: i64) {
        if let Self::Manual(now) = self {
            now.store(now_ms, Ordering::Relaxed);
        }
    }
}
