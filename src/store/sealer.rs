//! The sealer: a thread that brings complete windows into the files of their days, and says when it is done. What it cannot
//! write stays in memory and in the log, and is tried again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::StoreError;
use super::day::Day;
use super::shared::Shared;
use super::window::{Level, OpenWindow, Sealable, SealedWindow, sealables};

/// After a failure the next attempt comes so much later.
const RETRY: Duration = Duration::from_secs(2);
/// While it waits it looks so often whether the store is closed.
const LOOK: Duration = Duration::from_millis(20);

/// Windows that are complete, and with them all of the log up to `up_to`.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) windows: Vec<Arc<OpenWindow>>,
    pub(super) up_to: u64,
}

/// What is in the files now.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) levels: Vec<Level>,
    pub(super) up_to: u64,
}

/// The thread. It ends when this is dropped; what it had not done by then is still in the log.
#[derive(Debug)]
pub(super) struct Sealer {
    jobs: Option<Sender<Job>>,
    pub(super) done: Receiver<Done>,
    is_closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sealer {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (jobs, todo) = unbounded::<Job>();
        let (tell, done) = unbounded();
        let is_closed = Arc::new(AtomicBool::new(false));
        let closed = Arc::clone(&is_closed);
        let thread = thread::Builder::new().name("cortex-sealer".into()).spawn(move || {
            while let Ok(job) = todo.recv() {
                // Relaxed: whoever closes the store waits for this thread. What is not done is in the log.
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                let Some(levels) = seal(&shared, &job, &closed) else { return };
                if tell.send(Done { levels, up_to: job.up_to }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), done, is_closed, thread: Some(thread) })
    }

    pub(super) fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends after this sender only.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes all windows of a job, however many attempts it takes; `None` if the store was closed meanwhile.
fn seal(shared: &Shared, job: &Job, is_closed: &AtomicBool) -> Option<Vec<Level>> {
    let mut levels = Vec::new();
    for window in &job.windows {
        let Some((parts, of_window)) = sealables(window) else {
            let what = format!("the window from entry {} of the log on cannot be read back", window.first_sequence);
            tracing::error!(what, "this is a mistake in the program: nothing more is sealed, the log keeps what comes");
            shared.set_sealing_error(Some(what));
            return None;
        };
        levels.extend(of_window);
        let mut sealed = Vec::new();
        for part in &parts {
            // Of samples that were written there may be a part for each day of a century.
            if is_closed.load(Ordering::Relaxed) {
                return None;
            }
            loop {
                match append(shared, part) {
                    Ok(window) => {
                        sealed.push(Arc::new(window));
                        break;
                    }
                    Err(error) => {
                        if shared.set_sealing_error(Some(error.to_string())).is_none() {
                            tracing::error!(%error, "a window could not be sealed: it is kept, and tried again");
                        }
                        let until = Instant::now() + RETRY;
                        while Instant::now() < until {
                            // Relaxed: it is looked at again soon.
                            if is_closed.load(Ordering::Relaxed) {
                                return None;
                            }
                            thread::sleep(LOOK);
                        }
                    }
                }
            }
        }
        if shared.set_sealing_error(None).is_some() {
            tracing::info!("the store seals windows again");
        }
        sealed.iter().for_each(|window| shared.forget_day(window.day));
        let mut windows = shared.windows.write();
        windows.sealing.retain(|other| !Arc::ptr_eq(other, window));
        windows.sealed.extend(sealed);
        windows.sort();
    }
    Some(levels)
}

fn append(shared: &Shared, part: &Sealable) -> Result<SealedWindow, StoreError> {
    let _writing = shared.writing();
    let day = part.window.day;
    let write = || {
        let file = Day::open(&shared.dir, day)?;
        shared.remove_unsealed(&file)?;
        file.append(&part.window, &part.chunks, |id| shared.row(id))
    };
    match write() {
        Err(StoreError::Damaged { what, .. }) => {
            shared.salvage(day, &what)?;
            write()
        }
        done => done,
    }
}
