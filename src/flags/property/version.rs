//! Versions as the flags service reads them: semantic versions, by the same crate, of which less is asked. A `v` in front may be,
//! `3` is `3.0.0`, and `3.08` is `3.8.0`.

use semver::{BuildMetadata, Prerelease, Version, VersionReq};
use serde_json::Value;

use super::text::{text_of, with_text};

/// Without an allocation, as long as neither a prerelease nor build metadata is longer than eight bytes.
pub(super) fn version_of(value: &Value) -> Option<Version> {
    with_text(value, parse)
}

/// `~`: as the version or later, with the same minor version.
pub(super) fn tilde(value: &Value) -> Option<VersionReq> {
    requirement('~', value)
}

/// `^`: as the version or later, with the same leftmost part that is not zero.
pub(super) fn caret(value: &Value) -> Option<VersionReq> {
    requirement('^', value)
}

/// `1.2.*`, `1.*`, `*`; PostHog takes what else the crate can read, too.
pub(super) fn wildcard(value: &Value) -> Option<VersionReq> {
    let text = text_of(value);
    let parts: Vec<_> = without_prefix(&text).split('.').map(without_leading_zeros).collect();
    VersionReq::parse(&parts.join(".")).ok()
}

fn requirement(operator: char, value: &Value) -> Option<VersionReq> {
    VersionReq::parse(&format!("{operator}{}", version_of(value)?)).ok()
}

fn parse(text: &str) -> Option<Version> {
    let text = without_prefix(text);
    let (numbers, suffix) = text.split_at(text.find(['-', '+']).unwrap_or(text.len()));
    let mut numbers = numbers.split('.');
    let mut version = Version::new(numbers.next()?.parse().ok()?, 0, 0);
    version.minor = numbers.next().map_or(Some(0), |part| part.parse().ok())?;
    version.patch = numbers.next().map_or(Some(0), |part| part.parse().ok())?;
    if numbers.next().is_some() {
        return None;
    }
    let (prerelease, build) = match suffix.split_once('+') {
        Some((prerelease, build)) => (prerelease, Some(build)),
        None => (suffix, None),
    };
    if let Some(prerelease) = prerelease.strip_prefix('-') {
        version.pre = Prerelease::new(prerelease).ok().filter(|prerelease| !prerelease.is_empty())?;
    }
    if let Some(build) = build {
        version.build = BuildMetadata::new(build).ok().filter(|build| !build.is_empty())?;
    }
    Some(version)
}

fn without_prefix(text: &str) -> &str {
    text.strip_prefix('v').unwrap_or(text).trim()
}

fn without_leading_zeros(part: &str) -> &str {
    if !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return part;
    }
    match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0",
        digits => digits,
    }
}
