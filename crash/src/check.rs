//! Looks at what a power loss has left: opens the store, and compares it with what it must hold.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use replikv::proto::GoodbyeReason;
use replikv::proto::layout::{Checkpoint, Floor, Head, Identity, Stored};
use replikv::{
    Ending, KeyRange, Keyspace, LinkId, Master, MasterConfig, MemoryStore, OpenError, Position, ReplicaStore,
    ScanOptions, Seq, Slave, SlaveConfig,
};

use crate::dump;
use crate::history::{Content, History};
use crate::recording::Note;
use crate::setup::{Role, Setup, Store};

/// What is wrong with a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The process that looked was killed by a signal, or ended.
    Crash,
    /// It did not come to an end.
    Hang,
    /// The store does not open, or cannot be read.
    Unreadable,
    /// It does not open as what it was.
    Role,
    /// The data is not what the master had at the position that the store names.
    Wrong,
    /// The log is not a chain from its floor to its head.
    Log,
    /// Something that was acknowledged as durable is missing.
    Lost,
    /// Nobody can go on from there.
    Stuck,
}

impl Fault {
    pub(crate) const ALL: [Self; 8] =
        [Self::Crash, Self::Hang, Self::Unreadable, Self::Role, Self::Wrong, Self::Log, Self::Lost, Self::Stuck];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Unreadable => "unreadable",
            Self::Role => "role",
            Self::Wrong => "wrong data",
            Self::Log => "log",
            Self::Lost => "lost",
            Self::Stuck => "stuck",
        }
    }
}

/// A fault, in words.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) fault: Fault,
    pub(crate) words: String,
}

type Checked<T> = Result<T, Finding>;

fn found<T>(fault: Fault, words: impl Into<String>) -> Checked<T> {
    Err(Finding { fault, words: words.into() })
}

trait Faulted<T> {
    fn faulted(self, fault: Fault) -> Checked<T>;
}

impl<T, E: Into<anyhow::Error>> Faulted<T> for Result<T, E> {
    fn faulted(self, fault: Fault) -> Checked<T> {
        self.map_err(|error| Finding { fault, words: format!("{:#}", error.into()) })
    }
}

/// What must hold of a state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// The last thing that was acknowledged as durable.
    pub(crate) durable: Note,
    /// Also go on from there.
    pub(crate) deep: bool,
}

/// Looks at states of one setup.
#[derive(Debug)]
pub(crate) struct Checker {
    setup: Setup,
    history: History,
    /// What a slave follows.
    master: Option<MemoryStore>,
}

const LONG: Duration = Duration::from_secs(60);

impl Checker {
    pub(crate) async fn new(setup: Setup, master: &Path) -> Result<Self> {
        let history = match setup.role {
            Role::Master => History::of_an_empty_master(setup.seed, setup.values),
            Role::Slave => History::of_a_full_master(setup.seed, setup.values),
        };
        let master = if master.exists() { Some(dump::load(master).await?) } else { None };
        Ok(Self { setup, history, master })
    }

    /// Looks at the state below `files`. It is not what it was afterwards.
    pub(crate) async fn check(&mut self, files: &Path, expected: Expected) -> Checked<()> {
        let store = self.setup.open(files).faulted(Fault::Unreadable)?;
        let result = match self.setup.role {
            Role::Master => self.check_master(&store, expected).await,
            Role::Slave => self.check_slave(&store, expected).await,
        };
        // Closed also where something was found: the next state is opened in this process.
        let closed = store.close().await;
        result?;
        closed.faulted(Fault::Unreadable)
    }

    async fn check_master(&mut self, store: &Store, expected: Expected) -> Checked<()> {
        let durable = expected.durable;
        let head: Option<Head> = meta(store, Head::KEY).await?;
        if head.is_none() && durable.durable > 0 {
            return found(Fault::Lost, format!("nothing is there, record {} was durable", durable.durable));
        }
        if let Some(head) = head {
            self.check_data(store, head.position.seq).await?;
            let floor: Option<Floor> = meta(store, Floor::KEY).await?;
            let Some(floor) = floor else { return found(Fault::Log, "there is no floor") };
            let log = check_log(store, &floor, &head).await?;
            check_checkpoints(store, &log).await?;
            if head.position.seq.as_u64() < durable.durable {
                let words = format!("the head is {}, record {} was durable", head.position.seq, durable.durable);
                return found(Fault::Lost, words);
            }
            let kept = log.iter().chain([&head.position, &floor.position]);
            check_digest(kept, durable)?;
        }
        let master = match Master::open(store.clone(), self.setup.master_config()).await {
            Ok(master) => master,
            Err(error @ OpenError::Store(_)) => return Err(error).faulted(Fault::Unreadable),
            Err(error) => return Err(error).faulted(Fault::Role),
        };
        let result = self.check_open_master(&master, expected).await;
        master.shutdown().await.faulted(Fault::Unreadable)?;
        result
    }

    // It takes writes, and a slave gets all of it.
    async fn check_open_master(&mut self, master: &Master<Store>, expected: Expected) -> Checked<()> {
        let next = master.status().published.seq.as_u64() + 1;
        let token = master.write(self.history.batch(next)).await.faulted(Fault::Stuck)?;
        self.check_data(master.store(), token.seq).await?;
        if !expected.deep {
            return Ok(());
        }
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("checks")).await.faulted(Fault::Stuck)?;
        follow(master, &slave, token.seq).await?;
        let copied = dump::content(slave.store(), Keyspace::Data).await.faulted(Fault::Stuck)?;
        compare(&copied, self.history.at(token.seq), "what was copied from it")
    }

    async fn check_slave(&mut self, store: &Store, expected: Expected) -> Checked<()> {
        let durable = expected.durable;
        let cursor = store.cursor(&LinkId::default()).await.faulted(Fault::Unreadable)?;
        let position = cursor.as_ref().map(|cursor| cursor.position);
        let seq = position.map_or(Seq::ZERO, |position| position.seq);
        if seq.as_u64() < durable.durable {
            return found(Fault::Lost, format!("the cursor is at {seq}, record {} was durable", durable.durable));
        }
        check_digest(position.iter(), durable)?;
        let consistent = cursor.as_ref().is_some_and(replikv::Cursor::is_consistent);
        if consistent {
            self.check_data(store, seq).await?;
        } else if durable.consistent {
            return found(Fault::Lost, "it copies, and was durably consistent before");
        }
        let slave = match Slave::open(store.clone(), self.setup.slave_config()).await {
            Ok(slave) => slave,
            Err(error @ OpenError::Store(_)) => return Err(error).faulted(Fault::Unreadable),
            Err(error) => return Err(error).faulted(Fault::Role),
        };
        // What a state in the middle of a copy is worth only shows when it is gone on from.
        let result = if expected.deep || !consistent { self.check_following(&slave).await } else { Ok(()) };
        slave.shutdown().await.faulted(Fault::Unreadable)?;
        result
    }

    async fn check_following(&mut self, slave: &Slave<Store>) -> Checked<()> {
        let Some(memory) = &self.master else { return found(Fault::Stuck, "there is no master to follow") };
        let master = Master::open(memory.open_again(), MasterConfig::default()).await.faulted(Fault::Stuck)?;
        let head = master.status().published.seq;
        let result = follow(&master, slave, head).await;
        master.shutdown().await.faulted(Fault::Stuck)?;
        result?;
        let Ok(held) = dump::content(slave.store(), Keyspace::Data).await else {
            return found(Fault::Unreadable, "it cannot be read after it has followed");
        };
        compare(&held, self.history.at(head), "what it holds after it has followed")
    }

    async fn check_data(&mut self, store: &Store, seq: Seq) -> Checked<()> {
        let held = dump::content(store, Keyspace::Data).await.faulted(Fault::Unreadable)?;
        compare(&held, self.history.at(seq), &format!("the data at record {seq}"))
    }
}

async fn meta<V: Stored>(store: &Store, key: &[u8]) -> Checked<Option<V>> {
    match store.get(Keyspace::Meta, key).await.faulted(Fault::Unreadable)? {
        Some(bytes) => V::from_bytes(&bytes).map(Some).faulted(Fault::Unreadable),
        None if key != Identity::KEY => {
            let identity = store.get(Keyspace::Meta, Identity::KEY).await.faulted(Fault::Unreadable)?;
            match identity {
                Some(_) => found(Fault::Log, format!("it has an identity, and no {}", key.escape_ascii())),
                None => Ok(None),
            }
        }
        None => Ok(None),
    }
}

fn compare(held: &Content, wanted: &Content, what: &str) -> Checked<()> {
    if held == wanted {
        return Ok(());
    }
    let differs = |key: &&bytes::Bytes| held.get(*key) != wanted.get(*key);
    let key = held.keys().chain(wanted.keys()).filter(differs).min();
    let len = |content: &Content| {
        key.and_then(|key| content.get(key)).map_or("nothing".into(), |v| format!("{} bytes", v.len()))
    };
    let words = format!(
        "{what}: {} entries instead of {}; first at {:?}, {} instead of {}",
        held.len(),
        wanted.len(),
        key.map(|key| key.escape_ascii().to_string()).unwrap_or_default(),
        len(held),
        len(wanted),
    );
    found(Fault::Wrong, words)
}

// Every record from the floor to the head, each continuing the one before it.
async fn check_log(store: &Store, floor: &Floor, head: &Head) -> Checked<Vec<Position>> {
    let records = replikv::read_log(store, Seq::ZERO, usize::MAX).await.faulted(Fault::Log)?;
    let mut before = floor.position;
    let mut positions = Vec::with_capacity(records.len());
    for record in &records {
        record.header().verify_after(&before).faulted(Fault::Log)?;
        before = record.position();
        positions.push(before);
    }
    if before != head.position {
        return found(Fault::Log, format!("it ends at {before}, the head is {}", head.position));
    }
    Ok(positions)
}

async fn check_checkpoints(store: &Store, log: &[Position]) -> Checked<()> {
    let range = KeyRange::prefix(Checkpoint::PREFIX);
    let options = ScanOptions::default().max_entries(10_000);
    let page = store.scan(Keyspace::Meta, range, options).await.faulted(Fault::Unreadable)?;
    for (_, value) in page.iter() {
        let checkpoint = Checkpoint::from_bytes(value).faulted(Fault::Unreadable)?.position;
        if log.iter().any(|position| position.seq == checkpoint.seq && *position != checkpoint) {
            return found(Fault::Log, format!("the checkpoint of record {} is another's", checkpoint.seq));
        }
    }
    Ok(())
}

// What a slave was sent is still in the history.
fn check_digest<'a>(mut kept: impl Iterator<Item = &'a Position>, durable: Note) -> Checked<()> {
    let Some(digest) = durable.digest else { return Ok(()) };
    let same_seq = kept.find(|position| position.seq.as_u64() == durable.durable);
    match same_seq {
        Some(position) if *position.digest.as_bytes() != digest => {
            found(Fault::Lost, format!("record {} is another one than was durable", durable.durable))
        }
        _ => Ok(()),
    }
}

// A log that is trimmed while the slave reads it sends it away, and has it connect again.
async fn follow<S: ReplicaStore, T: ReplicaStore>(master: &Master<S>, slave: &Slave<T>, to: Seq) -> Checked<()> {
    let following = async {
        loop {
            let (here, there) = tokio::io::duplex(256 << 10);
            let both = async { tokio::join!(slave.follow(there), master.serve(here)) };
            let ended = tokio::select! {
                biased;
                reached = slave.wait_applied(to) => return reached.faulted(Fault::Stuck),
                ended = both => ended,
            };
            match ended {
                (Ok(Ending::Goodbye { reason: GoodbyeReason::Trimmed, .. }), Ok(_)) => {}
                (Err(error), _) => return Err(error).faulted(Fault::Stuck),
                (_, Err(error)) => return Err(error).faulted(Fault::Stuck),
                (followed, served) => return found(Fault::Stuck, format!("it ends: {followed:?}, {served:?}")),
            }
        }
    };
    match tokio::time::timeout(LONG, following).await {
        Ok(result) => result,
        Err(_) => found(Fault::Hang, "a slave does not get to the head"),
    }
}
