//! What the operating system says of the process, under the names that Prometheus's client libraries use for it.

use crate::model::{Labels, METRIC_NAME, MetricKind, PublishedSeries, Snapshot, Value};

/// Adds the figures of this process as they are now. Where there is no `/proc`, there are none.
pub fn insert_process(snapshot: &mut Snapshot) {
    for (name, kind, value) in figures() {
        let labels = Labels::from_pairs([(METRIC_NAME, name)]);
        snapshot.insert(kind, PublishedSeries { labels, start_ms: None, value: Value::Float(value) });
    }
    snapshot.settle();
}

#[cfg(target_os = "linux")]
fn figures() -> Vec<(&'static str, MetricKind, f64)> {
    use MetricKind::{Counter, Gauge};
    use procfs::WithCurrentSystemInfo as _;

    let mut figures = Vec::new();
    let Ok(process) = procfs::process::Process::myself() else { return figures };
    if let Ok(stat) = process.stat() {
        let ticks_per_second = procfs::ticks_per_second() as f64;
        figures.extend([
            ("process_cpu_seconds_total", Counter, (stat.utime + stat.stime) as f64 / ticks_per_second),
            ("process_resident_memory_bytes", Gauge, stat.rss_bytes().get() as f64),
            ("process_virtual_memory_bytes", Gauge, stat.vsize as f64),
        ]);
        if let Ok(boot_seconds) = procfs::boot_time_secs() {
            let start_seconds = boot_seconds as f64 + stat.starttime as f64 / ticks_per_second;
            figures.push(("process_start_time_seconds", Gauge, start_seconds));
        }
    }
    if let Ok(count) = process.fd_count() {
        figures.push(("process_open_fds", Gauge, count as f64));
    }
    figures
}

#[cfg(not(target_os = "linux"))]
fn figures() -> Vec<(&'static str, MetricKind, f64)> {
    Vec::new()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_figures_are_those_of_this_process() {
        let mut snapshot = Snapshot::default();
        insert_process(&mut snapshot);
        let figure = |name: &str| snapshot.series(name).next().unwrap().value.as_float().unwrap();
        let _more: Vec<_> = (0..50).map(|_| std::fs::File::open("/proc/self/stat").unwrap()).collect();
        let mut later = Snapshot::default();
        insert_process(&mut later);
        let open = later.series("process_open_fds").next().unwrap().value.as_float().unwrap();
        assert!(open >= 50.0, "{open}");
        assert!(figure("process_cpu_seconds_total") >= 0.0);
        assert!((1e5..1e12).contains(&figure("process_resident_memory_bytes")));
        assert!(figure("process_virtual_memory_bytes") >= figure("process_resident_memory_bytes"));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 86_400.0..now + 2.0).contains(&figure("process_start_time_seconds")));
    }
}
