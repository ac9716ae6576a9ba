//! A disk that is full for a while, and one that fails to sync: nothing is acknowledged that is not there, nothing is
//! there in part, the error says what to do, and the service goes on when it can.
//!
//! The recorder is preloaded into the child that this test starts again, and fails the calls that the switch names.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use replikv::{
    Batch, FjallStore, KeyRange, Keyspace, LmdbOptions, LmdbStore, Master, MasterConfig, RedbStore, ReplicaStore,
    ScanOptions, SledStore, StoreError, WriteError,
};

const CHILD: &str = "REPLIKV_FULL_DISK_CHILD";
const KEYS: u32 = 40;

type Store = Arc<dyn ReplicaStore>;

fn open(kind: &str, path: &Path) -> Store {
    let store: Result<Store, StoreError> = match kind {
        "lmdb" => LmdbStore::open(path, LmdbOptions::default()).map(|store| Arc::new(store) as Store),
        "redb" => RedbStore::open(path).map(|store| Arc::new(store) as Store),
        "fjall" => FjallStore::open(path).map(|store| Arc::new(store) as Store),
        _ => SledStore::open(path).map(|store| Arc::new(store) as Store),
    };
    store.unwrap_or_else(|error| panic!("{kind}: {error}"))
}

/// Writes one number under all keys: two numbers side by side are half a batch.
fn generation(number: u32) -> Batch {
    (0..KEYS).fold(Batch::new(), |batch, key| {
        let value: Vec<u8> = number.to_be_bytes().into_iter().cycle().take(2_000).collect();
        batch.put(format!("{key:03}"), value)
    })
}

async fn whole(store: &Store) -> u32 {
    let page = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.unwrap();
    let numbers: Vec<u32> = page.iter().map(|(_, value)| u32::from_be_bytes(value[..4].try_into().unwrap())).collect();
    assert_eq!(numbers.len(), KEYS as usize);
    assert!(numbers.iter().all(|number| *number == numbers[0]), "half a batch: {numbers:?}");
    numbers[0]
}

struct Switch(PathBuf);

impl Switch {
    fn on(&self, fault: &str) {
        // Whole or not at all: it is read while it is written.
        let aside = self.0.with_extension("new");
        std::fs::write(&aside, fault).unwrap();
        std::fs::rename(aside, &self.0).unwrap();
    }

    fn off(&self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

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

async fn child(kind: &str, fault: &str, folder: &Path) {
    let switch = Switch(PathBuf::from(std::env::var_os("REPLIKV_FAULT_SWITCH").unwrap()));
    let path = folder.join("store");
    let master = Master::open(open(kind, &path), MasterConfig::default()).await.unwrap();
    let mut acknowledged = 0;
    for round in 0..5 {
        for _ in 0..3 {
            acknowledged += 1;
            master.write(generation(acknowledged)).await.unwrap();
        }
        switch.on(fault);
        let error = master.write(generation(1_000_000 + round)).await.expect_err("it cannot be durable");
        let words = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        match &error {
            WriteError::OutcomeUnknown { .. } => {}
            WriteError::Store(StoreError::StoreFull { .. }) => assert!(fault.starts_with("enospc"), "{words}"),
            WriteError::Store(_) => {}
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
            switch.off();
        } else {
            switch.off();
            drop(waiting.await.unwrap());
        }
        acknowledged += 1;
        write_when_possible(&master, acknowledged).await;
        assert_eq!(whole(master.store()).await, acknowledged);
    }
    let head = master.status().published;
    master.shutdown().await.unwrap();
    let master = Master::open(open(kind, &path), MasterConfig::default()).await.unwrap();
    assert_eq!(whole(master.store()).await, acknowledged);
    assert!(master.status().published.seq >= head.seq);
    let log = replikv::read_log(master.store(), replikv::Seq::ZERO, usize::MAX).await.unwrap();
    assert_eq!(log.last().map(replikv::Record::position), Some(master.status().published));
    master.shutdown().await.unwrap();
    println!("survived");
}

fn survives(test: &str, kind: &str, fault: &str) {
    if let Some(folder) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let limit = Duration::from_secs(120);
        runtime.block_on(async { tokio::time::timeout(limit, child(kind, fault, Path::new(&folder))).await }).unwrap();
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir_all(folder.join("files")).unwrap();
    let folder = folder.canonicalize().unwrap();
    let output: Output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, folder.join("files"))
        .env("LD_PRELOAD", env!("REPLIKV_RECORDER"))
        .env("REPLIKV_RECORD_ROOT", folder.join("files"))
        .env("REPLIKV_FAULT_SWITCH", folder.join("switch"))
        .output()
        .unwrap();
    let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && words.contains("survived") && words.contains("refused"), "{words}");
}

#[test]
fn an_lmdb_master_outlives_a_full_disk() {
    survives("an_lmdb_master_outlives_a_full_disk", "lmdb", "enospc write data.mdb");
}

#[test]
fn an_lmdb_master_trusts_no_failed_sync() {
    survives("an_lmdb_master_trusts_no_failed_sync", "lmdb", "eio sync data.mdb");
}

#[test]
fn a_sled_master_trusts_no_failed_sync() {
    survives("a_sled_master_trusts_no_failed_sync", "sled", "eio sync store/db");
}

#[test]
fn a_redb_master_outlives_a_full_disk() {
    survives("a_redb_master_outlives_a_full_disk", "redb", "enospc write store");
}

#[test]
fn a_redb_master_trusts_no_failed_sync() {
    survives("a_redb_master_trusts_no_failed_sync", "redb", "eio sync store");
}

#[test]
fn a_fjall_master_outlives_a_full_disk() {
    survives("a_fjall_master_outlives_a_full_disk", "fjall", "enospc write jnl");
}

#[test]
fn a_fjall_master_trusts_no_failed_sync() {
    survives("a_fjall_master_trusts_no_failed_sync", "fjall", "eio sync jnl");
}
