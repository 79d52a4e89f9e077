//! Environments: names for query URLs, kept in a file of the user's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, io};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// The collector on this machine: there without being added.
pub(super) const LOCAL: &str = "local";
const LOCAL_URL: &str = "http://127.0.0.1:9102";

/// One environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Environment {
    /// Where `/api/v1/query` is: a collector, or a Prometheus, Mimir, Thanos or VictoriaMetrics.
    pub(super) url: String,
    /// A Grafana dashboard with the variable `api_name`; without it the collector's own page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dashboard_url: Option<String>,
}

/// All environments by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Environments {
    #[serde(default, rename = "environment")]
    by_name: BTreeMap<String, Environment>,
}

/// `environments.toml` in `$CORTEX_CONFIG_DIR`, or in `cortex-metrics` under `$XDG_CONFIG_HOME` or `~/.config`.
fn path() -> anyhow::Result<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = var("CORTEX_CONFIG_DIR")
        .or_else(|| Some(var("XDG_CONFIG_HOME").filter(|path| path.is_absolute())?.join("cortex-metrics")))
        .or_else(|| Some(var("HOME")?.join(".config/cortex-metrics")))
        .context("neither CORTEX_CONFIG_DIR nor XDG_CONFIG_HOME nor HOME is set: nowhere to look for environments")?;
    Ok(dir.join("environments.toml"))
}

impl Environments {
    /// Reads the file; a missing one has none but `local`.
    pub(super) fn load() -> anyhow::Result<Self> {
        let path = path()?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut environments: Self =
            toml::from_str(&text).with_context(|| format!("{}: mend or remove it", path.display()))?;
        let local = || Environment { url: LOCAL_URL.to_owned(), dashboard_url: None };
        environments.by_name.entry(LOCAL.to_owned()).or_insert_with(local);
        Ok(environments)
    }

    /// Writes the file: whole or not at all.
    pub(super) fn save(&self) -> anyhow::Result<()> {
        let path = path()?;
        let failed = || format!("cannot write {}", path.display());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(failed)?;
        }
        let new = path.with_extension(format!("toml.{}", std::process::id()));
        fs::write(&new, toml::to_string(self)?).with_context(failed)?;
        fs::rename(&new, &path).with_context(failed)
    }

    /// Each environment with its name, sorted.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Environment)> {
        self.by_name.iter().map(|(name, environment)| (name.as_str(), environment))
    }

    /// The one that is named.
    pub(super) fn get(&self, name: &str) -> anyhow::Result<&Environment> {
        let Some(environment) = self.by_name.get(name) else {
            let names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
            bail!("environment: got {name:?}, want one of {}; `cortex env add {name} URL` adds it", names.join(", "));
        };
        Ok(environment)
    }

    /// Adds one, or gives one of that name new URLs.
    pub(super) fn add(&mut self, name: &str, url: &str, dashboard_url: Option<&str>) -> anyhow::Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(is_plain) {
            bail!("NAME: got {name:?}, want letters, digits, `-`, `_` and `.`");
        }
        let dashboard_url = dashboard_url.map(|url| checked_url("--dashboard-url", url)).transpose()?;
        self.by_name.insert(name.to_owned(), Environment { url: checked_url("URL", url)?, dashboard_url });
        Ok(())
    }

    /// Removes one. False if there is none of that name.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.by_name.remove(name).is_some()
    }
}

fn checked_url(what: &str, url: &str) -> anyhow::Result<String> {
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    if host.is_none_or(|rest| rest.is_empty() || rest.starts_with('/') || rest.contains(char::is_whitespace)) {
        bail!("{what}: got {url:?}, want http://HOST[:PORT][/PATH] or https://…");
    }
    Ok(url.trim_end_matches('/').to_owned())
}
