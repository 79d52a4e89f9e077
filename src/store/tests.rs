//! The store as its users see it: what is appended is what is selected, also after it was opened again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::ExponentialHistogram;

pub(super) fn labels(name: &str) -> Labels {
    Labels::from_pairs([(METRIC_NAME, name), ("model", "v1")])
}

pub(super) fn started(id: u32, kind: MetricKind, start_ms: i64) -> StartedSeries {
    StartedSeries { id: SeriesId(id), labels: labels(&format!("m{id}")), kind, start_ms, earlier: None }
}

pub(super) fn select(store: &Store, name: &str, start_ms: i64, end_ms: i64) -> Vec<(i64, Value)> {
    let selection = Selection {
        matchers: vec![Matcher::metric(name)],
        start_ms,
        end_ms,
        repeats: true,
        part: Part::Whole,
        samples_max: 1000,
    };
    let mut series = store.reader().select(&selection).unwrap();
    assert!(series.len() <= 1);
    series.pop().map_or(Vec::new(), |s| s.samples.into_iter().map(|s| (s.timestamp_ms, s.value)).collect())
}

pub(super) fn floats(samples: &[(i64, Value)]) -> Vec<(i64, f64)> {
    samples.iter().map(|(t, v)| (*t, if v.is_stale() { -1.0 } else { v.as_float().unwrap() })).collect()
}

pub(super) fn tick(timestamp_ms: i64, started: Vec<StartedSeries>, samples: Vec<(u32, Value)>) -> Tick {
    let samples = samples.into_iter().map(|(id, value)| (SeriesId(id), value)).collect();
    Tick { timestamp_ms, started, samples, ..Tick::default() }
}

pub(super) fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in names(dir) {
        std::fs::copy(dir.join(&name), copy.path().join(&name)).unwrap();
    }
    copy
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
        let selection = Selection { matchers, start_ms, end_ms, repeats: false, part: Part::Whole, samples_max: 3 };
        let found = store.reader().select(&selection).unwrap().pop();
        let samples = found.map_or_else(Vec::new, |s| s.samples);
        floats(&samples.into_iter().map(|s| (s.timestamp_ms, s.value)).collect::<Vec<_>>())
    };
    assert_eq!(once(0, 200), [(10, 0.0), (20, 5.0), (90, 6.0)]);
    assert_eq!(once(25, 200), [(30, 5.0), (90, 6.0)]);
    assert_eq!(once(45, 75), [(50, 5.0)]);
    assert_eq!(once(81, 89), []);
}

/// Four days of a counter, of a gauge that comes and goes, of one that is quiet for days, and of a histogram; the clock is set back
/// on the third if `is_set_back`.
fn four_days(store: &mut Store, is_set_back: bool) {
    const TICK_MS: i64 = 600_000;
    let kinds = [MetricKind::Counter, MetricKind::Gauge, MetricKind::Gauge, MetricKind::Histogram];
    let mut histogram = ExponentialHistogram::default();
    for at in 1..4 * DAY_MS / TICK_MS {
        let is_back = is_set_back && at > 300;
        let mut tick = tick(if is_back { (at - 7) * TICK_MS + 1 } else { at * TICK_MS }, vec![], vec![]);
        if at == 5 {
            tick.started = (1..).zip(kinds).map(|(id, kind)| started(id, kind, at * TICK_MS - 1)).collect();
        }
        let wave = ((at * 7919) % 101) as f64;
        if at >= 5 && at % 3 != 0 {
            histogram.record(1.0 + wave, 1.0);
            tick.samples.push((SeriesId(1), Value::Float((at * 2) as f64)));
            let is_away = (at / 50) % 3 == 2;
            tick.samples.push((SeriesId(2), if is_away { Value::stale() } else { Value::Float(wave - 40.0) }));
            tick.samples.push((SeriesId(4), Value::Histogram(Arc::new(histogram.clone()))));
        }
        if at == 6 || at == 500 {
            tick.samples.push((SeriesId(3), Value::Float(wave)));
        }
        store.append(&tick).unwrap();
    }
}

#[test]
fn summaries_of_whole_days_tell_first_least_greatest_and_last() {
    for is_set_back in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path()).unwrap();
        four_days(&mut store, is_set_back);
        store.seal_now();
        let mut spared = 0;
        for (name, part) in
            [("m1", Part::Whole), ("m2", Part::Whole), ("m3", Part::Whole), ("m4", Part::Count), ("m4", Part::Sum)]
        {
            for (start, end) in [(0, 32), (0, 24), (1, 25), (8, 16), (9, 32), (8, 23), (20, 21)] {
                let told = |repeats| {
                    let (start_ms, end_ms) = (start * DAY_MS / 8, end * DAY_MS / 8 - 1);
                    let matchers = vec![Matcher::metric(name)];
                    let selection = Selection { matchers, start_ms, end_ms, repeats, part, samples_max: 10_000 };
                    let found = store.reader().select(&selection).unwrap().pop();
                    let samples = found.map_or_else(Vec::new, |series| series.samples);
                    let numbers: Vec<f64> =
                        samples.iter().filter_map(|s| s.value.as_float()).filter(|v| !v.is_nan()).collect();
                    let least = numbers.iter().copied().reduce(f64::min);
                    (samples.len(), least, numbers.iter().copied().reduce(f64::max), numbers.last().copied())
                };
                let (whole, brief) = (told(true), told(false));
                assert_eq!(
                    (brief.1, brief.2, brief.3),
                    (whole.1, whole.2, whole.3),
                    "{name} {part:?} {start} {end} {is_set_back}"
                );
                spared += whole.0 - brief.0;
            }
        }
        assert!(spared > 5_000, "summaries spare samples: {spared}");
    }
}

fn listed(store: &Store, start_ms: i64, end_ms: i64) -> Vec<String> {
    let selection = Selection { matchers: vec![], start_ms, end_ms, repeats: false, part: Part::Whole, samples_max: 0 };
    let labels = store.reader().labels(&selection).unwrap();
    labels.iter().map(|labels| labels.name().to_owned()).collect()
}

#[test]
fn labels_are_those_of_the_series_that_were_there() {
    for is_set_back in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path()).unwrap();
        four_days(&mut store, is_set_back);
        for is_sealed in [false, true] {
            if is_sealed {
                store.seal_now();
            }
            for start in 0..96 {
                for hours in [0, 1, 2, 3, 24, 96] {
                    let (start_ms, end_ms) = (start * 3_600_000, (start + hours) * 3_600_000);
                    let listed = listed(&store, start_ms, end_ms);
                    for name in ["m1", "m2", "m3", "m4"] {
                        let is_there = !select(&store, name, start_ms, end_ms).is_empty();
                        let is_listed = listed.iter().any(|found| found == name);
                        assert!(is_listed || !is_there, "{name} {start} {hours} {is_sealed} {is_set_back}");
                    }
                }
            }
        }
    }
}

#[test]
fn series_that_ended_before_or_began_later_are_not_listed() {
    const HOUR_MS: i64 = 3_600_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    for at in 0..72 {
        let mut tick = tick(at * HOUR_MS, vec![], vec![]);
        // m1 is always there, m2 from 5 to 9, m3 from 31 on and quiet, m4 from 29 to 33.
        for (id, begins, ends) in [(1, 0, 99), (2, 5, 9), (3, 31, 99), (4, 29, 33)] {
            if at == begins {
                tick.started.push(started(id, MetricKind::Gauge, at * HOUR_MS));
                tick.samples.push((SeriesId(id), Value::Float(1.0)));
            }
            if at == ends {
                tick.samples.push((SeriesId(id), Value::stale()));
            }
        }
        store.append(&tick).unwrap();
    }
    for is_sealed in [false, true] {
        if is_sealed {
            store.seal_now();
        }
        let at = |from: i64, to: i64| listed(&store, from * HOUR_MS, to * HOUR_MS).join(" ");
        assert_eq!(at(0, 3), "m1");
        assert_eq!(at(0, 71), "m1 m2 m3 m4");
        assert_eq!(at(6, 7), "m1 m2");
        assert_eq!(at(7, 7), "m1 m2");
        assert_eq!(at(12, 13), "m1");
        assert_eq!(at(25, 27), "m1");
        assert_eq!(at(36, 37), "m1 m3");
        assert_eq!(at(49, 99), "m1 m3");
        assert_eq!(at(73, 99), "");
        assert_eq!(at(-9, -1), "");
    }
}

#[test]
fn a_series_that_comes_back_long_after_its_end_is_there_while_it_is_quiet() {
    const HOUR_MS: i64 = 3_600_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    for at in 0..20 {
        let began = if at == 1 { vec![started(1, MetricKind::Gauge, HOUR_MS)] } else { vec![] };
        let samples = match at {
            1 | 11 => vec![(1, Value::Float(1.0))],
            3 => vec![(1, Value::stale())],
            _ => vec![],
        };
        store.append(&tick(at * HOUR_MS, began, samples)).unwrap();
        // So that the writer has forgotten it when it comes back.
        store.seal_now();
    }
    assert_eq!(listed(&store, HOUR_MS, 2 * HOUR_MS), ["m1"]);
    assert_eq!(listed(&store, 15 * HOUR_MS, 16 * HOUR_MS), ["m1"]);
    assert_eq!(floats(&select(&store, "m1", 15 * HOUR_MS, 15 * HOUR_MS)), [(15 * HOUR_MS, 1.0)]);
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

    // Also one that is vacuumed by itself, as none of ours is: it is somebody's, not damage to set aside.
    for vacuum in ["NONE", "FULL"] {
        let foreign = tempfile::tempdir().unwrap();
        let connection = rusqlite::Connection::open(foreign.path().join("head.db")).unwrap();
        connection.pragma_update(None, "auto_vacuum", vacuum).unwrap();
        connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(Store::open(foreign.path()), Err(StoreError::NotOurs { .. })));
        assert!(foreign.path().join("head.db").exists());
    }

    let newer = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(newer.path()).unwrap();
    store.append(&tick(10, vec![], vec![])).unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(newer.path().join("head.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    connection.execute("UPDATE state SET body = x'6300'", []).unwrap();
    assert!(matches!(Store::open(newer.path()), Err(StoreError::Newer { got: 99, want: 2, .. })));

    let older = tempfile::tempdir().unwrap();
    std::fs::write(older.path().join("cortex.db"), "").unwrap();
    let message = Store::open(older.path()).unwrap_err().to_string();
    assert!(message.contains("format version 1, this collector reads 2"), "{message}");

    let file = tempfile::NamedTempFile::new().unwrap();
    let message = Store::open(&file.path().join("below")).unwrap_err().to_string();
    assert!(message.contains("cannot write"), "{message}");
}

pub(super) const DAY_MS: i64 = 86_400_000;

/// Ticks every ten minutes from `from` to before `to`, in which series 1 counts the tens of minutes.
pub(super) fn run(store: &mut Store, from: i64, to: i64) {
    for at in (from..to).step_by(600_000) {
        store.append(&tick(at, vec![], vec![(1, Value::Float((at / 600_000) as f64))])).unwrap();
    }
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.filter(|name| name.contains(".db") && !name.ends_with("-journal")).collect();
    names.sort();
    names
}

#[test]
fn days_that_are_older_than_the_retention_go_and_with_them_what_had_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let kinds = [MetricKind::Counter, MetricKind::Gauge, MetricKind::Counter];
    let all = kinds.iter().zip(1..).map(|(kind, id)| started(id, *kind, 0)).collect();
    store.append(&tick(10, all, vec![(1, Value::Float(1.0)), (2, Value::Float(7.0)), (3, Value::Float(5.0))])).unwrap();
    store.append(&tick(20, vec![], vec![(2, Value::stale())])).unwrap();
    run(&mut store, 600_000, 4 * DAY_MS);
    store.seal_now();
    assert_eq!(names(dir.path()).len(), 1 + 4);
    // What is recorded after the second day plus one is not yet a day's worth but for a tick.
    assert_eq!(store.expire(2 * DAY_MS, None).unwrap(), [SeriesId(2)]);
    assert_eq!(names(dir.path()), ["1970-01-02.db", "1970-01-03.db", "1970-01-04.db", "head.db"]);
    assert_eq!(floats(&select(&store, "m1", 0, DAY_MS + 1)), [(DAY_MS, 144.0)]);
    assert_eq!(
        floats(&select(&store, "m3", 0, DAY_MS + 600_000)),
        [(DAY_MS, 5.0), (DAY_MS + 600_000, 5.0)],
        "its level is still known"
    );
    assert_eq!(store.expire(100 * 365 * DAY_MS, Some(1)).unwrap(), []);
    assert_eq!(names(dir.path()), ["1970-01-04.db", "head.db"], "the newest day stays, however large");
    drop(store);
    let (_store, restored) = Store::open(dir.path()).unwrap();
    assert_eq!((restored.series.len(), restored.next_id), (2, 4), "an id is not given again");
    assert_eq!(restored.series[1].value, Value::Float(5.0));
}

#[test]
fn rows_of_series_that_never_began_go_as_those_that_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let many = (1..2000).map(|id| started(id, MetricKind::Counter, 15)).collect::<Vec<_>>();
    store.limit_pages(10);
    store.append(&tick(20, many, vec![])).unwrap_err();
    drop(store);
    let (mut store, restored) = Store::open(dir.path()).unwrap();
    let rows = restored.series.len();
    assert!((100..1999).contains(&rows), "{rows} rows came before the tick that was refused");
    let id = restored.next_id;
    store.append(&tick(30, vec![started(id, MetricKind::Counter, 25)], vec![(id, Value::Float(1.0))])).unwrap();
    (600_000..4 * DAY_MS).step_by(600_000).for_each(|at| store.append(&tick(at, vec![], vec![])).unwrap());
    store.seal_now();
    assert_eq!(store.expire(2 * DAY_MS, None).unwrap().len(), rows);
    drop(store);
    let (_store, restored) = Store::open(dir.path()).unwrap();
    assert_eq!(restored.series.iter().map(|series| series.id.0).collect::<Vec<_>>(), [id]);
}

#[test]
fn a_clock_that_jumps_ahead_does_not_eat_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    run(&mut store, 600_000, DAY_MS);
    let ahead = 365 * DAY_MS;
    run(&mut store, ahead, ahead + DAY_MS / 2);
    store.seal_now();
    assert_eq!(store.expire(14 * DAY_MS, None).unwrap(), []);
    assert_eq!(names(dir.path()), ["1970-01-01.db", "1971-01-01.db", "head.db"]);
    // Once a day has passed there, the clock is believed.
    run(&mut store, ahead + DAY_MS / 2, ahead + DAY_MS);
    store.seal_now();
    store.expire(14 * DAY_MS, None).unwrap();
    assert_eq!(names(dir.path()), ["1971-01-01.db", "head.db"]);
}

#[test]
fn what_is_sealed_is_what_was_open() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let mut histogram = ExponentialHistogram::default();
    let kinds = [MetricKind::Counter, MetricKind::Gauge, MetricKind::Histogram];
    let all = kinds.iter().zip(1..).map(|(kind, id)| started(id, *kind, 5)).collect();
    store
        .append(&tick(10, all, vec![(2, Value::Float(0.25)), (3, Value::Histogram(Arc::new(histogram.clone())))]))
        .unwrap();
    for at in 2..60i64 {
        let mut samples = vec![(1, Value::Float((at / 3) as f64))];
        if at % 7 == 0 {
            samples.push((2, if at % 2 == 0 { Value::stale() } else { Value::Float(at as f64 / 3.0) }));
        }
        if at % 5 == 0 {
            histogram.record(at as f64, 2.0);
            samples.push((3, Value::Histogram(Arc::new(histogram.clone()))));
        }
        store.append(&tick(at * 10, vec![], samples)).unwrap();
    }
    let read = |store: &Store| {
        let all = ["m1", "m2", "m3"].map(|name| select(store, name, 0, 1000));
        let windows = [(0, 4), (7, 7), (95, 300), (300, 595)];
        (all, windows.map(|(from, to)| ["m1", "m2", "m3"].map(|name| select(store, name, from, to))))
    };
    let open = format!("{:?}", read(&store));
    store.seal_now();
    assert_eq!(format!("{:?}", read(&store)), open);
    store.append(&tick(600, vec![], vec![])).unwrap();
    assert_eq!(floats(&select(&store, "m1", 600, 600)), [(600, 19.0)], "what was held is held");
    drop(store);
    let (store, restored) = Store::open(dir.path()).unwrap();
    assert_eq!(restored.series[2].value, Value::Histogram(Arc::new(histogram)));
    assert_eq!(floats(&select(&store, "m1", 590, 600)), [(590, 19.0), (600, 19.0)]);
}

#[test]
fn a_copy_taken_in_the_middle_opens_with_every_committed_tick() {
    // What a kill leaves: the files as they are.
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    let copy = tempfile::tempdir().unwrap();
    backup(dir.path(), copy.path(), |_, _| ()).unwrap();
    let (_store, restored) = Store::open(copy.path()).unwrap();
    assert_eq!(restored.series[0].value, Value::Float(1.0));
    let message = backup(dir.path(), copy.path(), |_, _| ()).unwrap_err().to_string();
    assert!(message.contains("not empty"), "{message}");
}

/// Two days of one counter, sealed, and what is read of them.
pub(super) fn two_days(dir: &Path) -> Vec<(i64, f64)> {
    let (mut store, _) = Store::open(dir).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(0.0))])).unwrap();
    run(&mut store, 600_000, DAY_MS + DAY_MS / 2);
    store.seal_now();
    // The head learns of it with the next ticks.
    run(&mut store, DAY_MS + DAY_MS / 2, DAY_MS + DAY_MS / 2 + 3_600_000);
    floats(&select(&store, "m1", 0, 3 * DAY_MS))
}

#[test]
fn damage_is_set_aside_and_costs_no_more_than_its_day() {
    let dir = tempfile::tempdir().unwrap();
    let whole = two_days(dir.path());
    let path = dir.path().join("1970-01-01.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    let key = 3i64 << 32 | 1;
    assert_eq!(connection.execute("UPDATE chunks SET body = zeroblob(9) WHERE key = ?1", [key]).unwrap(), 1);
    drop(connection);
    let (store, _) = Store::open(dir.path()).unwrap();
    let read = floats(&select(&store, "m1", 0, 3 * DAY_MS));
    // The third window is lost, and nothing else; nothing is made up for it.
    let slot = 4 * 3_600_000..6 * 3_600_000;
    let want: Vec<_> = whole.iter().copied().filter(|(at, _)| !slot.contains(at)).collect();
    assert_eq!(read, want);
    assert_eq!(store.damaged_files(), 1);
    assert!(dir.path().join("1970-01-01.db.damaged-1").exists());
    // The next tick tells what every series is, also the quiet ones.
    let mut store = store;
    store.append(&tick(2 * DAY_MS - 10, vec![], vec![])).unwrap();
    assert_eq!(floats(&select(&store, "m1", 2 * DAY_MS - 10, 2 * DAY_MS)), [(2 * DAY_MS - 10, 221.0)]);
    drop(store);
    std::fs::write(&path, b"nothing of a database").unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let read = floats(&select(&store, "m1", 0, 2 * DAY_MS - 11));
    assert_eq!(read, whole.iter().copied().filter(|(at, _)| *at >= DAY_MS).collect::<Vec<_>>());
    assert_eq!(names(dir.path()).len(), 5);
}

#[test]
fn a_damaged_head_costs_what_was_not_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let whole = two_days(dir.path());
    let path = dir.path().join("head.db");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    let (store, restored) = Store::open(dir.path()).unwrap();
    let read = floats(&select(&store, "m1", 0, 3 * DAY_MS));
    let sealed = DAY_MS + DAY_MS / 2;
    assert_eq!(read, whole.iter().copied().filter(|(at, _)| *at < sealed).collect::<Vec<_>>());
    assert_eq!((restored.next_id, &restored.series[0].value), (2, &Value::Float(215.0)));
    assert!(dir.path().join("head.db.damaged-1").exists());
    drop(store);
    let (mut store, _) = Store::open(dir.path()).unwrap();
    run(&mut store, sealed + 3_600_000, sealed + 7_200_000);
    assert_eq!(select(&store, "m1", 0, 3 * DAY_MS).len(), read.len() + 6);
}

/// What three series of all kinds are over two days, by time; a little of it only in the log.
fn two_days_of_all_kinds(dir: &Path) -> BTreeMap<(&'static str, i64), Vec<u8>> {
    let (mut store, _) = Store::open(dir).unwrap();
    let kinds = [MetricKind::Counter, MetricKind::Gauge, MetricKind::Histogram];
    let all = kinds.iter().zip(1..).map(|(kind, id)| started(id, *kind, 0)).collect();
    store.append(&tick(10, all, vec![(2, Value::Float(0.5))])).unwrap();
    let mut histogram = ExponentialHistogram::default();
    let mut step = |store: &mut Store, from: i64, to: i64| {
        for at in (from..to).step_by(600_000) {
            let n = at / 600_000;
            let mut samples = vec![(1, Value::Float((n / 3) as f64))];
            if n % 5 == 0 {
                samples.push((2, if n % 35 == 0 { Value::stale() } else { Value::Float(n as f64 * 0.37) }));
            }
            if n % 4 == 0 {
                (0..n % 9).for_each(|i| histogram.record(0.01 * (n + i) as f64, 1.0));
                samples.push((3, Value::Histogram(Arc::new(histogram.clone()))));
            }
            store.append(&tick(at, vec![], samples)).unwrap();
        }
    };
    step(&mut store, 600_000, DAY_MS + DAY_MS / 2);
    store.seal_now();
    step(&mut store, DAY_MS + DAY_MS / 2, DAY_MS + DAY_MS / 2 + 3_600_000);
    all_samples(&store)
}

fn all_samples(store: &Store) -> BTreeMap<(&'static str, i64), Vec<u8>> {
    let mut all = BTreeMap::new();
    for name in ["m1", "m2", "m3"] {
        for (at, value) in select(store, name, 0, 3 * DAY_MS) {
            let bytes = match &value {
                Value::Histogram(h) => format!("{} {} {:?}", h.count(), h.sum(), h.buckets()).into_bytes(),
                Value::Float(float) => float.to_bits().to_le_bytes().to_vec(),
            };
            all.insert((name, at), bytes);
        }
    }
    all
}

/// Ticks after a start, with so many new series that the file gets new pages: what was not noticed when all was read must not refuse
/// what comes.
fn append_more(store: &mut Store, what: &str) {
    for (at, ids) in [(2 * DAY_MS, 0..0), (2 * DAY_MS + 10_000, 100..400)] {
        let started = ids.map(|id| started(id, MetricKind::Counter, at - 1)).collect();
        store.append(&tick(at, started, vec![])).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// Whatever is done to the bytes of any file: the store opens, goes on, says that there was damage or reads what it always read, and never
/// reads a value that was not there. `TORTURE_FLIPS=100000` makes it long.
#[test]
fn any_flipped_byte_is_noticed_or_does_not_matter() {
    let made = tempfile::tempdir().unwrap();
    let whole = two_days_of_all_kinds(made.path());
    let mut state = std::env::var("TORTURE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x9e37_79b9u64);
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let rounds = std::env::var("TORTURE_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let files = names(made.path());
        for name in &files {
            std::fs::copy(made.path().join(name), dir.path().join(name)).unwrap();
        }
        let name = &files[random(files.len())];
        let mut bytes = std::fs::read(dir.path().join(name)).unwrap();
        let at = random(bytes.len());
        let how = random(10);
        match how {
            0 => bytes.truncate(at),
            1 => bytes[at..].iter_mut().take(4096).for_each(|byte| *byte = 0),
            _ => bytes[at] ^= 1 << random(8),
        }
        std::fs::write(dir.path().join(name), &bytes).unwrap();
        let what = format!("round {round}: {name} at {at}, damage {how}");
        let (mut store, _) = Store::open(dir.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let read = all_samples(&store);
        for (at, value) in &read {
            assert_eq!(whole.get(at), Some(value), "{what}: {at:?}");
        }
        if read.len() < whole.len() {
            assert!(store.damaged_files() > 0, "{what}: {} of {} samples, and no word of it", read.len(), whole.len());
            let lost = whole.keys().filter(|at| !read.contains_key(at));
            let days: std::collections::BTreeSet<i64> = lost.map(|(_, time)| time / DAY_MS).collect();
            assert!(days.len() <= 1, "{what}: lost from {days:?}");
        }
        append_more(&mut store, &what);
        if round % 10_000 == 9_999 {
            println!("{} of {rounds} damaged files", round + 1);
        }
    }
}

/// One bit of the hundred bytes in which SQLite says what a file is, and the collector refused to start: "permission denied", since SQLite
/// takes a format of the future for one to be read alone.
#[test]
fn any_flipped_bit_of_a_header_is_damage_or_does_not_matter() {
    let made = tempfile::tempdir().unwrap();
    let whole = two_days_of_all_kinds(made.path());
    // The second day's is written again.
    for name in ["head.db", "1970-01-01.db", "1970-01-02.db"] {
        let original = std::fs::read(made.path().join(name)).unwrap();
        // All of them in `make torture`; else those of the versions, and some.
        let is_long = std::env::var_os("TORTURE_FLIPS").is_some();
        for bit in (0..800).filter(|bit| is_long || bit % 37 == 0 || (18 * 8..21 * 8).contains(bit)) {
            let dir = tempfile::tempdir().unwrap();
            for other in names(made.path()) {
                std::fs::copy(made.path().join(&other), dir.path().join(&other)).unwrap();
            }
            let mut bytes = original.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(dir.path().join(name), &bytes).unwrap();
            let what = format!("{name}: bit {} of byte {}", bit % 8, bit / 8);
            let (mut store, _) = Store::open(dir.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
            let check = |store: &Store| {
                let mut read = all_samples(store);
                read.retain(|(_, time), _| *time < 2 * DAY_MS);
                assert!(read.iter().all(|(at, value)| whole.get(at) == Some(value)), "{what}");
                assert!(read.len() == whole.len() || store.damaged_files() > 0, "{what}: lost without a word");
            };
            check(&store);
            append_more(&mut store, &what);
            store.seal_now();
            assert_eq!(store.sealing_error(), None, "{what}");
            check(&store);
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_the_tick_may_be_appended_when_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    let many = || (2..2000).map(|id| started(id, MetricKind::Counter, 15)).collect::<Vec<_>>();
    // At once, and in the middle.
    let mut rows = 0;
    for pages in 1..=14 {
        store.limit_pages(pages);
        let refused = store.append(&tick(20, many(), vec![(1, Value::Float(2.0))]));
        assert!(matches!(refused, Err(StoreError::Database { .. })), "{pages} pages are enough");
        assert_eq!(floats(&select(&store, "m1", 5, 99)), [(10, 1.0)]);
        let copy = copy_of(dir.path());
        let (mut copied, restored) = Store::open(copy.path()).unwrap();
        // Rows of series may be there, the tick with which they began is not.
        let live = restored.series.iter().filter(|series| !series.value.is_stale());
        assert_eq!((live.count(), copied.damaged_files()), (1, 0));
        assert_eq!(floats(&select(&copied, "m1", 5, 99)), [(10, 1.0)]);
        rows += restored.series.len() - 1;
        assert!(restored.series.iter().all(|series| series.id.0 < restored.next_id));
        copied.append(&tick(30, many(), vec![])).unwrap();
        assert_eq!(floats(&select(&copied, "m1", 5, 99)), [(10, 1.0), (30, 1.0)]);
        assert_eq!(floats(&select(&copied, "m1999", 5, 99)), [(15, 0.0), (30, 0.0)]);
    }
    assert!(rows > 1000, "{rows} rows came before the tick that was refused");
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
                let selection = Selection {
                    matchers,
                    start_ms: 10,
                    end_ms: i64::MAX,
                    repeats: true,
                    part: Part::Whole,
                    samples_max: 10_000,
                };
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
        store.reader().select(&Selection {
            matchers,
            start_ms: 0,
            end_ms: 99,
            repeats: true,
            part: Part::Whole,
            samples_max,
        })
    };
    assert_eq!(select(20).unwrap()[0].samples.len(), 20);
    assert!(matches!(select(19), Err(StoreError::TooManySamples(19))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Against the plainest model there is: a map of what each series was at each tick.
    #[test]
    fn property_test_the_store_is_a_map_of_ticks(
        ticks in prop::collection::vec((1i64..5, prop::collection::vec((1u32..4, prop::option::of(0i32..9)), 0..4), any::<bool>()), 1..12),
        (from, to) in (0i64..40, 0i64..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap().0;
        let mut held: BTreeMap<u32, f64> = BTreeMap::new();
        let mut known = std::collections::BTreeSet::new();
        let mut model: BTreeMap<u32, BTreeMap<i64, f64>> = BTreeMap::new();
        let mut now = 0;
        for (step, changes, reopen) in ticks {
            now += step;
            let changes: BTreeMap<u32, Option<i32>> = changes.into_iter().collect();
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
