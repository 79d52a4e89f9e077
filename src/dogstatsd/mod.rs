//! The datagram format, both ways: `DogStatsD`, and plain `StatsD` when reading.
//!
//! # Format
//!
//! A datagram (payload) is one or more messages, separated by `\n`:
//!
//! ```text
//! name:value[:value…]|type[|@rate][|#key:value,key,…][|other sections]
//! ```
//!
//! `type` is `c` (counter), `g` (gauge), `ms` (timer, milliseconds), `h` (histogram), `d` (distribution) or `s` (set). The
//! source is Datadog's "Datagram format and shell usage" with its protocol versions 1.0 to 1.6, and `StatsD`'s
//! `docs/metric_types.md`. What we send, what we read, and what we add to it, stands in `docs/datagram.md`.

mod decode;
mod encode;
mod message;

pub use decode::{DecodeError, Messages, Tally, decode};
pub use encode::{
    HEADER_NAME, Header, LINE_OVERHEAD_MAX, Payload, encode_line, encode_value, rate_for_weight, values_per_line,
};
pub use message::{GaugeMinus, Message, MessageType, MessageValue, Plain, Values};
