//! Numbers, and the orders that can be asked for: of numbers, versions and dates alike.

use std::cmp::Ordering;

use serde_json::Value;

/// What the property has to be, compared with what the condition says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

impl Comparison {
    pub(super) fn accepts(self, order: Ordering) -> bool {
        match self {
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Equal => order.is_eq(),
            Comparison::GreaterOrEqual => order.is_ge(),
            Comparison::Greater => order.is_gt(),
        }
    }
}

/// A number, or a string that is one as a whole. Not a number is none.
pub(super) fn number_of(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| !number.is_nan())
}

/// The two ends of a range, both in it, the lower one first.
pub(super) fn range_of(value: &Value) -> Option<(f64, f64)> {
    match value.as_array()?.as_slice() {
        [low, high] => Some((number_of(low)?, number_of(high)?)).filter(|(low, high)| low <= high),
        _ => None,
    }
}
