//! A data directory in which bytes were changed: it opens, and what it reads was written.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use cortex_metrics::model::{Labels, METRIC_NAME, MetricKind, SeriesId, Value};
use cortex_metrics::store::{Matcher, Part, Select as _, Selection, StartedSeries, Store, Tick};
use libfuzzer_sys::fuzz_target;

const STEP_MS: i64 = 600_000;
const TICKS: i64 = 200;

/// The files of a small store, by name.
static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    for n in 0..TICKS {
        let mut tick = Tick { timestamp_ms: n * STEP_MS, ..Tick::default() };
        if n == 0 {
            let labels = Labels::from_pairs([(METRIC_NAME, "c")]);
            let (id, kind) = (SeriesId(1), MetricKind::Counter);
            tick.started.push(StartedSeries { id, labels, kind, start_ms: -1, earlier: None });
        }
        tick.samples.push((SeriesId(1), Value::Float(n as f64)));
        store.append(&tick).unwrap();
    }
    while !store.is_sealed() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    drop(store);
    let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    let files = files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()));
    let mut files: Vec<_> = files.filter(|(name, _)| Path::new(name).extension().is_some_and(|e| e == "db")).collect();
    files.sort();
    files
});

// Each change: which file, where (three bytes), what.
fuzz_target!(|changes: Vec<(u8, u16, u8, u8)>| {
    let mut files = FILES.clone();
    let count = files.len();
    for (file, low, high, value) in changes {
        let bytes = &mut files[usize::from(file) % count].1;
        let at = (usize::from(high) << 16 | usize::from(low)) % bytes.len();
        bytes[at] ^= value;
    }
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
    let Ok((store, _)) = Store::open(dir.path()) else { return };
    let matchers = vec![Matcher::metric("c")];
    let (start_ms, end_ms, part, samples_max) = (0, i64::MAX, Part::Whole, 100_000);
    let selection = Selection { matchers, start_ms, end_ms, repeats: true, part, samples_max };
    for sample in store.reader().select(&selection).unwrap_or_default().into_iter().flat_map(|series| series.samples) {
        assert_eq!(sample.value, Value::Float((sample.timestamp_ms / STEP_MS) as f64), "at {}", sample.timestamp_ms);
    }
});
