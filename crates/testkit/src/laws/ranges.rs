//! Range deletes, and ranges in scans.

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use replikv_core::{KeyRange, Keyspace, ReplicaStore, ScanOptions};

use crate::Bench;
use crate::bench::{Put, Shorthand};

const KEYS: [&[u8]; 9] = [b"\0", b"a", b"a\0", b"aa", b"b", b"b\xFF", b"c", b"\xFF", b"\xFF\xFF"];

type Bounds = (Bound<&'static [u8]>, Bound<&'static [u8]>);

// Every kind of bound, at keys that are there, beside them, and the wrong way round.
fn every_bounds() -> Vec<Bounds> {
    let points: [&[u8]; 7] = [b"\0", b"a", b"ab", b"b", b"b\xFF", b"\xFF\xFF", b"\xFF\xFF\xFF"];
    let mut bounds = vec![Bound::Unbounded];
    bounds.extend(points.iter().flat_map(|point| [Bound::Included(*point), Bound::Excluded(*point)]));
    bounds.iter().flat_map(|start| bounds.iter().map(move |end| (*start, *end))).collect()
}

fn within(bounds: &Bounds, key: &[u8]) -> bool {
    RangeBounds::<[u8]>::contains(bounds, key)
}

async fn fill(store: &Arc<dyn ReplicaStore>) {
    store
        .commit(|set| {
            KEYS.iter().for_each(|key| {
                set.data(key, "v");
            });
        })
        .await;
}

/// A range delete removes what lies within every kind of bound, and nothing else.
pub async fn a_range_delete_keeps_to_its_bounds(bench: Arc<Bench>) {
    let store = bench.open();
    for bounds in every_bounds() {
        fill(&store).await;
        let range = KeyRange::from_bounds::<&[u8]>(bounds);
        store
            .commit(|set| {
                set.delete_range(Keyspace::Data, &range);
            })
            .await;
        let left: Vec<&[u8]> = KEYS.into_iter().filter(|key| !within(&bounds, key)).collect();
        assert_eq!(store.keys(KeyRange::all(), ScanOptions::default()).await, left, "{bounds:?}");
    }
}

/// A scan returns what lies within every kind of bound, and nothing else, in both directions.
pub async fn a_scan_keeps_to_its_bounds(bench: Arc<Bench>) {
    let store = bench.open();
    fill(&store).await;
    for bounds in every_bounds() {
        let mut expected: Vec<&[u8]> = KEYS.into_iter().filter(|key| within(&bounds, key)).collect();
        let range = KeyRange::from_bounds::<&[u8]>(bounds);
        assert_eq!(store.keys(range.clone(), ScanOptions::default()).await, expected, "{bounds:?}");
        expected.reverse();
        assert_eq!(store.keys(range, ScanOptions::default().reversed()).await, expected, "reversed, {bounds:?}");
    }
}

/// A range delete without bounds empties its keyspace.
pub async fn a_range_delete_without_bounds_removes_everything(bench: Arc<Bench>) {
    let store = bench.open();
    fill(&store).await;
    store
        .commit(|set| {
            set.put(Keyspace::Meta, "kept", "").expect("a key");
        })
        .await;
    store
        .commit(|set| {
            set.delete_range(Keyspace::Data, &KeyRange::all());
        })
        .await;
    assert!(store.contents(Keyspace::Data).await.is_empty());
    assert_eq!(store.contents(Keyspace::Meta).await.len(), 1);
}

/// A range whose end is not above its start deletes nothing, and is no error.
pub async fn an_inverted_range_deletes_nothing(bench: Arc<Bench>) {
    let store = bench.open();
    fill(&store).await;
    for range in [KeyRange::from_bounds("c".."a"), KeyRange::from_bounds("a".."a"), KeyRange::empty()] {
        store
            .commit(|set| {
                set.delete_range(Keyspace::Data, &range);
            })
            .await;
    }
    assert_eq!(store.contents(Keyspace::Data).await.len(), KEYS.len());
}

/// An empty or inverted range holds nothing, in both directions.
pub async fn an_inverted_range_holds_nothing(bench: Arc<Bench>) {
    let store = bench.open();
    fill(&store).await;
    for range in [KeyRange::from_bounds("c".."a"), KeyRange::from_bounds("a".."a"), KeyRange::empty()] {
        for options in [ScanOptions::default(), ScanOptions::default().reversed()] {
            let page = store.scan(Keyspace::Data, range.clone(), options).await.expect("the range is scanned");
            assert!(page.is_empty() && page.rest().is_none(), "{range:?}");
        }
    }
}

/// Bounds may be longer than any key, in scans and in range deletes.
pub async fn bounds_may_be_longer_than_any_key(bench: Arc<Bench>) {
    let store = bench.open();
    let longest = vec![b'k'; store.limits().max_key.min(1 << 16)];
    store
        .commit(|set| {
            set.data(&longest, "").data("z", "");
        })
        .await;
    let only = KeyRange::only(&longest);
    assert_eq!(store.keys(only.clone(), ScanOptions::default()).await, [&longest[..]]);
    let after = KeyRange::all().after(&longest);
    assert_eq!(store.keys(after.clone(), ScanOptions::default()).await, ["z"]);
    assert_eq!(store.keys(after, ScanOptions::default().reversed()).await, ["z"]);
    store
        .commit(|set| {
            set.delete_range(Keyspace::Data, &only);
        })
        .await;
    assert_eq!(store.keys(KeyRange::all(), ScanOptions::default()).await, ["z"]);
}

/// The range of a prefix of nothing but 0xFF ends where the keyspace does: no key sorts above it.
pub async fn no_key_sorts_above_the_last_prefix(bench: Arc<Bench>) {
    let store = bench.open();
    fill(&store).await;
    let found = store.keys(KeyRange::prefix(b"\xFF"), ScanOptions::default()).await;
    assert_eq!(found, [&b"\xFF"[..], b"\xFF\xFF"]);
    store
        .commit(|set| {
            set.delete_range(Keyspace::Data, &KeyRange::prefix(b"\xFF"));
        })
        .await;
    assert_eq!(store.contents(Keyspace::Data).await.len(), KEYS.len() - 2);
}
