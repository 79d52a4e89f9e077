//! What the names that are ours are and mean: the types that others must keep to, and `# HELP`.

use crate::model::MetricKind::{self, Counter, Gauge, Histogram};

const OWN: [(&str, MetricKind, &str); 35] = [
    ("cortex_api_requests_total", Counter, "Finished requests by response code."),
    (
        "cortex_api_request_duration_seconds",
        Histogram,
        "From the first byte of the request to the last of the response.",
    ),
    (
        "cortex_api_request_first_byte_seconds",
        Histogram,
        "From the first byte of the request to the first of the response.",
    ),
    ("cortex_api_request_queue_seconds", Histogram, "From accepting a request to its prediction."),
    ("cortex_api_in_flight_requests", Gauge, "Requests being served."),
    ("cortex_api_in_flight_requests_peak", Gauge, "The most requests being served at once since the last record."),
    ("cortex_api_replica_start_timestamp_seconds", Gauge, "When the replica started, in seconds since the Unix epoch."),
    ("cortex_api_replicas_requested", Gauge, "How many replicas the operator asked for."),
    (
        "cortex_api_process_cpu_seconds_total",
        Counter,
        "Processor time that the processes of a replica took, in user and in system mode.",
    ),
    ("cortex_api_process_resident_memory_bytes", Gauge, "Memory that a process of a replica holds."),
    ("cortex_api_info", Gauge, "1; where the API answers is in its labels."),
    ("cortex_client_calls_total", Counter, "Calls of increment, gauge and histogram, as the clients counted them."),
    ("cortex_client_dropped_total", Counter, "Calls that clients dropped, by reason."),
    ("cortex_collector_datagrams_total", Counter, "Datagrams received."),
    ("cortex_collector_messages_total", Counter, "Messages received, dropped ones included."),
    ("cortex_collector_events_total", Counter, "Events received. They are not kept."),
    ("cortex_collector_service_checks_total", Counter, "Service checks received. They are not kept."),
    ("cortex_collector_ignored_total", Counter, "Parts of messages that were passed over, by part."),
    ("cortex_collector_dropped_total", Counter, "Messages dropped, by reason."),
    (
        "cortex_collector_kernel_drops_total",
        Counter,
        "Datagrams that the kernel dropped since the receive buffer was full, by socket.",
    ),
    (
        "cortex_collector_overflow_total",
        Counter,
        "Messages of series beyond a limit, added to one with cortex_overflow=\"true\".",
    ),
    ("cortex_collector_payloads_missing_total", Counter, "Payloads that clients numbered and that never came."),
    ("cortex_collector_tags_dropped_total", Counter, "Tags without a key, or whose label an earlier tag had."),
    ("cortex_collector_commit_failures_total", Counter, "Ticks that the store refused at first."),
    ("cortex_collector_store_damaged_files_total", Counter, "Files of the store that were damaged and set aside."),
    ("cortex_collector_remote_write_samples_total", Counter, "Samples that came by remote write and were stored."),
    (
        "cortex_collector_remote_write_refused_total",
        Counter,
        "Samples that came by remote write and were refused, by reason.",
    ),
    ("cortex_collector_series", Gauge, "Series in memory."),
    ("cortex_collector_store_size_bytes", Gauge, "Size of the store on disk."),
    ("process_cpu_seconds_total", Counter, "Processor time that the process took, in user and in system mode."),
    ("process_open_fds", Gauge, "Open file descriptors."),
    ("process_resident_memory_bytes", Gauge, "Memory that the process holds."),
    ("process_start_time_seconds", Gauge, "When the process started, in seconds since the Unix epoch."),
    ("process_virtual_memory_bytes", Gauge, "Address space that the process has taken."),
    ("cortex_client_payload_sequence", Gauge, "The number of a client's newest payload."),
];

fn find(name: &str) -> Option<(MetricKind, &'static str)> {
    OWN.iter().find(|(own, ..)| *own == name).map(|(_, kind, help)| (*kind, *help))
}

/// The meaning of `name`, `None` if it is not ours.
pub fn help(name: &str) -> Option<&'static str> {
    find(name).map(|(_, help)| help)
}

/// The type of `name` if it is one that this project gave. (`process_…` are everybody's.)
pub fn own_kind(name: &str) -> Option<MetricKind> {
    name.starts_with("cortex_").then(|| find(name)).flatten().map(|(kind, _)| kind)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_name_that_our_python_sends_has_help() {
        // Two came without: promtool complained of our own series.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/cortex_metrics");
        let sources = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let sources = sources.filter(|path| path.extension().is_some_and(|extension| extension == "py"));
        let name = regex::Regex::new(r#""(cortex_(?:api|client)_[a-z_]+)""#).unwrap();
        let names: BTreeSet<String> = sources
            .flat_map(|path| {
                let text = std::fs::read_to_string(path).unwrap();
                name.captures_iter(&text).map(|found| found[1].to_owned()).collect::<Vec<_>>()
            })
            .collect();
        assert!(names.contains("cortex_api_requests_total"), "{names:?}");
        let without: Vec<_> = names.iter().filter(|name| help(name).is_none()).collect();
        assert_eq!(without, [""; 0]);
    }
}
