//! A queue on the disk in which any bytes are changed.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::queue(bytes));
