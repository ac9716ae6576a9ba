//! Masters and slaves in programs without async.

use std::net::SocketAddr;
use std::time::Duration;

use replikv_core::{Batch, KeyRange, ScanOptions};
use replikv_memory::MemoryStore;
use replikv_node::{
    BlockingError, BlockingMaster, BlockingSlave, ChangesFrom, Ending, FollowError, HealthState, KeepLog, Master,
    MasterConfig, Slave, SlaveConfig, VerifyError, VerifyOptions, WaitError, WriteError,
};
use replikv_proto::RejectCode;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Turns a hang into a failure.
const LONG: Duration = Duration::from_secs(60);

fn master(store: &MemoryStore) -> Result<BlockingMaster<MemoryStore>> {
    Ok(BlockingMaster::open(store.open_again(), MasterConfig::default())?)
}

fn slave(store: &MemoryStore) -> Result<BlockingSlave<MemoryStore>> {
    let config = SlaveConfig::new("edge").reconnect(Duration::from_millis(10), Duration::from_millis(50));
    Ok(BlockingSlave::open(store.open_again(), config)?)
}

#[test]
fn what_an_async_program_can_do_can_be_done_without() -> Result {
    let (here, there) = (MemoryStore::new(), MemoryStore::new());
    let (master, slave) = (master(&here)?, slave(&there)?);
    let serving = master.serve_tcp("127.0.0.1:0")?;
    let mut following = slave.follow_tcp(serving.local_addr())?;
    let before = master.put("a", "1")?;
    master.write(Batch::new().put("b", "2").put("c", "3"))?;
    master.delete("b")?;
    let token = master.transact(|view, batch| {
        let count: u32 = view.get("a")?.and_then(|value| String::from_utf8_lossy(&value).parse().ok()).unwrap_or(0);
        Ok(batch.put("a", (count + 41).to_string()))
    })?;
    slave.wait_applied(token, LONG)?;
    slave.wait_caught_up(LONG)?;
    assert_eq!(slave.get("a")?.as_deref(), Some(&b"42"[..]));
    assert_eq!(slave.get("b")?, None);
    assert_eq!(slave.scan(KeyRange::all(), ScanOptions::default())?.len(), 2);
    assert_eq!((slave.status().health.state, master.status().slaves.len()), (HealthState::Ready, 1));
    let changes: std::result::Result<Vec<_>, _> = master.changes(before, [])?.take(3).collect();
    assert_eq!(changes?.last().map(|change| change.position().seq), Some(token.seq));
    let copied = master.write_replicated(Batch::new().put("d", ""), 1, LONG)?;
    assert!(slave.status().durable >= copied.seq);
    let verified = slave.verify(VerifyOptions::default())?;
    assert_eq!((verified.is_equal(), verified.entries), (true, 3));
    assert!(following.result()?.is_none(), "it goes on");
    assert!(matches!(following.stop()?, Ok(Ending::Shutdown)));
    let refused = slave.verify(VerifyOptions::default());
    assert!(matches!(refused, Err(BlockingError::Verify(VerifyError::NotConnected))), "{refused:?}");
    slave.shutdown()?;
    master.shutdown()?;
    serving.stop()?;
    assert!(matches!(master.put("e", ""), Err(BlockingError::Write(WriteError::Closed))));
    Ok(())
}

#[test]
fn a_slave_without_async_has_slaves_of_its_own() -> Result {
    let master = master(&MemoryStore::new())?;
    let quick = |name: &str| SlaveConfig::new(name).reconnect(Duration::from_millis(10), Duration::from_millis(50));
    let relay = BlockingSlave::open(MemoryStore::new(), quick("relay").keep_log(KeepLog::default()))?;
    let leaf = BlockingSlave::open(MemoryStore::new(), quick("leaf"))?;
    let serving = master.serve_tcp("127.0.0.1:0")?;
    let _up = relay.follow_tcp(serving.local_addr())?;
    let relaying = relay.serve_tcp("127.0.0.1:0")?;
    let _down = leaf.follow_tcp(relaying.local_addr())?;
    let token = master.put("a", "1")?;
    leaf.wait_applied(token, LONG)?;
    assert_eq!(leaf.get("a")?.as_deref(), Some(&b"1"[..]));
    assert_eq!(leaf.status().path, ["relay", "leaf"]);
    leaf.shutdown()?;
    relay.shutdown()?;
    relaying.stop()?;
    master.shutdown()?;
    Ok(())
}

#[test]
fn a_store_can_be_opened_again_after_its_handle_was_shut_down() -> Result {
    let store = MemoryStore::new();
    let token = {
        let master = master(&store)?;
        let token = master.put("a", "1")?;
        master.shutdown()?;
        token
    };
    let master = master(&store)?;
    assert_eq!(master.get("a")?.as_deref(), Some(&b"1"[..]));
    master.wait_applied(token, LONG)?;
    let refused = BlockingSlave::open(store.open_again(), SlaveConfig::new("edge"));
    assert!(matches!(refused, Err(BlockingError::Open(_))));
    Ok(())
}

#[test]
fn entries_come_page_by_page_in_either_direction() -> Result {
    let master = master(&MemoryStore::new())?;
    let mut batch = Batch::new();
    for n in 0..1000u32 {
        batch = batch.put(n.to_be_bytes(), n.to_le_bytes());
    }
    master.write(batch)?;
    let pages_of_seven = ScanOptions::default().max_entries(7);
    let keys = |options| -> Result<Vec<u32>> {
        let range = KeyRange::from_bounds(10u32.to_be_bytes()..900u32.to_be_bytes());
        master.entries(range, options).map(|entry| Ok(u32::from_be_bytes(entry?.0[..].try_into()?))).collect()
    };
    assert_eq!(keys(pages_of_seven)?, (10..900).collect::<Vec<_>>());
    assert_eq!(keys(pages_of_seven.reversed())?, (10..900).rev().collect::<Vec<_>>());
    let mut entries = master.entries(KeyRange::all(), pages_of_seven);
    entries.next().ok_or("there is one")??;
    master.shutdown()?;
    assert!(matches!(entries.by_ref().find(std::result::Result::is_err), Some(Err(BlockingError::Store(_)))));
    assert!(entries.next().is_none(), "an error is the end");
    Ok(())
}

#[test]
fn changes_wait_for_what_comes_and_end_with_their_node() -> Result {
    let master = master(&MemoryStore::new())?;
    let mut changes = master.changes(ChangesFrom::Now, [KeyRange::prefix("a/")])?;
    assert!(matches!(changes.next_within(Duration::from_millis(1)), Err(BlockingError::TimedOut)));
    let token = master.put("a/1", "")?;
    let change = changes.next_within(LONG)?.ok_or("the stream has ended")?;
    assert_eq!((change.position().seq, changes.start().seq.next()), (token.seq, Some(token.seq)));
    let writer = std::thread::spawn({
        let master = master.clone();
        move || master.put("a/2", "").and_then(|_| master.shutdown())
    });
    assert!(changes.next().ok_or("the stream has ended")?.is_ok(), "it waits");
    assert!(changes.next().is_none());
    assert!(changes.next().is_none(), "and stays at its end");
    assert!(changes.next_within(LONG)?.is_none());
    writer.join().map_err(|_| "the writer panicked")??;
    Ok(())
}

#[test]
fn an_iterator_outlives_the_handle_that_it_came_from() -> Result {
    let handle = master(&MemoryStore::new())?;
    let token = handle.put("a", "1")?;
    let mut changes = handle.changes(ChangesFrom::Oldest, [])?;
    drop(handle);
    // The node is gone, its log is still told, and then it ends.
    let told: std::result::Result<Vec<_>, _> = changes.by_ref().collect();
    assert_eq!(told?.last().map(|change| change.position().seq), Some(token.seq));
    Ok(())
}

#[test]
fn waiting_is_given_up_in_time() -> Result {
    let (master, slave) = (master(&MemoryStore::new())?, slave(&MemoryStore::new())?);
    let soon = Duration::from_millis(1);
    let token = master.put("a", "1")?;
    let error = slave.wait_applied(token, soon).expect_err("nobody brings it");
    assert!(matches!(error, BlockingError::TimedOut) && error.is_retryable());
    assert!(matches!(slave.wait_caught_up(soon), Err(BlockingError::TimedOut)));
    let lonely = master.write_replicated(Batch::new().put("b", "1"), 1, soon);
    assert!(
        matches!(lonely, Err(BlockingError::Write(WriteError::NotReplicated { acked: 0, wanted: 1, .. }))),
        "{lonely:?}"
    );
    assert!(master.get("b")?.is_some(), "it is committed, and stays");
    let closing = std::thread::spawn({
        let slave = slave.clone();
        move || slave.wait_applied(token, LONG)
    });
    slave.shutdown()?;
    let ended = closing.join().map_err(|_| "the waiter panicked")?;
    assert!(matches!(ended, Err(BlockingError::Wait(WaitError::Closed))));
    Ok(())
}

#[test]
fn the_guard_of_a_slave_tells_how_following_ended() -> Result {
    let store = MemoryStore::new();
    let (one, two) = (master(&MemoryStore::new())?, master(&MemoryStore::new())?);
    let slave = slave(&store)?;
    let serving = one.serve_tcp("127.0.0.1:0")?;
    let mut following = slave.follow_tcp(serving.local_addr())?;
    slave.wait_caught_up(LONG)?;
    assert!(matches!(following.wait(Duration::from_millis(1)), Err(BlockingError::TimedOut)));
    // Dropped means stopped: the next one does not meet it.
    for _ in 0..20 {
        drop(following);
        following = slave.follow_tcp(serving.local_addr())?;
        assert!(matches!(following.wait(Duration::from_millis(5)), Err(BlockingError::TimedOut)));
    }
    drop(following);
    let serving = two.serve_tcp("127.0.0.1:0")?;
    let mut following = slave.follow_tcp(serving.local_addr())?;
    for _ in 0..2 {
        match following.wait(LONG)? {
            Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, RejectCode::ForeignSource),
            other => panic!("it should be refused: {other:?}"),
        }
    }
    assert!(matches!(following.result()?, Some(Err(FollowError::Refused(_)))));
    assert!(matches!(following.stop()?, Err(FollowError::Refused(_))));
    Ok(())
}

#[test]
fn a_stopped_listener_gives_its_address_back() -> Result {
    let master = master(&MemoryStore::new())?;
    let serving = master.serve_tcp("127.0.0.1:0")?;
    let address = serving.local_addr();
    assert!(matches!(master.serve_tcp(address), Err(BlockingError::Listen(_))), "it is taken");
    let slave = slave(&MemoryStore::new())?;
    let _following = slave.follow_tcp(address)?;
    slave.wait_applied(master.put("a", "1")?, LONG)?;
    serving.stop()?;
    let again = master.serve_tcp(address)?;
    slave.wait_applied(master.put("a", "2")?, LONG)?;
    drop(again);
    Ok(())
}

// Everything that would block, on a thread where it must not.
fn is_refused(master: &BlockingMaster<MemoryStore>, slave: &BlockingSlave<MemoryStore>) {
    #[allow(clippy::needless_pass_by_value, reason = "it is called with temporaries")]
    fn inside<T: std::fmt::Debug>(result: std::result::Result<T, BlockingError>) {
        assert!(matches!(result, Err(BlockingError::InsideRuntime)), "{result:?}");
    }
    inside(master.put("inside", "1"));
    inside(master.delete("a"));
    inside(master.transact(|_, batch| Ok(batch.put("inside", "1"))));
    inside(master.write_replicated(Batch::new().put("inside", "1"), 0, LONG));
    inside(master.get("a"));
    inside(master.scan(KeyRange::all(), ScanOptions::default()));
    master.entries(KeyRange::all(), ScanOptions::default()).for_each(inside);
    inside(master.changes(ChangesFrom::Now, []));
    inside(slave.wait_caught_up(LONG));
    inside(slave.wait_applied(replikv_core::Seq::new(1), LONG));
    inside(slave.shutdown());
    inside(master.shutdown());
    inside(BlockingMaster::open(MemoryStore::new(), MasterConfig::default()));
    inside(BlockingSlave::open(MemoryStore::new(), SlaveConfig::new("edge")));
}

#[test]
fn inside_a_runtime_nothing_blocks_and_nothing_happens() -> Result {
    let (master, slave) = (master(&MemoryStore::new())?, slave(&MemoryStore::new())?);
    let (writer, kept) = (master.clone(), slave.clone());
    let runtime = tokio::runtime::Runtime::new()?;
    let before = master.status().handed;
    runtime.block_on(async move {
        is_refused(&master, &slave);
        tokio::task::spawn_blocking(move || is_refused(&master, &slave)).await
    })?;
    assert_eq!(writer.status().handed, before);
    writer.put("outside", "1")?;
    assert!(kept.get("a")?.is_none(), "it was not shut down either");
    Ok(())
}

#[test]
fn the_last_handle_may_be_dropped_inside_a_runtime() -> Result {
    let store = MemoryStore::new();
    let master = master(&store)?;
    let slave = slave(&MemoryStore::new())?;
    let serving = master.serve_tcp("127.0.0.1:0")?;
    let following = slave.follow_tcp(serving.local_addr())?;
    slave.wait_applied(master.put("a", "1")?, LONG)?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(async move {
        assert!(matches!(following.stop(), Err(BlockingError::InsideRuntime)));
        drop((serving, slave, master));
    });
    let again = BlockingMaster::open(store.open_again(), MasterConfig::default())?;
    assert_eq!(again.get("a")?.as_deref(), Some(&b"1"[..]));
    Ok(())
}

#[test]
fn a_lent_runtime_serves_until_it_is_shut_down_and_then_calls_fail() -> Result {
    let runtime = tokio::runtime::Runtime::new()?;
    let (master, slave) = runtime.block_on(async {
        let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
        let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
        Ok::<_, replikv_node::OpenError>((master.blocking(), slave.blocking()))
    })?;
    let serving = master.serve_tcp("127.0.0.1:0")?;
    let following = slave.follow_tcp(serving.local_addr())?;
    let token = master.put("a", "1")?;
    slave.wait_applied(token, LONG)?;
    runtime.shutdown_timeout(LONG);
    assert!(matches!(master.put("b", ""), Err(BlockingError::Write(WriteError::Closed))));
    let replicated = master.write_replicated(Batch::new().put("b", ""), 1, LONG);
    assert!(matches!(replicated, Err(BlockingError::Write(WriteError::Closed))), "{replicated:?}");
    assert!(matches!(
        slave.wait_applied(token.seq.next().ok_or("no more")?, Duration::from_millis(1)),
        Err(BlockingError::TimedOut)
    ));
    assert!(matches!(following.stop(), Err(BlockingError::Gone { .. })));
    assert!(matches!(serving.stop(), Err(BlockingError::Gone { .. })));
    Ok(())
}

#[test]
fn a_slave_opened_outside_of_a_runtime_reads_and_says_what_following_needs() -> Result {
    let store = MemoryStore::new();
    // Memory needs no runtime, and so opening does not either.
    let slave = futures_executor::block_on(Slave::open(store, SlaveConfig::new("edge")))?.blocking();
    assert_eq!(slave.get("a")?, None);
    let address: SocketAddr = "127.0.0.1:1".parse()?;
    assert!(matches!(slave.follow_tcp(address), Err(BlockingError::NoRuntime)));
    Ok(())
}

#[test]
fn a_transaction_that_calls_back_is_told_and_does_not_hang() -> Result {
    let master = master(&MemoryStore::new())?;
    let within = master.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    master.transact(move |_, batch| {
        drop(sender.send(within.get("a").map(drop)));
        Ok(batch.put("a", "1"))
    })?;
    assert!(matches!(receiver.recv()?, Err(BlockingError::InsideRuntime)));
    Ok(())
}
