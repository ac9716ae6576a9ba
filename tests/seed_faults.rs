//! Faults of the system that this one replaces, each of which was reproduced there: they stay dead.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::wire::Wire;
use crate::support::{Error, Store, assert_equal, batch, contents, open, print_seed, seed, soon};
use fastrand::Rng;
use replikv::proto::layout::{Head, Stored};
use replikv::proto::{Applier, Committer, CommitterConfig, Intent, Now, Step, Work};
use replikv::{
    Batch, Durability, Ending, FollowError, HealthState, KeyRange, Keyspace, LinkId, Master, MasterConfig, MemoryStore,
    OpenError, RejectCode, ReplicaStore, Retention, ScanOptions, Seq, ServeError, Slave, SlaveConfig, SlaveState,
    StoreError, WriteSet, read_log,
};
use replikv_testkit::FaultStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const DAY: u64 = 24 * 3600 * 1000;

type Following = JoinHandle<Result<Ending, FollowError>>;

fn rng(test: &str) -> Rng {
    let seed = seed();
    print_seed(&format!("--test integration seed_faults::{test}"), seed);
    Rng::with_seed(seed)
}

fn memory() -> Store {
    Arc::new(MemoryStore::new())
}

async fn master(store: Store, config: MasterConfig) -> Result<Master<Store>, OpenError> {
    Master::open(store, config).await
}

async fn slave(store: Store) -> Result<Slave<Store>, OpenError> {
    Slave::open(store, SlaveConfig::new("edge")).await
}

fn pair<A: ReplicaStore, B: ReplicaStore>(master: &Master<A>, slave: &Slave<B>) -> Following {
    let (here, there) = tokio::io::duplex(64 << 10);
    serve(master, there);
    follow(slave, Wire::new(here))
}

fn serve<S: ReplicaStore>(master: &Master<S>, stream: DuplexStream) -> JoinHandle<Result<Ending, ServeError>> {
    let master = master.clone();
    tokio::spawn(async move { master.serve(stream).await })
}

fn follow<S: ReplicaStore>(slave: &Slave<S>, stream: Wire) -> Following {
    let slave = slave.clone();
    tokio::spawn(async move { slave.follow(stream).await })
}

async fn stop(following: Following) {
    following.abort();
    drop(following.await);
}

async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

// Commits one batch at each of these wall-clock times, as a master does whose clock says so.
async fn write_at(store: &Store, times: &[u64]) -> Result<(), Error> {
    let head = store.get(Keyspace::Meta, Head::KEY).await?.ok_or("a master's store")?;
    let head = Head::from_bytes(&head)?;
    let limits = replikv::StoreLimits { max_key: 64, max_value: 64, max_batch: 4096 };
    let mut committer = Committer::new(CommitterConfig { epoch: head.position.epoch, group_bytes: 1, limits }, head);
    for unix_ms in times {
        let key = committer.head().position.seq.as_u64().to_be_bytes();
        committer.push(Intent { ticket: (), work: Work::Batch(Batch::new().put(key, unix_ms.to_string())) });
        let now = Now { monotonic: Duration::ZERO, unix_ms: *unix_ms };
        let Step::Commit(group) = committer.step(now, 0) else { return Err("a group".into()) };
        store.apply(group.writes.clone(), Durability::Synced).await?;
        committer.committed(&group);
    }
    Ok(())
}

// A slave follows after each part of the times, and in the end holds everything.
async fn sent_at(parts: &[Vec<u64>]) -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let copy = open("lmdb", &dir.path().join("slave"));
    let slave = slave(copy).await?;
    let mut written = 0;
    for part in parts {
        let store = open("lmdb", &dir.path().join("master"));
        // Opened once, so that it is a master's.
        let opened = master(store, MasterConfig::default()).await?;
        opened.shutdown().await?;
        let store = open("lmdb", &dir.path().join("master"));
        write_at(&store, part).await?;
        written += part.len();
        let master = master(store, MasterConfig::default()).await?;
        let following = pair(&master, &slave);
        soon(slave.wait_applied(master.status().published.seq)).await?;
        assert_equal(master.store(), slave.store()).await;
        assert_eq!(contents(slave.store()).await.len(), written);
        stop(following).await;
        let seqs: Vec<_> = read_log(master.store(), Seq::ZERO, usize::MAX).await?;
        assert!(seqs.iter().zip(1..).all(|(record, seq)| record.header().seq == Seq::new(seq)));
        master.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_clock_set_back_loses_no_change() -> Result<(), Error> {
    let now = 1_700_000_000_000;
    sent_at(&[vec![now, now + 1], vec![now - DAY, now - DAY + 1, 0], vec![u64::MAX, now], vec![now - 400 * DAY]]).await
}

#[tokio::test]
async fn two_writes_in_one_tick_are_both_sent() -> Result<(), Error> {
    let now = 1_700_000_000_000;
    sent_at(&[vec![now; 3], vec![now; 1000], vec![now; 1]]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_order_is_commit_order() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let master = master(open("lmdb", &dir.path().join("master")), MasterConfig::default()).await?;
    let slave = slave(open("lmdb", &dir.path().join("slave"))).await?;
    let writers: Vec<_> = (0..8u8)
        .map(|writer| {
            let master = master.clone();
            tokio::spawn(async move {
                let mut tokens = Vec::new();
                for n in 0..60u8 {
                    // All of them write the same few keys.
                    tokens
                        .push(master.write(Batch::new().put([n % 5], [writer, n]).put([writer, n], "")).await.unwrap());
                }
                tokens
            })
        })
        .collect();
    // Meanwhile a slave comes and goes.
    while writers.iter().any(|writer| !writer.is_finished()) {
        let following = pair(&master, &slave);
        soon(slave.wait_applied(master.status().published.seq)).await?;
        stop(following).await;
    }
    let mut seen = Vec::new();
    for writer in writers {
        let tokens = soon(writer).await?;
        assert!(tokens.windows(2).all(|pair| pair[0].seq < pair[1].seq), "a writer's own order");
        seen.extend(tokens.into_iter().map(|token| token.seq.as_u64()));
    }
    seen.sort_unstable();
    assert_eq!(seen, (2..=481).collect::<Vec<_>>(), "one number for each write, and no gap");
    // The log, played from its beginning, comes to what the store holds.
    let played = MemoryStore::new();
    for record in read_log(master.store(), Seq::ZERO, usize::MAX).await? {
        let mut writes = WriteSet::builder();
        writes.append(Keyspace::Data, record.body().clone());
        played.apply(writes.build(), Durability::Buffered).await?;
    }
    let played: Store = Arc::new(played);
    assert_equal(&played, master.store()).await;
    pair(&master, &slave);
    soon(slave.wait_applied(Seq::new(481))).await?;
    assert_equal(master.store(), slave.store()).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_never_torn() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let master = master(open("lmdb", &dir.path().join("master")), MasterConfig::default().chunk_bytes(500)).await?;
    let slave = slave(open("lmdb", &dir.path().join("slave"))).await?;
    let writing = tokio::spawn({
        let master = master.clone();
        async move {
            for number in 0..400u64 {
                let all = (0..16u8).fold(Batch::new(), |batch, key| batch.put([key], number.to_be_bytes()));
                master.write(all).await.unwrap();
            }
        }
    });
    let mut rng = rng("batches_are_never_torn");
    while !writing.is_finished() {
        let following = pair(&master, &slave);
        for _ in 0..rng.usize(1..20) {
            let page = slave.scan(.., ScanOptions::default()).await?;
            assert!(page.is_empty() || page.len() == 16, "{} of 16 keys", page.len());
            let mut values: Vec<_> = page.iter().map(|(_, value)| value).collect();
            values.dedup();
            assert!(values.len() < 2, "two batches side by side");
            tokio::task::yield_now().await;
        }
        stop(following).await;
    }
    soon(writing).await?;
    pair(&master, &slave);
    soon(slave.wait_applied(Seq::new(401))).await?;
    assert_equal(master.store(), slave.store()).await;
    Ok(())
}

#[tokio::test]
async fn a_read_error_on_the_master_is_not_a_delete() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let source = FaultStore::new(open("lmdb", &dir.path().join("master")));
    let faults = source.faults();
    let broken = StoreError::backend("the disk says no");
    // Nothing in memory, so that records are read as well as pages.
    let master = Master::open(source, MasterConfig::default().ring_bytes(0).chunk_bytes(1000)).await?;
    let slave = slave(open("lmdb", &dir.path().join("slave"))).await?;
    for n in 0..100u32 {
        master.put(n.to_be_bytes(), [1; 50]).await?;
    }
    let mut following = pair(&master, &slave);
    soon(slave.wait_applied(master.status().published.seq)).await?;
    for n in 0..100u32 {
        master.put(n.to_be_bytes(), [2; 50]).await?;
        assert_eq!(contents(slave.store()).await.len() as u32, 100, "nothing was ever deleted");
        faults.fail_reads(Keyspace::Log, 1, &broken);
        faults.fail_reads(Keyspace::Data, 1, &broken);
        if following.is_finished() {
            following = pair(&master, &slave);
        }
    }
    faults.clear();
    stop(following).await;
    pair(&master, &slave);
    soon(slave.wait_applied(master.status().published.seq)).await?;
    let (one, two) = (contents(&(Arc::new(master.store().clone()) as Store)).await, contents(slave.store()).await);
    assert!(one == two && one.len() == 100);
    Ok(())
}

fn small_log() -> MasterConfig {
    MasterConfig::default().retention(Retention { max_bytes: 60_000, max_age_ms: None, hold_back_bytes: 0 })
}

async fn write(master: &Master<Store>, records: u32) -> Result<(), Error> {
    let writes = (0..records).map(|n| master.put((n % 500).to_be_bytes(), [n as u8; 100]));
    for result in futures_util::future::join_all(writes).await {
        result?;
    }
    Ok(())
}

#[tokio::test]
async fn cleanup_removes_what_it_says() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let master = master(open("lmdb", &dir.path().join("master")), small_log()).await?;
    write(&master, 3_000).await?;
    let before = contents(master.store()).await;
    let (floor, log) = soon(async {
        loop {
            let status = master.status();
            let log = read_log(master.store(), Seq::ZERO, usize::MAX).await.unwrap();
            // The floor is told before the records below it go.
            let begins = log.first().map(|record| record.header().seq) == status.floor.seq.next();
            if status.retained_bytes < 110_000 && begins && status == master.status() {
                return (status.floor.seq, log);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(floor.as_u64() > 2_000);
    assert_eq!(log.len() as u64, master.status().published.seq.since(floor));
    assert!(contents(master.store()).await == before, "and nothing else is gone");
    let slave = slave(memory()).await?;
    pair(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert_equal(master.store(), slave.store()).await;
    Ok(())
}

#[tokio::test]
async fn the_log_shrinks() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("master");
    let master = master(open("lmdb", &path), small_log()).await?;
    let mut sizes = Vec::new();
    for _ in 0..6 {
        write(&master, 4_000).await?;
        until(|| master.status().retained_bytes < 110_000).await;
        let mut size = 0;
        for entry in std::fs::read_dir(&path)? {
            size += entry?.metadata()?.len();
        }
        sizes.push(size);
    }
    println!("{sizes:?} bytes on disk, {} bytes ever logged", master.status().log_bytes);
    assert!(master.status().log_bytes > 24_000 * 150);
    assert!(sizes[5] < sizes[0] * 3 / 2, "freed pages are used again: {sizes:?}");
    Ok(())
}

#[tokio::test]
async fn data_from_before_replication_is_sent() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let store = open("lmdb", &dir.path().join("master"));
    let mut rng = rng("data_from_before_replication_is_sent");
    let mut writes = WriteSet::builder();
    for n in 0..5_000u32 {
        writes.put(Keyspace::Data, n.to_be_bytes(), vec![rng.u8(..); rng.usize(..60)])?;
    }
    store.apply(writes.build(), Durability::Synced).await?;
    let before = contents(&store).await;
    let master = master(store, MasterConfig::default()).await?;
    let slave = slave(open("lmdb", &dir.path().join("slave"))).await?;
    pair(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    assert!(contents(slave.store()).await == before);
    assert_eq!(before.len(), 5_000);
    Ok(())
}

fn high_keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> =
        ["~", "~~", "\u{7F}", "\u{FFFF}", "\u{FFFF}\u{FFFF}", "\u{10FFFF}"].map(Into::into).into();
    keys.extend([vec![0xFF], vec![0xFF; 2], vec![0xFF; 480], vec![0xFE, 0xFF], vec![0xFF, 0], vec![0], vec![0; 480]]);
    keys
}

#[tokio::test]
async fn keys_above_any_sentinel_are_sent() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let store = open("lmdb", &dir.path().join("master"));
    let mut writes = WriteSet::builder();
    for key in high_keys() {
        writes.put(Keyspace::Data, key, "copied")?;
    }
    store.apply(writes.build(), Durability::Synced).await?;
    let master = master(store, MasterConfig::default().chunk_bytes(1)).await?;
    let slave = slave(open("lmdb", &dir.path().join("slave"))).await?;
    pair(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    for key in high_keys() {
        assert_eq!(slave.get(&key).await?.as_deref(), Some(&b"copied"[..]), "{}", key.escape_ascii());
    }
    for key in high_keys() {
        let token = master.put(&key, "followed").await?;
        soon(slave.wait_applied(token)).await?;
        assert_eq!(slave.get(&key).await?.as_deref(), Some(&b"followed"[..]), "{}", key.escape_ascii());
    }
    let token = master.write(Batch::new().delete_range(vec![0xFF]..)).await?;
    soon(slave.wait_applied(token)).await?;
    assert!(slave.scan(vec![0xFF].., ScanOptions::default()).await?.is_empty());
    assert_equal(master.store(), slave.store()).await;
    Ok(())
}

#[tokio::test]
async fn binary_keys_and_values_arrive_unchanged() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let mut rng = rng("binary_keys_and_values_arrive_unchanged");
    let master = master(open("lmdb", &dir.path().join("master")), MasterConfig::default()).await?;
    let slave = slave(memory()).await?;
    pair(&master, &slave);
    let mut written = Vec::new();
    let mut all = Batch::new();
    for byte in 0..=255u8 {
        written.push((vec![byte], vec![byte, 0, !byte]));
    }
    for _ in 0..500 {
        let bytes = |rng: &mut Rng, len: usize| (0..len).map(|_| rng.u8(..)).collect::<Vec<_>>();
        let (key, value) = (rng.usize(2..480), rng.usize(..2_000));
        written.push((bytes(&mut rng, key), bytes(&mut rng, value)));
    }
    // What text would make of them.
    for value in [&b"\r\n"[..], b"\n\n", b"\0", b"\xEF\xBB\xBF", b"\xC3", b"{\"a\":1}", b"", b"\xFF\xFE"] {
        written.push((["text ".as_bytes(), value].concat(), value.to_vec()));
    }
    for (key, value) in &written {
        all = all.put(key, value);
    }
    let token = master.write(all).await?;
    soon(slave.wait_applied(token)).await?;
    for (key, value) in &written {
        assert_eq!(slave.get(key).await?.as_deref(), Some(&value[..]), "{}", key.escape_ascii());
    }
    assert_eq!(contents(slave.store()).await.len(), written.len());
    Ok(())
}

#[tokio::test]
async fn multi_byte_text_survives_chunk_borders() -> Result<(), Error> {
    let words = ["ä", "€", "\u{1D11E}", "für Öl", "日本語", "\u{1F469}\u{200D}\u{1F680}"];
    for at_most in [1, 2, 3, 5, 7] {
        let master = master(memory(), MasterConfig::default().chunk_bytes(1)).await?;
        let slave = slave(memory()).await?;
        let (here, there) = tokio::io::duplex(at_most);
        serve(&master, there);
        follow(&slave, Wire::new(here).at_most(at_most));
        let mut token = None;
        for (n, word) in words.iter().enumerate() {
            token = Some(master.put(format!("{word}{n}"), word.repeat(20 + n)).await?);
        }
        soon(slave.wait_applied(token.ok_or("words")?)).await?;
        for (n, word) in words.iter().enumerate() {
            let found = slave.get(format!("{word}{n}")).await?.ok_or("it has arrived")?;
            assert_eq!(std::str::from_utf8(&found)?, word.repeat(20 + n));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_corrupt_frame_loses_no_record() -> Result<(), Error> {
    let mut rng = rng("a_corrupt_frame_loses_no_record");
    let master = master(memory(), MasterConfig::default().chunk_bytes(300)).await?;
    let slave = slave(memory()).await?;
    let mut refused = 0;
    for _ in 0..150 {
        for _ in 0..3 {
            master.write(batch(&mut rng)).await?;
        }
        let head = master.status().published.seq;
        let (here, there) = tokio::io::duplex(64 << 10);
        let serving = serve(&master, there);
        let flip = rng.u64(..8 * 3_000);
        let mut following = follow(&slave, Wire::new(here).flip(flip));
        tokio::select! {
            ended = soon(&mut following) => match ended? {
                // Noticed, whatever it hit: nothing is skipped, and the connection is over.
                Err(FollowError::Connection(_) | FollowError::Protocol(_)) => refused += 1,
                other => panic!("bit {flip}: {other:?}"),
            },
            applied = slave.wait_applied(head) => {
                applied?;
                stop(following).await;
            }
        }
        drop(soon(serving).await?);
    }
    assert!(refused > 20, "{refused}");
    pair(&master, &slave);
    soon(slave.wait_applied(master.status().published.seq)).await?;
    assert_equal(master.store(), slave.store()).await;
    Ok(())
}

fn malformed(rng: &mut Rng) -> Vec<Vec<u8>> {
    let preamble = preamble();
    let mut messages = vec![
        b"{\"since\":0}\n".to_vec(),
        b"{\"since\":\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"\n".to_vec(),
        vec![0; 4096],
        vec![0xFF; 4096],
        preamble[..preamble.len() / 2].to_vec(),
        [&preamble[..], &[0xFF; 64]].concat(),
        [&preamble[..], &[0; 64]].concat(),
        // The length of a frame that nobody could hold.
        [&preamble[..], &u32::MAX.to_le_bytes(), &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
    ];
    for _ in 0..40 {
        let noise: Vec<u8> = (0..rng.usize(1..300)).map(|_| rng.u8(..)).collect();
        messages.push(noise.clone());
        messages.push([&preamble[..], &noise].concat());
    }
    messages
}

fn preamble() -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    replikv::proto::Encoder::new().encode_preamble(&mut bytes);
    bytes.to_vec()
}

#[tokio::test]
async fn a_malformed_first_message_does_not_harm_the_master() -> Result<(), Error> {
    let mut rng = rng("a_malformed_first_message_does_not_harm_the_master");
    let dir = tempfile::tempdir()?;
    let master = master(open("lmdb", &dir.path().join("master")), MasterConfig::default()).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(master.clone().serve_tcp(listener));
    let good = slave(memory()).await?;
    tokio::spawn({
        let good = good.clone();
        async move { good.follow_tcp(address).await }
    });
    soon(good.wait_caught_up()).await?;
    for message in malformed(&mut rng) {
        let mut stream = TcpStream::connect(address).await?;
        // It may hang up before everything is said.
        drop(stream.write_all(&message).await);
        let token = master.put("key", &message).await?;
        soon(good.wait_applied(token)).await?;
    }
    assert!(!serving.is_finished());
    let status = master.status();
    assert_eq!((status.health.state, status.slaves.len()), (HealthState::Ready, 1));
    assert_eq!(good.status().connections, 1, "nobody else's connection has suffered");
    Ok(())
}

#[tokio::test]
async fn an_error_that_ends_replication_closes_the_connection() -> Result<(), Error> {
    let mut rng = rng("an_error_that_ends_replication_closes_the_connection");
    let master = master(memory(), MasterConfig::default()).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(master.clone().serve_tcp(listener));
    // The master's side: whoever said what cannot be understood sees the end of the stream.
    for message in malformed(&mut rng) {
        let mut stream = TcpStream::connect(address).await?;
        drop(stream.write_all(&message).await);
        drop(stream.shutdown().await);
        soon(async {
            let mut rest = Vec::new();
            // A reset is an end as well.
            drop(stream.read_to_end(&mut rest).await);
        })
        .await;
    }
    until(|| master.status().slaves.is_empty()).await;
    // The slave's side, and one that does not close its own half.
    for message in malformed(&mut rng) {
        if message.len() < 64 || message.starts_with(&preamble()) {
            continue;
        }
        let slave = slave(memory()).await?;
        let (here, mut there) = tokio::io::duplex(64 << 10);
        let following = follow(&slave, Wire::new(here));
        there.write_all(&message).await?;
        assert!(matches!(soon(following).await?, Err(FollowError::Connection(_))));
        soon(there.read_to_end(&mut Vec::new())).await?;
        let status = slave.status();
        assert_eq!((status.health.state, status.lag), (HealthState::Disconnected, None), "it knows that it is alone");
    }
    Ok(())
}

#[tokio::test]
async fn a_slave_knows_when_it_has_caught_up() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let master = master(open("lmdb", &dir.path().join("master")), MasterConfig::default()).await?;
    let slave = slave(memory()).await?;
    assert_eq!((slave.status().state, slave.status().lag), (SlaveState::Empty, None));
    for round in 0..5 {
        write(&master, 200).await?;
        let following = pair(&master, &slave);
        soon(slave.wait_caught_up()).await?;
        let status = slave.status();
        assert_eq!(status.position, Some(master.status().published), "round {round}");
        assert_eq!((status.state, status.health.state), (SlaveState::Following, HealthState::Ready));
        assert_eq!(status.lag.map(|lag| (lag.seqs, lag.bytes, lag.millis)), Some((0, 0, 0)));
        assert_equal(master.store(), slave.store()).await;
        stop(following).await;
        // Nobody is there who could tell: it does not claim to be up to date.
        assert!(futures_util::FutureExt::now_or_never(slave.wait_caught_up()).is_none());
    }
    Ok(())
}

#[tokio::test]
async fn a_slow_slave_holds_the_master_back_by_nothing() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let master = master(open("lmdb", &dir.path().join("master")), MasterConfig::default()).await?;
    let store = FaultStore::new(memory());
    let slow = Slave::open(store.clone(), SlaveConfig::new("slow")).await?;
    let fast = slave(memory()).await?;
    pair(&master, &slow);
    pair(&master, &fast);
    soon(slow.wait_caught_up()).await?;
    let held = store.faults().hold_apply();
    let first = master.put("first", "v").await?;
    soon(held.reached()).await;
    // As long as the slow one hangs, everybody else is served.
    for _ in 0..5 {
        write(&master, 500).await?;
        soon(fast.wait_applied(master.status().published.seq)).await?;
    }
    assert_equal(master.store(), fast.store()).await;
    assert!(slow.status().position.is_none_or(|position| position.seq < first.seq), "and it does hang");
    held.release();
    soon(slow.wait_applied(master.status().published.seq)).await?;
    assert!(contents(&(Arc::new(store) as Store)).await == contents(master.store()).await);
    Ok(())
}

#[tokio::test]
async fn a_fast_master_does_not_flood_a_slave() -> Result<(), Error> {
    const GROUP: usize = 64 << 10;
    let master = master(memory(), MasterConfig::default().chunk_bytes(16 << 10)).await?;
    let store = FaultStore::new(memory());
    let slow = Slave::open(store.clone(), SlaveConfig::new("slow").group_bytes(GROUP)).await?;
    let (here, there) = tokio::io::duplex(4 << 10);
    let here = Wire::new(here);
    let read = here.counter();
    serve(&master, there);
    follow(&slow, here);
    soon(slow.wait_caught_up()).await?;
    let held = store.faults().hold_apply();
    master.put("first", "v").await?;
    soon(held.reached()).await;
    let before = read.load(Ordering::Relaxed);
    let mut logged = 0;
    while logged < 20 * GROUP {
        master.put("key", vec![1; 4_000]).await?;
        logged += 4_000;
    }
    // It takes what it may, and then no more, however long the store hangs.
    until(|| read.load(Ordering::Relaxed) - before > GROUP as u64).await;
    let fast = slave(memory()).await?;
    pair(&master, &fast);
    soon(fast.wait_applied(master.status().published.seq)).await?;
    let taken = read.load(Ordering::Relaxed) - before;
    assert!(taken < 5 * GROUP as u64, "{taken} of {logged} bytes were taken in");
    held.release();
    soon(slow.wait_applied(master.status().published.seq)).await?;
    assert!(store.faults().calls().largest_apply < 2 * GROUP, "{}", store.faults().calls().largest_apply);
    Ok(())
}

/// Set in the process that counts its own file descriptors: other tests open some as well.
const CHILD: &str = "REPLIKV_SEED_FAULTS_CHILD";

#[test]
fn connection_resets_leak_nothing() -> Result<(), Error> {
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe()?)
            .args(["seed_faults::connection_resets_leak_nothing", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .status()?;
        assert!(status.success());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(reset_again_and_again())
}

async fn reset_again_and_again() -> Result<(), Error> {
    let descriptors = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut rng = rng("connection_resets_leak_nothing");
    let dir = tempfile::tempdir()?;
    let master = master(open("lmdb", &dir.path().join("master")), MasterConfig::default()).await?;
    write(&master, 2_000).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(master.clone().serve_tcp(listener));
    let slave = slave(memory()).await?;
    until(|| master.status().slaves.is_empty()).await;
    let before = (descriptors(), tasks());
    assert!(before.0 > 0, "this system does not tell which descriptors are open");
    for round in 0..400 {
        let stream = TcpStream::connect(address).await?;
        // Closed with a reset, whatever is still under way.
        stream.set_zero_linger()?;
        match round % 4 {
            // Before a word, in the middle of one, and while it follows.
            0 => drop(stream),
            1 => {
                let mut stream = stream;
                stream.write_all(&preamble()[..rng.usize(1..8)]).await?;
            }
            _ => {
                let following = tokio::spawn({
                    let slave = slave.clone();
                    async move { slave.follow(stream).await }
                });
                for _ in 0..rng.u32(..40) {
                    tokio::task::yield_now().await;
                }
                if round % 4 == 2 {
                    soon(slave.wait_caught_up()).await?;
                }
                stop(following).await;
            }
        }
    }
    until(|| master.status().slaves.is_empty() && (descriptors(), tasks()) <= before && descriptors() <= before.0)
        .await;
    println!("{before:?} before, {:?} after", (descriptors(), tasks()));
    let token = master.put("last", "word").await?;
    let following = tokio::spawn({
        let slave = slave.clone();
        async move { slave.follow_tcp(address).await }
    });
    soon(slave.wait_applied(token)).await?;
    assert_equal(master.store(), slave.store()).await;
    stop(following).await;
    Ok(())
}

#[tokio::test]
async fn two_masters_never_share_a_cursor() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let one = master(open("lmdb", &dir.path().join("one")), MasterConfig::default()).await?;
    let two = master(open("lmdb", &dir.path().join("two")), MasterConfig::default()).await?;
    one.put("one", "1").await?;
    two.put("two", "2").await?;
    two.put("two", "3").await?;
    let store = open("lmdb", &dir.path().join("slave"));
    let following_one = slave(store.clone()).await?;
    let following = pair(&one, &following_one);
    soon(following_one.wait_caught_up()).await?;
    stop(following).await;
    let cursor = store.cursor(&LinkId::default()).await?;
    match soon(pair(&two, &following_one)).await? {
        Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, RejectCode::ForeignSource),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.cursor(&LinkId::default()).await?, cursor, "the cursor is where the first master has left it");
    assert!(following_one.get("two").await?.is_none());
    let link = SlaveConfig::new("edge").link(LinkId::new("two")?);
    assert!(matches!(Slave::open(store, link).await, Err(OpenError::OtherLink { .. })));
    let token = one.put("one", "4").await?;
    pair(&one, &following_one);
    soon(following_one.wait_applied(token)).await?;
    assert_equal(one.store(), following_one.store()).await;
    Ok(())
}

#[tokio::test]
async fn a_stale_connection_never_overwrites_newer_data() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let master = master(open("lmdb", &dir.path().join("master")), MasterConfig::default()).await?;
    let store = open("lmdb", &dir.path().join("slave"));
    let slave = slave(store.clone()).await?;
    let token = master.put("key", "old").await?;
    let following = pair(&master, &slave);
    soon(slave.wait_applied(token)).await?;
    stop(following).await;
    // An old connection has received the next record, and is slow to commit it.
    let cursor = store.cursor(&LinkId::default()).await?;
    let stale = master.put("key", "stale").await?;
    let mut applier = Applier::new(LinkId::default(), cursor, Applier::DEFAULT_TARGET);
    let mut records = read_log(master.store(), token.seq, 1).await?;
    applier.push_record(records.pop().ok_or("one record")?);
    let late = applier.next_group()?.ok_or("one group")?;
    assert_eq!(late.cursor.position.seq, stale.seq);
    // Meanwhile a new one has passed it.
    let token = master.put("key", "new").await?;
    pair(&master, &slave);
    soon(slave.wait_applied(token)).await?;
    let refused = store.apply(late.writes, Durability::Synced).await;
    assert!(matches!(refused, Err(StoreError::HeadMoved)), "{refused:?}");
    assert_eq!(slave.get("key").await?.as_deref(), Some(&b"new"[..]));
    assert_equal(master.store(), slave.store()).await;
    let rest = store.scan(Keyspace::Data, KeyRange::all(), ScanOptions::default()).await?;
    assert_eq!(rest.len(), 1);
    Ok(())
}
