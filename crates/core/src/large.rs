//! Puts whose value lies in several buffers: what is hundreds of MiB long need not be in one piece, and goes piece by
//! piece.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};

use crate::op::put_varint;
use crate::{EncodedOps, MalformedOps, Op, Ops};

/// Values up to this long that lie across two buffers are put together: they are not worth the trouble.
const JOINED: usize = 1 << 20;

/// A put whose value lies in several buffers, its segments. Whoever owns it alone can let each of them go once it is
/// copied: see [`into_segments`](Self::into_segments).
#[derive(Debug, Clone)]
pub struct LargePut {
    /// The beginning of the encoded operation: all of it but the value.
    head: Bytes,
    key: Bytes,
    value: Vec<Bytes>,
    value_len: usize,
}

/// A part of [`EncodedOps`].
#[derive(Debug)]
pub enum OpsPart<'a> {
    /// Operations in one buffer.
    Ops(Ops<'a>),
    /// A put whose value lies in several.
    Put(&'a LargePut),
}

/// A part of [`EncodedOps`], by value.
#[derive(Debug, Clone)]
pub enum OwnedPart {
    /// Operations in one buffer.
    Ops(EncodedOps),
    /// A put whose value lies in several.
    Put(LargePut),
}

impl LargePut {
    /// A put of `value`, which is in as many segments as its maker likes. `None` if the key is empty.
    pub fn new(key: &[u8], value: Vec<Bytes>) -> Option<Self> {
        let value_len = value.iter().map(Bytes::len).sum();
        let mut head = BytesMut::with_capacity(key.len() + 21);
        head.put_u8(0);
        put_varint(&mut head, key.len() as u64);
        head.put_slice(key);
        put_varint(&mut head, value_len as u64);
        (!key.is_empty()).then(|| Self { head: head.freeze(), key: Bytes::copy_from_slice(key), value, value_len })
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The length of the value, in bytes.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    /// The value, in pieces that follow one another.
    pub fn segments(&self) -> &[Bytes] {
        &self.value
    }

    /// The value, in pieces that follow one another. The memory of each is free once it is dropped, if nobody else holds
    /// it.
    pub fn into_segments(self) -> Vec<Bytes> {
        self.value
    }

    fn byte_len(&self) -> usize {
        self.head.len() + self.value_len
    }
}

/// Operations that are not in one buffer.
#[derive(Debug)]
pub(crate) struct Parts {
    parts: Vec<OwnedPart>,
    byte_len: usize,
    /// For whoever cannot do with parts.
    joined: OnceLock<Bytes>,
}

impl Parts {
    pub(crate) fn new(parts: Vec<OwnedPart>) -> Self {
        let byte_len = parts.iter().map(OwnedPart::byte_len).sum();
        Self { parts, byte_len, joined: OnceLock::new() }
    }

    /// Splits `segments`, which follow one another, into operations.
    pub(crate) fn split(segments: Vec<Bytes>) -> Result<Self, MalformedOps> {
        Self::split_above(JOINED, segments)
    }

    fn split_above(joined: usize, segments: Vec<Bytes>) -> Result<Self, MalformedOps> {
        let mut rest = Segments::new(segments);
        let mut parts = Vec::new();
        while let Some(segment) = rest.front() {
            // As many as lie in it as a whole.
            let whole = Ops::new(segment).whole_len();
            if whole > 0 {
                parts.push(OwnedPart::Ops(EncodedOps::trusted(rest.take_front(whole))));
                continue;
            }
            let at = MalformedOps { offset: rest.taken };
            parts.push(rest.op_across(joined).ok_or(at)?);
        }
        Ok(Self::new(parts))
    }

    pub(crate) fn byte_len(&self) -> usize {
        self.byte_len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = OpsPart<'_>> {
        self.parts.iter().map(|part| match part {
            OwnedPart::Ops(ops) => OpsPart::Ops(ops.iter()),
            OwnedPart::Put(put) => OpsPart::Put(put),
        })
    }

    pub(crate) fn buffers(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter().flat_map(|part| match part {
            OwnedPart::Ops(ops) => std::iter::once(ops.as_bytes()).chain(&[]),
            OwnedPart::Put(put) => std::iter::once(&put.head).chain(&put.value),
        })
    }

    /// All of it in one buffer, which is kept.
    pub(crate) fn joined(&self) -> &Bytes {
        self.joined.get_or_init(|| {
            let mut joined = BytesMut::with_capacity(self.byte_len);
            self.buffers().for_each(|buffer| joined.put_slice(buffer));
            joined.freeze()
        })
    }

    pub(crate) fn into_parts(self: Arc<Self>) -> Vec<OwnedPart> {
        Self::owned(self).unwrap_or_else(|shared| shared.parts.clone())
    }

    /// All of it in one buffer. Nobody else holding it, the memory of each segment is free as soon as it is copied.
    pub(crate) fn into_joined(self: Arc<Self>) -> Bytes {
        if self.joined.get().is_some() {
            return self.joined().clone();
        }
        let byte_len = self.byte_len;
        let parts = match Self::owned(self) {
            Ok(parts) => parts,
            Err(shared) => return shared.joined().clone(),
        };
        let mut joined = BytesMut::with_capacity(byte_len);
        for part in parts {
            match part {
                OwnedPart::Ops(ops) => joined.put_slice(ops.as_bytes()),
                OwnedPart::Put(put) => {
                    joined.put_slice(&put.head);
                    put.value.into_iter().for_each(|segment| joined.put_slice(&segment));
                }
            }
        }
        joined.freeze()
    }

    fn owned(parts: Arc<Self>) -> Result<Vec<OwnedPart>, Arc<Self>> {
        Arc::try_unwrap(parts).map(|parts| parts.parts)
    }
}

impl From<LargePut> for Parts {
    fn from(put: LargePut) -> Self {
        Self::new(vec![OwnedPart::Put(put)])
    }
}

impl OwnedPart {
    fn byte_len(&self) -> usize {
        match self {
            Self::Ops(ops) => ops.byte_len(),
            Self::Put(put) => put.byte_len(),
        }
    }
}

/// Buffers that follow one another, eaten from the front.
struct Segments {
    /// Those that are left, the last one first; none is empty.
    rest: Vec<Bytes>,
    taken: usize,
}

impl Segments {
    fn new(mut segments: Vec<Bytes>) -> Self {
        segments.retain(|segment| !segment.is_empty());
        segments.reverse();
        Self { rest: segments, taken: 0 }
    }

    fn front(&self) -> Option<&Bytes> {
        self.rest.last()
    }

    fn take_front(&mut self, len: usize) -> Bytes {
        let Some(front) = self.rest.last_mut() else { return Bytes::new() };
        let taken = front.split_to(len.min(front.len()));
        if front.is_empty() {
            self.rest.pop();
        }
        self.taken += taken.len();
        taken
    }

    fn take(&mut self, mut len: usize) -> Option<Vec<Bytes>> {
        let mut pieces = Vec::new();
        while len > 0 {
            let piece = self.take_front(len);
            if piece.is_empty() {
                return None;
            }
            len -= piece.len();
            pieces.push(piece);
        }
        Some(pieces)
    }

    // The operation that begins in one buffer and ends in another.
    fn op_across(&mut self, joined: usize) -> Option<OwnedPart> {
        let mut head = BytesMut::new();
        let tag = self.byte(&mut head)?;
        // Copied: a key that shared its buffer would keep all of that.
        let key = self.bytes(&mut head)?;
        match tag {
            0 if !key.is_empty() => {
                let value_len = self.varint(&mut head)?;
                let value = self.take(value_len)?;
                if value_len > joined {
                    return Some(OwnedPart::Put(LargePut { head: head.freeze(), key, value, value_len }));
                }
                value.iter().for_each(|piece| head.put_slice(piece));
            }
            1 => {}
            2 => match self.byte(&mut head)? {
                0 => {}
                1 => drop(self.bytes(&mut head)?),
                _ => return None,
            },
            _ => return None,
        }
        let head = head.freeze();
        // Whatever else would be wrong with it.
        matches!(Op::decode(&head), Some((_, []))).then(|| OwnedPart::Ops(EncodedOps::trusted(head)))
    }

    fn byte(&mut self, copy: &mut BytesMut) -> Option<u8> {
        let byte = *self.take_front(1).first()?;
        copy.put_u8(byte);
        Some(byte)
    }

    fn varint(&mut self, copy: &mut BytesMut) -> Option<usize> {
        let mut value = 0u64;
        for index in 0..10 {
            let byte = self.byte(copy)?;
            let bits = u64::from(byte & 0x7F);
            if index == 9 && bits > 1 {
                return None;
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                return usize::try_from(value).ok();
            }
        }
        None
    }

    fn bytes(&mut self, copy: &mut BytesMut) -> Option<Bytes> {
        let len = self.varint(copy)?;
        let pieces = self.take(len)?;
        let mut bytes = BytesMut::new();
        pieces.iter().for_each(|piece| bytes.put_slice(piece));
        copy.put_slice(&bytes);
        Some(bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use proptest::prelude::*;

    /// Some operations of every kind, with values of all lengths.
    fn ops() -> Bytes {
        let mut bytes = BytesMut::new();
        for len in [0, 1, 9, 200] {
            let value = vec![len as u8; len];
            Op::Put { key: b"key", value: &value }.encode_into(&mut bytes);
            Op::Delete { key: b"other" }.encode_into(&mut bytes);
            Op::DeleteRange { start: &value, end: None }.encode_into(&mut bytes);
            Op::DeleteRange { start: b"", end: Some(b"end") }.encode_into(&mut bytes);
        }
        bytes.freeze()
    }

    fn cut(bytes: &Bytes, at: &[usize]) -> Vec<Bytes> {
        let mut at: Vec<_> = at.iter().map(|at| at % (bytes.len() + 1)).collect();
        at.sort_unstable();
        let starts = std::iter::once(0).chain(at.iter().copied());
        starts.zip(at.iter().copied().chain([bytes.len()])).map(|(start, end)| bytes.slice(start..end)).collect()
    }

    proptest! {
        #[test]
        fn operations_are_the_same_wherever_they_are_cut(at in proptest::collection::vec(any::<usize>(), 0..12)) {
            let whole = ops();
            let parts = Parts::split_above(8, cut(&whole, &at)).unwrap();
            prop_assert_eq!(parts.byte_len(), whole.len());
            prop_assert_eq!(parts.buffers().map(|buffer| &buffer[..]).collect::<Vec<_>>().concat(), &whole[..]);
            prop_assert_eq!(parts.joined(), &whole);
            let long = |put: &LargePut| put.value_len() > 8 && put.key() == b"key";
            prop_assert!(parts.iter().all(|part| matches!(part, OpsPart::Ops(_)) || matches!(part, OpsPart::Put(put) if long(put))));
            prop_assert_eq!(Arc::new(parts).into_joined(), whole);
        }

        #[test]
        fn what_is_malformed_in_one_buffer_is_malformed_in_several(
            at in proptest::collection::vec(any::<usize>(), 1..6),
            wrong in any::<usize>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = BytesMut::from(&ops()[..]);
            let len = bytes.len();
            bytes[wrong % len] = byte;
            let bytes = bytes.freeze();
            let whole = EncodedOps::from_bytes(bytes.clone());
            let parts = Parts::split_above(8, cut(&bytes, &at));
            prop_assert_eq!(whole.as_ref().err(), parts.as_ref().err());
        }
    }

    #[test]
    fn operations_that_are_cut_off_are_refused() {
        let whole = ops();
        for end in 1..whole.len() {
            let cut_off = cut(&whole.slice(..end), &[end / 2]);
            let one = EncodedOps::from_bytes(whole.slice(..end)).map(drop);
            assert_eq!(Parts::split_above(8, cut_off).map(drop), one, "{end} bytes");
        }
    }

    /// Counts the buffers that are still held.
    struct Counted(Vec<u8>, Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn counted(pieces: usize) -> (Vec<Bytes>, Arc<AtomicUsize>) {
        let held = Arc::new(AtomicUsize::new(pieces));
        let mut bytes = BytesMut::new();
        Op::Delete { key: b"before" }.encode_into(&mut bytes);
        Op::Put { key: b"key", value: &vec![7; 4 * JOINED] }.encode_into(&mut bytes);
        Op::Delete { key: b"after" }.encode_into(&mut bytes);
        let len = bytes.len().div_ceil(pieces);
        let segments = bytes.chunks(len).map(|piece| Bytes::from_owner(Counted(piece.to_vec(), held.clone())));
        (segments.collect(), held)
    }

    #[test]
    fn each_piece_is_free_as_soon_as_it_is_let_go() {
        let (segments, held) = counted(5);
        let ops = EncodedOps::from_segments(segments).unwrap();
        let mut left = Vec::new();
        for part in ops.into_parts() {
            let OwnedPart::Put(put) = part else { continue };
            assert_eq!((put.key(), put.value_len()), (&b"key"[..], 4 * JOINED));
            for segment in put.into_segments() {
                drop(segment);
                left.push(held.load(Ordering::SeqCst));
            }
        }
        // The last one holds the operation behind the value.
        assert_eq!(left, [4, 3, 2, 1, 1]);
        assert_eq!(held.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn what_somebody_else_holds_is_lent_and_not_taken() {
        let (segments, held) = counted(3);
        let ops = EncodedOps::from_segments(segments).unwrap();
        let kept = ops.clone();
        drop(ops.into_parts());
        assert_eq!(held.load(Ordering::SeqCst), 3);
        assert_eq!(kept.iter().count(), 3);
        let joined = kept.into_joined();
        assert_eq!(held.load(Ordering::SeqCst), 0, "in one buffer they are not needed");
        assert_eq!(joined.iter().count(), 3);
    }

    #[test]
    fn a_value_of_the_bound_is_joined_and_a_longer_one_is_not() {
        for (len, is_large) in [(8, false), (9, true)] {
            let mut bytes = BytesMut::new();
            Op::Put { key: b"key", value: &vec![7; len] }.encode_into(&mut bytes);
            let bytes = bytes.freeze();
            let parts = Parts::split_above(8, vec![bytes.slice(..7), bytes.slice(7..)]).unwrap();
            let part = parts.iter().next().unwrap();
            assert_eq!(matches!(part, OpsPart::Put(_)), is_large, "{len} bytes");
            if let OpsPart::Put(put) = part {
                assert_eq!(put.segments().iter().map(Bytes::len).collect::<Vec<_>>(), [1, 8]);
                assert_eq!(put.segments().concat(), vec![7; len]);
            }
        }
    }

    #[test]
    fn no_key_is_empty_however_long_its_value_is() {
        let mut bytes = BytesMut::new();
        Op::Put { key: b"", value: &[7; 40] }.encode_into(&mut bytes);
        let bytes = bytes.freeze();
        assert!(Parts::split_above(8, vec![bytes.slice(..9), bytes.slice(9..)]).is_err());
    }

    #[test]
    fn lengths_that_no_number_holds_are_refused_in_one_buffer_and_in_several() {
        // A length of 3, in ten bytes; the last of these holds one bit.
        for (last, reads) in [(0, true), (1, false), (2, false)] {
            let mut bytes = vec![1, 0x83];
            bytes.extend([0x80; 8]);
            bytes.extend([last, b'k', b'e', b'y']);
            let bytes = Bytes::from(bytes);
            assert_eq!(EncodedOps::from_bytes(bytes.clone()).is_ok(), reads, "{last}");
            let cut = vec![bytes.slice(..4), bytes.slice(4..)];
            assert_eq!(Parts::split_above(8, cut).is_ok(), reads, "{last}");
        }
        // The same of a value that is not joined, and so not read again.
        for (last, reads) in [(0, true), (1, false), (2, false)] {
            let mut bytes = vec![0, 1, b'k', 0x80 | 40];
            bytes.extend([0x80; 8]);
            bytes.push(last);
            bytes.extend([7; 40]);
            let bytes = Bytes::from(bytes);
            let cut = vec![bytes.slice(..20), bytes.slice(20..)];
            assert_eq!(Parts::split_above(8, cut).is_ok(), reads, "{last}");
        }
    }
}
