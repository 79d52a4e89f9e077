//! The commands, one file each. Only here is anything written to stdout.

pub mod collector;
pub mod cortex;
mod doctor;
mod env;
mod environments;
mod get;
mod last_hour;
mod query;
mod query_url;
mod top;

/// How a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Success,
    /// 1: it could not be done; stderr says why.
    Failure,
    /// 2: the command line is wrong; stderr says how.
    Usage,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
