//! A damaged store opens, or says that it is damaged. It never panics on its caller, and never hangs.

mod support;

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use replikv_core::{Durability, ReplicaStore, StoreError};
use replikv_sled::SledStore;
use support::{child, contents, copy, end, put, role};

const PLACES: usize = 32;

async fn fill(dir: &Path) {
    let store = SledStore::open(dir).unwrap();
    for number in 0..400 {
        store.apply(put(format!("{number:04}"), vec![number as u8; 500]), Durability::Buffered).await.unwrap();
    }
    store.apply(put("last", vec![9; 2 << 20]), Durability::Synced).await.unwrap();
    store.close().await.unwrap();
}

/// sled writes a snapshot of where its pages are when it opens what it did not close a moment ago.
async fn open_once_more(dir: &Path) {
    SledStore::open(dir).unwrap().close().await.unwrap();
    let snapshots = std::fs::read_dir(dir).unwrap().filter(|entry| is_called(&entry.as_ref().unwrap().path(), "snap."));
    assert_eq!(snapshots.count(), 1);
}

fn is_called(path: &Path, name: &str) -> bool {
    path.is_file() && path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(name))
}

/// In a child: everything that users do. An error is an answer; a panic that reaches us ends the child.
async fn use_it(dir: &str) -> Result<usize, StoreError> {
    let store = SledStore::open(dir)?;
    let used = async {
        let held = contents(&store).await?;
        // What opens holds the first so many write sets: none is missing in between, none is torn.
        for (number, (key, value)) in held.iter().enumerate() {
            match number {
                400 => assert!(key == "last" && value.len() == 2 << 20),
                _ => assert!(*key == format!("{number:04}") && value[..] == [number as u8; 500], "{number} is missing"),
            }
        }
        let held = held.len();
        store.apply(put("new", "v"), Durability::Synced).await?;
        store.sync().await?;
        Ok(held)
    }
    .await;
    let closed = store.close().await;
    let held = used?;
    closed.map(|()| held)
}

async fn damaged(test: &str, name: &str, damage: impl Fn(&mut Rng, &mut Vec<u8>)) {
    if let Some(role) = role() {
        match use_it(&role[0]).await {
            Ok(held) => println!("opens: {held}."),
            Err(error) => println!("error: {error}."),
        }
        // As a program does that has said what is wrong: threads that sled has lost are not waited for.
        std::process::exit(0);
    }
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_917);
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-sled --test damage {test}");
    let mut rng = Rng::with_seed(seed);
    let place = tempfile::tempdir().unwrap();
    let (fresh, reopened) = (place.path().join("fresh"), place.path().join("reopened"));
    fill(&fresh).await;
    fill(&reopened).await;
    open_once_more(&reopened).await;
    let (mut opened, mut refused) = (0, 0);
    for number in 0..PLACES {
        let dir = place.path().join(format!("{number}"));
        copy(if name == "snap." || number % 2 == 0 { &reopened } else { &fresh }, &dir);
        let mut files = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let file = files.find(|path| is_called(path, name)).unwrap_or_else(|| panic!("there is no {name}"));
        let mut bytes = std::fs::read(&file).unwrap();
        damage(&mut rng, &mut bytes);
        std::fs::write(&file, bytes).unwrap();
        let child = child(test, &[dir.to_str().unwrap()]);
        let ended = end(child, Duration::from_secs(90)).unwrap_or_else(|| panic!("place {number}: it hangs"));
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(
            ended.status.success(),
            "place {number}: {} {said} {}",
            ended.status,
            String::from_utf8_lossy(&ended.stderr)
        );
        if said.contains("opens: ") {
            opened += 1;
        } else {
            assert!(said.contains("error: "), "place {number}: {said}");
            refused += 1;
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    println!("{opened} opened, {refused} refused");
    assert_eq!(opened + refused, PLACES);
}

#[tokio::test]
async fn bytes_flipped_in_the_database_are_no_panic_and_no_hang() {
    damaged("bytes_flipped_in_the_database_are_no_panic_and_no_hang", "db", |rng, bytes| {
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
        }
    })
    .await;
}

#[tokio::test]
async fn a_database_that_was_cut_is_no_panic_and_no_hang() {
    damaged("a_database_that_was_cut_is_no_panic_and_no_hang", "db", |rng, bytes| {
        bytes.truncate(rng.usize(..bytes.len()));
    })
    .await;
}

#[tokio::test]
async fn damaged_settings_are_no_panic_and_no_hang() {
    damaged("damaged_settings_are_no_panic_and_no_hang", "conf", |rng, bytes| match rng.u8(..4) {
        0 => bytes.truncate(rng.usize(..bytes.len())),
        1 => bytes.clear(),
        _ => {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
        }
    })
    .await;
}

#[tokio::test]
async fn a_damaged_snapshot_is_no_panic_and_no_hang() {
    damaged("a_damaged_snapshot_is_no_panic_and_no_hang", "snap.", |rng, bytes| {
        let at = rng.usize(..bytes.len());
        bytes[at] ^= 1 << rng.u8(..8);
    })
    .await;
}
