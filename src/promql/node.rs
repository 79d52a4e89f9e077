//! The expression as the evaluator sees it: checked, with everything that needs no data already decided.

use super::functions::Function;
use crate::store::Matcher;

/// An expression.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Number(f64),
    Text(String),
    /// `x{...}`
    Select(Selector),
    /// `x{...}[5m]`
    Window {
        selector: Selector,
        range_ms: i64,
    },
    /// `expr[1h:5m]`
    Subquery(Subquery),
    Negate(Box<Node>),
    Binary(Box<Binary>),
    Aggregate(Box<Aggregate>),
    Call {
        function: Function,
        args: Vec<Node>,
    },
}

/// What kind of value an expression has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Scalar,
    Vector,
    Matrix,
    Text,
}

/// When a selector or subquery looks, relative to the step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TimeShift {
    /// Milliseconds into the past; negative: into the future.
    pub(super) offset_ms: i64,
    /// `@`: the time that replaces the step's own.
    pub(super) at: Option<At>,
}

/// The time of an `@` modifier.
#[derive(Debug, Clone, Copy)]
pub(super) enum At {
    Start,
    End,
    Time(i64),
}

/// Which series, and when.
#[derive(Debug, Clone)]
pub(super) struct Selector {
    pub(super) matchers: Vec<Matcher>,
    pub(super) shift: TimeShift,
}

/// An expression evaluated on a grid of its own.
#[derive(Debug, Clone)]
pub(super) struct Subquery {
    pub(super) inner: Box<Node>,
    pub(super) range_ms: i64,
    /// `None`: the default of the engine.
    pub(super) step_ms: Option<i64>,
    pub(super) shift: TimeShift,
}

/// Operators on two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BinaryOp {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Power,
    Atan2,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    Unless,
}

impl BinaryOp {
    pub(super) fn is_comparison(self) -> bool {
        use BinaryOp::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        matches!(self, Equal | NotEqual | Less | LessOrEqual | Greater | GreaterOrEqual)
    }

    pub(super) fn is_set(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Unless)
    }
}

/// `lhs op rhs`
#[derive(Debug, Clone)]
pub(super) struct Binary {
    pub(super) op: BinaryOp,
    pub(super) lhs: Node,
    pub(super) rhs: Node,
    /// `bool`: 0 and 1 instead of filtering.
    pub(super) return_bool: bool,
    pub(super) matching: Grouping,
    pub(super) cardinality: Cardinality,
}

/// Which side of a binary operation may have several series for one on the other.
#[derive(Debug, Clone)]
pub(super) enum Cardinality {
    OneToOne,
    /// `group_left(...)`, with the labels taken from the right.
    ManyToOne(Vec<String>),
    /// `group_right(...)`, with the labels taken from the left.
    OneToMany(Vec<String>),
}

/// `by`, `without`, `on`, `ignoring`.
#[derive(Debug, Clone)]
pub(super) struct Grouping {
    /// True for `by` and `on`: only these labels; false: all but these and the name.
    pub(super) only: bool,
    pub(super) labels: Vec<String>,
}

/// Aggregations.
#[derive(Debug, Clone)]
pub(super) enum AggregateOp {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    Group,
    StdDev,
    StdVar,
    TopK(Box<Node>),
    BottomK(Box<Node>),
    Quantile(Box<Node>),
    CountValues(String),
}

/// `sum by (a) (inner)`
#[derive(Debug, Clone)]
pub(super) struct Aggregate {
    pub(super) op: AggregateOp,
    pub(super) grouping: Grouping,
    pub(super) inner: Node,
}

impl Node {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Number(_) | Self::Call { function: Function::Time | Function::Scalar, .. } => Kind::Scalar,
            Self::Text(_) => Kind::Text,
            Self::Window { .. } | Self::Subquery(_) => Kind::Matrix,
            Self::Negate(inner) => inner.kind(),
            Self::Binary(b) if b.lhs.kind() == Kind::Scalar && b.rhs.kind() == Kind::Scalar => Kind::Scalar,
            Self::Select(_) | Self::Aggregate(_) | Self::Binary(_) | Self::Call { .. } => Kind::Vector,
        }
    }
}

impl std::fmt::Display for Kind {
    /// As Prometheus words it in its errors.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Vector => "instant vector",
            Self::Matrix => "range vector",
            Self::Text => "string",
        })
    }
}
