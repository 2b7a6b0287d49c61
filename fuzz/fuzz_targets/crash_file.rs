//! A file of last words with any bytes in it.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::crash_file(bytes));
