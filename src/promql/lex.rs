//! Text → tokens, as `promql/parser/lex.go` of Prometheus 3 cuts it and words its errors.

use super::node::Span;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    End,
    /// The text is no token: the token's text says why.
    Error,
    Identifier,
    /// An identifier with a colon in it.
    Metric,
    /// Aggregations, operators that are words, `by`, `offset` and their like, in any case of letters.
    Keyword,
    Number,
    Duration,
    /// A string, its quotes included.
    Text,
    /// `(`, `==` and their like.
    Symbol,
}

/// A token and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// As it was written; keywords in small letters.
    pub(super) text: String,
    pub(super) span: Span,
}

/// Aggregations, as [`Token::describe`] tells them from other keywords.
pub(super) const AGGREGATIONS: [&str; 14] = [
    "avg",
    "bottomk",
    "count",
    "count_values",
    "group",
    "max",
    "min",
    "quantile",
    "stddev",
    "stdvar",
    "sum",
    "topk",
    "limitk",
    "limit_ratio",
];
const WORD_OPERATORS: [&str; 4] = ["and", "or", "unless", "atan2"];
const KEYWORDS: [&str; 8] = ["offset", "by", "without", "on", "ignoring", "group_left", "group_right", "bool"];
/// `start()` and `end()`.
pub(super) const PREPROCESSORS: [&str; 2] = ["start", "end"];
const SYMBOL_OPERATORS: [&str; 15] = ["+", "-", "*", "/", "%", "^", "==", "!=", "<", "<=", ">", ">=", "=~", "!~", "@"];

impl Token {
    pub(super) fn is(&self, text: &str) -> bool {
        matches!(self.kind, Kind::Symbol | Kind::Keyword) && self.text == text
    }

    /// As Prometheus names a token that it did not expect (`Item.desc`).
    pub(super) fn describe(&self) -> String {
        let quoted = || {
            let short: String = self.text.chars().take(10).collect();
            if self.text.len() > 10 { format!("{}...", go_quote(&short)) } else { go_quote(&self.text) }
        };
        let text = self.text.as_str();
        match self.kind {
            Kind::End => "end of input".to_owned(),
            Kind::Error => format!("error {text}"),
            Kind::Identifier => format!("identifier {}", go_quote(text)),
            Kind::Metric => format!("metric identifier {}", go_quote(text)),
            Kind::Number => format!("number {}", quoted()),
            Kind::Duration => format!("duration {}", quoted()),
            Kind::Text => format!("string {}", quoted()),
            Kind::Keyword if AGGREGATIONS.contains(&text) => format!("<aggr:{text}>"),
            Kind::Keyword if KEYWORDS.contains(&text) => format!("<{text}>"),
            Kind::Keyword if PREPROCESSORS.contains(&text) => go_quote(text),
            Kind::Symbol if !SYMBOL_OPERATORS.contains(&text) => quoted(),
            Kind::Keyword | Kind::Symbol => format!("<op:{text}>"),
        }
    }
}

/// A string in quotes, as Go's `%q` writes it.
pub(super) fn go_quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A character in quotes, as Go's `%q` writes it; the end of the text as the rune -1.
fn rune(c: Option<char>) -> String {
    match c {
        None => "'\u{fffd}'".to_owned(),
        Some('\'') => "'\\''".to_owned(),
        Some('\\') => "'\\\\'".to_owned(),
        Some('\n') => "'\\n'".to_owned(),
        Some('\t') => "'\\t'".to_owned(),
        Some('\r') => "'\\r'".to_owned(),
        Some(c) => format!("'{c}'"),
    }
}

/// All tokens, the last one [`Kind::End`] or [`Kind::Error`].
pub(super) fn lex(input: &str) -> Vec<Token> {
    let mut lexer = Lexer { input, at: 0, start: 0, parens: 0, braces: false, bracket: None, tokens: Vec::new() };
    loop {
        let done = match lexer.next_token() {
            Ok(done) => done,
            Err(message) => {
                let span = Span { start: lexer.start, end: input.len() };
                lexer.tokens.push(Token { kind: Kind::Error, text: message, span });
                true
            }
        };
        if done {
            return lexer.tokens;
        }
    }
}

/// What was seen since a `[`.
#[derive(Default)]
struct Bracket {
    duration: bool,
    colon: bool,
}

struct Lexer<'a> {
    input: &'a str,
    at: usize,
    /// Where the token begins that is being read.
    start: usize,
    parens: usize,
    braces: bool,
    bracket: Option<Bracket>,
    tokens: Vec<Token>,
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.input.get(self.at..).and_then(|rest| rest.chars().next())
    }

    fn peek_second(&self) -> Option<char> {
        self.input.get(self.at..).and_then(|rest| rest.chars().nth(1))
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn accept(&mut self, set: &str) -> bool {
        let found = self.peek().is_some_and(|c| set.contains(c));
        if found {
            self.next();
        }
        found
    }

    fn accept_run(&mut self, set: &str) {
        while self.accept(set) {}
    }

    fn is_at(&self, set: &str) -> bool {
        self.peek().is_some_and(|c| set.contains(c))
    }

    /// An error that stands behind the token, which was given out before it was found wrong.
    fn after(&mut self, message: &str) -> Result<(), String> {
        self.start = self.at;
        Err(message.to_owned())
    }

    fn text(&self) -> &str {
        self.input.get(self.start..self.at).unwrap_or_default()
    }

    fn emit(&mut self, kind: Kind) {
        let text = if kind == Kind::Keyword { self.text().to_ascii_lowercase() } else { self.text().to_owned() };
        self.tokens.push(Token { kind, text, span: Span { start: self.start, end: self.at } });
    }

    /// Reads one token, or what is between two. True at the end.
    fn next_token(&mut self) -> Result<bool, String> {
        self.start = self.at;
        if self.peek().is_some_and(is_space) {
            while self.peek().is_some_and(is_space) {
                self.next();
            }
            return Ok(false);
        }
        if self.peek() == Some('#') && self.bracket.is_none() {
            while self.peek().is_some_and(|c| !matches!(c, '\r' | '\n')) {
                self.next();
            }
            return Ok(false);
        }
        if self.braces {
            return self.inside_braces().map(|()| false);
        }
        if self.bracket.is_some() {
            return self.inside_brackets().map(|()| false);
        }
        let Some(c) = self.peek() else {
            if self.parens != 0 {
                return Err("unclosed left parenthesis".to_owned());
            }
            self.emit(Kind::End);
            return Ok(true);
        };
        match c {
            '0'..='9' => self.number_or_duration()?,
            '.' if self.peek_second().is_some_and(|c| c.is_ascii_digit()) => self.number_or_duration()?,
            '"' | '\'' | '`' => self.string()?,
            c if is_word(c) || c == ':' => self.word(),
            _ => {
                self.next();
                self.symbol(c)?;
            }
        }
        Ok(false)
    }

    fn symbol(&mut self, c: char) -> Result<(), String> {
        match c {
            '=' if self.is_at("~") => return Err(format!("unexpected character after '=': {}", rune(self.peek()))),
            '=' | '<' | '>' => {
                self.accept("=");
            }
            '!' if !self.accept("=") => {
                return Err(format!("unexpected character after '!': {}", rune(self.peek())));
            }
            '!' | ',' | '*' | '/' | '%' | '+' | '-' | '^' | '@' => {}
            '(' => self.parens += 1,
            ')' if self.parens == 0 => return self.after(&format!("unexpected right parenthesis {}", rune(Some(c)))),
            ')' => self.parens -= 1,
            '{' => self.braces = true,
            '[' => self.bracket = Some(Bracket::default()),
            ']' => return Err(format!("unexpected right bracket {}", rune(Some(c)))),
            _ => return Err(format!("unexpected character: {}", rune(Some(c)))),
        }
        self.emit(Kind::Symbol);
        Ok(())
    }

    fn word(&mut self) {
        while self.peek().is_some_and(|c| is_word(c) || c == ':') {
            self.next();
        }
        let lower = self.text().to_ascii_lowercase();
        let lower = lower.as_str();
        let is_keyword = AGGREGATIONS.contains(&lower)
            || WORD_OPERATORS.contains(&lower)
            || KEYWORDS.contains(&lower)
            || PREPROCESSORS.contains(&lower);
        self.emit(match lower {
            "inf" | "nan" => Kind::Number,
            _ if is_keyword => Kind::Keyword,
            _ if lower.contains(':') => Kind::Metric,
            _ => Kind::Identifier,
        });
    }

    fn inside_braces(&mut self) -> Result<(), String> {
        let Some(c) = self.peek() else { return Err("unexpected end of input inside braces".to_owned()) };
        match c {
            '"' | '\'' | '`' => return self.string(),
            c if c == '_' || c.is_ascii_alphabetic() => {
                while self.peek().is_some_and(is_word) {
                    self.next();
                }
                self.emit(Kind::Identifier);
                return Ok(());
            }
            _ => {
                self.next();
            }
        }
        match c {
            '=' => {
                self.accept("~");
            }
            '!' if !self.accept("~=") => {
                return Err(format!("unexpected character after '!' inside braces: {}", rune(self.peek())));
            }
            '!' | ',' => {}
            '{' => return Err(format!("unexpected left brace {}", rune(Some(c)))),
            '}' => self.braces = false,
            _ => return Err(format!("unexpected character inside braces: {}", rune(Some(c)))),
        }
        self.emit(Kind::Symbol);
        Ok(())
    }

    fn inside_brackets(&mut self) -> Result<(), String> {
        let Some(c) = self.peek() else { return Err("unexpected end of input in duration expression".to_owned()) };
        if c.is_ascii_digit() || (c == '.' && self.peek_second().is_some_and(|c| c.is_ascii_digit())) {
            if let Some(bracket) = &mut self.bracket {
                bracket.duration = true;
            }
            return self.number_or_duration();
        }
        if c.is_ascii_alphabetic() {
            while self.peek().is_some_and(is_word) {
                self.next();
            }
            if !["step", "range", "min_of", "max_of"].contains(&self.text().to_ascii_lowercase().as_str()) {
                return Err(format!("unexpected character in duration expression: {}", rune(Some(c))));
            }
            if let Some(bracket) = &mut self.bracket {
                bracket.duration = true;
            }
            self.emit(Kind::Identifier);
            return Ok(());
        }
        self.next();
        match c {
            ']' => self.bracket = None,
            ':' => {
                let Some(bracket) = &mut self.bracket else { return Ok(()) };
                if !bracket.duration {
                    return self.after("unexpected colon before duration in duration expression");
                }
                if std::mem::replace(&mut bracket.colon, true) {
                    return self.after("unexpected repeated colon in duration expression");
                }
            }
            '(' => self.parens += 1,
            ')' if self.parens == 0 => return self.after(&format!("unexpected right parenthesis {}", rune(Some(c)))),
            ')' => self.parens -= 1,
            '+' | '-' | '*' | '/' | '%' | '^' | ',' => {}
            '[' => return Err(format!("unexpected left bracket {}", rune(Some(c)))),
            _ => return Err(format!("unexpected character in duration expression: {}", rune(Some(c)))),
        }
        self.emit(Kind::Symbol);
        Ok(())
    }

    fn string(&mut self) -> Result<(), String> {
        let quote = self.next();
        let is_raw = quote == Some('`');
        loop {
            match self.next() {
                None if is_raw => return Err("unterminated raw string".to_owned()),
                None => return Err("unterminated quoted string".to_owned()),
                Some('\n') if !is_raw => return Err("unterminated quoted string".to_owned()),
                Some('\\') if !is_raw => self.escape(quote)?,
                c if c == quote => break,
                Some(_) => {}
            }
        }
        self.emit(Kind::Text);
        Ok(())
    }

    fn escape(&mut self, quote: Option<char>) -> Result<(), String> {
        let (digits, base, max) = match self.peek() {
            None => return Err("escape sequence not terminated".to_owned()),
            Some('0'..='7') => (3, 8, 255),
            Some('x') => (2, 16, 255),
            Some('u') => (4, 16, u32::from(char::MAX)),
            Some('U') => (8, 16, u32::from(char::MAX)),
            c @ Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\') => {
                self.at += c.map_or(0, char::len_utf8);
                return Ok(());
            }
            c if c == quote => {
                self.next();
                return Ok(());
            }
            Some(c) => return Err(format!("unknown escape sequence U+{:04X} {}", u32::from(c), rune(Some(c)))),
        };
        if base == 16 {
            self.next();
        }
        let mut code = 0u32;
        for _ in 0..digits {
            let Some(c) = self.next() else { return Err("escape sequence not terminated".to_owned()) };
            let Some(digit) = c.to_digit(base) else {
                let name = format!("U+{:04X} {}", u32::from(c), rune(Some(c)));
                return Err(format!("illegal character {name} in escape sequence"));
            };
            code = code.wrapping_mul(base).wrapping_add(digit);
        }
        if code > max || (0xd800..0xe000).contains(&code) {
            return Err("escape sequence is an invalid Unicode code point".to_owned());
        }
        Ok(())
    }

    fn number_or_duration(&mut self) -> Result<(), String> {
        if self.scan_number() {
            self.emit(Kind::Number);
        } else if self.scan_rest_of_duration() {
            self.emit(Kind::Duration);
        } else {
            return Err(format!("bad number or duration syntax: {}", go_quote(self.text())));
        }
        Ok(())
    }

    /// Goes past what looks like a number; whether it is one is for the parser to see.
    fn scan_number(&mut self) -> bool {
        let mut digits = "0123456789";
        if self.accept("0") && self.accept("xX") {
            self.accept("_");
            digits = "0123456789abcdefABCDEF";
        }
        let is_hex = digits.len() > 10;
        self.accept(".");
        self.accept(digits);
        let (mut had_dot, mut had_exponent) = (false, false);
        while self.is_at(digits) || self.is_at("._eE") {
            if self.is_at(digits) {
                self.accept_run(digits);
            } else if self.accept(".") {
                if had_dot || is_hex || self.accept("_.") {
                    return false;
                }
                had_dot = true;
            } else if self.accept("eE") {
                if had_exponent {
                    return false;
                }
                had_exponent = true;
                self.accept("+-");
                if self.accept("._eE") || self.peek().is_none() {
                    return false;
                }
            } else if self.accept("_") && (self.accept("._eE") || self.peek().is_none()) {
                return false;
            }
        }
        !self.peek().is_some_and(is_word)
    }

    fn scan_rest_of_duration(&mut self) -> bool {
        const DIGITS: &str = "0123456789";
        if !self.accept("smhdwy") {
            return false;
        }
        self.accept("s"); // ms
        while self.is_at(DIGITS) {
            self.accept_run(DIGITS);
            if !self.accept("smhdw") {
                return false;
            }
            self.accept("s");
        }
        !self.peek().is_some_and(is_word)
    }
}
