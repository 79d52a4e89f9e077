//! Text → checked [`Node`], or an error with its position: what was found and what was expected, in Prometheus's words.
//!
//! A recursive descent over the grammar of Prometheus 3 (`promql/parser/generated_parser.y`). Text that could nest too deeply
//! is refused before it is parsed, so that whatever walks the tree may recurse. First the syntax of all of it, then the types.

use super::QueryError;
use super::functions::Signature;
use super::lex::{AGGREGATIONS, Kind as TokenKind, PREPROCESSORS, Token, go_quote, lex};
use super::node::{
    Aggregate, AggregateOp, At, Binary, BinaryOp, Cardinality, Expr, Grouping, Kind, Node, Reach, Selector, Span,
    Subquery, TimeShift,
};
use super::regex::anchored;
use crate::model::{Labels, METRIC_NAME};
use crate::store::{MatchOp, Matcher};

/// The longest expression accepted, in bytes; Grafana's longest are a few KiB.
const EXPRESSION_BYTES_MAX: usize = 64 << 10;
/// How deeply brackets may nest.
const BRACKETS_MAX: usize = 64;
/// How many operators an expression may have: a chain of them is a tree as deep as it is long.
const OPERATORS_MAX: usize = 128;
/// How many regular expressions an expression may have: each may cost megabytes and milliseconds to compile.
const REGEXES_MAX: usize = 128;
/// The largest time or duration in milliseconds (142,000 years): sums of a few of them cannot overflow.
pub(super) const TIME_MAX_MS: i64 = 1 << 52;

/// The times of a query: what `start()`, `end()`, `range()` and `step()` say. An instant query has no step.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_field_names)] // the unit
pub(super) struct QueryTimes {
    pub(super) start_ms: i64,
    pub(super) end_ms: i64,
    pub(super) step_ms: i64,
}

impl QueryTimes {
    /// The value of such a word, in seconds.
    fn seconds(&self, word: &str) -> Option<f64> {
        let ms = match word.to_ascii_lowercase().as_str() {
            "start" => self.start_ms,
            "end" => self.end_ms,
            "range" => self.end_ms.checked_sub(self.start_ms)?,
            "step" => self.step_ms,
            _ => return None,
        };
        Some(ms as f64 / 1000.0)
    }
}

/// Parses and checks an expression.
pub(super) fn parse(expression: &str, times: QueryTimes) -> Result<Node, QueryError> {
    if expression.len() > EXPRESSION_BYTES_MAX {
        let got = expression.len();
        return Err(QueryError::BadData(format!(
            "expression too long: got {got} bytes, want at most {EXPRESSION_BYTES_MAX}"
        )));
    }
    let tokens = lex(expression);
    let whole = |tokens: Vec<Token>| {
        refuse_hostile(&tokens)?;
        let mut parser = Parser { tokens, at: 0, regexes: 0, times };
        let node = parser.whole()?;
        check(&node, expression)?;
        Ok(node.without_brackets())
    };
    whole(tokens).map_err(|error: ParseError| {
        QueryError::BadData(format!("{}: parse error: {}", position(expression, error.at), error.message))
    })
}

/// Line and column of a byte, both from 1 (`PositionRange.StartPosInput`).
pub(super) fn position(expression: &str, at: usize) -> String {
    if expression.is_empty() {
        return "unknown position".to_owned();
    }
    let before = expression.get(..at).unwrap_or(expression);
    let line = before.matches('\n').count() + 1;
    let column = before.rfind('\n').map_or(before.len() + 1, |newline| before.len() - newline);
    format!("{line}:{column}")
}

struct ParseError {
    at: usize,
    message: String,
}

type Parsed<T> = Result<T, ParseError>;

fn error<T>(span: Span, message: impl Into<String>) -> Parsed<T> {
    Err(ParseError { at: span.start, message: message.into() })
}

/// Bounds the depth of the tree that the tokens can become, and the regular expressions in it.
fn refuse_hostile(tokens: &[Token]) -> Parsed<()> {
    let (mut depth, mut operators, mut regexes) = (0usize, 0usize, 0usize);
    let mut in_braces = false;
    for token in tokens {
        match (token.kind, token.text.as_str()) {
            (TokenKind::Symbol, "{" | "}") => in_braces = token.text == "{",
            (TokenKind::Symbol, "(" | "[") => depth += 1,
            (TokenKind::Symbol, ")" | "]") => depth = depth.saturating_sub(1),
            (TokenKind::Symbol, "=~" | "!~") => regexes += 1,
            (TokenKind::Symbol | TokenKind::Keyword, _) if !in_braces => {
                operators += usize::from(operator(token).is_some());
            }
            _ => {}
        }
        if depth > BRACKETS_MAX {
            return error(token.span, format!("brackets nest too deeply: want at most {BRACKETS_MAX} levels"));
        }
        if operators > OPERATORS_MAX {
            return error(token.span, format!("too many operators: want at most {OPERATORS_MAX}"));
        }
        if regexes > REGEXES_MAX {
            return error(token.span, format!("too many regular expressions: want at most {REGEXES_MAX}"));
        }
    }
    Ok(())
}

fn operator(token: &Token) -> Option<BinaryOp> {
    if !matches!(token.kind, TokenKind::Symbol | TokenKind::Keyword) {
        return None;
    }
    Some(match token.text.as_str() {
        "+" => BinaryOp::Add,
        "-" => BinaryOp::Subtract,
        "*" => BinaryOp::Multiply,
        "/" => BinaryOp::Divide,
        "%" => BinaryOp::Modulo,
        "^" => BinaryOp::Power,
        "atan2" => BinaryOp::Atan2,
        "==" => BinaryOp::Equal,
        "!=" => BinaryOp::NotEqual,
        "<" => BinaryOp::Less,
        "<=" => BinaryOp::LessOrEqual,
        ">" => BinaryOp::Greater,
        ">=" => BinaryOp::GreaterOrEqual,
        "and" => BinaryOp::And,
        "or" => BinaryOp::Or,
        "unless" => BinaryOp::Unless,
        _ => return None,
    })
}

/// Keywords that cannot be a metric's name.
const NO_NAMES: [&str; 6] = ["bool", "on", "ignoring", "group_left", "group_right", "atan2"];

/// Which message an unexpected token gets: where it stood, and what was expected there.
#[derive(Clone, Copy)]
struct Place(&'static str, &'static str);

/// No better message than that the token was not expected: the places around it may know one.
const ANYWHERE: Place = Place("", "");

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    /// How many regular expressions there were so far.
    regexes: usize,
    times: QueryTimes,
}

impl Parser {
    /// The next token; the last one again and again.
    fn peek(&self) -> Token {
        let end = || Token { kind: TokenKind::End, text: String::new(), span: Span::default() };
        self.tokens.get(self.at).or(self.tokens.last()).cloned().unwrap_or_else(end)
    }

    fn is_next(&self, text: &str) -> bool {
        self.tokens.get(self.at).is_some_and(|token| token.is(text))
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at = (self.at + 1).min(self.tokens.len());
        token
    }

    fn take(&mut self, text: &str) -> Option<Token> {
        self.is_next(text).then(|| self.next())
    }

    /// Where the last token ended.
    fn end(&self) -> usize {
        self.at.checked_sub(1).and_then(|at| self.tokens.get(at)).map_or(0, |token| token.span.end)
    }

    fn since(&self, start: usize) -> Span {
        Span { start, end: self.end() }
    }

    fn expect(&mut self, text: &str, place: Place) -> Parsed<Token> {
        match self.take(text) {
            Some(token) => Ok(token),
            None => self.unexpected(place),
        }
    }

    fn unexpected<T>(&self, Place(place, expected): Place) -> Parsed<T> {
        let token = self.peek();
        if token.kind == TokenKind::Error {
            return error(token.span, token.text);
        }
        let mut message = format!("unexpected {}", token.describe());
        if !place.is_empty() {
            message.push_str(&format!(" in {place}"));
        }
        if !expected.is_empty() {
            message.push_str(&format!(", expected {expected}"));
        }
        error(token.span, message)
    }

    fn whole(&mut self) -> Parsed<Node> {
        if self.peek().kind == TokenKind::End {
            return error(Span::default(), "no expression found in input");
        }
        let node = self.binary(0, ANYWHERE)?;
        if self.peek().kind == TokenKind::End { Ok(node) } else { self.unexpected(ANYWHERE) }
    }

    /// An expression of operators that bind at least as tightly as `precedence`.
    fn binary(&mut self, precedence: u8, place: Place) -> Parsed<Node> {
        let mut lhs = self.unary(place)?;
        while let Some(op) = operator(&self.peek()).filter(|op| op.precedence() >= precedence) {
            self.next();
            let mut binary = self.modifiers(op)?;
            let next = if op == BinaryOp::Power { op.precedence() } else { op.precedence() + 1 };
            binary.rhs = self.binary(next, place)?;
            let span = Span { start: lhs.span.start, end: binary.rhs.span.end };
            binary.lhs = lhs;
            lhs = Node { expr: Expr::Binary(Box::new(binary)), span };
        }
        Ok(lhs)
    }

    /// What may stand between an operator and its right operand. The operands are still to come.
    fn modifiers(&mut self, op: BinaryOp) -> Parsed<Binary> {
        let none = || Node { expr: Expr::Number(0.0), span: Span::default() };
        let return_bool = self.take("bool").is_some();
        let mut matching = Grouping { only: false, labels: Vec::new() };
        let mut cardinality = Cardinality::OneToOne;
        if self.is_next("on") || self.is_next("ignoring") {
            matching = Grouping { only: self.next().text == "on", labels: self.grouping()? };
            if self.is_next("group_left") || self.is_next("group_right") {
                let is_left = self.next().text == "group_left";
                let labels = if self.is_next("(") { self.grouping()? } else { Vec::new() };
                cardinality = if is_left { Cardinality::ManyToOne(labels) } else { Cardinality::OneToMany(labels) };
            }
        }
        let fill = self.fill()?;
        Ok(Binary { op, lhs: none(), rhs: none(), return_bool, matching, cardinality, fill })
    }

    /// `fill(0)`, or `fill_left(0)` and `fill_right(1)`, one or both, in any order. Without brackets they are names.
    fn fill(&mut self) -> Parsed<[Option<f64>; 2]> {
        const PLACE: &str = "fill modifier";
        let mut fill = [None, None];
        while self.tokens.get(self.at + 1).is_some_and(|next| next.is("(")) {
            let sides = match self.peek().text.as_str() {
                "fill" if fill == [None, None] => [true, true],
                "fill_left" if fill[0].is_none() => [true, false],
                "fill_right" if fill[1].is_none() => [false, true],
                _ => break,
            };
            self.next();
            self.expect("(", Place(PLACE, "\"(\""))?;
            let sign = if self.take("-").is_some() {
                -1.0
            } else {
                self.take("+");
                1.0
            };
            let value = sign * self.number(Place(PLACE, "number"))?;
            self.expect(")", Place(PLACE, "\")\""))?;
            for (slot, _) in fill.iter_mut().zip(sides).filter(|(_, is_filled)| *is_filled) {
                *slot = Some(value);
            }
            if sides == [true, true] {
                break;
            }
        }
        Ok(fill)
    }

    /// `(a, b)`
    fn grouping(&mut self) -> Parsed<Vec<String>> {
        const PLACE: &str = "grouping opts";
        self.expect("(", Place(PLACE, "\"(\""))?;
        let mut labels = Vec::new();
        loop {
            if labels.is_empty() && self.take(")").is_some() {
                return Ok(labels);
            }
            let token = self.peek();
            labels.push(match token.kind {
                TokenKind::Identifier | TokenKind::Metric | TokenKind::Keyword => token.text,
                TokenKind::Text => unquote(&token.text),
                _ => return self.unexpected(Place(PLACE, "label")),
            });
            if labels.last().is_some_and(String::is_empty) {
                return error(token.span, "invalid label name for grouping: \"\"");
            }
            self.next();
            if self.take(",").is_some() {
                if self.take(")").is_some() {
                    return Ok(labels);
                }
                continue;
            }
            self.expect(")", Place(PLACE, "\",\" or \")\""))?;
            return Ok(labels);
        }
    }

    fn unary(&mut self, place: Place) -> Parsed<Node> {
        let token = self.peek();
        if !token.is("+") && !token.is("-") {
            return self.postfix(place);
        }
        self.next();
        let is_negative = token.text == "-";
        let inner = self.binary(BinaryOp::Power.precedence(), place)?;
        let span = Span { start: token.span.start, end: inner.span.end };
        let expr = match inner.expr {
            Expr::Number(number) => Expr::Number(if is_negative { -number } else { number }),
            _ => Expr::Unary { is_negative, inner: Box::new(inner) },
        };
        Ok(Node { expr, span })
    }

    /// An operand with its ranges, `offset` and `@`.
    fn postfix(&mut self, place: Place) -> Parsed<Node> {
        let mut node = self.operand(place)?;
        loop {
            if self.take("[").is_some() {
                node = self.brackets(node)?;
            } else if self.take("offset").is_some() {
                let offset_ms = self.offset()?;
                let Some(shift) = shift_of(&mut node.expr) else {
                    return error(
                        node.span,
                        "offset modifier must be preceded by an instant vector selector or range vector selector or a subquery",
                    );
                };
                if shift.offset_ms != 0 {
                    return error(node.span, "offset may not be set multiple times");
                }
                shift.offset_ms = offset_ms;
            } else if self.take("@").is_some() {
                let at = self.at_time(node.span)?;
                let Some(shift) = shift_of(&mut node.expr) else {
                    return error(
                        node.span,
                        "@ modifier must be preceded by an instant vector selector or range vector selector or a subquery",
                    );
                };
                if shift.at.replace(at).is_some() {
                    return error(node.span, "@ <timestamp> may not be set multiple times");
                }
            } else if let Some(reach) = self.reach() {
                let (Expr::Select(selector) | Expr::Window { selector, .. }) = &mut node.expr else {
                    return error(node.span, format!("{} modifier is only for selectors", reach.name()));
                };
                if std::mem::replace(&mut selector.reach, reach) != Reach::default() {
                    return error(node.span, "anchored and smoothed modifiers cannot be used together");
                }
            } else {
                return Ok(node);
            }
            node.span.end = self.end();
        }
    }

    /// `anchored` or `smoothed`.
    fn reach(&mut self) -> Option<Reach> {
        let token = self.peek();
        let reach = match token.text.to_ascii_lowercase().as_str() {
            "anchored" => Reach::Anchored,
            "smoothed" => Reach::Smoothed,
            _ => return None,
        };
        if token.kind != TokenKind::Identifier {
            return None;
        }
        self.next();
        Some(reach)
    }

    /// `[5m]`, `[5m:]` or `[5m:1m]`, the first bracket of which was taken.
    fn brackets(&mut self, node: Node) -> Parsed<Node> {
        let bracket = self.since(self.end().saturating_sub(1));
        let range_ms = self.positive_duration(Place("subquery selector", "number or duration"))?;
        if self.take(":").is_some() {
            let step_ms = if self.is_next("]") {
                None
            } else {
                Some(self.positive_duration(Place("subquery selector", "number or duration or \"]\""))?)
            };
            self.expect("]", Place("subquery selector", "\"]\""))?;
            let span = self.since(node.span.start);
            // At once, so that a chain of these is no deep tree.
            if let Expr::Subquery(_) | Expr::Window { .. } = node.expr {
                return error(span, "subquery is only allowed on instant vector, got matrix instead");
            }
            let subquery = Subquery { inner: Box::new(node), range_ms, step_ms, shift: TimeShift::default() };
            return Ok(Node { expr: Expr::Subquery(subquery), span });
        }
        self.expect("]", Place("subquery or range", "\":\" or \"]\""))?;
        let span = self.since(node.span.start);
        match node.expr {
            Expr::Select(selector) if selector.shift.offset_ms != 0 => {
                error(bracket, "no offset modifiers allowed before range")
            }
            // `start()` and `end()` Prometheus lets pass.
            Expr::Select(selector) if matches!(selector.shift.at, Some(At::Time(_))) => {
                error(bracket, "no @ modifiers allowed before range")
            }
            Expr::Select(selector) => Ok(Node { expr: Expr::Window { selector, range_ms }, span }),
            _ => error(bracket, "ranges only allowed for vector selectors"),
        }
    }

    fn offset(&mut self) -> Parsed<i64> {
        let place = Place("offset", "number or duration");
        let sign = match self.peek() {
            token if token.is("-") => -1.0,
            _ => 1.0,
        };
        if self.is_next("-") || self.is_next("+") {
            self.next();
        }
        let token = self.peek();
        // `x offset -2^2` is `(x offset -2)^2`: without brackets a number ends the offset.
        let seconds = self.duration_operand(place)?;
        milliseconds(seconds * sign, token.span)
    }

    /// A duration above zero, in milliseconds.
    fn positive_duration(&mut self, place: Place) -> Parsed<i64> {
        let start = self.peek().span;
        let seconds = self.duration(0, place)?;
        if seconds <= 0.0 {
            return error(start, "duration must be greater than 0");
        }
        Ok(milliseconds(seconds, start)?.max(1))
    }

    /// Durations and numbers with operators between them, in seconds.
    fn duration(&mut self, precedence: u8, place: Place) -> Parsed<f64> {
        let mut value = if self.take("-").is_some() {
            -self.duration(BinaryOp::Power.precedence(), place)?
        } else if self.take("+").is_some() {
            self.duration(BinaryOp::Power.precedence(), place)?
        } else {
            self.duration_operand(place)?
        };
        while let Some(op) = operator(&self.peek()).filter(|op| op.precedence() >= precedence.max(4)) {
            let symbol = self.next();
            let next = if op == BinaryOp::Power { op.precedence() } else { op.precedence() + 1 };
            let rhs = self.duration(next, place)?;
            value = match op {
                BinaryOp::Add => value + rhs,
                BinaryOp::Subtract => value - rhs,
                BinaryOp::Multiply => value * rhs,
                BinaryOp::Divide if rhs == 0.0 => return error(symbol.span, "division by zero"),
                BinaryOp::Divide => value / rhs,
                BinaryOp::Modulo if rhs == 0.0 => return error(symbol.span, "modulo by zero"),
                BinaryOp::Modulo => value % rhs,
                BinaryOp::Power => value.powf(rhs),
                _ => return self.unexpected(place),
            };
        }
        Ok(value)
    }

    /// A number, a duration, one in brackets, `step()`, `range()`, `min_of(a, b)` or `max_of(a, b)`, in seconds.
    fn duration_operand(&mut self, place: Place) -> Parsed<f64> {
        if self.take("(").is_some() {
            let value = self.duration(0, place)?;
            self.expect(")", place)?;
            return Ok(value);
        }
        let token = self.peek();
        if token.kind != TokenKind::Identifier {
            return self.number(place);
        }
        if let Some(seconds) = self.times.seconds(&token.text) {
            self.next();
            self.expect("(", place)?;
            self.expect(")", place)?;
            return Ok(seconds);
        }
        let of_two = match token.text.to_ascii_lowercase().as_str() {
            "min_of" => f64::min,
            "max_of" => f64::max,
            _ => return self.unexpected(place),
        };
        self.next();
        self.expect("(", place)?;
        let first = self.duration(0, place)?;
        self.expect(",", place)?;
        let second = self.duration(0, place)?;
        self.expect(")", place)?;
        Ok(of_two(first, second))
    }

    /// A number or a duration in seconds.
    fn number(&mut self, place: Place) -> Parsed<f64> {
        let token = self.peek();
        let value = match token.kind {
            TokenKind::Number => number(&token.text).ok_or_else(|| ParseError {
                at: token.span.start,
                message: format!(
                    "error parsing number: strconv.ParseFloat: parsing {}: invalid syntax",
                    go_quote(&token.text)
                ),
            }),
            TokenKind::Duration => match literal_ms(&token.text) {
                Some(ms) => Ok(ms as f64 / 1000.0),
                None => error(token.span, format!("not a valid duration string: {}", go_quote(&token.text))),
            },
            _ => return self.unexpected(place),
        };
        self.next();
        value
    }

    fn at_time(&mut self, selector: Span) -> Parsed<At> {
        let place = Place("@", "timestamp");
        for (word, at) in [("start", At::Start), ("end", At::End)] {
            if self.take(word).is_some() {
                self.expect("(", place)?;
                self.expect(")", place)?;
                return Ok(at);
            }
        }
        let sign = if self.take("-").is_some() { -1.0 } else { 1.0 };
        if sign > 0.0 {
            self.take("+");
        }
        let seconds = self.number(place)? * sign;
        let ms = (seconds * 1000.0).round();
        if ms.abs() <= TIME_MAX_MS as f64 {
            return Ok(At::Time(ms as i64));
        }
        error(selector, format!("timestamp out of bounds for @ modifier: {seconds:.6}"))
    }

    fn operand(&mut self, place: Place) -> Parsed<Node> {
        let token = self.peek();
        let start = token.span.start;
        let expr = match token.kind {
            TokenKind::Number | TokenKind::Duration => Expr::Number(self.number(place)?),
            TokenKind::Text => {
                self.next();
                Expr::Text(unquote(&token.text))
            }
            TokenKind::Symbol if token.text == "(" => {
                self.next();
                let inner = self.binary(0, place)?;
                self.expect(")", place)?;
                Expr::Paren(Box::new(inner))
            }
            TokenKind::Symbol if token.text == "{" => Expr::Select(self.selector(None)?),
            TokenKind::Metric => {
                self.next();
                Expr::Select(self.selector(Some(token.text))?)
            }
            TokenKind::Identifier => {
                self.next();
                if self.is_next("(") {
                    self.call(&token, place)?
                } else {
                    Expr::Select(self.selector(Some(token.text))?)
                }
            }
            TokenKind::Keyword if PREPROCESSORS.contains(&token.text.as_str()) && self.is_call() => {
                self.next();
                let _ = self.arguments(place)?;
                Expr::Number(self.times.seconds(&token.text).unwrap_or(f64::NAN))
            }
            TokenKind::Keyword if AGGREGATIONS.contains(&token.text.as_str()) && !self.is_name_alone() => {
                self.next();
                self.aggregate(&token)?
            }
            TokenKind::Keyword if !NO_NAMES.contains(&token.text.as_str()) => {
                self.next();
                Expr::Select(self.selector(Some(token.text))?)
            }
            _ => return self.unexpected(place),
        };
        Ok(Node { expr, span: self.since(start) })
    }

    /// Whether the token after the next one is `(`.
    fn is_call(&self) -> bool {
        self.tokens.get(self.at + 1).is_some_and(|after| after.is("("))
    }

    /// Whether the next token, an aggregation, is a metric's name: nothing of an aggregation follows.
    fn is_name_alone(&self) -> bool {
        self.tokens.get(self.at + 1).is_none_or(|after| !["(", "by", "without"].iter().any(|text| after.is(text)))
    }

    fn selector(&mut self, name: Option<String>) -> Parsed<Selector> {
        let mut matchers = if self.is_next("{") { self.matchers()? } else { Vec::new() };
        matchers.extend(name.as_deref().map(Matcher::metric));
        Ok(Selector { name, matchers, shift: TimeShift::default(), reach: Reach::default() })
    }

    fn matchers(&mut self) -> Parsed<Vec<Matcher>> {
        const PLACE: &str = "label matching";
        self.next();
        let mut matchers = Vec::new();
        loop {
            if matchers.is_empty() && self.take("}").is_some() {
                return Ok(matchers);
            }
            let name = self.peek();
            let label = match name.kind {
                TokenKind::Identifier => name.text.clone(),
                TokenKind::Text => unquote(&name.text),
                _ => return self.unexpected(Place(PLACE, "identifier or \"}\"")),
            };
            self.next();
            let op = self.peek();
            if ["=", "!=", "=~", "!~"].contains(&op.text.as_str()) && op.kind == TokenKind::Symbol {
                self.next();
                let value = self.peek();
                if value.kind != TokenKind::Text {
                    return self.unexpected(Place(PLACE, "string"));
                }
                self.next();
                let text = unquote(&value.text);
                self.regexes += usize::from(["=~", "!~"].contains(&op.text.as_str()));
                let at = name.span.start;
                let regex = |text: &str| anchored(text, self.regexes).map_err(|message| ParseError { at, message });
                let op = match op.text.as_str() {
                    "=" => MatchOp::Equal(text),
                    "!=" => MatchOp::NotEqual(text),
                    "=~" => MatchOp::Regex(regex(&text)?),
                    _ => MatchOp::NotRegex(regex(&text)?),
                };
                matchers.push(Matcher { name: label, op });
            } else if name.kind == TokenKind::Text {
                matchers.push(Matcher::metric(&label));
            } else {
                return self.unexpected(Place(PLACE, "label matching operator"));
            }
            if self.take(",").is_some() {
                if self.take("}").is_some() {
                    return Ok(matchers);
                }
                continue;
            }
            self.expect("}", Place(PLACE, "\",\" or \"}\""))?;
            return Ok(matchers);
        }
    }

    fn arguments(&mut self, place: Place) -> Parsed<Vec<Node>> {
        self.expect("(", place)?;
        let mut args = Vec::new();
        if self.take(")").is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.binary(0, place)?);
            if let Some(comma) = self.take(",") {
                if !self.may_begin_operand() {
                    return error(comma.span, "trailing commas not allowed in function call args");
                }
                continue;
            }
            self.expect(")", place)?;
            return Ok(args);
        }
    }

    /// Whether the next token may be the first of an expression, or is none at all.
    fn may_begin_operand(&self) -> bool {
        let token = self.peek();
        match token.kind {
            TokenKind::End => false,
            TokenKind::Symbol => ["(", "{", "+", "-"].contains(&token.text.as_str()),
            TokenKind::Keyword => !NO_NAMES.contains(&token.text.as_str()),
            _ => true,
        }
    }

    fn call(&mut self, name: &Token, place: Place) -> Parsed<Expr> {
        let args = self.arguments(place)?;
        if let Some(seconds) = self.times.seconds(&name.text).filter(|_| args.is_empty()) {
            return Ok(Expr::Number(seconds));
        }
        let Some(function) = Signature::named(&name.text) else {
            return error(name.span, format!("unknown function with name {}", go_quote(&name.text)));
        };
        Ok(Expr::Call { function, args })
    }

    fn aggregate(&mut self, name: &Token) -> Parsed<Expr> {
        let place = Place("aggregation", "");
        let mut grouping = Grouping { only: true, labels: Vec::new() };
        let mut modifier = |parser: &mut Self| -> Parsed<bool> {
            if !parser.is_next("by") && !parser.is_next("without") {
                return Ok(false);
            }
            grouping = Grouping { only: parser.next().text == "by", labels: parser.grouping()? };
            Ok(true)
        };
        let is_before = modifier(self)?;
        let mut args = self.arguments(place)?;
        let span = Span { start: name.span.start, end: self.end() };
        if !is_before {
            modifier(self)?;
        }
        let Some(op) = AggregateOp::named(&name.text) else { return self.unexpected(place) };
        let want = if op.param().is_some() { 2 } else { 1 };
        let got = args.len();
        let Some(inner) = args.pop() else {
            return error(span, "no arguments for aggregate expression provided");
        };
        if got != want {
            return error(
                span,
                format!("wrong number of arguments for aggregate expression provided, expected {want}, got {got}"),
            );
        }
        Ok(Expr::Aggregate(Box::new(Aggregate { op, grouping, param: args.pop(), inner })))
    }
}

fn shift_of(expr: &mut Expr) -> Option<&mut TimeShift> {
    match expr {
        Expr::Select(selector) | Expr::Window { selector, .. } => Some(&mut selector.shift),
        Expr::Subquery(subquery) => Some(&mut subquery.shift),
        _ => None,
    }
}

/// What a string in quotes says.
fn unquote(quoted: &str) -> String {
    let Some(inside) = quoted.get(1..quoted.len().saturating_sub(1)) else { return String::new() };
    if quoted.starts_with('`') || !inside.contains('\\') {
        return inside.to_owned();
    }
    let mut bytes = Vec::with_capacity(inside.len());
    let mut chars = inside.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        let code = |chars: &mut dyn Iterator<Item = char>, digits: usize, base: u32| {
            chars.take(digits).fold(0u32, |code, c| code.wrapping_mul(base).wrapping_add(c.to_digit(base).unwrap_or(0)))
        };
        match chars.next() {
            Some('a') => bytes.push(7),
            Some('b') => bytes.push(8),
            Some('f') => bytes.push(12),
            Some('n') => bytes.push(b'\n'),
            Some('r') => bytes.push(b'\r'),
            Some('t') => bytes.push(b'\t'),
            Some('v') => bytes.push(11),
            Some('x') => bytes.push(code(&mut chars, 2, 16) as u8),
            Some(digit @ '0'..='7') => {
                bytes.push(code(&mut std::iter::once(digit).chain(chars.by_ref().take(2)), 3, 8) as u8);
            }
            Some(long @ ('u' | 'U')) => {
                let code = code(&mut chars, if long == 'u' { 4 } else { 8 }, 16);
                bytes.extend(
                    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut [0; 4]).bytes(),
                );
            }
            Some(other) => bytes.extend(other.encode_utf8(&mut [0; 4]).bytes()),
            None => {}
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A number as Go reads it: decimal, `0x1F`, `0b1`, `017`, `1_000`, `1e3`, `Inf`, `NaN`.
fn number(text: &str) -> Option<f64> {
    let digits = text.replace('_', "");
    let lower = digits.to_ascii_lowercase();
    let of_base = |prefix: &str, base: u32| {
        let digits = lower.strip_prefix(prefix)?;
        // An integer of 64 bits, or it is read as a float, which only hexadecimal ones can be.
        i64::from_str_radix(digits, base).ok().map(|n| n as f64)
    };
    if let Some(hex) = lower.strip_prefix("0x") {
        return of_base("0x", 16)
            .or_else(|| hex.chars().try_fold(0.0, |n, c| Some(n * 16.0 + f64::from(c.to_digit(16)?))));
    }
    if lower.len() > 1 && lower.starts_with('0') && lower.chars().all(|c| c.is_digit(8)) {
        return of_base("0", 8);
    }
    digits.parse::<f64>().ok()
}

/// A duration such as `1h30m` in milliseconds: each unit once, the greatest first.
fn literal_ms(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 7] = [
        ("y", 365 * 86_400_000),
        ("w", 7 * 86_400_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ];
    let (mut rest, mut units, mut total) = (text, UNITS.as_slice(), 0i64);
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = rest.get(..digits)?.parse().ok()?;
        let after = rest.get(digits..)?;
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let name = after.get(..unit)?;
        let at = units.iter().position(|(unit, _)| *unit == name)?;
        total = total.checked_add(count.checked_mul(units.get(at)?.1)?)?;
        units = units.get(at + 1..)?;
        rest = after.get(unit..)?;
    }
    (total <= TIME_MAX_MS).then_some(total)
}

fn milliseconds(seconds: f64, span: Span) -> Parsed<i64> {
    // To the nanosecond first, as Prometheus rounds; then what is less than a millisecond is cut off.
    let ms = ((seconds * 1e9).round() / 1e6).trunc();
    if ms.abs() <= TIME_MAX_MS as f64 { Ok(ms as i64) } else { error(span, "duration out of range") }
}

/// A duration as the API takes it, in milliseconds: seconds (`15`, `0.5`, `-1`) or a literal of the language (`1m30s`).
pub fn parse_duration_ms(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        let ms = (seconds * 1000.0).trunc();
        return (ms.abs() <= TIME_MAX_MS as f64).then_some(ms as i64);
    }
    literal_ms(text)
}

/// Checks the types of an expression and all within it, in the order in which Prometheus does (`checkAST`).
fn check(node: &Node, text: &str) -> Parsed<()> {
    match &node.expr {
        Expr::Number(_) | Expr::Text(_) => Ok(()),
        Expr::Select(selector) | Expr::Window { selector, .. } => check_selector(selector, node.span),
        Expr::Paren(inner) => check(inner, text),
        Expr::Unary { inner, .. } => {
            check(inner, text)?;
            match inner.kind() {
                Kind::Scalar | Kind::Vector => Ok(()),
                other => error(
                    node.span,
                    format!(
                        "unary expression only allowed on expressions of type scalar or instant vector, got \"{other}\""
                    ),
                ),
            }
        }
        Expr::Subquery(subquery) => {
            check(&subquery.inner, text)?;
            let got = match subquery.inner.kind() {
                Kind::Vector => return Ok(()),
                Kind::Scalar => "scalar",
                Kind::Matrix => "matrix",
                Kind::Text => "string",
            };
            error(node.span, format!("subquery is only allowed on instant vector, got {got} instead"))
        }
        Expr::Aggregate(aggregate) => {
            expect(Kind::Vector, &aggregate.inner, "aggregation expression", text)?;
            match (aggregate.op.param(), &aggregate.param) {
                (Some(kind), Some(param)) => expect(kind, param, "aggregation parameter", text),
                _ => Ok(()),
            }
        }
        Expr::Binary(binary) => check_binary(binary, node.span, text),
        Expr::Call { function, args } => check_call(function, args, node.span, text),
    }
}

fn expect(want: Kind, node: &Node, place: &str, text: &str) -> Parsed<()> {
    check(node, text)?;
    let got = node.kind();
    if got == want { Ok(()) } else { error(node.span, format!("expected type {want} in {place}, got {got}")) }
}

fn check_selector(selector: &Selector, span: Span) -> Parsed<()> {
    let value = |op: &MatchOp| match op {
        MatchOp::Equal(value) | MatchOp::NotEqual(value) => value.clone(),
        MatchOp::Regex(regex) | MatchOp::NotRegex(regex) => regex.as_str().to_owned(),
    };
    if let Some(name) = &selector.name {
        let inside = selector.matchers.split_last().map_or(&[][..], |(_, inside)| inside);
        return match inside.iter().find(|matcher| matcher.name == METRIC_NAME) {
            None => Ok(()),
            Some(twin) => error(
                span,
                format!("metric name must not be set twice: {} or {}", go_quote(name), go_quote(&value(&twin.op))),
            ),
        };
    }
    if selector.matchers.iter().all(|matcher| matcher.matches(&Labels::empty())) {
        return error(span, "vector selector must contain at least one non-empty matcher");
    }
    Ok(())
}

fn check_binary(binary: &Binary, span: Span, text: &str) -> Parsed<()> {
    check(&binary.lhs, text)?;
    check(&binary.rhs, text)?;
    let (lhs, rhs) = (binary.lhs.kind(), binary.rhs.kind());
    let op = binary.op;
    let after = text.get(binary.lhs.span.end..).unwrap_or_default();
    let at_operator = Span { start: text.len() - after.trim_start().len(), end: binary.rhs.span.start };
    if binary.return_bool && !op.is_comparison() {
        return error(at_operator, "bool modifier can only be used on comparison operators");
    }
    if op.is_comparison() && !binary.return_bool && lhs == Kind::Scalar && rhs == Kind::Scalar {
        return error(at_operator, "comparisons between scalars must use BOOL modifier");
    }
    if let Cardinality::ManyToOne(include) | Cardinality::OneToMany(include) = &binary.cardinality
        && binary.matching.only
        && let Some(twin) = binary.matching.labels.iter().find(|label| include.contains(label))
    {
        return error(at_operator, format!("label {} must not occur in ON and GROUP clause at once", go_quote(twin)));
    }
    for (side, kind) in [(&binary.lhs, lhs), (&binary.rhs, rhs)] {
        if !matches!(kind, Kind::Scalar | Kind::Vector) {
            return error(side.span, "binary expression must contain only scalar and instant vector types");
        }
    }
    let symbol = op.symbol();
    if lhs == Kind::Vector && rhs == Kind::Vector {
        if op.is_set() && !matches!(binary.cardinality, Cardinality::OneToOne) {
            return error(span, format!("no grouping allowed for \"{symbol}\" operation"));
        }
        if op.is_set() && binary.fill != [None, None] {
            return error(span, "filling in missing series not allowed for set operators");
        }
        return Ok(());
    }
    if !binary.matching.labels.is_empty() {
        return error(span, "vector matching only allowed between instant vectors");
    }
    if binary.fill != [None, None] {
        return error(span, "filling in missing series only allowed between instant vectors");
    }
    if op.is_set() {
        return error(span, format!("set operator \"{symbol}\" not allowed in binary scalar expression"));
    }
    Ok(())
}

fn check_call(function: &'static Signature, args: &[Node], span: Span, text: &str) -> Parsed<()> {
    let (name, want, got) = (function.name, function.args.len(), args.len());
    let wrong = |bound: &str, want: usize| {
        error(span, format!("expected {bound}{want} argument(s) in call to \"{name}\", got {got}"))
    };
    match function.variadic {
        0 if got != want => return wrong("", want),
        0 => {}
        _ if got + 1 < want => return wrong("at least ", want - 1),
        more => {
            if let Ok(more) = usize::try_from(more)
                && got > want - 1 + more
            {
                return wrong("at most ", want - 1 + more);
            }
        }
    }
    for (at, arg) in args.iter().enumerate() {
        // The selector of labels may match everything; it must not have a name.
        if name == "info" && at == 1 {
            return match &arg.expr {
                Expr::Select(Selector { name: None, .. }) => Ok(()),
                Expr::Select(_) => error(arg.span, "expected label selectors only, got vector selector instead"),
                _ => expect(Kind::Vector, arg, "call to function \"info\"", text)
                    .and_then(|()| error(arg.span, "expected label selectors only, got instant vector instead")),
            };
        }
        if let Some(kind) = function.args.get(at).or(function.args.last()) {
            expect(*kind, arg, &format!("call to function \"{name}\""), text)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(expression: &str) -> String {
        parse(expression, QueryTimes::default()).expect_err(expression).to_string()
    }

    /// Each as Prometheus 3.5 words it.
    #[test]
    fn errors_say_where_what_was_found_and_what_was_expected() {
        for (expression, want) in [
            ("", "unknown position: parse error: no expression found in input"),
            ("# nothing\n", "1:1: parse error: no expression found in input"),
            ("1 +", "1:4: parse error: unexpected end of input"),
            ("sum(", "1:5: parse error: unclosed left parenthesis"),
            ("foo{", "1:5: parse error: unexpected end of input inside braces"),
            ("foo{a}", "1:6: parse error: unexpected \"}\" in label matching, expected label matching operator"),
            ("foo{a=1}", "1:7: parse error: unexpected character inside braces: '1'"),
            ("foo{a=b}", "1:7: parse error: unexpected identifier \"b\" in label matching, expected string"),
            (
                "foo{a=\"b\" c}",
                "1:11: parse error: unexpected identifier \"c\" in label matching, expected \",\" or \"}\"",
            ),
            ("foo{,}", "1:5: parse error: unexpected \",\" in label matching, expected identifier or \"}\""),
            ("foo\n  bar", "2:3: parse error: unexpected identifier \"bar\""),
            ("foo offset", "1:11: parse error: unexpected end of input in offset, expected number or duration"),
            ("foo @ bar", "1:7: parse error: unexpected identifier \"bar\" in @, expected timestamp"),
            ("foo[5m", "1:7: parse error: unexpected end of input in duration expression"),
            (
                "foo[5m 5m]",
                "1:8: parse error: unexpected duration \"5m\" in subquery or range, expected \":\" or \"]\"",
            ),
            ("foo[]", "1:5: parse error: unexpected \"]\" in subquery selector, expected number or duration"),
            ("sum by foo (bar)", "1:8: parse error: unexpected identifier \"foo\" in grouping opts, expected \"(\""),
            ("sum by (1) (bar)", "1:9: parse error: unexpected number \"1\" in grouping opts, expected label"),
            ("sum foo", "1:5: parse error: unexpected identifier \"foo\""),
            ("foo == bool bar == 1 1", "1:22: parse error: unexpected number \"1\""),
            ("no_such(foo)", "1:1: parse error: unknown function with name \"no_such\""),
            ("1 == 1", "1:3: parse error: comparisons between scalars must use BOOL modifier"),
            ("foo + bool bar", "1:5: parse error: bool modifier can only be used on comparison operators"),
            ("foo and 1", "1:1: parse error: set operator \"and\" not allowed in binary scalar expression"),
            (
                "rate(foo)",
                "1:6: parse error: expected type range vector in call to function \"rate\", got instant vector",
            ),
            ("ln(0)", "1:4: parse error: expected type instant vector in call to function \"ln\", got scalar"),
            ("abs(a, b)", "1:1: parse error: expected 1 argument(s) in call to \"abs\", got 2"),
            (
                "topk(foo)",
                "1:1: parse error: wrong number of arguments for aggregate expression provided, expected 2, got 1",
            ),
            ("1 * {}", "1:5: parse error: vector selector must contain at least one non-empty matcher"),
            ("foo{__name__=\"bar\"}", "1:1: parse error: metric name must not be set twice: \"foo\" or \"bar\""),
            ("foo offset 1m[5m]", "1:14: parse error: no offset modifiers allowed before range"),
            ("sum(foo)[5m]", "1:9: parse error: ranges only allowed for vector selectors"),
            ("foo[5m][5m:]", "1:1: parse error: subquery is only allowed on instant vector, got matrix instead"),
            ("foo[0s]", "1:5: parse error: duration must be greater than 0"),
            ("\"a", "1:1: parse error: unterminated quoted string"),
            ("1)", "1:3: parse error: unexpected right parenthesis ')'"),
            ("foo $ bar", "1:5: parse error: unexpected character: '$'"),
            (
                "-\"a\"",
                "1:1: parse error: unary expression only allowed on expressions of type scalar or instant vector, got \"string\"",
            ),
        ] {
            assert_eq!(error(expression), want, "{expression}");
        }
    }

    #[test]
    fn what_the_language_has_is_understood() {
        for right in [
            "1_000 + 0x1F + 017 + 1e3 + .5 + Inf + NaN + 5m",
            "sum",
            "start + end + group",
            "sum(foo) by (a, b,)",
            "sum without () (foo)",
            "foo @ start() offset 5m",
            "foo offset -5m @ 1e3",
            "foo[5m:] offset 1h",
            "foo[300]",
            "foo[2 * (1m + 30s)]",
            "{\"a.b\", \"c d\"=\"e\", f!~`g`}",
            "a + on(b) group_left(c) d",
            "a:b:c",
            "SUM(foo) BY (bar)",
            "-foo^2",
            "foo{a=~\"b{x}\"}",
            "foo @ end()[5m]",
            "rate(foo[step() + 1] offset -min_of(range(), 1h)) + start() - end() + step() + range() + max_of(1, time())",
            "rate(foo[5m] anchored) + rate(foo[5m] smoothed offset 1m) + foo smoothed",
            "label_join(foo, \"a\", \"-\")",
            "info(foo, {a=~\".*\"})",
        ] {
            if let Err(error) = parse(right, QueryTimes { start_ms: 1000, end_ms: 61_000, step_ms: 2000 }) {
                panic!("{right}: {error}");
            }
        }
    }

    #[test]
    fn operators_bind_as_in_prometheus() {
        let value = |text: &str| {
            let engine = crate::promql::testing::Memory::default().engine();
            crate::promql::testing::ask(&engine, text, 0).join(" ")
        };
        assert_eq!(value("-2^2"), "-4");
        assert_eq!(value("2^3^2"), "512");
        assert_eq!(value("2^-1*4"), "2");
        assert_eq!(value("1 - 2 - 3"), "-4");
        assert_eq!(value("1 + 2 * 3 % 4"), "3");
        assert_eq!(value("1 > bool 2 == bool 0"), "1");
        assert_eq!(value("1_000 + 0x1F + 017 + 5m"), "1346");
    }

    #[test]
    fn hostile_nesting_is_refused_before_the_parser_sees_it() {
        assert!(error(&"(".repeat(60_000)).contains("nest too deeply"));
        assert!(error(&"(".repeat(100_000)).contains("too long"));
        assert!(error(&"sum(".repeat(1000)).contains("nest too deeply"));
        assert!(error(&format!("x{{{}}}", "a=~\"b\",".repeat(200))).contains("too many regular expressions"));
        assert!(error(&"-".repeat(1000)).contains("too many operators"));
        assert!(error(&format!("a{}", " or a".repeat(1000))).contains("too many operators"));
        assert!(error(&format!("x{}", "[1m:1m]".repeat(9000))).contains("got matrix instead"));
        assert!(error(&format!("x{}", " offset 1m".repeat(6000))).contains("multiple times"));
        assert!(parse(&format!("a{}", " or a".repeat(120)), QueryTimes::default()).is_ok());
        error(&format!("a{{b=~\"{}\"}}", "(+".repeat(60)));
    }

    #[test]
    fn durations_out_of_range_are_errors() {
        for wrong in ["x[1e300]", "x[0s]", "x offset 1e300", "x @ 1e300", "x[5m:0s]", "x[-1]", "x[1s1m]", "x[1m/0]"] {
            error(wrong);
        }
    }

    #[test]
    fn durations_are_seconds_or_literals() {
        for (text, want) in [("15", 15_000), ("0.5", 500), ("-1", -1000), ("1m30s", 90_000), ("2w", 1_209_600_000)] {
            assert_eq!(parse_duration_ms(text), Some(want), "{text}");
        }
        for wrong in ["", "abc", "1e300", "NaN", "inf", "1s1m", "1d-"] {
            assert_eq!(parse_duration_ms(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn property_test_no_text_panics(text in "\\PC{0,80}") {
            let _ = parse(&text, QueryTimes::default());
            let _ = parse_duration_ms(&text);
        }
    }
}
