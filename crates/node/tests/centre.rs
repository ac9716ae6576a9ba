//! One store that many masters flow into.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{
    self, Contents, Error, Following, Serving, Store, contents, entries, follow, master, serve, slave, soon,
};
use crate::support::{store, until};
use bytes::Bytes;
use replikv_core::{
    Batch, Durability, KeyRange, KeyRanges, Keyspace, LinkId, Op, ReplicaStore, ReplicaStoreExt, Seq, StoreError,
    StoreLimits, Subspace, WriteSet, WriteSetBuilder,
};
use replikv_memory::MemoryStore;
use replikv_node::{
    Centre, Commit, FollowError, LinkConfig, LinkError, LinkStore, Master, MasterConfig, OpenError, Slave, SlaveConfig,
    SlaveState, Unlinked, WriteError, links,
};
use replikv_proto::layout::{Checkpoint, Role};
use replikv_proto::{ClaimState, RejectCode, Retention};
use replikv_testkit::{ApplyFault, FaultStore, Lost};

mod stripping;

type Link = Slave<LinkStore<Store>>;

fn named(name: &str) -> LinkId {
    LinkId::new(name).unwrap()
}

async fn link(centre: &Centre<Store>, name: &str) -> Link {
    centre.link(LinkConfig::new(named(name), SlaveConfig::new("centre"))).await.unwrap()
}

fn connect(master: &Master<Store>, link: &Link) -> (Serving, Following) {
    let (here, there) = tokio::io::duplex(64 << 10);
    let link = link.clone();
    (serve(master, there), tokio::spawn(async move { link.follow(here).await }))
}

/// Somebody else moves the cursor of a link: its next write set is fenced.
async fn steal_cursor(central: &Store, link: &str) -> Result<(), Error> {
    let knowledge = Subspace::raw(&b"link/"[..]).child(link).child("meta");
    let held = entries(central, Keyspace::Meta).await.into_iter();
    let cursor = |key: &Bytes| knowledge.strip(key).is_some_and(|key| key.starts_with(b"cursor/"));
    let (key, _) = held.into_iter().find(|(key, _)| cursor(key)).ok_or("the link has a cursor")?;
    Ok(central.apply_one(Keyspace::Meta, Op::Put { key: &key, value: b"stolen" }).await?)
}

/// What lies under `prefix`, without it.
async fn under(store: &Store, prefix: &str) -> Contents {
    let space = Subspace::raw(prefix.to_owned());
    let all = contents(store).await.into_iter();
    all.filter_map(|(key, value)| Some((Bytes::copy_from_slice(space.strip(&key)?), value))).collect()
}

async fn assert_gathered(master: &Master<Store>, centre: &Store, prefix: &str) {
    assert!(contents(master.store()).await == under(centre, prefix).await, "{prefix} differs");
}

fn rng(test: &str) -> fastrand::Rng {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125);
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-node --all-features --test node centre::{test}");
    fastrand::Rng::with_seed(seed)
}

fn batch(rng: &mut fastrand::Rng) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..rng.usize(1..6) {
        let key = [b'a' + rng.u8(..8), b'a' + rng.u8(..8)];
        batch = match rng.u8(..10) {
            // Whatever a master deletes without bounds, nobody else loses anything.
            0 => batch.delete_range(KeyRange::from_bounds(key..)),
            1 => batch.delete_range(KeyRange::all()),
            2..=3 => batch.delete(key),
            _ => batch.put(key, vec![rng.u8(..); rng.usize(..100)]),
        };
    }
    batch
}

#[tokio::test]
async fn many_masters_flow_into_one_store_and_touch_nothing_of_each_other() -> Result<(), Error> {
    let mut rng = rng("many_masters_flow_into_one_store_and_touch_nothing_of_each_other");
    let central = store();
    // Beside every claim, before the centre was one.
    support::put_raw(&central, Keyspace::Data, b"own", b"1").await?;
    let centre = Centre::open(central.clone()).await?;
    let mut masters = Vec::new();
    for n in 0..5 {
        let master = master(&store(), MasterConfig::default()).await;
        // Some begin with a copy, some with their log.
        if n % 2 == 0 {
            master.write(batch(&mut rng)).await?;
        }
        let link = link(&centre, &format!("edge-{n}")).await;
        let connection = connect(&master, &link);
        masters.push((master, link, connection));
    }
    for _ in 0..300 {
        let (master, ..) = &masters[rng.usize(..masters.len())];
        master.write(batch(&mut rng)).await?;
    }
    let mut all = BTreeMap::from([(Bytes::from("own"), Bytes::from("1"))]);
    for (n, (master, link, _)) in masters.iter().enumerate() {
        let last = master.put("last", n.to_be_bytes()).await?;
        soon(link.wait_applied(last)).await?;
        assert_gathered(master, &central, &format!("edge-{n}/")).await;
        let space = Subspace::raw(format!("edge-{n}/"));
        all.extend(contents(master.store()).await.into_iter().map(|(key, value)| (space.key(key), value)));
        // Its own view shows what its master holds, and the status is its own.
        assert_eq!(contents(link.store()).await, contents(master.store()).await);
        assert_eq!(link.status().state, SlaveState::Following);
    }
    assert!(contents(&central).await.into_iter().eq(all), "there is what masters wrote, and nothing else");
    let seen = centre.links().await?;
    assert_eq!(seen.len(), 5);
    for (seen, (master, ..)) in seen.iter().zip(&masters) {
        assert_eq!((seen.source, seen.open, seen.state), (Some(master.source()), true, ClaimState::Held));
        assert!(seen.cursor.as_ref().is_some_and(|cursor| cursor.position == master.status().published));
    }
    Ok(())
}

#[tokio::test]
async fn links_go_on_where_they_were_when_the_centre_is_opened_again() -> Result<(), Error> {
    let mut rng = rng("links_go_on_where_they_were_when_the_centre_is_opened_again");
    let central = store();
    let masters = [master(&store(), MasterConfig::default()).await, master(&store(), MasterConfig::default()).await];
    let mut inner = central.inner().open_again();
    for round in 0..4 {
        let central = FaultStore::new(inner);
        let centre = Centre::open(central.clone()).await?;
        for (n, master) in masters.iter().enumerate() {
            let link = link(&centre, &format!("edge-{n}")).await;
            master.write(batch(&mut rng)).await?;
            let last = master.put("round", [round]).await?;
            let (serving, following) = connect(master, &link);
            soon(link.wait_applied(last)).await?;
            assert_gathered(master, &central, &format!("edge-{n}/")).await;
            // The first time it has all from the log, and later only what is new.
            assert_eq!(link.status().records, if round == 0 { 3 } else { 2 });
            following.abort();
            drop(soon(serving).await);
            soon(link.shutdown()).await?;
        }
        soon(centre.shutdown()).await?;
        inner = central.inner().open_again();
    }
    Ok(())
}

#[tokio::test]
async fn overlapping_claims_are_refused_with_both_names() -> Result<(), Error> {
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let one = link(&centre, "one").await;
    let wants = |target: Subspace| LinkConfig::new(named("two"), SlaveConfig::new("centre")).into(target);
    for target in [Subspace::root(), Subspace::raw("one"), Subspace::raw("one/"), Subspace::raw("one/two/")] {
        let refused = centre.link(wants(target)).await.map(drop).unwrap_err();
        assert!(matches!(&refused, LinkError::Claimed { .. }), "{refused}");
        let words = refused.to_string();
        assert!(words.contains("link two") && words.contains("link one"), "{words}");
    }
    // As long as the claim is there, it does not matter whether the link is open.
    one.shutdown().await?;
    let refused = centre.link(wants(Subspace::raw("one/two/"))).await.map(drop).unwrap_err();
    assert!(matches!(&refused, LinkError::Claimed { .. }), "{refused}");
    let moved = LinkConfig::new(named("one"), SlaveConfig::new("centre")).into(Subspace::raw("elsewhere/"));
    assert!(matches!(centre.link(moved).await, Err(LinkError::Moved { .. })));
    // Nothing of all that was written.
    assert_eq!(centre.links().await?.len(), 1);
    drop(link(&centre, "one").await);
    centre.link(wants(Subspace::raw("two/"))).await?;
    Ok(())
}

#[tokio::test]
async fn a_link_is_opened_once_at_a_time() -> Result<(), Error> {
    let centre = Centre::open(store()).await?;
    let first = link(&centre, "edge").await;
    let again = || LinkConfig::new(named("edge"), SlaveConfig::new("centre"));
    assert!(matches!(centre.link(again()).await, Err(LinkError::Open { .. })));
    first.shutdown().await?;
    assert!(matches!(first.get("k").await, Err(StoreError::Closed)));
    let second = centre.link(again()).await?;
    assert!(second.get("k").await?.is_none());
    // Dropped is as good as shut down.
    drop((first, second));
    until_opened(&centre, again).await;
    Ok(())
}

async fn until_opened(centre: &Centre<Store>, config: impl Fn() -> LinkConfig) {
    soon(async {
        while centre.link(config()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_link_is_bound_to_the_source_that_it_met_first() -> Result<(), Error> {
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let [first, other] =
        [master(&store(), MasterConfig::default()).await, master(&store(), MasterConfig::default()).await];
    let link = link(&centre, "edge").await;
    let token = first.put("k", "first").await?;
    let (_serving, following) = connect(&first, &link);
    soon(link.wait_applied(token)).await?;
    following.abort();
    other.put("k", "other").await?;
    let (_serving, refused) = connect(&other, &link);
    match soon(refused).await? {
        Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, RejectCode::ForeignSource),
        end => panic!("{end:?}"),
    }
    assert_eq!(link.get("k").await?.as_deref(), Some(&b"first"[..]));
    Ok(())
}

#[tokio::test]
async fn data_that_came_from_no_master_is_not_overwritten_by_a_link() -> Result<(), Error> {
    let central = store();
    support::put_raw(&central, Keyspace::Data, b"edge/mine", b"1").await?;
    let centre = Centre::open(central.clone()).await?;
    let master = master(&store(), MasterConfig::default()).await;
    master.put("mine", "2").await?;
    let link = link(&centre, "edge").await;
    let (_serving, refused) = connect(&master, &link);
    match soon(refused).await? {
        Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, RejectCode::DataWithoutCursor),
        end => panic!("{end:?}"),
    }
    assert_eq!(centre.get("edge/mine").await?.as_deref(), Some(&b"1"[..]));
    Ok(())
}

#[tokio::test]
async fn what_links_hand_over_at_once_is_one_transaction() -> Result<(), Error> {
    const LINKS: usize = 8;
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let mut masters = Vec::new();
    for n in 0..LINKS {
        let master = master(&store(), MasterConfig::default()).await;
        let link = link(&centre, &format!("edge-{n}")).await;
        let connection = connect(&master, &link);
        let token = master.put("begin", "").await?;
        soon(link.wait_applied(token)).await?;
        masters.push((master, link, connection));
    }
    // One of them holds the store up; the others gather meanwhile.
    let held = central.faults().hold_apply();
    let before = central.faults().calls().applies;
    let mut tokens = Vec::new();
    for (n, (master, link, _)) in masters.iter().enumerate() {
        tokens.push(master.put("k", n.to_be_bytes()).await?);
        if n == 0 {
            soon(held.reached()).await;
        } else {
            // On its way to the store, as far as anybody outside can tell.
            until(|| link.status().source_head.is_some_and(|head| head.seq == tokens[n].seq)).await;
        }
    }
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    held.release();
    for ((_, link, _), token) in masters.iter().zip(&tokens) {
        soon(link.wait_applied(*token)).await?;
    }
    let applies = central.faults().calls().applies - before;
    assert!(applies <= 3, "{applies} transactions for {LINKS} links");
    Ok(())
}

#[tokio::test]
async fn a_link_that_is_refused_holds_up_no_other() -> Result<(), Error> {
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let mut masters = Vec::new();
    for n in 0..3 {
        let master = master(&store(), MasterConfig::default()).await;
        let link = link(&centre, &format!("edge-{n}")).await;
        let connection = connect(&master, &link);
        let token = master.put("begin", "").await?;
        soon(link.wait_applied(token)).await?;
        masters.push((master, link, connection));
    }
    steal_cursor(&central, "edge-1").await?;
    for (n, (master, link, connection)) in masters.iter_mut().enumerate() {
        let token = master.put("k", "v").await?;
        if n == 1 {
            let end = soon(&mut connection.1).await?;
            assert!(matches!(end, Err(FollowError::Fenced)), "{end:?}");
        } else {
            soon(link.wait_applied(token)).await?;
        }
    }
    assert_eq!(centre.get("edge-1/k").await?, None);
    Ok(())
}

#[tokio::test]
async fn what_another_links_failed_sync_has_taken_is_told_to_nobody_as_durable() -> Result<(), Error> {
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let (one, other) = (link(&centre, "one").await, link(&centre, "other").await);
    let put = |key: &str| {
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Data, key, "v").map(WriteSetBuilder::build)
    };
    one.store().apply(put("synced")?, Durability::Synced).await?;
    one.store().apply(put("taken")?, Durability::Buffered).await?;
    central.faults().fail_sync(Lost::Unsynced);
    other.store().sync().await.expect_err("the sync fails");
    other.store().reopen().await?;
    // The other one has made the store well again. This one does not know yet what it has lost.
    one.store().sync().await.expect_err("it looks again first");
    one.store().apply(put("next")?, Durability::Synced).await.expect_err("it looks again first");
    one.store().reopen().await?;
    assert_eq!(one.store().get(Keyspace::Data, b"taken").await?, None);
    assert_eq!(one.store().get(Keyspace::Data, b"synced").await?.as_deref(), Some(&b"v"[..]));
    one.store().apply(put("next")?, Durability::Buffered).await?;
    one.store().sync().await?;
    other.store().sync().await?;
    Ok(())
}

#[tokio::test]
async fn what_the_masters_own_failed_sync_has_taken_is_told_by_no_link_as_durable() -> Result<(), Error> {
    let central = store();
    let config = MasterConfig::default().commit(Commit::Buffered { sync_every: Duration::from_millis(20) });
    let centre = Centre::open_master(central.clone(), config).await?;
    let one = link(&centre, "one").await;
    one.store().sync().await?;
    let mut writes = WriteSet::builder();
    writes.put(Keyspace::Data, "taken", "v")?;
    central.faults().fail_sync(Lost::Unsynced);
    one.store().apply(writes.build(), Durability::Buffered).await?;
    until(|| central.faults().calls().reopens > 0).await;
    soon(async {
        while one.store().get(Keyspace::Data, b"taken").await.is_ok_and(|value| value.is_some()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    // The master has made the store well again. The link does not know yet what it has lost.
    one.store().sync().await.expect_err("it looks again first");
    one.store().reopen().await?;
    assert_eq!(one.store().get(Keyspace::Data, b"taken").await?, None);
    one.store().sync().await?;
    Ok(())
}

#[tokio::test]
async fn links_survive_a_store_whose_outcome_is_unknown() -> Result<(), Error> {
    for fault in [ApplyFault::UnknownButApplied, ApplyFault::UnknownAndAbsent] {
        let central = store();
        let centre = Centre::open(central.clone()).await?;
        let mut masters = Vec::new();
        for n in 0..3 {
            let master = master(&store(), MasterConfig::default()).await;
            let link = link(&centre, &format!("edge-{n}")).await;
            let connection = connect(&master, &link);
            let token = master.put("begin", "").await?;
            soon(link.wait_applied(token)).await?;
            masters.push((master, link, connection));
        }
        central.faults().next_apply(fault);
        let mut last = Vec::new();
        for (master, ..) in &masters {
            last.push(master.put("k", "v").await?);
        }
        // Whoever was hit ends; everybody comes back, and nothing is there twice or missing.
        for (n, (master, link, _)) in masters.iter().enumerate() {
            soon(async {
                while link.status().position.is_none_or(|position| position.seq < last[n].seq) {
                    let (_serving, mut following) = connect(master, link);
                    tokio::select! {
                        _ = link.wait_applied(last[n]) => {}
                        _ = &mut following => {}
                    }
                    following.abort();
                }
            })
            .await;
            assert_gathered(master, &central, &format!("edge-{n}/")).await;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_link_that_fell_behind_the_log_compares_its_own_part() -> Result<(), Error> {
    let retention = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: 0 };
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let source = support::store_with(2_000).await;
    let master = master(&source, MasterConfig::default().retention(retention).ring_bytes(1000)).await;
    support::put_raw(&central, Keyspace::Data, b"edge.beside", b"1").await?;
    support::put_raw(&central, Keyspace::Data, b"edge0", b"1").await?;
    let behind = link(&centre, "edge").await;
    let (serving, _following) = connect(&master, &behind);
    soon(behind.wait_caught_up()).await?;
    // With its last acknowledgement, which makes the slot.
    soon(behind.shutdown()).await?;
    drop(soon(serving).await);
    drop(behind);
    until(|| master.forget(replikv_proto::SlotKind::Slave, "centre")).await;
    for n in 0..300u32 {
        master.put(n.to_be_bytes(), [9; 200]).await?;
    }
    let seq = master.status().published.seq;
    until(|| master.status().floor.seq > Seq::new(10)).await;
    let link = link(&centre, "edge").await;
    let _connection = connect(&master, &link);
    soon(link.wait_applied(seq)).await?;
    assert_eq!(link.status().comparisons, 1);
    assert_gathered(&master, &central, "edge/").await;
    for beside in ["edge.beside", "edge0"] {
        assert!(centre.get(beside).await?.is_some(), "{beside} was nobody's to remove");
    }
    Ok(())
}

#[tokio::test]
async fn unlinking_frees_the_claim_and_removes_the_data_if_asked() -> Result<(), Error> {
    for unlinked in [Unlinked::KeepData, Unlinked::RemoveData] {
        let central = store();
        let centre = Centre::open(central.clone()).await?;
        let source = support::store_with(3_000).await;
        let master = master(&source, MasterConfig::default()).await;
        let gone = link(&centre, "gone").await;
        let _stays = link(&centre, "gone-not").await;
        let (serving, following) = connect(&master, &gone);
        soon(gone.wait_caught_up()).await?;
        following.abort();
        drop(soon(serving).await);
        assert!(matches!(centre.unlink(&named("gone"), unlinked).await, Err(LinkError::Open { .. })));
        gone.shutdown().await?;
        let before = central.faults().calls();
        soon(centre.unlink(&named("gone"), unlinked)).await?;
        let left = under(&central, "gone/").await.len();
        assert_eq!(left, if unlinked == Unlinked::KeepData { 3_000 } else { 0 });
        // In steps: nobody waits for all of it.
        let steps = central.faults().calls().applies - before.applies;
        assert!(unlinked == Unlinked::KeepData || steps >= 3, "{steps}");
        assert!(matches!(centre.unlink(&named("gone"), unlinked).await, Err(LinkError::NoSuchLink { .. })));
        let knowledge = Subspace::raw(&b"link/"[..]).child("gone").range();
        assert!(!entries(&central, Keyspace::Meta).await.iter().any(|(key, _)| knowledge.contains(key)));
        // Free for somebody else, who finds what was left there.
        let next = LinkConfig::new(named("next"), SlaveConfig::new("next")).into(Subspace::raw("gone/"));
        let next = centre.link(next).await?;
        let (_serving, following) = connect(&master, &next);
        if unlinked == Unlinked::KeepData {
            assert!(
                matches!(soon(following).await?, Err(FollowError::Refused(refusal)) if refusal.code == RejectCode::DataWithoutCursor)
            );
        } else {
            soon(next.wait_caught_up()).await?;
            assert_gathered(&master, &central, "gone/").await;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_cursor_is_gone_for_good_before_the_data_of_its_link_goes() -> Result<(), Error> {
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let source = support::store_with(3_000).await;
    let master = master(&source, MasterConfig::default()).await;
    let (gone, other) = (link(&centre, "gone").await, link(&centre, "other").await);
    let (serving, following) = connect(&master, &gone);
    soon(gone.wait_caught_up()).await?;
    following.abort();
    drop(soon(serving).await);
    gone.shutdown().await?;
    let first = central.faults().hold_read(Keyspace::Data);
    let unlinking = tokio::spawn({
        let centre = centre.clone();
        async move { centre.unlink(&named("gone"), Unlinked::RemoveData).await }
    });
    soon(first.reached()).await;
    central.faults().fail_sync(Lost::Unsynced);
    other.store().sync().await.expect_err("the sync fails");
    other.store().reopen().await?;
    let knowledge = Subspace::raw(&b"link/"[..]).child("gone").range();
    assert!(!entries(&central, Keyspace::Meta).await.iter().any(|(key, _)| knowledge.contains(key)));
    first.release();
    soon(unlinking).await??;
    assert!(under(&central, "gone/").await.is_empty());
    Ok(())
}

#[tokio::test]
async fn an_unlinking_that_was_cut_short_is_finished_by_the_next_open() -> Result<(), Error> {
    // Cut before each of its steps in turn.
    for steps in 0..8 {
        let central = store();
        let centre = Centre::open(central.clone()).await?;
        let source = support::store_with(3_000).await;
        let master = master(&source, MasterConfig::default()).await;
        let gone = link(&centre, "gone").await;
        let (serving, following) = connect(&master, &gone);
        soon(gone.wait_caught_up()).await?;
        following.abort();
        drop(soon(serving).await);
        gone.shutdown().await?;
        central.faults().apply_after(steps, ApplyFault::Refuse(StoreError::Transient { reason: "power".into() }));
        let cut = centre.unlink(&named("gone"), Unlinked::RemoveData).await;
        let central = FaultStore::new(central.inner().open_again());
        let begun = links(&central).await?;
        match (&cut, &begun[..]) {
            (Err(_), [seen]) if steps == 0 => assert_eq!(seen.state, ClaimState::Held),
            (Err(_), [seen]) => assert_eq!(seen.state, ClaimState::Removing),
            (Ok(()), []) => {}
            other => panic!("{other:?}"),
        }
        let centre = Centre::open(central.clone()).await?;
        if steps == 0 {
            continue;
        }
        let again = || LinkConfig::new(named("gone"), SlaveConfig::new("centre"));
        until_opened(&centre, again).await;
        assert!(contents(&central).await.is_empty(), "cut after {steps} steps");
    }
    Ok(())
}

#[tokio::test]
async fn a_centre_is_neither_a_master_nor_a_slave() -> Result<(), Error> {
    let central = MemoryStore::new();
    let centre = Centre::open(central.open_again()).await?;
    centre.shutdown().await?;
    let opened = Master::open(central.open_again(), MasterConfig::default()).await;
    assert!(matches!(opened, Err(OpenError::Role { found: Role::Centre, wanted: Role::Master })));
    let opened = Slave::open(central.open_again(), SlaveConfig::new("edge")).await;
    assert!(matches!(opened, Err(OpenError::Role { found: Role::Centre, wanted: Role::Slave })));
    let masters = MemoryStore::new();
    Master::open(masters.open_again(), MasterConfig::default()).await?.shutdown().await?;
    let opened = Centre::open(masters.open_again()).await;
    assert!(matches!(opened, Err(OpenError::Role { found: Role::Master, wanted: Role::Centre })));
    let slaves = MemoryStore::new();
    Slave::open(slaves.open_again(), SlaveConfig::new("edge")).await?.shutdown().await?;
    let opened = Centre::open(slaves.open_again()).await;
    assert!(matches!(opened, Err(OpenError::Role { found: Role::Slave, wanted: Role::Centre })));
    Ok(())
}

#[tokio::test]
async fn a_centre_that_is_a_master_feeds_slaves_with_all_that_it_gathers() -> Result<(), Error> {
    let mut rng = rng("a_centre_that_is_a_master_feeds_slaves_with_all_that_it_gathers");
    let central = store();
    let centre = Centre::open_master(central.clone(), MasterConfig::default()).await?;
    let top = centre.master().ok_or("it is a master")?.clone();
    let below = slave(&store(), "below").await;
    let (here, there) = tokio::io::duplex(64 << 10);
    let serving = top.clone();
    tokio::spawn(async move { serving.serve(there).await });
    follow(&below, here);
    let mut masters = Vec::new();
    for n in 0..4 {
        let source = if n == 0 { support::store_with(500).await } else { store() };
        let master = master(&source, MasterConfig::default()).await;
        let link = link(&centre, &format!("edge-{n}")).await;
        let connection = connect(&master, &link);
        masters.push((master, link, connection));
    }
    for _ in 0..200 {
        let (master, ..) = &masters[rng.usize(..masters.len())];
        master.write(batch(&mut rng)).await?;
        if rng.u8(..4) == 0 {
            top.put([b"own/", &[rng.u8(..)][..]].concat(), "of the centre itself").await?;
        }
    }
    for (n, (master, link, _)) in masters.iter().enumerate() {
        let last = master.put("last", "").await?;
        soon(link.wait_applied(last)).await?;
        assert_gathered(master, &central, &format!("edge-{n}/")).await;
    }
    soon(below.wait_applied(top.status().published.seq)).await?;
    assert!(contents(&central).await == contents(below.store()).await, "what hangs below differs");
    // Each record of its log continues the one before.
    assert!(support::chain(&central).await.len() > 200);
    Ok(())
}

#[tokio::test]
async fn nobody_else_writes_what_a_link_has_claimed() -> Result<(), Error> {
    let centre = Centre::open_master(store(), MasterConfig::default()).await?;
    let top = centre.master().ok_or("it is a master")?.clone();
    top.put("edge/before", "there was no such link").await?;
    let edge = link(&centre, "edge").await;
    let claimed = |error: WriteError| matches!(&error, WriteError::Claimed { link, .. } if link.as_str() == "edge");
    for batch in [
        Batch::new().put("edge/k", "v"),
        Batch::new().put("other", "v").delete("edge/k"),
        Batch::new().delete_range("edge/a".."edge/b"),
        Batch::new().delete_range(KeyRange::all()),
    ] {
        assert!(claimed(top.write(batch).await.unwrap_err()));
    }
    let refused = top.transact(|_, batch| Ok(batch.put("edge/k", "v"))).await.unwrap_err();
    assert!(matches!(&refused, WriteError::Aborted { reason } if reason.contains("link edge")), "{refused}");
    top.write(Batch::new().put("edge", "v").put("edge0", "v").delete_range("edge0".."f")).await?;
    edge.shutdown().await?;
    centre.unlink(&named("edge"), Unlinked::RemoveData).await?;
    top.put("edge/k", "free again").await?;
    assert!(centre.get("edge/before").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_link_that_is_fenced_does_not_fence_the_master_that_the_centre_is() -> Result<(), Error> {
    let central = store();
    let centre = Centre::open_master(central.clone(), MasterConfig::default()).await?;
    let top = centre.master().ok_or("it is a master")?.clone();
    let (first, second) =
        (master(&store(), MasterConfig::default()).await, master(&store(), MasterConfig::default()).await);
    let (one, two) = (link(&centre, "one").await, link(&centre, "two").await);
    let ((_, ended), _second) = (connect(&first, &one), connect(&second, &two));
    for (master, link) in [(&first, &one), (&second, &two)] {
        let token = master.put("begin", "").await?;
        soon(link.wait_applied(token)).await?;
    }
    steal_cursor(&central, "one").await?;
    // All of it in one group: while the store is held up, everybody gathers.
    let held = central.faults().hold_apply();
    let (writing, here) = (top.clone(), top.clone());
    let busy = tokio::spawn(async move { writing.put("busy", "").await });
    soon(held.reached()).await;
    first.put("k", "v").await?;
    let token = second.put("k", "v").await?;
    let own = tokio::spawn(async move { here.put("own", "").await });
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    held.release();
    soon(busy).await??;
    soon(own).await??;
    soon(two.wait_applied(token)).await?;
    let end = soon(ended).await?;
    assert!(matches!(end, Err(FollowError::Fenced)), "{end:?}");
    top.put("after", "").await?;
    assert_eq!((centre.get("one/k").await?, centre.get("two/k").await?.as_deref()), (None, Some(&b"v"[..])));
    support::chain(&central).await;
    Ok(())
}

#[tokio::test]
async fn a_centre_becomes_a_master_and_a_master_begins_to_gather() -> Result<(), Error> {
    let central = MemoryStore::new();
    let source = master(&store(), MasterConfig::default()).await;
    let token = source.put("k", "v").await?;
    let centre = Centre::open(FaultStore::new(central.open_again())).await?;
    let edge = link(&centre, "edge").await;
    let (_serving, following) = connect(&source, &edge);
    soon(edge.wait_applied(token)).await?;
    following.abort();
    soon(edge.shutdown()).await?;
    centre.shutdown().await?;
    let centre = Centre::open_master(FaultStore::new(central.open_again()), MasterConfig::default()).await?;
    // What was gathered before is copied by whoever hangs below.
    let below = slave(&store(), "below").await;
    let (here, there) = tokio::io::duplex(64 << 10);
    let serving = centre.master().ok_or("it is a master")?.clone();
    tokio::spawn(async move { serving.serve(there).await });
    follow(&below, here);
    soon(below.wait_caught_up()).await?;
    assert_eq!(below.get("edge/k").await?.as_deref(), Some(&b"v"[..]));
    let edge = link(&centre, "edge").await;
    assert_eq!(edge.status().position.map(|position| position.seq), Some(token.seq));
    soon(below.shutdown()).await?;
    edge.shutdown().await?;
    centre.shutdown().await?;
    let alone = Master::open(central.open_again(), MasterConfig::default()).await;
    assert!(matches!(alone, Err(OpenError::Links { .. })), "its links write to it");
    let plain = Centre::open(central.open_again()).await;
    assert!(matches!(plain, Err(OpenError::Role { found: Role::Master, wanted: Role::Centre })));

    let masters = MemoryStore::new();
    let before = Master::open(masters.open_again(), MasterConfig::default()).await?;
    before.put("own", "1").await?;
    before.shutdown().await?;
    let centre = Centre::open_master(FaultStore::new(masters.open_again()), MasterConfig::default()).await?;
    assert_eq!(centre.master().map(Master::source), Some(before.source()));
    let edge = link(&centre, "edge").await;
    let _connection = connect(&source, &edge);
    soon(edge.wait_caught_up()).await?;
    assert!(centre.get("own").await?.is_some() && centre.get("edge/k").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn an_acknowledged_link_of_a_buffered_master_is_on_stable_storage() -> Result<(), Error> {
    let central = store();
    let config = MasterConfig::default().commit(Commit::Buffered { sync_every: Duration::from_secs(3600) });
    let centre = Centre::open_master(central.clone(), config).await?;
    let source = master(&store(), MasterConfig::default()).await;
    let edge = link(&centre, "edge").await;
    let _connection = connect(&source, &edge);
    let token = source.write(Batch::new().put("k", "v")).replicated(1, Duration::from_secs(60)).await?;
    soon(edge.wait_applied(token)).await?;
    let left = central.power_loss().await?;
    let centre = Centre::open_master(left, MasterConfig::default()).await?;
    assert_eq!(centre.get("edge/k").await?.as_deref(), Some(&b"v"[..]));
    Ok(())
}

#[tokio::test]
async fn keys_that_do_not_fit_under_the_prefix_are_refused_at_hello() -> Result<(), Error> {
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let limits = central.limits();
    let master = master(&store(), MasterConfig::default().limits(limits)).await;
    let link = link(&centre, "edge").await;
    let (_serving, refused) = connect(&master, &link);
    match soon(refused).await? {
        Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, RejectCode::LimitsTooSmall),
        end => panic!("{end:?}"),
    }
    Ok(())
}

#[tokio::test]
async fn a_link_under_whose_prefix_a_slaves_own_keys_do_not_fit_claims_nothing() -> Result<(), Error> {
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let max_key = central.limits().max_key;
    let own = Checkpoint::PREFIX.len() + size_of::<Seq>();
    let config = |len: usize| {
        let prefix = Subspace::raw(vec![b'p'; len]);
        LinkConfig::new(named("edge"), SlaveConfig::new("centre")).into(prefix)
    };
    let refused = centre.link(config(max_key - own + 1)).await;
    let expected = (max_key - own + 1, max_key);
    assert!(
        matches!(&refused, Err(LinkError::TooLong { len, max, .. }) if (*len, *max) == expected),
        "{:?}",
        refused.err()
    );
    assert!(centre.links().await?.is_empty());
    // One byte less, and it works for masters that have such keys.
    let limits = StoreLimits { max_key: own, max_value: 100, max_batch: 10_000 };
    let master = master(&store(), MasterConfig::default().limits(limits)).await;
    let link = centre.link(config(max_key - own)).await?;
    let _connection = connect(&master, &link);
    for n in 0..=Checkpoint::EVERY {
        master.put(vec![b'k'; own], n.to_string()).await?;
    }
    soon(link.wait_applied(master.status().published.seq)).await?;
    assert_eq!(contents(link.store()).await, contents(master.store()).await);
    Ok(())
}

#[tokio::test]
async fn a_link_that_subscribes_gathers_that_part() -> Result<(), Error> {
    let heartbeat = MasterConfig::default().heartbeat(Duration::from_millis(20));
    let (one, two) = (master(&store(), heartbeat.clone()).await, master(&store(), heartbeat).await);
    for (master, name) in [(&one, "one"), (&two, "two")] {
        for n in 0..20 {
            master.put(format!("{}/{n:02}", ["a", "b"][n % 2]), name).await?;
        }
    }
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let part = SlaveConfig::new("centre").subscribe(KeyRange::prefix("a/"));
    let filtered = centre.link(LinkConfig::new(named("one"), part)).await?;
    let whole = link(&centre, "two").await;
    let connections = [connect(&one, &filtered), connect(&two, &whole)];
    for (master, link) in [(&one, &filtered), (&two, &whole)] {
        master.write(Batch::new().delete_range(KeyRange::from_bounds("a/10".."b/05")).put("b/99", "late")).await?;
        soon(link.wait_applied(master.status().published.seq)).await?;
    }
    let wanted: Contents = contents(one.store()).await.into_iter().filter(|(key, _)| key.starts_with(b"a/")).collect();
    assert_eq!(wanted.len(), 5);
    assert!(under(&central, "one/").await == wanted);
    assert_gathered(&two, &central, "two/").await;
    assert!(matches!(filtered.get("b/99").await, Err(StoreError::NotSubscribed { .. })));
    assert_eq!(filtered.get("a/00").await?.as_deref(), Some(&b"one"[..]));
    // Another set: what is under the other link stays what it is.
    filtered.shutdown().await?;
    let [(_, following), _other] = connections;
    drop(soon(following).await?);
    let part = SlaveConfig::new("centre").subscribe(KeyRange::prefix("b/"));
    let filtered = centre.link(LinkConfig::new(named("one"), part)).await?;
    let _connection = connect(&one, &filtered);
    soon(filtered.wait_applied(one.status().published.seq)).await?;
    soon(filtered.wait_caught_up()).await?;
    let wanted: Contents = contents(one.store()).await.into_iter().filter(|(key, _)| key.starts_with(b"b/")).collect();
    assert!(under(&central, "one/").await == wanted);
    assert_gathered(&two, &central, "two/").await;
    Ok(())
}
