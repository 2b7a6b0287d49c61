//! Flag definitions and the properties of a person, of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::flags(bytes));
