//! What can go wrong with a query, in Prometheus's own kinds.

use crate::store::StoreError;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The expression or a parameter is wrong, or asks for something that is not supported.
    #[error("{0}")]
    BadData(String),
    /// The expression is right but cannot be evaluated on what is there: duplicate series, ambiguous matches.
    #[error("{0}")]
    Execution(String),
    /// The query would hold more samples at once than it may.
    #[error("query processing would load too many samples into memory in query execution")]
    TooManySamples,
    /// The query took longer than it may.
    #[error("query timed out in expression evaluation")]
    Timeout,
    /// Nobody waits for it any more.
    #[error("query was canceled in expression evaluation")]
    Canceled,
    /// The store failed.
    #[error("expanding series: {0}")]
    Store(#[source] StoreError),
}

impl QueryError {
    /// Prometheus's word for the kind, the `errorType` of its API.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::BadData(_) => "bad_data",
            Self::Execution(_) | Self::TooManySamples => "execution",
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
            Self::Store(_) => "internal",
        }
    }
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooManySamples(_) => Self::TooManySamples,
            // As long as the store knows no other error.
            #[allow(unreachable_patterns)]
            other => Self::Store(other),
        }
    }
}
