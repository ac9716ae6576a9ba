//! A master whose disk fails while it is written to.

use std::time::Duration;

use replikv::{Master, MasterConfig, Outcome, StoreError, WriteError};

use super::{Store, Trial, generation, survives, whole};

// Writes until it works again; the last number that was acknowledged.
async fn write_when_possible(master: &Master<Store>, number: u32) {
    loop {
        match master.write(generation(number)).await {
            Ok(_) => return,
            // The master opens the store anew after a failed sync, and says so until it has.
            Err(WriteError::OutcomeUnknown { .. } | WriteError::Store(_)) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn is_written_to(trial: Trial) {
    let master = Master::open(trial.open(), MasterConfig::default()).await.unwrap();
    let mut acknowledged = 0;
    for round in 0..5 {
        for _ in 0..3 {
            acknowledged += 1;
            master.write(generation(acknowledged)).await.unwrap();
        }
        trial.goes_wrong();
        let error = master.write(generation(1_000_000 + round)).await.expect_err("it cannot be durable");
        let words = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        match &error {
            WriteError::OutcomeUnknown { .. } => {}
            WriteError::Store(error) => {
                assert!(trial.fills_the_disk() || !matches!(error, StoreError::StoreFull { .. }), "{words}");
                if error.outcome() == Outcome::Unchanged {
                    assert_eq!(whole(master.store()).await, acknowledged, "nobody has to open it anew: {words}");
                }
            }
            other => panic!("{other:?}"),
        }
        println!("refused: {words}");
        // The next one is refused as well, or waits for a store that can be opened; it is not acknowledged before.
        let waiting = tokio::spawn({
            let master = master.clone();
            async move { master.write(generation(2_000_000 + round)).await }
        });
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        if waiting.is_finished() {
            assert!(waiting.await.unwrap().is_err(), "the disk fails");
            trial.is_well_again();
        } else {
            trial.is_well_again();
            drop(waiting.await.unwrap());
        }
        acknowledged += 1;
        write_when_possible(&master, acknowledged).await;
        assert_eq!(whole(master.store()).await, acknowledged);
    }
    let head = master.status().published;
    master.shutdown().await.unwrap();
    let master = Master::open(trial.open(), MasterConfig::default()).await.unwrap();
    assert_eq!(whole(master.store()).await, acknowledged);
    assert!(master.status().published.seq >= head.seq);
    let log = replikv::read_log(master.store(), replikv::Seq::ZERO, usize::MAX).await.unwrap();
    assert_eq!(log.last().map(replikv::Record::position), Some(master.status().published));
    master.shutdown().await.unwrap();
}

#[test]
fn an_lmdb_master_outlives_a_full_disk() {
    survives("master::an_lmdb_master_outlives_a_full_disk", "lmdb", "enospc write data.mdb", is_written_to);
}

#[test]
fn an_lmdb_master_outlives_a_disk_without_room_for_its_meta_page() {
    let test = "master::an_lmdb_master_outlives_a_disk_without_room_for_its_meta_page";
    survives(test, "lmdb", "enospc synced-write data.mdb", is_written_to);
}

#[test]
fn an_lmdb_master_trusts_no_failed_sync() {
    survives("master::an_lmdb_master_trusts_no_failed_sync", "lmdb", "eio sync data.mdb", is_written_to);
}

#[test]
fn a_sled_master_trusts_no_failed_sync() {
    survives("master::a_sled_master_trusts_no_failed_sync", "sled", "eio sync store/db", is_written_to);
}

#[test]
fn a_redb_master_outlives_a_full_disk() {
    survives("master::a_redb_master_outlives_a_full_disk", "redb", "enospc write store", is_written_to);
}

#[test]
fn a_redb_master_trusts_no_failed_sync() {
    survives("master::a_redb_master_trusts_no_failed_sync", "redb", "eio sync store", is_written_to);
}

#[test]
fn a_fjall_master_outlives_a_full_disk() {
    survives("master::a_fjall_master_outlives_a_full_disk", "fjall", "enospc write jnl", is_written_to);
}

#[test]
fn a_fjall_master_trusts_no_failed_sync() {
    survives("master::a_fjall_master_trusts_no_failed_sync", "fjall", "eio sync jnl", is_written_to);
}
