//! Answers that are encoded although none was asked for. Pure.

use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap};

use super::TransportError;

/// So many characters of an encoding's name are repeated.
const NAME_KEPT: usize = 40;

/// How an answer's body is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Not at all.
    Identity,
    Gzip,
    Deflate,
    /// As nobody asked and we cannot read: its name.
    Unknown(String),
}

impl Encoding {
    /// What the headers say.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(CONTENT_ENCODING).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let all = values.collect::<Vec<_>>().join(",").to_ascii_lowercase();
        let mut codings = all.split(',').map(str::trim).filter(|coding| !matches!(*coding, "" | "identity"));
        match (codings.next(), codings.next()) {
            (None, _) => Encoding::Identity,
            (Some("gzip" | "x-gzip"), None) => Encoding::Gzip,
            (Some("deflate"), None) => Encoding::Deflate,
            _ => Encoding::Unknown(all.chars().take(NAME_KEPT).collect()),
        }
    }

    /// So many bytes may be read where `most` are to come of them: what cannot be made smaller grows a little by its framing.
    pub(super) fn room(&self, most: usize) -> usize {
        match self {
            Encoding::Identity => most,
            _ => most.saturating_add(most / 64).saturating_add(1024),
        }
    }

    /// At most `most` bytes of what `raw` encodes, and whether that is not all of it; `None` if `raw` says it itself. `is_cut`: there was
    /// more than `raw`.
    pub(super) fn decode(
        &self,
        raw: &[u8],
        is_cut: bool,
        most: usize,
    ) -> Result<Option<(Vec<u8>, bool)>, TransportError> {
        if raw.is_empty() {
            return Ok(None);
        }
        // Servers call both forms deflate. zlib's begins with a byte pair that is a multiple of 31.
        let is_zlib = matches!(raw, [first, second, ..]
            if first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31));
        let mut body = Vec::new();
        let up_to = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        let read = match self {
            Encoding::Identity => return Ok(None),
            Encoding::Gzip => MultiGzDecoder::new(raw).take(up_to).read_to_end(&mut body),
            Encoding::Deflate if is_zlib => ZlibDecoder::new(raw).take(up_to).read_to_end(&mut body),
            Encoding::Deflate => DeflateDecoder::new(raw).take(up_to).read_to_end(&mut body),
            Encoding::Unknown(_) => return Err(self.unreadable("which was not asked for and cannot be decoded")),
        };
        if read.is_err() && !is_cut && body.len() <= most {
            return Err(self.unreadable("but its body is damaged or something else"));
        }
        let is_cut = is_cut || body.len() > most;
        body.truncate(most);
        Ok(Some((body, is_cut)))
    }

    fn unreadable(&self, problem: &'static str) -> TransportError {
        let encoding = match self {
            Encoding::Identity => String::new(),
            Encoding::Gzip => "gzip".to_owned(),
            Encoding::Deflate => "deflate".to_owned(),
            Encoding::Unknown(name) => name.clone(),
        };
        TransportError::Encoding { encoding, problem }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn encoding(values: &[&str]) -> Encoding {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, value.parse().unwrap());
        }
        Encoding::of(&headers)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_table_of_encodings_holds() {
        let unknown = |name: &str| Encoding::Unknown(name.to_owned());
        for (values, expected) in [
            (&[][..], Encoding::Identity),
            (&[""], Encoding::Identity),
            (&["Identity"], Encoding::Identity),
            (&["gzip"], Encoding::Gzip),
            (&["GZIP"], Encoding::Gzip),
            (&["x-gzip"], Encoding::Gzip),
            (&["identity, gzip"], Encoding::Gzip),
            (&["identity", "gzip"], Encoding::Gzip),
            (&["deflate"], Encoding::Deflate),
            (&["br"], unknown("br")),
            (&["gzip, br"], unknown("gzip, br")),
            (&["gzip", "gzip"], unknown("gzip,gzip")),
        ] {
            assert_eq!(encoding(values), expected, "{values:?}");
        }
        assert_eq!(encoding(&[&"x".repeat(9000)]), unknown(&"x".repeat(NAME_KEPT)));
    }

    #[test]
    fn gzip_and_both_forms_of_deflate_are_decoded() {
        let text = b"{\"status\":1}".repeat(100);
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&text).unwrap();
        let mut plain = DeflateEncoder::new(Vec::new(), Compression::fast());
        plain.write_all(&text).unwrap();
        let twice = [gzip(&text[..7]), gzip(&text[7..])].concat();
        for (encoding, raw) in [
            (Encoding::Gzip, gzip(&text)),
            (Encoding::Gzip, twice),
            (Encoding::Deflate, zlib.finish().unwrap()),
            (Encoding::Deflate, plain.finish().unwrap()),
        ] {
            assert_eq!(encoding.decode(&raw, false, text.len()).unwrap(), Some((text.clone(), false)), "{encoding:?}");
        }
        assert_eq!(Encoding::Identity.decode(&text, false, 9).unwrap(), None);
        assert_eq!(Encoding::Gzip.decode(b"", false, 9).unwrap(), None, "an answer without a body");
    }

    #[test]
    fn what_is_decoded_is_bounded_and_no_bomb_is_blown_up() {
        let bomb = gzip(&vec![b' '; 64 << 20]);
        let (body, is_cut) = Encoding::Gzip.decode(&bomb, false, 1000).unwrap().unwrap();
        assert_eq!((body.len(), is_cut, body.capacity() < 1 << 16), (1000, true, true));
        let text: Vec<u8> = (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let raw = gzip(&text);
        assert!(raw.len() <= Encoding::Gzip.room(text.len()), "what cannot be made smaller is read whole");
        let (body, is_cut) = Encoding::Gzip.decode(&raw[..raw.len() / 2], true, text.len()).unwrap().unwrap();
        assert!(is_cut && text.starts_with(&body) && body.len() > text.len() / 4);
    }

    #[test]
    fn what_cannot_be_decoded_is_named() {
        let raw = gzip(b"hello");
        for (encoding, raw, name) in [
            (Encoding::Gzip, &raw[..raw.len() - 3], "gzip"),
            (Encoding::Gzip, b"{\"status\":1}", "gzip"),
            (Encoding::Deflate, b"{\"status\":1}", "deflate"),
            (Encoding::Unknown("br".to_owned()), b"x", "br"),
        ] {
            let error = encoding.decode(raw, false, 100).unwrap_err().to_string();
            assert!(error.contains(&format!("Content-Encoding {name:?}")), "{error}");
        }
    }
}
