//! What goes wrong with files and disks, and what the store makes of it: nothing that was stored is lost or changed beyond what
//! was damaged, and nothing of it silently.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::tests::{DAY_MS, copy_of, floats, labels, names, run, select, started, tick, two_days};
use super::*;

const SLOT_MS: i64 = 7_200_000;
/// The log of [`two_days`] begins here.
const SEALED_MS: i64 = DAY_MS + DAY_MS / 2;

fn written(name: &str, samples: &[(i64, f64)]) -> WrittenSeries {
    let samples =
        samples.iter().map(|(timestamp_ms, v)| Sample { timestamp_ms: *timestamp_ms, value: Value::Float(*v) });
    WrittenSeries { labels: labels(name), samples: samples.collect() }
}

/// A head that was removed, cut to nothing, or put back from a copy said that nothing is sealed, and so every window of every
/// day was taken for one that the log would bring again: the whole history was deleted.
#[test]
fn a_head_that_does_not_know_the_days_costs_what_was_not_sealed() {
    let made = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(made.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(0.0))])).unwrap();
    let early = std::fs::read(made.path().join("head.db")).unwrap();
    drop(store);
    std::fs::remove_file(made.path().join("head.db")).unwrap();
    let whole = two_days(made.path());
    let sealed: Vec<_> = whole.iter().copied().filter(|(at, _)| *at < SEALED_MS).collect();
    for head in [None, Some(Vec::new()), Some(early)] {
        let dir = copy_of(made.path());
        let path = dir.path().join("head.db");
        std::fs::remove_file(&path).unwrap();
        let what = head.as_ref().map(Vec::len);
        if let Some(bytes) = head {
            std::fs::write(&path, bytes).unwrap();
        }
        for _ in 0..2 {
            let (store, restored) = Store::open(dir.path()).unwrap();
            assert_eq!(floats(&select(&store, "m1", 0, 3 * DAY_MS)), sealed, "{what:?}");
            assert_eq!((restored.next_id, &restored.series[0].value), (2, &Value::Float(215.0)), "{what:?}");
        }
        let (mut store, _) = Store::open(dir.path()).unwrap();
        run(&mut store, SEALED_MS + 3_600_000, SEALED_MS + SLOT_MS);
        drop(store);
        let (store, _) = Store::open(dir.path()).unwrap();
        assert_eq!(select(&store, "m1", 0, 3 * DAY_MS).len(), sealed.len() + 6, "{what:?}");
    }
}

/// What `Head::salvage` did: the old file away, the new one empty, and then killed.
#[test]
fn a_head_whose_salvage_was_interrupted_is_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let whole = two_days(dir.path());
    std::fs::rename(dir.path().join("head.db"), dir.path().join("head.db.damaged-1")).unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let sealed: Vec<_> = whole.iter().copied().filter(|(at, _)| *at < SEALED_MS).collect();
    assert_eq!(floats(&select(&store, "m1", 0, 3 * DAY_MS)), sealed);
    assert_eq!(store.damaged_files(), 1, "its loss is told");
}

#[test]
fn a_day_whose_salvage_was_interrupted_is_as_it_was_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let whole = two_days(dir.path());
    let day = dir.path().join("1970-01-01.db");
    // The moment between the two renames: the old file is aside, the new one has not its name yet.
    std::fs::rename(&day, dir.path().join("1970-01-01.db.salvage")).unwrap();
    std::fs::write(dir.path().join("1970-01-01.db.damaged-1"), b"damaged").unwrap();
    // And one that was not complete: what it was made from is still there.
    std::fs::write(dir.path().join("1970-01-02.db.salvage"), b"half of it").unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    assert_eq!(floats(&select(&store, "m1", 0, 3 * DAY_MS)), whole);
    assert_eq!(names(dir.path()), ["1970-01-01.db", "1970-01-01.db.damaged-1", "1970-01-02.db", "head.db"]);
}

#[test]
fn a_day_that_was_cut_to_nothing_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let whole = two_days(dir.path());
    std::fs::write(dir.path().join("1970-01-01.db"), b"").unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let second: Vec<_> = whole.iter().copied().filter(|(at, _)| *at >= DAY_MS).collect();
    assert_eq!(floats(&select(&store, "m1", 0, 3 * DAY_MS)), second);
    assert_eq!(store.damaged_files(), 1);
}

/// One damaged file more than one kept the collector from starting at all.
#[test]
fn a_damaged_head_beside_a_damaged_day_opens() {
    let dir = tempfile::tempdir().unwrap();
    let whole = two_days(dir.path());
    let connection = rusqlite::Connection::open(dir.path().join("1970-01-02.db")).unwrap();
    // The newest chunk, from which the series' last value would be taken.
    let key = 6i64 << 32 | 1;
    assert_eq!(connection.execute("UPDATE chunks SET body = zeroblob(9) WHERE key = ?1", [key]).unwrap(), 1);
    drop(connection);
    std::fs::write(dir.path().join("head.db"), vec![7; 8192]).unwrap();
    let (store, restored) = Store::open(dir.path()).unwrap();
    let left: Vec<_> = whole.iter().copied().filter(|(at, _)| *at < SEALED_MS - SLOT_MS).collect();
    assert_eq!(floats(&select(&store, "m1", 0, 3 * DAY_MS)), left);
    assert_eq!(store.damaged_files(), 2);
    assert_eq!(restored.series[0].value, Value::Float(203.0));
}

/// A tick that the disk refused had ended the windows in memory, but not in the log: a write that came next was replayed as if
/// it went on from the samples before, at times far off.
#[test]
fn what_is_written_after_a_refused_tick_is_replayed_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(1000, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))])).unwrap();
    store.write(&[written("w", &[(100, 1.0), (200, 2.0)])], 0).unwrap();
    let reader = store.reader();
    let hold = reader.shared.writing(); // nothing is sealed meanwhile
    store.limit_pages(1);
    let many = (2..2000).map(|id| started(id, MetricKind::Counter, SLOT_MS)).collect();
    store.append(&tick(SLOT_MS + 10, many, vec![])).unwrap_err();
    store.limit_pages(1_000_000);
    store.write(&[written("w", &[(300, 3.0), (400, 4.0)])], 0).unwrap();
    let want = [(100, 1.0), (200, 2.0), (300, 3.0), (400, 4.0)];
    assert_eq!(floats(&select(&store, "w", 0, 1000)), want);
    let copy = copy_of(dir.path());
    drop(hold);
    let (mut store, _) = Store::open(copy.path()).unwrap();
    assert_eq!(floats(&select(&store, "w", 0, i64::MAX)), want);
    store.append(&tick(SLOT_MS + 20, vec![], vec![(1, Value::Float(2.0))])).unwrap();
    store.write(&[written("w", &[(500, 5.0)])], 0).unwrap();
    drop(store);
    let (store, _) = Store::open(copy.path()).unwrap();
    assert_eq!(select(&store, "w", 0, i64::MAX).len(), 5);
    assert_eq!(floats(&select(&store, "m1", 0, i64::MAX)), [(0, 0.0), (1000, 1.0), (SLOT_MS + 20, 2.0)]);
}

/// The value that was held before a window is none of the window if there is another at its first tick.
#[test]
fn extremes_of_a_window_are_of_its_own_ticks() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(1000, vec![started(1, MetricKind::Gauge, 0)], vec![(1, Value::Float(3.0))])).unwrap();
    for at in 0..10 {
        let value = Value::Float((7 + at) as f64);
        store.append(&tick(SLOT_MS + at * 10_000, vec![], vec![(1, value)])).unwrap();
    }
    let values = |store: &Store| {
        let found = store.reader().select(&Selection {
            matchers: vec![Matcher::metric("m1")],
            start_ms: SLOT_MS,
            end_ms: 2 * SLOT_MS,
            repeats: false,
            part: Part::Whole,
            samples_max: 100,
        });
        let values = found.unwrap().pop().unwrap().samples.into_iter().map(|s| s.value.as_float().unwrap());
        let values: Vec<f64> = values.collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        (least, values.iter().copied().fold(0.0, f64::max), values.last().copied())
    };
    assert_eq!(values(&store), (7.0, 16.0, Some(16.0)));
    store.seal_now();
    assert_eq!(values(&store), (7.0, 16.0, Some(16.0)), "sealed");
}

#[test]
fn a_written_series_of_which_everything_was_refused_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let refused = store.write(&[written("late", &[(10, 1.0)])], 100).unwrap();
    assert_eq!((refused.stored, refused.refused), (0, 1));
    assert!(!store.has_name("late"));
    store.write(&[written("late", &[(200, 1.0)])], 100).unwrap();
    assert_eq!(floats(&select(&store, "late", 0, 1000)), [(200, 1.0)]);
}

/// A connection to a file that was set aside came back to those that wait for the next query: what that read was of one window
/// and had the times of another.
#[test]
fn a_query_that_runs_while_a_file_is_salvaged_spoils_none_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let whole = two_days(dir.path());
    let (store, _) = Store::open(dir.path()).unwrap();
    let reader = store.reader();
    let selection = |start_ms| Selection {
        matchers: vec![Matcher::metric("m1")],
        start_ms,
        end_ms: 3 * DAY_MS,
        repeats: true,
        part: Part::Whole,
        samples_max: 1000,
    };
    let day = rusqlite::Connection::open(dir.path().join("1970-01-01.db")).unwrap();
    reader
        .for_each(&selection(5 * SLOT_MS), &mut |_| {
            // Meanwhile the first window is found gone, and with it the second chunk.
            day.execute("UPDATE windows SET body = zeroblob(9) WHERE key = 1", []).unwrap();
            day.execute("UPDATE chunks SET body = zeroblob(9) WHERE key = ?1", [2i64 << 32 | 1]).unwrap();
            reader.select(&selection(0)).map(|_| ())
        })
        .unwrap();
    assert_eq!(store.damaged_files(), 1);
    let want: Vec<_> = whole.iter().copied().filter(|(at, _)| *at >= 2 * SLOT_MS).collect();
    let got: BTreeMap<i64, f64> = floats(&select(&store, "m1", 0, 3 * DAY_MS)).into_iter().collect();
    assert_eq!(got, want.into_iter().collect());
}

/// The file of a day that somebody put in place of another: the query looked for its windows for ever.
#[test]
fn a_file_that_was_replaced_under_a_running_collector_is_read_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(0.0))])).unwrap();
    run(&mut store, 600_000, SLOT_MS);
    store.seal_now();
    let early = copy_of(dir.path());
    run(&mut store, SLOT_MS, 2 * SLOT_MS);
    store.seal_now();
    let name = "1970-01-01.db";
    std::fs::copy(early.path().join(name), dir.path().join("new")).unwrap();
    std::fs::rename(dir.path().join("new"), dir.path().join(name)).unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(floats(&select(&store, "m1", 0, DAY_MS)).len()));
    assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(13));
}

#[test]
fn nothing_is_left_of_a_day_that_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    two_days(dir.path());
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.expire(100 * 365 * DAY_MS, Some(1)).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().starts_with("1970-01-01")), "{left:?}");
}

#[test]
fn written_series_are_only_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let series: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|name| written(name, &[(10, 1.0), (20, 2.0)])).collect();
    let first = store.write(&series, 0).unwrap();
    assert_eq!((first.stored, first.refused, first.without_room), (6, 0, 4));
    assert_eq!(first.example.as_deref(), Some("too many series: series d{model=\"v1\"} at 10 ms"));
    let again = store.write(&[written("a", &[(30, 3.0)]), written("d", &[(30, 3.0)])], 0).unwrap();
    assert_eq!((again.stored, again.without_room), (1, 1), "those that are there go on");
}

/// What the fuzzer began with or found interesting.
#[test]
fn what_the_fuzzer_found_stays_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/store_blobs");
    let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|seed| seed.unwrap().path()).collect();
    assert!(seeds.len() > 9);
    seeds.iter().for_each(|seed| read_anything(&std::fs::read(seed).unwrap()));
}

/// The head is copied first. What was sealed before the last day's turn came went beyond it, and the copy was taken for one whose head is
/// damaged.
#[test]
fn a_backup_is_the_store_as_it_was_when_its_head_was_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.append(&tick(10, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(0.0))])).unwrap();
    run(&mut store, 600_000, 3 * SLOT_MS);
    store.seal_now();
    run(&mut store, 3 * SLOT_MS, 4 * SLOT_MS);
    let before = floats(&select(&store, "m1", 0, DAY_MS));
    let copy = tempfile::tempdir().unwrap();
    let mut copied = Vec::new();
    backup(dir.path(), copy.path(), |path, _| {
        if path.ends_with("head.db") {
            run(&mut store, 4 * SLOT_MS, 6 * SLOT_MS);
            store.seal_now();
        }
        copied.push(path.to_owned());
    })
    .unwrap();
    assert_eq!(copied.len(), 2, "{copied:?}");
    let (copy_of, _) = Store::open(copy.path()).unwrap();
    assert_eq!(floats(&select(&copy_of, "m1", 0, DAY_MS)), before);
    assert_eq!(copy_of.damaged_files(), 0);
    assert_eq!(names(copy.path()), ["1970-01-01.db", "head.db"]);
}

/// Regular expressions over very many series, and series without samples: nobody asked whether the query was over, and while expressions were
/// tried a tick with new series waited.
#[test]
fn whoever_looks_for_series_is_asked_all_the_time_whether_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let all = (1..=300).map(|id| started(id, MetricKind::Gauge, 0)).collect();
    store.append(&tick(10, all, (1..=300).map(|id| (id, Value::Float(1.0))).collect())).unwrap();
    let reader = store.reader();
    let regex = Matcher { name: "model".to_owned(), op: MatchOp::Regex(Regex::new("^(?:v.)$").unwrap()) };
    for (matchers, start_ms) in [(vec![regex], 0), (vec![Matcher::equal("model", "v1")], 1000)] {
        let selection = Selection {
            matchers,
            start_ms,
            end_ms: start_ms + 100,
            repeats: true,
            part: Part::Whole,
            samples_max: 1000,
        };
        let looks = std::cell::Cell::new(0);
        let mut visits = 0;
        let mut visit = |_| {
            visits += 1;
            Ok(())
        };
        let look = || {
            assert!(reader.shared.index.try_write().is_some(), "nobody waits for the index meanwhile");
            looks.set(looks.get() + 1);
            if looks.get() > 3 { Err(StoreError::Stopped) } else { Ok(()) }
        };
        assert!(matches!(reader.for_each_while(&selection, &look, &mut visit), Err(StoreError::Stopped)));
        assert_eq!((looks.get(), visits), (4, 0));
        looks.set(-1000);
        assert!(reader.for_each_while(&selection, &look, &mut |_| Ok(())).is_ok());
        assert!(reader.labels_while(&selection, &look).is_ok());
    }
}

/// The sum of a histogram may be NaN; a sender that did not hear that it was stored was told of a duplicate.
#[test]
fn what_is_written_again_is_the_same_also_if_it_is_nan() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let histogram = |count| {
        let buckets = crate::model::BucketSpan { offset: 1, counts: vec![count] };
        let none = crate::model::BucketSpan::default();
        let h = crate::model::ExponentialHistogram::from_parts(3, 0.0, count, f64::NAN, buckets, none).unwrap();
        Value::Histogram(std::sync::Arc::new(h))
    };
    let mut write = |name, value: Value| {
        let samples = vec![Sample { timestamp_ms: 10, value }];
        let written = store.write(&[WrittenSeries { labels: labels(name), samples }], 0).unwrap();
        (written.stored, written.refused)
    };
    assert_eq!(write("float", Value::Float(f64::NAN)), (1, 0));
    assert_eq!(write("float", Value::Float(f64::NAN)), (0, 0));
    assert_eq!(write("histogram", histogram(1.0)), (1, 0));
    assert_eq!(write("histogram", histogram(1.0)), (0, 0));
    assert_eq!(write("histogram", histogram(2.0)), (0, 1));
}

/// Samples of very many days are sealed for minutes: whoever stopped the collector waited for all of that, and the start after it removed
/// what had been done, day by day.
#[test]
fn a_store_closes_in_the_middle_of_what_it_seals_and_goes_on_when_it_is_opened() {
    const DAYS: i64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let samples: Vec<(i64, f64)> = (0..DAYS).map(|day| (day * DAY_MS + 5, day as f64)).collect();
    store.write(&[written("w", &samples)], 0).unwrap();
    let first = tick(DAYS * DAY_MS, vec![started(1, MetricKind::Counter, 0)], vec![(1, Value::Float(1.0))]);
    store.append(&first).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while names(dir.path()).len() < 4 {
        assert!(std::time::Instant::now() < until, "nothing is sealed");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(store);
    assert!(names(dir.path()).len() < DAYS as usize, "it ends before all is done");
    let (mut store, _) = Store::open(dir.path()).unwrap();
    assert_eq!(floats(&select(&store, "w", 0, i64::MAX)), samples);
    store.seal_now();
    assert_eq!(floats(&select(&store, "w", 0, i64::MAX)), samples);
    // The head learns of it with the next ticks.
    (1..4).for_each(|n| store.append(&tick(DAYS * DAY_MS + n, vec![], vec![])).unwrap());
    drop(store);
    let (store, _) = Store::open(dir.path()).unwrap();
    assert_eq!(floats(&select(&store, "w", 0, i64::MAX)), samples);
    assert_eq!((store.damaged_files(), names(dir.path()).len()), (0, DAYS as usize + 2));
    // A process may have a thousand files, and HTTP wants some.
    let reader = store.reader();
    let look = || {
        assert!(
            reader.shared.open_files() <= 2 * super::shared::OPEN_MAX,
            "{} files are open",
            reader.shared.open_files()
        );
        Ok(())
    };
    let selection = Selection {
        matchers: vec![Matcher::metric("w")],
        start_ms: 0,
        end_ms: i64::MAX,
        repeats: true,
        part: Part::Whole,
        samples_max: 1000,
    };
    let mut visit = |_| look();
    reader.for_each_while(&selection, &look, &mut visit).unwrap();
}
