//! A thread that panics and is needed ends the program; another one costs itself.
#![cfg(feature = "collector")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::thread;

use cortex_metrics::telemetry::{EXIT_FAILED, end_if_a_thread_panics};

const NAME: &str = "PANIC_IN_THREAD";

/// The child: a thread of the given name panics.
#[test]
fn child_has_a_thread_that_panics() {
    let Ok(name) = std::env::var(NAME) else { return };
    end_if_a_thread_panics("cortex-");
    let panicked = thread::Builder::new().name(name).spawn(|| panic!("as the test wants it")).unwrap().join();
    assert!(panicked.is_err());
}

#[test]
fn a_thread_that_is_needed_ends_the_program_when_it_panics() {
    let end = |name: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_has_a_thread_that_panics"])
            .env(NAME, name)
            .output()
            .unwrap()
            .status
            .code()
    };
    assert_eq!(end("cortex-listener"), Some(EXIT_FAILED));
    assert_eq!(end("tokio-rt-worker"), Some(0));
}
