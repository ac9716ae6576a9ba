//! A master and its slaves, each on a host of its own, in a network that a seed takes apart.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replikv_core::{Batch, Durability, KeyRange, Keyspace, LinkId, ReplicaStore, StoreError, WriteSet};
use replikv_memory::MemoryStore;
use replikv_node::{Commit, Compression, Master, MasterConfig, Slave, SlaveConfig};
use replikv_proto::Retention;
use replikv_proto::layout::{Head, Stored};
use replikv_testkit::FaultStore;
use tokio::time::{sleep, timeout};
use turmoil::Sim;
use turmoil::net::{TcpListener, TcpStream};

use super::watched::{History, Watched, contents, hash};

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fault {
    /// A process dies, and is started again later.
    Crash,
    /// A machine loses power: what was not synced is gone.
    Power,
    /// Nothing passes between two hosts; nobody is told, and what was sent meanwhile never arrives.
    Partition,
    /// Nothing passes from the master to the slave.
    Deaf,
    /// Nothing passes from the slave to the master.
    Mute,
    /// What is sent stays under way, and arrives later.
    Hold,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] = [Self::Crash, Self::Power, Self::Partition, Self::Deaf, Self::Mute, Self::Hold];
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Report {
    /// A fingerprint of what went wrong, and when.
    pub(crate) schedule: u64,
    pub(crate) faults: BTreeMap<Fault, u64>,
    pub(crate) write_sets: u64,
    pub(crate) in_the_middle: u64,
    pub(crate) seconds: f64,
}

/// The store of a host, which outlives its processes.
#[derive(Clone)]
pub(crate) struct Disk {
    now: Arc<Mutex<FaultStore<MemoryStore>>>,
    history: History,
    name: String,
    seed: u64,
}

impl Disk {
    pub(crate) fn new(store: MemoryStore, history: &History, name: &str, seed: u64) -> Self {
        let now = Arc::new(Mutex::new(FaultStore::new(store)));
        Self { now, history: history.clone(), name: name.into(), seed }
    }

    fn store(&self) -> FaultStore<MemoryStore> {
        self.now.lock().unwrap().clone()
    }

    pub(crate) fn open(&self) -> Watched {
        Watched::new(self.store(), self.history.clone(), self.name.clone(), self.seed)
    }

    fn lose_power(&self) {
        let store = futures_executor::block_on(self.store().power_loss()).unwrap();
        *self.now.lock().unwrap() = store;
    }
}

pub(crate) const PORT: u16 = 9999;
const CHAOS: Duration = Duration::from_secs(20);
/// Long enough for what is under way to be given up, and for a comparison or a copy; more would be a hang.
const HEAL: Duration = Duration::from_secs(60);

/// Small, so that what is rare elsewhere is common here.
pub(crate) fn master_config() -> MasterConfig {
    MasterConfig::default()
        .heartbeat(Duration::from_millis(100))
        .handshake_timeout(Duration::from_millis(500))
        .retention(Retention { max_bytes: 6_000, max_age_ms: None, hold_back_bytes: 9_000 })
        .ring_bytes(2_000)
        .chunk_bytes(600)
}

/// Accepts connections as `serve_tcp` does, on the simulated network.
pub(crate) async fn serve(master: Master<Watched>, also: impl Fn(i64) + Clone + Send + 'static) -> Outcome {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (master, also) = (master.clone(), also.clone());
        tokio::spawn(async move {
            also(1);
            drop(master.serve(stream).await);
            also(-1);
        });
    }
}

/// Follows as `follow_tcp` does, on the simulated network: whatever ends a connection, there is another one.
pub(crate) async fn follow(slave: &Slave<Watched>, history: &History, mut rng: fastrand::Rng) -> Outcome {
    loop {
        let connecting = timeout(Duration::from_millis(500), TcpStream::connect(("master", PORT)));
        if let Ok(Ok(stream)) = connecting.await
            && let Err(error) = slave.follow(stream).await
            && !error.is_retryable()
        {
            history.blame(format!("a slave was told to give up: {error:?}"));
        }
        sleep(Duration::from_millis(rng.u64(5..100))).await;
    }
}

/// A slave on a host of its own, which is named as its disk is.
pub(crate) fn host_slave(sim: &mut Sim<'static>, disk: &Disk, durability: Durability, rng: fastrand::Rng) {
    let (disk, lives) = (disk.clone(), Mutex::new(rng));
    sim.host(disk.name.clone(), move || {
        let (disk, rng) = (disk.clone(), lives.lock().unwrap().fork());
        async move {
            let config = SlaveConfig::new(&disk.name).handshake_timeout(Duration::from_millis(500));
            // In one way, in the other, or not at all. Those of one way share what is compressed.
            let compression = usize::try_from(disk.seed % 3).ok().and_then(|way| Compression::ALL.get(way).copied());
            let config = config.durability(durability).compression(compression);
            let slave = Slave::open(disk.open(), config).await?;
            follow(&slave, &disk.history, rng).await
        }
    });
}

/// What is missing until these slaves equal the master.
pub(crate) fn missing(master: &Disk, slaves: &[Disk]) -> Option<String> {
    let look = async {
        let master = master.store();
        let head = master.get(Keyspace::Meta, Head::KEY).await?;
        let Some(head) = head else { return Ok(Some("the master has no head".into())) };
        let (head, held) = (Head::from_bytes(&head)?.position, contents(&master).await?);
        for slave in slaves {
            let (name, store) = (&slave.name, slave.store());
            let Some(cursor) = store.cursor(&LinkId::default()).await? else {
                return Ok(Some(format!("{name} has no cursor")));
            };
            if cursor.position != head || !cursor.is_consistent() {
                return Ok(Some(format!("{name} stands at {}, its master at {head}", cursor.position)));
            }
            if contents(&store).await? != held {
                return Ok(Some(format!("{name} stands where its master stands, and holds other data")));
            }
        }
        Ok::<_, StoreError>(None)
    };
    // A store that is broken tells nothing until its node opens it anew.
    futures_executor::block_on(look).unwrap_or_else(|error| Some(error.to_string()))
}

async fn write(master: Master<Watched>, quiet: Arc<AtomicBool>, mut rng: fastrand::Rng) {
    while !quiet.load(Ordering::SeqCst) {
        let mut batch = Batch::new();
        for _ in 0..rng.usize(1..5) {
            let key = [b'a' + rng.u8(0..8), b'0' + rng.u8(0..8)];
            batch = match rng.u8(0..20) {
                0..14 => batch.put(key, vec![rng.u8(..); rng.usize(0..200)]),
                14..19 => batch.delete(key),
                _ => batch.delete_range(KeyRange::prefix(&key[..1])),
            };
        }
        // Whether it is there is seen in the store.
        drop(master.write(batch).await);
        sleep(Duration::from_millis(rng.u64(0..30))).await;
    }
}

fn disk_with_data(rng: &mut fastrand::Rng) -> MemoryStore {
    let store = MemoryStore::new();
    let mut writes = WriteSet::builder();
    for n in 0..rng.u8(0..40) {
        writes.put(Keyspace::Data, [b'a' + n % 8, b'0' + n / 8], vec![n; 90]).unwrap();
    }
    futures_executor::block_on(store.apply(writes.build(), Durability::Synced)).unwrap();
    store
}

/// Runs a seed: faults for a while, then none, and everybody must come to equal the master.
pub(crate) fn run(seed: u64) -> Result<Report, String> {
    World::new(seed).run().map_err(|words| format!("{words}\n{}", reproduce(seed)))
}

fn reproduce(seed: u64) -> String {
    format!(
        "REPLIKV_NETWORK_SEED={seed} cargo test -p replikv-node --test network -- --exact \
         the_seed_of_the_environment_holds --nocapture"
    )
}

struct World {
    sim: Sim<'static>,
    rng: fastrand::Rng,
    /// The master's first.
    disks: Vec<Disk>,
    history: History,
    quiet: Arc<AtomicBool>,
    faults: BTreeMap<Fault, u64>,
    schedule: u64,
    /// What passes, and when.
    passing: Vec<(Duration, Fault, usize)>,
}

impl World {
    fn new(seed: u64) -> Self {
        // Backoffs draw from the thread's own numbers.
        fastrand::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut builder = turmoil::Builder::new();
        builder.rng_seed(seed).simulation_duration(Duration::from_secs(3600)).tick_duration(Duration::from_millis(1));
        builder
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(rng.u64(2..30)));
        let mut world = Self {
            sim: builder.build(),
            history: History::default(),
            quiet: Arc::default(),
            disks: Vec::new(),
            faults: BTreeMap::new(),
            schedule: 0,
            passing: Vec::new(),
            rng,
        };
        world.add_master();
        for number in 0..world.rng.usize(1..4) {
            world.add_slave(number);
        }
        world
    }

    fn add_master(&mut self) {
        let disk = Disk::new(disk_with_data(&mut self.rng), &self.history, "master", self.rng.u64(..));
        let commit =
            if self.rng.bool() { Commit::Synced } else { Commit::Buffered { sync_every: Duration::from_millis(60) } };
        let (quiet, lives) = (self.quiet.clone(), Arc::new(Mutex::new(self.rng.fork())));
        self.disks.push(disk.clone());
        self.sim.host("master", move || {
            let (disk, quiet, rng) = (disk.clone(), quiet.clone(), lives.lock().unwrap().fork());
            async move {
                let master = Master::open(disk.open(), master_config().commit(commit)).await?;
                tokio::spawn(write(master.clone(), quiet, rng));
                serve(master, |_| {}).await
            }
        });
    }

    fn add_slave(&mut self, number: usize) {
        let disk = Disk::new(MemoryStore::new(), &self.history, &format!("slave-{number}"), self.rng.u64(..));
        let durability = if self.rng.bool() { Durability::Synced } else { Durability::Buffered };
        host_slave(&mut self.sim, &disk, durability, self.rng.fork());
        self.disks.push(disk);
    }

    fn run(mut self) -> Result<Report, String> {
        let mut next_fault = Duration::from_millis(300);
        while self.sim.elapsed() < CHAOS {
            self.step()?;
            let now = self.sim.elapsed();
            let due: Vec<_> = self.passing.extract_if(.., |(at, ..)| *at <= now).collect();
            due.into_iter().for_each(|(_, fault, node)| self.pass(fault, node));
            if now >= next_fault {
                self.strike();
                next_fault = now + Duration::from_millis(self.rng.u64(50..1_500));
            }
        }
        let passing = std::mem::take(&mut self.passing);
        passing.into_iter().for_each(|(_, fault, node)| self.pass(fault, node));
        self.quiet.store(true, Ordering::SeqCst);
        loop {
            self.step()?;
            match missing(&self.disks[0], &self.disks[1..]) {
                None => break,
                Some(words) if self.sim.elapsed() > CHAOS + HEAL => return Err(words),
                Some(_) => {}
            }
        }
        let (write_sets, in_the_middle) = self.history.counted();
        let seconds = self.sim.elapsed().as_secs_f64();
        Ok(Report { schedule: self.schedule, faults: self.faults, write_sets, in_the_middle, seconds })
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| format!("a host failed: {error}"))?;
        self.history.wrong().map_or(Ok(()), Err)
    }

    fn strike(&mut self) {
        let fault = Fault::ALL[self.rng.usize(0..Fault::ALL.len())];
        let node = self.rng.usize(0..self.disks.len());
        let slave = self.rng.usize(1..self.disks.len());
        let node = if matches!(fault, Fault::Crash | Fault::Power) { node } else { slave };
        if self.passing.iter().any(|(_, _, other)| *other == node) {
            return;
        }
        let disk = &self.disks[node];
        let name = &disk.name;
        match fault {
            Fault::Crash => self.sim.crash(name.as_str()),
            Fault::Power => {
                self.sim.crash(name.as_str());
                disk.lose_power();
            }
            Fault::Partition => self.sim.partition("master", name.as_str()),
            Fault::Deaf => self.sim.partition_oneway("master", name.as_str()),
            Fault::Mute => self.sim.partition_oneway(name.as_str(), "master"),
            Fault::Hold => self.sim.hold("master", name.as_str()),
        }
        *self.faults.entry(fault).or_default() += 1;
        self.schedule = hash((self.schedule, self.sim.elapsed(), fault, node));
        let at = self.sim.elapsed() + Duration::from_millis(self.rng.u64(1..2_500));
        self.passing.push((at, fault, node));
    }

    fn pass(&mut self, fault: Fault, node: usize) {
        let name = self.disks[node].name.as_str();
        match fault {
            Fault::Crash | Fault::Power => self.sim.bounce(name),
            Fault::Partition => self.sim.repair("master", name),
            Fault::Deaf => self.sim.repair_oneway("master", name),
            Fault::Mute => self.sim.repair_oneway(name, "master"),
            Fault::Hold => self.sim.release("master", name),
        }
    }
}
