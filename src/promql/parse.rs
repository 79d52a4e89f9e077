//! The gate of the parser: text becomes a checked [`Node`], or an error that names what is wrong or not supported.
//!
//! `promql-parser` recurses over what it has built (types, copies, drops), so text that could nest too deeply never
//! reaches it: `refuse_hostile_text` bounds brackets and operators first, and with them the depth of any tree.

use std::panic::catch_unwind;

use promql_parser::label::{MatchOp as ParsedMatchOp, Matchers};
use promql_parser::parser::{AtModifier, Expr, LabelModifier, Offset, VectorMatchCardinality, token};
use promql_parser::parser::{Call, value::ValueType};
use regex::{Regex, RegexBuilder};

use super::QueryError;
use super::functions::Function;
use super::node::{
    Aggregate, AggregateOp, At, Binary, BinaryOp, Cardinality, Grouping, Kind, Node, Selector, Subquery, TimeShift,
};
use crate::model::METRIC_NAME;
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

/// Parses and checks an expression.
pub(super) fn parse(expression: &str) -> Result<Node, QueryError> {
    if expression.len() > EXPRESSION_BYTES_MAX {
        return Err(bad(format!(
            "expression too long: got {} bytes, want at most {EXPRESSION_BYTES_MAX}",
            expression.len()
        )));
    }
    refuse_hostile_text(expression)?;
    // The parser panics on some durations (`x[1e300]`: `Duration::from_secs_f64`); to a caller that is one more error.
    let parsed = catch_unwind(|| promql_parser::parser::parse(expression))
        .unwrap_or_else(|_| Err("number out of range".to_owned()))
        .map_err(|message| bad(format!("parse error: {message}")))?;
    lower(parsed)
}

/// A duration as the API takes it, in milliseconds: seconds (`15`, `0.5`, `-1`) or a literal of the language (`1m30s`).
pub fn parse_duration_ms(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        let ms = (seconds * 1000.0).trunc();
        return (ms.abs() <= TIME_MAX_MS as f64).then_some(ms as i64);
    }
    duration_ms(promql_parser::util::parse_duration(text).ok()?).ok()
}

fn bad(message: String) -> QueryError {
    QueryError::BadData(message)
}

/// Bounds the depth of the tree that the text can become, and the regular expressions in it. Strings, comments and label
/// matchers do not nest.
fn refuse_hostile_text(expression: &str) -> Result<(), QueryError> {
    let (mut depth, mut braces, mut operators, mut regexes) = (0usize, 0usize, 0usize, 0usize);
    let mut word = String::new();
    let mut chars = expression.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c.to_ascii_lowercase());
            continue;
        }
        operators += usize::from(is_word_operator(&word));
        word.clear();
        match c {
            '"' | '\'' | '`' => {
                while let Some(inside) = chars.next().filter(|inside| *inside != c) {
                    if inside == '\\' && c != '`' {
                        chars.next();
                    }
                }
            }
            '#' => while chars.next().is_some_and(|inside| inside != '\n') {},
            '{' => braces += 1,
            '}' => braces = braces.saturating_sub(1),
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '+' | '-' | '*' | '/' | '%' | '^' | '=' | '!' | '<' | '>' if braces == 0 => operators += 1,
            '~' => regexes += 1,
            _ => {}
        }
        if depth + braces > BRACKETS_MAX {
            return Err(bad(format!("parse error: brackets nest too deeply: want at most {BRACKETS_MAX} levels")));
        }
        if regexes > REGEXES_MAX {
            return Err(bad(format!("parse error: too many regular expressions: want at most {REGEXES_MAX}")));
        }
        if operators > OPERATORS_MAX {
            return Err(bad(format!("parse error: too many operators: want at most {OPERATORS_MAX}")));
        }
    }
    Ok(())
}

fn is_word_operator(word: &str) -> bool {
    matches!(word, "and" | "or" | "unless" | "atan2")
}

fn lower(expr: Expr) -> Result<Node, QueryError> {
    match expr {
        Expr::NumberLiteral(number) => Ok(Node::Number(number.val)),
        Expr::StringLiteral(text) => Ok(Node::Text(text.val)),
        Expr::Paren(paren) => lower(*paren.expr),
        Expr::Unary(unary) => Ok(Node::Negate(Box::new(lower(*unary.expr)?))),
        Expr::VectorSelector(vs) => Ok(Node::Select(Selector {
            matchers: lower_matchers(vs.name.as_deref(), &vs.matchers)?,
            shift: lower_shift(vs.offset.as_ref(), vs.at.as_ref())?,
        })),
        Expr::MatrixSelector(ms) => Ok(Node::Window {
            selector: Selector {
                matchers: lower_matchers(ms.vs.name.as_deref(), &ms.vs.matchers)?,
                shift: lower_shift(ms.vs.offset.as_ref(), ms.vs.at.as_ref())?,
            },
            range_ms: positive_ms(ms.range)?,
        }),
        Expr::Subquery(sub) => Ok(Node::Subquery(Subquery {
            range_ms: positive_ms(sub.range)?,
            step_ms: sub.step.map(positive_ms).transpose()?,
            shift: lower_shift(sub.offset.as_ref(), sub.at.as_ref())?,
            inner: Box::new(lower(*sub.expr)?),
        })),
        Expr::Binary(binary) => lower_binary(binary),
        Expr::Aggregate(aggregate) => lower_aggregate(aggregate),
        Expr::Call(call) => lower_call(call),
        Expr::Extension(_) => Err(QueryError::unsupported("an extension of the parser")),
    }
}

fn duration_ms(duration: std::time::Duration) -> Result<i64, QueryError> {
    i64::try_from(duration.as_millis())
        .ok()
        .filter(|ms| *ms <= TIME_MAX_MS)
        .ok_or_else(|| bad("parse error: duration out of range".to_owned()))
}

fn positive_ms(duration: std::time::Duration) -> Result<i64, QueryError> {
    match duration_ms(duration)? {
        0 => Err(bad("parse error: duration must be greater than 0".to_owned())),
        ms => Ok(ms),
    }
}

fn lower_shift(offset: Option<&Offset>, at: Option<&AtModifier>) -> Result<TimeShift, QueryError> {
    let offset_ms = match offset {
        None => 0,
        Some(Offset::Pos(duration)) => duration_ms(*duration)?,
        Some(Offset::Neg(duration)) => -duration_ms(*duration)?,
    };
    let at = match at {
        None => None,
        Some(AtModifier::Start) => Some(At::Start),
        Some(AtModifier::End) => Some(At::End),
        Some(AtModifier::At(time)) => Some(At::Time(match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => duration_ms(since)?,
            Err(before) => -duration_ms(before.duration())?,
        })),
    };
    Ok(TimeShift { offset_ms, at })
}

fn lower_matchers(name: Option<&str>, parsed: &Matchers) -> Result<Vec<Matcher>, QueryError> {
    if !parsed.or_matchers.is_empty() {
        return Err(QueryError::unsupported("`or` between label matchers"));
    }
    let mut matchers: Vec<Matcher> = name.into_iter().map(Matcher::metric).collect();
    for matcher in &parsed.matchers {
        let op = match &matcher.op {
            ParsedMatchOp::Equal => MatchOp::Equal(matcher.value.clone()),
            ParsedMatchOp::NotEqual => MatchOp::NotEqual(matcher.value.clone()),
            ParsedMatchOp::Re(regex) => MatchOp::Regex(anchored(regex)?),
            ParsedMatchOp::NotRe(regex) => MatchOp::NotRegex(anchored(regex)?),
        };
        matchers.push(Matcher { name: matcher.name.clone(), op });
    }
    if name.is_some() && parsed.matchers.iter().any(|m| m.name == METRIC_NAME) {
        return Err(bad("parse error: metric name must not be set twice".to_owned()));
    }
    Ok(matchers)
}

/// The parser's regex as Prometheus reads it: anchored, and the dot matches newlines too. The parser anchors by wrapping
/// the text, so that `a)|(b` would slip out of the anchors: what stands inside must be a regex by itself.
fn anchored(regex: &Regex) -> Result<Regex, QueryError> {
    let inside = regex.as_str().strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or(regex.as_str());
    let build = |text: &str| RegexBuilder::new(text).dot_matches_new_line(true).build();
    build(inside)
        .and_then(|_| build(&format!("^(?:{inside})$")))
        .map_err(|error| bad(format!("parse error: error parsing regexp: {error}")))
}

fn lower_grouping(modifier: Option<LabelModifier>, only_by_default: bool) -> Grouping {
    match modifier {
        None => Grouping { only: only_by_default, labels: Vec::new() },
        Some(LabelModifier::Include(labels)) => Grouping { only: true, labels: labels.labels },
        Some(LabelModifier::Exclude(labels)) => Grouping { only: false, labels: labels.labels },
    }
}

fn lower_binary(binary: promql_parser::parser::BinaryExpr) -> Result<Node, QueryError> {
    let op = match binary.op.id() {
        token::T_ADD => BinaryOp::Add,
        token::T_SUB => BinaryOp::Subtract,
        token::T_MUL => BinaryOp::Multiply,
        token::T_DIV => BinaryOp::Divide,
        token::T_MOD => BinaryOp::Modulo,
        token::T_POW => BinaryOp::Power,
        token::T_ATAN2 => BinaryOp::Atan2,
        token::T_EQLC => BinaryOp::Equal,
        token::T_NEQ => BinaryOp::NotEqual,
        token::T_LSS => BinaryOp::Less,
        token::T_LTE => BinaryOp::LessOrEqual,
        token::T_GTR => BinaryOp::Greater,
        token::T_GTE => BinaryOp::GreaterOrEqual,
        token::T_LAND => BinaryOp::And,
        token::T_LOR => BinaryOp::Or,
        token::T_LUNLESS => BinaryOp::Unless,
        _ => return Err(QueryError::unsupported(&format!("operator {}", binary.op))),
    };
    let (lhs, rhs) = (lower(*binary.lhs)?, lower(*binary.rhs)?);
    for side in [&lhs, &rhs] {
        if !matches!(side.kind(), Kind::Scalar | Kind::Vector) {
            let message = "parse error: binary expression must contain only scalar and instant vector types";
            return Err(bad(message.to_owned()));
        }
    }
    let modifier = binary.modifier.unwrap_or_default();
    if modifier.fill_values.lhs.is_some() || modifier.fill_values.rhs.is_some() {
        return Err(QueryError::unsupported("fill()"));
    }
    let cardinality = match modifier.card {
        VectorMatchCardinality::OneToOne | VectorMatchCardinality::ManyToMany => Cardinality::OneToOne,
        VectorMatchCardinality::ManyToOne(labels) => Cardinality::ManyToOne(labels.labels),
        VectorMatchCardinality::OneToMany(labels) => Cardinality::OneToMany(labels.labels),
    };
    let return_bool = modifier.return_bool;
    let matching = lower_grouping(modifier.matching, false);
    Ok(Node::Binary(Box::new(Binary { op, lhs, rhs, return_bool, matching, cardinality })))
}

fn lower_aggregate(aggregate: promql_parser::parser::AggregateExpr) -> Result<Node, QueryError> {
    let inner = lower(*aggregate.expr)?;
    expect(Kind::Vector, &inner, "aggregation expression")?;
    let param = aggregate.param.map(|param| lower(*param)).transpose()?;
    let name = aggregate.op.to_string();
    let scalar = |param: Option<Node>| match param {
        Some(node) if node.kind() == Kind::Scalar => Ok(Box::new(node)),
        _ => Err(bad(format!("parse error: expected type scalar in aggregation parameter of {name}"))),
    };
    let op = match aggregate.op.id() {
        token::T_SUM => AggregateOp::Sum,
        token::T_AVG => AggregateOp::Avg,
        token::T_MIN => AggregateOp::Min,
        token::T_MAX => AggregateOp::Max,
        token::T_COUNT => AggregateOp::Count,
        token::T_GROUP => AggregateOp::Group,
        token::T_STDDEV => AggregateOp::StdDev,
        token::T_STDVAR => AggregateOp::StdVar,
        token::T_TOPK => AggregateOp::TopK(scalar(param)?),
        token::T_BOTTOMK => AggregateOp::BottomK(scalar(param)?),
        token::T_QUANTILE => AggregateOp::Quantile(scalar(param)?),
        token::T_COUNT_VALUES => match param {
            Some(Node::Text(label)) if !label.is_empty() => AggregateOp::CountValues(label),
            Some(Node::Text(label)) => return Err(bad(format!("invalid label name {label:?}"))),
            _ => return Err(bad("parse error: expected type string in aggregation parameter".to_owned())),
        },
        _ => return Err(QueryError::unsupported(&format!("{name}()"))),
    };
    Ok(Node::Aggregate(Box::new(Aggregate { op, grouping: lower_grouping(aggregate.modifier, true), inner })))
}

fn lower_call(call: Call) -> Result<Node, QueryError> {
    let name = call.func.name;
    let function = Function::named(name).ok_or_else(|| QueryError::unsupported(&format!("{name}()")))?;
    let types = call.func.arg_types;
    let mut args = Vec::with_capacity(call.args.args.len());
    for (at, arg) in call.args.args.into_iter().enumerate() {
        let node = lower(*arg)?;
        // The parser lets some literals pass, as in `ln(0)`.
        if let Some(want) = types.get(at).or(types.last()) {
            expect(kind_of(*want), &node, &format!("call to function \"{name}\""))?;
        }
        args.push(node);
    }
    Ok(Node::Call { function, args })
}

fn kind_of(parsed: ValueType) -> Kind {
    match parsed {
        ValueType::Vector => Kind::Vector,
        ValueType::Scalar => Kind::Scalar,
        ValueType::Matrix => Kind::Matrix,
        ValueType::String => Kind::Text,
    }
}

fn expect(want: Kind, node: &Node, place: &str) -> Result<(), QueryError> {
    let got = node.kind();
    if got == want { Ok(()) } else { Err(bad(format!("parse error: expected type {want} in {place}, got {got}"))) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(expression: &str) -> String {
        parse(expression).expect_err(expression).to_string()
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert_eq!(error("predict_linear(x[5m], 60)"), "predict_linear() is not supported yet");
        assert_eq!(error("limitk(2, x)"), "limitk() is not supported yet");
        assert_eq!(error("a + fill(0) b"), "fill() is not supported yet");
        assert_eq!(error("{a=\"1\" or b=\"2\"}"), "`or` between label matchers is not supported yet");
        assert!(error("no_such_function(x)").contains("no_such_function"));
    }

    #[test]
    fn types_are_checked() {
        assert!(error("ln(0)").contains("expected type instant vector in call to function \"ln\", got scalar"));
        for wrong in ["sum(1)", "last_over_time(x)", "1 == 1", "x and 1", "topk(x, x)", "-\"a\"", "(1)[5m:1m]", "{}"] {
            error(wrong);
        }
    }

    #[test]
    fn regexes_cannot_slip_out_of_their_anchors() {
        assert!(parse("x{a=~\"a)|(b\"}").is_err());
        assert!(parse("x{a=~\"a|b\"}").is_ok());
        assert!(parse("x{a=~\"b{x}\"}").is_ok(), "Go reads braces that repeat nothing as themselves");
    }

    #[test]
    fn hostile_nesting_is_refused_before_the_parser_sees_it() {
        assert!(error(&"(".repeat(60_000)).contains("nest too deeply"));
        assert!(error(&"(".repeat(100_000)).contains("too long"));
        assert!(error(&"sum(".repeat(1000)).contains("nest too deeply"));
        assert!(error(&format!("x{{{}}}", "a=~\"b\",".repeat(200))).contains("too many regular expressions"));
        assert!(error(&"-".repeat(1000)).contains("too many operators"));
        assert!(error(&format!("a{}", " or a".repeat(1000))).contains("too many operators"));
        assert!(parse(&format!("a{}", " or a".repeat(120))).is_ok());
        assert!(parse(&format!("a{{b=~\"{}\"}}", "(+".repeat(60))).is_err());
    }

    #[test]
    fn durations_out_of_range_are_errors() {
        for wrong in ["x[1e300]", "x[0s]", "x offset 1e300", "x @ 1e300", "x[5m:0s]", "x[-1]"] {
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
            let _ = parse(&text);
            let _ = parse_duration_ms(&text);
        }
    }
}
