//! What `cortex get` means: the row of an API, computed from PromQL answers, wherever they come from.
//!
//! The command asks a query URL, the collector's own page its engine; both get the same rows. The questions are in
//! [`apis`] and `docs/get.md`.

mod detail;
mod json;
mod rows;
mod table;

use crate::model::Labels;

pub use detail::{ApiDetail, CustomMetric, detail};
pub use json::row_json;
pub use rows::{ApiRow, Status, WINDOW, apis, quote};
pub use table::{Table, age, milliseconds, printable, table_of};

/// Anything that answers instant PromQL queries, now.
pub trait Ask: Sync {
    /// The newest value of each series that `expr` gives.
    fn ask(&self, expr: &str) -> Result<Vec<Answer>, AskError>;

    /// Whether its counters never go back, and its histograms answer to their classic names: as a collector's do.
    fn is_collector(&self) -> bool {
        true
    }
}

/// The answers to all of `exprs`, asked at once: whoever is far away is waited for once.
fn ask_all<const N: usize>(source: &dyn Ask, exprs: &[String; N]) -> Result<[Vec<Answer>; N], AskError> {
    let mut answers = std::array::from_fn(|_| Vec::new());
    std::thread::scope(|scope| {
        let asked = exprs.each_ref().map(|expr| scope.spawn(|| source.ask(expr)));
        for (answer, thread) in answers.iter_mut().zip(asked) {
            *answer = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(answers)
    })
}

/// One series of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its labels, the name among them if it has one.
    pub labels: Labels,
    /// Its value.
    pub value: AnswerValue,
}

/// The value of an [`Answer`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AnswerValue {
    /// A float.
    Float(f64),
    /// A native histogram: its count and sum.
    Histogram {
        /// How many samples it holds.
        count: f64,
        /// Their sum.
        sum: f64,
    },
}

impl AnswerValue {
    /// The float; of a histogram its count.
    pub fn float(self) -> f64 {
        match self {
            Self::Float(value) => value,
            Self::Histogram { count, .. } => count,
        }
    }
}

/// A question that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answered, or not in a form that can be read.
    #[error("{0}")]
    Unreachable(String),
    /// The answer was an error.
    #[error("the query {expr:?} failed: {message}")]
    Refused {
        /// What was asked.
        expr: String,
        /// What was answered.
        message: String,
    },
}
