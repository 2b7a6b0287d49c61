//! Definitions of flags, and somebody to evaluate them for, of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::flags(bytes));
