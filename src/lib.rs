//! cortex-metrics: metrics for people who serve models from Python.
//!
//! The way of one `metrics.increment("my_counter", 1, {"model": "v1"})`, module by module:
//!
//! | stage | where |
//! |---|---|
//! | arguments become `&str`, `f64`, tags | `python.rs` |
//! | context → accumulator (the hot path ends here) | [`client`] |
//! | every flush: messages → payloads of at most 1432 bytes, sent, held when refused | [`client`], [`dogstatsd`] |
//! | datagram → messages | [`collector`], [`dogstatsd`] |
//! | tags become labels, names become Prometheus names | [`collector`] |
//! | series → live value; every 10 s one sample a series, committed, then published | [`collector`], [`store`] |
//! | `PromQL`: select, evaluate | [`promql`] |
//! | `/metrics`, `/api/v1/query`, the page | [`exposition`], [`http`] |
//! | the table of `cortex get` | [`cli`] |
//!
//! `client` never imports `collector`, `store` or `http`; `store` knows neither `DogStatsD` nor HTTP.

#[cfg(feature = "collector")]
pub mod cli;
pub mod client;
pub mod clock;
#[cfg(feature = "collector")]
pub mod collector;
#[cfg(feature = "collector")]
pub mod config;
pub mod dogstatsd;
#[cfg(feature = "collector")]
pub mod exposition;
#[cfg(feature = "collector")]
pub mod http;
#[cfg(feature = "collector")]
pub mod memory;
pub mod model;
#[cfg(feature = "collector")]
pub mod overview;
#[cfg(feature = "collector")]
pub mod promql;
#[cfg(feature = "python")]
mod python;
#[cfg(feature = "collector")]
pub mod remote_write;
#[cfg(feature = "collector")]
pub mod store;
#[cfg(feature = "collector")]
pub mod telemetry;
