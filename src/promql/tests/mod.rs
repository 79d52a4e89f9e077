//! Whole queries against series in memory; expected values are Prometheus's, from its documentation and its own tests.

mod bounds;
mod histograms;
mod vectors;
mod windows;

use super::Engine;
use super::testing::{Memory, ask, lines};

/// Two APIs with two codes each: floats at 0, 10 … 60 s.
fn requests() -> Engine {
    let count = |factor: f64| (0..=6).map(|i| f64::from(i) * factor).collect::<Vec<_>>();
    Memory::default()
        .floats(&[("__name__", "req"), ("api", "a"), ("code", "200")], &count(1.0))
        .floats(&[("__name__", "req"), ("api", "a"), ("code", "500")], &count(2.0))
        .floats(&[("__name__", "req"), ("api", "b"), ("code", "200")], &count(3.0))
        .floats(&[("__name__", "req"), ("api", "b"), ("code", "500")], &count(4.0))
        .floats(&[("__name__", "limit"), ("api", "a")], &[100.0; 7])
        .floats(&[("__name__", "limit"), ("api", "b")], &[200.0; 7])
        .engine()
}

fn error(engine: &Engine, expression: &str) -> String {
    match engine.instant(expression, 60_000) {
        Ok(value) => panic!("{expression}: {:?}", lines(&value)),
        Err(error) => error.to_string(),
    }
}

/// One line of an instant query of numbers only.
fn number(expression: &str) -> String {
    ask(&Memory::default().engine(), expression, 0).join("; ")
}

fn error_at(engine: &Engine, expression: &str) -> String {
    engine.instant(expression, 0).expect_err(expression).to_string()
}
