//! A program without async: a warehouse that books stock in LMDB, and a shop that reads its copy of it from sled.
//!
//! ```sh
//! cargo run --example sync_program --features sled
//! ```

use std::thread;
use std::time::Duration;

use replikv::{
    Abort, Batch, BlockingError, BlockingMaster, BlockingSlave, ChangesFrom, KeyRange, LmdbOptions, LmdbStore,
    MasterConfig, ReplicaStore, ScanOptions, SlaveConfig, SledStore, Token, WriteError,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result {
    let dir = tempfile::tempdir()?;
    let warehouse = LmdbStore::open(dir.path().join("warehouse"), LmdbOptions::default())?;
    let warehouse = BlockingMaster::open(warehouse, MasterConfig::default())?;
    let serving = warehouse.serve_tcp("127.0.0.1:0")?;
    println!("the warehouse serves on {}", serving.local_addr());

    // What arrives together is booked together.
    let delivery = Batch::new().put("stock/bolts", "500").put("stock/nuts", "300").put("stock/washers", "80");
    warehouse.write(delivery.note("delivery 4711"))?;
    warehouse.put("open", "yes")?;

    let shop = SledStore::open(dir.path().join("shop"))?;
    let shop = BlockingSlave::open(shop, SlaveConfig::new("shop"))?;
    let mut following = shop.follow_tcp(serving.local_addr())?;
    shop.wait_caught_up(PATIENCE)?;
    assert_eq!(number(shop.get("stock/bolts")?), 500);

    // Four clerks at once, and no bolt is sold twice.
    let mut changes = warehouse.changes(ChangesFrom::Now, [KeyRange::prefix("stock/")])?;
    let clerks: Vec<_> = (0..4)
        .map(|_| {
            let warehouse = warehouse.clone();
            thread::spawn(move || (0..10).map(|_| sell(&warehouse, "stock/bolts", 5)).collect::<Vec<_>>())
        })
        .collect();
    let mut last = None;
    for clerk in clerks {
        for sold in clerk.join().map_err(|_| "a clerk panicked")? {
            last = last.max(Some(sold?.seq));
        }
    }
    let last = last.ok_or("nothing was sold")?;

    // Read your writes: the shop has seen the last sale once this returns.
    shop.wait_applied(last, PATIENCE)?;
    let bolts = number(shop.get("stock/bolts")?);
    assert_eq!(bolts, 300);
    println!("40 sales later the shop counts {bolts} bolts");

    // Each sale is one change, in order.
    let mut seen = 0;
    while let Some(change) = changes.next_within(PATIENCE)? {
        seen += change.batches();
        if change.position().seq == last {
            break;
        }
    }
    assert_eq!(seen, 40);
    println!("{seen} changes of the stock were told");

    // What is not there cannot be sold, and nothing is written.
    match sell(&warehouse, "stock/washers", 81) {
        Err(BlockingError::Write(WriteError::Aborted { reason })) => {
            assert_eq!(reason, "80 left of stock/washers");
            println!("refused: {reason}");
        }
        other => return Err(format!("81 of 80 washers were sold: {other:?}").into()),
    }

    // Not before a second disk holds it.
    let closing = Batch::new().delete("open").put("closed", "see you tomorrow");
    warehouse.write_replicated(closing, 1, PATIENCE)?;
    let all: Vec<_> = shop.entries(KeyRange::all(), ScanOptions::default()).collect::<std::result::Result<_, _>>()?;
    let keys: Vec<_> = all.iter().map(|(key, _)| String::from_utf8_lossy(key)).collect();
    assert_eq!(keys, ["closed", "stock/bolts", "stock/nuts", "stock/washers"]);
    println!("the shop holds {}", keys.join(", "));

    assert!(following.result()?.is_none(), "it follows until it is told to stop");
    let ending = following.stop()??;
    println!("the shop stopped following: {ending:?}");
    shop.shutdown()?;
    serving.stop()?;
    warehouse.shutdown()?;

    // Everything is on disk, and a store that was shut down can be opened again.
    let shop = SledStore::open(dir.path().join("shop"))?;
    let shop = BlockingSlave::open(shop, SlaveConfig::new("shop"))?;
    assert_eq!(number(shop.get("stock/bolts")?), 300);
    Ok(shop.shutdown()?)
}

fn sell<S: ReplicaStore>(
    warehouse: &BlockingMaster<S>,
    article: &'static str,
    count: u64,
) -> std::result::Result<Token, BlockingError> {
    warehouse.transact(move |view, batch| {
        let stock = number(view.get(article)?);
        let left = stock.checked_sub(count).ok_or_else(|| Abort::refuse(format!("{stock} left of {article}")))?;
        Ok(batch.put(article, left.to_string()))
    })
}

fn number(value: Option<impl AsRef<[u8]>>) -> u64 {
    value.and_then(|value| std::str::from_utf8(value.as_ref()).ok()?.parse().ok()).unwrap_or(0)
}
