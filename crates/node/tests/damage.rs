//! Stored records that are not what they were.

use crate::support::{self, Error, Store, assert_equal, connect, entries, followed, master, slave, soon, store, until};
use replikv_core::{Keyspace, Op, ReplicaStore, ReplicaStoreExt, Seq};
use replikv_memory::MemoryStore;
use replikv_node::{Commit, Ending, LogError, Master, MasterConfig, Slave, read_log};
use replikv_proto::GoodbyeReason;
use replikv_proto::layout::Checkpoint;
use replikv_testkit::FaultStore;

/// The damaged record, and where the log begins once it was found: at the next point whose digest is known.
const DAMAGED: u64 = 100;
const FLOOR: u64 = Checkpoint::EVERY;

// Nothing in memory: every record that is sent is read from the store.
async fn long_log(store: &Store) -> Master<Store> {
    let master = master(store, MasterConfig::default().ring_bytes(0).chunk_bytes(2_000)).await;
    write(&master, 40).await;
    master
}

async fn write(master: &Master<Store>, records: u32) {
    for _ in 0..records {
        let n = master.status().published.seq.as_u64();
        master.put(n.to_be_bytes(), [n as u8; 40]).await.unwrap();
    }
}

fn key() -> [u8; 8] {
    Seq::new(DAMAGED).to_key()
}

async fn floor(master: &Master<Store>, seq: u64) {
    until(|| master.status().floor.seq.as_u64() >= seq).await;
    assert_eq!(master.status().floor.seq.as_u64(), seq);
}

// Follows until it is whole, by comparing: a slave that is told that its records were trimmed connects again.
async fn compared(master: &Master<Store>, slave: &Slave<Store>) {
    loop {
        let (serving, following) = connect(master, slave);
        tokio::select! {
            end = following => match end.unwrap() {
                Ok(Ending::Goodbye { reason: GoodbyeReason::Trimmed, .. }) => {}
                other => panic!("expected to be sent back, got {other:?}"),
            },
            caught_up = soon(slave.wait_applied(master.status().published.seq)) => {
                caught_up.unwrap();
                assert_equal(master, slave).await;
                assert!(slave.status().comparisons > 0);
                // Dropped, and its master sees the end of the stream.
                slave.shutdown().await.unwrap();
                drop(soon(serving).await);
                return;
            }
        }
    }
}

type Damage = fn(&mut Vec<u8>);

const DAMAGES: [(&str, Damage); 5] = [
    ("a bit of its body", |record| {
        let last = record.len() - 1;
        record[last] ^= 1;
    }),
    ("a bit of its header", |record| record[20] ^= 0x10),
    ("torn", |record| record.truncate(record.len() / 2)),
    ("gone but for its key", Vec::clear),
    ("zeros", |record| record.fill(0)),
];

#[tokio::test]
async fn a_damaged_record_is_never_served_and_the_log_begins_after_it() -> Result<(), Error> {
    for (what, damage) in DAMAGES {
        println!("{what}");
        let store = store();
        let master = long_log(&store).await;
        let before = followed(&master, "before").await;
        write(&master, 300).await;
        let after = followed(&master, "after").await;
        write(&master, 200).await;
        assert!(store.damage(Keyspace::Log, &key(), damage).await?);

        let behind = slave(&before, "before").await;
        compared(&master, &behind).await;
        floor(&master, FLOOR).await;
        // The floor is told before the records below it go.
        soon(async {
            while store.get(Keyspace::Log, &key()).await.unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await;

        let token = master.put("last", "word").await?;
        let ahead = slave(&after, "after").await;
        connect(&master, &ahead);
        soon(ahead.wait_applied(token)).await?;
        assert_equal(&master, &ahead).await;
        let fresh = slave(&support::store(), "fresh").await;
        connect(&master, &fresh);
        soon(fresh.wait_applied(token)).await?;
        assert_equal(&master, &fresh).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_leaves_what_is_still_to_be_published() -> Result<(), Error> {
    let store = store();
    let first = long_log(&store).await;
    let published = first.status().published;
    drop(first);
    let every = std::time::Duration::from_secs(3600);
    let config = MasterConfig::default().ring_bytes(0).commit(Commit::Buffered { sync_every: every });
    let master = master(&store, config).await;
    // Committed, and not published before the next sync.
    let waiting = master.put("late", "word").await?.seq;
    let damaged = Seq::new(20);
    store.damage(Keyspace::Log, &damaged.to_key(), |record| record.truncate(9)).await?;
    let behind = slave(&support::store(), "behind").await;
    connect(&master, &behind);
    until(|| master.status().floor.seq >= damaged).await;
    assert_eq!(master.status().floor, published, "no checkpoint lies between, and what follows is still to be sent");
    assert!(store.get(Keyspace::Log, &waiting.to_key()).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_record_from_elsewhere_breaks_the_chain_and_is_not_served() -> Result<(), Error> {
    let store = store();
    let master = long_log(&store).await;
    let before = followed(&master, "before").await;
    write(&master, 300).await;
    // A record that is whole, and belongs to another place of the log.
    let other = store.get(Keyspace::Log, &Seq::new(DAMAGED + 1).to_key()).await?.unwrap();
    store.damage(Keyspace::Log, &key(), |record| *record = other.to_vec()).await?;
    let behind = slave(&before, "before").await;
    compared(&master, &behind).await;
    until(|| master.status().floor.seq.as_u64() >= FLOOR).await;
    Ok(())
}

// Every byte of the record is damaged in turn, while a slave stands right there. If the digest still is what the slave
// holds, it goes on; if not, the record is damaged: never has the slave diverged.
#[tokio::test]
async fn a_slave_that_stands_at_a_damaged_record_has_not_diverged() -> Result<(), Error> {
    let store = store();
    let master = long_log(&store).await;
    write(&master, DAMAGED as u32 - 41).await;
    assert_eq!(master.status().published.seq.as_u64(), DAMAGED);
    let at = followed(&master, "at").await;
    write(&master, 400).await;
    master.shutdown().await?;
    let record = store.inner().open_again().get(Keyspace::Log, &key()).await?.unwrap();
    let mut comparisons = 0;
    for byte in 0..record.len() {
        let store = copy_of(store.inner()).await;
        store.damage(Keyspace::Log, &key(), |record| record[byte] ^= 1).await?;
        let master = support::master(&store, MasterConfig::default().ring_bytes(0)).await;
        let slave = slave(&copy_of(at.inner()).await, "at").await;
        let (_, following) = connect(&master, &slave);
        soon(slave.wait_applied(master.status().published.seq)).await?;
        assert_equal(&master, &slave).await;
        if slave.status().comparisons == 0 {
            assert_eq!(master.status().floor.seq.as_u64(), 0, "byte {byte}");
        } else {
            floor(&master, FLOOR).await;
            comparisons += 1;
        }
        following.abort();
    }
    assert!(comparisons >= 16 + 16 + 40, "digest, hash and body: {comparisons}");
    Ok(())
}

async fn copy_of(store: &MemoryStore) -> Store {
    let (source, copy) = (store.open_again(), MemoryStore::new());
    for keyspace in Keyspace::ALL {
        for (key, value) in entries(&source, keyspace).await {
            copy.apply_one(keyspace, Op::Put { key: &key, value: &value }).await.unwrap();
        }
    }
    FaultStore::new(copy)
}

#[tokio::test]
async fn damage_behind_the_last_checkpoint_cuts_the_log_at_its_head() -> Result<(), Error> {
    let store = store();
    let master = long_log(&store).await;
    write(&master, 100).await;
    store.damage(Keyspace::Log, &key(), Vec::clear).await?;
    let fresh = support::store();
    let slave = slave(&fresh, "fresh").await;
    let head = master.status().published.seq.as_u64();
    let (_, following) = connect(&master, &slave);
    match soon(following).await? {
        Ok(Ending::Goodbye { reason: GoodbyeReason::Trimmed, .. }) => {}
        other => panic!("expected a goodbye, got {other:?}"),
    }
    floor(&master, head).await;
    assert!(slave.status().position.is_none_or(|position| position.seq.as_u64() < DAMAGED));
    let at_the_end = followed(&master, "new").await;
    let slave = support::slave(&at_the_end, "new").await;
    connect(&master, &slave);
    let token = master.put("last", "word").await?;
    soon(slave.wait_applied(token)).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test]
async fn reading_the_log_names_the_damaged_record() -> Result<(), Error> {
    for (what, damage) in DAMAGES {
        let store = store();
        let master = long_log(&store).await;
        write(&master, 100).await;
        store.damage(Keyspace::Log, &key(), damage).await?;
        match read_log(&store, Seq::ZERO, usize::MAX).await {
            Err(LogError::Record { seq, .. }) => assert_eq!(seq.as_u64(), DAMAGED, "{what}"),
            other => panic!("{what}: expected an error, got {} records", other?.len()),
        }
        assert_eq!(read_log(&store, Seq::ZERO, DAMAGED as usize - 1).await?.len(), DAMAGED as usize - 1);
        assert!(!read_log(&store, Seq::new(DAMAGED), usize::MAX).await?.is_empty());
    }
    Ok(())
}
