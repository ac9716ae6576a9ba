//! What runs under the recorder: a master that is written to, or a slave that follows one.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use futures_util::future::try_join_all;
use replikv::proto::{GoodbyeReason, SlotKind};
use replikv::{
    ChangesFrom, Ending, FollowError, Master, MasterConfig, MemoryStore, Position, Seq, Slave, SlaveConfig,
    SlaveProgress,
};
use tokio::task::JoinHandle;

use crate::dump;
use crate::history::History;
use crate::recording::Note;
use crate::setup::{Durable, Role, Setup};

/// How many batches are written, in so many sessions: each opens the store anew.
const BATCHES: u64 = 280;
const SESSIONS: u32 = 2;

/// The side channel: the recorder puts what is written here among the file operations.
#[derive(Debug, Clone)]
struct Notes(Arc<Mutex<File>>);

impl Notes {
    fn say(&self, note: Note) -> Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&note.to_bytes()).context("a note cannot be written")
    }

    fn durable(&self, position: Position) -> Result<()> {
        let (durable, digest) = (position.seq.as_u64(), Some(*position.digest.as_bytes()));
        self.say(Note { durable, digest, consistent: true })
    }
}

/// Runs the workload of `setup` on the store below `files`.
pub(crate) async fn run(setup: &Setup, files: &Path, notes: &Path, master: &Path) -> Result<()> {
    let notes = Notes(Arc::new(Mutex::new(File::create(notes)?)));
    match setup.role {
        Role::Master => run_master(setup, files, &notes).await,
        Role::Slave => run_slave(setup, files, &notes, master).await,
    }
}

fn rng(setup: &Setup) -> Rng {
    Rng::with_seed(setup.seed ^ (u64::from(setup.life) << 40))
}

async fn run_master(setup: &Setup, files: &Path, notes: &Notes) -> Result<()> {
    let (history, mut rng) = (History::of_an_empty_master(setup.seed, setup.values), rng(setup));
    for session in 0..SESSIONS {
        let master = Master::open(setup.open(files)?, setup.master_config()).await?;
        let head = master.status().published;
        notes.durable(head)?;
        let noting = tokio::spawn(note_published(master.clone(), notes.clone()));
        let consumer = master.consumer("index", ChangesFrom::Now).await?;
        // A slave that acknowledges durably has a slot.
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("reader")).await?;
        let _following = connect(&master, &slave);
        let (mut next, end) = (head.seq.as_u64() + 1, head.seq.as_u64() + 1 + BATCHES / u64::from(SESSIONS));
        while next < end {
            let many = rng.u64(1..=5);
            // At once, so that groups are more than one batch.
            let writes = (next..next + many).map(|seq| write(setup, &master, &history, seq, notes));
            try_join_all(writes).await?;
            next += many;
            if rng.u8(..8) == 0 {
                consumer.ack(master.status().published).await?;
            }
            if rng.u8(..16) == 0 {
                // Nobody is called so: this wakes whoever trims.
                master.forget(SlotKind::Slave, "nobody");
            }
        }
        drop(consumer);
        if session + 1 < SESSIONS || rng.bool() {
            master.shutdown().await?;
        }
        noting.abort();
    }
    Ok(())
}

async fn write<S: replikv::ReplicaStore>(
    setup: &Setup,
    master: &Master<S>,
    history: &History,
    seq: u64,
    notes: &Notes,
) -> Result<()> {
    let token = master.write(history.batch(seq)).await?;
    ensure!(token.seq == Seq::new(seq), "batch {seq} has become record {}", token.seq);
    if setup.durable == Durable::Synced {
        notes.say(Note { durable: seq, digest: None, consistent: true })?;
    }
    Ok(())
}

// What is published is durable, however writers are answered.
async fn note_published<S: replikv::ReplicaStore>(master: Master<S>, notes: Notes) -> Result<()> {
    let mut progress = master.subscribe();
    let mut last = progress.position().seq;
    loop {
        let next = last.next().context("the last record")?;
        let published = progress.reached(next).await?;
        notes.durable(published)?;
        last = published.seq;
    }
}

async fn run_slave(setup: &Setup, files: &Path, notes: &Notes, dump: &Path) -> Result<()> {
    let mut rng = rng(setup);
    let mut history = History::of_a_full_master(setup.seed, setup.values);
    let store =
        if dump.exists() { dump::load(dump).await? } else { dump::of(history.at(Seq::new(history.start()))).await? };
    let master = Master::open(store.clone(), MasterConfig::default().chunk_bytes(2 << 10)).await?;
    let mut next = master.status().published.seq.as_u64() + 1;
    for session in 0..SESSIONS {
        let config = setup.slave_config().group_bytes(rng.usize(1 << 10..24 << 10));
        let slave = Slave::open(setup.open(files)?, config).await?;
        let noting = tokio::spawn(note_durable(setup.clone(), slave.clone(), notes.clone()));
        let mut following = connect(&master, &slave);
        let end = next + BATCHES / u64::from(SESSIONS);
        let reconnect_at = rng.u64(next..end);
        while next < end {
            let last = next + rng.u64(1..=4);
            while next < last {
                let token = master.write(history.batch(next)).await?;
                ensure!(token.seq == Seq::new(next), "batch {next} has become record {}", token.seq);
                next += 1;
            }
            if rng.u8(..4) != 0 && slave.subscribe().borrow().consistent {
                applied(&slave, &mut following, next - 1).await?;
            } else {
                // Batches come while it copies.
                tokio::task::yield_now().await;
            }
            if (last - 4..=last).contains(&reconnect_at) && !following.is_finished() {
                following.abort();
                drop(following.await);
                following = connect(&master, &slave);
            }
        }
        applied(&slave, &mut following, next - 1).await?;
        if session + 1 < SESSIONS || rng.bool() {
            slave.shutdown().await?;
        }
        noting.abort();
    }
    dump::save(&store, dump).await
}

// The same progress that the slave's acknowledgements are made of.
async fn note_durable<S: replikv::ReplicaStore>(setup: Setup, slave: Slave<S>, notes: Notes) -> Result<()> {
    let mut progress = slave.subscribe();
    loop {
        let SlaveProgress { position, durable, consistent, .. } = progress.borrow_and_update().clone();
        let position = position.filter(|position| position.seq == durable && durable > Seq::ZERO);
        // A buffered slave may have become consistent after its last sync, at the same record.
        let consistent = consistent && position.is_some() && setup.durable == Durable::Synced;
        let digest = position.map(|position| *position.digest.as_bytes());
        notes.say(Note { durable: durable.as_u64(), digest, consistent })?;
        progress.changed().await?;
    }
}

type Following = JoinHandle<Result<Ending, FollowError>>;

async fn applied<S: replikv::ReplicaStore>(slave: &Slave<S>, following: &mut Following, seq: u64) -> Result<()> {
    tokio::select! {
        biased;
        reached = slave.wait_applied(Seq::new(seq)) => Ok(reached?),
        ended = following => bail!("following has ended before record {seq}: {ended:?}"),
    }
}

fn connect<S: replikv::ReplicaStore, T: replikv::ReplicaStore>(master: &Master<S>, slave: &Slave<T>) -> Following {
    let (master, slave) = (master.clone(), slave.clone());
    tokio::spawn(async move {
        loop {
            let (here, there) = tokio::io::duplex(64 << 10);
            let serving = master.clone();
            tokio::spawn(async move { serving.serve(here).await });
            match slave.follow(there).await {
                // The hello of a connection that was given up has come after this one's, which is closed for it.
                Ok(Ending::Goodbye { reason: GoodbyeReason::Replaced, .. }) | Err(FollowError::Connection(_)) => {}
                ended => return ended,
            }
        }
    })
}
