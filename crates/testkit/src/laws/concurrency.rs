//! Many at once, and futures that are dropped.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use replikv_core::{Durability, KeyRange, Keyspace, ScanOptions};

use crate::Bench;
use crate::bench::{Put, Shorthand, breathe, seed, writes};

const KEYS: u32 = 40;

/// A page is of one instant: while a writer rewrites all keys in one set, no page shows two generations.
pub async fn a_page_never_shows_half_a_write_set(bench: Arc<Bench>) {
    let store = bench.open();
    let generation = |number: u32| {
        writes(|set| {
            (0..KEYS).for_each(|key| {
                set.data(key.to_be_bytes(), number.to_be_bytes());
            });
        })
    };
    store.apply(generation(0), Durability::Buffered).await.expect("the write set is applied");
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 1..=300 {
                store.apply(generation(number), Durability::Buffered).await.expect("the write set is applied");
            }
        }
    });
    let mut pages = 0;
    while !writing.is_finished() || pages == 0 {
        for options in [ScanOptions::default(), ScanOptions::default().reversed()] {
            let page = store.scan(Keyspace::Data, KeyRange::all(), options).await.expect("the range is scanned");
            assert_eq!(page.len(), KEYS as usize);
            let (_, first) = page.iter().next().expect("an entry");
            assert!(page.iter().all(|(_, value)| value == first), "a page shows two generations");
            pages += 1;
            breathe(pages).await;
        }
    }
    writing.await.expect("the writer ends");
}

/// A range delete and the puts after it in one set are one step in every reader's eyes.
pub async fn a_replaced_range_is_never_seen_empty(bench: Arc<Bench>) {
    let store = bench.open();
    let replace = |number: u32| {
        writes(|set| {
            set.delete_range(Keyspace::Data, &KeyRange::all());
            (0..KEYS).for_each(|key| {
                set.data([number as u8, key as u8], "");
            });
        })
    };
    store.apply(replace(0), Durability::Buffered).await.expect("the write set is applied");
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 1..=200 {
                store.apply(replace(number), Durability::Buffered).await.expect("the write set is applied");
            }
        }
    });
    let mut pages = 0;
    while !writing.is_finished() {
        pages += 1;
        breathe(pages).await;
        let page = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.expect("scanned");
        assert_eq!(page.len(), KEYS as usize);
    }
    writing.await.expect("the writer ends");
}

/// Whoever was told that a set is applied reads it, from any task.
pub async fn what_is_applied_is_seen_by_everybody(bench: Arc<Bench>) {
    let store = bench.open();
    for round in 0..100u32 {
        let set = writes(|set| {
            set.data("round", round.to_be_bytes());
        });
        store.apply(set, Durability::Buffered).await.expect("the write set is applied");
        let other = store.clone();
        let seen = tokio::spawn(async move { other.data("round").await }).await.expect("the reader ends");
        assert_eq!(seen.as_deref(), Some(&round.to_be_bytes()[..]));
    }
}

/// Thousands of reads and writes at once all answer, and nothing is lost.
pub async fn thousands_of_readers_and_writers_are_served(bench: Arc<Bench>) {
    let store = bench.open();
    let mut tasks = Vec::new();
    for number in 0..1500u32 {
        let writer = store.clone();
        tasks.push(tokio::spawn(async move {
            let set = writes(|set| {
                set.data(number.to_be_bytes(), number.to_be_bytes());
            });
            writer.apply(set, Durability::Buffered).await.expect("the write set is applied");
        }));
        let reader = store.clone();
        tasks.push(tokio::spawn(async move {
            let key = number.to_be_bytes();
            assert!(reader.data(key).await.is_none_or(|value| value[..] == key));
            let options = ScanOptions::default().max_entries(5);
            reader.scan(Keyspace::Data, KeyRange::all(), options).await.expect("the range is scanned");
        }));
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(120), task).await.expect("nothing hangs").expect("nothing fails");
    }
    assert_eq!(store.contents(Keyspace::Data).await.len(), 1500);
}

/// An apply whose future is dropped is whole or absent, and decided before any later call answers.
pub async fn a_dropped_apply_is_whole_or_absent(bench: Arc<Bench>) {
    let store = bench.open();
    let mut rng = seed();
    for round in 0..150u32 {
        let set = writes(|set| {
            (0..20u32).for_each(|key| {
                set.data([&round.to_be_bytes()[..], &key.to_be_bytes()].concat(), "");
            });
        });
        {
            let mut apply = store.apply(set, Durability::Buffered);
            // Polled never, once, or for a moment.
            match rng.u8(..3) {
                0 => {}
                1 => drop((&mut apply).now_or_never()),
                _ => drop(tokio::time::timeout(Duration::from_micros(rng.u64(..400)), &mut apply).await),
            }
        }
        let range = KeyRange::prefix(round.to_be_bytes());
        let found = store.keys(range.clone(), ScanOptions::default()).await.len();
        assert!(found == 0 || found == 20, "{found} of 20 are there");
        // What was seen is what stays, also after further writes.
        store
            .commit(|set| {
                set.data("after", "");
            })
            .await;
        let later = store.keys(range, ScanOptions::default()).await.len();
        assert_eq!(found, later, "a dropped apply was decided after another call had answered");
    }
}

/// Dropping reads disturbs nothing.
pub async fn a_dropped_read_disturbs_nothing(bench: Arc<Bench>) {
    let store = bench.open();
    store
        .commit(|set| {
            (0..500u32).for_each(|key| {
                set.data(key.to_be_bytes(), "");
            });
        })
        .await;
    for _ in 0..200 {
        drop(store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).now_or_never());
        drop(store.get(Keyspace::Data, b"key").now_or_never());
    }
    assert_eq!(store.contents(Keyspace::Data).await.len(), 500);
}
