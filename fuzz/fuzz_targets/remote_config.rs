//! A response to a request for remote configuration, of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::remote_config(bytes));
