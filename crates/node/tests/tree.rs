//! A tree of fifteen nodes, four deep, in which nodes die and move while the master is written to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{self, Error, Store, assert_equal, chain, connect, follow, master, soon, store};
use fastrand::Rng;
use replikv_core::Batch;
use replikv_node::{FollowError, KeepLog, Master, MasterConfig, Slave, SlaveConfig};
use replikv_proto::RejectCode;
use replikv_testkit::FaultStore;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const NODES: usize = 15;
/// How many times a node dies, or moves.
const STEPS: usize = 120;

/// Who is above a node where nobody has moved.
fn home(node: usize) -> usize {
    (node - 1) / 2
}

/// The master, and who lives at the other places right now.
type Places = Arc<Mutex<Vec<Option<Slave<Store>>>>>;

struct Tree {
    master: Master<Store>,
    stores: Vec<Store>,
    places: Places,
    parents: Arc<Mutex<Vec<usize>>>,
    following: Vec<Option<JoinHandle<()>>>,
    /// Of those that died: how often they began to copy or to compare.
    transfers: u64,
    /// Who was told that it cannot go on, and why: nobody may be.
    ended: Arc<Mutex<Vec<String>>>,
}

impl Tree {
    async fn new() -> Self {
        let stores: Vec<Store> = (0..NODES).map(|_| store()).collect();
        let master = master(&stores[0], MasterConfig::default()).await;
        let mut tree = Self {
            master,
            stores,
            places: Arc::new(Mutex::new(vec![None; NODES])),
            parents: Arc::new(Mutex::new((0..NODES).map(|node| node.saturating_sub(1) / 2).collect())),
            following: (0..NODES).map(|_| None).collect(),
            transfers: 0,
            ended: Arc::default(),
        };
        for node in 1..NODES {
            tree.bring_up(node).await;
        }
        tree
    }

    async fn bring_up(&mut self, node: usize) {
        let keep = KeepLog::default().wait(Duration::from_secs(5)).ring_bytes(20_000);
        let config = SlaveConfig::new(format!("node-{node}")).keep_log(keep).group_bytes(2_000);
        let slave = Slave::open(self.stores[node].clone(), config).await.unwrap();
        self.places.lock().unwrap()[node] = Some(slave.clone());
        self.follow(node, slave);
    }

    // Connects to whoever is the parent, again and again. Whoever would go in a circle goes to the master.
    fn follow(&mut self, node: usize, slave: Slave<Store>) {
        let (master, places, parents) = (self.master.clone(), self.places.clone(), self.parents.clone());
        let ended = self.ended.clone();
        self.following[node] = Some(tokio::spawn(async move {
            loop {
                let parent = parents.lock().unwrap()[node];
                let (here, there) = tokio::io::duplex(16 << 10);
                let above = places.lock().unwrap()[parent].clone();
                let serving = match (parent, above) {
                    (0, _) => {
                        let master = master.clone();
                        tokio::spawn(async move { drop(master.serve(there).await) })
                    }
                    (_, Some(above)) => tokio::spawn(async move { drop(above.serve(there).await) }),
                    (_, None) => {
                        sleep(Duration::from_millis(30)).await;
                        continue;
                    }
                };
                let _serving = AbortOnDrop(serving);
                match slave.follow(here).await {
                    Err(FollowError::Refused(refusal)) if refusal.code == RejectCode::Loop => {
                        parents.lock().unwrap()[node] = 0;
                    }
                    Err(error) if !error.is_retryable() => {
                        ended.lock().unwrap().push(format!("node {node} below {parent}: {error}"));
                    }
                    _ => {}
                }
                sleep(Duration::from_millis(10)).await;
            }
        }));
    }

    async fn leave(&mut self, node: usize) {
        if let Some(following) = self.following[node].take() {
            following.abort();
            drop(following.await);
        }
    }

    // Without a goodbye, and without anything that it had not committed.
    async fn kill(&mut self, node: usize) {
        self.leave(node).await;
        let dead = self.places.lock().unwrap()[node].take();
        if let Some(dead) = dead {
            self.transfers += dead.status().copies + dead.status().comparisons;
        }
        self.stores[node] = FaultStore::new(self.stores[node].inner().open_again());
    }

    async fn go_to(&mut self, node: usize, parent: usize) {
        self.leave(node).await;
        self.parents.lock().unwrap()[node] = parent;
        let slave = self.places.lock().unwrap()[node].clone();
        if let Some(slave) = slave {
            self.follow(node, slave);
        }
    }

    async fn write(&self, rng: &mut Rng) {
        for _ in 0..rng.usize(1..6) {
            let key = rng.u32(..200).to_be_bytes();
            let batch = match rng.u8(..10) {
                0 => Batch::new().delete(key),
                1 => Batch::new().delete_range(key..[0, 0, 0, 255]),
                _ => Batch::new().put(key, [rng.u8(..); 30]).put("last", key),
            };
            self.master.write(batch).await.unwrap();
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn seed() -> u64 {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("REPLIKV_SEED={seed} cargo nextest run --workspace --all-features --test tree");
    seed
}

#[tokio::test(start_paused = true)]
async fn fifteen_nodes_that_die_and_move_end_equal_and_nothing_is_copied() -> Result<(), Error> {
    let mut rng = Rng::with_seed(seed());
    let mut tree = Tree::new().await;
    let (mut dead, mut kills, mut moves): (Vec<usize>, _, _) = (Vec::new(), 0, 0);
    for _ in 0..STEPS {
        tree.write(&mut rng).await;
        match rng.u8(..4) {
            0 if dead.len() < 4 => {
                let node = rng.usize(1..NODES);
                if !dead.contains(&node) {
                    tree.kill(node).await;
                    dead.push(node);
                    kills += 1;
                }
            }
            1 if !dead.is_empty() => tree.bring_up(dead.swap_remove(rng.usize(..dead.len()))).await,
            2 => {
                let (node, parent) = (rng.usize(1..NODES), rng.usize(..NODES));
                if node != parent {
                    tree.go_to(node, parent).await;
                    moves += 1;
                }
            }
            _ => {}
        }
        sleep(Duration::from_millis(rng.u64(..40))).await;
    }
    assert!(kills > 0 && moves > 0, "{kills} {moves}");
    // Everybody goes home.
    for node in dead {
        tree.bring_up(node).await;
    }
    for node in 1..NODES {
        tree.go_to(node, home(node)).await;
    }
    tree.write(&mut rng).await;
    let last = tree.master.status().published;
    let slaves: Vec<_> = tree.places.lock().unwrap().iter().flatten().cloned().collect();
    assert_eq!(slaves.len(), NODES - 1);
    for slave in &slaves {
        soon(slave.wait_applied(last.seq)).await?;
        assert_equal(&tree.master, slave).await;
        let status = slave.status();
        assert_eq!(status.position, Some(last));
        tree.transfers += status.copies + status.comparisons;
        // Every one of them has the whole log, record by record.
        assert!(chain(slave.store()).await.into_iter().eq(1..=last.seq.as_u64()), "{}", status.name);
    }
    assert_eq!(*tree.ended.lock().unwrap(), Vec::<String>::new());
    assert_eq!(tree.transfers, 0, "every position was in the log of every parent");
    let deepest = &slaves[NODES - 2].status();
    assert_eq!(deepest.path, ["node-2", "node-6", "node-14"]);
    // Nothing depends on who is above: a slave of nobody yet follows the lowest.
    let (here, there) = tokio::io::duplex(16 << 10);
    let lowest = slaves[NODES - 2].clone();
    tokio::spawn(async move { lowest.serve(there).await });
    let new = support::slave(&store(), "new").await;
    let _following = follow(&new, here);
    soon(new.wait_applied(last.seq)).await?;
    let other = support::slave(&store(), "other").await;
    let _up = connect(&tree.master, &other);
    soon(other.wait_applied(last.seq)).await?;
    assert_equal(&tree.master, &new).await;
    Ok(())
}
