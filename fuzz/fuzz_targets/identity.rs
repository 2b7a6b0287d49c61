//! A certificate and a key, of any content.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::identity(bytes));
