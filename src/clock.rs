//! The wall clock: the one place that reads it, and a clock for tests that stands still.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where the time comes from.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's own.
    System,
    /// The machine's own, but never before this time: that of the newest tick.
    NotBefore(Arc<AtomicI64>),
    /// The machine's own as it was at a moment, and from there on without the jumps of somebody who sets it: for how long something
    /// has been silent.
    Steady {
        /// The moment.
        since: Instant,
        /// What the machine's clock said then.
        since_ms: i64,
    },
    /// One that a test sets, in milliseconds since the Unix epoch.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands at `now_ms` until it is set.
    pub fn manual(now_ms: i64) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(now_ms)))
    }

    /// A clock that takes no part in jumps of the machine's own from now on.
    pub fn steady() -> Self {
        Self::Steady { since: Instant::now(), since_ms: Self::System.now_ms() }
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
            Self::Steady { since, since_ms } => {
                since_ms.saturating_add(i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX))
            }
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

/// Year, month (1 to 12) and day of the month (1 to 31) in the Gregorian calendar, of a day counted from 1970-01-01. After Howard
/// Hinnant, "chrono-Compatible Low-Level Date Algorithms" (`civil_from_days`): eras of 400 years whose years begin in March.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`].
pub fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = (month + 9).rem_euclid(12);
    let of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_one_another() {
        let known = [
            (0, (1970, 1, 1)),
            (20_780, (2026, 11, 23)),
            (11_016, (2000, 2, 29)),
            (-1, (1969, 12, 31)),
            (-719_528, (0, 1, 1)),
        ];
        for (days, (year, month, day)) in known {
            assert_eq!(civil_from_days(days), (year, month, day));
        }
        for days in (-1_000_000..4_000_000).step_by(97) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
