//! What a killed process leaves behind.
//!
//! The test starts itself again as another process, which writes until it is killed (SIGKILL).

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use replikv_core::{Durability, Keyspace, LinkId, ReplicaStore};

use super::cursors::cursor;
use crate::Bench;
use crate::bench::{Put, Shorthand, seed, writes};

const CHILD: &str = "REPLIKV_LAW_CHILD";
/// Entries of one write set.
const ENTRIES: u64 = 16;
const KILLS: usize = 6;

/// What the child writes: set `number` puts the same entries for the number, moves the counter, and the cursor.
fn set(number: u64) -> replikv_core::WriteSet {
    writes(|set| {
        (0..ENTRIES).for_each(|n| {
            set.data([&number.to_be_bytes()[..], &n.to_be_bytes()].concat(), [7; 50]);
        });
        set.put(Keyspace::Meta, "count", number.to_be_bytes()).expect("a key");
        set.set_cursor(&LinkId::default(), &cursor(number));
    })
}

async fn count(store: &Arc<dyn ReplicaStore>) -> u64 {
    let count = store.get(Keyspace::Meta, b"count").await.expect("the count is read");
    count.map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().expect("eight bytes")))
}

// Says each number once it is applied, until it is killed.
async fn write_for_ever(store: Arc<dyn ReplicaStore>, durability: Durability) {
    let mut number = count(&store).await;
    loop {
        number += 1;
        store.apply(set(number), durability).await.expect("the write set is applied");
        println!("\napplied {number}");
    }
}

/// Kills a child in mid write again and again, and looks each time: what the last word of the child was, and the store.
async fn kill_and_look<F>(bench: Arc<Bench>, durability: Durability, look: impl Fn(u64, Arc<dyn ReplicaStore>) -> F)
where
    F: Future<Output = ()>,
{
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_for_ever(bench.open_at(Path::new(&dir)), durability).await;
    }
    let mut rng = seed();
    for _ in 0..KILLS {
        let mut child = spawn(&bench);
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let reading = std::thread::spawn(move || {
            // The test runner of the child speaks as well; a line that was cut by the kill does not count.
            let numbers = output.lines().map_while(Result::ok);
            numbers.filter_map(|line| line.strip_prefix("applied ")?.parse::<u64>().ok()).last()
        });
        tokio::time::sleep(Duration::from_millis(rng.u64(150..400))).await;
        child.kill().expect("the child is killed");
        child.wait().expect("the child ends");
        let said = reading.join().expect("its output was read").unwrap_or(0);
        let store = bench.open();
        look(said, store.clone()).await;
        store.close().await.expect("the store closes");
    }
    let store = bench.open();
    assert!(count(&store).await > 0, "no child came to write");
}

fn spawn(bench: &Bench) -> Child {
    let program = std::env::current_exe().expect("where this test is");
    Command::new(program)
        .args([bench.test(), "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, bench.dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the test starts again")
}

/// Every write set is there as a whole or not at all, and those that are there are the first ones.
pub async fn a_kill_leaves_whole_sets(bench: Arc<Bench>) {
    kill_and_look(bench, Durability::Buffered, |_, store| async move {
        let count = count(&store).await;
        assert_eq!(store.contents(Keyspace::Data).await.len() as u64, count * ENTRIES, "after set {count}");
    })
    .await;
}

/// What was applied as synced before the kill is there.
pub async fn synced_sets_survive_a_kill(bench: Arc<Bench>) {
    kill_and_look(bench, Durability::Synced, |said, store| async move {
        let count = count(&store).await;
        assert!(count >= said, "set {said} was synced, {count} are there");
    })
    .await;
}

/// The cursor is where the data is.
pub async fn a_kill_does_not_part_data_and_cursor(bench: Arc<Bench>) {
    kill_and_look(bench, Durability::Buffered, |_, store| async move {
        let there = store.cursor(&LinkId::default()).await.expect("the cursor is read");
        assert_eq!(there.map_or(0, |cursor| cursor.position.seq.as_u64()), count(&store).await);
        let last = count(&store).await;
        if last > 0 {
            let key = [&last.to_be_bytes()[..], &(ENTRIES - 1).to_be_bytes()].concat();
            assert!(store.data(key).await.is_some());
        }
    })
    .await;
}
