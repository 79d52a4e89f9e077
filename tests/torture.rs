//! The store, killed at random moments: a child appends ticks as fast as it can and says which are committed; after
//! `kill -9` every one of them is there, with its values and no others, and at most the one in flight beside them.
//!
//! `TORTURE_KILLS=1000` makes it long (`make torture`).
#![cfg(feature = "collector")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cortex_metrics::model::{ExponentialHistogram, Labels, METRIC_NAME, MetricKind, SeriesId, Value};
use cortex_metrics::store::{Matcher, Part, Select as _, Selection, StartedSeries, Store, Tick};

/// A window of two hours is over after 72 ticks, a day after 864.
const STEP_MS: i64 = 100_000;
const DIR: &str = "TORTURE_DIR";
const PERIODS: [i64; 4] = [1, 3, 50, 700];
const GAUGE: u32 = 5;
const HISTOGRAM: u32 = 6;
/// So many ticks are looked at after a kill: more than two days.
const LOOK_BACK: i64 = 2_000;

fn histogram(n: i64) -> Value {
    let mut h = ExponentialHistogram::default();
    h.record(1.0, n as f64 + 1.0);
    h.record(0.001 * (n % 300 + 1) as f64, 2.0);
    Value::Histogram(Arc::new(h))
}

/// What each series is at tick `n`; `None` while it has ended.
fn values(n: i64) -> Vec<(u32, Option<Value>)> {
    let mut values: Vec<_> =
        PERIODS.iter().zip(1..).map(|(period, id)| (id, Some(Value::Float((n / period) as f64)))).collect();
    values.push((GAUGE, (n % 97 >= 30).then_some(Value::Float((n / 2) as f64 * 0.37))));
    values.push((HISTOGRAM, Some(histogram(n / 2))));
    values
}

fn tick(n: i64) -> Tick {
    let mut tick = Tick { timestamp_ms: n * STEP_MS, ..Tick::default() };
    let before = if n == 0 { Vec::new() } else { values(n - 1) };
    for (id, value) in values(n) {
        if n == 0 {
            let kind = match id {
                GAUGE => MetricKind::Gauge,
                HISTOGRAM => MetricKind::Histogram,
                _ => MetricKind::Counter,
            };
            tick.started.push(StartedSeries {
                id: SeriesId(id),
                labels: Labels::from_pairs([(METRIC_NAME, "m".to_owned()), ("id", id.to_string())]),
                kind,
                start_ms: -STEP_MS,
                earlier: None,
            });
        }
        if before.iter().any(|(other, earlier)| *other == id && *earlier == value) {
            continue;
        }
        tick.samples.push((SeriesId(id), value.unwrap_or_else(Value::stale)));
    }
    tick
}

/// The child: appends until it is killed.
#[test]
fn child_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (mut store, restored) = Store::open(Path::new(&dir)).unwrap();
    let mut n = restored.last_tick_ms.map_or(0, |last| last / STEP_MS + 1);
    let mut out = std::io::stdout().lock();
    loop {
        store.append(&tick(n)).unwrap();
        writeln!(out, "committed {n}").unwrap();
        out.flush().unwrap();
        n += 1;
    }
}

fn check(dir: &Path, committed: Option<i64>, round: usize) {
    let (store, restored) = Store::open(dir).unwrap();
    assert_eq!(store.damaged_files(), 0, "round {round}");
    let last = restored.last_tick_ms.map(|last| last / STEP_MS);
    let at_most_one_more = [committed, Some(committed.map_or(0, |committed| committed + 1))];
    assert!(at_most_one_more.contains(&last), "round {round}: {committed:?} was committed, {last:?} is there");
    let Some(last) = last else { return };
    let first = (last - LOOK_BACK).max(0);
    for (id, value) in values(last) {
        let restored = restored.series.iter().find(|series| series.id.0 == id).unwrap();
        assert!(
            restored.value == value.clone().unwrap_or_else(Value::stale)
                || (value.is_none() && restored.value.is_stale())
        );
        let selection = Selection {
            matchers: vec![Matcher::metric("m"), Matcher::equal("id", &id.to_string())],
            start_ms: first * STEP_MS,
            end_ms: i64::MAX,
            repeats: true,
            part: Part::Whole,
            samples_max: 100_000,
        };
        let found = store.reader().select(&selection).unwrap().pop();
        let samples = found.map_or_else(Vec::new, |series| series.samples);
        let mut samples = samples.iter().filter(|sample| !sample.value.is_stale());
        for n in first..=last {
            let Some(want) = values(n).into_iter().find(|(other, _)| *other == id).and_then(|(_, value)| value) else {
                continue;
            };
            let got = samples.next().unwrap_or_else(|| panic!("round {round}: series {id} ends before tick {n}"));
            assert_eq!(got.timestamp_ms, n * STEP_MS, "round {round}: series {id}");
            let is_same = match (&got.value, &want) {
                (Value::Histogram(a), Value::Histogram(b)) => {
                    (a.count(), a.sum(), a.buckets()) == (b.count(), b.sum(), b.buckets())
                }
                (a, b) => a == b,
            };
            assert!(is_same, "round {round}: series {id} at tick {n}: {:?}, want {want:?}", got.value);
        }
        assert!(samples.next().is_none(), "round {round}: series {id} has more samples than there were ticks");
    }
}

#[test]
fn whatever_was_committed_is_there_after_kill_9() {
    let rounds = std::env::var("TORTURE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let dir = tempfile::tempdir().unwrap();
    let mut committed = None;
    let mut state = 0x2545_f491_4f6c_dd1du64;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_appends_until_it_is_killed", "--nocapture", "--test-threads", "1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wait = Duration::from_millis(10 + (state >> 33) % 400);
        let reader = std::thread::spawn(move || {
            let lines = lines.lines().map_while(Result::ok);
            // A line that the kill cut short is no number, or an earlier one.
            lines.filter_map(|line| line.rsplit_once("committed ")?.1.parse::<i64>().ok()).max()
        });
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        committed =
            reader.join().unwrap().or_else(|| Store::open(dir.path()).unwrap().1.last_tick_ms.map(|t| t / STEP_MS));
        check(dir.path(), committed, round);
        if round % 50 == 49 {
            println!("{} of {rounds} kills, {} ticks", round + 1, committed.map_or(0, |n| n + 1));
        }
    }
    assert!(committed.is_some_and(|committed| committed > 100), "the child committed {committed:?}");
}
