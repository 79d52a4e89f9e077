//! What a scrape gets: the newest committed tick as Prometheus's text format 0.0.4, or as protobuf with native histograms
//! for a scraper that asks for it.
//!
//! Exponential histograms become classic buckets on one ladder, the same in every series. Both formats come as chunks that
//! are made when they are asked for, so that a scrape of many series takes little memory.

mod help;
mod process;
mod protobuf;
mod text;

pub use help::{help, own_kind};
pub use process::insert_process;
pub use protobuf::{PROTOBUF_CONTENT_TYPE, protobuf_chunks};
pub use text::{CONTENT_TYPE, text_chunks};

/// A chunk ends with the first series that makes it so long.
const CHUNK_BYTES: usize = 64 << 10;
