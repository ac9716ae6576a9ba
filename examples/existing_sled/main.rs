//! A program that keeps its data in sled, and is a master: its slaves have the same trees.
//!
//! `take DIR` reads events from standard input, one JSON object a line, and writes each in a batch of its own; slaves
//! connect to the address in `LISTEN`. `print DIR` prints what the directory holds. `follow DIR ADDRESS` makes it that of
//! a slave, until Ctrl-C; `print`, and the program in `before.rs` beside this, read that as well. `before.rs` is the same
//! program before it was a master: the lines in which they differ are all that it took.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::Path;

use replikv::{Batch, Master, MasterConfig, Slave, SlaveConfig, SledOptions, SledStore, Subspace};
use serde::{Deserialize, Serialize};
use sled::{Db, Tree};
use tokio::net::TcpListener;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Somebody who buys things.
#[derive(Debug, Serialize, Deserialize)]
struct Customer {
    email: String,
    discount: Option<u8>,
}

/// What happens in a shop.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Joined { name: String, customer: Customer, portrait: Vec<u8> },
    Ordered { number: u64, what: String },
    Left { name: String },
}

/// The trees of the shop.
pub(crate) struct Shop {
    db: Db,
    customers: Tree,
    orders: Tree,
    portraits: Tree,
}

impl Shop {
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let db = sled::open(dir)?;
        let (customers, orders) = (db.open_tree("customers")?, db.open_tree("orders")?);
        Ok(Self { customers, orders, portraits: db.open_tree("portraits")?, db })
    }
}

const TREES: [&str; 3] = ["customers", "orders", "portraits"];

/// A store of the trees of the shop, for a master or a slave.
pub(crate) fn store(shop: &Shop) -> Result<SledStore, Error> {
    Ok(SledStore::from_db(shop.db.clone(), SledOptions::default().trees(TREES))?)
}

/// Writes every event of `input`.
pub(crate) async fn take(master: &Master<SledStore>, input: impl BufRead) -> Result<(), Error> {
    let [customers, orders, portraits] = TREES.map(Subspace::named);
    for line in input.lines() {
        match serde_json::from_str(&line?)? {
            Event::Joined { name, customer, portrait } => {
                let customer = serde_json::to_vec(&customer)?;
                let batch = Batch::new().put(customers.key(&name), customer).put(portraits.key(&name), portrait);
                master.write(batch).await?;
            }
            Event::Ordered { number, what } => {
                master.put(orders.key(number.to_be_bytes()), what).await?;
            }
            Event::Left { name } => {
                master.write(Batch::new().delete(customers.key(&name)).delete(portraits.key(&name))).await?;
            }
        }
    }
    Ok(())
}

/// Prints what there is.
pub(crate) fn print(shop: &Shop, mut output: impl Write) -> Result<(), Error> {
    for entry in &shop.customers {
        let (name, customer) = entry?;
        let customer: Customer = serde_json::from_slice(&customer)?;
        let portrait = shop.portraits.get(&name)?.unwrap_or_default();
        let name = String::from_utf8_lossy(&name);
        writeln!(
            output,
            "{name} <{}>, {:?}, a portrait of {} bytes",
            customer.email,
            customer.discount,
            portrait.len()
        )?;
    }
    for entry in shop.orders.range(10u64.to_be_bytes()..) {
        let (number, what) = entry?;
        let number = u64::from_be_bytes(number[..].try_into()?);
        writeln!(output, "order {number}: {}", String::from_utf8_lossy(&what))?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let shop = Shop::open(Path::new(&arguments.next().ok_or("usage: take DIR < EVENTS, or print DIR")?))?;
    match &command[..] {
        "take" => {
            let master = Master::open(store(&shop)?, MasterConfig::default()).await?;
            tokio::spawn(master.clone().serve_tcp(TcpListener::bind(std::env::var("LISTEN")?).await?));
            take(&master, std::io::stdin().lock()).await?;
            Ok(master.shutdown().await?)
        }
        "follow" => {
            let slave = Slave::open(store(&shop)?, SlaveConfig::new("shop")).await?;
            let address: SocketAddr = arguments.next().ok_or("usage: follow DIR ADDRESS")?.parse()?;
            tokio::select! {
                ended = slave.follow_tcp(address) => drop(ended?),
                interrupted = tokio::signal::ctrl_c() => interrupted?,
            }
            Ok(slave.shutdown().await?)
        }
        "print" => print(&shop, std::io::stdout().lock()),
        _ => Err("usage: take DIR < EVENTS, or print DIR".into()),
    }
}
