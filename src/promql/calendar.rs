//! Parts of a date, in UTC, of seconds since the epoch.

/// A float as seconds: cut off, and what is no time is the last one there is, where Go's arithmetic ends up.
pub(super) fn seconds(value: f64) -> i64 {
    const END: f64 = 9_223_372_036_854_775_808.0;
    if (-END..END).contains(&value) { value as i64 } else { i64::MAX }
}

/// Year, month from 1, day from 1 of a day since the epoch: the proleptic Gregorian calendar, counted from the 1st of March
/// so that the leap day is the last of its year.
fn civil(seconds: i64) -> (i64, i64, i64) {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, day_of_era) = (days.div_euclid(DAYS_OF_400_YEARS), days.rem_euclid(DAYS_OF_400_YEARS));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn is_leap(year: i64) -> bool {
    year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
}

pub(super) fn year(seconds: i64) -> i64 {
    civil(seconds).0
}

pub(super) fn month(seconds: i64) -> i64 {
    civil(seconds).1
}

pub(super) fn day_of_month(seconds: i64) -> i64 {
    civil(seconds).2
}

/// Sunday is 0. The epoch was a Thursday.
pub(super) fn day_of_week(seconds: i64) -> i64 {
    (seconds.div_euclid(86_400) + 4).rem_euclid(7)
}

pub(super) fn days_in_month(seconds: i64) -> i64 {
    match civil(seconds) {
        (year, 2, _) => 28 + i64::from(is_leap(year)),
        (_, 4 | 6 | 9 | 11, _) => 30,
        _ => 31,
    }
}

/// The 1st of January is 1.
pub(super) fn day_of_year(seconds: i64) -> i64 {
    let (year, month, day) = civil(seconds);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let before = usize::try_from(month - 1).ok().and_then(|at| before.get(at)).copied().unwrap_or(0);
    before + day + i64::from(month > 2 && is_leap(year))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // 2024-02-29 12:00 UTC, 1999-12-31 23:59:59, 1969-12-31, 2000-03-01.
        let all = |s| (year(s), month(s), day_of_month(s), day_of_week(s), day_of_year(s), days_in_month(s));
        assert_eq!(all(1_709_208_000), (2024, 2, 29, 4, 60, 29));
        assert_eq!(all(946_684_799), (1999, 12, 31, 5, 365, 31));
        assert_eq!(all(-1), (1969, 12, 31, 3, 365, 31));
        assert_eq!(all(951_868_800), (2000, 3, 1, 3, 61, 31));
        for far in [i64::MAX, i64::MIN] {
            let _ = all(far);
        }
    }
}
