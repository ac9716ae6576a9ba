//! A slave that keeps the log, and has slaves of its own.

use std::time::Duration;

use crate::support::{
    self, Error, Following, Serving, Store, assert_equal, chain, connect, contents, entries, follow, full, master,
    slave, soon, store, store_with, until,
};
use async_trait::async_trait;
use replikv_core::{Batch, Durability, Keyspace, LinkId, ReplicaStore, Seq};
use replikv_node::{
    Displaced, FollowError, HealthState, KeepLog, Master, MasterConfig, Quarantine, Resync, Slave, SlaveConfig,
    VerifyOptions, promote,
};
use replikv_proto::layout::{Epochs, Floor, Head, Kept, Stored};
use replikv_proto::{Compaction, RejectCode, Retention, SlotKind, SlotState};
use replikv_testkit::{ApplyFault, FaultStore};
use tokio::io::DuplexStream;

fn config(name: &str) -> SlaveConfig {
    SlaveConfig::new(name).keep_log(KeepLog::default())
}

async fn relay(store: &Store, name: &str) -> Slave<Store> {
    Slave::open(store.clone(), config(name)).await.unwrap()
}

/// The same store, as another process would open it.
fn again(store: &Store) -> Store {
    FaultStore::new(store.inner().open_again())
}

fn serve(parent: &Slave<Store>, stream: DuplexStream) -> Serving {
    let parent = parent.clone();
    tokio::spawn(async move { parent.serve(stream).await })
}

/// Connects a slave to a slave.
fn below(parent: &Slave<Store>, child: &Slave<Store>) -> (Serving, Following) {
    let (here, there) = tokio::io::duplex(64 << 10);
    (serve(parent, there), follow(child, here))
}

/// Connects again and again, until somebody drops it.
fn keep_below(parent: &Slave<Store>, child: &Slave<Store>) -> tokio::task::JoinHandle<FollowError> {
    let (parent, child) = (parent.clone(), child.clone());
    tokio::spawn(async move {
        loop {
            let (here, there) = tokio::io::duplex(64 << 10);
            let _serving = serve(&parent, there);
            match child.follow(here).await {
                Err(error) if !error.is_retryable() => return error,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
}

async fn write(master: &Master<Store>, from: u32, to: u32) {
    for n in from..to {
        master.write(Batch::new().put(n.to_be_bytes(), n.to_string()).put("last", n.to_string())).await.unwrap();
    }
}

async fn log_of(store: &Store) -> Vec<(bytes::Bytes, bytes::Bytes)> {
    entries(store, Keyspace::Log).await
}

async fn stored<V: Stored>(store: &impl ReplicaStore, key: &[u8]) -> Option<V> {
    store.get(Keyspace::Meta, key).await.unwrap().map(|bytes| V::from_bytes(&bytes).unwrap())
}

async fn floor(store: &Store) -> Seq {
    stored::<Floor>(store, Floor::KEY).await.unwrap().position.seq
}

async fn refused(following: Following) -> (RejectCode, String) {
    match soon(following).await.unwrap() {
        Err(FollowError::Refused(refusal)) => (refusal.code, refusal.words),
        end => panic!("{end:?}"),
    }
}

async fn applied(slave: &Slave<Store>, master: &Master<Store>) {
    soon(slave.wait_applied(master.status().published.seq)).await.unwrap();
}

// Or whoever reads there within a bound is told what is old.
#[tokio::test(start_paused = true)]
async fn a_slave_is_no_nearer_to_the_master_than_the_relay_that_it_follows() -> Result<(), Error> {
    let stores = [store(), store(), store(), store()];
    let top = master(&stores[0], MasterConfig::default()).await;
    let (middle, lower) = (relay(&stores[1], "middle").await, relay(&stores[2], "lower").await);
    let leaf = slave(&stores[3], "leaf").await;
    let (serving, following) = connect(&top, &middle);
    let (_lower, _leaf) = (keep_below(&middle, &lower), keep_below(&lower, &leaf));
    write(&top, 0, 10).await;
    applied(&leaf, &top).await;
    let near = || {
        let status = leaf.status();
        status.lag.is_some_and(|lag| lag.seqs == 0) && status.last_contact_ms.is_some_and(|silence| silence < 9_000)
    };
    until(near).await;
    assert_eq!(leaf.status().health.state, HealthState::Ready);
    serving.abort();
    following.abort();
    // All of them go on hearing of one another.
    tokio::time::sleep(Duration::from_secs(60)).await;
    write(&top, 10, 20).await;
    for slave in [&middle, &lower, &leaf] {
        let status = slave.status();
        assert_eq!((status.lag, status.health.state), (None, HealthState::Disconnected), "{status:?}");
        assert!(status.last_contact_ms.is_some_and(|silence| silence >= 59_000), "{status:?}");
    }
    let (_serving, _following) = connect(&top, &middle);
    applied(&leaf, &top).await;
    until(near).await;
    assert_eq!(leaf.status().health.state, HealthState::Ready);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_log_is_kept_record_by_record_and_others_follow_from_it() -> Result<(), Error> {
    let stores = [store(), store(), store()];
    let top = master(&stores[0], MasterConfig::default()).await;
    // Behind: what it missed is folded into few write sets, and is one record each nevertheless.
    write(&top, 0, 300).await;
    let middle = relay(&stores[1], "middle").await;
    let _up = connect(&top, &middle);
    applied(&middle, &top).await;
    assert!(middle.status().groups < 100, "{} groups", middle.status().groups);
    assert_eq!(log_of(&stores[1]).await, log_of(&stores[0]).await, "the same records, byte by byte");
    let leaf = slave(&stores[2], "leaf").await;
    let down = below(&middle, &leaf);
    applied(&leaf, &top).await;
    write(&top, 300, 310).await;
    applied(&leaf, &top).await;
    assert_equal(&top, &leaf).await;
    let told = leaf.status();
    assert_eq!((told.path, told.copies, told.comparisons), (vec!["middle".into(), "leaf".into()], 0, 0));
    assert_eq!(middle.status().path, ["middle"]);
    let seen = middle.status().relay.unwrap();
    assert_eq!((seen.slaves.len(), &seen.slaves[0].name[..], seen.blocked), (1, "leaf", None));
    // Away, and back: from the log, also from a relay that was opened anew and has not heard of its master since.
    down.1.abort();
    drop(soon(down.0).await);
    write(&top, 310, 400).await;
    applied(&middle, &top).await;
    middle.shutdown().await?;
    let middle = relay(&again(&stores[1]), "middle").await;
    let _down = below(&middle, &leaf);
    applied(&leaf, &top).await;
    assert_equal(&top, &leaf).await;
    assert_eq!((leaf.status().copies, leaf.status().comparisons), (0, 0));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn after_a_copy_the_log_begins_there_and_whoever_is_before_compares() -> Result<(), Error> {
    let top = master(&store_with(3_000).await, MasterConfig::default().chunk_bytes(20_000)).await;
    // One that was there before.
    let before = slave(&store(), "before").await;
    let up = connect(&top, &before);
    applied(&before, &top).await;
    up.1.abort();
    drop(soon(up.0).await);
    write(&top, 10_000, 10_020).await;
    let kept = store();
    let middle = relay(&kept, "middle").await;
    let empty = slave(&store(), "empty").await;
    // Nobody is served before there is anything to serve.
    let (code, words) = refused(below(&middle, &empty).1).await;
    assert_eq!(code, RejectCode::Busy);
    assert!(words.contains("not heard of its master"), "{words}");
    let _up = connect(&top, &middle);
    applied(&middle, &top).await;
    let begins = floor(&kept).await;
    assert!(begins > Seq::new(20) && log_of(&kept).await.len() < 10, "it begins where the copy ended: {begins}");
    let _down = below(&middle, &empty);
    applied(&empty, &top).await;
    let _down = below(&middle, &before);
    applied(&before, &top).await;
    write(&top, 10_020, 10_040).await;
    for child in [&empty, &before] {
        applied(child, &top).await;
        assert_equal(&top, child).await;
    }
    assert_eq!((empty.status().copies, empty.status().comparisons), (1, 0));
    assert_eq!((before.status().copies, before.status().comparisons), (1, 1), "of the master once, of the relay never");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_relay_copies_while_writes_go_on_and_its_children_wait_for_it() -> Result<(), Error> {
    let top = master(&store_with(3_000).await, MasterConfig::default().chunk_bytes(5_000)).await;
    let stores = [store(), store(), store()];
    let nodes = [relay(&stores[0], "a").await, relay(&stores[1], "b").await, slave(&stores[2], "c").await];
    let _up = connect(&top, &nodes[0]);
    let (_b, _c) = (keep_below(&nodes[0], &nodes[1]), keep_below(&nodes[1], &nodes[2]));
    write(&top, 10_000, 10_200).await;
    for node in &nodes {
        applied(node, &top).await;
        assert_equal(&top, node).await;
        assert_eq!((node.status().copies, node.status().comparisons), (1, 0), "{}", node.status().name);
    }
    assert_eq!(nodes[2].status().path, ["a", "b", "c"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_comes_from_a_compacted_log_is_a_gap_in_that_of_a_relay() -> Result<(), Error> {
    let none = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };
    let small = Compaction { window_bytes: 2_000, window_records: 10 };
    let top_config = MasterConfig::default().retention(none).compaction(small).ring_bytes(0).chunk_bytes(3_000);
    let top = master(&store(), top_config).await;
    let kept = store();
    let middle = relay(&kept, "middle").await;
    let leaf = slave(&store(), "leaf").await;
    write(&top, 0, 20).await;
    let up = connect(&top, &middle);
    applied(&middle, &top).await;
    let down = below(&middle, &leaf);
    applied(&leaf, &top).await;
    for connection in [up, down] {
        connection.1.abort();
        drop(soon(connection.0).await);
    }
    for n in 20..2_000u32 {
        top.put((n % 50).to_be_bytes(), n.to_be_bytes()).await?;
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(top.status().compacted.is_some());
    let _up = connect(&top, &middle);
    applied(&middle, &top).await;
    soon(middle.wait_caught_up()).await?;
    assert_eq!(middle.status().comparisons, 0, "it went through touches");
    assert!(floor(&kept).await > Seq::new(1_000));
    let _down = below(&middle, &leaf);
    applied(&leaf, &top).await;
    soon(leaf.wait_caught_up()).await?;
    assert_eq!(leaf.status().comparisons, 1);
    for node in [&middle, &leaf] {
        assert_equal(&top, node).await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn nobody_follows_itself() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let nodes = [relay(&store(), "a").await, relay(&store(), "b").await, relay(&store(), "c").await];
    write(&top, 0, 10).await;
    let up = connect(&top, &nodes[0]);
    applied(&nodes[0], &top).await;
    let _b = below(&nodes[0], &nodes[1]);
    applied(&nodes[1], &top).await;
    let _c = below(&nodes[1], &nodes[2]);
    applied(&nodes[2], &top).await;
    up.1.abort();
    drop(soon(up.0).await);
    for parent in [&nodes[2], &nodes[1], &nodes[0]] {
        let (code, words) = refused(below(parent, &nodes[0]).1).await;
        assert_eq!(code, RejectCode::Loop, "{words}");
        assert!(words.contains("circle"), "{words}");
    }
    assert_eq!(nodes[0].status().health.state, HealthState::Blocked);
    let _up = connect(&top, &nodes[0]);
    write(&top, 10, 20).await;
    applied(&nodes[2], &top).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn two_that_move_below_each_other_at_once_find_out() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let (a, b) = (relay(&store(), "a").await, relay(&store(), "b").await);
    write(&top, 0, 10).await;
    for node in [&a, &b] {
        let up = connect(&top, node);
        applied(node, &top).await;
        up.1.abort();
        drop(soon(up.0).await);
    }
    // Each is accepted by the other's old place in the tree, and thrown out once that one knows its new place.
    let ends = (keep_below(&a, &b), keep_below(&b, &a));
    let (end, other) = soon(async {
        let (mut one, mut two) = ends;
        tokio::select! {
            end = &mut one => (end, two),
            end = &mut two => (end, one),
        }
    })
    .await;
    assert!(matches!(end?, FollowError::Refused(refusal) if refusal.code == RejectCode::Loop));
    other.abort();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_tree_ends_before_it_is_too_deep() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    write(&top, 0, 2).await;
    let mut nodes = vec![relay(&store(), "0").await];
    let mut connections = vec![connect(&top, &nodes[0])];
    for depth in 1..replikv_proto::MAX_PATH {
        let parent = &nodes[depth - 1];
        applied(parent, &top).await;
        let node = relay(&store(), &depth.to_string()).await;
        connections.push(below(parent, &node));
        nodes.push(node);
    }
    let last = &nodes[replikv_proto::MAX_PATH - 1];
    applied(last, &top).await;
    let (code, words) = refused(below(last, &slave(&store(), "too deep").await).1).await;
    assert_eq!(code, RejectCode::Loop);
    assert!(words.contains("64 relays"), "{words}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_ahead_of_its_new_parent_waits_until_that_one_has_come_as_far() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let late = Slave::open(store(), config("late").keep_log(KeepLog::default().wait(Duration::from_secs(60)))).await?;
    let child = slave(&store(), "child").await;
    write(&top, 0, 10).await;
    let up = connect(&top, &late);
    applied(&late, &top).await;
    up.1.abort();
    drop(soon(up.0).await);
    write(&top, 10, 20).await;
    let up = connect(&top, &child);
    applied(&child, &top).await;
    up.1.abort();
    drop(soon(up.0).await);
    let (_serving, following) = below(&late, &child);
    until(|| child.status().health.reason.contains("waits for its master, a relay")).await;
    assert_eq!(
        (child.status().health.state, child.status().path),
        (HealthState::CatchingUp, vec!["late".into(), "child".into()])
    );
    let _up = connect(&top, &late);
    write(&top, 20, 30).await;
    applied(&child, &top).await;
    assert_eq!((child.status().copies, child.status().comparisons, child.status().connections), (0, 0, 2));
    assert_equal(&top, &child).await;
    following.abort();
    // Not for ever.
    let alone =
        Slave::open(store(), config("alone").keep_log(KeepLog::default().wait(Duration::from_secs(60)))).await?;
    let up = connect(&top, &alone);
    applied(&alone, &top).await;
    up.1.abort();
    drop(soon(up.0).await);
    write(&top, 30, 40).await;
    applied(&late, &top).await;
    let ahead = slave(&store(), "ahead").await;
    let up = connect(&top, &ahead);
    applied(&ahead, &top).await;
    up.1.abort();
    drop(soon(up.0).await);
    let begun = tokio::time::Instant::now();
    let (_, following) = below(&alone, &ahead);
    match soon(following).await? {
        Err(FollowError::Refused(refusal)) => {
            assert_eq!((refusal.code, refusal.retry), (RejectCode::Busy, true));
            assert!(refusal.words.contains("ahead of this relay"), "{}", refusal.words);
        }
        end => panic!("{end:?}"),
    }
    assert!(begun.elapsed() >= Duration::from_secs(60) && begun.elapsed() < Duration::from_secs(90));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_relay_has_slots_trims_its_log_and_holds_it_back() -> Result<(), Error> {
    let small = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: u64::MAX };
    let top = master(&store(), MasterConfig::default()).await;
    let kept = store();
    let middle = Slave::open(kept.clone(), config("middle").keep_log(KeepLog::default().retention(small))).await?;
    let leaf = slave(&store(), "leaf").await;
    let _up = connect(&top, &middle);
    write(&top, 0, 10).await;
    applied(&middle, &top).await;
    let down = below(&middle, &leaf);
    applied(&leaf, &top).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    down.1.abort();
    drop(soon(down.0).await);
    write(&top, 10, 2_000).await;
    applied(&middle, &top).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = middle.status().relay.unwrap();
    assert_eq!((&seen.slots[0].name[..], seen.slots[0].state), ("leaf", SlotState::Lagging));
    assert_eq!(floor(&kept).await, Seq::ZERO, "it is kept for the one that is away");
    assert!(middle.forget(SlotKind::Slave, "leaf") && !middle.forget(SlotKind::Slave, "leaf"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let begins = floor(&kept).await;
    assert!(begins >= Seq::new(1_500), "{begins}");
    assert_eq!(Seq::new(chain(&kept).await[0]), begins.next().unwrap());
    let _down = below(&middle, &leaf);
    applied(&leaf, &top).await;
    assert_eq!(leaf.status().comparisons, 1);
    assert_equal(&top, &leaf).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn one_port_answers_reads_verifies_and_serves_slaves() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let middle = relay(&store(), "middle").await;
    let _up = connect(&top, &middle);
    write(&top, 0, 100).await;
    applied(&middle, &top).await;
    let leaf = slave(&store(), "leaf").await;
    let _down = below(&middle, &leaf);
    applied(&leaf, &top).await;
    // Data that was changed behind its back is found against the relay, while it applies.
    support::put_raw(leaf.store(), Keyspace::Data, &5u32.to_be_bytes(), b"changed").await?;
    let writing = top.clone();
    let writer = tokio::spawn(async move { write(&writing, 1_000, 1_200).await });
    let report = soon(leaf.verify(VerifyOptions::default())).await?;
    writer.await?;
    assert_eq!(report.different, 1);
    // A slave that keeps no log answers reads there, and serves nobody.
    let (code, words) = refused(below(&leaf, &slave(&store(), "under").await).1).await;
    assert_eq!(code, RejectCode::Unsupported, "{words}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn replicated_counts_the_relay_for_itself_alone() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let held = store();
    let middle = relay(&held, "middle").await;
    let leaf_store = store();
    let leaf = slave(&leaf_store, "leaf").await;
    let _up = connect(&top, &middle);
    write(&top, 0, 1).await;
    applied(&middle, &top).await;
    let _down = below(&middle, &leaf);
    applied(&leaf, &top).await;
    let stuck = leaf_store.faults().hold_apply();
    // Its own disk is enough for the relay's acknowledgement, whoever is below it.
    top.write(Batch::new().put("k", "1")).replicated(1, Duration::from_secs(10)).await?;
    assert!(top.write(Batch::new().put("k", "2")).replicated(2, Duration::from_secs(10)).await.is_err());
    stuck.release();
    applied(&leaf, &top).await;
    Ok(())
}

/// Takes what is lost, and looks at nothing.
#[derive(Debug)]
struct Lost;

#[async_trait]
impl Quarantine for Lost {
    async fn keep(&self, _: &Resync, _: Vec<Displaced>) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_resyncs_serves_nobody_what_it_was() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    write(&top, 0, 300).await;
    let backup = support::copy_of(top.store()).await;
    let kept = store();
    let middle = Slave::open(kept.clone(), config("middle").resync(Lost)).await?;
    let leaf = slave(&store(), "leaf").await;
    let up = connect(&top, &middle);
    applied(&middle, &top).await;
    let (_down, following) = below(&middle, &leaf);
    write(&top, 300, 310).await;
    applied(&leaf, &top).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(middle.status().relay.unwrap().slots.len(), 1);
    up.1.abort();
    drop(soon(up.0).await);
    // A master that was restored from a backup, and goes on from there.
    let restored = master(&backup, MasterConfig::default()).await;
    write(&restored, 1_000, 1_050).await;
    let _up = connect(&restored, &middle);
    applied(&middle, &restored).await;
    soon(middle.wait_caught_up()).await?;
    assert_eq!(middle.status().resyncs, 1);
    assert_equal(&restored, &middle).await;
    // Whoever was below is told. Its position lies below the log: it is known by what both have passed, and compares.
    drop(soon(following).await?);
    assert!(middle.status().relay.unwrap().slots.is_empty(), "a place in another history counts for nothing");
    let other = slave(&store(), "other").await;
    let _down = [below(&middle, &leaf), below(&middle, &other)];
    for child in [&leaf, &other] {
        applied(child, &restored).await;
        assert_equal(&restored, child).await;
    }
    assert_eq!((leaf.status().comparisons, other.status().copies), (1, 1));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_fails_to_join_another_branch_tells_nobody_the_epochs_of_that() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let stores = [store(), store(), store()];
    let twins = [slave(&stores[0], "one").await, slave(&stores[1], "two").await];
    let middle = Slave::open(stores[2].clone(), config("middle").resync(Lost)).await?;
    write(&old, 0, 10).await;
    for twin in &twins {
        let _up = connect(&old, twin);
        applied(twin, &old).await;
        soon(twin.promote()).await?;
    }
    let one = master(&again(&stores[0]), MasterConfig::default()).await;
    let two = master(&again(&stores[1]), MasterConfig::default()).await;
    write(&one, 10, 20).await;
    write(&two, 10, 30).await;
    let up = connect(&one, &middle);
    applied(&middle, &one).await;
    up.1.abort();
    drop(soon(up.0).await);
    // The first group of the other branch meets a full disk: the relay still holds the one that it was to leave.
    stores[2].faults().next_apply(ApplyFault::Refuse(full()));
    let end = soon(connect(&two, &middle).1).await?;
    assert!(matches!(end, Err(FollowError::Store(_))), "{end:?}");
    let held = stores[2].cursor(&LinkId::default()).await?.map(|cursor| cursor.position);
    assert_eq!(held, Some(one.status().published));
    assert!(middle.status().relay.is_some_and(|relay| relay.blocked.is_some()), "what was told is of another branch");
    let (told, leaf) = (store(), slave(&store(), "leaf").await);
    let (code, _) = refused(below(&middle, &slave(&told, "early").await).1).await;
    assert_eq!(code, RejectCode::Busy);
    assert!(stored::<Epochs>(&told, Epochs::KEY).await.is_none(), "it was told of a branch that is not here");
    let _up = connect(&two, &middle);
    applied(&middle, &two).await;
    soon(middle.wait_caught_up()).await?;
    let _down = keep_below(&middle, &leaf);
    applied(&leaf, &two).await;
    let epochs = stored::<Epochs>(leaf.store(), Epochs::KEY).await;
    assert_eq!(epochs.map(|told| told.0), stored::<Epochs>(two.store(), Epochs::KEY).await.map(|own| own.0));
    Ok(())
}

/// Data, cursor and log of a relay belong together.
async fn consistent(store: &Store, top: &Master<Store>) -> Seq {
    let Some(cursor) = store.cursor(&LinkId::default()).await.unwrap() else { return Seq::ZERO };
    let head: Head = stored(store, Head::KEY).await.unwrap();
    assert_eq!(head.position, cursor.position);
    assert!(cursor.is_consistent());
    let numbers = chain(store).await;
    assert!(numbers.iter().copied().eq(floor(store).await.as_u64() + 1..=cursor.position.seq.as_u64()), "{numbers:?}");
    let mut own = log_of(store).await;
    let theirs = log_of(top.store()).await;
    own.retain(|record| !theirs.contains(record));
    assert!(own.is_empty(), "records that the master never wrote");
    // The state after that record: "last" is of it, and all before it are there.
    let data = contents(store).await;
    let written = u64::try_from(data.len()).unwrap().saturating_sub(1);
    assert_eq!(written, cursor.position.seq.as_u64().saturating_sub(1), "data and cursor");
    cursor.position.seq
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_dies_at_any_write_leaves_data_cursor_and_log_together() -> Result<(), Error> {
    // More than there are: the last ones are of a relay that does not die.
    for skip in 0..60 {
        for fault in [ApplyFault::UnknownButApplied, ApplyFault::UnknownAndAbsent] {
            let top = master(&store(), MasterConfig::default().chunk_bytes(200)).await;
            write(&top, 0, 40).await;
            let kept = store();
            let small = config("middle").group_bytes(300);
            let middle = Slave::open(kept.clone(), small.clone()).await?;
            let leaf = slave(&store(), "leaf").await;
            kept.faults().apply_after(skip, fault);
            kept.faults().refuse_reopens(u32::MAX);
            let (_serving, mut following) = connect(&top, &middle);
            let down = keep_below(&middle, &leaf);
            let died = tokio::select! {
                end = &mut following => end?.is_err(),
                () = applied(&middle, &top) => false,
            };
            following.abort();
            down.abort();
            let kept = again(&kept);
            let at = consistent(&kept, &top).await;
            assert!(died || at == top.status().published.seq, "{skip}");
            let middle = Slave::open(kept.clone(), small).await?;
            write(&top, 40, 50).await;
            let _up = connect(&top, &middle);
            let _down = keep_below(&middle, &leaf);
            applied(&leaf, &top).await;
            assert_eq!(consistent(&kept, &top).await, top.status().published.seq);
            assert_equal(&top, &leaf).await;
            assert_eq!((leaf.status().copies, leaf.status().comparisons), (0, 0));
        }
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_dies_while_it_copies_has_no_log_until_it_is_through() -> Result<(), Error> {
    let (mut copying, mut through) = (0, 0);
    for skip in 0..40 {
        for fault in [ApplyFault::UnknownButApplied, ApplyFault::UnknownAndAbsent] {
            let top = master(&store_with(300).await, MasterConfig::default().chunk_bytes(2_000)).await;
            let kept = store();
            let small = config("middle").group_bytes(1_000);
            let middle = Slave::open(kept.clone(), small.clone()).await?;
            kept.faults().apply_after(skip, fault);
            kept.faults().refuse_reopens(u32::MAX);
            let (_serving, mut following) = connect(&top, &middle);
            let writing = top.clone();
            let writer = tokio::spawn(async move { write(&writing, 10_000, 10_040).await });
            tokio::select! {
                _ = &mut following => {}
                () = async { while middle.status().groups <= skip as u64 { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
            }
            following.abort();
            writer.await?;
            let kept = again(&kept);
            match kept.cursor(&LinkId::default()).await? {
                Some(cursor) if cursor.is_consistent() => {
                    through += 1;
                    assert_eq!(stored::<Head>(&kept, Head::KEY).await.map(|head| head.position), Some(cursor.position));
                    let numbers = chain(&kept).await;
                    assert!(numbers.into_iter().eq(floor(&kept).await.as_u64() + 1..=cursor.position.seq.as_u64()));
                }
                _ => {
                    copying += 1;
                    assert!(stored::<Head>(&kept, Head::KEY).await.is_none() && log_of(&kept).await.is_empty());
                }
            }
            let middle = Slave::open(kept.clone(), small).await?;
            let leaf = slave(&store(), "leaf").await;
            let _up = connect(&top, &middle);
            let _down = keep_below(&middle, &leaf);
            applied(&leaf, &top).await;
            assert_equal(&top, &leaf).await;
        }
    }
    assert!(copying > 10 && through > 10, "{copying} {through}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_ends_nobody_below() -> Result<(), Error> {
    let top = master(&store_with(500).await, MasterConfig::default()).await;
    let kept = store();
    let middle = relay(&kept, "middle").await;
    let leaf = slave(&store(), "leaf").await;
    let up = connect(&top, &middle);
    applied(&middle, &top).await;
    let _down = keep_below(&middle, &leaf);
    applied(&leaf, &top).await;
    kept.faults().next_apply(ApplyFault::Refuse(full()));
    write(&top, 1_000, 1_001).await;
    assert!(soon(up.1).await?.is_err());
    // Nothing that came to nothing is shown, and nobody waits for it: an empty slave copies meanwhile.
    let empty = slave(&store(), "empty").await;
    let _copying = keep_below(&middle, &empty);
    soon(empty.wait_caught_up()).await?;
    assert_eq!(contents(empty.store()).await, contents(middle.store()).await);
    let _up = connect(&top, &middle);
    for node in [&middle, &leaf, &empty] {
        applied(node, &top).await;
        assert_equal(&top, node).await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_no_longer_kept_goes_and_one_is_begun_where_the_slave_stands() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let kept = store();
    for (keeps, from) in [(false, 0), (true, 10), (false, 20), (true, 30)] {
        let config = if keeps { config("middle") } else { SlaveConfig::new("middle") };
        let middle = Slave::open(again(&kept), config).await?;
        let up = connect(&top, &middle);
        write(&top, from, from + 10).await;
        applied(&middle, &top).await;
        middle.shutdown().await?;
        drop(up);
        let kept = again(&kept);
        let head: Option<Head> = stored(&kept, Head::KEY).await;
        assert_eq!(head.is_some(), keeps);
        let wanted = if keeps { 10 } else { 0 };
        assert_eq!(log_of(&kept).await.len(), wanted);
        assert_eq!(stored::<Kept>(&kept, Kept::KEY).await.is_some(), keeps);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn others_go_on_from_the_log_of_a_slave_that_is_promoted() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let kept = store();
    let standby = relay(&kept, "standby").await;
    let behind = slave(&store(), "behind").await;
    write(&top, 0, 10).await;
    let up = connect(&top, &behind);
    applied(&behind, &top).await;
    up.1.abort();
    drop(soon(up.0).await);
    let _up = connect(&top, &standby);
    write(&top, 10, 500).await;
    applied(&standby, &top).await;
    let child = slave(&store(), "child").await;
    let _down = keep_below(&standby, &child);
    applied(&child, &top).await;
    let promoted = soon(standby.promote()).await?;
    assert_eq!((promoted.last, promoted.first.epoch.number), (top.status().published, 2));
    let new = master(&again(&kept), MasterConfig::default()).await;
    write(&new, 500, 510).await;
    for slave in [&behind, &child] {
        let _up = connect(&new, slave);
        applied(slave, &new).await;
        assert_equal(&new, slave).await;
        assert_eq!((slave.status().copies, slave.status().comparisons), (0, 0), "{}", slave.status().name);
    }
    assert_eq!(chain(new.store()).await.len(), 512);
    assert!(new.status().slots.iter().any(|slot| slot.name == "child"), "its slots are the master's");
    assert!(promote(new.store()).await.is_err());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_relay_hears_of_a_new_epoch_and_tells_those_below() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let kept = store();
    let nodes = [relay(&kept, "next").await, relay(&store(), "middle").await, slave(&store(), "leaf").await];
    write(&top, 0, 10).await;
    let up = [connect(&top, &nodes[0]), connect(&top, &nodes[1])];
    let _down = keep_below(&nodes[1], &nodes[2]);
    for node in &nodes {
        applied(node, &top).await;
    }
    soon(nodes[0].promote()).await?;
    let new = master(&again(&kept), MasterConfig::default()).await;
    for connection in up {
        connection.1.abort();
        drop(soon(connection.0).await);
    }
    let _up = connect(&new, &nodes[1]);
    let token = new.put("new", "epoch").await?;
    soon(nodes[2].wait_applied(token)).await?;
    assert_equal(&new, &nodes[2]).await;
    // A relay of the old epoch that went on beside it serves nobody of the new one.
    let old = relay(&store(), "old").await;
    write(&top, 10, 30).await;
    let _up = connect(&top, &old);
    applied(&old, &top).await;
    let (code, _) = refused(below(&old, &slave(&again_of(&nodes[2]).await, "leaf").await).1).await;
    assert_eq!(code, RejectCode::Superseded);
    Ok(())
}

async fn again_of(slave: &Slave<Store>) -> Store {
    support::copy_of(slave.store()).await
}

// A trim that was reckoned from what a failed sync has taken back would put the floor above the head.
#[tokio::test(start_paused = true)]
async fn what_is_kept_is_not_trimmed_by_what_is_no_longer_there() -> Result<(), Error> {
    let copy = store();
    let top = master(&store(), MasterConfig::default()).await;
    let small = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: 0 };
    let config = SlaveConfig::new("middle")
        .keep_log(KeepLog::default().retention(small))
        .durability(Durability::Buffered)
        .sync_every(Duration::from_millis(300));
    let middle = Slave::open(copy.clone(), config).await?;
    let (_serving, following) = connect(&top, &middle);
    write(&top, 0, 10).await;
    applied(&middle, &top).await;
    // The log has just been looked at, and all is on stable storage.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    write(&top, 10, 1_500).await;
    applied(&middle, &top).await;
    let held = copy.faults().hold_read(Keyspace::Meta);
    copy.faults().fail_sync(replikv_testkit::Lost::Unsynced);
    // The store was opened anew, and what it holds is just being read when the log is looked at again.
    soon(held.reached()).await;
    let after: Head = stored(copy.inner(), Head::KEY).await.ok_or("no head")?;
    assert!(after.position.seq < Seq::new(20), "nothing was lost");
    tokio::time::sleep(Duration::from_secs(3)).await;
    held.release();
    drop(soon(following).await?);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(floor(&copy).await <= after.position.seq, "{}", floor(&copy).await);
    let (_serving, _following) = connect(&top, &middle);
    applied(&middle, &top).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_equal(&top, &middle).await;
    let (from, head): (Seq, Head) = (floor(&copy).await, stored(&copy, Head::KEY).await.ok_or("no head")?);
    assert!(from > Seq::new(256), "it is trimmed again");
    assert_eq!(log_of(&copy).await.len() as u64, head.position.seq.since(from), "and holds what it says");
    Ok(())
}
