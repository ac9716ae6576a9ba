//! A store on the other side of a network: a server that holds three maps, and a client that is a `ReplicaStore`
//! without any thread.
//!
//! A frame is a length (four bytes, little-endian) and a postcard message. One connection carries all calls of a
//! client, many on their way at a time, and the server answers them in order: that is what decides a call whose caller
//! went away before any later call answers. `tests/networked_store.rs` runs the conformance suite on it, and cuts it off.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use replikv::{
    Durability, KeyRange, Keyspace, Op, Page, PageBuilder, ReplicaStore, ScanOptions, StoreError, StoreLimits, WriteSet,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// As large as what a master accepts by default, so that the store serves as a slave's too.
const LIMITS: StoreLimits = StoreLimits { max_key: 1024, max_value: 32 << 20, max_batch: 128 << 20 };
/// A write set, and what is said about it. Checked before anything is allocated.
const MAX_FRAME: usize = LIMITS.max_batch + (1 << 20);
/// The largest page that is asked for at once; with one entry of the largest size it still fits a frame.
const MAX_PAGE: usize = 16 << 20;
/// How many calls wait for the connection before callers do, and how many are on their way.
const PIPELINE: usize = 64;
/// A server that does not answer for so long is taken for lost.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Open { client: u64 },
    Apply { conditions: Vec<(Bytes, Option<Bytes>)>, chunks: Vec<(u8, Bytes)> },
    Get { map: u8, key: Bytes },
    Scan { map: u8, range: KeyRange, max_entries: u64, max_bytes: u64, reverse: bool },
    Sync,
    Close,
}

#[derive(Debug, Serialize, Deserialize)]
enum Response {
    Done,
    HeadMoved,
    Busy,
    Value(Option<Bytes>),
    Entries(Vec<(Bytes, Bytes)>),
}

// ---- The client --------------------------------------------------------------------------------------------------

/// The client: one connection, and the store at its other end.
#[derive(Debug)]
pub struct NetStore {
    address: SocketAddr,
    /// Tells the server that a new connection takes the place of an older one of ours.
    client: u64,
    /// The way to the connection; `None` once closed. A connection that was lost takes no calls.
    calls: Mutex<Option<mpsc::Sender<Call>>>,
    reopening: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Call {
    request: Request,
    answer: oneshot::Sender<Response>,
}

impl NetStore {
    /// Opens the store that is served at `address`. Must be called within a tokio runtime, where the connection lives.
    pub async fn connect(address: SocketAddr) -> Result<Self, StoreError> {
        let client = fastrand::u64(..);
        let calls = Mutex::new(Some(connect(address, client).await?));
        Ok(Self { address, client, calls, reopening: tokio::sync::Mutex::default() })
    }

    // If the caller goes away in the first await, the call is never sent; in the second, it is before every later call.
    // Once a call may have been sent, a lost connection leaves its outcome unknown: that is what `Fatal` says. No call
    // is answered on a connection that was lost, so that everything is refused until the store is opened again.
    async fn call(&self, request: Request) -> Result<Response, StoreError> {
        let lost = || StoreError::Fatal { reason: format!("the connection to {} was lost", self.address) };
        let calls = locked(&self.calls).clone().ok_or(StoreError::Closed)?;
        let (answer, answered) = oneshot::channel();
        calls.send(Call { request, answer }).await.map_err(|_| lost())?;
        answered.await.map_err(|_| lost())
    }

    async fn done(&self, request: Request) -> Result<(), StoreError> {
        match self.call(request).await? {
            Response::Done => Ok(()),
            Response::HeadMoved => Err(StoreError::HeadMoved),
            other => Err(misplaced(&other)),
        }
    }
}

#[async_trait]
impl ReplicaStore for NetStore {
    async fn apply(&self, writes: WriteSet, _: Durability) -> Result<(), StoreError> {
        writes.check(&LIMITS)?;
        let conditions = writes.preconditions().iter().map(|required| (required.key.clone(), required.value.clone()));
        let chunks = writes.chunks().iter().map(|chunk| (index(chunk.keyspace), chunk.ops.as_bytes().clone()));
        self.done(Request::Apply { conditions: conditions.collect(), chunks: chunks.collect() }).await
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match key.len() {
            0 => return Err(StoreError::KeyEmpty),
            len if len > LIMITS.max_key => return Err(StoreError::KeyTooLong { len, max: LIMITS.max_key }),
            _ => {}
        }
        match self.call(Request::Get { map: index(keyspace), key: Bytes::copy_from_slice(key) }).await? {
            Response::Value(value) => Ok(value),
            other => Err(misplaced(&other)),
        }
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        let options = options.max_bytes(options.max_bytes.min(MAX_PAGE));
        let request = Request::Scan {
            map: index(keyspace),
            range: range.clone(),
            max_entries: options.max_entries as u64,
            max_bytes: options.max_bytes as u64,
            reverse: options.reverse,
        };
        let entries = match self.call(request).await? {
            Response::Entries(entries) => entries,
            other => return Err(misplaced(&other)),
        };
        // The same builder on both sides: it says where the next page goes on.
        let mut page = PageBuilder::new(range.clone(), options);
        for (key, value) in entries.iter().filter(|(key, _)| range.contains(key)) {
            if page.push(key, value).is_full() {
                break;
            }
        }
        Ok(page.finish())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.done(Request::Sync).await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.reopening.lock().await;
        match self.sync().await {
            Err(StoreError::Fatal { .. }) => {}
            well_or_closed => return well_or_closed,
        }
        // From here on the server refuses what our older connection may still hold: what it has now is the truth.
        let fresh = connect(self.address, self.client).await?;
        match &mut *locked(&self.calls) {
            Some(calls) => *calls = fresh,
            None => return Err(StoreError::Closed),
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), StoreError> {
        let Some(calls) = locked(&self.calls).take() else { return Ok(()) };
        let lost = || StoreError::Fatal { reason: "the connection was lost; it is closed nevertheless".into() };
        let (answer, answered) = oneshot::channel();
        calls.send(Call { request: Request::Close, answer }).await.map_err(|_| lost())?;
        answered.await.map(drop).map_err(|_| lost())
    }

    fn limits(&self) -> StoreLimits {
        LIMITS
    }
}

async fn connect(address: SocketAddr, client: u64) -> Result<mpsc::Sender<Call>, StoreError> {
    let mut stream = TcpStream::connect(address).await.map_err(StoreError::backend)?;
    stream.set_nodelay(true).map_err(StoreError::backend)?;
    write_frame(&mut stream, &Request::Open { client }).await.map_err(StoreError::backend)?;
    match timeout(PATIENCE, read_frame(&mut stream)).await.map_err(StoreError::backend)?.map_err(StoreError::backend)? {
        Response::Done => {}
        Response::Busy => return Err(StoreError::Busy { holder: format!("another client of {address}") }),
        other => return Err(misplaced(&other)),
    }
    let (calls, receiver) = mpsc::channel(PIPELINE);
    tokio::spawn(converse(stream, receiver));
    Ok(calls)
}

// Owns the socket, so that no caller that goes away leaves half a frame in it. When it ends, early or not, every call
// that was not answered loses its sender, and its caller hears of that.
async fn converse(stream: TcpStream, mut calls: mpsc::Receiver<Call>) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let (waiting, mut answers) = mpsc::channel(PIPELINE);
    let writing = async move {
        while let Some(Call { request, answer }) = calls.recv().await {
            if waiting.send(answer).await.is_err() {
                break;
            }
            write_frame(&mut to, &request).await?;
        }
        Ok(())
    };
    let reading = async move {
        while let Some(answer) = answers.recv().await {
            // A caller that went away does not want to know; its call is decided all the same.
            drop(answer.send(timeout(PATIENCE, read_frame(&mut from)).await??));
        }
        Ok(())
    };
    tokio::try_join!(writing, reading).map(drop)
}

fn misplaced(response: &Response) -> StoreError {
    StoreError::Fatal { reason: format!("the server answered out of place: {response:?}") }
}

// ---- The server --------------------------------------------------------------------------------------------------

type Map = BTreeMap<Bytes, Bytes>;

/// What the server holds: in memory, for as long as it runs. One with a disk would take the durability along in
/// `Apply`, and answer when it has synced.
#[derive(Debug, Default)]
struct Held {
    maps: [Map; 3],
    /// The client that has the store open. One that vanished without a word would hold it until TCP gives up; where
    /// that is too long, holding is a lease.
    holder: Option<u64>,
    /// Counts opens: requests of an older connection are refused.
    generation: u64,
}

/// Serves one store to one client at a time.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let held = Arc::new(Mutex::new(Held::default()));
    loop {
        let (stream, _) = listener.accept().await?;
        let held = held.clone();
        tokio::spawn(async move { serve_one(stream, &held).await });
    }
}

async fn serve_one(mut stream: TcpStream, held: &Mutex<Held>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Request::Open { client } = read_frame(&mut stream).await? else { return Ok(()) };
    let Some(generation) = locked(held).open(client) else { return write_frame(&mut stream, &Response::Busy).await };
    let answering = async {
        write_frame(&mut stream, &Response::Done).await?;
        loop {
            let request = read_frame(&mut stream).await?;
            let Some(response) = locked(held).answer(generation, request) else { return Ok(()) };
            write_frame(&mut stream, &response).await?;
        }
    };
    let result = answering.await;
    locked(held).release(generation);
    result
}

impl Held {
    fn open(&mut self, client: u64) -> Option<u64> {
        if self.holder.is_some_and(|holder| holder != client) {
            return None;
        }
        self.holder = Some(client);
        self.generation += 1;
        Some(self.generation)
    }

    fn release(&mut self, generation: u64) {
        if self.generation == generation {
            self.holder = None;
        }
    }

    // `None` ends the connection: it is not the holder's any more, or what it says makes no sense.
    fn answer(&mut self, generation: u64, request: Request) -> Option<Response> {
        if self.holder.is_none() || self.generation != generation {
            return None;
        }
        Some(match request {
            Request::Open { .. } => return None,
            Request::Apply { conditions, chunks } => return self.apply(&conditions, &chunks),
            Request::Get { map, key } => Response::Value(self.maps.get(usize::from(map))?.get(&key).cloned()),
            Request::Scan { map, range, max_entries, max_bytes, reverse } => {
                let (max_entries, max_bytes) = (clamp(max_entries), clamp(max_bytes).min(MAX_PAGE));
                let options = ScanOptions { max_entries, max_bytes, reverse };
                let page = page(self.maps.get(usize::from(map))?, &range, options);
                Response::Entries(page.entries().collect())
            }
            Request::Sync => Response::Done,
            Request::Close => {
                self.release(generation);
                Response::Done
            }
        })
    }

    // Everything is checked before anything is changed, and all of it happens under one lock.
    fn apply(&mut self, conditions: &[(Bytes, Option<Bytes>)], chunks: &[(u8, Bytes)]) -> Option<Response> {
        let meta = &self.maps[usize::from(index(Keyspace::Meta))];
        if conditions.iter().any(|(key, value)| meta.get(key) != value.as_ref()) {
            return Some(Response::HeadMoved);
        }
        let mut ops = Vec::new();
        for (map, chunk) in chunks {
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let (op, after) = postcard::take_from_bytes::<Op<'_>>(rest).ok()?;
                ops.push((usize::from(*map), op));
                rest = after;
            }
        }
        if ops.iter().any(|(map, _)| *map >= self.maps.len()) {
            return None;
        }
        ops.into_iter().for_each(|(map, op)| change(&mut self.maps[map], op));
        Some(Response::Done)
    }
}

fn change(map: &mut Map, op: Op<'_>) {
    match op {
        Op::Put { key, value } => drop(map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))),
        Op::Delete { key } => drop(map.remove(key)),
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(start.to_vec(), end.map(|end| end.to_vec().into()));
            if !range.is_empty() {
                let gone: Vec<Bytes> = map.range::<[u8], _>(bounds(&range)).map(|(key, _)| key.clone()).collect();
                gone.iter().for_each(|key| drop(map.remove(key)));
            }
        }
    }
}

fn page(map: &Map, range: &KeyRange, options: ScanOptions) -> Page {
    let mut page = PageBuilder::new(range.clone(), options);
    if range.is_empty() {
        return page.finish();
    }
    let mut entries = map.range::<[u8], _>(bounds(range));
    while let Some((key, value)) = if options.reverse { entries.next_back() } else { entries.next() } {
        if page.push(key, value).is_full() {
            break;
        }
    }
    page.finish()
}

fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = range.end().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
    (Bound::Included(&range.start()[..]), end)
}

fn clamp(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

// ---- Both --------------------------------------------------------------------------------------------------------

fn index(keyspace: Keyspace) -> u8 {
    match keyspace {
        Keyspace::Data => 0,
        Keyspace::Log => 1,
        Keyspace::Meta => 2,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_frame(to: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let mut frame = postcard::to_extend(message, vec![0; 4]).map_err(io::Error::other)?;
    let len = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&len.to_le_bytes());
    to.write_all(&frame).await
}

async fn read_frame<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let len = from.read_u32_le().await? as usize;
    if len > MAX_FRAME {
        return Err(io::Error::other(format!("a frame of {len} bytes, at most {MAX_FRAME} are allowed")));
    }
    let mut frame = vec![0; len];
    from.read_exact(&mut frame).await?;
    postcard::from_bytes(&frame).map_err(io::Error::other)
}

#[allow(dead_code, reason = "the tests include this file for its store alone")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    use replikv::{Batch, Master, MasterConfig, MemoryStore, Slave, SlaveConfig};
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener));
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
    let slave = Slave::open(NetStore::connect(address).await?, SlaveConfig::new("far-away")).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    let token = master.write(Batch::new().put("greeting", "hello").delete("old")).await?;
    slave.wait_applied(token).await?;
    println!("a store on the other side of a network has followed, up to record {}", token.seq);
    slave.shutdown().await?;
    Ok(master.shutdown().await?)
}
