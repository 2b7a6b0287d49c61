//! A row of the store, of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::store_row(bytes));
