//! Any bytes: no panic, and every line is accounted for.

#![no_main]

#[path = "../properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| properties::decoded_bytes_are_accounted_for(datagram));
