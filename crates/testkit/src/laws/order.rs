//! Order within a write set, and write sets against a model.

use std::collections::BTreeMap;
use std::sync::Arc;

use replikv_core::{Durability, KeyRange, Keyspace};

use crate::Bench;
use crate::bench::{Put, Shorthand, seed, writes};

/// Of several puts of one key in a set, the last one counts.
pub async fn the_last_put_of_a_key_wins(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("z", "1").data("a", "1").data("z", "2").data("a", "2").data("a", "3");
        })
        .await;
    assert_eq!(store.data("a").await.as_deref(), Some(&b"3"[..]));
    assert_eq!(store.data("z").await.as_deref(), Some(&b"2"[..]));
}

/// A delete undoes the put before it in the set.
pub async fn a_delete_after_a_put_removes(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("b", "1").data("a", "1").remove("b");
        })
        .await;
    assert_eq!(store.contents(Keyspace::Data).await.len(), 1);
}

/// A put stands against the delete before it in the set.
pub async fn a_put_after_a_delete_stays(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("a", "old");
        })
        .await;
    store
        .commit(|set| {
            set.remove("a").data("a", "new");
        })
        .await;
    assert_eq!(store.data("a").await.as_deref(), Some(&b"new"[..]));
}

/// A range delete also removes what was put before it in the same set.
pub async fn a_range_delete_removes_what_the_set_has_put_before(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("b", "stored");
        })
        .await;
    let range = KeyRange::from_bounds("a".."d");
    store
        .commit(|set| {
            set.data("c", "put").data("d", "put").delete_range(Keyspace::Data, &range);
        })
        .await;
    assert_eq!(store.keys(KeyRange::all(), Default::default()).await, ["d"]);
}

/// A put stands against the range delete before it in the same set.
pub async fn a_put_after_a_range_delete_stays(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            set.data("a", "old").data("b", "old");
        })
        .await;
    let all = KeyRange::all();
    store
        .commit(|set| {
            set.delete_range(Keyspace::Data, &all).data("b", "new");
        })
        .await;
    let contents = store.contents(Keyspace::Data).await;
    assert_eq!(contents.len(), 1);
    assert_eq!(&contents[0].1[..], b"new");
}

/// Operations keep their order across keyspaces, and from one set to the next.
pub async fn sets_apply_one_after_the_other(bench: Arc<Bench>) {
    let store = bench.open();
    for round in 0..50u32 {
        let set = writes(|set| {
            let round = round.to_be_bytes();
            set.put(Keyspace::Meta, "round", round).expect("a key").data("round", round);
        });
        store.apply(set, Durability::Buffered).await.expect("the write set is applied");
        assert_eq!(store.data("round").await.as_deref(), Some(&round.to_be_bytes()[..]));
    }
}

/// Thousands of operations in one set are applied, all of them.
pub async fn a_large_set_is_applied_whole(bench: Arc<Bench>) {
    let store = bench.open();
    let key = |n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes();
    store
        .commit(|set| {
            (0..20_000u32).for_each(|n| {
                set.data(key(n), n.to_be_bytes());
            });
        })
        .await;
    store
        .commit(|set| {
            (0..20_000u32).step_by(2).for_each(|n| {
                set.remove(key(n));
            });
        })
        .await;
    assert_eq!(store.contents(Keyspace::Data).await.len(), 10_000);
    assert_eq!(store.data(key(7)).await.as_deref(), Some(&7u32.to_be_bytes()[..]));
}

/// Any mixture of operations comes to what an ordered map makes of it.
pub async fn random_sets_come_to_what_a_map_makes_of_them(bench: Arc<Bench>) {
    let store = bench.open();
    let mut rng = seed();
    let mut model: BTreeMap<(Keyspace, Vec<u8>), Vec<u8>> = BTreeMap::new();
    for _ in 0..200 {
        let set = writes(|set| {
            for _ in 0..rng.usize(1..20) {
                let keyspace = Keyspace::ALL[rng.usize(..3)];
                let mut key = || (0..rng.usize(1..4)).map(|_| [0, 1, 0x7F, 0xFF][rng.usize(..4)]).collect::<Vec<u8>>();
                let (one, two) = (key(), key());
                match rng.u8(..10) {
                    0 => {
                        let range = KeyRange::from_bounds(one.clone()..two.clone());
                        set.delete_range(keyspace, &range);
                        model.retain(|(ks, key), _| *ks != keyspace || !range.contains(key));
                    }
                    1..=3 => {
                        set.delete(keyspace, &one).expect("a key");
                        model.remove(&(keyspace, one));
                    }
                    _ => {
                        set.put(keyspace, &one, &two).expect("a key");
                        model.insert((keyspace, one), two);
                    }
                }
            }
        });
        store.apply(set, Durability::Buffered).await.expect("the write set is applied");
    }
    for keyspace in Keyspace::ALL {
        let expected = model.iter().filter(|((ks, _), _)| *ks == keyspace);
        let expected: Vec<_> = expected.map(|((_, key), value)| (key.clone().into(), value.clone().into())).collect();
        assert_eq!(store.contents(keyspace).await, expected, "{keyspace:?}");
    }
}
