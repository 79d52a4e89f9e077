//! What the programs say of themselves is what the README and the docs show: it changes on purpose only.
//! `UPDATE_FIXTURES=1 cargo test --test help` writes the files anew.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;

fn check(fixture: &str, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    // What the shell around the test has set shows up in the help of the flags.
    command.args(arguments).env_clear().env("COLUMNS", "100");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let got = String::from_utf8(output.stdout).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/help").join(fixture);
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &got).unwrap();
    }
    assert_eq!(got, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
}

#[test]
fn the_help_texts_are_as_they_were() {
    let cortex = env!("CARGO_BIN_EXE_cortex");
    check("cortex.txt", cortex, &["--help"]);
    check("cortex-get.txt", cortex, &["get", "--help"]);
    check("cortex-query.txt", cortex, &["query", "--help"]);
    check("cortex-top.txt", cortex, &["top", "--help"]);
    check("cortex-doctor.txt", cortex, &["doctor", "--help"]);
    check("cortex-env.txt", cortex, &["env", "--help"]);
    check("cortex-env-add.txt", cortex, &["env", "add", "--help"]);
    let collector = env!("CARGO_BIN_EXE_cortex-collector");
    check("cortex-collector.txt", collector, &["--help"]);
    check("cortex-collector-backup.txt", collector, &["backup", "--help"]);
}

#[test]
fn every_flag_of_the_collector_is_in_the_page_on_operations() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let (_, table) = page.split_once("## All flags").unwrap();
    let help = std::fs::read_to_string(root.join("tests/fixtures/help/cortex-collector.txt")).unwrap();
    let flags: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--")?.split_whitespace().next())
        .filter(|flag| !["help", "version"].contains(flag))
        .collect();
    assert!(flags.len() > 20, "{flags:?}");
    let missing: Vec<_> = flags.iter().filter(|flag| !table.contains(&format!("`--{flag}"))).collect();
    assert_eq!(missing, [&""; 0]);
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    for (program, argument) in [
        (env!("CARGO_BIN_EXE_cortex"), "--nonsense"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--retention=never"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--interval=1ms"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--log-level=loud"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--query-timeout=0s"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--cors-origin=*"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--cors-origin=https://a.example/"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--query-max-samples=0"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--query-max-concurrency=0"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "backup"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--classic-buckets=2,1"),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--classic-buckets="),
        (env!("CARGO_BIN_EXE_cortex-collector"), "--receive-buffer=1KiB"),
    ] {
        assert_eq!(Command::new(program).arg(argument).output().unwrap().status.code(), Some(2), "{argument}");
    }
}
