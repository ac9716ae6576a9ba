//! Pages.

use std::sync::Arc;

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, ReplicaStore, ScanOptions};

use crate::Bench;
use crate::bench::{Put, Shorthand, seed};

async fn filled(bench: &Bench, entries: u32) -> Arc<dyn ReplicaStore> {
    let store = bench.open();
    store
        .commit(|set| {
            (0..entries).for_each(|n| {
                set.data(n.to_be_bytes(), vec![1; n as usize % 90]);
            });
        })
        .await;
    store
}

// The pages of a range, each with its keys.
async fn pages(store: &Arc<dyn ReplicaStore>, range: KeyRange, options: ScanOptions) -> Vec<Vec<Bytes>> {
    let mut pages = Vec::new();
    let mut rest = Some(range);
    while let Some(range) = rest {
        let page = store.scan(Keyspace::Data, range, options).await.expect("the range is scanned");
        pages.push(page.entries().map(|(key, _)| key).collect());
        rest = page.rest().cloned();
        assert!(pages.len() < 10_000, "the scan does not end");
    }
    pages
}

fn numbers(keys: impl IntoIterator<Item = u32>) -> Vec<Bytes> {
    keys.into_iter().map(|key| Bytes::copy_from_slice(&key.to_be_bytes())).collect()
}

/// Keys come in byte order, whatever order they were put in.
pub async fn a_scan_is_in_byte_order(bench: Arc<Bench>) {
    let store = bench.open();
    let mut rng = seed();
    let keys: Vec<Vec<u8>> = (0..500).map(|_| (0..rng.usize(1..9)).map(|_| rng.u8(..)).collect()).collect();
    for chunk in keys.chunks(7) {
        store
            .commit(|set| {
                chunk.iter().for_each(|key| {
                    set.data(key, "");
                });
            })
            .await;
    }
    let expected: std::collections::BTreeSet<Vec<u8>> = keys.into_iter().collect();
    assert!(store.keys(KeyRange::all(), ScanOptions::default()).await.iter().eq(expected.iter()));
}

/// A page holds no more entries than asked for, and says where to go on.
pub async fn a_page_is_bounded_in_entries(bench: Arc<Bench>) {
    let store = filled(&bench, 25).await;
    let pages = pages(&store, KeyRange::all(), ScanOptions::default().max_entries(10)).await;
    assert_eq!(pages.iter().map(Vec::len).filter(|len| *len > 0).collect::<Vec<_>>(), [10, 10, 5]);
}

/// A page ends with the entry that brings it to its bytes.
pub async fn a_page_is_bounded_in_bytes(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            (0..20u32).for_each(|n| {
                set.data(n.to_be_bytes(), [0; 96]);
            });
        })
        .await;
    let pages = pages(&store, KeyRange::all(), ScanOptions::default().max_bytes(250)).await;
    assert!(pages.iter().all(|page| page.len() <= 3), "{:?}", pages.iter().map(Vec::len).collect::<Vec<_>>());
    assert_eq!(pages.concat(), numbers(0..20));
}

/// A page holds one entry at least, however small its bounds.
pub async fn a_page_holds_one_entry_at_least(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("a", vec![0; 5000]).data("b", vec![0; 5000]);
        })
        .await;
    for options in [ScanOptions::default().max_bytes(0), ScanOptions::default().max_entries(0)] {
        for options in [options, options.reversed()] {
            assert_eq!(pages(&store, KeyRange::all(), options).await.concat().len(), 2);
            let page = store.scan(Keyspace::Data, KeyRange::all(), options).await.expect("the range is scanned");
            assert_eq!(page.len(), 1);
        }
    }
}

/// Pages joined together are the range: no gap, no overlap.
pub async fn pages_join_without_gap_or_overlap(bench: Arc<Bench>) {
    let store = filled(&bench, 300).await;
    for size in [1, 2, 7, 100, 299, 300, 301] {
        let options = ScanOptions::default().max_entries(size);
        assert_eq!(pages(&store, KeyRange::all(), options).await.concat(), numbers(0..300), "pages of {size}");
        let part = KeyRange::from_bounds(10u32.to_be_bytes()..200u32.to_be_bytes());
        assert_eq!(pages(&store, part, options).await.concat(), numbers(10..200), "pages of {size}");
    }
}

/// So do pages of a reverse scan.
pub async fn reverse_pages_join_without_gap_or_overlap(bench: Arc<Bench>) {
    let store = filled(&bench, 300).await;
    for size in [1, 2, 7, 100, 299, 300, 301] {
        let options = ScanOptions::default().max_entries(size).reversed();
        assert_eq!(pages(&store, KeyRange::all(), options).await.concat(), numbers((0..300).rev()), "pages of {size}");
        let part = KeyRange::from_bounds(10u32.to_be_bytes()..200u32.to_be_bytes());
        assert_eq!(pages(&store, part, options).await.concat(), numbers((10..200).rev()), "pages of {size}");
    }
}

/// Values belong to their keys, page by page, in both directions.
pub async fn values_stay_with_their_keys(bench: Arc<Bench>) {
    let store = filled(&bench, 200).await;
    for options in [ScanOptions::default().max_entries(9), ScanOptions::default().max_entries(9).reversed()] {
        let page = store.scan(Keyspace::Data, KeyRange::all(), options).await.expect("the range is scanned");
        for (key, value) in page.iter() {
            let number = u32::from_be_bytes(key.try_into().expect("four bytes"));
            assert_eq!(value, vec![1; number as usize % 90]);
        }
    }
}

/// What is written between two pages is met if it lies ahead; the scan goes on behind its last key.
pub async fn a_scan_goes_on_behind_its_last_key(bench: Arc<Bench>) {
    let store = filled(&bench, 20).await;
    let options = ScanOptions::default().max_entries(10);
    let first = store.scan(Keyspace::Data, KeyRange::all(), options).await.expect("the range is scanned");
    store
        .commit(|set| {
            set.remove(9u32.to_be_bytes()).remove(10u32.to_be_bytes()).data([0, 0, 0, 9, 1], "");
        })
        .await;
    let rest = first.rest().expect("there is more").clone();
    let second = store.scan(Keyspace::Data, rest, options).await.expect("the range is scanned");
    let keys: Vec<Bytes> = second.entries().map(|(key, _)| key).collect();
    assert_eq!(&keys[0][..], [0, 0, 0, 9, 1]);
    assert_eq!(keys[1..], numbers(11..20));
}
