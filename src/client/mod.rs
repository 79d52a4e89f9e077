//! The client: calls go into a table, a thread of its own sends what has gathered there.
//!
//! [`Client`] is what a process holds. A call ends in [`table`](Table): it finds its context, by the addresses of its
//! arguments if the [`memo`] knows them and by their text otherwise, and adds to that context's accumulator. Every flush
//! interval the flusher swaps what has accumulated for empty cells, which is all that calls can wait for, and merges it into
//! its [`backlog`]; from there it goes out in payloads, and there it stays while nobody takes it. No call waits for the
//! network, and no error of it comes back.
//!
//! # Fork
//!
//! All state lives in a `Core`. A child process starts with a new one: empty, with its own client id, socket and flusher.
//! It never touches the old core's locks or channels, since a thread that no longer exists may hold them.

mod account;
mod accumulator;
mod backlog;
mod config;
mod flusher;
mod fork;
mod memo;
mod resolver;
mod table;
mod task;
mod transport;
mod udp;
mod unix;

use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

pub use account::{Account, DropReason};
pub use config::{ClientConfig, Endpoint, MetricsUrlError};
pub use memo::Identity;
pub use table::{Kind, TagText, check_call};

use flusher::Flusher;
use fork::{generation, watch_forks};
use table::Table;

/// How long a client that is dropped without `close` waits for its last flush.
pub const DROP_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a fork waits for a flush that is under way: longer ones take thousands of contexts.
const PARK_TIMEOUT: Duration = Duration::from_millis(200);

/// How long the flusher waits before it tries again to get at the table: a call holds it for some 20 ns.
const LOCK_PAUSE: Duration = Duration::from_micros(50);

/// Sends metrics, for one process and its forks. All methods may be called from any thread.
///
/// `K` keeps alive the objects that [`Client::learn`] is told of.
#[derive(Debug)]
pub struct Client<K: Send + 'static = ()> {
    config: Arc<ClientConfig>,
    core: AtomicPtr<Core<K>>,
    closed: AtomicBool,
}

/// What belongs to one process: its table, its flusher.
#[derive(Debug)]
struct Core<K> {
    generation: u32,
    shared: Arc<Shared<K>>,
    /// Started by the first call, so that a process that only imports us, or forks at once, has no thread.
    flusher: Mutex<Option<Flusher<K>>>,
}

/// What calls and the flusher share.
#[derive(Debug)]
struct Shared<K> {
    config: Arc<ClientConfig>,
    /// Guards everything that a call changes. Held for one look-up, or for the swap of a flush; never for as long as
    /// there is something to do with what was taken.
    table: Mutex<Table<K>>,
    /// Sentences for the log, told by whoever next comes along from Python: the flusher itself never touches Python.
    notices: Mutex<Vec<String>>,
    /// True if there are notices. Relaxed suffices: the notices themselves are behind their lock.
    has_notices: AtomicBool,
    /// When `close` was called, and how long it waits from then on.
    closing: OnceLock<(Instant, Duration)>,
}

/// A lock whose holder panicked still guards a consistent table: every change to it is complete before anything can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K> Shared<K> {
    /// The table, for the flusher. It never sleeps on the lock: whoever frees a lock that someone sleeps on has to wake him,
    /// and a call would pay for that with microseconds, and with its processor if there is no other.
    fn table_of_flusher(&self) -> MutexGuard<'_, Table<K>> {
        let mut tries = 0;
        loop {
            match self.table.try_lock() {
                Ok(table) => return table,
                Err(TryLockError::Poisoned(table)) => return table.into_inner(),
                Err(TryLockError::WouldBlock) if tries < 100 => std::hint::spin_loop(),
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            }
            tries += 1;
        }
    }

    /// Ends the table: what it holds is lost, and told.
    fn lose_all(&self) {
        let lost = self.table_of_flusher().close(DropReason::Closed);
        if lost > 0 {
            let endpoint = &self.config.endpoint;
            self.notice(format!("closed before {endpoint} had taken all metrics: {lost} calls are lost"));
        }
    }

    fn notice(&self, text: String) {
        let mut notices = lock(&self.notices);
        // Whoever never calls again must not make this grow.
        if notices.len() < 100 {
            notices.push(text);
        }
        self.has_notices.store(true, Ordering::Relaxed);
    }
}

impl<K: Send + 'static> Core<K> {
    fn new(config: Arc<ClientConfig>, generation: u32) -> Self {
        let table = Mutex::new(Table::new(config.contexts_max, config.context_bytes_max()));
        let shared = Arc::new(Shared {
            config,
            table,
            notices: Mutex::default(),
            has_notices: AtomicBool::new(false),
            closing: OnceLock::new(),
        });
        Self { generation, shared, flusher: Mutex::new(None) }
    }

    fn start_flusher(&self) {
        let mut flusher = lock(&self.flusher);
        if flusher.is_none() {
            match Flusher::start(Arc::clone(&self.shared)) {
                Ok(started) => *flusher = Some(started),
                Err(error) => {
                    lock(&self.shared.table).no_flusher();
                    self.shared.notice(format!(
                        "no thread for sending metrics could be started: {error}; they are held and the next call tries again"
                    ));
                }
            }
        }
    }
}

impl<K: Send + 'static> Client<K> {
    /// A client that sends to `config.endpoint`. It opens nothing yet: the first call starts the flusher.
    pub fn new(config: ClientConfig) -> Self {
        watch_forks();
        let config = Arc::new(config);
        let core = Core::new(Arc::clone(&config), generation());
        Self { config, core: AtomicPtr::new(Box::into_raw(Box::new(core))), closed: AtomicBool::new(false) }
    }

    /// What the client was made with.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    #[allow(unsafe_code)]
    fn core(&self) -> &Core<K> {
        let core = self.core.load(Ordering::Acquire);
        // SAFETY: `core` came from Box::into_raw and is freed by Drop alone, which no borrow of `self` outlives: a core
        // that was replaced after a fork is never freed.
        let core: &Core<K> = unsafe { &*core };
        if core.generation == generation() { core } else { self.core_after_fork(core) }
    }

    #[cold]
    #[allow(unsafe_code)]
    fn core_after_fork(&self, old: &Core<K>) -> &Core<K> {
        let new = Box::into_raw(Box::new(Core::new(Arc::clone(&self.config), generation())));
        // The old core is left where it is: a thread that did not survive the fork may hold its locks.
        let old: *mut Core<K> = std::ptr::from_ref(old).cast_mut();
        match self.core.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: as in `core`; `new` is now the client's.
            Ok(_) => unsafe { &*new },
            Err(current) => {
                // SAFETY: another thread was first; nobody but us has seen `new`, and `current` is as in `core`.
                unsafe {
                    drop(Box::from_raw(new));
                    &*current
                }
            }
        }
    }

    /// Adds one call. What it cannot take is counted by its reason and returned; the call itself never fails or waits.
    pub fn record(&self, kind: Kind, name: &str, tags: &TagText, value: f64) -> Result<(), DropReason> {
        let core = self.core();
        if self.closed.load(Ordering::Relaxed) {
            return Err(self.refuse(DropReason::Closed));
        }
        let (outcome, wants_flusher) = {
            let mut table = lock(&core.shared.table);
            (table.record(kind, name, tags, value), table.wants_flusher())
        };
        if wants_flusher {
            core.start_flusher();
        }
        outcome
    }

    /// One call whose arguments were seen before; value as in [`Client::record`]. `Err` if they are not recognized: then it
    /// is not recorded, and true says that this one is to be [learned](Client::learn) after it has been.
    #[inline]
    pub fn record_known(&self, kind: Kind, identity: &Identity, value: f64) -> Result<Result<(), DropReason>, bool> {
        let core = self.core();
        if self.closed.load(Ordering::Relaxed) {
            return Err(false);
        }
        lock(&core.shared.table).record_known(kind, identity, value)
    }

    /// Has the context of a call that was recorded recognized by `identity` from now on. While `keep` lives, the addresses
    /// in it must mean what they mean now.
    pub fn learn(&self, kind: Kind, name: &str, tags: &TagText, identity: Identity, keep: K) {
        let forgotten = lock(&self.core().shared.table).learn(kind, name, tags.as_str(), identity, keep);
        // Outside of the lock: nobody knows what a drop does.
        drop(forgotten);
    }

    /// Forgets all that was learned, and drops what was kept for it.
    pub fn forget_known(&self) {
        let memo = lock(&self.core().shared.table).memo.take();
        drop(memo);
    }

    /// Counts a call that never reached the table, and gives its reason back.
    pub fn refuse(&self, reason: DropReason) -> DropReason {
        let core = self.core();
        let wants_flusher = {
            let mut table = lock(&core.shared.table);
            table.refuse(reason);
            !self.is_closed() && table.wants_flusher()
        };
        if wants_flusher {
            core.start_flusher();
        }
        reason
    }

    /// Notes a sentence for the log once per `key`; later ones with the same key are not noted.
    pub fn notice_once(&self, key: &str, text: impl FnOnce() -> String) {
        let shared = &self.core().shared;
        if lock(&shared.table).is_first_warning(key) {
            shared.notice(text());
        }
    }

    /// True if [`Client::take_notices`] has something.
    pub fn has_notices(&self) -> bool {
        self.core().shared.has_notices.load(Ordering::Relaxed)
    }

    /// The sentences that are to be logged, each given once.
    pub fn take_notices(&self) -> Vec<String> {
        let shared = &self.core().shared;
        shared.has_notices.store(false, Ordering::Relaxed);
        std::mem::take(&mut *lock(&shared.notices))
    }

    /// Sends what has accumulated and waits until that is done or refused, at most `timeout`. True if it was done in time.
    pub fn flush(&self, timeout: Duration) -> bool {
        let core = self.core();
        let done = lock(&core.flusher).as_mut().map(Flusher::flush);
        // The lock is free again: nobody waits for a lock while we wait for the network.
        done.is_none_or(|done| done.wait(timeout))
    }

    /// Sends what has accumulated, for at most `timeout`, and ends the flusher. What is still held then is lost and
    /// counted, as are later calls. True if that is done; false if the flusher is about to do it, or another thread that
    /// was first to close.
    pub fn close(&self, timeout: Duration) -> bool {
        let core = self.core();
        if self.closed.swap(true, Ordering::AcqRel) {
            return lock(&core.shared.table).is_closed();
        }
        let _ = core.shared.closing.set((Instant::now(), timeout));
        let flusher = lock(&core.flusher).take();
        let Some(flusher) = flusher else {
            core.shared.lose_all();
            return true;
        };
        let in_time = flusher.stop(timeout);
        let held = lock(&core.shared.table).account().held;
        if !in_time && held > 0 {
            // The process may end before the flusher gets to say what was lost.
            let endpoint = &core.shared.config.endpoint;
            core.shared.notice(format!(
                "{endpoint} had not taken all metrics when the time to close was over: up to {held} calls are lost"
            ));
        }
        in_time
    }

    /// Ends the flusher's thread until `after_fork`, so that the process that is to be forked has no thread of ours.
    pub fn before_fork(&self) {
        if let Some(flusher) = lock(&self.core().flusher).as_mut() {
            flusher.park(PARK_TIMEOUT);
        }
    }

    /// Starts the flusher's thread again in the parent. A child has another flusher, which its first call starts.
    pub fn after_fork(&self) {
        let core = self.core();
        let mut flusher = lock(&core.flusher);
        if flusher.as_mut().is_some_and(|flusher| flusher.resume().is_err()) {
            // What was recorded is in the table; the next call starts another.
            *flusher = None;
            lock(&core.shared.table).no_flusher();
        }
    }

    /// Whether `close` was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// The account of this process's calls.
    pub fn account(&self) -> Account {
        lock(&self.core().shared.table).account()
    }
}

impl<K: Send + 'static> Drop for Client<K> {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        self.forget_known();
        if !self.is_closed() {
            // Whoever lets go of a client without a word may be at the end of the process.
            self.close(DROP_TIMEOUT);
        }
        let core = *self.core.get_mut();
        // SAFETY: nobody else can have a reference, since we have the only one to `self`; it came from Box::into_raw.
        if unsafe { (*core).generation } == generation() {
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(core) });
        }
    }
}
