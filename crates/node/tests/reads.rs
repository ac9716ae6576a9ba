//! Reading from a master or a slave on the other side of a connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use replikv_core::{Batch, Epoch, KeyRange, ScanOptions, Seq, SourceId, StoreError, Token};
use replikv_memory::MemoryStore;
use replikv_node::{
    ChangesError, ChangesFrom, Codec, Ending, HealthState, Master, MasterConfig, ReadError, Reader, RemoteReader,
    RemoteReaderConfig, ServeError, Slave, SlaveConfig, WaitError,
};
use replikv_proto::{
    Answered, AnsweredBody, DecoderLimits, Message, ReadFailure, Request, RequestBody, Response, WaitFor,
};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::codec::Framed;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("it does not take that long")
}

async fn master() -> Result<Master<MemoryStore>> {
    Ok(Master::open(MemoryStore::new(), MasterConfig::default()).await?)
}

/// A slave that follows, and has everything.
async fn slave_of(master: &Master<MemoryStore>) -> Result<(Slave<MemoryStore>, JoinHandle<()>)> {
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    let followed = tokio::spawn(async move { drop(following.follow(there).await) });
    soon(slave.wait_applied(master.status().published.seq)).await?;
    Ok((slave, followed))
}

fn served(slave: &Slave<MemoryStore>) -> DuplexStream {
    let (here, there) = tokio::io::duplex(64 << 10);
    let slave = slave.clone();
    tokio::spawn(async move { slave.serve_reads(there).await });
    here
}

fn config() -> RemoteReaderConfig {
    RemoteReaderConfig::default().backoff(Duration::from_millis(1), Duration::from_millis(5))
}

fn framed(stream: DuplexStream) -> Framed<DuplexStream, Codec> {
    Framed::new(stream, Codec::new(DecoderLimits { control: 1 << 20, data: 8 << 20 }))
}

fn get(id: u32, key: &'static str) -> Message {
    Message::Request(Request {
        id,
        body: RequestBody::Get { key: Bytes::from_static(key.as_bytes()), after: None, most: u64::MAX },
    })
}

async fn next(asking: &mut Framed<DuplexStream, Codec>) -> Result<Message> {
    Ok(soon(asking.next()).await.ok_or("no answer")??)
}

#[tokio::test]
async fn masters_and_slaves_are_read_in_one_way_over_tcp() -> Result {
    let master = master().await?;
    let batch = (0..3000).fold(Batch::new(), |batch, n| batch.put(format!("k{n:04}"), format!("value {n}")));
    let token = master.write(batch).await?;
    let (slave, _followed) = slave_of(&master).await?;
    let (one, two) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let addresses = [one.local_addr()?, two.local_addr()?];
    tokio::spawn(master.clone().serve_tcp(one));
    tokio::spawn(slave.clone().serve_reads_tcp(two));
    let local = master.scan(KeyRange::from_bounds("k1".."k2"), ScanOptions::default().max_entries(700)).await?;
    for address in addresses {
        let reader = RemoteReader::tcp(address.to_string(), config());
        soon(reader.wait_applied(token.into())).await?;
        let read = soon(reader.read(b"k0007", Some(token.into()))).await?;
        assert_eq!(read.value.as_deref(), Some(&b"value 7"[..]));
        assert_eq!(read.at.includes.map(|at| at.seq), Some(token.seq));
        assert_eq!(read.at.shows, read.at.includes);
        assert!(read.at.consistent && read.at.lag.is_some_and(|lag| lag.seqs == 0), "{:?}", read.at);
        assert_eq!(soon(reader.get(b"nothing")).await?, None);
        let options = ScanOptions::default().max_entries(700);
        let page = soon(reader.scan(KeyRange::from_bounds("k1".."k2"), options)).await?;
        assert_eq!(page, local);
        let rest = page.rest().cloned().ok_or("there is more")?;
        let last = soon(reader.scan(rest, options.reversed())).await?;
        assert_eq!((last.len(), last.rest()), (300, None));
        assert_eq!(last.iter().next().map(|(key, _)| key), Some(&b"k1999"[..]));
        let changes = reader.changes(ChangesFrom::Oldest, Vec::new()).await;
        assert!(matches!(changes, Err(ChangesError::Unsupported)), "{changes:?}");
        let status = reader.status();
        assert_eq!((status.health.state, status.consistent), (HealthState::Ready, true));
        assert_eq!(status.position.map(|at| at.seq), Some(token.seq));
    }
    Ok(())
}

#[tokio::test]
async fn a_value_of_many_frames_arrives_and_one_that_is_too_long_is_refused_by_its_length() -> Result {
    let master = master().await?;
    let value = Bytes::from((0..5 << 20).map(|n| (n % 251) as u8).collect::<Vec<u8>>());
    master.put("large", &value).await?;
    let (slave, _followed) = slave_of(&master).await?;
    let reader = RemoteReader::over(served(&slave), config());
    assert_eq!(soon(reader.get(b"large")).await?, Some(value.clone()));
    let page = soon(reader.scan(KeyRange::all(), ScanOptions::default())).await?;
    assert_eq!(page.entries().next(), Some((Bytes::from_static(b"large"), value)));

    let narrow = RemoteReader::over(served(&slave), config().max_answer(1 << 20));
    let refused = soon(narrow.read(b"large", None)).await;
    assert!(matches!(refused, Err(ReadError::TooLarge { len: 5_242_880, max: 1_048_576 })), "{refused:?}");
    // The connection goes on.
    assert_eq!(soon(narrow.get(b"small")).await?, None);
    Ok(())
}

#[tokio::test]
async fn errors_of_the_other_side_arrive_as_what_they_are() -> Result {
    let master = master().await?;
    let token = master.put("a", "1").await?;
    let (slave, _followed) = slave_of(&master).await?;
    let reader = RemoteReader::over(served(&slave), config());
    assert!(matches!(soon(reader.get(b"")).await, Err(StoreError::KeyEmpty)));
    let later = Token { seq: Seq::new(99), ..token };
    let behind = soon(reader.read(b"a", Some(later.into()))).await;
    assert!(matches!(&behind, Err(ReadError::Behind { at }) if *at == token.seq), "{behind:?}");
    let foreign = Token { source: SourceId::from_bytes([9; 16]), ..token };
    let found = soon(reader.read(b"a", Some(foreign.into()))).await;
    assert!(matches!(found, Err(ReadError::Wait(WaitError::ForeignSource))), "{found:?}");
    assert_eq!(soon(reader.wait_applied(foreign.into())).await, Err(WaitError::ForeignSource));
    let usurped = Token { epoch: Epoch { nonce: 7, ..token.epoch }, ..token };
    assert_eq!(soon(reader.wait_applied(usurped.into())).await, Err(WaitError::Superseded));
    slave.shutdown().await?;
    let gone = soon(reader.read(b"a", None)).await;
    assert!(gone.as_ref().is_err_and(ReadError::is_retryable), "{gone:?}");
    Ok(())
}

#[tokio::test]
async fn who_waits_for_a_write_holds_up_nobody_and_is_answered_when_it_is_there() -> Result {
    let master = master().await?;
    let first = master.put("a", "1").await?;
    let (slave, _followed) = slave_of(&master).await?;
    let reader = RemoteReader::over(served(&slave), config());
    let next = Token { seq: Seq::new(first.seq.as_u64() + 1), ..first };
    let waiting = tokio::spawn({
        let reader = reader.clone();
        async move { reader.wait_applied(next.into()).await }
    });
    // Asked after it on the same connection, and answered before it.
    for _ in 0..100 {
        assert_eq!(soon(reader.get(b"a")).await?.as_deref(), Some(&b"1"[..]));
    }
    assert!(!waiting.is_finished());
    assert_eq!(master.put("a", "2").await?.seq, next.seq);
    soon(waiting).await??;
    assert_eq!(soon(reader.read(b"a", Some(next.into()))).await?.value.as_deref(), Some(&b"2"[..]));
    Ok(())
}

#[tokio::test]
async fn many_callers_share_one_connection() -> Result {
    let master = master().await?;
    let batch = (0..500).fold(Batch::new(), |batch, n| batch.put(format!("k{n}"), n.to_string()));
    master.write(batch).await?;
    let (slave, _followed) = slave_of(&master).await?;
    let connections = Arc::new(AtomicUsize::new(0));
    let (counting, serving) = (connections.clone(), slave.clone());
    let connect = move || {
        counting.fetch_add(1, Ordering::SeqCst);
        let stream = served(&serving);
        async move { Ok(stream) }
    };
    let reader = RemoteReader::connecting(connect, config());
    let asking = (0..500).map(|n| {
        let reader = reader.clone();
        tokio::spawn(async move { (n, reader.get(format!("k{n}").as_bytes()).await) })
    });
    for asked in asking.collect::<Vec<_>>() {
        let (n, value) = soon(asked).await?;
        assert_eq!(value?, Some(Bytes::from(n.to_string())));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test]
async fn a_reader_that_lost_its_connection_says_so_and_comes_back() -> Result {
    let master = master().await?;
    master.put("a", "1").await?;
    let (slave, _followed) = slave_of(&master).await?;
    let (streams, mut next_stream) = tokio::sync::mpsc::unbounded_channel::<DuplexStream>();
    let connect = move || {
        let stream = next_stream.try_recv().map_err(|_| std::io::Error::other("nobody is there"));
        async move { stream }
    };
    let first = tokio::io::duplex(64 << 10);
    streams.send(first.0)?;
    let answering = tokio::spawn({
        let slave = slave.clone();
        async move { slave.serve_reads(first.1).await }
    });
    let reader = RemoteReader::connecting(connect, config());
    assert!(soon(reader.get(b"a")).await?.is_some());
    let waiting = tokio::spawn({
        let reader = reader.clone();
        async move { reader.wait_applied(Seq::new(99).into()).await }
    });
    tokio::task::yield_now().await;
    answering.abort();
    let lost = soon(waiting).await?;
    assert!(matches!(lost, Err(WaitError::Unreachable { .. })), "{lost:?}");
    let lost = soon(reader.read(b"a", None)).await;
    assert!(matches!(lost, Err(ReadError::Unreachable { .. })), "{lost:?}");
    while reader.status().health.state != HealthState::Disconnected {
        tokio::task::yield_now().await;
    }
    streams.send(served(&slave))?;
    let back = async {
        loop {
            match reader.read(b"a", None).await {
                Ok(read) => return read.value,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(soon(back).await.as_deref(), Some(&b"1"[..]));
    Ok(())
}

#[tokio::test]
async fn a_wait_that_is_dropped_is_forgotten_on_the_other_side() -> Result {
    let master = master().await?;
    let token = master.put("a", "1").await?;
    let (slave, _followed) = slave_of(&master).await?;
    let reader = RemoteReader::over(served(&slave), config());
    let never = Token { seq: Seq::new(u64::MAX), ..token };
    // Many more than may wait at once: each is given up as soon as it is asked.
    for _ in 0..500 {
        let waiting = tokio::spawn({
            let reader = reader.clone();
            async move { reader.wait_applied(never.into()).await }
        });
        soon(reader.get(b"a")).await?;
        waiting.abort();
        assert!(soon(waiting).await.is_err_and(|error| error.is_cancelled()));
    }
    soon(reader.wait_applied(token.into())).await?;
    Ok(())
}

#[tokio::test]
async fn waits_that_nobody_forgets_are_bounded_and_reads_go_on() -> Result {
    let master = master().await?;
    master.put("a", "1").await?;
    let (slave, _followed) = slave_of(&master).await?;
    let mut asking = framed(served(&slave));
    for id in 0..1000 {
        let body = RequestBody::Wait(WaitFor::Seq(Seq::new(99)));
        asking.send(Message::Request(Request { id, body })).await?;
        if id >= 64 {
            let busy = Message::Answered(Answered { id, body: AnsweredBody::Failed(ReadFailure::Busy) });
            assert_eq!(next(&mut asking).await?, busy);
        }
    }
    asking.send(get(5000, "a")).await?;
    assert!(matches!(next(&mut asking).await?, Message::Answered(Answered { id: 5000, .. })));
    // One place is given back, and taken again.
    asking.send(Message::Request(Request { id: 6000, body: RequestBody::Forget { id: 7 } })).await?;
    asking.send(Message::Request(Request { id: 7, body: RequestBody::Wait(WaitFor::Seq(Seq::new(1))) })).await?;
    let reached = Message::Answered(Answered { id: 7, body: AnsweredBody::Reached });
    assert_eq!(next(&mut asking).await?, reached);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn who_asks_a_million_times_without_listening_is_not_read_any_further() -> Result {
    let master = master().await?;
    master.put("a", vec![7; 1 << 20]).await?;
    let (slave, _followed) = slave_of(&master).await?;
    let (here, there) = tokio::io::duplex(4 << 10);
    let answering = tokio::spawn({
        let slave = slave.clone();
        async move { slave.serve_reads(there).await }
    });
    let (mut asking, _answers) = framed(here).split();
    let asked = Arc::new(AtomicUsize::new(0));
    let pouring = tokio::spawn({
        let asked = asked.clone();
        async move {
            for id in 0..1_000_000 {
                if asking.send(get(id, "a")).await.is_err() {
                    return;
                }
                asked.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    // Nothing moves any more; after a while it is given up.
    let ended = answering.await?;
    assert!(matches!(ended, Err(ServeError::Protocol(_))), "{ended:?}");
    pouring.await?;
    // What fits into the buffers of both sides.
    assert!(asked.load(Ordering::SeqCst) < 10_000, "{asked:?}");
    Ok(())
}

#[tokio::test]
async fn a_question_of_a_newer_version_is_refused_in_words_and_the_connection_goes_on() -> Result {
    let master = master().await?;
    master.put("a", "1").await?;
    let (slave, _followed) = slave_of(&master).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move { master.serve(there).await });
    for mut asking in [framed(served(&slave)), framed(here)] {
        let body = RequestBody::Unknown(Bytes::from_static(&[1, 99, 1, 2, 3]));
        asking.send(Message::Request(Request { id: 1, body })).await?;
        match next(&mut asking).await? {
            Message::Response(Response { id: 1, body: Err(words) }) => assert!(words.contains("older"), "{words}"),
            other => panic!("{other:?}"),
        }
        asking.send(get(2, "a")).await?;
        assert!(matches!(
            next(&mut asking).await?,
            Message::Answered(Answered { id: 2, body: AnsweredBody::Value(_, Some(_)) })
        ));
    }
    Ok(())
}

#[tokio::test]
async fn readers_of_a_master_are_bounded_and_take_no_place_of_slaves() -> Result {
    let config_of = MasterConfig::default().max_sessions(1).max_readers(2);
    let master = Master::open(MemoryStore::new(), config_of).await?;
    master.put("a", "1").await?;
    let connect = || {
        let (here, there) = tokio::io::duplex(64 << 10);
        let serving = master.clone();
        (here, tokio::spawn(async move { serving.serve(there).await }))
    };
    let mut readers = Vec::new();
    for _ in 0..2 {
        let reader = RemoteReader::over(connect().0, config());
        assert!(soon(reader.get(b"a")).await?.is_some());
        readers.push(reader);
    }
    let (stream, serving) = connect();
    let third = RemoteReader::over(stream, config());
    assert!(matches!(soon(third.read(b"a", None)).await, Err(ReadError::Busy)));
    // It is not kept, though it is still there.
    assert!(matches!(soon(serving).await?, Ok(Ending::Answered)));
    // Two readers are connected, and one slave may be.
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge")).await?;
    let (stream, serving) = connect();
    let following = slave.clone();
    tokio::spawn(async move { following.follow(stream).await });
    soon(slave.wait_caught_up()).await?;
    drop(readers);
    slave.shutdown().await?;
    assert!(soon(serving).await?.is_ok());
    Ok(())
}

#[tokio::test]
async fn who_has_read_cannot_go_on_to_follow_on_the_same_connection() -> Result {
    let master = master().await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let serving = tokio::spawn({
        let master = master.clone();
        async move { master.serve(there).await }
    });
    let reader = RemoteReader::over(here, config());
    assert_eq!(soon(reader.get(b"a")).await?, None);
    drop(reader);
    let ended = soon(serving).await?;
    assert!(matches!(ended, Ok(Ending::Goodbye { .. })), "{ended:?}");
    Ok(())
}

/// Every value carries the number of its record: a read shows nothing older than what it includes, and nothing newer
/// than what it shows.
#[tokio::test]
async fn what_is_read_is_of_the_moment_that_the_answer_names() -> Result {
    let master = master().await?;
    let (slave, _followed) = slave_of(&master).await?;
    let remote = RemoteReader::over(served(&slave), config());
    let writing = tokio::spawn({
        let master = master.clone();
        async move {
            let mut written = BTreeMap::new();
            for n in 0..2000_u32 {
                let token = master.put("n", n.to_string()).await?;
                written.insert(token.seq, n);
            }
            Result::<_>::Ok(written)
        }
    });
    let readers: [Arc<dyn Reader>; 3] = [Arc::new(master.clone()), Arc::new(slave.clone()), Arc::new(remote)];
    let mut reads = Vec::new();
    while !writing.is_finished() || reads.len() < 300 {
        for reader in &readers {
            let read = soon(reader.read(b"n", None)).await?;
            let n: Option<u32> = read.value.map(|value| String::from_utf8_lossy(&value).parse()).transpose()?;
            reads.push((n, read.at));
        }
        tokio::task::yield_now().await;
    }
    let written = writing.await??;
    let at = |seq: Option<Seq>| seq.and_then(|seq| written.range(..=seq).next_back()).map(|(_, n)| *n);
    for (n, moment) in reads {
        let (oldest, newest) = (at(moment.includes.map(|at| at.seq)), at(moment.shows.map(|at| at.seq)));
        assert!(oldest <= n && n <= newest, "{n:?} is not between {oldest:?} and {newest:?}: {moment:?}");
    }
    Ok(())
}
