//! Two masters on one store.

use crate::support::{self, Error, assert_equal, chain, connect, contents, master, slave, soon, store};
use replikv_core::Batch;
use replikv_node::{HealthState, MasterConfig, WriteError};

#[tokio::test]
async fn the_first_master_is_fenced_once_the_second_has_written() -> Result<(), Error> {
    let store = store();
    let one = master(&store, MasterConfig::default()).await;
    one.put("a", "1").await?;
    let two = master(&store, MasterConfig::default()).await;
    assert_eq!(one.source(), two.source());
    two.put("b", "2").await?;
    let before = contents(&store).await;
    let fenced = one.write(Batch::new().put("a", "overwritten").put("c", "3").delete("b")).await;
    assert!(matches!(fenced, Err(WriteError::Fenced)), "{fenced:?}");
    assert_eq!(contents(&store).await, before, "nothing of the batch is there");
    let status = one.status();
    assert_eq!(status.health.state, HealthState::Blocked);
    assert!(status.health.reason.contains("another master"), "{}", status.health.reason);
    assert_eq!(status.handed, status.published);
    assert!(matches!(one.put("d", "4").await, Err(WriteError::Fenced)), "it never writes again");
    two.put("e", "5").await?;
    assert_eq!(chain(&store).await, [1, 2, 3, 4]);
    Ok(())
}

#[tokio::test]
async fn two_masters_that_write_at_once_never_make_two_records_of_one_number() -> Result<(), Error> {
    for _ in 0..20 {
        let store = store();
        let one = master(&store, MasterConfig::default()).await;
        let two = master(&store, MasterConfig::default()).await;
        let write = |master: &replikv_node::Master<support::Store>, name: &'static str| {
            let master = master.clone();
            tokio::spawn(async move {
                let mut written = Vec::new();
                for n in 0..30u8 {
                    let key = format!("{name}{n}");
                    match master.put(&key, "v").await {
                        Ok(token) => written.push((token.seq.as_u64(), key)),
                        Err(WriteError::Fenced) => {}
                        Err(error) => panic!("{error}"),
                    }
                    tokio::task::yield_now().await;
                }
                written
            })
        };
        let (first, second) = (write(&one, "one"), write(&two, "two"));
        let mut written = soon(first).await?;
        written.extend(soon(second).await?);
        written.sort();
        let seqs: Vec<u64> = written.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(chain(&store).await, [vec![1], seqs].concat(), "every write that was answered is one record");
        let mut keys: Vec<_> = written.into_iter().map(|(_, key)| key.into_bytes()).collect();
        keys.sort();
        let found: Vec<_> = contents(&store).await.into_iter().map(|(key, _)| key.to_vec()).collect();
        assert_eq!(found, keys, "and nothing else is there");
    }
    Ok(())
}

#[tokio::test]
async fn a_slave_of_the_fenced_master_goes_on_at_the_second_one() -> Result<(), Error> {
    let (store, copy) = (store(), store());
    let one = master(&store, MasterConfig::default()).await;
    let slave = slave(&copy, "edge").await;
    let (serving, following) = connect(&one, &slave);
    let token = one.put("a", "1").await?;
    soon(slave.wait_applied(token)).await?;
    let two = master(&store, MasterConfig::default()).await;
    let token = two.put("b", "2").await?;
    assert!(matches!(one.put("c", "3").await, Err(WriteError::Fenced)));
    following.abort();
    drop(soon(serving).await);
    connect(&two, &slave);
    soon(slave.wait_applied(token)).await?;
    assert_equal(&two, &slave).await;
    Ok(())
}
