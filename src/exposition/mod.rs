//! What a scrape gets: the newest committed tick as Prometheus's text format 0.0.4, or as protobuf with native histograms
//! for a scraper that asks for it.
//!
//! Exponential histograms become classic buckets on one fixed ladder of their own boundaries, the same in every series and
//! every collector, so that each count is exact and `sum by (le)` is right.

mod help;
mod protobuf;
mod text;

pub use protobuf::{PROTOBUF_CONTENT_TYPE, render_protobuf};
pub use text::{CONTENT_TYPE, render};
