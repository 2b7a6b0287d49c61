//! Proxy variables with any content.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| posthog::__fuzz::proxies(bytes));
