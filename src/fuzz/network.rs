//! What a server, a proxy, or the sender of a request may say.

use crate::context::{self, Context};
use crate::delivery;
use crate::flags::remote;
use crate::transport::RetryAfter;

/// A response to a batch: two bytes of status, and the body. Classified in both protocols; a response that is no success
/// delivers nothing.
pub fn response(bytes: &[u8]) {
    let Some((status, body)) = bytes.split_first_chunk::<2>() else { return };
    // Every other input is a success, of which most can be read.
    let status = if status[0] % 2 == 0 { 200 } else { u16::from_le_bytes(*status) % 600 };
    delivery::classify_any(status, body);
    if let Ok(text) = std::str::from_utf8(body)
        && let Some(after) = RetryAfter::parse(text)
    {
        let _any = after.wait_at(1_700_000_000_000_000_000);
    }
}

/// The payload of a flag for remote configuration.
pub fn remote_config(bytes: &[u8]) {
    let Some((status, body)) = bytes.split_first_chunk::<2>() else { return };
    remote::interpret_any(u16::from_le_bytes(*status) % 600, body);
}

/// The method, the URL and the headers of a request, one in each line, name and value parted by a colon.
pub fn headers(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut text = || String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let (method, url) = (text(), text());
    let headers: Vec<_> = lines
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at(colon);
            Some((String::from_utf8_lossy(name).into_owned(), value.get(1..).unwrap_or_default().to_vec()))
        })
        .collect();
    let context = Context::from_request(&method, &url, headers);
    context.enter(|| {
        for id in [context::current_distinct_id(), context::current_session_id()].into_iter().flatten() {
            assert!(!id.trim().is_empty() && !id.contains(char::is_control), "{id:?} is cleaned");
        }
    });
}
