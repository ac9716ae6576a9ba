//! Transactions that all want the same key.

use std::time::Duration;

use bytes::Bytes;
use replikv_core::{Batch, Token};
use replikv_memory::MemoryStore;
use replikv_node::{Master, MasterConfig, WriteError};
use replikv_proto::{Abort, TransactView};
use tokio::task::JoinSet;
use tokio::time::timeout;

const TASKS: u64 = 64;
const EACH: u64 = 50;

fn number(value: Option<Bytes>) -> u64 {
    value.map_or(0, |value| u64::from_be_bytes(value[..].try_into().expect("eight bytes")))
}

fn increment(view: &TransactView<'_>, batch: Batch) -> Result<Batch, Abort> {
    Ok(batch.put("counter", (number(view.get("counter")?) + 1).to_be_bytes()))
}

async fn run_all(mut tasks: JoinSet<Result<Vec<Token>, WriteError>>) -> Vec<Token> {
    let all = async {
        let mut tokens = Vec::new();
        while let Some(done) = tasks.join_next().await {
            tokens.extend(done.expect("no task panics").expect("nobody has to try again"));
        }
        tokens
    };
    timeout(Duration::from_secs(120), all).await.expect("it does not take that long")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_writers_of_one_counter_lose_nothing_and_never_try_again() {
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let master = master.clone();
        tasks.spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..EACH {
                // Beside the transactions, somebody writes other things into the same groups.
                if task % 8 == 0 {
                    master.put(task.to_be_bytes(), "beside").await?;
                }
                tokens.push(master.transact(increment).await?);
            }
            Ok(tokens)
        });
    }
    let mut tokens = run_all(tasks).await;
    assert_eq!(number(master.get("counter").await.unwrap()), TASKS * EACH);
    tokens.sort_by_key(|token| token.seq);
    tokens.dedup();
    assert_eq!(tokens.len() as u64, TASKS * EACH, "each is a record of its own");
    let status = master.status();
    assert!(status.groups < status.records, "many share a group: {} of {}", status.groups, status.records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_transaction_sees_the_one_before_it() {
    use futures_util::TryStreamExt;
    let master = Master::open(MemoryStore::new(), MasterConfig::default()).await.unwrap();
    let mut changes = master.changes(replikv_node::ChangesFrom::Now, []).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let master = master.clone();
        tasks.spawn(async move { Ok(vec![master.transact(increment).await?]) });
    }
    run_all(tasks).await;
    for count in 1..=TASKS {
        let change = changes.try_next().await.unwrap().expect("the stream goes on");
        let put = replikv_node::ChangeOp::Put {
            key: Bytes::from_static(b"counter"),
            value: Bytes::copy_from_slice(&count.to_be_bytes()),
        };
        assert_eq!(change.ops().collect::<Vec<_>>(), vec![put]);
    }
}
