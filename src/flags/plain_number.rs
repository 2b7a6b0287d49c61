//! Numbers as PostHog has them.
//!
//! Where any crate of the build has turned on serde_json's `arbitrary_precision`, a number of ours is the text that was read (`1.50`,
//! `1e2`), while PostHog's is of 64 bits. What compares the text of numbers, or makes keys of it, takes them from here.

use std::borrow::Cow;

use serde_json::Number;

/// The number as one of 64 bits.
pub(super) fn plain(number: &Number) -> Cow<'_, Number> {
    if number.as_i64().is_some() || number.as_u64().is_some() {
        return Cow::Borrowed(number);
    }
    // What is beyond all floats stays what it is.
    number.as_f64().and_then(Number::from_f64).map_or(Cow::Borrowed(number), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_has_one_text_however_it_was_written() {
        for (written, expected) in [("1", "1"), ("1.50", "1.5"), ("1e2", "100.0"), ("-0.250", "-0.25"), ("7.0", "7.0")]
        {
            let number: Number = serde_json::from_str(written).unwrap();
            assert_eq!(plain(&number).to_string(), expected, "{written}");
        }
        assert_eq!(plain(json!(u64::MAX).as_number().unwrap()).to_string(), u64::MAX.to_string());
    }
}
