//! Cursors.

use std::sync::Arc;

use replikv_core::{
    Coverage, Cursor, Digest, Durability, Epoch, KeyRange, LinkId, Position, Seq, SourceId, StoreError, WriteSet,
};

use crate::Bench;
use crate::bench::{Put, Shorthand, breathe};

pub(crate) fn cursor(seq: u64) -> Cursor {
    Cursor::at(Position {
        source: SourceId::from_bytes([7; 16]),
        epoch: Epoch { number: 1, nonce: 9 },
        seq: Seq::new(seq),
        digest: Digest::from_bytes([3; 16]),
    })
}

/// A cursor is read as it was set last, with its coverage.
pub async fn a_cursor_is_read_as_it_was_set(bench: Arc<Bench>) {
    let store = bench.open();
    let link = LinkId::default();
    assert_eq!(store.cursor(&link).await.expect("the cursor is read"), None);
    let copying = Cursor { coverage: Coverage::begin(KeyRange::prefix("users/")), ..cursor(5) };
    for set in [cursor(1), copying, cursor(9)] {
        store
            .commit(|writes| {
                writes.set_cursor(&link, &set);
            })
            .await;
        assert_eq!(store.cursor(&link).await.expect("the cursor is read"), Some(set));
    }
}

/// Every link has a cursor of its own.
pub async fn links_have_cursors_of_their_own(bench: Arc<Bench>) {
    let store = bench.open();
    let links = ["a", "ab", "b"].map(|name| LinkId::new(name).expect("a name"));
    for (seq, link) in links.iter().enumerate() {
        store
            .commit(|writes| {
                writes.set_cursor(link, &cursor(seq as u64));
            })
            .await;
    }
    for (seq, link) in links.iter().enumerate() {
        assert_eq!(store.cursor(link).await.expect("the cursor is read"), Some(cursor(seq as u64)));
    }
}

/// A set that is refused leaves the cursor where it was.
pub async fn a_refused_set_does_not_move_the_cursor(bench: Arc<Bench>) {
    let store = bench.open();
    let link = LinkId::default();
    store
        .commit(|writes| {
            writes.set_cursor(&link, &cursor(1));
        })
        .await;
    let mut set = WriteSet::builder();
    set.require("missing", Some("there".into())).data("key", "").set_cursor(&link, &cursor(2));
    assert!(matches!(store.apply(set.build(), Durability::Synced).await, Err(StoreError::HeadMoved)));
    let long = vec![1; store.limits().max_key + 1];
    let set = WriteSet::builder().set_cursor(&link, &cursor(2)).data(long, "").build();
    assert!(store.apply(set, Durability::Synced).await.is_err());
    assert_eq!(store.cursor(&link).await.expect("the cursor is read"), Some(cursor(1)));
}

/// Data and cursor become visible together: whoever reads one and then the other never finds the second behind.
pub async fn data_and_cursor_never_part(bench: Arc<Bench>) {
    let store = bench.open();
    let link = LinkId::default();
    store
        .commit(|writes| {
            writes.data("seq", 0u64.to_be_bytes()).set_cursor(&link, &cursor(0));
        })
        .await;
    let writing = tokio::spawn({
        let (store, link) = (store.clone(), link.clone());
        async move {
            for seq in 1..=300u64 {
                let mut set = WriteSet::builder();
                set.data("seq", seq.to_be_bytes()).set_cursor(&link, &cursor(seq));
                store.apply(set.build(), Durability::Buffered).await.expect("the write set is applied");
            }
        }
    });
    let mut reads = 0;
    while !writing.is_finished() {
        reads += 1;
        breathe(reads).await;
        let number = |bytes: bytes::Bytes| u64::from_be_bytes(bytes[..].try_into().expect("eight bytes"));
        let data = number(store.data("seq").await.expect("it is there"));
        let between = store.cursor(&link).await.expect("the cursor is read").expect("it is there").position.seq;
        let later = number(store.data("seq").await.expect("it is there"));
        assert!(data <= between.as_u64() && between.as_u64() <= later, "{data} {between} {later}");
    }
    writing.await.expect("the writer ends");
}
