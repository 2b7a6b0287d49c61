//! A response to a batch, of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::response(bytes));
