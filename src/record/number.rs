//! Numbers that come as text: serde_json gives its own so where any crate of the build has turned on `arbitrary_precision`.
//!
//! What 64 bits hold exactly, as an integer or as a float, is stored as that. Every other number is stored as the text that it is, in an
//! extension value, and is a number of the JSON again: no digit is lost on the way to PostHog.

use super::encode::{append_f64, append_int, append_uint, begin_ext, end_ext};

/// The extension type of a number whose content is its text, as JSON writes it.
pub(crate) const NUMBER_EXT: i8 = 3;

/// Appends the number that `text` is; on `false` it is none, and nothing is appended.
pub(super) fn append_number(out: &mut Vec<u8>, text: &str) -> bool {
    if !is_number(text.as_bytes()) {
        return false;
    }
    if text == "-0" {
        // An integer has no negative zero.
        append_f64(out, -0.0);
    } else if let Ok(integer) = text.parse() {
        append_uint(out, integer);
    } else if let Ok(integer) = text.parse() {
        append_int(out, integer);
    } else if let Some(float) = text.parse().ok().filter(|&float| is_exactly(text, float)) {
        append_f64(out, float);
    } else {
        append_exact(out, text);
    }
    true
}

/// Appends a number as its text.
pub(super) fn append_exact(out: &mut Vec<u8>, text: &str) {
    let at = begin_ext(out, NUMBER_EXT);
    out.extend_from_slice(text.as_bytes());
    end_ext(out, at);
}

/// Whether this is a number as JSON writes it.
pub(super) fn is_number(text: &[u8]) -> bool {
    let rest = text.strip_prefix(b"-").unwrap_or(text);
    let (whole, rest) = digits(rest);
    let (fraction, rest) = match rest.strip_prefix(b".") {
        Some(rest) => {
            let (fraction, rest) = digits(rest);
            (!fraction.is_empty(), rest)
        }
        None => (true, rest),
    };
    let exponent = match rest {
        [] => true,
        [b'e' | b'E', b'+' | b'-', rest @ ..] | [b'e' | b'E', rest @ ..] => {
            let (exponent, rest) = digits(rest);
            !exponent.is_empty() && rest.is_empty()
        }
        _ => false,
    };
    !whole.is_empty() && (whole.len() == 1 || whole.first() != Some(&b'0')) && fraction && exponent
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// Whether the float, written in its shortest form, is the number that `text` writes.
fn is_exactly(text: &str, float: f64) -> bool {
    float.is_finite()
        && matches!((decimal(text), decimal(&format!("{float:e}"))), (Some(one), Some(other)) if one == other)
}

/// A number as its digits without zeros around them, and the power of ten of the first: equal for equal numbers. `None` where the power is
/// beyond all measure.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (is_negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let significant = all.trim_start_matches('0');
    if significant.is_empty() {
        return Some((is_negative, String::new(), 0));
    }
    let zeros = i64::try_from(all.len() - significant.len()).ok()?;
    let power = exponent.parse::<i64>().ok()?.checked_add(i64::try_from(whole.len()).ok()?)?.checked_sub(zeros)?;
    Some((is_negative, significant.trim_end_matches('0').to_owned(), power))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::decode::{Reader, Token};
    use super::*;

    fn token(text: &str) -> Option<(u8, String)> {
        let mut out = Vec::new();
        if !append_number(&mut out, text) {
            assert!(out.is_empty());
            return None;
        }
        match Reader::new(&out).token().unwrap() {
            Token::Unsigned(integer) => Some((b'u', integer.to_string())),
            Token::Signed(integer) => Some((b'i', integer.to_string())),
            Token::F64(float) => Some((b'f', format!("{float:?}"))),
            Token::Ext(NUMBER_EXT, text) => Some((b'x', String::from_utf8(text.to_vec()).unwrap())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_64_bits_hold_exactly_is_a_number_of_64_bits_and_the_rest_keeps_its_digits() {
        for (text, kind, value) in [
            ("0", b'u', "0"),
            ("-0", b'f', "-0.0"),
            ("-0.0", b'f', "-0.0"),
            ("7", b'u', "7"),
            ("18446744073709551615", b'u', "18446744073709551615"),
            ("-9223372036854775808", b'i', "-9223372036854775808"),
            // A float is this number, too, and its shortest form is another one.
            ("18446744073709551616", b'x', "18446744073709551616"),
            ("18446744073709551617", b'x', "18446744073709551617"),
            ("0.1", b'f', "0.1"),
            ("1.50", b'f', "1.5"),
            ("1E2", b'f', "100.0"),
            ("-12.5e-3", b'f', "-0.0125"),
            ("0.1000000000000000055511151231257827", b'x', "0.1000000000000000055511151231257827"),
            ("3.14159265358979323846", b'x', "3.14159265358979323846"),
            ("1e400", b'x', "1e400"),
            ("1e-400", b'x', "1e-400"),
            ("1e99999999999999999999", b'x', "1e99999999999999999999"),
        ] {
            assert_eq!(token(text), Some((kind, value.to_owned())), "{text}");
        }
        for none in ["", "-", "+1", "01", "1.", ".5", "1e", "1e+", "NaN", "Infinity", "1 ", "0x1", "1_000", "--1"] {
            assert_eq!(token(none), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn every_float_is_found_to_be_one(float in any::<f64>().prop_filter("finite", |float| float.is_finite())) {
            for text in [format!("{float:e}"), format!("{float:?}")] {
                let found = token(&text).unwrap();
                prop_assert!(found.0 != b'x', "{}", text);
                prop_assert_eq!(found.1.parse::<f64>().unwrap(), float);
            }
        }

        #[test]
        fn what_serde_json_reads_as_a_number_is_one(text in "-?[0-9]{1,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?") {
            let number = serde_json::from_str::<serde_json::Number>(&text).is_ok();
            prop_assert_eq!(is_number(text.as_bytes()), number, "{}", text);
        }
    }
}
