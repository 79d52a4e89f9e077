//! Any bytes as a chunk, a stream, a window, an entry of the log: no panic, and no more memory than they are worth.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cortex_metrics::store::read_anything(bytes));
