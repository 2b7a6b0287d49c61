//! A request with any headers.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::headers(bytes));
