//! The rows: one per API, from a handful of questions asked once for all of them.
//!
//! Counts are levels, never `increase()`, which extrapolates. A collector's counters are monotone and begin with an explicit zero, so a
//! series has grown in the window by its last value less its least. What a Prometheus scraped may lack that zero, or go back:
//! [`growth_of_scrapes`].

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, Ask, AskError, ask_all};
use crate::model::{Labels, METRIC_NAME};

/// The window of counts and of the average unless another is asked for, as PromQL writes it.
pub const WINDOW: &str = "14d";

/// How an API does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As many replicas of the newest version are up as were requested.
    Live,
    /// Older versions still run, or fewer replicas than requested are up.
    Updating,
    /// No replica was heard for 30 s.
    Down,
}

impl Status {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Updating => "updating",
            Self::Down => "down",
        }
    }
}

/// One API.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiRow {
    /// Its name.
    pub api_name: String,
    /// How it does.
    pub status: Status,
    /// Replicas up with the newest version.
    pub up_to_date: u64,
    /// Replicas up with older versions.
    pub stale: u64,
    /// How many replicas were asked for; `None` if nobody said.
    pub requested: Option<u64>,
    /// Seconds since the earliest start among the live replicas of the newest version; `None` if none is up.
    pub last_update_seconds: Option<f64>,
    /// The mean duration of the requests of the window in seconds; `None` if there were none.
    pub avg_request_seconds: Option<f64>,
    /// Responses of the window by code, those that did not occur left out.
    pub responses: BTreeMap<String, u64>,
    /// Where the API answers, if it said so.
    pub endpoint: Option<String>,
}

impl ApiRow {
    /// Responses of one class, such as 2 for 2XX.
    pub fn responses_of_class(&self, class: u8) -> u64 {
        let of_class = |code: &str| code.len() == 3 && code.bytes().next() == Some(b'0' + class);
        self.responses.iter().filter(|(code, _)| of_class(code)).fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// A replica as its start timestamp tells.
#[derive(Debug, Clone, PartialEq)]
struct Replica {
    api_id: String,
    started: f64,
}

/// The rows of all APIs, sorted by name. `now` is in seconds since the Unix epoch, `window` a duration of PromQL.
pub fn apis(source: &dyn Ask, now: f64, window: &str) -> Result<Vec<ApiRow>, AskError> {
    let is_collector = source.is_collector();
    let last = |name: &str| format!("last_over_time({name}[{window}])");
    let growth = |name: &str, by: &str| {
        let in_window = format!("{name}[{window}]");
        let grown = if is_collector {
            format!("{} - min_over_time({in_window})", last(name))
        } else {
            growth_of_scrapes(name, &in_window, window)
        };
        format!("sum by ({by}) ({grown})")
    };
    let duration = |part: &str| {
        const NAME: &str = "cortex_api_request_duration_seconds";
        let classic = growth(&format!("{NAME}_{part}"), "api_name");
        if is_collector {
            return classic;
        }
        // Whoever scraped native histograms alone has no classic names.
        let grown = format!("({} - ({NAME} offset {window})) or {}", last(NAME), last(NAME));
        format!("({classic}) or sum by (api_name) (histogram_{part}({grown}))")
    };
    let [requests, sums, counts, live, known, wanted, info, known_info] = ask_all(
        source,
        &[
            growth("cortex_api_requests_total", "api_name, response_code"),
            duration("sum"),
            duration("count"),
            "cortex_api_replica_start_timestamp_seconds".to_owned(),
            last("cortex_api_replica_start_timestamp_seconds"),
            "cortex_api_replicas_requested".to_owned(),
            "cortex_api_info".to_owned(),
            last("cortex_api_info"),
        ],
    )?;
    let (sums, counts) = (by_api(sums), by_api(counts));
    let (live, known) = (replicas(now, live), replicas(now, known));
    // The replica that lives first; where it answered if none does.
    let info = [info, known_info].concat();

    let mut responses: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for Answer { labels, value } in requests {
        let Some(api) = labels.get("api_name") else { continue };
        let codes = responses.entry(api.to_owned()).or_default();
        let count = value.float();
        if count > 0.0 {
            let code = codes.entry(labels.get("response_code").unwrap_or("").to_owned()).or_default();
            *code = u64::saturating_add(*code, count.round() as u64);
        }
    }
    let names: BTreeSet<&String> =
        responses.keys().chain(live.keys()).chain(known.keys()).chain(counts.keys()).collect();
    let nobody = Vec::new();
    let rows = names.into_iter().map(|name| {
        let up = live.get(name).unwrap_or(&nobody);
        let newest = newest_id(up).or_else(|| newest_id(known.get(name).unwrap_or(&nobody)));
        let (current, old): (Vec<&Replica>, Vec<&Replica>) = up.iter().partition(|r| Some(&*r.api_id) == newest);
        let is_newest = |labels: &Labels| {
            labels.get("api_name") == Some(name) && labels.get("api_id").unwrap_or("") == newest.unwrap_or("")
        };
        let of_newest = |answers: &[Answer]| answers.iter().find(|a| is_newest(&a.labels)).cloned();
        let requested = of_newest(&wanted).map(|answer| answer.value.float().max(0.0) as u64);
        let up_to_date = current.len() as u64;
        let started = current.iter().map(|replica| replica.started).reduce(f64::min);
        ApiRow {
            api_name: name.clone(),
            status: match (up.is_empty(), old.is_empty() && up_to_date >= requested.unwrap_or(1)) {
                (true, _) => Status::Down,
                (false, true) => Status::Live,
                (false, false) => Status::Updating,
            },
            up_to_date,
            stale: old.len() as u64,
            requested,
            last_update_seconds: started.map(|started| (now - started).max(0.0)),
            avg_request_seconds: counts
                .get(name)
                .filter(|count| **count > 0.0)
                .and_then(|count| Some(sums.get(name)? / count)),
            responses: responses.get(name).cloned().unwrap_or_default(),
            endpoint: of_newest(&info).and_then(|answer| answer.labels.get("endpoint").map(str::to_owned)),
        }
    });
    Ok(rows.collect())
}

/// How much a counter grew where it was scraped: from its level at the window's start on. One that is not there then began at zero,
/// be it scraped later, unless it was there when the collector was scraped first: then it is from that level on. One that went back is
/// asked for its increase.
fn growth_of_scrapes(name: &str, in_window: &str, window: &str) -> String {
    // Always there, as often as the collector was scraped.
    const OF_EACH_SCRAPE: &str = "cortex_collector_datagrams_total";
    let last = format!("last_over_time({in_window})");
    let scrapes = format!("max by (instance, job) (count_over_time({OF_EACH_SCRAPE}[{window}]))");
    let from_the_first = format!("count_over_time({in_window}) >= on (instance, job) group_left () {scrapes}");
    let level =
        format!("({name} offset {window}) or (min_over_time({in_window}) and ({from_the_first})) or 0 * {last}");
    format!("(increase({in_window}) and resets({in_window}) > 0) or ({last} - ({level}))")
}

/// `text` as a PromQL string.
pub fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn by_api(answers: Vec<Answer>) -> BTreeMap<String, f64> {
    let of_api = |answer: Answer| Some((answer.labels.get("api_name")?.to_owned(), answer.value.float()));
    answers.into_iter().filter_map(of_api).collect()
}

fn replicas(now: f64, answers: Vec<Answer>) -> BTreeMap<String, Vec<Replica>> {
    let mut replicas: BTreeMap<String, BTreeMap<Labels, Replica>> = BTreeMap::new();
    for answer in answers {
        let Some(api) = answer.labels.get("api_name") else { continue };
        let api_id = answer.labels.get("api_id").unwrap_or("").to_owned();
        let replica = Replica { api_id, started: answer.value.float() };
        // No replica started before the epoch or after tomorrow: what says so is not one.
        if !(0.0..now + 86_400.0).contains(&replica.started) {
            continue;
        }
        // A replica is one whatever else a scrape has added to its labels.
        let identity = answer.labels.filtered(|name| ["api_id", "replica"].contains(&name) && name != METRIC_NAME);
        replicas.entry(api.to_owned()).or_default().insert(identity, replica);
    }
    replicas.into_iter().map(|(api, by_id)| (api, by_id.into_values().collect())).collect()
}

/// The version of the latest start; going back to an older version makes that one the newest again.
fn newest_id(replicas: &[Replica]) -> Option<&str> {
    replicas.iter().max_by(|a, b| a.started.total_cmp(&b.started)).map(|replica| &*replica.api_id)
}

#[cfg(test)]
mod tests {
    use super::super::AnswerValue;
    use super::*;

    /// Name, labels, least value, last value, whether it is there now.
    type Series = (&'static str, Vec<(&'static str, &'static str)>, f64, f64, bool);

    /// Answers by what the expression asks for.
    struct Fake(Vec<Series>);

    impl Ask for Fake {
        fn ask(&self, expr: &str) -> Result<Vec<Answer>, AskError> {
            let is_instant = !expr.contains("_over_time");
            let named = |name: &str| {
                let rest = expr.split(name).nth(1).unwrap_or("x");
                expr.contains(name) && (rest.is_empty() || rest.starts_with(['[', '{']))
            };
            let found = self.0.iter().filter(|(name, _, _, _, is_up)| named(name) && (*is_up || !is_instant));
            Ok(found
                .map(|(_, labels, least, last, _)| Answer {
                    labels: Labels::from_pairs(labels.iter().copied()),
                    value: AnswerValue::Float(if expr.contains("- min_over_time") { last - least } else { *last }),
                })
                .collect())
        }
    }

    const START: &str = "cortex_api_replica_start_timestamp_seconds";

    fn iris<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        [&[("api_name", "iris")], more].concat()
    }

    #[test]
    fn a_row_says_what_the_window_held() {
        let source = Fake(vec![
            ("cortex_api_requests_total", iris(&[("response_code", "200")]), 100.0, 1323.0, true),
            ("cortex_api_requests_total", iris(&[("response_code", "500")]), 0.0, 2.0, true),
            ("cortex_api_requests_total", iris(&[("response_code", "400")]), 0.0, 0.0, true),
            ("cortex_api_request_duration_seconds_sum", iris(&[]), 10.0, 40.0, true),
            ("cortex_api_request_duration_seconds_count", iris(&[]), 0.0, 1250.0, true),
            (START, iris(&[("api_id", "a"), ("replica", "1")]), 0.0, 900.0, true),
            ("cortex_api_replicas_requested", iris(&[("api_id", "a")]), 0.0, 1.0, true),
            ("cortex_api_info", iris(&[("api_id", "a"), ("endpoint", "http://x")]), 0.0, 1.0, true),
        ]);
        let rows = apis(&source, 1000.0, WINDOW).unwrap();
        assert_eq!(
            rows,
            [ApiRow {
                api_name: "iris".to_owned(),
                status: Status::Live,
                up_to_date: 1,
                stale: 0,
                requested: Some(1),
                last_update_seconds: Some(100.0),
                avg_request_seconds: Some(0.024),
                responses: [("200".to_owned(), 1223), ("500".to_owned(), 2)].into(),
                endpoint: Some("http://x".to_owned()),
            }]
        );
        assert_eq!((rows[0].responses_of_class(2), rows[0].responses_of_class(5)), (1223, 2));
    }

    #[test]
    fn an_older_version_that_still_runs_is_stale_and_going_back_makes_it_the_newest() {
        let roll = |old, new| {
            let source = Fake(vec![
                (START, iris(&[("api_id", "a"), ("replica", "1")]), 0.0, old, true),
                (START, iris(&[("api_id", "b"), ("replica", "2")]), 0.0, new, true),
            ]);
            let row = apis(&source, 1000.0, WINDOW).unwrap().remove(0);
            (row.status, row.up_to_date, row.stale, row.last_update_seconds)
        };
        assert_eq!(roll(100.0, 200.0), (Status::Updating, 1, 1, Some(800.0)));
        assert_eq!(roll(300.0, 200.0), (Status::Updating, 1, 1, Some(700.0)));
    }

    #[test]
    fn fewer_than_requested_is_updating_and_none_is_down() {
        let source = Fake(vec![
            (START, iris(&[("replica", "1")]), 0.0, 1.0, true),
            ("cortex_api_replicas_requested", iris(&[]), 0.0, 2.0, true),
        ]);
        assert_eq!(apis(&source, 1.0, WINDOW).unwrap()[0].status, Status::Updating);
        let source = Fake(vec![(START, iris(&[("replica", "1")]), 0.0, 1.0, false)]);
        let row = &apis(&source, 1.0, WINDOW).unwrap()[0];
        assert_eq!((row.status, row.up_to_date, row.last_update_seconds), (Status::Down, 0, None));
    }

    #[test]
    fn the_endpoint_is_that_of_the_replica_that_lives() {
        let of = |is_up| {
            let source = Fake(vec![
                (START, iris(&[("replica", "1")]), 0.0, 1.0, true),
                ("cortex_api_info", iris(&[("endpoint", "http://old")]), 0.0, 1.0, false),
                ("cortex_api_info", iris(&[("endpoint", "http://now")]), 0.0, 1.0, is_up),
            ]);
            apis(&source, 1.0, WINDOW).unwrap().remove(0).endpoint
        };
        assert_eq!(of(true).as_deref(), Some("http://now"));
        assert_eq!(of(false).as_deref(), Some("http://old"));
    }

    #[test]
    fn what_cannot_be_a_count_or_a_start_does_not_break_the_row() {
        let source = Fake(vec![
            ("cortex_api_requests_total", iris(&[("response_code", "200"), ("api_id", "a")]), 0.0, 1e300, true),
            ("cortex_api_requests_total", iris(&[("response_code", "200"), ("api_id", "b")]), 0.0, 1e300, true),
            ("cortex_api_requests_total", iris(&[("response_code", "201")]), 0.0, 5.0, true),
            (START, iris(&[("replica", "1")]), 0.0, -1e300, true),
            (START, iris(&[("replica", "2")]), 0.0, 1e300, true),
        ]);
        let row = apis(&source, 1000.0, WINDOW).unwrap().remove(0);
        assert_eq!((row.responses_of_class(2), row.up_to_date, row.status), (u64::MAX, 0, Status::Down));
    }

    #[test]
    fn a_name_cannot_leave_its_string() {
        assert_eq!(quote("a\"} or up{x=\"\\\n"), r#""a\"} or up{x=\"\\\n""#);
    }
}
