//! Go's regular expressions with Rust's `regex`: both work on characters, but `\w`, `\d`, `\s` and `\b` are ASCII's in Go
//! (its `regexp/syntax`, "Perl character classes" and "Empty strings") and Unicode's in Rust.

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ast::{self, AssertionKind, Ast, ClassPerl, ClassPerlKind, ClassSetItem, Span};

/// A regex takes no more memory than that.
const REGEX_BYTES_MAX: usize = 10 << 20;

/// Compiles a regular expression as Go's `regexp` means it.
pub(super) fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    // What is no regex the compiler tells better.
    let pattern =
        ast::parse::Parser::new().parse(pattern).map_or_else(|_| pattern.to_owned(), |ast| ascii(pattern, &ast));
    RegexBuilder::new(&pattern).size_limit(REGEX_BYTES_MAX).build()
}

/// The pattern with its classes spelled out.
fn ascii(pattern: &str, ast: &Ast) -> String {
    let Ok(spelled) = ast::visit(ast, Classes::default());
    let (mut out, mut rest_at) = (String::new(), 0);
    for (span, text) in spelled {
        out.push_str(pattern.get(rest_at..span.start.offset).unwrap_or_default());
        out.push_str(text);
        rest_at = span.end.offset;
    }
    out.push_str(pattern.get(rest_at..).unwrap_or_default());
    out
}

/// What stands for something else in Go, in its order, and what that is.
#[derive(Default)]
struct Classes(Vec<(Span, &'static str)>);

impl Classes {
    fn perl(&mut self, class: &ClassPerl) {
        let text = match (&class.kind, class.negated) {
            (ClassPerlKind::Digit, false) => "[0-9]",
            (ClassPerlKind::Digit, true) => "[^0-9]",
            // No space: where the pattern ignores those, it ignores them in classes too.
            (ClassPerlKind::Space, false) => r"[\t\n\f\r\x20]",
            (ClassPerlKind::Space, true) => r"[^\t\n\f\r\x20]",
            (ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
            (ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
        };
        self.0.push((class.span, text));
    }
}

impl ast::Visitor for Classes {
    type Output = Vec<(Span, &'static str)>;
    type Err = std::convert::Infallible;

    fn finish(self) -> Result<Self::Output, Self::Err> {
        Ok(self.0)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        match ast {
            Ast::ClassPerl(class) => self.perl(class),
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::WordBoundary => self.0.push((assertion.span, r"(?-u:\b)")),
                AssertionKind::NotWordBoundary => self.0.push((assertion.span, r"(?-u:\B)")),
                // What Rust alone has.
                AssertionKind::WordBoundaryStartAngle => self.0.push((assertion.span, "<")),
                AssertionKind::WordBoundaryEndAngle => self.0.push((assertion.span, ">")),
                AssertionKind::WordBoundaryStart => self.0.push((assertion.span, r"(?-u:\b)\{start\}")),
                AssertionKind::WordBoundaryEnd => self.0.push((assertion.span, r"(?-u:\b)\{end\}")),
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        if let ClassSetItem::Perl(class) = item {
            self.perl(class);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_whole_and_classes_are_those_of_ascii() {
        let cases = [
            // What Go's regexp finds in each.
            (r"^city\.(.)(.*)\.hits$", "city.örebro.hits", Some(vec!["ö", "rebro"])),
            (r"^u\.([^.]{1,4})([^.]*)$", "u.日本", Some(vec!["日本", ""])),
            (r"^u\.([^.]{1,4})([^.]*)$", "u.äöüßx", Some(vec!["äöüß", "x"])),
            (r"(?i)^É(\w+)$", "école", Some(vec!["cole"])),
            (r"^[éè](\w+)$", "èré", None),
            (r"^(\w+)$", "école", None),
            (r"^(\W)(\D)(\S)$", "éßö", Some(vec!["é", "ß", "ö"])),
            (r"^[\wé.]+$", "a.é_9", Some(vec![])),
            (r"^[^\w]$", "é", Some(vec![])),
            (r"^[\d\s]+$", "1 \t2", Some(vec![])),
            (r"^\d$", "٣", None),
            (r"^\s$", "\u{b}", None),
            (r"é\b(x)", "éx", Some(vec!["x"])),
            (r"é\B.", "é.", Some(vec![])),
            (r"(?x) ^ ( \s ) \# [\s] $ ", " # ", Some(vec![" "])),
            (r"\\w(\.)\[\\d\]", r"\w.[\d]", Some(vec!["."])),
            (r"\<(a)\>", "<a>", Some(vec!["a"])),
            (r"\<(a)\>", "a", None),
            (r"a\b{start}", "a{start}", Some(vec![])),
        ];
        for (pattern, text, groups) in cases {
            let regex = compile(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            let got = regex.captures(text.as_bytes()).map(|captures| {
                let group = |at| captures.get(at).map_or("", |group| std::str::from_utf8(group.as_bytes()).unwrap());
                (1..captures.len()).map(group).collect::<Vec<_>>()
            });
            assert_eq!(got, groups, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_no_regex_says_why() {
        for (pattern, why) in
            [("(", "unclosed group"), (r"\w(?<", "unclosed capture group name"), (r"a{1000}{1000}", "size")]
        {
            let error = compile(pattern).unwrap_err().to_string();
            assert!(error.contains(why), "{pattern}: {error}");
        }
    }
}
