//! Operations, and a buffer of them: one encoding for batches, records, write sets and pages.
//!
//! An operation is a postcard enum of byte strings: a tag, then each field as a varint length and its bytes. Fields
//! are borrowed from the buffer on the way out, so that bytes from a socket reach a store without a copy.

use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::KeyRange;
use crate::large::{LargePut, OpsPart, OwnedPart, Parts};

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

    pub(crate) fn decode(input: &'a [u8]) -> Option<(Self, &'a [u8])> {
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

/// A sequence of whole, well-formed operations in a shared buffer. Cloning shares the buffer.
///
/// What arrives in more than one buffer stays there: see [`from_segments`](Self::from_segments). Nobody has to care: all
/// but [`parts`](Self::parts) and [`into_parts`](Self::into_parts) put it into one when they are first called, at the
/// cost of a copy. Stores of large values do care.
#[derive(Clone)]
pub struct EncodedOps(Repr);

#[derive(Clone)]
enum Repr {
    Whole(Bytes),
    Parts(Arc<Parts>),
}

impl EncodedOps {
    /// Takes bytes from outside, after checking that they are whole operations and that no key is empty.
    ///
    /// # Errors
    /// [`MalformedOps`] names the offset of the first operation that is not.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, MalformedOps> {
        let whole = Ops(&bytes).whole_len();
        if whole < bytes.len() {
            return Err(MalformedOps { offset: whole });
        }
        Ok(Self::trusted(bytes))
    }

    /// Reads operations from bytes, one after the other; if one cannot be read, that is the last item. For whoever goes
    /// through them once: [`from_bytes`](Self::from_bytes) goes through all of them before it gives them out.
    pub fn read(bytes: &[u8]) -> impl Iterator<Item = Result<Op<'_>, MalformedOps>> {
        let mut rest = Some(bytes);
        std::iter::from_fn(move || {
            let input = rest.take().filter(|input| !input.is_empty())?;
            let Some((op, next)) = Op::decode(input) else {
                return Some(Err(MalformedOps { offset: bytes.len() - input.len() }));
            };
            rest = Some(next);
            Some(Ok(op))
        })
    }

    /// As [`from_bytes`](Self::from_bytes), of bytes that lie in several buffers. Values of more than 1 MiB stay where they
    /// are.
    ///
    /// # Errors
    /// [`MalformedOps`].
    pub fn from_segments(mut segments: Vec<Bytes>) -> Result<Self, MalformedOps> {
        if segments.len() <= 1 {
            return Self::from_bytes(segments.pop().unwrap_or_default());
        }
        Ok(Self(Repr::Parts(Arc::new(Parts::split(segments)?))))
    }

    /// Takes what [`Op::encode_into`] wrote, whose keys are known not to be empty.
    pub(crate) fn trusted(bytes: Bytes) -> Self {
        Self(Repr::Whole(bytes))
    }

    /// Parts that follow one another, each as it lies.
    pub(crate) fn from_parts(mut parts: Vec<OwnedPart>) -> Self {
        match (parts.pop(), parts.is_empty()) {
            (None, _) => Self::default(),
            (Some(OwnedPart::Ops(ops)), true) => ops,
            (Some(last), _) => {
                parts.push(last);
                Self(Repr::Parts(Arc::new(Parts::new(parts))))
            }
        }
    }

    /// The operations, in order.
    pub fn iter(&self) -> Ops<'_> {
        Ops(self.as_bytes())
    }

    /// The operations, in order, each with where it lies in the buffer.
    pub fn spans(&self) -> impl Iterator<Item = (Op<'_>, Range<usize>)> + '_ {
        let all = self.as_bytes();
        let mut rest = &all[..];
        std::iter::from_fn(move || {
            let from = all.len() - rest.len();
            let (op, next) = Op::decode(rest)?;
            rest = next;
            Some((op, from..all.len() - next.len()))
        })
    }

    /// The operations, in order, as they lie in their buffers.
    pub fn parts(&self) -> impl Iterator<Item = OpsPart<'_>> + '_ {
        let (whole, parts) = match &self.0 {
            Repr::Whole(bytes) => (Some(OpsPart::Ops(Ops(bytes))), None),
            Repr::Parts(parts) => (None, Some(parts.iter())),
        };
        whole.into_iter().chain(parts.into_iter().flatten())
    }

    /// The operations, in order, as they lie in their buffers. Where this was the only handle, each of the parts is now.
    pub fn into_parts(self) -> Vec<OwnedPart> {
        match self.0 {
            Repr::Whole(_) => vec![OwnedPart::Ops(self)],
            Repr::Parts(parts) => parts.into_parts(),
        }
    }

    /// The same in one buffer. Where this was the only handle, the buffers are freed one by one while they are copied.
    #[must_use]
    pub fn into_joined(self) -> Self {
        match self.0 {
            Repr::Whole(_) => self,
            Repr::Parts(parts) => Self::trusted(parts.into_joined()),
        }
    }

    /// True if it lies in one buffer.
    pub fn is_joined(&self) -> bool {
        matches!(self.0, Repr::Whole(_))
    }

    /// The buffers, which follow one another: one unless [`is_joined`](Self::is_joined) is false.
    pub fn buffers(&self) -> impl Iterator<Item = &Bytes> + '_ {
        let (whole, parts) = match &self.0 {
            Repr::Whole(bytes) => (Some(bytes), None),
            Repr::Parts(parts) => (None, Some(parts.buffers())),
        };
        whole.into_iter().chain(parts.into_iter().flatten())
    }

    /// The buffer.
    pub fn as_bytes(&self) -> &Bytes {
        match &self.0 {
            Repr::Whole(bytes) => bytes,
            Repr::Parts(parts) => parts.joined(),
        }
    }

    /// How many bytes they take.
    pub fn byte_len(&self) -> usize {
        match &self.0 {
            Repr::Whole(bytes) => bytes.len(),
            Repr::Parts(parts) => parts.byte_len(),
        }
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.byte_len() == 0
    }
}

impl Default for EncodedOps {
    fn default() -> Self {
        Self::trusted(Bytes::new())
    }
}

impl From<LargePut> for EncodedOps {
    fn from(put: LargePut) -> Self {
        Self(Repr::Parts(Arc::new(put.into())))
    }
}

impl From<OwnedPart> for EncodedOps {
    fn from(part: OwnedPart) -> Self {
        match part {
            OwnedPart::Ops(ops) => ops,
            OwnedPart::Put(put) => put.into(),
        }
    }
}

impl PartialEq for EncodedOps {
    fn eq(&self, other: &Self) -> bool {
        self.byte_len() == other.byte_len() && self.as_bytes() == other.as_bytes()
    }
}

impl Eq for EncodedOps {}

impl std::fmt::Debug for EncodedOps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Repr::Whole(bytes) => f.debug_tuple("EncodedOps").field(bytes).finish(),
            Repr::Parts(parts) => f.debug_tuple("EncodedOps").field(parts).finish(),
        }
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

impl<'a> Ops<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// How many bytes at the front are whole operations.
    pub(crate) fn whole_len(self) -> usize {
        let mut rest = self.0;
        while let Some((_, next)) = Op::decode(rest) {
            rest = next;
        }
        self.0.len() - rest.len()
    }
}

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
            let one_by_one: Result<Vec<_>, _> = EncodedOps::read(&bytes).collect();
            let at_once = EncodedOps::from_bytes(Bytes::from(bytes.clone()));
            prop_assert_eq!(one_by_one, at_once.as_ref().map(|ops| ops.iter().collect()).map_err(|error| *error));
            prop_assert_eq!(EncodedOps::read(&bytes).filter(Result::is_err).count(), usize::from(at_once.is_err()));
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

    #[test]
    fn operations_are_equal_if_their_bytes_are_wherever_they_lie() {
        let put = |value: &'static str| encode(&Op::Put { key: b"key", value: value.as_bytes() });
        let ops = |bytes: Bytes| EncodedOps::from_bytes(bytes).unwrap();
        assert_eq!(ops(put("one")), ops(put("one")));
        assert_ne!(ops(put("one")), ops(put("two")));
        assert_ne!(ops(put("one")), ops(put("longer")));
        assert!(ops(put("one")).is_joined());

        let value = vec![Bytes::from(vec![1; 9]), Bytes::from(vec![2; 9])];
        let large: EncodedOps = LargePut::new(b"key", value).unwrap().into();
        assert!(!large.is_joined());
        let joined = large.clone().into_joined();
        assert!(joined.is_joined());
        assert_eq!(joined, large);
        let parts: Vec<EncodedOps> = large.clone().into_parts().into_iter().map(EncodedOps::from).collect();
        assert_eq!(parts, [large]);
        let small = ops(put("one"));
        let parts: Vec<EncodedOps> = small.clone().into_parts().into_iter().map(EncodedOps::from).collect();
        assert_eq!(parts, [small]);
    }
}
