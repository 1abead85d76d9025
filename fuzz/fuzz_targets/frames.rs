//! `cargo +nightly fuzz run frames`
#![no_main]

#[path = "../targets.rs"]
#[expect(dead_code, reason = "each binary has one target")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::frames(data));
