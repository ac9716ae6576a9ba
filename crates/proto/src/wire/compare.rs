//! The payload of a comparison's question: bounds cost what they do not share with the bound before them.

use bytes::Bytes;
use replikv_core::{Fingerprint, KeyRange};
use serde::{Deserialize, Serialize};

use super::message::{control, parse};
use crate::reconcile::MAX_RANGES;
use crate::{Compare, RangeSummary};

/// One range, as it is sent.
#[derive(Serialize, Deserialize)]
struct Item {
    /// `None`: where the range before it ends.
    start: Option<Bound>,
    /// `None`: it has no end.
    end: Option<Bound>,
    count: u64,
    fingerprint: Fingerprint,
}

/// A key, after the one that was told last: so many bytes of that, then these.
#[derive(Serialize, Deserialize)]
struct Bound {
    shared: u32,
    rest: Bytes,
}

pub(super) fn to_payload(compare: &Compare) -> Result<Bytes, postcard::Error> {
    let mut told = Told::default();
    let mut previous_end = None;
    let mut items = Vec::with_capacity(compare.ranges.len());
    for RangeSummary { range, count, fingerprint } in &compare.ranges {
        let continues = previous_end == Some(range.start());
        let start = (!continues).then(|| told.shorten(range.start()));
        let end = range.end().map(|end| told.shorten(end));
        previous_end = range.end();
        items.push(Item { start, end, count: *count, fingerprint: *fingerprint });
    }
    control(&items)
}

pub(super) fn from_payload(payload: &[u8]) -> Result<Compare, &'static str> {
    let items: Vec<Item> = parse(payload)?;
    if items.len() > MAX_RANGES {
        return Err("it asks about more ranges than one question may");
    }
    let mut told = Told::default();
    let mut previous_end = None;
    let mut ranges = Vec::with_capacity(items.len());
    for Item { start, end, count, fingerprint } in items {
        let start = match start {
            Some(bound) => told.expand(&bound)?,
            None => previous_end.take().ok_or("a range continues one that has no end")?,
        };
        let end = end.map(|bound| told.expand(&bound)).transpose()?;
        previous_end.clone_from(&end);
        ranges.push(RangeSummary { range: KeyRange::new(start, end), count, fingerprint });
    }
    Ok(Compare { ranges })
}

/// What all bounds of a question come to, at most. Checked on the way in: a few bytes can stand for a long key.
const MAX_TOLD: usize = 1 << 20;

/// The bound that was told last, and how long all were.
#[derive(Default)]
struct Told {
    last: Bytes,
    bytes: usize,
}

impl Told {
    fn shorten(&mut self, key: &Bytes) -> Bound {
        let shared = self.last.iter().zip(key).take_while(|(a, b)| a == b).count();
        self.last = key.clone();
        // A key's length fits.
        Bound { shared: shared as u32, rest: key.slice(shared..) }
    }

    fn expand(&mut self, bound: &Bound) -> Result<Bytes, &'static str> {
        let shared = self.last.get(..bound.shared as usize).ok_or("a bound shares more than there is")?;
        self.bytes += shared.len() + bound.rest.len();
        if self.bytes > MAX_TOLD {
            return Err("its bounds are longer than those of one question may be");
        }
        let key = Bytes::from([shared, &bound.rest].concat());
        self.last = key.clone();
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_a_question_come_to_so_much_at_most_however_few_bytes_tell_them() {
        let question = |more: usize| {
            let range = KeyRange::new(vec![1; MAX_TOLD / 2], Some(vec![1; MAX_TOLD / 2 + more].into()));
            Compare { ranges: vec![RangeSummary { range, count: 1, fingerprint: Fingerprint::from_bytes([7; 16]) }] }
        };
        let payload = |more| to_payload(&question(more)).unwrap();
        assert!(payload(1).len() < MAX_TOLD * 2 / 3);
        assert_eq!(from_payload(&payload(0)), Ok(question(0)));
        assert!(from_payload(&payload(1)).is_err());
    }
}
