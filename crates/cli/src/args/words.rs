//! What is written in an argument, as what it means.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use replikv::{KeyRange, LinkId};

use super::Link;

// The first that a name stands for.
pub(super) fn listening(words: &str) -> Result<SocketAddr, String> {
    let found = words.to_socket_addrs().map_err(|error| format!("{error}: write HOST:PORT"))?.next();
    found.ok_or_else(|| "it has no address".into())
}

pub(super) fn link(words: &str) -> Result<Link, String> {
    let (name, address) = named(words, "NAME=ADDR")?;
    Ok(Link { name, address })
}

pub(super) fn prefix(words: &str) -> Result<(LinkId, String), String> {
    named(words, "NAME=PREFIX")
}

pub(super) fn link_range(words: &str) -> Result<(LinkId, KeyRange), String> {
    let (name, words) = named(words, "NAME=START..END")?;
    Ok((name, range(&words)?))
}

pub(super) fn range(words: &str) -> Result<KeyRange, String> {
    let (start, end) = words.split_once("..").ok_or_else(|| format!("{words:?} is no range: write START..END"))?;
    let range = KeyRange::new(start.to_owned(), (!end.is_empty()).then(|| end.to_owned().into()));
    if range.is_empty() { Err(format!("no key lies in {words:?}")) } else { Ok(range) }
}

fn named(words: &str, form: &str) -> Result<(LinkId, String), String> {
    let (name, value) = words.split_once('=').ok_or_else(|| format!("write {form}"))?;
    let name = LinkId::new(name).map_err(|error| error.to_string())?;
    Ok((name, value.into()))
}

pub(super) fn duration(words: &str) -> Result<Duration, String> {
    let wrong = || format!("{words:?} is no time: write 500ms, 5s, 2m or 24h");
    let digits = words.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = words.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(wrong),
        "h" => number.checked_mul(3600).map(Duration::from_secs).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_a_start_and_an_end() {
        assert_eq!(range("a..b"), Ok(KeyRange::from_bounds("a".."b")));
        assert_eq!(range("a.."), Ok(KeyRange::from_bounds("a"..)));
        assert_eq!(range("..b"), Ok(KeyRange::from_bounds(.."b")));
        assert_eq!(range(".."), Ok(KeyRange::all()));
        for wrong in ["", "a", "b..a", "a..a"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
        assert_eq!(link_range("north=a..b").map(|(_, range)| range), Ok(KeyRange::from_bounds("a".."b")));
        assert!(link_range("a..b").is_err());
    }

    #[test]
    fn times_are_numbers_with_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for wrong in ["", "5", "s", "5d", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
