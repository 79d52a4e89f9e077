//! The allocator's settings for the collector.

/// Lets freed memory go back to the system at once. A tick of many new series takes megabytes for some milliseconds; after
/// the first such piece glibc would raise its thresholds (`mallopt(3)`, "dynamic mmap threshold") and keep all further ones.
/// Measured with 99,000 new series (`make bench-exposition`): 10 MiB less, of 66, from then on.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn return_early() {
    /// glibc's own value at the start; that it is set is what keeps it.
    const THRESHOLD_BYTES: libc::c_int = 128 << 10;
    // SAFETY: mallopt takes two integers, may be called at any time, and refuses what it does not know.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, THRESHOLD_BYTES);
    }
}

/// Gives back what is free between pieces that are in use, after work that took very many small ones: some milliseconds.
/// Measured with 99,000 new series (`make bench-exposition`): 9 MiB less, of 72, from then on.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn return_now() {
    // SAFETY: malloc_trim takes one integer and may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators keep theirs.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_early() {}

/// Other allocators do as they like.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_now() {}
