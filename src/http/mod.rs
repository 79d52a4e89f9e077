//! The collector over HTTP. [`api`] is Prometheus's query API: what Grafana, `cortex get` and the page ask.

pub mod api;
