//! The log is compacted by key, in the background. Time is simulated.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{
    self, Error, Store, assert_equal, connect, contents, entries, followed, master, serve, slave, soon, store,
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use replikv_core::{Batch, Cursor, Keyspace, Op, Position, ReplicaStore, Seq, StoreLimits};
use replikv_node::{
    ChangesError, ChangesFrom, Codec, LogPart, Master, MasterConfig, Slave, SlaveConfig, SlaveState, read_log_parts,
};
use replikv_proto::layout::Stored;
use replikv_proto::{
    Compacted, Compaction, DecoderLimits, GoodbyeReason, Hello, Message, Mode, Record, RejectCode, Retention, Run,
    TombstoneFloor,
};
use replikv_testkit::{ApplyFault, FaultStore};
use tokio::time::sleep;
use tokio_util::codec::Framed;

const NONE: Retention = Retention { max_bytes: u64::MAX, max_age_ms: None, hold_back_bytes: u64::MAX };
const SMALL: Compaction = Compaction { window_bytes: 2_000, window_records: 10 };

fn config() -> MasterConfig {
    // Nothing is served from memory, and little at once.
    MasterConfig::default().retention(NONE).compaction(SMALL).ring_bytes(0).chunk_bytes(3_000)
}

/// Overwrites the same keys over and over.
async fn overwrite(master: &Master<Store>, writes: u32, keys: u32) {
    for n in 0..writes {
        master.put((n % keys).to_be_bytes(), [n.to_be_bytes(), [9; 4]].concat()).await.unwrap();
    }
}

/// The same, while something else goes on.
fn overwrite_beside(master: &Master<Store>, writes: u32, keys: u32) {
    let master = master.clone();
    tokio::spawn(async move { overwrite(&master, writes, keys).await });
}

// With simulated time, long enough for every step that is due.
async fn compacted() {
    sleep(Duration::from_secs(600)).await;
}

/// Full records, runs and touches of a log.
async fn parts(store: &Store) -> (usize, usize, usize) {
    let (mut full, mut runs, mut touches) = (0, 0, 0);
    for (key, value) in entries(store, Keyspace::Log).await {
        match key.len() {
            8 if Run::is_run(&value) => runs += 1,
            8 => {
                Record::decode(value).unwrap();
                full += 1;
            }
            _ => touches += 1,
        }
    }
    (full, runs, touches)
}

type Raw = Framed<tokio::io::DuplexStream, Codec>;

/// A slave by hand: says hello, and is answered.
async fn answered(master: &Master<Store>, cursor: Cursor, checkpoints: Vec<Position>) -> (Raw, Message) {
    let (here, there) = tokio::io::duplex(64 << 10);
    serve(master, there);
    let mut stream = Framed::new(here, Codec::new(DecoderLimits::default()));
    let limits = StoreLimits { max_key: 1 << 16, max_value: 1 << 30, max_batch: 1 << 30 };
    let hello = Hello {
        on_divergence: replikv_proto::OnDivergence::Refuse,
        slave: "by hand".into(),
        nonce: 1,
        cursor: Some(cursor),
        holds_data: false,
        checkpoints,
        limits,
        ranges: Vec::new(),
        path: Vec::new(),
        temporary: true,
    };
    soon(stream.send(Message::Hello(hello))).await.unwrap();
    let answer = soon(stream.next()).await.unwrap().unwrap();
    (stream, answer)
}

/// As [`answered`], and served.
async fn raw(master: &Master<Store>, cursor: Cursor, checkpoints: Vec<Position>) -> (Raw, Mode) {
    match answered(master, cursor, checkpoints).await {
        (stream, Message::Welcome(welcome)) => (stream, welcome.mode),
        (_, other) => panic!("expected a welcome, got {other:?}"),
    }
}

/// How often each key was given a value or deleted, by touches; and the numbers of the records that came in full.
async fn received(stream: &mut Raw, head: Seq) -> (BTreeMap<Bytes, usize>, Vec<u64>) {
    let (mut touched, mut records) = (BTreeMap::<Bytes, usize>::new(), Vec::new());
    loop {
        match soon(stream.next()).await.unwrap().unwrap() {
            Message::Touched(message) => {
                for op in &message.ops {
                    if let Op::Put { key, .. } | Op::Delete { key } = op {
                        *touched.entry(Bytes::copy_from_slice(key)).or_default() += 1;
                    }
                }
                if message.end.is_some_and(|end| end.seq >= head) {
                    return (touched, records);
                }
            }
            Message::Records(message) => {
                for mut part in message.parts {
                    while !part.is_empty() {
                        records.push(Record::take(&mut part).unwrap().position().seq.as_u64());
                    }
                }
                if records.last().is_some_and(|last| *last >= head.as_u64()) {
                    return (touched, records);
                }
            }
            Message::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_is_bounded_by_its_keys_after_many_overwrites() -> Result<(), Error> {
    let store = store();
    let master = master(&store, config()).await;
    let copy = followed(&master, "edge").await;
    let slave = slave(&copy, "edge").await;
    let cursor = copy.cursor(&Default::default()).await?.ok_or("no cursor")?;
    let mut written = 0;
    for _ in 0..200 {
        // Batches of a hundred, so that two hundred thousand overwrites take their time in the log and not here.
        for _ in 0..10 {
            let batch = (0..100u32).fold(Batch::new(), |batch, _| {
                written += 1;
                batch.put((written * 7 % 2_000u32).to_be_bytes(), written.to_be_bytes())
            });
            master.write(batch).await?;
        }
        sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(written, 200_000);
    compacted().await;
    let (full, runs, touches) = parts(&store).await;
    assert_eq!(touches, 2_000, "one touch of each key");
    assert!(runs <= touches && full <= 10 + 256, "{full} records, {runs} runs");
    assert_eq!(master.status().floor.seq, Seq::ZERO, "nothing was trimmed");
    assert!(master.status().retained_bytes < 600_000, "{}", master.status().retained_bytes);

    let (mut stream, mode) = raw(&master, cursor, Vec::new()).await;
    assert_eq!(mode, Mode::Resume);
    let (touched, records) = received(&mut stream, master.status().published.seq).await;
    assert!(touched.len() <= 2_000 && touched.values().all(|times| *times == 1), "at most one value of each key");
    assert!(records.len() <= 10 + 256, "and the window");

    let _connection = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_at_any_position_resumes_and_ends_equal() -> Result<(), Error> {
    let store = store();
    let master = master(&store, config()).await;
    let mut copies = Vec::new();
    for round in 0..6u32 {
        copies.push(followed(&master, &format!("edge {round}")).await);
        overwrite(&master, 170, 40).await;
        master.write(Batch::new().delete_range([0, 0, 0, 5]..[0, 0, 0, 9]).delete([0, 0, 0, 20])).await?;
        master.put([0, 0, 0, 6], [1]).await?;
        // Slots are written once a second: what a slave holds is known by then.
        sleep(Duration::from_secs(20)).await;
    }
    compacted().await;
    let end = master.status().published;
    assert!(parts(&store).await.1 > 0, "there are runs");
    for (round, copy) in copies.iter().enumerate() {
        let cursor = copy.cursor(&Default::default()).await?.ok_or("no cursor")?;
        let (_stream, mode) = raw(&master, cursor, Vec::new()).await;
        assert_eq!(mode, Mode::Resume, "slave {round}");
        let slave = slave(copy, &format!("edge {round}")).await;
        let _connection = connect(&master, &slave);
        soon(slave.wait_caught_up()).await?;
        assert_eq!(slave.status().position, Some(end));
        assert_equal(&master, &slave).await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn writes_during_a_catch_up_over_touches_are_not_lost() -> Result<(), Error> {
    let store = store();
    let master = master(&store, config()).await;
    let copy = followed(&master, "edge").await;
    overwrite(&master, 3_000, 300).await;
    compacted().await;
    // One message at a time.
    let slave = Slave::open(copy.clone(), SlaveConfig::new("edge").group_bytes(1)).await?;
    let mut held = store.faults().hold_read(Keyspace::Data);
    let _connection = connect(&master, &slave);
    for round in 0..20u32 {
        support::until(|| held.is_reached()).await;
        // In the middle of a lookup: some keys were read already, some are read after this.
        for n in 0..30 {
            let (put, delete) = ((n * 7 + round) % 300, (n * 3 + round) % 300);
            master.write(Batch::new().put(put.to_be_bytes(), round.to_be_bytes()).delete(delete.to_be_bytes())).await?;
        }
        let next = store.faults().hold_read(Keyspace::Data);
        std::mem::replace(&mut held, next).release();
    }
    copy.faults().pass_applies(1);
    let second = copy.faults().hold_apply();
    held.release();
    soon(second.reached()).await;
    let status = slave.status();
    assert_eq!((status.state, status.consistent), (SlaveState::CatchingUp, false), "newer than its position");
    second.release();
    soon(slave.wait_caught_up()).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_says_that_it_is_not_consistent_before_the_first_touches_are_there() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    let copy = followed(&master, "edge").await;
    overwrite(&master, 1_000, 60).await;
    compacted().await;
    // One message at a time.
    let slave = Slave::open(copy.clone(), SlaveConfig::new("edge").group_bytes(1)).await?;
    let mut held = copy.faults().hold_apply_visible();
    let _connection = connect(&master, &slave);
    loop {
        soon(held.reached()).await;
        let cursor = copy.cursor(&Default::default()).await?.ok_or("no cursor")?;
        assert!(cursor.is_consistent() || !slave.status().consistent, "its store has not answered yet");
        if !cursor.is_consistent() {
            break;
        }
        let next = copy.faults().hold_apply_visible();
        std::mem::replace(&mut held, next).release();
    }
    held.release();
    soon(slave.wait_caught_up()).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_hears_something_however_slow_lookups_are() -> Result<(), Error> {
    let store = store();
    let master = master(&store, config()).await;
    let copy = followed(&master, "edge").await;
    overwrite(&master, 1_000, 60).await;
    compacted().await;
    let slave = slave(&copy, "edge").await;
    // All keys take half a minute, and a slave waits eight seconds for a word.
    let slow = async {
        let mut held = store.faults().hold_read(Keyspace::Data);
        loop {
            held.reached().await;
            sleep(Duration::from_millis(500)).await;
            let next = store.faults().hold_read(Keyspace::Data);
            std::mem::replace(&mut held, next).release();
        }
    };
    let (serving, _following) = connect(&master, &slave);
    tokio::select! {
        () = slow => {}
        caught_up = soon(slave.wait_caught_up()) => caught_up?,
    }
    assert!(!serving.is_finished(), "it is its first connection");
    store.faults().clear();
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_fails_ends_the_session_and_deletes_nothing() -> Result<(), Error> {
    let store = store();
    let master = master(&store, config()).await;
    overwrite(&master, 100, 100).await;
    let copy = followed(&master, "edge").await;
    overwrite(&master, 1_000, 100).await;
    compacted().await;
    let slave = slave(&copy, "edge").await;
    // Some lookups work, then one fails.
    store.faults().fail_reads(Keyspace::Data, 1, &support::transient());
    let (serving, following) = connect(&master, &slave);
    assert!(soon(serving).await?.is_err(), "the session ends");
    drop(soon(following).await?);
    assert_eq!(contents(&copy).await.len(), 100, "a failed lookup is no delete");
    let _connection = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_slave_below_the_tombstone_floor_compares() -> Result<(), Error> {
    let store = store();
    let retention = Retention { max_age_ms: Some(3_600_000), ..NONE };
    let master = master(&store, config().retention(retention)).await;
    overwrite(&master, 300, 100).await;
    let away = followed(&master, "away").await;
    // What it would never hear of again.
    master.write(Batch::new().delete([0, 0, 0, 1]).delete_range([0, 0, 0, 50]..[0, 0, 0, 60])).await?;
    overwrite(&master, 600, 40).await;
    compacted().await;
    assert!(master.forget(replikv_proto::SlotKind::Slave, "away"), "nothing is kept for it");
    sleep(Duration::from_secs(2 * 3_600)).await;
    overwrite(&master, 600, 40).await;
    compacted().await;
    let raised = store.get(Keyspace::Meta, TombstoneFloor::KEY).await?.ok_or("the tombstone floor was never raised")?;
    let raised = TombstoneFloor::from_bytes(&raised)?.0.position;
    let cursor = away.cursor(&Default::default()).await?.ok_or("no cursor")?;
    assert!(raised.seq > cursor.position.seq && master.status().floor.seq >= raised.seq);
    let slave = slave(&away, "away").await;
    let _connection = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_eq!(slave.status().comparisons, 1);
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_run_does_not_stand_for_what_another_master_on_the_store_has_trimmed_before_it() -> Result<(), Error> {
    let store = store();
    let only_full = |retention| MasterConfig::default().retention(retention).ring_bytes(0).chunk_bytes(3_000);
    let stays = master(&store, only_full(NONE)).await;
    let away = followed(&stays, "away").await;
    // Slots are written once a second: where it stands is known by then.
    sleep(Duration::from_secs(20)).await;
    // What only records tell of that are trimmed.
    overwrite(&stays, 300, 100).await;
    overwrite(&stays, 300, 10).await;
    let published = stays.status().published;
    let trims = master(&store, only_full(Retention { max_bytes: 20_000, hold_back_bytes: 0, ..NONE })).await;
    sleep(Duration::from_secs(20)).await;
    assert!(trims.status().floor.seq >= Seq::new(256), "{:?}", trims.status().floor);
    let compacts = master(&store, config()).await;
    compacted().await;
    assert_eq!(compacts.status().floor, trims.status().floor);
    assert!(parts(&store).await.1 > 0, "nothing was compacted");
    let status = stays.status();
    assert_eq!((status.floor.seq, status.published), (Seq::ZERO, published), "it knows nothing of that");

    let cursor = away.cursor(&Default::default()).await?.ok_or("no cursor")?;
    let (mut stream, mode) = raw(&stays, cursor, Vec::new()).await;
    assert_eq!(mode, Mode::Resume);
    let told = soon(stream.next()).await.ok_or("nothing was told")??;
    assert!(matches!(&told, Message::Goodbye(goodbye) if goodbye.reason == GoodbyeReason::Trimmed), "{told:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_record_behind_what_is_just_compacted_is_not_taken_for_a_damaged_one() -> Result<(), Error> {
    let store = store();
    let master = master(&store, config()).await;
    let cursor = Cursor::at(master.status().published);
    // A step is in the store, and nobody has been told.
    let mut held = store.faults().hold_apply_visible();
    overwrite_beside(&master, 600, 40);
    let boundary = loop {
        soon(held.reached()).await;
        if let Some(bytes) = store.get(Keyspace::Meta, Compacted::KEY).await? {
            break Compacted::from_bytes(&bytes)?.position;
        }
        let next = store.faults().hold_apply_visible();
        std::mem::replace(&mut held, next).release();
    };
    let next = boundary.seq.next().ok_or("the last number")?;
    let record = store.get(Keyspace::Log, &next.to_key()).await?.ok_or("nothing is behind it")?;
    let parted = Position { digest: boundary.digest, ..Record::decode(record)?.position() };
    let (_stream, answer) = answered(&master, Cursor { position: parted, ..cursor }, Vec::new()).await;
    assert!(matches!(&answer, Message::Reject(refusal) if refusal.code == RejectCode::Diverged), "{answer:?}");
    held.release();
    compacted().await;
    assert_eq!(master.status().floor.seq, Seq::ZERO, "the log was cut");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_altered_is_never_served() -> Result<(), Error> {
    let store = store();
    let first = master(&store, config()).await;
    let copy = followed(&first, "edge").await;
    overwrite(&first, 2_000, 100).await;
    compacted().await;
    first.shutdown().await?;
    // A touch of the newest run turns into one of another key.
    let inner = store.inner().open_again();
    let (key, value) =
        entries(&inner, Keyspace::Log).await.into_iter().rfind(|(key, _)| key.len() == 24).ok_or("no touch")?;
    let mut altered = value.to_vec();
    *altered.last_mut().ok_or("an empty touch")? ^= 1;
    support::put_raw(&inner, Keyspace::Log, &key, &altered).await?;
    let store = FaultStore::new(inner);
    let master = master(&store, config()).await;
    let slave = slave(&copy, "edge").await;
    let damaged = Seq::from_key(&key[..8]).ok_or("no number")?;
    for _ in 0..3 {
        let (serving, following) = connect(&master, &slave);
        let caught_up = tokio::time::timeout(Duration::from_secs(30), slave.wait_caught_up()).await;
        following.abort();
        drop(soon(serving).await);
        if caught_up.is_ok() {
            break;
        }
    }
    assert!(master.status().floor.seq >= damaged, "the log begins after it");
    assert_equal(&master, &slave).await;
    compacted().await;
    let (_, runs, touches) = parts(&store).await;
    assert_eq!((runs, touches), (0, 0), "what is of no use goes");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_while_a_step_is_prepared_is_not_taken_for_damage() -> Result<(), Error> {
    let store = store();
    let compaction = Compaction { window_records: 700, ..SMALL };
    let first = master(&store, config().compaction(compaction)).await;
    let copy = followed(&first, "edge").await;
    overwrite(&first, 1_200, 100).await;
    compacted().await;
    first.shutdown().await?;
    // A record above what is compacted, and below a checkpoint.
    let inner = store.inner().open_again();
    let damaged = Seq::new(1_000).to_key();
    let mut altered = inner.get(Keyspace::Log, &damaged).await?.ok_or("no such record")?.to_vec();
    *altered.last_mut().ok_or("an empty record")? ^= 1;
    support::put_raw(&inner, Keyspace::Log, &damaged, &altered).await?;
    let store = FaultStore::new(inner);
    let master = master(&store, config().compaction(compaction)).await;
    compacted().await;
    // One record more than the window, while the task that compacts is held up: its next step is due.
    let before = store.faults().hold_read(Keyspace::Log);
    before.reached().await;
    overwrite(&master, 1, 100).await;
    let held = store.faults().hold_read(Keyspace::Log);
    before.release();
    held.reached().await;
    assert_eq!(master.status().floor.seq, Seq::ZERO, "nobody has met the damage");
    // It has looked where the log begins, and at its oldest run; a slave finds the damage meanwhile.
    overwrite(&master, 600, 100).await;
    let slave = slave(&copy, "edge").await;
    let _connection = connect(&master, &slave);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(master.status().floor.seq, Seq::new(1_024), "the log is cut at the next checkpoint");
    held.release();
    compacted().await;
    assert_eq!(master.status().floor.seq, Seq::new(1_024), "and not any further");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_steps_leaves_a_log_that_serves() -> Result<(), Error> {
    for steps in 0..8 {
        let store = store();
        let first = master(&store, config()).await;
        let copy = followed(&first, "edge").await;
        overwrite(&first, 3_000, 60).await;
        // The store breaks at a step, which is there afterwards or not, and is opened again.
        store.faults().apply_after(
            steps,
            if steps % 2 == 0 { ApplyFault::UnknownAndAbsent } else { ApplyFault::UnknownButApplied },
        );
        compacted().await;
        drop(first);
        sleep(Duration::from_secs(1)).await;
        let store = FaultStore::new(store.inner().open_again());
        let master = master(&store, config()).await;
        let slave = slave(&copy, "edge").await;
        let _connection = connect(&master, &slave);
        soon(slave.wait_caught_up()).await?;
        assert_equal(&master, &slave).await;
        compacted().await;
        assert_eq!(parts(&store).await.2, 60, "after {steps} steps");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_changes_never_skips_what_is_compacted() -> Result<(), Error> {
    let store = store();
    let master = master(&store, config()).await;
    overwrite(&master, 500, 50).await;
    let stood = master.status().published;
    let consumer = master.consumer("index", ChangesFrom::Oldest).await?;
    overwrite(&master, 2_000, 50).await;
    compacted().await;
    let held = consumer.position().ok_or("no position")?.seq;
    let mut changes = consumer.changes([]).await?;
    let first = soon(changes.try_next()).await?.ok_or("a change")?;
    assert_eq!(Some(first.position().seq), held.next(), "a consumer holds compaction back");
    drop(changes);
    consumer.forget();
    compacted().await;
    let floor = match master.changes(stood, []).await {
        Err(ChangesError::Trimmed { floor }) => floor,
        other => panic!("{other:?}"),
    };
    assert!(floor.seq > stood.seq);
    let mut changes = master.changes(ChangesFrom::Oldest, []).await?;
    assert_eq!(changes.start(), floor);
    assert_eq!(Some(soon(changes.try_next()).await?.ok_or("a change")?.position().seq), floor.seq.next());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_was_compacted_is_served_and_goes_although_it_is_no_longer_wanted() -> Result<(), Error> {
    let store = store();
    let first = master(&store, config()).await;
    let copy = followed(&first, "edge").await;
    overwrite(&first, 2_000, 100).await;
    compacted().await;
    first.shutdown().await?;
    let store = FaultStore::new(store.inner().open_again());
    let plain = MasterConfig::default().retention(Retention { max_bytes: 10_000, ..NONE }).ring_bytes(0);
    let master = master(&store, plain).await;
    let slave = slave(&copy, "edge").await;
    let (serving, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&master, &slave).await;
    following.abort();
    drop(soon(serving).await);
    overwrite(&master, 2_000, 100).await;
    sleep(Duration::from_secs(3_600)).await;
    master.forget(replikv_proto::SlotKind::Slave, "edge");
    compacted().await;
    assert_eq!(parts(&store).await.2, 0);
    let touches = entries(&store, Keyspace::Meta).await.into_iter().filter(|(key, _)| key.starts_with(b"touch/"));
    assert_eq!(touches.count(), 0, "the index goes with the touches");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_backup_leaves_out_what_is_compacted_and_goes_on_as_a_slave() -> Result<(), Error> {
    let master = master(&store(), config()).await;
    overwrite(&master, 400, 20).await;
    compacted().await;
    overwrite(&master, 7, 20).await;
    let copy = store();
    let backed_up = master.backup(&copy, |_| ()).await?;
    assert_eq!(backed_up.position, Some(master.status().published));
    let (full, runs, touches) = parts(&copy).await;
    assert!(full >= 7 && runs == 0 && touches == 0, "{full} records, {runs} runs, {touches} touches");

    // Its position is still among the full records.
    let again = FaultStore::new(copy.inner().open_again());
    let edge = Slave::open(again, SlaveConfig::new("edge").from_backup()).await?;
    connect(&master, &edge);
    overwrite(&master, 300, 20).await;
    soon(edge.wait_applied(master.status().published.seq)).await?;
    assert_equal(&master, &edge).await;
    assert_eq!(edge.status().comparisons, 0, "it resumes");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_backup_of_a_compacted_master_is_a_master_in_a_new_epoch() -> Result<(), Error> {
    let first = master(&store(), config()).await;
    overwrite(&first, 400, 20).await;
    compacted().await;
    let copy = store();
    first.backup(&copy, |_| ()).await?;
    let second = master(&FaultStore::new(copy.inner().open_again()), config().new_epoch()).await;
    overwrite(&second, 400, 30).await;
    compacted().await;
    assert!(parts(second.store()).await.1 > 0, "it is compacted as any other");
    let edge = slave(&store(), "edge").await;
    connect(&second, &edge);
    soon(edge.wait_applied(second.status().published.seq)).await?;
    soon(edge.wait_caught_up()).await?;
    assert_equal(&second, &edge).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_longer_than_a_page_is_read_whole() -> Result<(), Error> {
    let store = store();
    let master = master(&store, config()).await;
    let copy = followed(&master, "edge").await;
    let batch = (0..9_000u32).fold(Batch::new(), |batch, n| batch.put(n.to_be_bytes(), [3; 100]));
    master.write(batch).await?;
    overwrite(&master, 100, 10).await;
    compacted().await;
    let parts = read_log_parts(&store, Seq::ZERO, usize::MAX).await?;
    let touched = parts.iter().map(|part| match part {
        LogPart::Compacted { touched, .. } => touched.len(),
        _ => 0,
    });
    assert_eq!(touched.sum::<usize>(), 9_000);
    let numbers: Vec<_> = parts.iter().map(|part| part.end().seq).collect();
    assert!(numbers.is_sorted() && numbers.last() == Some(&master.status().published.seq));
    let slave = slave(&copy, "edge").await;
    let _connection = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}
