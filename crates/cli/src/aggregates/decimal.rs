//! Decimal numbers, without rounding.

/// So many units are one.
pub(super) const ONE: i128 = 1_000_000_000;
/// Digits after the point that a number may have.
const PLACES: usize = 9;
/// Digits before the point that a number may have: a sum of a hundred thousand million of them is in range.
const DIGITS: usize = 18;

/// How many units a number has; `None` of what is no number, or a longer one.
pub(super) fn parse(value: &[u8]) -> Option<i128> {
    let words = value.trim_ascii();
    let (sign, digits) = match words.split_first()? {
        (b'-', rest) => (-1, rest),
        (b'+', rest) => (1, rest),
        _ => (1, words),
    };
    let point = digits.iter().position(|byte| *byte == b'.');
    let (whole, places) = match point {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &b"0"[..]),
    };
    if places.len() > PLACES || whole.len() > DIGITS {
        return None;
    }
    let scale = 10i128.pow(u32::try_from(PLACES - places.len()).ok()?);
    Some(sign * (number(whole)? * ONE + number(places)? * scale))
}

fn number(digits: &[u8]) -> Option<i128> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0, |number, byte| Some(number * 10 + i128::from(char::from(*byte).to_digit(10)?)))
}

/// The number that so many units are.
pub(crate) fn in_words(units: i128) -> String {
    let sign = if units < 0 { "-" } else { "" };
    let (whole, places) = (units.unsigned_abs() / ONE.unsigned_abs(), units.unsigned_abs() % ONE.unsigned_abs());
    if places == 0 {
        return format!("{sign}{whole}");
    }
    let places = format!("{places:09}");
    format!("{sign}{whole}.{}", places.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_number_comes_back_as_it_is() {
        for words in ["0", "7", "-12.5", "0.000000001", "-0.1", "999999999999999999.999999999"] {
            assert_eq!(parse(words.as_bytes()).map(in_words).as_deref(), Some(words));
        }
        assert_eq!(parse(b" +007.50\n").map(in_words).as_deref(), Some("7.5"));
        assert_eq!(in_words(parse(b"0.1").unwrap() + parse(b"0.2").unwrap()), "0.3");
    }

    #[test]
    fn what_is_none_is_left_out() {
        for words in
            ["", " ", "-", ".5", "5.", "1,5", "1e3", "0x10", "--1", "1 2", "NaN", "1000000000000000000", "0.0000000001"]
        {
            assert_eq!(parse(words.as_bytes()), None, "{words:?}");
        }
    }
}
