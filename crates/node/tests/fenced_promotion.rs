//! A slave is promoted once enough others are fenced, and what `replicated(n)` has acknowledged survives.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use crate::support::{
    self, Error, Following, Serving, Store, assert_equal, connect, contents, entries, follow, full, master, slave,
    soon, store,
};
use replikv_core::{
    Batch, Durability, Epoch, KeyRange, Keyspace, LinkId, Position, ReplicaStore, SourceId, StoreError,
};
use replikv_node::{
    Ending, Fence, FenceConfig, FenceRefusal, FenceRequest, FencedPromoteError, FollowError, HealthState, KeepLog,
    Master, MasterConfig, PromoteError, Slave, SlaveConfig, WriteError, backup, fence, lift_fence, promote,
    promote_fenced, remote_fence,
};
use replikv_proto::RejectCode;
use replikv_testkit::{ApplyFault, FaultStore};
use tokio::io::DuplexStream;
use tokio::time::timeout;

/// The same store, as another process would open it.
fn again(store: &Store) -> Store {
    FaultStore::new(store.inner().open_again())
}

async fn open(store: &Store) -> Master<Store> {
    master(&again(store), MasterConfig::default()).await
}

/// Follows, until everything is there.
async fn following(master: &Master<Store>, slave: &Slave<Store>) -> (Serving, Following) {
    let both = connect(master, slave);
    soon(slave.wait_applied(master.status().published.seq)).await.unwrap();
    soon(slave.wait_caught_up()).await.unwrap();
    both
}

async fn ends((serving, following): (Serving, Following)) {
    following.abort();
    drop(soon(following).await);
    drop(soon(serving).await);
}

/// Whatever can go on without anything from outside has done so.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<DuplexStream>> + Send>>;

/// Streams to slaves by their names; nobody else is there.
fn dial(slaves: &[&Slave<Store>]) -> impl Fn(String) -> Connecting + Send + Sync + use<> {
    let slaves: Vec<_> = slaves.iter().map(|&slave| slave.clone()).collect();
    move |name| {
        let slave = slaves.iter().find(|slave| slave.status().name == name).cloned();
        Box::pin(async move {
            let slave = slave.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            let (here, there) = tokio::io::duplex(64 << 10);
            tokio::spawn(async move { slave.serve_reads(there).await });
            Ok(here)
        })
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// For the epoch after that of `position`.
fn asks(position: Position, nonce: u64) -> FenceRequest {
    let epoch = Epoch { number: position.epoch.number + 1, nonce };
    FenceRequest { source: position.source, epoch, by: "next".into() }
}

async fn refused(master: &Master<Store>, slave: &Slave<Store>) -> RejectCode {
    let (_serving, following) = connect(master, slave);
    refusal(soon(following).await.unwrap())
}

fn refusal(ended: Result<Ending, FollowError>) -> RejectCode {
    match ended {
        Err(error @ FollowError::Refused(_)) => {
            let retry = error.is_retryable();
            let FollowError::Refused(refusal) = error else { unreachable!("it is one") };
            assert_eq!(retry, refusal.retry);
            refusal.code
        }
        end => panic!("{end:?}"),
    }
}

/// A master and three slaves that hold all it has.
struct Four {
    old: Master<Store>,
    stores: [Store; 3],
    slaves: [Slave<Store>; 3],
    links: Vec<(Serving, Following)>,
}

async fn four() -> Four {
    let old = master(&store(), MasterConfig::default()).await;
    let stores = [store(), store(), store()];
    let slaves = [slave(&stores[0], "a").await, slave(&stores[1], "b").await, slave(&stores[2], "c").await];
    for n in 0..5u8 {
        old.put([n], "shared").await.unwrap();
    }
    let mut links = Vec::new();
    for slave in &slaves {
        links.push(following(&old, slave).await);
    }
    Four { old, stores, slaves, links }
}

#[tokio::test]
async fn what_is_acknowledged_survives_and_the_fenced_move_over() -> Result<(), Error> {
    let Four { old, stores, slaves: [a, b, c], links } = four().await;
    // It hears nothing more; the write is on the two others.
    links[2].1.abort();
    let token = soon(old.write(Batch::new().put("k", "v")).replicated(2, Duration::from_secs(60))).await?;
    let config = FenceConfig::new(3, 2);
    assert_eq!(config.needed(), 2);
    let done = soon(a.promote_fenced(config, &names(&["b", "gone"]), dial(&[&b]))).await?;
    assert_eq!((done.promoted.last.seq, done.promoted.first.epoch.number, done.needed), (token.seq, 2, 2));
    let seen: Vec<_> = done.fenced.iter().map(|slave| (slave.address.as_deref(), slave.position.seq)).collect();
    assert_eq!(seen, [(None, token.seq), (Some("b"), token.seq)]);
    assert_eq!(done.unfenced.iter().map(|slave| &slave.address[..]).collect::<Vec<_>>(), ["gone"]);
    assert_eq!(done.fenced[1].name.as_deref(), Some("b"));
    // The old master goes on, and nothing that it writes is acknowledged by as many as it takes.
    let (_serving, _following) = connect(&old, &c);
    let late = old.write(Batch::new().put("late", "v")).replicated(1, Duration::from_secs(60));
    soon(late).await?;
    let late = old.write(Batch::new().put("later", "v")).replicated(2, Duration::from_millis(50));
    assert!(matches!(soon(late).await, Err(WriteError::NotReplicated { acked: 1, wanted: 2, .. })));
    assert_eq!(refused(&old, &b).await, RejectCode::Fenced);
    let seen = b.status().fence.ok_or("it is fenced")?;
    assert_eq!((seen.epoch, &seen.by[..], seen.own), (done.promoted.first.epoch, "a", false));
    let health = b.status().health;
    assert!(health.state == HealthState::Disconnected && health.reason.contains("fenced"), "{health:?}");
    // With the new one it goes on, and the fence is over.
    let new = open(&stores[0]).await;
    assert_eq!(new.get("k").await?.as_deref(), Some(&b"v"[..]));
    new.put("new", "v").await?;
    let both = following(&new, &b).await;
    assert_eq!((b.status().fence, b.fenced()), (None, None));
    assert_equal(&new, &b).await;
    ends(both).await;
    // It has come to the new epoch: what it says of itself there is what counts.
    assert_eq!(refused(&old, &b).await, RejectCode::Superseded);
    b.shutdown().await?;
    let kept = again(&stores[1]);
    assert_eq!(fence(&kept).await?, None, "it is over");
    slave(&kept, "b").await.shutdown().await?;
    let left = entries(&again(&stores[1]), Keyspace::Meta).await;
    assert!(left.iter().all(|(key, _)| key != Fence::KEY), "and goes when the store is opened");
    Ok(())
}

#[tokio::test]
async fn after_the_answer_nothing_more_is_acknowledged_and_what_is_in_flight_is_decided_before() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let held_store = store();
    let b = slave(&held_store, "b").await;
    let (_serving, ended) = following(&old, &b).await;
    let before = b.status().position.ok_or("it follows")?;
    let held = held_store.faults().hold_apply();
    let written = old.put("in flight", "v").await?;
    soon(held.reached()).await;
    let fencing = tokio::spawn({
        let b = b.clone();
        async move { b.fence(&asks(before, 7)).await }
    });
    settle().await;
    assert!(!fencing.is_finished(), "it is not answered before that is decided");
    held.release();
    let position = soon(fencing).await??.position;
    assert_eq!(position.seq, written.seq, "what was in flight is in it");
    assert_eq!(refusal(soon(ended).await?), RejectCode::Fenced);
    assert_eq!(held_store.cursor(&LinkId::default()).await?.map(|at| at.position), Some(position));
    let late = old.write(Batch::new().put("late", "v")).replicated(1, Duration::from_millis(50));
    assert!(matches!(soon(late).await, Err(WriteError::NotReplicated { acked: 0, .. })));
    assert_eq!(refused(&old, &b).await, RejectCode::Fenced);
    assert_eq!(b.status().position, Some(position));
    Ok(())
}

#[tokio::test]
async fn a_connection_that_begins_while_a_fence_is_put_up_is_judged_by_it() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let held_store = store();
    let b = slave(&held_store, "b").await;
    let (_serving, first) = following(&old, &b).await;
    let held = held_store.faults().hold_apply();
    old.put("in flight", "v").await?;
    soon(held.reached()).await;
    let position = b.status().position.ok_or("it follows")?;
    let fencing = tokio::spawn({
        let b = b.clone();
        async move { b.fence(&asks(position, 7)).await }
    });
    settle().await;
    // What is in flight is not decided, and nobody else gets in: not even one who would lift the fence.
    assert!(!fencing.is_finished());
    assert!(timeout(Duration::ZERO, b.lift_fence()).await.is_err(), "it is being put up");
    // Nobody polls the first one any more, and the next ones come at once, one after the other.
    first.abort();
    drop(soon(first).await);
    let mut next = connect(&old, &b);
    for _ in 0..20 {
        settle().await;
        assert!(!next.1.is_finished(), "it waits, and is neither served nor refused");
        ends(next).await;
        next = connect(&old, &b);
    }
    settle().await;
    old.put("late", "v").await?;
    assert!(!fencing.is_finished() && !next.1.is_finished());
    held.release();
    let fenced = soon(fencing).await??;
    assert_eq!(refusal(soon(next.1).await?), RejectCode::Fenced);
    assert_eq!(refused(&old, &b).await, RejectCode::Fenced);
    assert_eq!(b.status().position, Some(fenced.position));
    Ok(())
}

#[tokio::test]
async fn a_fence_and_its_position_outlive_power_loss_and_the_same_question_has_the_same_answer() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let kept = store();
    let config = || SlaveConfig::new("b").durability(Durability::Buffered).sync_every(Duration::from_secs(3600));
    let b = Slave::open(kept.clone(), config()).await?;
    let (_serving, _following) = following(&old, &b).await;
    let position = b.status().position.ok_or("it follows")?;
    assert!(b.status().durable < position.seq, "it is readable, and no more");
    let request = asks(position, 7);
    let fenced = soon(b.fence(&request)).await?;
    assert_eq!((fenced.position, &fenced.name[..]), (position, "b"));
    // Right after the answer.
    let kept = kept.power_loss().await?;
    drop(soon(b.shutdown()).await);
    let b = Slave::open(kept.clone(), config()).await?;
    assert_eq!(b.status().position, Some(position));
    assert_eq!(b.fenced().map(|fence| fence.epoch), Some(request.epoch));
    assert_eq!(refused(&old, &b).await, RejectCode::Fenced);
    assert_eq!(soon(b.fence(&request)).await, Ok(fenced.clone()));
    let (here, there) = tokio::io::duplex(64 << 10);
    let serving = b.clone();
    tokio::spawn(async move { serving.serve_reads(there).await });
    assert_eq!(soon(remote_fence(here, &request)).await?, Ok(fenced));
    // Another epoch of that number is another promise.
    let other = soon(b.fence(&asks(position, 8))).await;
    assert_eq!(other, Err(FenceRefusal::Promised { epoch: request.epoch, by: "next".into() }));
    Ok(())
}

#[tokio::test]
async fn who_is_refused_is_not_disturbed_and_who_does_not_count_is_refused() -> Result<(), Error> {
    let source = support::store_with(4_000).await;
    let old = master(&source, MasterConfig::default().chunk_bytes(8_000)).await;
    let follower = slave(&store(), "follower").await;
    let (_serving, ended) = following(&old, &follower).await;
    let position = follower.status().position.ok_or("it follows")?;
    let foreign = FenceRequest { source: SourceId::from_bytes([9; 16]), ..asks(position, 7) };
    let found = soon(follower.fence(&foreign)).await;
    assert_eq!(found, Err(FenceRefusal::ForeignSource { source_id: position.source }));
    let past = FenceRequest { epoch: Epoch { nonce: 7, ..position.epoch }, ..asks(position, 7) };
    assert_eq!(soon(follower.fence(&past)).await, Err(FenceRefusal::Newer { position }));
    let copying = store();
    copying.faults().pass_applies(5);
    let held = copying.faults().hold_apply();
    let copies = slave(&copying, "copies").await;
    let (_copying, copy_ended) = connect(&old, &copies);
    soon(held.reached()).await;
    assert_eq!(soon(copies.fence(&asks(position, 7))).await, Err(FenceRefusal::CatchingUp));
    held.release();
    soon(copies.wait_caught_up()).await?;
    let part = Slave::open(store(), SlaveConfig::new("part").subscribe(KeyRange::prefix("x"))).await?;
    let (_filtering, part_ended) = connect(&old, &part);
    soon(part.wait_caught_up()).await?;
    assert_eq!(soon(part.fence(&asks(position, 7))).await, Err(FenceRefusal::Filtered));
    let empty = slave(&store(), "empty").await;
    assert_eq!(soon(empty.fence(&asks(position, 7))).await, Err(FenceRefusal::Empty));
    // None of them has lost its connection.
    let token = old.put("k", "v").await?;
    for slave in [&follower, &copies, &part] {
        soon(slave.wait_applied(token)).await?;
        assert!(slave.fenced().is_none() && slave.status().connections == 1);
    }
    assert!(!(ended.is_finished() || copy_ended.is_finished() || part_ended.is_finished()));
    // A master says what it is; an address that tells the status alone promises nothing.
    let (here, there) = tokio::io::duplex(64 << 10);
    support::serve(&old, there);
    let told = soon(remote_fence(here, &asks(position, 7))).await?;
    assert_eq!(told, Err(FenceRefusal::Master { epoch: position.epoch }));
    let (here, there) = tokio::io::duplex(64 << 10);
    let told = follower.clone();
    tokio::spawn(async move { told.serve_status(there).await });
    assert!(soon(remote_fence(here, &asks(position, 7))).await.is_err());
    assert!(follower.fenced().is_none());
    Ok(())
}

#[tokio::test]
async fn with_too_few_nobody_is_promoted_and_it_goes_on_when_more_can_be_reached() -> Result<(), Error> {
    let Four { old, stores, slaves: [a, b, c], .. } = four().await;
    let failed = soon(a.promote_fenced(FenceConfig::new(3, 1), &names(&["b", "c"]), dial(&[&b]))).await;
    let Err(FencedPromoteError::TooFew { fenced, unfenced, needed: 3 }) = &failed else { panic!("{failed:?}") };
    assert_eq!((fenced.len(), unfenced.len(), &unfenced[0].address[..]), (2, 1, "c"));
    // One that is asked twice, or is this one itself, is one.
    let kept = again(&stores[0]);
    let twice = promote_fenced(&kept, &FenceConfig::new(3, 1), &names(&["b", "b"]), dial(&[&b])).await;
    assert!(matches!(twice, Err(FencedPromoteError::TooFew { fenced, .. }) if fenced.len() == 2));
    for (slaves, replicated, others) in [(3, 0, 1), (3, 4, 1), (1, 1, 1), (3, 2, 3)] {
        let others = vec!["b".to_owned(); others];
        let failed = promote_fenced(&kept, &FenceConfig::new(slaves, replicated), &others, dial(&[&b])).await;
        assert!(matches!(failed, Err(FencedPromoteError::Numbers { .. })), "{slaves} {replicated}: {failed:?}");
    }
    // It stays a slave, that waits for itself.
    let own = fence(&kept).await?.ok_or("it is fenced")?;
    assert!(own.own && b.fenced().is_some_and(|fence| fence.epoch == own.epoch && !fence.own));
    kept.close().await?;
    let waits = slave(&again(&stores[0]), "a").await;
    assert_eq!(refused(&old, &waits).await, RejectCode::Fenced);
    let done = soon(waits.promote_fenced(FenceConfig::new(3, 1), &names(&["b", "c"]), dial(&[&b, &c]))).await?;
    assert_eq!((done.promoted.first.epoch, done.fenced.len()), (own.epoch, 3));
    let new = open(&stores[0]).await;
    new.put("new", "v").await?;
    for slave in [&b, &c] {
        following(&new, slave).await;
        assert_equal(&new, slave).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_promotion_without_the_promise_ends_one_that_too_few_have_answered() -> Result<(), Error> {
    let Four { stores, slaves: [a, b, _], .. } = four().await;
    let failed = soon(a.promote_fenced(FenceConfig::new(3, 1), &names(&["b"]), dial(&[&b]))).await;
    assert!(matches!(failed, Err(FencedPromoteError::TooFew { .. })));
    // By the one that was fenced it would be another epoch.
    b.shutdown().await?;
    let kept = again(&stores[1]);
    assert!(matches!(promote(&kept).await, Err(PromoteError::Fenced { .. })));
    let waits = slave(&again(&stores[1]), "b").await;
    let epoch = waits.fenced().ok_or("it is fenced")?.epoch;
    let promoted = promote(&again(&stores[0])).await?;
    assert_eq!(promoted.first.epoch, epoch);
    let new = open(&stores[0]).await;
    new.put("new", "v").await?;
    following(&new, &waits).await;
    assert_equal(&new, &waits).await;
    assert!(entries(new.store(), Keyspace::Meta).await.iter().all(|(key, _)| key != Fence::KEY));
    Ok(())
}

#[tokio::test]
async fn a_slave_that_is_behind_is_not_promoted_and_the_one_ahead_goes_on_anew() -> Result<(), Error> {
    let Four { old, stores, slaves: [a, b, c], links } = four().await;
    ends(links.into_iter().next().ok_or("it follows")?).await;
    let token = old.put("k", "v").await?;
    soon(b.wait_applied(token)).await?;
    let failed = soon(a.promote_fenced(FenceConfig::new(3, 2), &names(&["b", "c"]), dial(&[&b, &c]))).await;
    let Err(FencedPromoteError::Ahead { address, position, own, .. }) = &failed else { panic!("{failed:?}") };
    assert_eq!((&address[..], position.seq), ("b", token.seq));
    assert!(*own < token.seq);
    assert!(failed.unwrap_err().to_string().contains("the slave at b is more advanced"));
    // All of them are promised to it.
    let a = slave(&again(&stores[0]), "a").await;
    let refused = soon(b.promote_fenced(FenceConfig::new(3, 2), &names(&["a", "c"]), dial(&[&a, &c]))).await;
    let promised = matches!(&refused, Err(FencedPromoteError::Promote(PromoteError::Fenced { by, .. })) if by == "a");
    assert!(promised, "{refused:?}");
    let b = slave(&again(&stores[1]), "b").await;
    let config = FenceConfig::new(3, 2).anew();
    let done = soon(b.promote_fenced(config, &names(&["a", "c"]), dial(&[&a, &c]))).await?;
    assert_eq!((done.promoted.last.seq, done.promoted.first.epoch.number), (token.seq, 3));
    // The right to begin the epoch that was given up is gone.
    a.shutdown().await?;
    assert!(matches!(promote(&again(&stores[0])).await, Err(PromoteError::Fenced { .. })));
    let a = slave(&again(&stores[0]), "a").await;
    let new = open(&stores[1]).await;
    new.put("new", "v").await?;
    for slave in [&a, &c] {
        following(&new, slave).await;
        assert_equal(&new, slave).await;
    }
    Ok(())
}

#[tokio::test]
async fn of_two_that_are_promoted_at_once_one_at_most_has_writes_acknowledged() -> Result<(), Error> {
    // With as many copies as slaves each needs nobody but itself.
    let Four { stores, slaves: [a, b, c], .. } = four().await;
    let one = soon(a.promote_fenced(FenceConfig::new(3, 3), &names(&["c"]), dial(&[&c]))).await?;
    let two = soon(b.promote_fenced(FenceConfig::new(3, 3), &names(&["c"]), dial(&[&c]))).await?;
    assert_eq!(one.promoted.first.epoch.number, two.promoted.first.epoch.number);
    assert!(two.unfenced[0].reason.contains("promised"), "{two:?}");
    let (one, two) = (open(&stores[0]).await, open(&stores[1]).await);
    ends(following(&one, &c).await).await;
    assert_eq!(refused(&two, &c).await, RejectCode::Diverged);
    // With fewer, the second one does not come about.
    let Four { slaves: [a, b, c], .. } = four().await;
    soon(a.promote_fenced(FenceConfig::new(3, 2), &names(&["c"]), dial(&[&c]))).await?;
    let second = soon(b.promote_fenced(FenceConfig::new(3, 2), &names(&["c"]), dial(&[&c]))).await;
    assert!(matches!(second, Err(FencedPromoteError::TooFew { .. })), "{second:?}");
    Ok(())
}

#[tokio::test]
async fn who_goes_beyond_a_promotion_that_came_about_after_all_is_refused_by_what_was_acknowledged() -> Result<(), Error>
{
    for acknowledged in [false, true] {
        let Four { stores, slaves: [a, b, c], .. } = four().await;
        soon(a.promote_fenced(FenceConfig::new(3, 2), &names(&["c"]), dial(&[&c]))).await?;
        let first = open(&stores[0]).await;
        if acknowledged {
            // On one slave; the other copy would be the old master's, which rejoins.
            following(&first, &c).await;
        }
        let config = FenceConfig::new(3, 2).anew();
        let second = soon(b.promote_fenced(config, &names(&["c"]), dial(&[&c]))).await;
        if acknowledged {
            assert!(matches!(&second, Err(FencedPromoteError::Ahead { position, .. }) if position.epoch.number == 2));
            continue;
        }
        assert_eq!(second?.promoted.first.epoch.number, 3);
        let second = open(&stores[1]).await;
        ends(following(&second, &c).await).await;
        assert_eq!(refused(&first, &c).await, RejectCode::Superseded);
        assert!(matches!(first.put("k", "v").await, Err(WriteError::Superseded { .. })));
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_of_the_slave_that_was_to_be_promoted_cannot_begin_its_epoch() -> Result<(), Error> {
    let Four { stores, slaves: [a, b, _], .. } = four().await;
    let failed = soon(a.promote_fenced(FenceConfig::new(3, 1), &names(&["b"]), dial(&[&b]))).await;
    assert!(matches!(failed, Err(FencedPromoteError::TooFew { .. })));
    let copy = store();
    backup(&again(&stores[0]), &copy, |_| {}).await?;
    assert!(matches!(promote(&copy).await, Err(PromoteError::Fenced { .. })));
    let opened = slave(&copy, "copy").await;
    assert!(opened.fenced().is_some_and(|fence| !fence.own));
    opened.shutdown().await?;
    assert!(matches!(promote(&again(&copy)).await, Err(PromoteError::Fenced { .. })));
    promote(&again(&stores[0])).await?;
    Ok(())
}

#[tokio::test]
async fn a_backup_fences_nobody_for_an_epoch_that_it_could_not_begin() -> Result<(), Error> {
    let Four { stores, slaves: [a, b, _], .. } = four().await;
    a.shutdown().await?;
    let copy = store();
    backup(&again(&stores[0]), &copy, |_| {}).await?;
    let config = FenceConfig::new(2, 1);
    let refused = soon(promote_fenced(&copy, &config, &names(&["b"]), dial(&[&b]))).await;
    assert!(matches!(refused, Err(FencedPromoteError::Promote(PromoteError::Backup))), "{refused:?}");
    assert_eq!(b.fenced(), None);
    assert_eq!(fence(&copy).await?, None);
    // Opened as a slave it is one like any other.
    slave(&copy, "copy").await.shutdown().await?;
    soon(promote_fenced(&again(&copy), &config, &names(&["b"]), dial(&[&b]))).await?;
    assert!(b.fenced().is_some());
    Ok(())
}

#[tokio::test]
async fn a_fence_that_is_lifted_while_others_are_asked_is_not_promoted_to_another_epoch() -> Result<(), Error> {
    let Four { stores, slaves: [a, b, _], .. } = four().await;
    a.shutdown().await?;
    let kept = again(&stores[0]);
    let (own, dial) = (kept.clone(), dial(&[&b]));
    // While the other one is asked, somebody takes this one's promise back.
    let connect = move |name: String| -> Connecting {
        let (own, connecting) = (own.clone(), dial(name));
        Box::pin(async move {
            lift_fence(&own).await.map_err(io::Error::other)?;
            connecting.await
        })
    };
    let failed = soon(promote_fenced(&kept, &FenceConfig::new(2, 1), &names(&["b"]), connect)).await;
    assert!(
        matches!(&failed, Err(FencedPromoteError::Promote(PromoteError::Store(StoreError::HeadMoved)))),
        "{failed:?}"
    );
    // A slave that is being promoted lifts nothing.
    let c = slave(&kept, "c").await;
    c.shutdown().await?;
    assert!(matches!(c.lift_fence().await, Err(StoreError::Closed)));
    Ok(())
}

#[tokio::test]
async fn a_fence_that_is_lifted_is_gone_and_so_is_the_right_to_begin_the_epoch() -> Result<(), Error> {
    let Four { old, stores, slaves: [a, b, _], .. } = four().await;
    let failed = soon(a.promote_fenced(FenceConfig::new(3, 1), &names(&["b"]), dial(&[&b]))).await;
    assert!(matches!(failed, Err(FencedPromoteError::TooFew { .. })));
    let kept = again(&stores[0]);
    let lifted = lift_fence(&kept).await?.ok_or("it was fenced")?;
    assert!(lifted.own);
    assert_eq!(lift_fence(&kept).await?, None);
    assert_eq!(soon(b.lift_fence()).await?.map(|fence| fence.epoch), Some(lifted.epoch));
    let a = slave(&again(&stores[0]), "a").await;
    let token = old.put("k", "v").await?;
    for slave in [&a, &b] {
        following(&old, slave).await;
        soon(slave.wait_applied(token)).await?;
    }
    let promoted = soon(a.promote()).await?;
    assert_ne!(promoted.first.epoch, lifted.epoch);
    Ok(())
}

#[tokio::test]
async fn a_fence_that_cannot_be_kept_is_not_answered() -> Result<(), Error> {
    let old = master(&store(), MasterConfig::default()).await;
    let kept = store();
    let b = slave(&kept, "b").await;
    let (_serving, ended) = following(&old, &b).await;
    let position = b.status().position.ok_or("it follows")?;
    for fault in [ApplyFault::Refuse(full()), ApplyFault::UnknownAndAbsent, ApplyFault::UnknownButApplied] {
        kept.faults().next_apply(fault.clone());
        let failed = soon(b.fence(&asks(position, 7))).await;
        assert!(matches!(failed, Err(FenceRefusal::Failed { .. })), "{fault:?}: {failed:?}");
    }
    // The last one was kept, though nobody could tell.
    assert_eq!(refusal(soon(ended).await?), RejectCode::Fenced);
    assert_eq!(refused(&old, &b).await, RejectCode::Fenced);
    assert_eq!(soon(b.fence(&asks(position, 7))).await?.position, position);
    Ok(())
}

#[tokio::test]
async fn below_a_fenced_relay_nobody_gets_more_and_all_move_over_with_it() -> Result<(), Error> {
    let Four { old, stores, slaves: [a, b, _], .. } = four().await;
    let relay = Slave::open(store(), SlaveConfig::new("relay").keep_log(KeepLog::default())).await?;
    let (_serving, _following) = following(&old, &relay).await;
    let below = slave(&store(), "below").await;
    let (here, there) = tokio::io::duplex(64 << 10);
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(there).await });
    let following_relay = follow(&below, here);
    soon(below.wait_caught_up()).await?;
    // Asked where it serves slaves.
    let dial = {
        let relay = relay.clone();
        move |_| {
            let (here, there) = tokio::io::duplex(64 << 10);
            let relay = relay.clone();
            tokio::spawn(async move { relay.serve(there).await });
            std::future::ready(Ok(here))
        }
    };
    let done = soon(a.promote_fenced(FenceConfig::new(4, 3), &names(&["relay"]), dial)).await?;
    assert_eq!(done.fenced[1].name.as_deref(), Some("relay"));
    let late = old.put("late", "v").await?;
    soon(b.wait_applied(late)).await?;
    assert_eq!(refused(&old, &relay).await, RejectCode::Fenced);
    assert!(below.status().position.is_some_and(|at| at.seq < late.seq));
    let new = open(&stores[0]).await;
    let token = new.put("new", "v").await?;
    following(&new, &relay).await;
    let (here, there) = tokio::io::duplex(64 << 10);
    let serving = relay.clone();
    tokio::spawn(async move { serving.serve(there).await });
    drop(soon(following_relay).await?);
    let _below = follow(&below, here);
    soon(below.wait_applied(token)).await?;
    assert_equal(&new, &below).await;
    assert_eq!(contents(relay.store()).await, contents(below.store()).await);
    Ok(())
}

#[cfg(feature = "tcp")]
#[tokio::test]
async fn fenced_slaves_go_through_their_addresses_until_they_find_the_new_master() -> Result<(), Error> {
    use tokio::net::TcpListener;
    let old = master(&store(), MasterConfig::default()).await;
    let (standby, other) = (store(), store());
    let a = slave(&standby, "a").await;
    let quick = SlaveConfig::new("b").reconnect(Duration::from_millis(1), Duration::from_millis(5));
    let b = Slave::open(other, quick).await?;
    let listeners = [TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?];
    let addresses = [listeners[0].local_addr()?, listeners[1].local_addr()?];
    let [first, second] = listeners;
    tokio::spawn(old.clone().serve_tcp(first));
    let (_serving, _following) = following(&old, &a).await;
    let reads = TcpListener::bind("127.0.0.1:0").await?;
    let asked = reads.local_addr()?.to_string();
    tokio::spawn(b.clone().serve_reads_tcp(reads));
    let follows = b.clone();
    tokio::spawn(async move { follows.follow_tcp(&addresses[..]).await });
    old.put("k", "v").await?;
    soon(b.wait_applied(old.status().published.seq)).await?;
    soon(a.wait_applied(old.status().published.seq)).await?;
    a.shutdown().await?;
    let kept = again(&standby);
    let config = FenceConfig::new(2, 1).by("a");
    soon(replikv_node::promote_fenced_tcp(&kept, &config, &[asked])).await?;
    kept.close().await?;
    let new = open(&standby).await;
    tokio::spawn(new.clone().serve_tcp(second));
    let token = new.put("new", "v").await?;
    // The old master is there all the time, at the first address.
    soon(b.wait_applied(token)).await?;
    assert_equal(&new, &b).await;
    assert!(old.put("k", "v").await.is_ok(), "nobody of the new epoch has met it");
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_no_slaves_is_not_fenced() -> Result<(), Error> {
    let kept = store();
    master(&kept, MasterConfig::default()).await.shutdown().await?;
    let failed = promote_fenced(&again(&kept), &FenceConfig::new(1, 1), &[], dial(&[])).await;
    assert!(matches!(failed, Err(FencedPromoteError::Promote(PromoteError::NoSlave))), "{failed:?}");
    let empty = store();
    slave(&empty, "empty").await.shutdown().await?;
    let failed = promote_fenced(&again(&empty), &FenceConfig::new(1, 1), &[], dial(&[])).await;
    assert!(matches!(failed, Err(FencedPromoteError::Promote(PromoteError::Empty))), "{failed:?}");
    assert_eq!(fence(&again(&empty)).await?, None);
    Ok(())
}
