//! The orders that LMDB keeps keys in, and the byte order that everybody else sees.
//!
//! A key has two forms: the native one, as LMDB keeps it, and the wire form, whose bytes sort as the native keys do. An
//! integer in the machine's own byte order is a big-endian integer on the wire; a reversed key is the key from its last
//! byte to its first.

use std::borrow::Cow;
use std::ops::Bound;

use heed::DatabaseFlags;
use replikv_core::KeyRange;

use crate::options::LmdbOrder;

/// The longest key that LMDB holds.
pub(crate) const MAX_KEY: usize = 511;

/// Bounds in native form.
pub(crate) type NativeBounds<'a> = (Bound<Cow<'a, [u8]>>, Bound<Cow<'a, [u8]>>);

impl LmdbOrder {
    /// The native form of a key in wire form, and the other way round.
    pub(crate) fn turn(self, key: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Self::Bytes => Cow::Borrowed(key),
            Self::ReverseKeys => Cow::Owned(key.iter().rev().copied().collect()),
            // Always owned: LMDB reads integers where an allocation begins, and that is aligned.
            Self::IntegerKeys if cfg!(target_endian = "little") => Cow::Owned(key.iter().rev().copied().collect()),
            Self::IntegerKeys => Cow::Owned(key.to_vec()),
        }
    }

    #[allow(deprecated, reason = "heed's comparator is a type, and here the order is a value")]
    pub(crate) fn flags(self) -> DatabaseFlags {
        match self {
            Self::Bytes => DatabaseFlags::empty(),
            Self::ReverseKeys => DatabaseFlags::REVERSE_KEY,
            Self::IntegerKeys => DatabaseFlags::INTEGER_KEY,
        }
    }

    /// Whether a key of `len` bytes can be kept beside keys of `width` bytes, if there are any; or else why not.
    pub(crate) fn refuses(self, len: usize, width: Option<usize>) -> Option<String> {
        if self != Self::IntegerKeys {
            return None;
        }
        match width {
            Some(width) if len == width => None,
            Some(width) => Some(format!("its keys are integers of {width} bytes, this one has {len}")),
            None if len == size_of::<u32>() || len == size_of::<usize>() => None,
            None => {
                let wide = size_of::<usize>();
                Some(format!("its keys are integers of 4 or {wide} bytes, big-endian; this one has {len}"))
            }
        }
    }

    /// The bounds of `range`, which is in wire form; `None` if no key can lie within. `width` is the width of integer
    /// keys, if there are any.
    pub(crate) fn bounds(self, range: &KeyRange, width: Option<usize>) -> Option<NativeBounds<'_>> {
        if range.is_empty() {
            return None;
        }
        match self {
            Self::Bytes | Self::ReverseKeys => {
                Some((self.start(range.start()), self.end(range.end().map(|end| &end[..]))))
            }
            // Without an entry there is no width, and nothing to be found.
            Self::IntegerKeys => integer_bounds(range, width?),
        }
    }

    // No key lies between a bound that is longer than any key and its beginning, except that beginning itself.
    fn start(self, start: &[u8]) -> Bound<Cow<'_, [u8]>> {
        match start {
            [] => Bound::Unbounded,
            start if start.len() > MAX_KEY => Bound::Excluded(self.turn(&start[..MAX_KEY])),
            start => Bound::Included(self.turn(start)),
        }
    }

    fn end(self, end: Option<&[u8]>) -> Bound<Cow<'_, [u8]>> {
        match end {
            None => Bound::Unbounded,
            Some(end) if end.len() > MAX_KEY => Bound::Included(self.turn(&end[..MAX_KEY])),
            Some(end) => Bound::Excluded(self.turn(end)),
        }
    }
}

// Integers of one width: a bound that is shorter stands for the one with zeros behind it, a longer one lies between the
// integer that it begins with and the next.
fn integer_bounds(range: &KeyRange, width: usize) -> Option<NativeBounds<'static>> {
    let start = match integer_at_or_above(range.start(), width) {
        Some(start) => Bound::Included(native(&start)),
        None => return None,
    };
    let end = match range.end().map(|end| integer_at_or_above(end, width)) {
        Some(Some(end)) if end.iter().all(|byte| *byte == 0) => return None,
        Some(Some(end)) => Bound::Excluded(native(&end)),
        Some(None) | None => Bound::Unbounded,
    };
    Some((start, end))
}

fn native(integer: &[u8]) -> Cow<'static, [u8]> {
    Cow::Owned(LmdbOrder::IntegerKeys.turn(integer).into_owned())
}

// The smallest big-endian integer of `width` bytes that does not sort below `bound`; `None` if all do.
fn integer_at_or_above(bound: &[u8], width: usize) -> Option<Vec<u8>> {
    let mut integer = bound[..bound.len().min(width)].to_vec();
    integer.resize(width, 0);
    if bound.len() <= width {
        return Some(integer);
    }
    for byte in integer.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(integer);
        }
    }
    None
}
