//! Parts of the key space by prefix.

use bytes::Bytes;

use crate::KeyRange;

/// The keys that begin with a prefix, as a space of their own: the job that sublevels do.
///
/// Names are escaped and terminated (`0x00` becomes `0x00 0xFF`, the end is `0x00 0x01`), so that siblings never
/// share a key, whatever bytes their names hold, and nesting is by concatenation. There is no sentinel: the range of
/// a subspace holds every key in it.
///
/// ```
/// use replikv_core::Subspace;
/// let users = Subspace::named("users");
/// let key = users.key("alice");
/// assert_eq!(users.strip(&key), Some(&b"alice"[..]));
/// assert!(users.range().contains(&key));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Subspace {
    prefix: Bytes,
}

impl Subspace {
    /// The whole key space.
    pub const fn root() -> Self {
        Self { prefix: Bytes::new() }
    }

    /// A subspace of the root.
    pub fn named(name: impl AsRef<[u8]>) -> Self {
        Self::root().child(name)
    }

    /// The keys that begin with exactly these bytes, for key spaces that have their own convention. Two raw
    /// prefixes overlap if one begins with the other.
    pub fn raw(prefix: impl Into<Bytes>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// A subspace of this one.
    #[must_use]
    pub fn child(&self, name: impl AsRef<[u8]>) -> Self {
        let mut prefix = self.prefix.to_vec();
        escape_into(name.as_ref(), &mut prefix);
        Self { prefix: prefix.into() }
    }

    /// What its keys begin with.
    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// The full key of `key`.
    pub fn key(&self, key: impl AsRef<[u8]>) -> Bytes {
        Bytes::from([&self.prefix, key.as_ref()].concat())
    }

    /// The key within this subspace, or `None` if `key` is not in it.
    pub fn strip<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        key.strip_prefix(&self.prefix[..])
    }

    /// Every key in it.
    pub fn range(&self) -> KeyRange {
        KeyRange::prefix(&self.prefix)
    }

    /// The full keys of `range`, a range within this subspace.
    pub fn range_of(&self, range: &KeyRange) -> KeyRange {
        let end = range.end().map_or_else(|| self.range().end().cloned(), |end| Some(self.key(end)));
        KeyRange::new(self.key(range.start()), end)
    }

    /// True if some key could lie in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.prefix.starts_with(&other.prefix) || other.prefix.starts_with(&self.prefix)
    }
}

/// Appends `bytes` so that they end recognisably and sort as they did: `0x00` becomes `0x00 0xFF`, the end `0x00 0x01`.
pub(crate) fn escape_into(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out.extend_from_slice(&[0x00, 0x01]);
}

/// Reads what [`escape_into`] wrote, and moves `input` behind it.
pub(crate) fn unescape(input: &mut &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let zero = input.iter().position(|&byte| byte == 0)?;
        bytes.extend_from_slice(&input[..zero]);
        let mark = *input.get(zero + 1)?;
        *input = &input[zero + 2..];
        match mark {
            0x01 => return Some(bytes),
            0xFF => bytes.push(0),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0x7F), Just(0xFE), Just(0xFF)], 0..5)
    }

    proptest! {
        #[test]
        fn siblings_never_share_a_key(a in bytes(), b in bytes(), key in bytes()) {
            let (one, two) = (Subspace::named(&a), Subspace::named(&b));
            prop_assert_eq!(one.overlaps(&two), a == b);
            prop_assert_eq!(two.strip(&one.key(&key)).is_some(), a == b);
            prop_assert_eq!(two.range().contains(&one.key(&key)), a == b);
        }

        #[test]
        fn a_subspace_holds_its_keys_in_their_order(path in proptest::collection::vec(bytes(), 0..3), a in bytes(), b in bytes()) {
            let space = path.iter().fold(Subspace::root(), |space, name| space.child(name));
            prop_assert!(space.range().contains(&space.key(&a)));
            let key = space.key(&a);
            prop_assert_eq!(space.strip(&key), Some(&a[..]));
            prop_assert_eq!(space.key(&a).cmp(&space.key(&b)), a.cmp(&b));
        }

        #[test]
        fn a_range_within_is_the_range_of_its_keys(prefix in bytes(), a in bytes(), b in bytes(), key in bytes(), open in any::<bool>()) {
            let space = Subspace::raw(prefix);
            let range = if open { KeyRange::from_bounds(a..) } else { KeyRange::from_bounds(a..b) };
            prop_assert_eq!(space.range_of(&range).contains(&space.key(&key)), range.contains(&key));
        }

        #[test]
        fn escaping_keeps_order_and_ends(a in bytes(), b in bytes(), tail in bytes()) {
            let escape = |bytes: &[u8]| { let mut out = Vec::new(); escape_into(bytes, &mut out); out };
            prop_assert_eq!(escape(&a).cmp(&escape(&b)), a.cmp(&b));
            let all = [escape(&a), tail.clone()].concat();
            let mut input = &all[..];
            prop_assert_eq!(unescape(&mut input), Some(a));
            prop_assert_eq!(input, &tail[..]);
        }
    }
}
