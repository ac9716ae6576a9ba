//! A write set that touches several trees is in all of them or in none: after a kill, and where the log ends too early.
//! What is left is read with sled alone, as an application would.

mod support;

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use replikv_core::{Durability, KeyRange, Keyspace, ReplicaStore, Subspace, WriteSet};
use replikv_sled::{SledOptions, SledStore};
use support::{application, child, copy, end, role, says};

const TREES: [&str; 4] = ["users", "orders", "parts", "__sled__default"];
const KEYS: u32 = 6;
/// Every so many sets one is synced.
const SYNCED: u32 = 20;

async fn open(dir: &Path) -> SledStore {
    let options = TREES.iter().fold(SledOptions::default(), |options, tree| options.tree(Subspace::named(tree), tree));
    SledStore::from_db(application(dir).unwrap(), options).unwrap()
}

/// Everywhere the same: data in every tree and in none, a record, and how far it is. Some values lie in files of their
/// own; the entries of the set before are gone.
fn set(number: u32) -> WriteSet {
    let mut writes = WriteSet::builder();
    let len = if number % 16 == 5 { 400_000 } else { 40 + 37 * (number as usize % 50) };
    let value = [&number.to_be_bytes()[..], &vec![number as u8; len]].concat();
    for tree in TREES {
        let space = Subspace::named(tree);
        writes.delete_range(Keyspace::Data, &space.range_of(&KeyRange::prefix("gone/")));
        for key in 0..KEYS {
            writes.put(Keyspace::Data, space.key(format!("kept/{key}")), number.to_be_bytes()).unwrap();
        }
        writes.put(Keyspace::Data, space.key(format!("gone/{number}")), &value).unwrap();
    }
    writes.put(Keyspace::Data, "in no tree", number.to_be_bytes()).unwrap();
    writes.put(Keyspace::Log, number.to_be_bytes(), &value).unwrap();
    writes.put(Keyspace::Meta, "cursor", number.to_be_bytes()).unwrap();
    writes.build()
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// How many sets there are, 0 if none is, if they are whole: or in words what is apart.
fn whole_sets(dir: &Path) -> Result<u32, String> {
    let db = application(dir).map_err(|error| error.to_string())?;
    let own = db.open_tree("replikv").unwrap();
    let count = own.get("mcursor").map_err(|error| error.to_string())?.map_or(0, |bytes| number(&bytes));
    let apart = |what: String| Err(format!("apart: the cursor is at {count}, {what}"));
    if own.get("din no tree").unwrap().map_or(0, |bytes| number(&bytes)) != count {
        return apart("not so the data in no tree".into());
    }
    let records: Vec<u32> = own.scan_prefix("l").keys().map(|key| number(&key.unwrap()[1..])).collect();
    if records != (1..=count).collect::<Vec<_>>() {
        return apart(format!("the log is {records:?}"));
    }
    for name in TREES {
        let held: Vec<_> = db.open_tree(name).unwrap().iter().map(|entry| entry.unwrap()).collect();
        let expected = if count == 0 { 0 } else { KEYS as usize + 1 };
        let gone = format!("gone/{count}");
        let fits = |key: &[u8]| key.starts_with(b"kept/") || key == gone.as_bytes();
        if held.len() != expected || held.iter().any(|(key, value)| !fits(key) || number(value) != count) {
            let held: Vec<_> = held.iter().map(|(key, value)| (String::from_utf8_lossy(key), number(value))).collect();
            return apart(format!("tree {name} holds {held:?}"));
        }
    }
    Ok(count)
}

// Until it is killed.
async fn write_on(dir: &Path) -> ! {
    let store = open(dir).await;
    let cursor = store.get(Keyspace::Meta, b"cursor").await.unwrap();
    let mut next = cursor.map_or(0, |bytes| number(&bytes)) + 1;
    loop {
        // sled writes what is only buffered as well, piece by piece.
        let durability = if next.is_multiple_of(SYNCED) { Durability::Synced } else { Durability::Buffered };
        store.apply(set(next), durability).await.unwrap();
        println!("applied {next}.");
        next += 1;
    }
}

fn seed(test: &str) -> Rng {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_917);
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-sled --test atomicity {test}");
    Rng::with_seed(seed)
}

/// Kills a writer in the middle of some set. How many were synced for certain.
fn write_and_kill(test: &str, dir: &Path, rng: &mut Rng, from: u32) -> u32 {
    let mut writer = child(test, &[dir.to_str().unwrap()]);
    let last = from + rng.u32(10..60);
    says(&mut writer, &format!("applied {last}."));
    // Somewhere within the set after that.
    for _ in 0..rng.u32(0..40_000) {
        std::hint::spin_loop();
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    last / SYNCED * SYNCED
}

#[tokio::test]
async fn a_kill_leaves_every_tree_the_log_and_the_cursor_at_one_set() {
    const TEST: &str = "a_kill_leaves_every_tree_the_log_and_the_cursor_at_one_set";
    if let Some(role) = role() {
        write_on(Path::new(&role[0])).await;
    }
    let mut rng = seed(TEST);
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    for round in 0..40 {
        let synced = write_and_kill(TEST, dir.path(), &mut rng, count);
        count = whole_sets(dir.path()).unwrap_or_else(|words| panic!("round {round}: {words}"));
        assert!(count >= synced, "round {round}: {synced} was synced, {count} is left");
    }
}

/// Cuts the file of a database in many places, with sets in mid air, and looks at each: in a child, since sled may panic
/// on what it finds.
async fn cut(test: &str, damage: impl Fn(&mut Rng, &mut Vec<u8>)) {
    const PLACES: usize = 60;
    if let Some(role) = role() {
        let dir = Path::new(&role[1]);
        match &role[0][..] {
            "write" => write_on(dir).await,
            _ => println!("found: {:?}.", whole_sets(dir)),
        }
        std::process::exit(0);
    }
    let mut rng = seed(test);
    let place = tempfile::tempdir().unwrap();
    let whole = place.path().join("whole");
    let mut writer = child(test, &["write", whole.to_str().unwrap()]);
    says(&mut writer, "applied 300.");
    writer.kill().unwrap();
    writer.wait().unwrap();
    let (mut counts, mut refused) = (Vec::new(), 0);
    for number in 0..PLACES {
        let dir = place.path().join(number.to_string());
        copy(&whole, &dir);
        let file = dir.join("db");
        let mut bytes = std::fs::read(&file).unwrap();
        damage(&mut rng, &mut bytes);
        std::fs::write(&file, bytes).unwrap();
        let looking = child(test, &["look", dir.to_str().unwrap()]);
        let ended = end(looking, Duration::from_secs(120)).unwrap_or_else(|| panic!("place {number}: it hangs"));
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!said.contains("apart"), "place {number}: {said}");
        match said.split_once("found: Ok(").and_then(|(_, rest)| rest.split_once(')')) {
            Some((count, _)) => counts.push(count.parse::<u32>().unwrap()),
            None => {
                println!("place {number}: {said} {errors}");
                refused += 1;
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    counts.sort_unstable();
    println!("{refused} refused, the others hold {counts:?}");
    counts.dedup();
    // Else nothing was cut in mid air.
    assert!(counts.len() >= 10, "only these many sets were left: {counts:?}");
}

// Where much of what the log began with is missing, sled finds nothing at all.
fn near_the_end(rng: &mut Rng, bytes: &[u8]) -> usize {
    rng.usize(bytes.len() / 4 * 3..bytes.len())
}

#[tokio::test]
async fn a_log_that_was_cut_leaves_every_tree_the_log_and_the_cursor_at_one_set() {
    const TEST: &str = "a_log_that_was_cut_leaves_every_tree_the_log_and_the_cursor_at_one_set";
    cut(TEST, |rng, bytes| bytes.truncate(near_the_end(rng, bytes))).await;
}

#[tokio::test]
async fn a_log_whose_end_was_never_written_leaves_every_tree_the_log_and_the_cursor_at_one_set() {
    const TEST: &str = "a_log_whose_end_was_never_written_leaves_every_tree_the_log_and_the_cursor_at_one_set";
    cut(TEST, |rng, bytes| {
        let from = near_the_end(rng, bytes);
        bytes[from..].fill(0);
    })
    .await;
}
