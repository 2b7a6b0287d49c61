//! The environment, and files that it or an image of the process names.

use crate::config;
use crate::crash;
use crate::transport;

/// `NAME=value` in each line, as the environment of a process: every variable is applied or reported.
pub fn variables(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let set = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        text.lines().find_map(value)
    };
    config::apply_any_variables(set);
}

/// `NAME=value` in each line: proxies, and the hosts that are reached without one.
pub fn proxies(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let set = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        text.lines().find_map(value)
    };
    transport::choose_any_proxy(&set);
}

/// A certificate and, after the first zero byte, a private key.
pub fn identity(bytes: &[u8]) {
    let (certificates, key) = bytes.split_at(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    transport::load_any_identity(certificates, key.get(1..).unwrap_or_default());
}

/// A file with debug information, looked into at the address of the first four bytes.
pub fn debug_file(bytes: &[u8]) {
    let Some((address, file)) = bytes.split_first_chunk::<4>() else { return };
    crash::look_up_in_any_file(file, u32::from_le_bytes(*address).into());
}
