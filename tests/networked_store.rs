//! The store of `examples/networked_store.rs` obeys every law, and what a network can do to it is survived.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::support::{Error, Store, assert_equal, soon};
use replikv::{
    Durability, Keyspace, Master, MasterConfig, MemoryStore, Outcome, ReplicaStore, Slave, SlaveConfig, StoreError,
    WriteError, WriteSet,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

#[path = "../examples/networked_store.rs"]
#[allow(unreachable_pub, reason = "an example is a program, and here a module")]
mod example;

use example::{NetStore, serve};

async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener));
    address
}

// A server of its own for each store: what it holds lives as long as the law.
fn open(_dir: &Path) -> Result<Arc<dyn ReplicaStore>, StoreError> {
    let connecting = async { NetStore::connect(server().await).await };
    Ok(Arc::new(tokio::task::block_in_place(|| Handle::current().block_on(connecting))?))
}

replikv_testkit::conformance_suite!(open, volatile);

/// What happens to the next bytes on the line.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Line {
    Open,
    /// The next request does not reach the server, and the line is cut.
    CutRequest,
    /// The next answer does not reach the client, and the line is cut.
    CutAnswer,
    /// The client is cut off; its next request reaches the server when it is let go.
    HoldRequest,
}

/// What happens, and to which request: the first one that holds these bytes.
#[derive(Debug)]
struct Rule {
    line: Line,
    holding: &'static str,
}

impl Rule {
    const NONE: Self = Self { line: Line::Open, holding: "" };

    fn takes(&self, request: &[u8]) -> bool {
        self.holding.is_empty() || request.windows(self.holding.len()).any(|part| part == self.holding.as_bytes())
    }
}

/// A line between client and server.
struct Proxy {
    address: SocketAddr,
    line: Arc<Mutex<Rule>>,
    /// Requests that are held back, with the connection that they were made on.
    held: mpsc::UnboundedReceiver<(Vec<u8>, TcpStream)>,
}

impl Proxy {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, line) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Rule::NONE)));
        let (hold, held) = mpsc::unbounded_channel();
        let rule = line.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(server).await.unwrap();
                tokio::spawn(forward(client, server, rule.clone(), hold.clone()));
            }
        });
        Self { address, line, held }
    }

    fn next(&self, line: Line) {
        self.next_that_holds("", line);
    }

    fn next_that_holds(&self, holding: &'static str, line: Line) {
        *self.line.lock().unwrap() = Rule { line, holding };
    }
}

async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    rule: Arc<Mutex<Rule>>,
    hold: mpsc::UnboundedSender<(Vec<u8>, TcpStream)>,
) {
    let (mut requests, mut answers) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut cut_answer = false;
    loop {
        tokio::select! {
            read = client.read(&mut requests) => {
                let Ok(len @ 1..) = read else { return };
                if rule.lock().unwrap().takes(&requests[..len]) {
                    let taken = std::mem::replace(&mut *rule.lock().unwrap(), Rule::NONE);
                    match taken.line {
                        Line::CutRequest => return,
                        Line::HoldRequest => return drop(hold.send((requests[..len].to_vec(), server))),
                        Line::CutAnswer => cut_answer = true,
                        Line::Open => {}
                    }
                }
                server.write_all(&requests[..len]).await.unwrap();
            }
            read = server.read(&mut answers) => {
                let Ok(len @ 1..) = read else { return };
                if cut_answer {
                    return;
                }
                client.write_all(&answers[..len]).await.unwrap();
            }
        }
    }
}

fn put(key: &str) -> WriteSet {
    let mut writes = WriteSet::builder();
    writes.put(Keyspace::Data, key, "").unwrap();
    writes.build()
}

async fn is_refusing(store: &NetStore) -> bool {
    let read = store.get(Keyspace::Data, b"key").await;
    let written = store.apply(put("other"), Durability::Synced).await;
    matches!(read, Err(StoreError::Fatal { .. })) && matches!(written, Err(StoreError::Fatal { .. }))
}

#[tokio::test]
async fn a_connection_lost_after_an_apply_leaves_its_outcome_unknown_until_reopened() -> Result<(), Error> {
    for (line, is_there) in [(Line::CutAnswer, true), (Line::CutRequest, false)] {
        let proxy = Proxy::to(server().await).await;
        let store = NetStore::connect(proxy.address).await?;
        proxy.next(line);
        let error = soon(store.apply(put("key"), Durability::Synced)).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
        assert!(soon(is_refusing(&store)).await, "a store with an unknown outcome answers nothing");
        soon(store.reopen()).await?;
        assert_eq!(store.get(Keyspace::Data, b"key").await?.is_some(), is_there, "{line:?}");
        store.apply(put("other"), Durability::Synced).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_request_that_comes_late_on_an_old_connection_is_refused() -> Result<(), Error> {
    let mut proxy = Proxy::to(server().await).await;
    let store = NetStore::connect(proxy.address).await?;
    proxy.next(Line::HoldRequest);
    soon(store.apply(put("late"), Durability::Synced)).await.unwrap_err();
    soon(store.reopen()).await?;
    assert_eq!(store.get(Keyspace::Data, b"late").await?, None);
    let (request, mut connection) = soon(proxy.held.recv()).await.ok_or("nothing was held back")?;
    connection.write_all(&request).await?;
    match soon(connection.read(&mut [0; 64])).await {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => return Err(format!("the server answered an old connection: {other:?}").into()),
    }
    assert_eq!(store.get(Keyspace::Data, b"late").await?, None, "what reopening has shown is what stays");
    Ok(())
}

#[tokio::test]
async fn one_client_at_a_time_has_the_store_and_what_it_wrote_outlives_it() -> Result<(), Error> {
    let address = server().await;
    let store = NetStore::connect(address).await?;
    store.apply(put("key"), Durability::Synced).await?;
    let second = NetStore::connect(address).await;
    assert!(matches!(second, Err(StoreError::Busy { .. })), "{second:?}");
    store.close().await?;
    let second = NetStore::connect(address).await?;
    assert!(second.get(Keyspace::Data, b"key").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_master_goes_on_after_its_store_was_cut_off() -> Result<(), Error> {
    let proxy = Proxy::to(server().await).await;
    let store: Store = Arc::new(NetStore::connect(proxy.address).await?);
    let master = Master::open(store, MasterConfig::default()).await?;
    master.put("before", "1").await?;
    for (key, line) in [("cut 0", Line::CutAnswer), ("cut 1", Line::CutRequest)] {
        // The master looks after its store now and then; that request is not meant.
        proxy.next_that_holds(key, line);
        let unknown = soon(master.put(key, "1")).await;
        assert!(matches!(unknown, Err(WriteError::OutcomeUnknown { .. })), "{unknown:?}");
        soon(master.put(format!("after {key}"), "1")).await?;
    }
    // The one of which only the answer was lost is there, the other is not, and the log says the same.
    assert!(master.get("cut 0").await?.is_some() && master.get("cut 1").await?.is_none());
    let memory: Store = Arc::new(MemoryStore::new());
    let slave = Slave::open(memory, SlaveConfig::new("edge")).await?;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    let token = master.put("last", "word").await?;
    soon(slave.wait_applied(token)).await?;
    assert_equal(master.store(), slave.store()).await;
    Ok(())
}
