//! Flag definitions as they are kept in the queue, of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::kept_flags(bytes));
