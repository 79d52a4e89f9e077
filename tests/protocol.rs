//! What becomes of a datagram, case by case: `tests/fixtures/datagrams.txt` has the bytes, where each case comes from, the
//! messages they are, and the series that those make. `UPDATE_FIXTURES=1 cargo test --test protocol` writes the results
//! anew: read the diff against what `from` says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use cortex_metrics::collector::{Intake, Registry};
use cortex_metrics::dogstatsd::{HEADER_NAME, Message, MessageType, MessageValue, decode};
use cortex_metrics::model::Value;
use cortex_metrics::store::Restored;
use proptest::prelude::*;

#[path = "../fuzz/properties.rs"]
mod properties;

/// `\n`, `\r`, `\t`, `\\` and `\xHH` in the table stand for those bytes.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.bytes());
        let length = if after.starts_with('x') { 3 } else { 1 };
        bytes.push(match &after[..length] {
            "n" => b'\n',
            "r" => b'\r',
            "t" => b'\t',
            "\\" => b'\\',
            hex => u8::from_str_radix(hex.strip_prefix('x').unwrap(), 16).unwrap(),
        });
        rest = &after[length..];
    }
    bytes.extend(rest.bytes());
    bytes
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '"' | '\'') { text.push(c) } else { text.extend(c.escape_debug()) }
        }
        chunk.invalid().iter().for_each(|byte| write!(text, "\\x{byte:02x}").unwrap());
    }
    text
}

/// Short also where it is large.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn describe(message: &Message<'_>) -> String {
    let kind = match message.kind {
        MessageType::Counter => "counter",
        MessageType::Gauge => "gauge",
        MessageType::Timer => "timer",
        MessageType::Histogram => "histogram",
        MessageType::Distribution => "distribution",
        MessageType::Set => "set",
    };
    let mut text = format!("{kind} {}", escape(message.name));
    if let Some(member) = message.member() {
        write!(text, " \"{}\"", escape(member)).unwrap();
    }
    for value in message.values() {
        match value {
            MessageValue::Absolute(value) => write!(text, " {}", number(value)),
            MessageValue::Delta(value) => write!(text, " by {}", number(value)),
        }
        .unwrap();
    }
    if message.weight != 1.0 {
        write!(text, " x {}", number(message.weight)).unwrap();
    }
    let tags: Vec<String> = message
        .tags()
        .map(|(key, value)| value.map_or_else(|| escape(key), |value| format!("{}={}", escape(key), escape(value))))
        .collect();
    if !tags.is_empty() {
        write!(text, " # {}", tags.join(", ")).unwrap();
    }
    text
}

/// What the table says of a datagram: a line for each message, each series, and what else was counted.
fn results(datagram: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut unreadable: BTreeMap<&str, u64> = BTreeMap::new();
    let mut messages = decode(datagram);
    for message in messages.by_ref() {
        lines.push(match message {
            Ok(message) => format!("out   {}", describe(&message)),
            Err(error) => {
                *unreadable.entry(error.as_str()).or_default() += 1;
                format!("out   dropped: {}", error.as_str())
            }
        });
    }
    let intake = Intake::new(Registry::new(Restored::default()), 0);
    intake.datagram(datagram, 0);
    let tick = intake.take(2, 2, 1, |_, _| None);
    let tally = messages.tally();
    for (what, count) in [
        ("events", tally.events),
        ("service checks", tally.service_checks),
        ("timestamps", tally.timestamps),
        ("unknown fields", tally.unknown_fields),
        ("repeated fields", tally.repeated_fields),
        ("empty values", tally.empty_values),
    ] {
        if count > 0 {
            lines.push(format!("count {what}: {count}"));
        }
    }
    for (reason, dropped) in &intake.lock().totals.dropped {
        let refused = dropped.count - unreadable.get(reason).unwrap_or(&0);
        if refused > 0 {
            lines.push(format!("count refused, {reason}: {refused}"));
        }
    }
    if lines.is_empty() {
        lines.push("out   nothing".to_owned());
    }
    let names: BTreeMap<_, _> = tick.started.iter().map(|started| (started.id, started)).collect();
    for (id, value) in &tick.samples {
        let value = match value {
            Value::Float(value) => number(*value),
            Value::Histogram(histogram) => {
                format!("count {} sum {}", number(histogram.count()), number(histogram.sum()))
            }
        };
        lines.push(format!("tick  {} {} {value}", names[id].kind.as_str(), names[id].labels));
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn every_datagram_of_the_table_becomes_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/datagrams.txt");
    let table = std::fs::read_to_string(&path).unwrap();
    let mut rewritten = Vec::new();
    let (mut cases, mut seen, mut sources) = (0, BTreeSet::new(), 0);
    for line in table.lines() {
        if let Some(text) = line.strip_prefix("in    ") {
            assert!(seen.insert(text), "twice in the table: {text}");
            cases += 1;
            rewritten.push(line.to_owned());
            rewritten.extend(results(&unescape(text)));
        } else if !["out   ", "count ", "tick  "].iter().any(|prefix| line.starts_with(prefix)) {
            sources += usize::from(line.starts_with("from  "));
            rewritten.push(line.to_owned());
        }
    }
    assert!(cases >= 150 && sources == cases, "{cases} cases, {sources} sources");
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::write(&path, rewritten.join("\n") + "\n").unwrap();
        return;
    }
    for (number, (wanted, got)) in table.lines().zip(&rewritten).enumerate() {
        let case = table.lines().take(number + 1).filter(|line| line.starts_with("in    ")).last();
        assert_eq!(wanted, got, "line {} of {}, {}", number + 1, path.display(), case.unwrap_or_default());
    }
    assert_eq!(table.lines().count(), rewritten.len());
}

/// What the fuzzer began with or found interesting.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let seeds: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds
}

/// Datagrams of the table.
fn datagrams() -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/datagrams.txt");
    let table = std::fs::read_to_string(path).unwrap();
    table.lines().filter_map(|line| line.strip_prefix("in    ")).map(unescape).collect()
}

#[test]
fn what_the_fuzzer_found_stays_right() {
    seeds("decode").iter().chain(&datagrams()).for_each(|seed| properties::decoded_bytes_are_accounted_for(seed));
}

/// Bytes that look like messages more often than not.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let words = "a b_c : : | | 1 -5 +3 0.5 1e308 1e-320 nan inf c g ms h d s |c |g |@ |@0.1 |# |#k:v,f , # @ |c:x |e:x |card:low |T1 |T \
                 |x _e{ _e{1,1}:a|b } _sc| _sc|n|0 é cortex_client_payload_sequence:1|g |#client_id:00000000000000ff";
    let tokens: Vec<&str> = words.split_whitespace().chain(["\n", "\n", "\r", "\r\n", " ", "\t", "\0"]).collect();
    let token = prop_oneof![
        30 => prop::sample::select(tokens).prop_map(|token| token.as_bytes().to_vec()),
        2 => prop::collection::vec(any::<u8>(), 0..8),
        1 => prop::sample::select(datagrams()),
    ];
    prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

fn kind() -> impl Strategy<Value = MessageType> {
    use MessageType::{Counter, Distribution, Gauge, Histogram, Timer};
    prop::sample::select(vec![Counter, Gauge, Timer, Histogram, Distribution])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn property_test_any_bytes_are_accounted_for(datagram in datagram()) {
        properties::decoded_bytes_are_accounted_for(&datagram);
    }

    #[test]
    fn property_test_what_is_encoded_is_decoded(
        name in prop_oneof!["[a-z_.]{1,9}", "[^:|\n]{1,9}"],
        kind in kind(),
        values in prop::collection::vec(any::<f64>(), 1..5),
        weight in prop_oneof![1_u32..10_000, any::<u32>()],
        tags in prop_oneof!["([a-z]{1,3}:[a-z:=/ ]{0,5},?){0,3}", "[^|\n]{0,20}"],
    ) {
        properties::encoded_is_decoded(name.as_bytes(), kind, &values, weight, tags.as_bytes());
    }

    #[test]
    fn property_test_the_collector_applies_or_drops_every_message(datagrams in prop::collection::vec(datagram(), 1..4)) {
        let intake = Intake::new(Registry::new(Restored::default()), 0);
        let before = intake.begin_count();
        let (mut messages, mut headers) = (0, 0);
        for datagram in &datagrams {
            messages += decode(datagram).count() as u64;
            let is_header = |message: &Message<'_>| message.name == HEADER_NAME.as_bytes();
            headers += decode(datagram).filter_map(Result::ok).filter(is_header).count() as u64;
            intake.datagram(datagram, 0);
        }
        let applied: u64 = intake.end_count(&before).iter().map(|(_, _, messages)| messages).sum();
        let totals = intake.lock().totals.clone();
        prop_assert_eq!((totals.datagrams, totals.messages), (datagrams.len() as u64, messages));
        let dropped: u64 = totals.dropped.values().map(|dropped| dropped.count).sum();
        let bad_headers = totals.dropped.get("bad_header").map_or(0, |dropped| dropped.count);
        prop_assert_eq!(applied + dropped + headers - bad_headers, messages);
        prop_assert!(totals.dropped.values().all(|dropped| !dropped.example.contains('\n')));
        let series = intake.lock().registry.len();
        let tick = intake.take(2, 2, 1, |_, _| None);
        prop_assert_eq!((tick.started.len(), tick.samples.len()), (series, series), "each began by a message");
        for (_, value) in &tick.samples {
            let number = value.as_float().unwrap_or_else(|| value.as_histogram().unwrap().sum());
            prop_assert!(number.is_finite());
        }
        for started in &tick.started {
            let is_word = |text: &str| {
                !text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            };
            prop_assert!(is_word(started.labels.name()) && started.labels.iter().all(|(name, value)| is_word(name) && !value.is_empty()));
        }
    }
}
