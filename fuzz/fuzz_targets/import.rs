//! A file of events that is imported.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::import(bytes));
