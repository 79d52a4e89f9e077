//! Other servers that ours is measured beside, where they are: no registry has them.

use std::path::PathBuf;

/// The path that the variable has, or where on the `PATH` a program of one of these names is.
fn program(variable: &str, names: &[&str]) -> Option<PathBuf> {
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .flat_map(|folder| names.iter().map(move |name| folder.join(name)).collect::<Vec<_>>())
            .find(|program| program.is_file())
    };
    std::env::var_os(variable).map(PathBuf::from).or_else(on_path)
}

/// Prometheus's, in Go.
pub(crate) fn statsd_exporter() -> Option<PathBuf> {
    program("STATSD_EXPORTER", &["statsd_exporter", "prometheus-statsd-exporter"])
}

/// GitHub's, in C.
#[allow(dead_code)] // it has no /metrics
pub(crate) fn brubeck() -> Option<PathBuf> {
    program("BRUBECK", &["brubeck"])
}
