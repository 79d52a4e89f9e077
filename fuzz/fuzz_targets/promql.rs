//! Any text as an expression: parsed, and evaluated over a few series within small bounds, without a panic.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cortex_metrics::model::{ExponentialHistogram, Labels, Sample, Value};
use cortex_metrics::promql::{Engine, Limits, QueryOptions};
use cortex_metrics::store::{Select, SelectedSeries, Selection, StoreError};
use libfuzzer_sys::fuzz_target;

/// The same ten minutes of a counter, a gauge that is strange, buckets and a histogram.
struct Few;

impl Select for Few {
    fn for_each(
        &self,
        selection: &Selection,
        visit: &mut dyn FnMut(SelectedSeries) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let names = [[("__name__", "a"), ("l", "x")], [("__name__", "a"), ("l", "y")], [("__name__", "b"), ("le", "1")], [
            ("__name__", "h"),
            ("l", "x"),
        ]];
        for pairs in names {
            let labels = Labels::from_pairs(pairs);
            if !selection.matchers.iter().all(|m| m.matches(&labels)) {
                continue;
            }
            let mut h = ExponentialHistogram::default();
            let mut value = |at: i64| match (labels.name(), at % 7) {
                ("h", _) => {
                    h.record(at as f64 - 3.0, 1.0);
                    Value::Histogram(Arc::new(h.clone()))
                }
                (_, 5) => Value::Float(f64::NAN),
                (_, 6) => Value::stale(),
                _ => Value::Float(at as f64),
            };
            let samples = (0..20).map(|at| Sample { timestamp_ms: at * 30_000, value: value(at) });
            let within = |s: &Sample| (selection.start_ms..=selection.end_ms).contains(&s.timestamp_ms);
            let samples: Vec<Sample> = samples.filter(within).collect();
            if !samples.is_empty() {
                visit(SelectedSeries { labels, samples })?;
            }
        }
        Ok(())
    }
}

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let limits = Limits { samples_max: 20_000, timeout: Duration::from_secs(2), ..Limits::default() };
    Engine::new(Arc::new(Few), limits)
});

fuzz_target!(|text: &str| {
    let _ = ENGINE.instant(text, 300_000);
    let _ = ENGINE.range(text, 0, 300_000, 60_000);
    let _ = ENGINE.series(&[text.to_owned()], 0, 300_000, &QueryOptions::default());
});
