//! Slaves that are asked how they are.

use std::time::Duration;

use replikv_core::Seq;
use replikv_memory::MemoryStore;
use replikv_node::{FollowError, Master, MasterConfig, ServeError, Slave, SlaveConfig, remote_status};
use replikv_proto::{Message, ProtocolError, RejectCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("it does not take that long")
}

async fn slave(config: SlaveConfig) -> Result<Slave<MemoryStore>> {
    Ok(Slave::open(MemoryStore::new(), config).await?)
}

#[tokio::test]
async fn a_slave_tells_its_status_to_whoever_asks() -> Result {
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await?;
    let slave = slave(SlaveConfig::new("edge")).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let answering = tokio::spawn(slave.clone().serve_status_tcp(listener));
    let ask = || async move {
        let answer = soon(remote_status(TcpStream::connect(address).await?)).await?;
        Result::<serde_json::Value>::Ok(serde_json::from_slice(&answer)?)
    };
    let status = ask().await?;
    assert_eq!((&status["name"], &status["state"]), (&"edge".into(), &"empty".into()));
    assert_eq!((&status["health"]["state"], &status["lag"]), (&"disconnected".into(), &serde_json::Value::Null));

    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(here).await });
    tokio::spawn(async move { following.follow(there).await });
    let token = master.put("a", "1").await?;
    soon(slave.wait_applied(token)).await?;
    soon(slave.wait_caught_up()).await?;
    let status = ask().await?;
    assert_eq!((&status["health"]["state"], &status["lag"]["seqs"]), (&"ready".into(), &0.into()));
    assert_eq!(status["position"]["seq"], token.seq.as_u64());

    slave.shutdown().await?;
    soon(answering).await??;
    Ok(())
}

#[tokio::test]
async fn one_connection_may_ask_as_often_as_it_likes() -> Result {
    use futures_util::{SinkExt, StreamExt};
    use replikv_proto::{DecoderLimits, Request, RequestBody};
    let slave = slave(SlaveConfig::new("edge")).await?;
    let (here, there) = tokio::io::duplex(64);
    let answering = tokio::spawn(async move { slave.serve_status(there).await });
    let limits = DecoderLimits { control: 1 << 20, data: 1 << 20 };
    let mut asking = tokio_util::codec::Framed::new(here, replikv_node::Codec::new(limits));
    for id in 1..=100 {
        asking.send(Message::Request(Request { id, body: RequestBody::Status })).await?;
        match soon(asking.next()).await.ok_or("no answer")?? {
            Message::Response(response) => assert_eq!((response.id, response.body.is_ok()), (id, true)),
            other => panic!("{} is no answer", other.name()),
        }
    }
    drop(asking);
    soon(answering).await??;
    Ok(())
}

#[tokio::test]
async fn whoever_wants_to_follow_a_slave_is_refused_by_name() -> Result {
    let (upper, lower) = (slave(SlaveConfig::new("upper")).await?, slave(SlaveConfig::new("lower")).await?);
    let (here, there) = tokio::io::duplex(64 << 10);
    let (served, followed) = soon(async { tokio::join!(upper.serve_status(there), lower.follow(here)) }).await;
    assert!(matches!(served, Err(ServeError::Refused(refusal)) if refusal.code == RejectCode::Unsupported));
    match followed {
        Err(error @ FollowError::Refused(_)) => {
            assert!(error.to_string().contains("this address of a slave") && !error.is_retryable(), "{error}");
        }
        other => panic!("it should be refused: {other:?}"),
    }
    assert_eq!(lower.status().durable, Seq::ZERO);
    Ok(())
}

#[tokio::test]
async fn whoever_says_nothing_or_nonsense_is_let_go() -> Result {
    let slave = slave(SlaveConfig::new("edge").handshake_timeout(Duration::from_millis(50))).await?;
    let (_kept, there) = tokio::io::duplex(64 << 10);
    let silent = soon(slave.serve_status(there)).await;
    assert!(matches!(silent, Err(ServeError::Protocol(ProtocolError::Silent { .. }))), "{silent:?}");
    let (mut here, there) = tokio::io::duplex(64 << 10);
    here.write_all(&[0x55; 1000]).await?;
    assert!(matches!(soon(slave.serve_status(there)).await, Err(ServeError::Connection(_))));
    let mut left = Vec::new();
    soon(here.read_to_end(&mut left)).await?;
    Ok(())
}
