//! The look of the table: lower-case headers, columns three spaces apart, as the original's.

use unicode_width::UnicodeWidthStr as _;

use super::rows::ApiRow;

/// Cells in rows, the headers first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// One header a column.
    pub headers: Vec<String>,
    /// One cell a column in each row.
    pub rows: Vec<Vec<String>>,
}

/// The table of APIs, each with the environment it lives in. `stale`, `4XX` and `5XX` are there only when not all zero.
pub fn table_of(rows: &[(&str, &ApiRow)]) -> Table {
    let any = |of: fn(&ApiRow) -> u64| rows.iter().any(|(_, row)| of(row) > 0);
    type Column = (&'static str, bool, fn(&str, &ApiRow) -> String);
    let columns: [Column; 11] = [
        ("env", true, |env, _| env.to_owned()),
        ("api", true, |_, row| row.api_name.clone()),
        ("status", true, |_, row| row.status.as_str().to_owned()),
        ("up-to-date", true, |_, row| row.up_to_date.to_string()),
        ("stale", any(|row| row.stale), |_, row| row.stale.to_string()),
        ("requested", true, |_, row| row.requested.map_or("-".to_owned(), |n| n.to_string())),
        ("last update", true, |_, row| row.last_update_seconds.map_or("-".to_owned(), age)),
        ("avg request", true, |_, row| row.avg_request_seconds.map_or("-".to_owned(), milliseconds)),
        ("2XX", true, |_, row| row.responses_of_class(2).to_string()),
        ("4XX", any(|row| row.responses_of_class(4)), |_, row| row.responses_of_class(4).to_string()),
        ("5XX", any(|row| row.responses_of_class(5)), |_, row| row.responses_of_class(5).to_string()),
    ];
    let shown = || columns.iter().filter(|(_, is_shown, _)| *is_shown);
    Table {
        headers: shown().map(|(header, _, _)| (*header).to_owned()).collect(),
        rows: rows.iter().map(|(env, row)| shown().map(|(_, _, cell)| cell(env, row)).collect()).collect(),
    }
}

impl Table {
    /// The table as text, each line ended. Control characters in cells, which come from outside, are escaped.
    pub fn render(&self) -> String {
        self.rendered(|_, _| None)
    }

    /// As [`Table::render`], with the status in green, yellow or red, as a terminal takes it.
    pub fn render_in_color(&self) -> String {
        self.rendered(|header, cell| match (header, cell) {
            ("status", "live") => Some("\x1b[32m"),
            ("status", "updating") => Some("\x1b[33m"),
            ("status", "down") => Some("\x1b[31m"),
            _ => None,
        })
    }

    fn rendered(&self, color: impl Fn(&str, &str) -> Option<&'static str>) -> String {
        let lines: Vec<Vec<String>> = std::iter::once(&self.headers)
            .chain(&self.rows)
            .map(|row| row.iter().map(|cell| printable(cell)).collect())
            .collect();
        let width = |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|c| c.width()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.headers.len()).map(width).collect();
        let mut out = String::new();
        for line in &lines {
            let mut text = String::new();
            for ((cell, width), header) in line.iter().zip(&widths).zip(&self.headers) {
                match color(header, cell) {
                    Some(color) => text.extend([color, cell.as_str(), "\x1b[0m"]),
                    None => text.push_str(cell),
                }
                text.extend(std::iter::repeat_n(' ', width + 3 - cell.width()));
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }

    /// The table as RFC 4180 wants it: quotes where they are needed.
    pub fn csv(&self) -> String {
        let cell = |text: &String| {
            let is_quoted = text.contains(['"', ',', '\n', '\r']);
            if is_quoted { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.clone() }
        };
        let line = |cells: &Vec<String>| cells.iter().map(cell).collect::<Vec<String>>().join(",") + "\n";
        std::iter::once(&self.headers).chain(&self.rows).map(line).collect()
    }

    /// The table without the columns named.
    #[must_use]
    pub fn without(&self, headers: &[&str]) -> Self {
        let keep: Vec<bool> = self.headers.iter().map(|header| !headers.contains(&header.as_str())).collect();
        let pick = |row: &Vec<String>| -> Vec<String> {
            row.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(cell, _)| cell.clone()).collect()
        };
        Self { headers: pick(&self.headers), rows: self.rows.iter().map(pick).collect() }
    }
}

/// Text from outside for a terminal: characters that could move its cursor, end a line or turn its direction are escaped.
pub fn printable(text: &str) -> String {
    const TURNS: [char; 14] = [
        '\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}',
        '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
    ];
    let is_safe = |c: char| !c.is_control() && !TURNS.contains(&c);
    text.chars().flat_map(|c| if is_safe(c) { vec![c] } else { c.escape_default().collect() }).collect()
}

/// How long ago, in the largest whole unit: `12s`, `17m`, `1h`, `3d`.
pub fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A duration with two or three digits that count: `850us`, `1.4ms`, `24ms`, `1.2s`, `75s`.
pub fn milliseconds(seconds: f64) -> String {
    let rounded = |value: f64, unit: &str| {
        if value < 9.95 {
            let text = format!("{value:.1}");
            format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
        } else {
            format!("{value:.0}{unit}")
        }
    };
    if seconds < 0.000_999_5 {
        format!("{:.0}us", seconds * 1e6)
    } else if seconds < 0.999_5 {
        rounded(seconds * 1e3, "ms")
    } else {
        rounded(seconds, "s")
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Status;
    use super::*;

    fn row(name: &str) -> ApiRow {
        ApiRow {
            api_name: name.to_owned(),
            status: Status::Live,
            up_to_date: 1,
            stale: 0,
            requested: Some(1),
            last_update_seconds: Some(1020.0),
            avg_request_seconds: Some(0.024),
            responses: [("200".to_owned(), 1223)].into(),
            endpoint: None,
        }
    }

    #[test]
    fn what_turns_or_breaks_a_line_is_escaped() {
        let got = printable("a\x1b[31m\n\u{202e}b\u{2028}c\u{2066}é😀");
        assert_eq!(got, "a\\u{1b}[31m\\n\\u{202e}b\\u{2028}c\\u{2066}é😀");
    }

    #[test]
    fn the_table_looks_like_the_original() {
        let iris = row("iris-classifier");
        let text = table_of(&[("local", &iris)]).render();
        assert_eq!(
            text,
            "\
env     api               status   up-to-date   requested   last update   avg request   2XX
local   iris-classifier   live     1            1           17m           24ms          1223
"
        );
    }

    #[test]
    fn the_status_has_a_color_and_the_columns_stay_where_they_are() {
        let (mut wide, iris) = (row("分類器"), row("iris"));
        wide.status = Status::Down;
        let table = table_of(&[("local", &wide), ("local", &iris)]);
        let text = table.render_in_color();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("local   分類器   \x1b[31mdown\x1b[0m     1 "), "{text:?}");
        assert!(lines[2].starts_with("local   iris     \x1b[32mlive\x1b[0m     1 "), "{text:?}");
        let plain = text.replace("\x1b[31m", "").replace("\x1b[32m", "").replace("\x1b[0m", "");
        assert_eq!(plain, table.render());
    }

    #[test]
    fn columns_of_trouble_appear_with_it() {
        let mut bad = row("bad");
        bad.stale = 2;
        bad.requested = None;
        bad.last_update_seconds = None;
        bad.avg_request_seconds = None;
        bad.responses =
            [("200".to_owned(), 1), ("404".to_owned(), 2), ("422".to_owned(), 1), ("500".to_owned(), 1)].into();
        let text = table_of(&[("local", &row("good")), ("local", &bad)]).without(&["env"]).render();
        assert_eq!(
            text,
            "\
api    status   up-to-date   stale   requested   last update   avg request   2XX    4XX   5XX
good   live     1            0       1           17m           24ms          1223   0     0
bad    live     1            2       -           -             -             1      3     1
"
        );
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        let text = table_of(&[("local", &row("a\x1b[2Jb\nc"))]).render();
        assert!(text.contains(r"a\u{1b}[2Jb\nc"), "{text}");
    }

    #[test]
    fn durations_are_short() {
        let ages = [(0.0, "0s"), (59.9, "59s"), (60.0, "1m"), (3599.0, "59m"), (3600.0, "1h"), (259_200.0, "3d")];
        ages.iter().for_each(|(seconds, text)| assert_eq!(age(*seconds), *text));
        let spans = [
            (0.0, "0us"),
            (0.000_85, "850us"),
            (0.001, "1ms"),
            (0.001_44, "1.4ms"),
            (0.0238, "24ms"),
            (0.9996, "1s"),
            (1.2, "1.2s"),
            (75.2, "75s"),
        ];
        spans.iter().for_each(|(seconds, text)| assert_eq!(milliseconds(*seconds), *text));
    }
}
