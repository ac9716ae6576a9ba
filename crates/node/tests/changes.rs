//! Streams of changes: whole batches, in order, without a gap.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use replikv_core::{Batch, KeyRange, Position, Seq};
use replikv_memory::MemoryStore;
use replikv_node::{Change, ChangeOp, Changes, ChangesError, ChangesFrom, Master, MasterConfig, Slave, SlaveConfig};
use replikv_proto::Retention;

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn master(config: MasterConfig) -> Master<MemoryStore> {
    Master::open(MemoryStore::new(), config).await.unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it does not take that long")
}

async fn take(changes: &mut Changes, count: usize) -> Result<Vec<Change>, ChangesError> {
    soon(changes.take(count).try_collect()).await
}

fn put(key: &str, value: &str) -> ChangeOp {
    ChangeOp::Put { key: key.as_bytes().to_vec().into(), value: value.as_bytes().to_vec().into() }
}

#[tokio::test]
async fn a_change_is_a_whole_batch_with_its_note_its_time_and_its_position() -> Result<(), Error> {
    let master = master(MasterConfig::default()).await;
    let mut changes = master.changes(ChangesFrom::Now, []).await?;
    let token = master.write(Batch::new().put("a", "1").delete("b").delete_range("x".."z").note("why")).await?;
    let change = take(&mut changes, 1).await?.remove(0);
    assert_eq!((change.position().seq, change.batches()), (token.seq, 1));
    assert_eq!(&change.note()[..], b"why");
    assert!(change.time() > 1_600_000_000_000, "milliseconds since 1970");
    let expected = vec![
        put("a", "1"),
        ChangeOp::Delete { key: "b".into() },
        ChangeOp::DeleteRange(KeyRange::from_bounds("x".."z")),
    ];
    assert_eq!(change.ops().collect::<Vec<_>>(), expected);
    Ok(())
}

#[tokio::test]
async fn a_stream_goes_on_after_any_position_from_ring_and_log() -> Result<(), Error> {
    // A ring of a few records: most of it comes from the log.
    let master = master(MasterConfig::default().ring_bytes(600).chunk_bytes(500)).await;
    for n in 0..300u32 {
        master.put(n.to_be_bytes(), n.to_string()).await?;
    }
    let mut all = master.changes(ChangesFrom::Oldest, []).await?;
    assert_eq!(all.start().seq, Seq::ZERO);
    let whole = take(&mut all, 301).await?;
    assert!(whole.windows(2).all(|pair| pair[0].position().seq.next() == Some(pair[1].position().seq)), "no gap");
    for from in [0, 7, 150, 299] {
        let mut rest = master.changes(whole[from].position(), []).await?;
        let found: Vec<Position> = take(&mut rest, 300 - from).await?.iter().map(Change::position).collect();
        let expected: Vec<Position> = whole[from + 1..].iter().map(Change::position).collect();
        assert_eq!(found, expected);
        let by_number = master.changes(whole[from].position().seq, []).await?;
        assert_eq!(by_number.start(), whole[from].position());
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_that_is_not_read_misses_nothing() -> Result<(), Error> {
    let master = master(MasterConfig::default().ring_bytes(1000)).await;
    let mut changes = master.changes(ChangesFrom::Now, []).await?;
    for n in 0..2000u32 {
        master.put(n.to_be_bytes(), "").await?;
    }
    let found = take(&mut changes, 2000).await?;
    let keys: Vec<_> = found.iter().flat_map(Change::ops).collect();
    let expected = (0..2000u32).map(|n| put_bytes(n.to_be_bytes()));
    assert!(keys.into_iter().eq(expected));
    Ok(())
}

fn put_bytes(key: [u8; 4]) -> ChangeOp {
    ChangeOp::Put { key: key.to_vec().into(), value: "".into() }
}

#[tokio::test]
async fn ranges_clip_what_is_told_and_a_quiet_range_comes_on() -> Result<(), Error> {
    let master = master(MasterConfig::default()).await;
    let wanted = [KeyRange::prefix("a/"), KeyRange::prefix("c/")];
    let mut changes = master.changes(ChangesFrom::Now, wanted).await?;
    master.write(Batch::new().put("a/1", "x").put("b/1", "y").delete_range("a/5".."c/3")).await?;
    let change = take(&mut changes, 1).await?.remove(0);
    let range = |from: &str, to: &str| ChangeOp::DeleteRange(KeyRange::from_bounds(from..to));
    assert_eq!(change.ops().collect::<Vec<_>>(), vec![put("a/1", "x"), range("a/5", "a0"), range("c/", "c/3")]);
    // Nothing of these lies in the ranges; the position comes on nevertheless.
    let mut last = None;
    for n in 0..50u32 {
        last = Some(master.put(format!("b/{n}"), "").await?);
    }
    let last = last.ok_or("nothing was written")?.seq;
    soon(async {
        while let Some(change) = changes.try_next().await? {
            assert!(change.is_empty());
            if change.position().seq == last {
                return Ok::<_, Error>(());
            }
        }
        Err("the stream has ended".into())
    })
    .await
}

#[tokio::test]
async fn a_trimmed_position_is_an_error_and_never_a_gap() -> Result<(), Error> {
    let retention = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: 0 };
    let master = master(MasterConfig::default().retention(retention).ring_bytes(1000).chunk_bytes(300)).await;
    let mut slow = master.changes(ChangesFrom::Oldest, []).await?;
    let first = take(&mut slow, 1).await?.remove(0).position();
    for n in 0..2000u32 {
        master.put(n.to_be_bytes(), [0; 50]).await?;
    }
    soon(async {
        while master.status().floor.seq.as_u64() < 512 {
            master.put("more", [0; 50]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let floor = master.status().floor;
    let again = master.changes(first, []).await;
    assert!(matches!(again, Err(ChangesError::Trimmed { floor: told }) if told.seq >= floor.seq), "{again:?}");
    // What was read before the trimming is told still, without a gap; then the error, then the end.
    let mut at = first.seq;
    let error = soon(async {
        loop {
            match slow.next().await {
                Some(Ok(change)) => {
                    assert_eq!(at.next(), Some(change.position().seq));
                    at = change.position().seq;
                }
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    })
    .await;
    assert!(matches!(error, Some(ChangesError::Trimmed { .. })), "{error:?}");
    assert!(soon(slow.next()).await.is_none());
    Ok(())
}

#[tokio::test]
async fn a_position_of_another_history_is_refused() -> Result<(), Error> {
    let (one, two) = (master(MasterConfig::default()).await, master(MasterConfig::default()).await);
    let token = one.put("a", "1").await?;
    two.put("a", "1").await?;
    let position = one.status().published;
    assert!(matches!(two.changes(position, []).await, Err(ChangesError::ForeignSource)));
    assert!(matches!(two.changes(token, []).await, Err(ChangesError::ForeignSource)));
    let ahead = Position { seq: Seq::new(99), ..position };
    assert!(matches!(one.changes(ahead, []).await, Err(ChangesError::NotInHistory { .. })));
    assert!(matches!(one.changes(Seq::new(99), []).await, Err(ChangesError::NotInHistory { .. })));
    let other = Position { digest: replikv_core::Digest::from_bytes([0; 16]), ..position };
    assert!(matches!(one.changes(other, []).await, Err(ChangesError::NotInHistory { .. })));
    assert_eq!(one.changes(token, []).await?.start(), position);
    Ok(())
}

#[tokio::test]
async fn a_stream_ends_with_its_master() -> Result<(), Error> {
    let master = master(MasterConfig::default()).await;
    let mut one = master.changes(ChangesFrom::Now, []).await?;
    master.shutdown().await?;
    assert!(soon(one.next()).await.is_none());
    Ok(())
}

#[tokio::test]
async fn a_slave_tells_what_it_applies_from_now_on() -> Result<(), Error> {
    let master = master(MasterConfig::default()).await;
    master.put("before", "").await?;
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
    assert!(matches!(slave.changes(ChangesFrom::Now, []).await, Err(ChangesError::LiveOnly)), "it has no position yet");
    let (here, there) = tokio::io::duplex(1 << 16);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    soon(slave.wait_caught_up()).await?;
    assert!(matches!(slave.changes(ChangesFrom::Oldest, []).await, Err(ChangesError::LiveOnly)));
    let position = slave.status().position.ok_or("no position")?;
    let mut changes = slave.changes(position, []).await?;
    let token = master.write(Batch::new().put("a", "1").put("a", "2").note("folded or not")).await?;
    let mut ops = Vec::new();
    soon(async {
        while let Some(change) = changes.try_next().await? {
            ops.extend(change.ops());
            assert!(change.is_consistent());
            if change.position().seq == token.seq {
                break;
            }
        }
        Ok::<_, Error>(())
    })
    .await?;
    assert_eq!(ops.last(), Some(&put("a", "2")));
    slave.shutdown().await?;
    assert!(soon(changes.next()).await.is_none());
    Ok(())
}

#[tokio::test]
async fn a_consumer_slower_than_a_slave_is_told_that_it_missed_something() -> Result<(), Error> {
    let master = master(MasterConfig::default()).await;
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge").group_bytes(1)).await?;
    let (here, there) = tokio::io::duplex(1 << 16);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    soon(slave.wait_caught_up()).await?;
    let mut changes = slave.changes(ChangesFrom::Now, []).await?;
    let mut token = None;
    for n in 0..100u32 {
        token = Some(master.put(n.to_be_bytes(), "").await?);
    }
    soon(slave.wait_applied(token.ok_or("nothing was written")?)).await?;
    assert!(matches!(soon(changes.next()).await, Some(Err(ChangesError::Missed { .. }))));
    assert!(soon(changes.next()).await.is_none());
    Ok(())
}
