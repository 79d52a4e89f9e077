//! The flusher: a thread that takes what has accumulated, packs it into payloads and sends them.
//!
//! After a refusal it stops for this flush: what was not sent stays in the backlog, where the next flush merges with it, and
//! the first payload of that is the probe; once it passes, the rest follows. The thread never touches Python.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::account::{DropReason, Outcome};
use super::backlog::{Backlog, Piece};
use super::task::Task;
use super::transport::Transport;
use super::{Shared, lock};
use crate::dogstatsd::{Header, Payload};

/// A client that has nothing to send says at least so often that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// So many payloads leave in one go; then the receiver gets a moment to empty its buffer.
const BURST_PAYLOADS: usize = 32;
/// That moment.
const BURST_PAUSE: Duration = Duration::from_millis(1);
/// How long a fork waits for a look-up, counted from its start.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(100);
/// How long it may take on a busy machine until the thread has its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
/// So many contexts leave the table under one lock.
const EVICTIONS_PER_LOCK: usize = 64;

enum Control {
    Flush(Sender<Progress>),
    Stop(Sender<Progress>),
    /// End without sending anything, to be started again: answered with what the system calls the thread.
    Park(Sender<Task>),
}

/// What the thread answers to whoever waits for a flush.
enum Progress {
    Begun,
    Done(Task),
}

/// A flush that was asked for.
pub(super) struct Awaited(Receiver<Progress>);

impl Awaited {
    /// Waits until it is done, at most `timeout` from its beginning: on a busy machine the thread may get its turn late,
    /// which says nothing about the network. With no `timeout` at all nobody waits.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        self.task(timeout).is_some()
    }

    fn task(&self, timeout: Duration) -> Option<Task> {
        let turn = if timeout.is_zero() { timeout } else { TURN_TIMEOUT };
        match self.0.recv_timeout(turn).ok()? {
            Progress::Done(task) => Some(task),
            Progress::Begun => match self.0.recv_timeout(timeout).ok()? {
                Progress::Done(task) => Some(task),
                Progress::Begun => None,
            },
        }
    }
}

/// The handle on the thread. Dropping it makes the thread flush once more and end.
#[derive(Debug)]
pub(super) struct Flusher<K> {
    running: Option<Running>,
    /// What the thread works with, while there is none: only around a fork.
    parked: Arc<Mutex<Option<Worker<K>>>>,
}

#[derive(Debug)]
struct Running {
    control: Sender<Control>,
    thread: JoinHandle<()>,
}

impl<K: Send + 'static> Flusher<K> {
    /// Starts the thread.
    pub(super) fn start(shared: Arc<Shared<K>>) -> io::Result<Self> {
        let mut flusher = Self { running: None, parked: Arc::new(Mutex::new(Some(Worker::new(shared)?))) };
        flusher.resume()?;
        Ok(flusher)
    }

    /// Asks for a flush now; the receiver hears when it is done.
    pub(super) fn flush(&mut self) -> Awaited {
        self.ask(Control::Flush)
    }

    /// Asks for the last flush, which the table's owner has given a deadline, and waits for it, at most `timeout`. True if
    /// it was done in time; then the thread is gone. If not, the thread loses and counts what is left as soon as it can.
    pub(super) fn stop(mut self, timeout: Duration) -> bool {
        let Some(task) = self.ask(Control::Stop).task(timeout) else { return false };
        if let Some(running) = self.running.take() {
            let _ = running.thread.join();
        }
        task.wait_until_gone();
        true
    }

    /// Starts the thread again if it is parked.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let (control, inbox) = unbounded();
        let parked = Arc::clone(&self.parked);
        let thread = thread::Builder::new().name("cortex-flusher".into()).spawn(move || {
            let worker = lock(&parked).take();
            if let Some(worker) = worker {
                *lock(&parked) = worker.run(&inbox);
            }
        })?;
        self.running = Some(Running { control, thread });
        Ok(())
    }

    /// Ends the thread for a while, unless it is at work for longer than `timeout`. After that the system does not count
    /// it among the threads of this process any more.
    pub(super) fn park(&mut self, timeout: Duration) {
        let Some(running) = &self.running else { return };
        // Handed over in person: if nobody waits any longer, the thread goes on.
        let (done, parked) = bounded(0);
        let _ = running.control.send(Control::Park(done));
        let Ok(task) = parked.recv_timeout(timeout) else { return };
        let Some(running) = self.running.take() else { return };
        let _ = running.thread.join();
        task.wait_until_gone();
    }

    fn ask(&mut self, control: impl FnOnce(Sender<Progress>) -> Control) -> Awaited {
        // Room for both answers: the thread never waits for whoever asked.
        let (progress, awaited) = bounded(2);
        // A thread that has ended hears nothing; the receiver then finds its channel closed.
        if let (Ok(()), Some(running)) = (self.resume(), &self.running) {
            let _ = running.control.send(control(progress));
        }
        Awaited(awaited)
    }
}

#[derive(Debug)]
struct Worker<K> {
    shared: Arc<Shared<K>>,
    backlog: Backlog,
    transport: Transport,
    header: Option<Header>,
    datagram: Vec<u8>,
    /// What is not in the account yet.
    outcome: Outcome,
    /// The calls in the payload that left last, in case it is refused late.
    last_calls: u64,
    /// When a payload was last given to the transport, refused or not.
    last_tried: Instant,
    is_refused: bool,
    /// When the next flush is due.
    next: Instant,
    /// When the flush before had ended.
    idle: Instant,
    /// When the last flush began, if there was nothing to do when it was asked for.
    began_last: Option<Instant>,
}

impl<K> Worker<K> {
    fn new(shared: Arc<Shared<K>>) -> io::Result<Self> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let header = Header { client_id: u64::from_le_bytes(id), sequence: 0 };
        Ok(Self {
            backlog: Backlog::new(shared.config.contexts_max),
            transport: Transport::new(shared.config.endpoint.clone()),
            header: shared.config.telemetry.then_some(header),
            datagram: Vec::new(),
            outcome: Outcome::default(),
            last_calls: 0,
            last_tried: Instant::now(),
            is_refused: false,
            next: Instant::now() + shared.config.flush_interval,
            idle: Instant::now(),
            began_last: None,
            shared,
        })
    }

    /// Gives itself back if it is parked.
    fn run(mut self, inbox: &Receiver<Control>) -> Option<Self> {
        loop {
            match inbox.recv_deadline(self.next.min(self.next_heartbeat())) {
                Ok(Control::Flush(progress)) => {
                    let _ = progress.send(Progress::Begun);
                    self.flush();
                    let _ = progress.send(Progress::Done(Task::current()));
                    continue;
                }
                Ok(Control::Stop(progress)) => {
                    let _ = progress.send(Progress::Begun);
                    self.end();
                    let _ = progress.send(Progress::Done(Task::current()));
                    return None;
                }
                Ok(Control::Park(done)) => {
                    self.transport.settle(LOOKUP_TIMEOUT);
                    if done.send(Task::current()).is_ok() {
                        return Some(self);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < self.next => {
                    self.send_heartbeat();
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.end();
                    return None;
                }
            }
            // A flush that took longer than the interval is not followed by a rush of late ones.
            self.next = (self.next + self.shared.config.flush_interval).max(Instant::now());
        }
    }

    /// When nobody waits any longer for what has not been sent, once the client is closed. A thread that had nothing to do
    /// then, and got its turn late on a busy machine, has all of the time that is waited.
    fn deadline(&self) -> Option<Instant> {
        self.shared.closing.get().map(|(since, timeout)| self.began_last.unwrap_or(*since) + *timeout)
    }

    /// The last flush. What it cannot send until the deadline is lost.
    fn end(&mut self) {
        self.began_last = self.shared.closing.get().filter(|(since, _)| self.idle <= *since).map(|_| Instant::now());
        self.flush();
        self.transport.settle(Duration::ZERO);
        self.shared.lose_all();
    }

    /// When the next sign of life is due; far away if this client does not name itself.
    fn next_heartbeat(&self) -> Instant {
        if self.header.is_some() { self.last_tried + HEARTBEAT } else { Instant::now() + 10 * HEARTBEAT }
    }

    /// Sends the header alone.
    fn send_heartbeat(&mut self) {
        self.send(&[], &[]);
        self.settle();
    }

    fn settle(&mut self) {
        let outcome = std::mem::take(&mut self.outcome);
        self.shared.table_of_flusher().settle(&outcome);
    }

    fn flush(&mut self) {
        self.transport.begin_flush();
        self.take();
        self.send_backlog();
        self.settle();
        let is_crowded = self.shared.table_of_flusher().is_crowded();
        for slots in self.backlog.resting(is_crowded).chunks(EVICTIONS_PER_LOCK) {
            let left = self.shared.table_of_flusher().evict(slots);
            self.backlog.forget(&left);
        }
        self.idle = Instant::now();
    }

    /// Moves what has accumulated into the backlog.
    fn take(&mut self) {
        let spare = std::mem::take(&mut self.backlog.spare);
        let (cells, news) = {
            let mut table = self.shared.table_of_flusher();
            if self.header.is_some() {
                table.add_report(&self.shared.config.api_name);
            }
            table.take(spare)
        };
        for loss in self.backlog.add(cells, news) {
            self.outcome.lose(loss.reason, loss.calls);
            let (name, reason) = (&loss.context.name, loss.reason.as_str());
            if self.shared.table_of_flusher().is_first_warning(&format!("{reason} {name}")) {
                let count = loss.calls;
                self.shared.notice(format!("metric {name:?}: {count} calls that were held are lost ({reason})"));
            }
        }
    }

    fn send_backlog(&mut self) {
        let line_bytes_max = self.shared.config.lines_bytes_max();
        let mut payload = Payload::new(line_bytes_max);
        let mut queue: VecDeque<Piece> = VecDeque::new();
        let mut line = Vec::new();
        let mut next_slot = 0;
        let mut sent = 0;
        loop {
            payload.clear();
            let mut batch = Vec::new();
            loop {
                if queue.is_empty() {
                    match self.backlog.take_next(next_slot, line_bytes_max, |piece| queue.push_back(piece)) {
                        Some(next) => next_slot = next,
                        None => break,
                    }
                }
                let Some(piece) = queue.front() else { continue };
                line.clear();
                piece.encode(&mut line);
                if !payload.push(&line) {
                    break;
                }
                batch.extend(queue.pop_front());
            }
            if batch.is_empty() {
                // No context is so long that its line fits into no payload; should one be, it must not stop the others.
                let Some(piece) = queue.pop_front() else { return };
                self.outcome.lose(DropReason::TooLong, piece.calls);
                continue;
            }
            let is_late = self.deadline().is_some_and(|deadline| Instant::now() >= deadline);
            if is_late || !self.send(payload.bytes(), &batch) {
                self.backlog.restore(batch.into_iter().chain(queue));
                return;
            }
            sent += 1;
            if sent % BURST_PAYLOADS == 0 {
                thread::sleep(BURST_PAUSE);
            }
        }
    }

    /// Sends one payload with its header. False if it was refused and what it held is to be kept.
    fn send(&mut self, lines: &[u8], batch: &[Piece]) -> bool {
        self.datagram.clear();
        // A refused payload gives its number to the next, so that the collector misses only what was taken and never came.
        let header = self.header.map(|header| Header { sequence: header.sequence + 1, ..header });
        if let Some(header) = header {
            header.encode(&mut self.datagram);
        }
        self.datagram.extend_from_slice(lines);
        self.last_tried = Instant::now();
        match self.transport.send(&self.datagram) {
            Ok(()) => {
                self.header = header;
                self.last_calls = batch.iter().map(|piece| piece.calls).sum();
                self.outcome.sent += self.last_calls;
                self.outcome.payloads_sent += 1;
                if std::mem::take(&mut self.is_refused) {
                    self.shared
                        .notice(format!("{} takes metrics again: what was held is sent", self.transport.endpoint()));
                }
                true
            }
            Err(refusal) if refusal.is_too_long() => {
                let calls = batch.iter().map(|piece| piece.calls).sum();
                self.outcome.lose(DropReason::TooLong, calls);
                true
            }
            Err(refusal) => {
                self.outcome.payloads_refused += 1;
                if refusal.is_late {
                    self.outcome.refused_late += std::mem::take(&mut self.last_calls);
                }
                if !std::mem::replace(&mut self.is_refused, true) {
                    self.shared.notice(format!(
                        "{} does not take metrics ({}): they are held, merged, and sent when it does; is cortex-collector running there?",
                        self.transport.endpoint(),
                        refusal.error
                    ));
                }
                false
            }
        }
    }
}
