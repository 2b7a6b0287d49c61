//! STUB page, replaced by the record folder when the branches meet.

pub(crate) mod frame;
pub(crate) mod json;

/// STUB
#[derive(Debug, thiserror::Error)]
#[error("malformed")]
pub(crate) struct Malformed;

/// STUB
#[derive(Debug)]
pub(crate) struct View<'a>(&'a [u8]);

impl<'a> View<'a> {
    /// STUB
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        if body.len() < 36 || body.ends_with(b"!malformed") { Err(Malformed) } else { Ok(Self(body)) }
    }
}
