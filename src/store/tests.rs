//! The store as its users see it: what is appended is what is selected, also after it was opened again.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::ExponentialHistogram;

fn labels(name: &str) -> Labels {
    Labels::from_pairs([(METRIC_NAME, name), ("model", "v1")])
}

fn started(id: u64, kind: MetricKind, start_ms: i64) -> StartedSeries {
    StartedSeries {
        id: SeriesId(id),
        labels: labels(&format!("m{id}")),
        kind,
        start_ms,
        since_ms: start_ms,
        level: None,
    }
}

fn select(store: &Store, name: &str, start_ms: i64, end_ms: i64) -> Vec<(i64, Value)> {
    let selection =
        Selection { matchers: vec![Matcher::metric(name)], start_ms, end_ms, repeats: true, samples_max: 1000 };
    let mut series = store.reader().select(&selection).unwrap();
    assert!(series.len() <= 1);
    series.pop().map_or(Vec::new(), |s| s.samples.into_iter().map(|s| (s.timestamp_ms, s.value)).collect())
}

fn floats(samples: &[(i64, Value)]) -> Vec<(i64, f64)> {
    samples.iter().map(|(t, v)| (*t, if v.is_stale() { -1.0 } else { v.as_float().unwrap() })).collect()
}

fn tick(timestamp_ms: i64, started: Vec<StartedSeries>, samples: Vec<(u64, Value)>) -> Tick {
    let samples = samples.into_iter().map(|(id, value)| (SeriesId(id), value)).collect();
    Tick { timestamp_ms, started, samples, ..Tick::default() }
}

#[test]
fn a_series_is_one_sample_per_tick_from_its_explicit_zero_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![], vec![])).unwrap();
    store.append(&tick(20, vec![started(1, MetricKind::Counter, 10)], vec![(1, Value::Float(5.0))])).unwrap();
    store.append(&tick(30, vec![], vec![])).unwrap();
    store.append(&tick(40, vec![], vec![(1, Value::Float(6.0))])).unwrap();
    store.append(&tick(50, vec![], vec![(1, Value::stale())])).unwrap();
    store.append(&tick(60, vec![], vec![])).unwrap();
    let all = [(10, 0.0), (20, 5.0), (30, 5.0), (40, 6.0), (50, -1.0)];
    assert_eq!(floats(&select(&store, "m1", 0, 100)), all);
    assert_eq!(floats(&select(&store, "m1", 30, 30)), [(30, 5.0)]);
    assert_eq!(floats(&select(&store, "m1", 51, 100)), []);
    assert_eq!(floats(&select(&store, "other", 0, 100)), []);
}

#[test]
fn without_repeats_a_value_is_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(20, vec![started(1, MetricKind::Counter, 10)], vec![(1, Value::Float(5.0))])).unwrap();
    (3..9).for_each(|t| store.append(&tick(10 * t, vec![], vec![])).unwrap());
    store.append(&tick(90, vec![], vec![(1, Value::Float(6.0))])).unwrap();
    store.append(&tick(100, vec![], vec![])).unwrap();
    let once = |start_ms, end_ms| {
        let matchers = vec![Matcher::metric("m1")];
        let selection = Selection { matchers, start_ms, end_ms, repeats: false, samples_max: 3 };
        let found = store.reader().select(&selection).unwrap().pop();
        let samples = found.map_or_else(Vec::new, |s| s.samples);
        floats(&samples.into_iter().map(|s| (s.timestamp_ms, s.value)).collect::<Vec<_>>())
    };
    assert_eq!(once(0, 200), [(10, 0.0), (20, 5.0), (90, 6.0)]);
    assert_eq!(once(25, 200), [(30, 5.0), (90, 6.0)]);
    assert_eq!(once(45, 75), [(50, 5.0)]);
    assert_eq!(once(81, 89), []);
}

#[test]
fn a_store_that_is_opened_again_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut histogram = ExponentialHistogram::default();
    histogram.record(0.25, 3.0);
    let histogram = Value::Histogram(Arc::new(histogram));
    {
        let (mut store, restored) = Store::open(dir.path()).unwrap();
        assert_eq!((restored.last_tick_ms, restored.next_id), (None, 1));
        let kinds = [(1, MetricKind::Counter), (2, MetricKind::Histogram), (3, MetricKind::Gauge)];
        let series = kinds.iter().map(|(id, kind)| started(*id, *kind, 10)).collect();
        let values = vec![(1, Value::Float(41.0)), (2, histogram.clone()), (3, Value::stale())];
        let mut tick = tick(20, series, values);
        tick.writers.push((SeriesId(3), "00000000000000ff".to_owned()));
        store.append(&tick).unwrap();
    }
    let (_store, restored) = Store::open(dir.path()).unwrap();
    assert_eq!((restored.last_tick_ms, restored.next_id), (Some(20), 4));
    let got: Vec<_> = restored.series.iter().map(|s| (s.id.0, s.kind, s.value.is_stale(), s.writer.as_str())).collect();
    assert_eq!(
        got,
        [
            (1, MetricKind::Counter, false, ""),
            (2, MetricKind::Histogram, false, ""),
            (3, MetricKind::Gauge, true, "00000000000000ff")
        ]
    );
    assert_eq!(restored.series[1].value, histogram);
}

#[test]
fn a_directory_belongs_to_one_collector_and_only_to_us() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let message = Store::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("another collector uses it"), "{message}");
    drop(store);
    Store::open(dir.path()).unwrap();

    let foreign = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(foreign.path().join("cortex.db")).unwrap();
    connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(matches!(Store::open(foreign.path()), Err(StoreError::NotOurs { .. })));

    let newer = tempfile::tempdir().unwrap();
    drop(Store::open(newer.path()).unwrap());
    let connection = rusqlite::Connection::open(newer.path().join("cortex.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(newer.path()), Err(StoreError::Newer { got: 99, want: 1, .. })));

    let file = tempfile::NamedTempFile::new().unwrap();
    let message = Store::open(&file.path().join("below")).unwrap_err().to_string();
    assert!(message.contains("cannot write"), "{message}");
}

#[test]
fn expiry_keeps_levels_and_removes_what_had_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let both = vec![started(1, MetricKind::Counter, 0), started(2, MetricKind::Gauge, 0)];
    store.append(&tick(10, both, vec![(1, Value::Float(1.0)), (2, Value::Float(7.0))])).unwrap();
    store.append(&tick(20, vec![], vec![(1, Value::Float(2.0)), (2, Value::stale())])).unwrap();
    store.append(&tick(30, vec![], vec![])).unwrap();
    store.append(&tick(40, vec![], vec![(1, Value::Float(3.0))])).unwrap();
    assert_eq!(store.expire(15).unwrap(), []);
    assert_eq!(store.expire(30).unwrap(), [SeriesId(2)]);
    assert_eq!(
        floats(&select(&store, "m1", 30, 100)),
        [(30, 2.0), (40, 3.0)],
        "the level at the cutoff is still known"
    );
    drop(store);
    let (_store, restored) = Store::open(dir.path()).unwrap();
    assert_eq!((restored.series.len(), restored.next_id), (1, 3), "an id is not given again");
}

#[test]
fn a_copy_taken_in_the_middle_opens_with_every_committed_tick() {
    // What a kill leaves: the files as they are, the log not folded in.
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for name in ["cortex.db", "cortex.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let (_store, restored) = Store::open(copy.path()).unwrap();
    assert_eq!(restored.series[0].value, Value::Float(1.0));
}

#[test]
fn damage_is_an_error_that_names_the_file_never_a_wrong_value() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("cortex.db")).unwrap();
    connection.execute("UPDATE samples SET value = x'07' WHERE timestamp = 10", []).unwrap();
    let selection =
        Selection { matchers: vec![Matcher::metric("m1")], start_ms: 0, end_ms: 99, repeats: true, samples_max: 9 };
    let message = store.reader().select(&selection).unwrap_err().to_string();
    assert!(message.contains("cortex.db: the value of series 1 at 10 cannot be read"), "{message}");
}

#[test]
fn a_log_that_was_torn_loses_its_last_tick_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    store.append(&tick(20, vec![], vec![(1, Value::Float(2.0))])).unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("cortex.db"), copy.path().join("cortex.db")).unwrap();
    let log = std::fs::read(dir.path().join("cortex.db-wal")).unwrap();
    std::fs::write(copy.path().join("cortex.db-wal"), &log[..log.len() - 100]).unwrap();
    let (_store, restored) = Store::open(copy.path()).unwrap();
    assert_eq!((restored.last_tick_ms, &restored.series[0].value), (Some(10), &Value::Float(1.0)));
}

#[test]
fn a_full_disk_is_an_error_and_the_tick_may_be_appended_when_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    store.limit_pages(1);
    let many = || (2..2000).map(|id| started(id, MetricKind::Counter, 15)).collect::<Vec<_>>();
    assert!(matches!(store.append(&tick(20, many(), vec![(1, Value::Float(2.0))])), Err(StoreError::Database { .. })));
    assert_eq!(floats(&select(&store, "m1", 5, 99)), [(10, 1.0)]);
    store.limit_pages(1_000_000);
    store.append(&tick(30, many(), vec![(1, Value::Float(2.0))])).unwrap();
    assert_eq!(floats(&select(&store, "m1", 5, 99)), [(10, 1.0), (30, 2.0)]);
    assert_eq!(floats(&select(&store, "m1999", 5, 99)), [(15, 0.0), (30, 0.0)]);
}

#[test]
fn readers_on_other_threads_see_whole_ticks_while_the_store_appends() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let pair = vec![started(1, MetricKind::Gauge, 5), started(2, MetricKind::Gauge, 5)];
    store.append(&tick(10, pair, vec![(1, Value::Float(10.0)), (2, Value::Float(10.0))])).unwrap();
    let reader = store.reader();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let reader = reader.clone();
            scope.spawn(move || {
                let matchers = vec![Matcher::equal("model", "v1")];
                let selection =
                    Selection { matchers, start_ms: 10, end_ms: i64::MAX, repeats: true, samples_max: 10_000 };
                for _ in 0..100 {
                    let found = reader.select(&selection).unwrap();
                    assert_eq!(found[0].samples, found[1].samples);
                }
            });
        }
        for at in 11..60 {
            let value = Value::Float(at as f64);
            store.append(&tick(at, vec![], vec![(1, value.clone()), (2, value)])).unwrap();
        }
    });
}

#[test]
fn a_selection_that_is_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(1, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    (2..20).for_each(|t| store.append(&tick(t, vec![], vec![])).unwrap());
    let select = |samples_max| {
        let matchers = vec![Matcher { name: "model".to_owned(), op: MatchOp::Regex(Regex::new("^(?:v.)$").unwrap()) }];
        store.reader().select(&Selection { matchers, start_ms: 0, end_ms: 99, repeats: true, samples_max })
    };
    assert_eq!(select(20).unwrap()[0].samples.len(), 20);
    assert!(matches!(select(19), Err(StoreError::TooManySamples(19))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Against the plainest model there is: a map of what each series was at each tick.
    #[test]
    fn property_test_the_store_is_a_map_of_ticks(
        ticks in prop::collection::vec((1i64..5, prop::collection::vec((1u64..4, prop::option::of(0i32..9)), 0..4), any::<bool>()), 1..12),
        (from, to) in (0i64..40, 0i64..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap().0;
        let mut held: BTreeMap<u64, f64> = BTreeMap::new();
        let mut known = std::collections::BTreeSet::new();
        let mut model: BTreeMap<u64, BTreeMap<i64, f64>> = BTreeMap::new();
        let mut now = 0;
        for (step, changes, reopen) in ticks {
            now += step;
            let changes: BTreeMap<u64, Option<i32>> = changes.into_iter().collect();
            let mut tick = tick(now, vec![], vec![]);
            for (id, value) in changes {
                if known.insert(id) {
                    tick.started.push(started(id, MetricKind::Gauge, now - 1));
                }
                tick.samples.push((SeriesId(id), value.map_or_else(Value::stale, |v| Value::Float(f64::from(v)))));
                if let Some(value) = value {
                    held.insert(id, f64::from(value));
                } else {
                    held.remove(&id);
                    model.entry(id).or_default().insert(now, -1.0);
                }
            }
            for (id, value) in &held {
                model.entry(*id).or_default().insert(now, *value);
            }
            store.append(&tick).unwrap();
            if reopen {
                drop(store);
                store = Store::open(dir.path()).unwrap().0;
            }
        }
        let (from, to) = (from.min(to), from.max(to));
        for id in 1..4 {
            let want: Vec<(i64, f64)> = model.get(&id).into_iter().flat_map(|m| m.range(from..=to)).map(|(t, v)| (*t, *v)).collect();
            prop_assert_eq!(floats(&select(&store, &format!("m{id}"), from, to)), want);
        }
    }
}
