//! Operations, and a buffer of them: one encoding for batches, records, write sets and pages.
//!
//! An operation is a postcard enum of byte strings: a tag, then each field as a varint length and its bytes. Fields
//! are borrowed from the buffer on the way out, so that bytes from a socket reach a store without a copy.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::KeyRange;

/// One change to one keyspace, borrowed from the buffer it is encoded in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op<'a> {
    /// Sets the value of a key.
    Put {
        /// The key; not empty.
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
        /// The value; may be empty.
        #[serde(borrow, with = "serde_bytes")]
        value: &'a [u8],
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key; not empty.
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
    },
    /// Removes every key from `start` on, below `end`.
    DeleteRange {
        /// The first key that goes; empty: from the first there is.
        #[serde(borrow, with = "serde_bytes")]
        start: &'a [u8],
        /// The first key that stays; `None`: none stays.
        #[serde(borrow, with = "serde_bytes")]
        end: Option<&'a [u8]>,
    },
}

impl<'a> Op<'a> {
    /// A range delete of `range`.
    pub fn delete_range(range: &'a KeyRange) -> Self {
        Self::DeleteRange { start: range.start(), end: range.end().map(|end| &end[..]) }
    }

    /// Appends the encoded operation.
    pub fn encode_into(&self, buffer: &mut BytesMut) {
        match *self {
            Self::Put { key, value } => {
                buffer.reserve(key.len() + value.len() + 21);
                buffer.put_u8(0);
                put_bytes(buffer, key);
                put_bytes(buffer, value);
            }
            Self::Delete { key } => {
                buffer.put_u8(1);
                put_bytes(buffer, key);
            }
            Self::DeleteRange { start, end } => {
                buffer.put_u8(2);
                put_bytes(buffer, start);
                match end {
                    None => buffer.put_u8(0),
                    Some(end) => {
                        buffer.put_u8(1);
                        put_bytes(buffer, end);
                    }
                }
            }
        }
    }

    fn decode(input: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&tag, rest) = input.split_first()?;
        match tag {
            0 => {
                let (key, rest) = take_bytes(rest)?;
                let (value, rest) = take_bytes(rest)?;
                (!key.is_empty()).then_some((Self::Put { key, value }, rest))
            }
            1 => {
                let (key, rest) = take_bytes(rest)?;
                (!key.is_empty()).then_some((Self::Delete { key }, rest))
            }
            2 => {
                let (start, rest) = take_bytes(rest)?;
                let (&some, rest) = rest.split_first()?;
                match some {
                    0 => Some((Self::DeleteRange { start, end: None }, rest)),
                    1 => {
                        let (end, rest) = take_bytes(rest)?;
                        Some((Self::DeleteRange { start, end: Some(end) }, rest))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

// The postcard format, written by hand: a store walks millions of these a second. A test holds it to postcard.
pub(crate) fn put_varint(buffer: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

fn put_bytes(buffer: &mut BytesMut, bytes: &[u8]) {
    put_varint(buffer, bytes.len() as u64);
    buffer.put_slice(bytes);
}

fn take_bytes(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut len = 0u64;
    for (index, &byte) in input.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7F);
        if index == 9 && bits > 1 {
            return None;
        }
        len |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return input[index + 1..].split_at_checked(usize::try_from(len).ok()?);
        }
    }
    None
}

/// A sequence of whole, well-formed operations in one shared buffer. Cloning shares the buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedOps(Bytes);

impl EncodedOps {
    /// Takes bytes from outside, after checking that they are whole operations and that no key is empty.
    ///
    /// # Errors
    /// [`MalformedOps`] names the offset of the first operation that is not.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, MalformedOps> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Some((_, next)) = Op::decode(rest) else {
                return Err(MalformedOps { offset: bytes.len() - rest.len() });
            };
            rest = next;
        }
        Ok(Self(bytes))
    }

    /// Takes what [`Op::encode_into`] wrote, whose keys are known not to be empty.
    pub(crate) fn trusted(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The operations, in order.
    pub fn iter(&self) -> Ops<'_> {
        Ops(&self.0)
    }

    /// The operations, in order, each with where it lies in the buffer.
    pub fn spans(&self) -> impl Iterator<Item = (Op<'_>, Range<usize>)> + '_ {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let from = self.0.len() - rest.len();
            let (op, next) = Op::decode(rest)?;
            rest = next;
            Some((op, from..self.0.len() - next.len()))
        })
    }

    /// The buffer.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// How many bytes they take.
    pub fn byte_len(&self) -> usize {
        self.0.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a EncodedOps {
    type Item = Op<'a>;
    type IntoIter = Ops<'a>;

    fn into_iter(self) -> Ops<'a> {
        self.iter()
    }
}

/// Walks [`EncodedOps`].
#[derive(Debug, Clone)]
pub struct Ops<'a>(&'a [u8]);

impl<'a> Iterator for Ops<'a> {
    type Item = Op<'a>;

    fn next(&mut self) -> Option<Op<'a>> {
        // Malformed bytes never become `EncodedOps`, so the end of decoding is the end of the buffer.
        let (op, rest) = Op::decode(self.0)?;
        self.0 = rest;
        Some(op)
    }
}

/// Bytes that are not a sequence of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no operation at byte {offset}")]
pub struct MalformedOps {
    /// Where the first operation that cannot be read begins.
    pub offset: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(op: &Op<'_>) -> Bytes {
        let mut buffer = BytesMut::new();
        op.encode_into(&mut buffer);
        buffer.freeze()
    }

    proptest! {
        #[test]
        fn the_encoding_is_postcard(
            key in proptest::collection::vec(any::<u8>(), 1..300),
            value in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            for op in [
                Op::Put { key: &key, value: &value },
                Op::Delete { key: &key },
                Op::DeleteRange { start: &value, end: None },
                Op::DeleteRange { start: &value, end: Some(&key) },
            ] {
                let bytes = encode(&op);
                prop_assert_eq!(&bytes[..], &postcard::to_stdvec(&op).unwrap()[..]);
                prop_assert_eq!(postcard::from_bytes::<Op<'_>>(&bytes).unwrap(), op);
                let ops = EncodedOps::from_bytes(bytes).unwrap();
                prop_assert_eq!(ops.iter().collect::<Vec<_>>(), vec![op]);
            }
        }

        #[test]
        fn bytes_from_outside_are_refused_or_read_whole(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(ops) = EncodedOps::from_bytes(Bytes::from(bytes.clone())) {
                let mut again = BytesMut::new();
                let count = ops.iter().inspect(|op| op.encode_into(&mut again)).count();
                prop_assert!(count > 0 || bytes.is_empty());
                prop_assert!(again.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn cut_operations_and_empty_keys_are_refused() {
        let whole = encode(&Op::Put { key: b"key", value: b"value" });
        for len in 1..whole.len() {
            assert_eq!(EncodedOps::from_bytes(whole.slice(..len)), Err(MalformedOps { offset: 0 }));
        }
        assert!(EncodedOps::from_bytes(encode(&Op::Delete { key: b"" })).is_err());
    }
}
