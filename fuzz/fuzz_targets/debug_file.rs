//! A file with debug information, of any content.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::debug_file(bytes));
