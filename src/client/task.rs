//! What Linux calls a thread, to know when it is gone: a thread that was joined is counted for some microseconds more.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long that may take at most: should the thread not end, nobody waits for it.
const TIMEOUT: Duration = Duration::from_millis(100);

/// A thread as the system counts it. Nothing where there is no `/proc`.
#[derive(Debug)]
pub(super) struct Task(Option<PathBuf>);

impl Task {
    /// The thread that calls.
    pub(super) fn current() -> Self {
        // The link reads `PID/task/TID`.
        Self(std::fs::read_link("/proc/thread-self").ok().map(|task| Path::new("/proc").join(task)))
    }

    /// Waits until the thread, which is about to end, is counted no more.
    pub(super) fn wait_until_gone(&self) {
        let since = Instant::now();
        while self.0.as_ref().is_some_and(|task| task.exists()) && since.elapsed() < TIMEOUT {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_is_there_until_it_has_ended() {
        let task = thread::spawn(Task::current).join().unwrap();
        task.wait_until_gone();
        assert!(!task.0.unwrap().exists());
        assert!(Task::current().0.unwrap().exists());
    }
}
