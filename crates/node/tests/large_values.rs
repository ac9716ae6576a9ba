//! Values that do not fit into one buffer: the store gets them for itself alone, once.

use crate::support::{self, Error, Store, assert_equal, connect, slave, soon, store, transient};
use futures_util::{StreamExt, TryStreamExt};
use replikv_core::{Batch, StoreLimits};
use replikv_node::{ChangeOp, ChangesError, ChangesFrom, FollowError, Master, MasterConfig};
use replikv_testkit::ApplyFault;

const MIB: usize = 1 << 20;
/// More than the longest buffer.
const LARGE: usize = 40 * MIB;

async fn master() -> Master<Store> {
    let limits = StoreLimits { max_key: 511, max_value: LARGE, max_batch: LARGE + MIB };
    support::master(&store(), MasterConfig::default().limits(limits)).await
}

fn large() -> Batch {
    let value: Vec<u8> = (0..LARGE / MIB).flat_map(|block| vec![block as u8; MIB]).collect();
    Batch::new().put("before", "x").put("large", value).put("next", "x")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_that_the_store_refuses_comes_again_with_the_next_connection() -> Result<(), Error> {
    let (master, copy) = (master().await, store());
    let slave = slave(&copy, "edge").await;
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    copy.faults().next_apply(ApplyFault::Refuse(transient()));
    let token = master.write(large()).await?;
    let ended = soon(following).await?;
    assert!(matches!(&ended, Err(FollowError::Store(error)) if error.is_retryable()), "{ended:?}");
    assert!(ended.is_err_and(|error| error.is_retryable()), "follow_tcp tries again by itself");
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_applied(token)).await?;
    assert_equal(&master, &slave).await;
    following.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_that_somebody_listens_for_is_told_and_tried_again() -> Result<(), Error> {
    let (master, copy) = (master().await, store());
    let slave = slave(&copy, "edge").await;
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    let mut changes = slave.changes(ChangesFrom::Now, []).await?;
    copy.faults().next_apply(ApplyFault::Refuse(transient()));
    let token = master.write(large()).await?;
    soon(slave.wait_applied(token)).await?;
    let change = soon(changes.try_next()).await?.ok_or("the stream has ended")?;
    let lengths: Vec<_> =
        change.ops().map(|op| if let ChangeOp::Put { value, .. } = op { value.len() } else { 0 }).collect();
    assert_eq!(lengths, [1, LARGE, 1]);
    assert!(!following.is_finished());
    assert_equal(&master, &slave).await;
    following.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_to_listen_while_a_large_value_is_applied_is_told_that_it_was_missed() -> Result<(), Error> {
    let (master, copy) = (master().await, store());
    let slave = slave(&copy, "edge").await;
    let (_serving, following) = connect(&master, &slave);
    soon(slave.wait_caught_up()).await?;
    let held = copy.faults().hold_apply();
    let token = master.write(large()).await?;
    soon(held.reached()).await;
    let mut changes = slave.changes(ChangesFrom::Now, []).await?;
    held.release();
    soon(slave.wait_applied(token)).await?;
    let told = soon(changes.next()).await;
    assert!(matches!(told, Some(Err(ChangesError::Missed { groups: 1 }))), "a gap is not silent");
    following.abort();
    Ok(())
}
