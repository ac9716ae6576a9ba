//! A disk that is full for a while, and one that fails to sync: nothing is acknowledged that is not there, nothing is
//! there in part, the error says what to do, and the service goes on when it can.
//!
//! The recorder is preloaded into the child that each test starts again, and fails the calls that the switch names.

mod master;
mod slave;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use replikv::{
    Batch, FjallStore, KeyRange, Keyspace, LmdbOptions, LmdbStore, RedbStore, ReplicaStore, ScanOptions, SledStore,
    StoreError,
};

const CHILD: &str = "REPLIKV_FULL_DISK_CHILD";
const KEYS: u32 = 40;

type Store = Arc<dyn ReplicaStore>;

/// What goes wrong, where.
#[derive(Debug)]
struct Trial {
    kind: &'static str,
    fault: &'static str,
    path: PathBuf,
}

impl Trial {
    fn open(&self) -> Store {
        let Self { kind, path, .. } = self;
        let store: Result<Store, StoreError> = match *kind {
            "lmdb" => LmdbStore::open(path, LmdbOptions::default()).map(|store| Arc::new(store) as Store),
            "redb" => RedbStore::open(path).map(|store| Arc::new(store) as Store),
            "fjall" => FjallStore::open(path).map(|store| Arc::new(store) as Store),
            _ => SledStore::open(path).map(|store| Arc::new(store) as Store),
        };
        store.unwrap_or_else(|error| panic!("{kind}: {error}"))
    }

    fn fills_the_disk(&self) -> bool {
        self.fault.starts_with("enospc")
    }

    fn goes_wrong(&self) {
        // Whole or not at all: it is read while it is written.
        let aside = switch().with_extension("new");
        std::fs::write(&aside, self.fault).unwrap();
        std::fs::rename(aside, switch()).unwrap();
    }

    fn is_well_again(&self) {
        std::fs::remove_file(switch()).unwrap();
    }
}

fn switch() -> PathBuf {
    PathBuf::from(std::env::var_os("REPLIKV_FAULT_SWITCH").unwrap())
}

/// Writes one number under all keys: two numbers side by side are half a batch.
fn generation(number: u32) -> Batch {
    (0..KEYS).fold(Batch::new(), |batch, key| batch.put(format!("{key:03}"), value(number)))
}

fn value(number: u32) -> Vec<u8> {
    number.to_be_bytes().into_iter().cycle().take(2_000).collect()
}

async fn whole(store: &impl ReplicaStore) -> u32 {
    let page = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await.unwrap();
    let numbers: Vec<u32> = page.iter().map(|(_, value)| u32::from_be_bytes(value[..4].try_into().unwrap())).collect();
    assert_eq!(numbers.len(), KEYS as usize);
    assert!(numbers.iter().all(|number| *number == numbers[0]), "half a batch: {numbers:?}");
    numbers[0]
}

/// Runs `trial` in a child under the recorder, which starts `test` again to get there.
fn survives<F: Future<Output = ()>>(
    test: &str,
    kind: &'static str,
    fault: &'static str,
    trial: impl FnOnce(Trial) -> F,
) {
    if let Some(folder) = std::env::var_os(CHILD) {
        let trial = trial(Trial { kind, fault, path: Path::new(&folder).join("store") });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), trial).await }).unwrap();
        println!("survived");
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test.replace("::", "-"));
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
