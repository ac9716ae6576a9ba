//! A master in the middle: one process writes, and reads are spread over three others, each with a copy of its own.
//!
//! One of the three is killed (SIGKILL) while everybody reads, and started again later. No read fails. No read is staler
//! than the bound, goes back to what is older than what was seen, or misses the write that it asked for. All that is
//! checked against what was written, and ends with an error if it does not hold.
//!
//! Run without arguments it starts itself three times more, as the slaves.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use replikv::{
    BalanceConfig, BalancedReader, LmdbOptions, LmdbStore, Master, MasterConfig, ReadAt, Reader, RemoteReader,
    RemoteReaderConfig, Seq, Slave, SlaveConfig, Token,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WRITES: u64 = 3_000;
const KEYS: u64 = 50;
const READERS: u64 = 8;
/// How many records a read may lack.
const BOUND: u64 = 300;

#[tokio::main]
async fn main() -> Result {
    let args: Vec<String> = std::env::args().collect();
    match &args[1..] {
        [] => in_the_middle().await,
        [name, dir, master] => follow(name, Path::new(dir), master).await,
        _ => Err("run it without arguments".into()),
    }
}

/// A slave: follows the master, and answers reads, until whoever started it is gone.
async fn follow(name: &str, dir: &Path, master: &str) -> Result {
    let store = LmdbStore::open(dir.join(name), LmdbOptions::default())?;
    let slave = Slave::open(store, SlaveConfig::new(name)).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    tokio::spawn(slave.clone().serve_reads_tcp(listener));
    let (following, master) = (slave.clone(), master.to_string());
    tokio::spawn(async move { following.follow_tcp(master).await });
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(slave.shutdown().await?)
}

/// A slave's process, and where it answers reads: elsewhere each time it is started.
struct Process {
    child: Child,
    _input: Option<ChildStdin>,
}

impl Process {
    fn start(name: &str, dir: &Path, master: SocketAddr, address: &Mutex<Option<SocketAddr>>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(name).arg(dir).arg(master.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("it has no output")?).read_line(&mut line)?;
        *address.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.trim().parse()?);
        Ok(Self { _input: child.stdin.take(), child })
    }

    fn kill(&mut self) -> Result {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.kill());
    }
}

/// A reader of a slave, wherever that is at the moment.
fn reader(address: Arc<Mutex<Option<SocketAddr>>>) -> RemoteReader {
    let connect = move || {
        let address = *address.lock().unwrap_or_else(PoisonError::into_inner);
        async move { TcpStream::connect(address.ok_or_else(|| std::io::Error::other("not started yet"))?).await }
    };
    let config = RemoteReaderConfig::default().backoff(Duration::from_millis(20), Duration::from_millis(200));
    RemoteReader::connecting(connect, config)
}

/// What a read has found.
struct Seen {
    key: u64,
    found: Option<u64>,
    at: ReadAt,
    /// It must include this record.
    wanted: Seq,
    why: &'static str,
}

async fn in_the_middle() -> Result {
    let dir = tempfile::tempdir()?;
    let store = LmdbStore::open(dir.path().join("master"), LmdbOptions::default())?;
    let master = Master::open(store, MasterConfig::default()).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let here = listener.local_addr()?;
    tokio::spawn(master.clone().serve_tcp(listener));

    let names = ["one", "two", "three"];
    let addresses: Vec<Arc<Mutex<Option<SocketAddr>>>> = names.iter().map(|_| Arc::default()).collect();
    let start = |n: usize| Process::start(names[n], dir.path(), here, &addresses[n]);
    let mut processes = (0..names.len()).map(start).collect::<Result<Vec<_>>>()?;
    let readers: Vec<Arc<dyn Reader>> = addresses.iter().map(|at| Arc::new(reader(at.clone())) as _).collect();
    let config = BalanceConfig::default().max_lag_seqs(Some(BOUND));
    let balanced = BalancedReader::with_fallback(readers.clone(), Arc::new(master.clone()), config);
    for reader in &readers {
        let first = master.status().published.seq;
        let there = async {
            while reader.wait_applied(first.into()).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(60), there).await.map_err(|_| "a slave does not come")?;
    }

    let (stop, newest) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
    let reading: Vec<_> = (0..READERS)
        .map(|n| tokio::spawn(read_on(n, balanced.clone(), master.clone(), newest.clone(), stop.clone())))
        .collect();

    // What was written: key and value, by record.
    let mut written = BTreeMap::new();
    let served_by_two = || balanced.shares()[1].reads;
    let mut before_the_kill = 0;
    let mut while_dead = 0;
    for n in 1..=WRITES {
        let token = master.put(format!("page/{}", n % KEYS), n.to_string()).await?;
        written.insert(token.seq, (n % KEYS, n));
        *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some((token, n % KEYS));
        if n == WRITES / 3 {
            processes[1].kill()?;
            before_the_kill = served_by_two();
        }
        if n == 2 * WRITES / 3 {
            while_dead = served_by_two();
            processes[1] = start(1)?;
        }
        sleep(Duration::from_millis(1)).await;
    }
    let back = async {
        while served_by_two() == while_dead {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), back).await.map_err(|_| "the slave that was killed has not come back")?;
    stop.store(true, Ordering::SeqCst);
    let mut reads = Vec::new();
    for reading in reading {
        reads.extend(reading.await??);
    }

    for seen in &reads {
        check(seen, &written)?;
    }
    let shares = balanced.shares();
    println!("{WRITES} writes; {} reads by {READERS} readers, none failed", reads.len());
    println!("none was staler than {BOUND} records, went back, or missed a write that it asked for");
    for (name, share) in names.iter().zip(&shares) {
        println!("  slave {name}: {} reads, {} failed and were answered by others", share.reads, share.failures);
    }
    println!("  master: {} reads", balanced.fallback_share().map_or(0, |share| share.reads));
    println!(
        "slave two was killed after {before_the_kill} reads, and has answered {} since",
        shares[1].reads - while_dead
    );
    if shares.iter().any(|share| share.reads == 0) || before_the_kill == 0 {
        return Err("reads were not spread over all slaves".into());
    }
    drop(processes);
    Ok(master.shutdown().await?)
}

type Newest = Arc<Mutex<Option<(Token, u64)>>>;

/// Reads in turn within the bound, in a session, and what was written last.
async fn read_on(
    n: u64,
    balanced: BalancedReader,
    master: Master<LmdbStore>,
    newest: Newest,
    stop: Arc<AtomicBool>,
) -> Result<Vec<Seen>> {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let session = balanced.session();
    let mut shown = Seq::ZERO;
    let mut reads = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let key = (turn * 7 + n) % KEYS;
        let name = format!("page/{key}");
        // What is published when the read begins: it may lack as much as the bound allows.
        let head = master.status().published.seq;
        let newest = *newest.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, read, wanted, why) = match (turn % 3, newest) {
            (1, Some((token, key))) => {
                let read = balanced.read(format!("page/{key}").as_bytes(), Some(token.into())).await?;
                (key, read, token.seq, "the write that it asked for")
            }
            (2, _) => {
                let read = session.read(name).await?;
                let before = shown;
                shown = read.at.shows.map_or(before, |at| at.seq.max(before));
                (key, read, before, "what the session had seen")
            }
            _ => {
                let read = balanced.read(name.as_bytes(), None).await?;
                (key, read, Seq::new(head.as_u64().saturating_sub(BOUND)), "the bound")
            }
        };
        let text = read.value.map(|value| String::from_utf8_lossy(&value).parse());
        reads.push(Seen { key, found: text.transpose()?, at: read.at, wanted, why });
        sleep(Duration::from_millis(1)).await;
    }
    Ok(reads)
}

fn check(seen: &Seen, written: &BTreeMap<Seq, (u64, u64)>) -> Result {
    let Seen { key, found, at, wanted, why } = seen;
    let seq = |position: Option<replikv::Position>| position.map_or(Seq::ZERO, |position| position.seq);
    let (includes, shows) = (seq(at.includes), seq(at.shows));
    if includes < *wanted {
        return Err(format!("a read includes record {includes}, and not {wanted}: {why}").into());
    }
    // The key as it was after a record.
    let value_at = |seq: Seq| written.range(..=seq).rev().find(|(_, (k, _))| k == key).map(|(_, (_, value))| *value);
    let (oldest, newest) = (value_at(includes), value_at(shows));
    if *found < oldest || *found > newest {
        return Err(
            format!("a read of records {includes} to {shows} finds {found:?}, not {oldest:?} to {newest:?}").into()
        );
    }
    Ok(())
}
