//! Slaves that have one name, of which the one that came last is served.

use std::time::Duration;

use crate::support::{
    Error, Following, Serving, Store, assert_equal, connect, contents, follow, master, serve, slave, soon, store, until,
};
use replikv_node::{Ending, FollowError, HealthState, KeepLog, Master, MasterConfig, ServeError, Slave, SlaveConfig};
use replikv_proto::{GoodbyeReason, RejectCode};
use replikv_testkit::FaultStore;
use tokio::io::{DuplexStream, copy_bidirectional};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

fn assert_final(ended: &Result<Ending, FollowError>) {
    match ended {
        Err(error @ FollowError::Refused(refusal)) => {
            assert_eq!(refusal.code, RejectCode::DuplicateSlave, "{refusal}");
            assert!(!error.is_retryable() && refusal.words.contains("another slave"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
}

async fn assert_refused(connection: (Serving, Following)) {
    let served = soon(connection.0).await.unwrap();
    assert!(matches!(served, Err(ServeError::Refused(refusal)) if refusal.code == RejectCode::DuplicateSlave));
    assert_final(&soon(connection.1).await.unwrap());
}

/// The slave is gone before anybody tells it anything.
async fn cut(connection: (Serving, Following)) {
    connection.1.abort();
    drop(soon(connection.0).await);
}

fn below(parent: &Slave<Store>, child: &Slave<Store>) -> (Serving, Following) {
    let (here, there) = tokio::io::duplex(64 << 10);
    let parent = parent.clone();
    (tokio::spawn(async move { parent.serve(there).await }), follow(child, here))
}

/// A connection that can be cut so that the slave alone notices: the master's end stays, as long as it is held.
struct Half {
    serving: Serving,
    following: Following,
    cut: oneshot::Sender<()>,
    masters: JoinHandle<DuplexStream>,
}

impl Half {
    fn open(master: &Master<Store>, slave: &Slave<Store>) -> Self {
        let (here, mut near) = tokio::io::duplex(64 << 10);
        let (mut far, there) = tokio::io::duplex(64 << 10);
        let (cut, is_cut) = oneshot::channel();
        let masters = tokio::spawn(async move {
            tokio::select! {
                _ = is_cut => {}
                _ = copy_bidirectional(&mut near, &mut far) => {}
            }
            far
        });
        Self { serving: serve(master, there), following: follow(slave, here), cut, masters }
    }

    async fn cut(self) -> (Serving, DuplexStream) {
        let _is_cut = self.cut.send(());
        let masters = soon(self.masters).await.unwrap();
        assert!(soon(self.following).await.unwrap().is_err_and(|error| error.is_retryable()));
        (self.serving, masters)
    }
}

#[tokio::test]
async fn a_slave_whose_name_was_taken_is_refused_when_it_comes_back() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    let kept = store();
    let (one, two) = (slave(&kept, "edge").await, slave(&store(), "edge").await);
    let first = connect(&master, &one);
    soon(one.wait_caught_up()).await?;
    let second = connect(&master, &two);
    let ended = soon(first.1).await??;
    assert!(matches!(ended, Ending::Goodbye { reason: GoodbyeReason::Replaced, .. }), "{ended:?}");
    for _ in 0..3 {
        assert_refused(connect(&master, &one)).await;
        assert_eq!(one.status().health.state, HealthState::Blocked);
    }
    let token = master.put("a", "1").await?;
    soon(two.wait_applied(token)).await?;
    assert!(!second.1.is_finished() && two.status().connections == 1, "the newer one was never disturbed");
    assert_eq!(master.status().slaves.len(), 1);
    // Opened again it is another one, and the last one that has come.
    one.shutdown().await?;
    let again = slave(&FaultStore::new(kept.inner().open_again()), "edge").await;
    let _third = connect(&master, &again);
    soon(again.wait_applied(token)).await?;
    let ended = soon(second.1).await??;
    assert!(matches!(ended, Ending::Goodbye { reason: GoodbyeReason::Replaced, .. }), "{ended:?}");
    assert_refused(connect(&master, &two)).await;
    Ok(())
}

#[tokio::test]
async fn a_slave_that_was_away_when_its_name_was_taken_is_refused_when_it_comes_back() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    let (one, two) = (slave(&store(), "edge").await, slave(&store(), "edge").await);
    let first = connect(&master, &one);
    soon(one.wait_caught_up()).await?;
    cut(first).await;
    let second = connect(&master, &two);
    soon(two.wait_caught_up()).await?;
    // The newer one may be away itself: it has the name, and gets it back.
    cut(second).await;
    assert_refused(connect(&master, &one)).await;
    let _second = connect(&master, &two);
    let token = master.put("a", "1").await?;
    soon(two.wait_applied(token)).await?;
    assert!(contents(one.store()).await.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_slave_whose_connection_was_cut_takes_its_own_half_open_ones_over() -> Result<(), Error> {
    let master = master(&store(), MasterConfig::default()).await;
    let (one, two) = (slave(&store(), "edge").await, slave(&store(), "edge").await);
    for n in 1..=3u64 {
        let half = Half::open(&master, &one);
        master.put("n", n.to_be_bytes()).await?;
        soon(one.wait_applied(master.status().published.seq)).await?;
        let (serving, _masters) = half.cut().await;
        assert!(!serving.is_finished(), "the master knows nothing of it");
        let again = connect(&master, &one);
        soon(one.wait_caught_up()).await?;
        // Not for good: did the slave still hear it, it would have to connect again.
        let ended = soon(serving).await??;
        assert!(matches!(ended, Ending::Goodbye { reason: GoodbyeReason::Closing, .. }), "{ended:?}");
        assert_eq!((one.status().connections, master.status().slaves.len()), (2 * n, 1));
        cut(again).await;
    }
    // The last of them is half open when another one takes the name.
    let half = Half::open(&master, &one);
    soon(one.wait_caught_up()).await?;
    let (serving, _masters) = half.cut().await;
    let _second = connect(&master, &two);
    let ended = soon(serving).await??;
    assert!(matches!(ended, Ending::Goodbye { reason: GoodbyeReason::Replaced, .. }), "{ended:?}");
    assert_refused(connect(&master, &one)).await;
    soon(two.wait_caught_up()).await?;
    assert_equal(&master, &two).await;
    Ok(())
}

#[tokio::test]
async fn a_relay_refuses_a_slave_whose_name_was_taken_also_once_it_has_moved() -> Result<(), Error> {
    let top = master(&store(), MasterConfig::default()).await;
    let keeps = |name: &str| SlaveConfig::new(name).keep_log(KeepLog::default());
    let (above, relay) = (Slave::open(store(), keeps("above")).await?, Slave::open(store(), keeps("relay")).await?);
    let (one, two) = (slave(&store(), "edge").await, slave(&store(), "edge").await);
    top.put("a", "1").await?;
    let head = || top.status().published.seq;
    let _above = connect(&top, &above);
    let up = connect(&top, &relay);
    for slave in [&above, &relay] {
        soon(slave.wait_applied(head())).await?;
    }
    let first = below(&relay, &one);
    soon(one.wait_applied(head())).await?;
    cut(first).await;
    let second = below(&relay, &two);
    soon(two.wait_applied(head())).await?;
    assert_refused(below(&relay, &one)).await;
    top.put("a", "2").await?;
    soon(two.wait_applied(head())).await?;
    assert!(!second.1.is_finished() && two.status().connections == 1);
    // What it serves now is another history to it, and the slaves are the same.
    cut(up).await;
    let _up = below(&above, &relay);
    let ended = soon(second.1).await??;
    assert!(matches!(ended, Ending::Goodbye { reason: GoodbyeReason::Closing, .. }), "{ended:?}");
    until(|| relay.status().relay.is_some_and(|served| served.blocked.is_none())).await;
    assert_refused(below(&relay, &one)).await;
    let _second = below(&relay, &two);
    top.put("a", "3").await?;
    soon(two.wait_applied(head())).await?;
    assert_equal(&top, &two).await;
    Ok(())
}

#[cfg(feature = "tcp")]
mod tcp {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};

    async fn quick(name: &str) -> Result<Slave<Store>, Error> {
        let config = SlaveConfig::new(name).reconnect(Duration::from_millis(1), Duration::from_millis(5));
        Ok(Slave::open(store(), config).await?)
    }

    async fn served(master: &Master<Store>) -> Result<SocketAddr, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(master.clone().serve_tcp(listener));
        Ok(address)
    }

    fn follows(slave: &Slave<Store>, address: impl ToSocketAddrs + Send + Sync + 'static) -> Following {
        let slave = slave.clone();
        tokio::spawn(async move { slave.follow_tcp(address).await })
    }

    async fn assert_goes_on(master: &Master<Store>, slave: &Slave<Store>, following: &Following) -> Result<(), Error> {
        let token = master.put("goes on", "1").await?;
        soon(slave.wait_applied(token)).await?;
        assert!(!following.is_finished() && slave.status().connections == 1, "it was never disturbed");
        assert_equal(master, slave).await;
        Ok(())
    }

    /// Passes on what goes over one connection to `between`.
    async fn pass_one(between: Arc<TcpListener>, address: SocketAddr) -> std::io::Result<()> {
        let (mut near, _) = between.accept().await?;
        let mut far = TcpStream::connect(address).await?;
        copy_bidirectional(&mut near, &mut far).await.map(drop)
    }

    #[tokio::test]
    async fn a_slave_whose_name_was_taken_stops_connecting() -> Result<(), Error> {
        let master = master(&store(), MasterConfig::default()).await;
        let address = served(&master).await?;
        let (one, two) = (quick("edge").await?, quick("edge").await?);
        let first = follows(&one, address);
        soon(one.wait_caught_up()).await?;
        let second = follows(&two, address);
        assert_final(&soon(first).await?);
        assert_eq!(one.status().health.state, HealthState::Blocked);
        // Whoever starts it once more without opening it again is told the same.
        assert_final(&soon(follows(&one, address)).await?);
        assert_goes_on(&master, &two, &second).await
    }

    #[tokio::test]
    async fn a_slave_that_has_not_heard_that_its_name_was_taken_stops_once_it_comes_back() -> Result<(), Error> {
        let master = master(&store(), MasterConfig::default()).await;
        let address = served(&master).await?;
        let between = TcpListener::bind("127.0.0.1:0").await?;
        let (one, two) = (quick("edge").await?, quick("edge").await?);
        let first = follows(&one, between.local_addr()?);
        let between = Arc::new(between);
        let passing = tokio::spawn(pass_one(between.clone(), address));
        soon(one.wait_caught_up()).await?;
        passing.abort();
        drop(passing.await);
        until(|| master.status().slaves.is_empty()).await;
        let second = follows(&two, address);
        soon(two.wait_caught_up()).await?;
        drop(tokio::spawn(pass_one(between, address)));
        assert_final(&soon(first).await?);
        assert_goes_on(&master, &two, &second).await
    }
}
