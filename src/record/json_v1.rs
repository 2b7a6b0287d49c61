//! A body as one element of PostHog's V1 batch: the V0 form, with some properties lifted out to where V1 wants them.

use super::decode::{Malformed, Reader, Token, text};
use super::json::{Object, Said, begin_event, write_json, write_plain, write_quoted, write_str};
use super::number::NUMBER_EXT;
use super::symbols::Symbols;
use super::{Flags, View};

/// Appends an event as [`super::json::write_event`] does, followed by `"options":{..}` and, where they are known, `"session_id"` and
/// `"window_id"`. What these are made of is no property any more; what is of the wrong type is not sent at all, for PostHog drops an
/// event with an option that it cannot read. On an error `out` is as it was.
pub(crate) fn write_event_v1(view: &View<'_>, symbols: &dyn Symbols, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let start = out.len();
    let mut lifted = Lifted::default();
    // Never a property: it becomes an option.
    let said = Said { person_profile: true, ..Said::default() };
    begin_event(view, said, |key, value| lifted.take(key, value), symbols, out)?;
    let is_personless = view.head.flags.contains(Flags::PERSONLESS);
    let written = lifted.write(is_personless, out);
    match written {
        Ok(()) => out.push(b'}'),
        Err(_) => out.truncate(start),
    }
    written
}

/// The values that V1 wants elsewhere than among the properties, as MessagePack.
#[derive(Default)]
struct Lifted<'a> {
    cookieless_mode: Option<&'a [u8]>,
    ignore_sent_at: Option<&'a [u8]>,
    process_person_profile: Option<&'a [u8]>,
    product_tour_id: Option<&'a [u8]>,
    session_id: Option<&'a [u8]>,
    window_id: Option<&'a [u8]>,
}

impl<'a> Lifted<'a> {
    /// Whether the property is one of these.
    fn take(&mut self, key: &[u8], value: &'a [u8]) -> bool {
        let place = match key {
            b"$cookieless_mode" => &mut self.cookieless_mode,
            b"$ignore_sent_at" => &mut self.ignore_sent_at,
            b"$process_person_profile" => &mut self.process_person_profile,
            b"$product_tour_id" => &mut self.product_tour_id,
            b"$session_id" => &mut self.session_id,
            b"$window_id" => &mut self.window_id,
            _ => return false,
        };
        *place = Some(value);
        true
    }

    fn write(&self, is_personless: bool, out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.extend_from_slice(b",\"options\":");
        let mut options = Object::begin(out);
        let person_profile = boolean(self.process_person_profile).or(is_personless.then_some(false));
        for (name, value) in [
            ("cookieless_mode", boolean(self.cookieless_mode)),
            ("disable_skew_correction", boolean(self.ignore_sent_at)),
            ("process_person_profile", person_profile),
        ] {
            if let Some(value) = value {
                options.name(name);
                write_json(options.out, value);
            }
        }
        if let Some(tour @ Token::Str(_)) = token(self.product_tour_id) {
            options.name("product_tour_id");
            write_id(tour, options.out)?;
        }
        options.end();
        for (name, value) in [(&b",\"session_id\":"[..], self.session_id), (b",\"window_id\":", self.window_id)] {
            if let Some(id) = token(value).filter(|&id| is_id(id)) {
                out.extend_from_slice(name);
                write_id(id, out)?;
            }
        }
        Ok(())
    }
}

fn token(value: Option<&[u8]>) -> Option<Token<'_>> {
    Reader::new(value?).token().ok()
}

fn boolean(value: Option<&[u8]>) -> Option<bool> {
    match token(value)? {
        Token::Bool(value) => Some(value),
        _ => None,
    }
}

/// Text is one, and so is a number: some number their sessions.
fn is_id(token: Token<'_>) -> bool {
    match token {
        Token::Str(_) | Token::Unsigned(_) | Token::Signed(_) | Token::Ext(NUMBER_EXT, _) => true,
        Token::F32(value) => value.is_finite(),
        Token::F64(value) => value.is_finite(),
        _ => false,
    }
}

fn write_id(token: Token<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    match token {
        Token::Str(bytes) => return write_str(out, bytes),
        Token::Unsigned(value) => write_quoted(out, value),
        Token::Signed(value) => write_quoted(out, value),
        Token::F32(value) => write_quoted(out, value),
        Token::F64(value) => write_quoted(out, value),
        Token::Ext(NUMBER_EXT, digits) => write_plain(out, text(digits)?),
        _ => return Err(Malformed::Type),
    }
    Ok(())
}
