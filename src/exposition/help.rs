//! What the names that are ours mean, for `# HELP`.

const HELP: [(&str, &str); 33] = [
    ("cortex_api_requests_total", "Finished requests by response code."),
    ("cortex_api_request_duration_seconds", "From the first byte of the request to the last of the response."),
    ("cortex_api_request_first_byte_seconds", "From the first byte of the request to the first of the response."),
    ("cortex_api_in_flight_requests", "Requests being served."),
    ("cortex_api_in_flight_requests_peak", "The most requests being served at once since the last record."),
    ("cortex_api_replica_start_timestamp_seconds", "When the replica started, in seconds since the Unix epoch."),
    ("cortex_api_replicas_requested", "How many replicas the operator asked for."),
    ("cortex_api_info", "1; where the API answers is in its labels."),
    ("cortex_client_calls_total", "Calls of increment, gauge and histogram, as the clients counted them."),
    ("cortex_client_dropped_total", "Calls that clients dropped, by reason."),
    ("cortex_collector_datagrams_total", "Datagrams received."),
    ("cortex_collector_messages_total", "Messages received, dropped ones included."),
    ("cortex_collector_events_total", "Events received. They are not kept."),
    ("cortex_collector_service_checks_total", "Service checks received. They are not kept."),
    ("cortex_collector_ignored_total", "Parts of messages that were passed over, by part."),
    ("cortex_collector_dropped_total", "Messages dropped, by reason."),
    (
        "cortex_collector_kernel_drops_total",
        "Datagrams that the kernel dropped since the receive buffer was full, by socket.",
    ),
    (
        "cortex_collector_overflow_total",
        "Messages of series beyond a limit, added to one with cortex_overflow=\"true\".",
    ),
    ("cortex_collector_payloads_missing_total", "Payloads that clients numbered and that never came."),
    ("cortex_collector_tags_dropped_total", "Tags without a key, or whose label an earlier tag had."),
    ("cortex_collector_commit_failures_total", "Ticks that the store refused at first."),
    ("cortex_collector_store_damaged_files_total", "Files of the store that were damaged and set aside."),
    ("cortex_collector_remote_write_samples_total", "Samples that came by remote write and were stored."),
    ("cortex_collector_remote_write_refused_total", "Samples that came by remote write and were refused, by reason."),
    ("cortex_collector_series", "Series in memory."),
    ("cortex_collector_store_size_bytes", "Size of the store on disk."),
    ("cortex_api_request_queue_seconds", "From accepting a request to its prediction."),
    ("process_cpu_seconds_total", "Processor time that the process took, in user and in system mode."),
    ("process_open_fds", "Open file descriptors."),
    ("process_resident_memory_bytes", "Memory that the process holds."),
    ("process_start_time_seconds", "When the process started, in seconds since the Unix epoch."),
    ("process_virtual_memory_bytes", "Address space that the process has taken."),
    ("cortex_client_payload_sequence", "The number of a client's newest payload."),
];

/// The meaning of `name`, `None` if it is not ours.
pub fn help(name: &str) -> Option<&'static str> {
    HELP.iter().find(|(own, _)| *own == name).map(|(_, help)| *help)
}
