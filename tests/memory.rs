//! What a value of 256 MiB costs the processes of a master and of a slave, in resident memory at most.
//!
//! The test starts itself again, once as a master and once as a slave; what a child is to be stands in its environment.
//! Children say what has happened in lines of standard output that begin with [`SAYS`], and do the next step when a line
//! arrives.
#![cfg(target_os = "linux")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use replikv::{
    Batch, Durability, Keyspace, LmdbOptions, LmdbStore, Master, MasterConfig, ReplicaStore, Slave, SlaveConfig,
    StoreLimits, WriteSet,
};
use support::{Error, soon};
use tokio::net::TcpListener;

const MIB: usize = 1 << 20;
/// The size of the value.
const LARGE: usize = 256 * MIB;
/// What the slave's process may take at most.
const SLAVE: usize = 2 * LARGE;
/// What the master's may.
const MASTER: usize = 13 * LARGE / 4;
const LIMITS: StoreLimits = StoreLimits { max_key: 511, max_value: LARGE, max_batch: LARGE + MIB };

const CHILD: &str = "REPLIKV_MEMORY_CHILD";
const SAYS: &str = "@ ";

/// Every block differs from every other one.
fn block(index: usize) -> Vec<u8> {
    let mut block = vec![(index % 251) as u8; MIB];
    block[..8].copy_from_slice(&index.to_be_bytes());
    block
}

fn large() -> Vec<u8> {
    let mut value = Vec::with_capacity(LARGE);
    (0..LARGE / MIB).for_each(|index| value.extend_from_slice(&block(index)));
    value
}

/// Beside the value, so that a mistake in the order or at the border of a buffer is seen.
fn batch() -> Batch {
    Batch::new().put("before", "small").put("large", large()).put("last", "small")
}

fn say(words: impl std::fmt::Display) {
    println!("\n{SAYS}{words}");
}

async fn next_step() {
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await.unwrap().unwrap();
}

/// In a child: is what it was told to be, until it has done its steps.
async fn child() -> Result<bool, Error> {
    let Ok(role) = std::env::var(CHILD) else { return Ok(false) };
    match role.split('\n').collect::<Vec<_>>()[..] {
        ["slave", dir, address, keys] => {
            let store = LmdbStore::open(dir, LmdbOptions::default())?;
            let slave = Slave::open(store, SlaveConfig::new("edge")).await?;
            let address: SocketAddr = address.parse()?;
            let following = slave.clone();
            tokio::spawn(async move { following.follow_tcp(address).await });
            let mut progress = slave.subscribe();
            for key in keys.split(',') {
                while slave.get(key).await?.is_none() {
                    progress.changed().await?;
                }
                say(key);
                next_step().await;
            }
            slave.shutdown().await?;
        }
        ["master", dir, prefilled] => {
            let store = LmdbStore::open(dir, LmdbOptions::default())?;
            if prefilled == "prefilled" {
                let mut before = WriteSet::builder();
                before.put(Keyspace::Data, "before", "small")?;
                before.put(Keyspace::Data, "large", large())?;
                before.put(Keyspace::Data, "last", "small")?;
                store.apply(before.build(), Durability::Synced).await?;
                store.close().await?;
                say("filled");
                next_step().await;
                return Ok(true);
            }
            let master = Master::open(store, MasterConfig::default().limits(LIMITS)).await?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            tokio::spawn(master.clone().serve_tcp(listener));
            master.put("first", "").await?;
            say(address);
            next_step().await;
            if prefilled != "copied" {
                master.write(batch()).await?;
            }
            // In key order the last one: a copy that has come to it has come to everything.
            master.put("written", "").await?;
            say("written");
            next_step().await;
            master.shutdown().await?;
        }
        _ => panic!("no role: {role}"),
    }
    Ok(true)
}

/// A child, and what it says.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn spawn(test: &str, role: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(CHILD, role.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// What it says next.
    fn heard(&mut self) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some(words) = line.strip_prefix(SAYS) {
                return words.trim().into();
            }
            line.clear();
        }
        panic!("the child has ended: {:?}", self.child.wait());
    }

    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    /// The most memory that was ever resident, in bytes.
    fn peak(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    fn end(mut self) {
        self.go_on();
        while self.output.read_line(&mut String::new()).unwrap() > 0 {}
        assert!(self.child.wait().unwrap().success(), "the child has failed");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the slave's store holds is what was written, byte by byte.
async fn assert_arrived(dir: &Path) -> Result<(), Error> {
    let store = LmdbStore::open(dir, LmdbOptions::default())?;
    for small in ["before", "last"] {
        assert_eq!(store.get(Keyspace::Data, small.as_bytes()).await?.as_deref(), Some(&b"small"[..]), "{small}");
    }
    let value = store.get(Keyspace::Data, b"large").await?.ok_or("there is no value")?;
    assert_eq!(value.len(), LARGE);
    for (index, found) in value.chunks(MIB).enumerate() {
        assert!(found == block(index), "MiB {index} is another");
    }
    Ok(store.close().await?)
}

async fn written(mut master: Process) -> Process {
    master.go_on();
    waited(master, Process::heard).await.0
}

struct Paths {
    master: PathBuf,
    slave: PathBuf,
    _dir: tempfile::TempDir,
}

impl Paths {
    fn new() -> Result<Self, Error> {
        let dir = tempfile::tempdir()?;
        Ok(Self { master: dir.path().join("master"), slave: dir.path().join("slave"), _dir: dir })
    }

    fn master(&self, test: &str, how: &str) -> Process {
        Process::spawn(test, &["master", self.master.to_str().unwrap(), how])
    }

    /// It says when each of `keys` has arrived.
    fn slave(&self, test: &str, address: &str, keys: &str) -> Process {
        Process::spawn(test, &["slave", self.slave.to_str().unwrap(), address, keys])
    }
}

// Only this process waits for the children: nothing of it has to be asynchronous.
async fn waited<T: Send + 'static>(
    process: Process,
    wait: impl FnOnce(&mut Process) -> T + Send + 'static,
) -> (Process, T) {
    let waiting = tokio::task::spawn_blocking(move || {
        let mut process = process;
        let heard = wait(&mut process);
        (process, heard)
    });
    soon(waiting).await.unwrap()
}

async fn a_slave_gets_it(test: &str, how: &str) -> Result<(), Error> {
    if child().await? {
        return Ok(());
    }
    let paths = Paths::new()?;
    if how == "copied" {
        let (filled, _) = waited(paths.master(test, "prefilled"), Process::heard).await;
        filled.end();
    }
    let (mut master, address) = waited(paths.master(test, how), Process::heard).await;
    let slave = match how {
        // It stands where the master stands before the value is written.
        "live" => {
            let mut slave = waited(paths.slave(test, &address, "first,written"), Process::heard).await.0;
            slave.go_on();
            master = written(master).await;
            slave
        }
        "from the log" => {
            waited(paths.slave(test, &address, "first"), Process::heard).await.0.end();
            master = written(master).await;
            paths.slave(test, &address, "written")
        }
        _ => {
            master = written(master).await;
            paths.slave(test, &address, "written")
        }
    };
    let slave = waited(slave, Process::heard).await.0;
    let (slaves, masters) = (slave.peak(), master.peak());
    println!("{how}: at most {} MiB were resident of the slave, {} of the master", slaves / MIB, masters / MIB);
    assert!(slaves < SLAVE, "the slave takes {} MiB, and {} are too many", slaves / MIB, SLAVE / MIB);
    assert!(masters < MASTER, "the master takes {} MiB, and {} are too many", masters / MIB, MASTER / MIB);
    slave.end();
    master.end();
    assert_arrived(&paths.slave).await
}

macro_rules! ways {
    ($($name:ident: $how:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<(), Error> {
            a_slave_gets_it(stringify!($name), $how).await
        }
    )*};
}

ways! {
    a_value_of_256_mib_that_is_written_now_takes_less_than_twice_that: "live";
    a_value_of_256_mib_that_is_copied_takes_less_than_twice_that: "copied";
    a_value_of_256_mib_that_comes_from_the_log_takes_less_than_twice_that: "from the log";
}
