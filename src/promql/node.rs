//! The expression as the evaluator sees it: checked, with everything that needs no data already decided.

use super::functions::Signature;
use crate::store::Matcher;

/// A part of the text of a query, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    /// Not included.
    pub(super) end: usize,
}

/// An expression and where it stands in the text.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) expr: Expr,
    pub(super) span: Span,
}

/// What an expression is.
#[derive(Debug, Clone)]
pub(super) enum Expr {
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
    /// `+expr` and `-expr`
    Unary {
        is_negative: bool,
        inner: Box<Node>,
    },
    Binary(Box<Binary>),
    Aggregate(Box<Aggregate>),
    Call {
        function: &'static Signature,
        args: Vec<Node>,
    },
    /// `(expr)`; an argument has none any more once the types are checked.
    Paren(Box<Node>),
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
    /// The name that stands before the braces; it is among the matchers too.
    pub(super) name: Option<String>,
    pub(super) matchers: Vec<Matcher>,
    pub(super) shift: TimeShift,
    pub(super) reach: Reach,
}

/// Which samples beside those in a window a selector takes into account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// None.
    #[default]
    Within,
    /// `anchored`: the last one before the window stands at its start.
    Anchored,
    /// `smoothed`: the ones before and after, with a line through what is between.
    Smoothed,
}

impl Reach {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Within => "no",
            Self::Anchored => "anchored",
            Self::Smoothed => "smoothed",
        }
    }
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

    /// As it is written.
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Modulo => "%",
            Self::Power => "^",
            Self::Atan2 => "atan2",
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::And => "and",
            Self::Or => "or",
            Self::Unless => "unless",
        }
    }

    /// How tightly it binds, the higher the tighter.
    pub(super) fn precedence(self) -> u8 {
        use BinaryOp::{Add, And, Atan2, Divide, Modulo, Multiply, Or, Power, Subtract, Unless};
        match self {
            Or => 1,
            And | Unless => 2,
            Add | Subtract => 4,
            Multiply | Divide | Modulo | Atan2 => 5,
            Power => 6,
            _ => 3,
        }
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
    /// `fill_left`, `fill_right`: what stands where that side has no series of a match group.
    pub(super) fill: [Option<f64>; 2],
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AggregateOp {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    Group,
    StdDev,
    StdVar,
    TopK,
    BottomK,
    Quantile,
    CountValues,
    LimitK,
    LimitRatio,
}

impl AggregateOp {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "sum" => Self::Sum,
            "avg" => Self::Avg,
            "min" => Self::Min,
            "max" => Self::Max,
            "count" => Self::Count,
            "group" => Self::Group,
            "stddev" => Self::StdDev,
            "stdvar" => Self::StdVar,
            "topk" => Self::TopK,
            "bottomk" => Self::BottomK,
            "quantile" => Self::Quantile,
            "count_values" => Self::CountValues,
            "limitk" => Self::LimitK,
            "limit_ratio" => Self::LimitRatio,
            _ => return None,
        })
    }

    /// The kind of the first argument of those that have two.
    pub(super) fn param(self) -> Option<Kind> {
        match self {
            Self::TopK | Self::BottomK | Self::Quantile | Self::LimitK | Self::LimitRatio => Some(Kind::Scalar),
            Self::CountValues => Some(Kind::Text),
            _ => None,
        }
    }
}

/// `sum by (a) (inner)`
#[derive(Debug, Clone)]
pub(super) struct Aggregate {
    pub(super) op: AggregateOp,
    pub(super) grouping: Grouping,
    pub(super) param: Option<Node>,
    pub(super) inner: Node,
}

impl Node {
    pub(super) fn kind(&self) -> Kind {
        match &self.expr {
            Expr::Number(_) => Kind::Scalar,
            Expr::Text(_) => Kind::Text,
            Expr::Window { .. } | Expr::Subquery(_) => Kind::Matrix,
            Expr::Unary { inner, .. } | Expr::Paren(inner) => inner.kind(),
            Expr::Binary(b) if b.lhs.kind() == Kind::Scalar && b.rhs.kind() == Kind::Scalar => Kind::Scalar,
            Expr::Call { function, .. } => function.returns,
            Expr::Select(_) | Expr::Aggregate(_) | Expr::Binary(_) => Kind::Vector,
        }
    }

    /// The same without brackets around it and around arguments: what looks at an argument sees what it is.
    pub(super) fn without_brackets(self) -> Self {
        match self.expr {
            Expr::Paren(inner) => inner.without_brackets(),
            _ => self.with_bare_arguments(),
        }
    }

    fn with_bare_arguments(self) -> Self {
        let Self { expr, span } = self;
        let boxed = |inner: Box<Self>| Box::new(inner.with_bare_arguments());
        let expr = match expr {
            Expr::Paren(inner) => Expr::Paren(boxed(inner)),
            Expr::Unary { is_negative, inner } => Expr::Unary { is_negative, inner: boxed(inner) },
            Expr::Subquery(sub) => Expr::Subquery(Subquery { inner: boxed(sub.inner), ..sub }),
            Expr::Binary(mut b) => {
                b.lhs = b.lhs.with_bare_arguments();
                b.rhs = b.rhs.with_bare_arguments();
                Expr::Binary(b)
            }
            Expr::Aggregate(mut a) => {
                a.inner = a.inner.with_bare_arguments();
                a.param = a.param.map(Self::without_brackets);
                Expr::Aggregate(a)
            }
            Expr::Call { function, args } => {
                Expr::Call { function, args: args.into_iter().map(Self::without_brackets).collect() }
            }
            other => other,
        };
        Self { expr, span }
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
