//! Names: a host name becomes addresses on a thread of its own, since `getaddrinfo` may hang for as long as it likes.
//!
//! The thread lives for one look-up and owns all that it needs. Nobody joins it: a client that is closed or dropped in the
//! meantime only leaves nobody to answer to, and a child process, which has a new client anyway, never hears of it.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::fork::between_forks;
use super::task::Task;

/// A name is looked up anew so often, in case that it has moved without a refusal.
const REFRESH: Duration = Duration::from_secs(30);
/// After a failure or a refusal the next look-up starts no sooner than this after the last, doubled each time up to the
/// maximum, which leaves a client that flushes every second to look once in each flush.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_millis(800);
/// How long the flusher waits for a look-up, counted from its start: most take less, and one that hangs costs this once.
const PATIENCE: Duration = Duration::from_millis(40);

type Addresses = io::Result<Vec<SocketAddr>>;
/// `getaddrinfo`, or what a test has in its place.
type Resolve = dyn Fn(&str, u16) -> Addresses + Send + Sync;

/// What looks a name up, and how often: a test passes its own.
pub(super) struct Lookup {
    pub(super) resolve: Arc<Resolve>,
    pub(super) refresh: Duration,
    pub(super) retry_min: Duration,
    pub(super) patience: Duration,
}

impl Default for Lookup {
    fn default() -> Self {
        Self {
            resolve: Arc::new(|host, port| Ok((host, port).to_socket_addrs()?.collect())),
            refresh: REFRESH,
            retry_min: RETRY_MIN,
            patience: PATIENCE,
        }
    }
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookup").field("refresh", &self.refresh).finish_non_exhaustive()
    }
}

/// The addresses of a host, or of an address that needs no look-up.
#[derive(Debug)]
pub(super) struct Resolver {
    host: String,
    port: u16,
    lookup: Lookup,
    /// The last known ones: they stay in use while later look-ups fail.
    addresses: Vec<SocketAddr>,
    /// Why there are none.
    error: Option<String>,
    /// The look-up under way.
    pending: Option<Receiver<(Addresses, Task)>>,
    /// The thread of the last look-up that has answered: it is about to end.
    answered: Option<Task>,
    /// When the last look-up started; `None` before the first.
    started: Option<Instant>,
    /// How long after that the next is due. `None`: never, the host is an address.
    interval: Option<Duration>,
    /// Look-ups since the last payload that was taken.
    retries: u32,
}

impl Resolver {
    /// Starts the first look-up, if `host` is no address.
    pub(super) fn new(host: &str, port: u16, lookup: Lookup) -> Self {
        let literal = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        let mut resolver = Self {
            host: host.to_owned(),
            port,
            interval: literal.is_none().then_some(Duration::ZERO),
            addresses: literal.into_iter().collect(),
            error: None,
            pending: None,
            answered: None,
            started: None,
            retries: 0,
            lookup,
        };
        resolver.refresh();
        resolver
    }

    /// What the name is known to stand for; empty until the first look-up has succeeded. Starts a look-up that is due.
    pub(super) fn addresses(&mut self) -> &[SocketAddr] {
        self.refresh();
        if self.addresses.is_empty() {
            self.wait(self.lookup.patience);
        }
        &self.addresses
    }

    /// Why there are no addresses.
    pub(super) fn error(&self) -> io::Error {
        let why = self.error.as_deref().unwrap_or("it is being looked up");
        io::Error::new(io::ErrorKind::NotFound, format!("host {}: {why}", self.host))
    }

    /// No address took a payload: the name may have moved. True if, after a short wait, it has other addresses now.
    pub(super) fn has_moved(&mut self) -> bool {
        if self.interval.is_none() {
            return false;
        }
        let before = self.addresses.clone();
        self.interval = self.interval.map(|interval| interval.min(self.backoff()));
        self.refresh();
        self.wait(self.lookup.patience);
        self.addresses != before
    }

    /// A payload was taken.
    pub(super) fn delivered(&mut self) {
        self.retries = 0;
    }

    /// Waits for the look-up under way, at most `patience` from its start, and then until the system does not count its
    /// thread any more.
    pub(super) fn settle(&mut self, patience: Duration) {
        self.wait(patience);
        if let Some(task) = self.answered.take() {
            task.wait_until_gone();
        }
    }

    /// Waits for the look-up under way, at most `patience` from its start.
    fn wait(&mut self, patience: Duration) {
        let (Some(pending), Some(started)) = (&self.pending, self.started) else { return };
        if let Ok((answer, task)) = pending.recv_deadline(started + patience) {
            self.answered = Some(task);
            self.take(answer);
        }
    }

    fn backoff(&self) -> Duration {
        (self.lookup.retry_min * 2u32.pow(self.retries.saturating_sub(1).min(16))).min(RETRY_MAX)
    }

    /// Takes the answer that has come, and starts the next look-up if it is due.
    fn refresh(&mut self) {
        if let Some(pending) = &self.pending {
            match pending.try_recv() {
                Ok((answer, task)) => {
                    self.answered = Some(task);
                    self.take(answer);
                }
                Err(crossbeam_channel::TryRecvError::Empty) => return,
                Err(crossbeam_channel::TryRecvError::Disconnected) => {
                    self.take(Err(io::Error::other("the look-up broke off")));
                }
            }
        }
        let now = Instant::now();
        let Some(interval) = self.interval else { return };
        if self.started.is_none_or(|started| now >= started + interval) {
            self.started = Some(now);
            self.start();
            self.retries = self.retries.saturating_add(1);
        }
    }

    fn start(&mut self) {
        let (answer, pending) = bounded(1);
        let (resolve, host, port) = (Arc::clone(&self.lookup.resolve), self.host.clone(), self.port);
        let spawned = thread::Builder::new().name("cortex-resolver".into()).spawn(move || {
            // Whoever asked may be gone.
            let _ = answer.send((between_forks(|| resolve(&host, port)), Task::current()));
        });
        match spawned {
            Ok(_) => self.pending = Some(pending),
            Err(error) => self.take(Err(error)),
        }
    }

    fn take(&mut self, answer: Addresses) {
        self.pending = None;
        let answer = answer.and_then(|addresses| {
            if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
        });
        match answer {
            Ok(addresses) => {
                self.addresses = addresses;
                self.error = None;
                self.interval = Some(self.lookup.refresh);
            }
            Err(error) => {
                self.error = Some(error.to_string());
                self.interval = Some(self.backoff());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Answers with what `answers` holds at the moment, and counts how often it was asked.
    fn lookup(answers: &Arc<Mutex<Vec<SocketAddr>>>, asked: &Arc<AtomicUsize>) -> Lookup {
        let (answers, asked) = (Arc::clone(answers), Arc::clone(asked));
        let resolve = move |_: &str, _| {
            asked.fetch_add(1, Ordering::Relaxed);
            let answers = answers.lock().unwrap().clone();
            if answers.is_empty() { Err(io::Error::other("no such host")) } else { Ok(answers) }
        };
        Lookup { resolve: Arc::new(resolve), refresh: LONG, retry_min: Duration::ZERO, patience: LONG }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_never_looked_up() {
        let asked = Arc::default();
        for (host, address) in [("127.0.0.1", "127.0.0.1:7"), ("::1", "[::1]:7")] {
            let mut resolver = Resolver::new(host, 7, lookup(&Arc::default(), &asked));
            assert_eq!(resolver.addresses(), [at(address)]);
            assert!(!resolver.has_moved());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_name_is_looked_up_once_until_it_is_due_or_refused_and_keeps_its_address_when_that_fails() {
        let answers = Arc::new(Mutex::new(vec![at("10.0.0.1:7")]));
        let asked = Arc::default();
        let mut resolver = Resolver::new("collector", 7, lookup(&answers, &asked));
        for _ in 0..10 {
            assert_eq!(resolver.addresses(), [at("10.0.0.1:7")]);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        answers.lock().unwrap().clear();
        assert!(!resolver.has_moved(), "a look-up that fails moves nothing");
        assert_eq!(resolver.addresses(), [at("10.0.0.1:7")]);
        *answers.lock().unwrap() = vec![at("10.0.0.2:7")];
        assert!(resolver.has_moved());
        assert_eq!(resolver.addresses(), [at("10.0.0.2:7")]);
    }

    #[test]
    fn a_name_that_is_due_is_looked_up_again() {
        let answers = Arc::new(Mutex::new(vec![at("10.0.0.1:7")]));
        let asked = Arc::default();
        let lookup = Lookup { refresh: Duration::ZERO, ..lookup(&answers, &asked) };
        let mut resolver = Resolver::new("collector", 7, lookup);
        resolver.addresses();
        *answers.lock().unwrap() = vec![at("10.0.0.2:7")];
        // Each of these starts the next look-up and takes the answer of the last.
        while resolver.addresses() != [at("10.0.0.2:7")] {
            resolver.wait(LONG);
        }
        assert!(asked.load(Ordering::Relaxed) >= 2);
    }

    #[test]
    fn a_look_up_that_hangs_keeps_nobody_and_starts_no_second_one() {
        let (let_go, hangs) = bounded::<()>(0);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let resolve = move |_: &str, _| {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = hangs.recv();
            Ok(vec![at("10.0.0.1:7")])
        };
        let lookup = Lookup {
            resolve: Arc::new(resolve),
            refresh: LONG,
            retry_min: Duration::ZERO,
            patience: Duration::from_millis(1),
        };
        let mut resolver = Resolver::new("collector", 7, lookup);
        for _ in 0..10 {
            assert!(resolver.addresses().is_empty());
            assert!(!resolver.has_moved());
        }
        assert!(resolver.error().to_string().contains("host collector: it is being looked up"));
        assert!(asked.load(Ordering::Relaxed) <= 1);
        drop(let_go);
        while resolver.addresses().is_empty() {
            thread::yield_now();
        }
        assert_eq!(resolver.addresses(), [at("10.0.0.1:7")]);
    }

    #[test]
    fn repeated_failures_are_retried_ever_more_rarely() {
        let mut resolver =
            Resolver::new("collector", 7, Lookup { retry_min: RETRY_MIN, ..lookup(&Arc::default(), &Arc::default()) });
        let mut waits = Vec::new();
        for _ in 0..6 {
            resolver.wait(LONG);
            waits.push(resolver.interval.unwrap().as_millis());
            resolver.started = None;
            resolver.refresh();
        }
        assert_eq!(waits, [100, 200, 400, 800, 800, 800]);
        resolver.wait(LONG);
        resolver.delivered();
        assert_eq!(resolver.backoff(), RETRY_MIN);
    }

    #[test]
    fn the_systems_own_look_up_knows_localhost() {
        let mut resolver = Resolver::new("localhost", 7, Lookup { patience: LONG, ..Lookup::default() });
        assert!(resolver.addresses().iter().all(|address| address.ip().is_loopback() && address.port() == 7));
        assert!(!resolver.addresses().is_empty());
    }
}
