//! Forks of this process: they are counted, and they stay out of the system's look-ups of names.
//!
//! `getaddrinfo` holds locks of the C library, those of its resolver and its loader among them, which a child inherits as
//! they are: held for ever by a thread that it does not have, should the fork come in the middle. Each later look-up of the
//! child would wait for them without end. So a fork waits for the look-up that is under way, and a look-up for the fork.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a fork waits at most. A look-up that takes longer waits for the network, where it holds no lock.
const LOOKUP_MAX: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_micros(200);

/// How often this process has been forked from its first ancestor that loaded us.
static GENERATION: AtomicU32 = AtomicU32::new(0);
// Each side announces itself, then looks for the other: with all four operations in one order, one of them sees the other.
static LOOKUPS: AtomicU32 = AtomicU32::new(0);
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The generation of this process. What was made in another is not ours.
#[inline]
pub(super) fn generation() -> u32 {
    // Relaxed: only the fork handler writes it, when the child has one thread.
    GENERATION.load(Ordering::Relaxed)
}

/// Makes every fork of this process count and wait.
#[allow(unsafe_code)]
pub(super) fn watch_forks() {
    extern "C" fn before() {
        FORKS.fetch_add(1, Ordering::SeqCst);
        let since = Instant::now();
        while LOOKUPS.load(Ordering::SeqCst) > 0 && since.elapsed() < LOOKUP_MAX {
            thread::sleep(PAUSE);
        }
    }
    extern "C" fn in_the_parent() {
        FORKS.fetch_sub(1, Ordering::SeqCst);
    }
    extern "C" fn in_the_child() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
        // The threads that these counted are the parent's.
        FORKS.store(0, Ordering::SeqCst);
        LOOKUPS.store(0, Ordering::SeqCst);
    }
    static ONCE: Once = Once::new();
    // SAFETY: the handlers are plain functions of this library, which is never unloaded; they touch atomics, and sleep.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(Some(before), Some(in_the_parent), Some(in_the_child));
    });
}

/// Does `lookup` while no fork is under way, and has the next one wait for it.
pub(super) fn between_forks<T>(lookup: impl FnOnce() -> T) -> T {
    struct UnderWay;
    impl Drop for UnderWay {
        fn drop(&mut self) {
            LOOKUPS.fetch_sub(1, Ordering::SeqCst);
        }
    }
    loop {
        LOOKUPS.fetch_add(1, Ordering::SeqCst);
        let under_way = UnderWay;
        if FORKS.load(Ordering::SeqCst) == 0 {
            return lookup();
        }
        drop(under_way);
        thread::sleep(PAUSE);
    }
}
