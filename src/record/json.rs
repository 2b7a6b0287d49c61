//! STUB
use super::{Malformed, View};

/// STUB: the body after its 36 bytes of head, as text.
pub(crate) fn write_event(view: &View<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.extend_from_slice(b"{\"event\":\"");
    out.extend_from_slice(&view.0[36..]);
    out.extend_from_slice(b"\"}");
    Ok(())
}
