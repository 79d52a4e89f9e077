//! Regular expressions as Prometheus reads them: RE2, anchored at both ends, the dot matches newlines too.

use regex::{Regex, RegexBuilder};

/// What one regular expression may take in memory, and what it may keep while it looks at text.
const BYTES_MAX: usize = 10 << 20;
const CACHE_BYTES_MAX: usize = 2 << 20;

/// `pattern` anchored, or what is wrong with it. It is the `nth` of its expression, from 1: the first may take much, and all together not
/// more than some 50 MiB, nor longer than that takes.
pub(super) fn anchored(pattern: &str, nth: usize) -> Result<Regex, String> {
    let pattern = translate(pattern);
    let bytes_max = BYTES_MAX / nth.max(1);
    let build = |text: &str| {
        let mut builder = RegexBuilder::new(text);
        builder.size_limit(bytes_max).dfa_size_limit(CACHE_BYTES_MAX.min(4 * bytes_max));
        builder.dot_matches_new_line(true).build()
    };
    // Alone first: `a)|(b` must not slip out of the anchors.
    build(&pattern).and_then(|_| build(&format!("^(?:{pattern})$"))).map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
        format!("error parsing regexp: {reason}")
    })
}

/// From RE2's syntax to that of the crate: `\d` and its like are ASCII; braces that repeat nothing and brackets within a
/// class are themselves; `&&`, `--` and `~~` mean nothing.
fn translate(pattern: &str) -> String {
    let mut text = String::with_capacity(pattern.len());
    let mut chars = pattern.char_indices().peekable();
    let mut in_class = false;
    while let Some((at, c)) = chars.next() {
        let rest = pattern.get(at..).unwrap_or_default();
        match c {
            '\\' => {
                let Some((_, escaped)) = chars.next() else {
                    text.push('\\');
                    break;
                };
                let ascii = match escaped.to_ascii_lowercase() {
                    'd' => "0-9",
                    'w' => "0-9A-Za-z_",
                    's' => "\\t\\n\\f\\r ",
                    _ => "",
                };
                match escaped {
                    'd' | 'w' | 's' if in_class => text.push_str(ascii),
                    'd' | 'w' | 's' => text.push_str(&format!("[{ascii}]")),
                    'D' | 'W' | 'S' => text.push_str(&format!("[^{ascii}]")),
                    'b' | 'B' if !in_class => text.push_str(&format!("(?-u:\\{escaped})")),
                    'p' | 'P' | 'x' if rest.get(2..).is_some_and(|rest| rest.starts_with('{')) => {
                        text.extend(['\\', escaped]);
                        for (_, inside) in chars.by_ref() {
                            text.push(inside);
                            if inside == '}' {
                                break;
                            }
                        }
                    }
                    _ => text.extend(['\\', escaped]),
                }
            }
            '[' if in_class && rest.starts_with("[:") => {
                let end = rest.find(":]").map_or(1, |end| end + 2);
                text.push_str(rest.get(..end).unwrap_or_default());
                while chars.next_if(|(next, _)| *next < at + end).is_some() {}
            }
            '[' if in_class => text.push_str("\\["),
            '[' => {
                in_class = true;
                text.push('[');
                if chars.next_if(|(_, c)| *c == '^').is_some() {
                    text.push('^');
                }
                if chars.next_if(|(_, c)| *c == ']').is_some() {
                    text.push_str("\\]");
                }
            }
            ']' if in_class => {
                in_class = false;
                text.push(']');
            }
            '&' | '~' if in_class => text.extend(['\\', c]),
            '{' if !in_class && !repeats(rest) => text.push_str("\\{"),
            '{' if !in_class => {
                let end = rest.find('}').map_or(1, |end| end + 1);
                text.push_str(rest.get(..end).unwrap_or_default());
                while chars.next_if(|(next, _)| *next < at + end).is_some() {}
            }
            '}' if !in_class => text.push_str("\\}"),
            c => text.push(c),
        }
    }
    text
}

/// Whether this begins with a repetition: `{2}`, `{2,}`, `{2,3}`.
fn repeats(rest: &str) -> bool {
    let Some((inside, _)) = rest.get(1..).and_then(|rest| rest.split_once('}')) else { return false };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_re2_reads_them() {
        let is_match = |pattern: &str, text: &str| anchored(pattern, 1).expect(pattern).is_match(text);
        assert!(is_match("b{x}", "b{x}"));
        assert!(is_match("a{2,3}", "aaa") && !is_match("a{2,3}", "a"));
        assert!(is_match("\\d+", "12") && !is_match("\\d+", "\u{0661}"));
        assert!(is_match("[\\d_]+", "1_2"));
        assert!(is_match("[[:alpha:][]+", "a[b"));
        assert!(is_match("[a&&b]+", "a&b"));
        assert!(is_match("[]x]+", "]x"));
        assert!(is_match(".*", "a\nb"));
        assert!(is_match("\\x{61}\\p{Lu}", "aB"));
        assert!(is_match("a|b", "b") && !is_match("a|b", "ab"));
        for wrong in ["a)|(b", "(", "[a", "*"] {
            assert!(anchored(wrong, 1).is_err(), "{wrong}");
        }
    }
}
