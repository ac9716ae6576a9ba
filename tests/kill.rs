//! Masters and slaves that are killed (SIGKILL) in child processes, twenty times each, or as often as `REPLIKV_KILLS` says.
//!
//! The test starts itself again; what the child is to be stands in its environment.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fastrand::Rng;
use replikv::{Batch, KeyRange, Keyspace, Master, MasterConfig, ReplicaStore, ScanOptions, Slave, SlaveConfig};
use support::{Error, Store, assert_equal, open, print_seed, seed, soon};
use tokio::net::TcpListener;
use tokio::time::sleep;

fn kills() -> usize {
    std::env::var("REPLIKV_KILLS").map_or(20, |kills| kills.parse().expect("REPLIKV_KILLS is a number"))
}

const CHILD: &str = "REPLIKV_KILL_CHILD";
/// Every batch writes so many keys with its number: two numbers side by side are a torn batch.
const KEYS: u32 = 12;

fn generation(number: u64) -> Batch {
    let keys = (0..KEYS).map(|key| format!("generation/{key:02}"));
    let batch = keys.fold(Batch::new(), |batch, key| batch.put(key, number.to_be_bytes()));
    let batch = batch.put(format!("history/{number:08}"), vec![7; 200]);
    if number.is_multiple_of(50) { batch.delete_range(.."generation/00").delete("history/00000001") } else { batch }
}

/// The number that all keys have, in one page; 0 before the first.
async fn whole_generation(store: &Store) -> u64 {
    let range = KeyRange::prefix("generation/");
    let page = store.scan(Keyspace::Data, range, ScanOptions::default()).await.unwrap();
    let numbers: Vec<u64> = page.iter().map(|(_, value)| u64::from_be_bytes(value.try_into().unwrap())).collect();
    assert!(numbers.is_empty() || numbers.len() == KEYS as usize, "a batch is torn: {} keys", numbers.len());
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "a batch is torn: {numbers:?}");
    numbers.first().copied().unwrap_or(0)
}

fn spawn(test: &str, role: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, role.join("\n"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// In a child: is what it was told to be, until it is killed.
async fn child() -> Result<bool, Error> {
    let Ok(role) = std::env::var(CHILD) else { return Ok(false) };
    match role.split('\n').collect::<Vec<_>>()[..] {
        ["slave", kind, dir, address] => {
            let slave = Slave::open(open(kind, Path::new(dir)), SlaveConfig::new("killed")).await?;
            slave.follow_tcp(address.parse::<SocketAddr>()?).await?;
        }
        ["master", kind, dir, address] => {
            let master = Master::open(open(kind, Path::new(dir)), MasterConfig::default()).await?;
            tokio::spawn(master.clone().serve_tcp(TcpListener::bind(address).await?));
            let mut number = whole_generation(master.store()).await;
            loop {
                number += 1;
                master.write(generation(number)).await?;
            }
        }
        _ => panic!("no role: {role}"),
    }
    Ok(true)
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

async fn a_slave_is_killed(test: &str, kind: &str) -> Result<(), Error> {
    if child().await? {
        return Ok(());
    }
    let seed = seed();
    print_seed(&format!("--test kill {test}"), seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    let master =
        Master::open(open("lmdb", &dir.path().join("master")), MasterConfig::default().chunk_bytes(4096)).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(master.clone().serve_tcp(listener));
    // Much to copy and to catch up with at first, then a steady stream.
    for number in 1..=2000 {
        master.write(generation(number)).await?;
    }
    let writing = tokio::spawn({
        let master = master.clone();
        async move {
            for number in 2001.. {
                master.write(generation(number)).await.unwrap();
                sleep(Duration::from_micros(300)).await;
            }
        }
    });
    let path = dir.path().join("slave");
    let (mut before, mut moved, mut patience) = (0, 0, 1);
    for round in 0.. {
        if round >= kills() && moved > 1 {
            break;
        }
        assert!(round < kills() + 100, "the slave never came on between two kills");
        let child = spawn(test, &["slave", kind, path.to_str().unwrap(), &address.to_string()]);
        // On a machine that is busy with other things, nothing may come of a short life, again and again.
        patience = (patience * 2).min(64);
        sleep(Duration::from_millis(rng.u64(30..250) * patience / 2)).await;
        kill(child);
        let store = open(kind, &path);
        let cursor = store.cursor(&replikv::LinkId::default()).await?;
        if cursor.as_ref().is_some_and(replikv::Cursor::is_consistent) {
            let number = whole_generation(&store).await;
            // The first record begins the epoch, and each batch is one record.
            assert_eq!(cursor.map(|cursor| cursor.position.seq.as_u64()), Some(number + 1), "cursor and data");
            assert!(number >= before, "the slave went back from {before} to {number}");
            if number > before {
                (moved, patience) = (moved + 1, 1);
            }
            before = number;
        }
        store.close().await?;
    }
    writing.abort();
    let slave = Slave::open(open(kind, &path), SlaveConfig::new("killed")).await?;
    let following = slave.clone();
    tokio::spawn(async move { following.follow_tcp(address).await });
    let token = master.put("last", "word").await?;
    soon(slave.wait_applied(token)).await?;
    assert_equal(master.store(), slave.store()).await;
    slave.shutdown().await?;
    Ok(master.shutdown().await?)
}

async fn a_master_is_killed(test: &str, kind: &str) -> Result<(), Error> {
    if child().await? {
        return Ok(());
    }
    let seed = seed();
    print_seed(&format!("--test kill {test}"), seed);
    let mut rng = Rng::with_seed(seed);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("master");
    // A port that the child can have again and again.
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let config = SlaveConfig::new("watching").reconnect(Duration::from_millis(5), Duration::from_millis(50));
    let slave = Slave::open(open("lmdb", &dir.path().join("slave")), config).await?;
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow_tcp(address).await }
    });
    let mut before = 0;
    for _ in 0..kills() {
        let child = spawn(test, &["master", kind, path.to_str().unwrap(), &address.to_string()]);
        for _ in 0..rng.u32(3..12) {
            sleep(Duration::from_millis(20)).await;
            if slave.status().state != replikv::SlaveState::Copying {
                let number = whole_generation(slave.store()).await;
                assert!(number >= before, "the slave went back from {before} to {number}");
                before = number;
            }
        }
        kill(child);
        assert!(!following.is_finished(), "the slave gave up: {:?}", following.await);
    }
    assert!(before > 0, "nothing was ever replicated");
    let master = Master::open(open(kind, &path), MasterConfig::default()).await?;
    let last = whole_generation(master.store()).await;
    assert!(last >= before, "the slave is ahead of what the master has kept: {before}, {last}");
    tokio::spawn(master.clone().serve_tcp(TcpListener::bind(address).await?));
    let token = master.put("last", "word").await?;
    soon(slave.wait_applied(token)).await?;
    assert_equal(master.store(), slave.store()).await;
    slave.shutdown().await?;
    Ok(master.shutdown().await?)
}

macro_rules! killed {
    ($($name:ident: $function:ident $kind:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<(), Error> {
            $function(stringify!($name), $kind).await
        }
    )*};
}

killed! {
    a_killed_lmdb_slave_goes_on: a_slave_is_killed "lmdb";
    a_killed_sled_slave_goes_on: a_slave_is_killed "sled";
    a_killed_fjall_slave_goes_on: a_slave_is_killed "fjall";
    a_killed_lmdb_master_goes_on: a_master_is_killed "lmdb";
    a_killed_sled_master_goes_on: a_master_is_killed "sled";
    a_killed_fjall_master_goes_on: a_master_is_killed "fjall";
}
