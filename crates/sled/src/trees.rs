//! One ordered map over several trees.
//!
//! replikv's own tree holds the keyspaces by a byte before each key; native trees hold a subspace of the data each,
//! without its prefix.

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, StoreError};
use sled::Tree;

use crate::options::TreeOption;

/// Where every key is.
#[derive(Debug)]
pub(crate) struct Trees {
    own: Tree,
    /// By prefix; none overlaps another.
    native: Vec<Native>,
}

/// A subspace in a tree.
#[derive(Debug)]
struct Native {
    tree: Tree,
    prefix: Bytes,
    range: KeyRange,
}

/// A part of a keyspace that lies in one tree: there, `tag` takes the place of `prefix`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'t> {
    pub(crate) tree: &'t Tree,
    /// Which tree it is: 0 is replikv's own.
    pub(crate) index: usize,
    prefix: &'t [u8],
    tag: &'t [u8],
}

/// A range of keys in one place, as its tree has them.
#[derive(Debug)]
pub(crate) struct Part<'t> {
    place: Place<'t>,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

impl Trees {
    /// # Errors
    /// What `open` returns.
    pub(crate) fn open(
        own: Tree,
        options: &[TreeOption],
        open: impl Fn(&[u8]) -> Result<Tree, StoreError>,
    ) -> Result<Self, StoreError> {
        let mut native = Vec::new();
        for option in options {
            let (prefix, range) = (option.space.prefix().clone(), option.space.range());
            native.push(Native { tree: open(&option.name)?, prefix, range });
        }
        native.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        Ok(Self { own, native })
    }

    /// Every tree, replikv's own first, as [`Place::index`] counts them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Tree> {
        std::iter::once(&self.own).chain(self.native.iter().map(|native| &native.tree))
    }

    /// Where a key lies.
    pub(crate) fn place(&self, keyspace: Keyspace, key: &[u8]) -> Place<'_> {
        if keyspace == Keyspace::Data {
            // Prefixes do not overlap: only the last one that is not above the key can be its own.
            let below = self.native.partition_point(|native| native.prefix[..] <= *key);
            if below > 0 && key.starts_with(&self.native[below - 1].prefix) {
                return self.native_place(below - 1);
            }
        }
        self.own_place(keyspace)
    }

    /// The parts of a range, in key order.
    pub(crate) fn parts(&self, keyspace: Keyspace, range: &KeyRange) -> Vec<Part<'_>> {
        let own = self.own_place(keyspace);
        let mut parts = Vec::new();
        let mut from = Some(Bytes::new());
        let native = if keyspace == Keyspace::Data { &self.native[..] } else { &[] };
        for (index, native) in native.iter().enumerate() {
            let Some(start) = from else { break };
            parts.extend(own.part(&KeyRange::new(start, Some(native.range.start().clone())).intersect(range)));
            parts.extend(self.native_place(index).part(&native.range.intersect(range)));
            from = native.range.end().cloned();
        }
        if let Some(start) = from {
            parts.extend(own.part(&KeyRange::new(start, None).intersect(range)));
        }
        parts
    }

    fn own_place(&self, keyspace: Keyspace) -> Place<'_> {
        let tag: &[u8] = match keyspace {
            Keyspace::Data => b"d",
            Keyspace::Log => b"l",
            Keyspace::Meta => b"m",
        };
        Place { tree: &self.own, index: 0, prefix: &[], tag }
    }

    fn native_place(&self, index: usize) -> Place<'_> {
        let native = &self.native[index];
        Place { tree: &native.tree, index: index + 1, prefix: &native.prefix, tag: &[] }
    }
}

impl<'t> Place<'t> {
    /// A key that lies here, as the tree has it.
    pub(crate) fn inner(&self, key: &[u8]) -> Vec<u8> {
        [self.tag, key.strip_prefix(self.prefix).unwrap_or(key)].concat()
    }

    /// What [`inner`](Self::inner) was made of, in `buffer`.
    fn outer<'b>(&self, inner: &[u8], buffer: &'b mut Vec<u8>) -> &'b [u8] {
        buffer.clear();
        buffer.extend_from_slice(self.prefix);
        buffer.extend_from_slice(inner.strip_prefix(self.tag).unwrap_or(inner));
        buffer
    }

    // `None` if no key is in it. Otherwise it begins in this place.
    fn part(self, range: &KeyRange) -> Option<Part<'t>> {
        if range.is_empty() {
            return None;
        }
        // An end that does not begin with the prefix lies behind every key that does.
        let end = match range.end().filter(|end| end.starts_with(self.prefix)) {
            Some(end) => Some(self.inner(end)),
            None => self.tag.first().map(|tag| vec![tag + 1]),
        };
        Some(Part { place: self, start: self.inner(range.start()), end })
    }
}

impl Part<'_> {
    /// Calls `each` with the full keys and the values, in order, until it says that it is enough. True if it did.
    ///
    /// # Errors
    /// Of sled.
    pub(crate) fn walk(&self, reverse: bool, mut each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<bool, sled::Error> {
        let mut entries = match &self.end {
            Some(end) => self.place.tree.range(&self.start[..]..&end[..]),
            None => self.place.tree.range(&self.start[..]..),
        };
        let mut buffer = Vec::new();
        while let Some(entry) = if reverse { entries.next_back() } else { entries.next() } {
            let (inner, value) = entry?;
            if each(self.place.outer(&inner, &mut buffer), &value) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use replikv_core::Subspace;

    use super::*;

    /// Beside each other, apart, the last there are, and one that is a key of the suite's.
    const PREFIXES: [&[u8]; 5] = [b"a", b"b\xFF", b"c\0", b"\xFE", b"\xFF"];

    fn trees(database: &sled::Db, prefixes: &[&[u8]]) -> Trees {
        let options: Vec<_> = prefixes
            .iter()
            .map(|prefix| TreeOption {
                space: Subspace::raw(prefix.to_vec()),
                name: [b"tree ", *prefix].concat().into(),
            })
            .collect();
        let own = database.open_tree("replikv").unwrap();
        Trees::open(own, &options, |name| Ok(database.open_tree(name).unwrap())).unwrap()
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(b'b'), Just(b'c'), Just(0xFE), Just(0xFF)];
        proptest::collection::vec(byte, 0..4)
    }

    fn held(trees: &Trees, range: &KeyRange, reverse: bool) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut parts = trees.parts(Keyspace::Data, range);
        if reverse {
            parts.reverse();
        }
        for part in parts {
            part.walk(reverse, |key, value| {
                assert_eq!(key, value);
                found.push(key.to_vec());
                false
            })
            .unwrap();
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn several_trees_are_one_map_in_byte_order(
            keys in proptest::collection::vec(bytes().prop_filter("no key is empty", |key| !key.is_empty()), 1..40),
            ranges in proptest::collection::vec((bytes(), proptest::option::of(bytes())), 1..24),
            root in any::<bool>(),
        ) {
            let database = sled::Config::new().temporary(true).open().unwrap();
            let prefixes: &[&[u8]] = if root { &[b""] } else { &PREFIXES };
            let trees = trees(&database, prefixes);
            let mut model = BTreeMap::new();
            for key in &keys {
                let place = trees.place(Keyspace::Data, key);
                let native = prefixes.iter().find(|prefix| key.starts_with(prefix));
                prop_assert_eq!(place.index > 0, native.is_some());
                let inner = native.map_or_else(|| [b"d", &key[..]].concat(), |prefix| key[prefix.len()..].to_vec());
                prop_assert_eq!(place.inner(key), inner.clone());
                place.tree.insert(inner, &key[..]).unwrap();
                model.insert(key.clone(), ());
            }
            for keyspace in [Keyspace::Log, Keyspace::Meta] {
                let place = trees.place(keyspace, b"a");
                place.tree.insert(place.inner(b"a"), b"a").unwrap();
                prop_assert_eq!(trees.parts(keyspace, &KeyRange::all()).len(), 1);
            }
            for (start, end) in ranges {
                let range = KeyRange::new(start, end.map(Bytes::from));
                let mut expected: Vec<_> = model.keys().filter(|key| range.contains(key)).cloned().collect();
                prop_assert_eq!(&held(&trees, &range, false), &expected, "{:?}", range);
                expected.reverse();
                prop_assert_eq!(&held(&trees, &range, true), &expected, "{:?}, backwards", range);
            }
        }
    }

    #[test]
    fn the_whole_of_a_keyspace_is_its_prefix() {
        let database = sled::Config::new().temporary(true).open().unwrap();
        let trees = trees(&database, &[]);
        for keyspace in Keyspace::ALL {
            let place = trees.place(keyspace, b"k");
            for other in Keyspace::ALL {
                for key in [&[0][..], &[0xFF; 100]] {
                    let inner = trees.place(other, key).inner(key);
                    place.tree.insert(inner, b"").unwrap();
                }
            }
            let mut found = 0;
            for part in trees.parts(keyspace, &KeyRange::all()) {
                part.walk(false, |key, _| {
                    assert!(key == [0] || key == [0xFF; 100]);
                    found += 1;
                    false
                })
                .unwrap();
            }
            assert_eq!(found, 2, "{keyspace:?}");
        }
    }
}
