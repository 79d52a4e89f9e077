//! The collector: from a datagram to a committed sample.
//!
//! [`Listener`] threads take datagrams from their sockets, add up in a [`Shard`] of their own what can be added up, and give
//! the rest to the [`Registry`], which holds every live series. Every 10 s the [`Recorder`] takes what changed, commits it to the store as one tick and only then
//! publishes it: whoever reads (`/metrics`, queries) sees what has been committed, so that no counter ever goes back.

mod intake;
mod limits;
mod listener;
mod mapping;
mod published;
mod receive;
mod recorder;
mod registry;
mod senders;
mod shard;
mod socket_account;
mod source_limit;

pub(crate) use intake::printable;
pub use intake::{Dropped, Intake, IntakeState, IntakeTotals};
pub use limits::{Conflict, Limit, Limits, Overflow};
pub use listener::{Listener, Place};
pub use mapping::{Mapping, MappingError, metric_name};
pub use published::{Health, Published};
pub use recorder::{Recorder, RecorderConfig, RemoteWriteError, RemoteWriter, WriteBatch};
pub use registry::{Refusal, Registry};
pub use senders::{SenderStatus, Senders};
pub use shard::Shard;
pub use socket_account::SocketAccount;
pub use source_limit::SourceLimit;
