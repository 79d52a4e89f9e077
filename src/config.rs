//! Values as people write them in flags and variables: durations such as `14d`, sizes such as `8MiB`, and where data is kept.

use std::path::PathBuf;
use std::time::Duration;

/// Reads `14d`, `1h30m`, `10s`, `250ms`: whole numbers with the units of Prometheus's flags (y = 365 d, w, d, h, m, s, ms).
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("got {text:?}, want a duration such as 14d, 12h, 10s or 250ms");
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            "y" => 365 * 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_ms)).ok_or_else(wrong)?;
        total_ms = total_ms.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Reads `8MiB`, `512KiB`, `1GiB` and plain bytes: whole numbers with the binary units, in bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("got {text:?}, want a size such as 8MiB, 512KiB or a number of bytes");
    let trimmed = text.trim();
    let (number, unit) = trimmed.split_at(trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len()));
    let unit: u64 = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

/// Where the collector keeps its data unless it is told: `$XDG_STATE_HOME/cortex-metrics`, or the same under
/// `~/.local/state`; `None` if there is neither variable.
pub fn default_data_dir(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let base = var("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(PathBuf::from(var("HOME")?).join(".local/state")))?;
    Some(base.join("cortex-metrics"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_prometheus_reads_them() {
        for (text, ms) in
            [("14d", 1_209_600_000), ("1h30m", 5_400_000), ("10s", 10_000), ("250ms", 250), ("100y", 3_153_600_000_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "d", "1x", "-1d", "1.5h", "99999999999999999999s", "9999999999999y"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_whole_numbers_of_binary_units() {
        for (text, bytes) in [("8MiB", 8 << 20), ("512KiB", 512 << 10), ("1GiB", 1 << 30), ("4096", 4096), (" 0 ", 0)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "8MB", "8 MiB", "8M", "1.5MiB", "-1", "18446744073709551616", "17179869184GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn data_is_kept_in_the_state_directory() {
        let of = |vars: &'static [(&'static str, &'static str)]| {
            default_data_dir(move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()))
        };
        assert_eq!(of(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), Some("/s/cortex-metrics".into()));
        assert_eq!(
            of(&[("XDG_STATE_HOME", "relative"), ("HOME", "/h")]),
            Some("/h/.local/state/cortex-metrics".into())
        );
        assert_eq!(of(&[]), None);
    }
}
