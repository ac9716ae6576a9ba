//! A program that keeps its data in sled, and knows nothing of replication.
//!
//! `take DIR` reads events from standard input, one JSON object a line, and writes each in a transaction of its own.
//! `print DIR` prints what the directory holds. `main.rs` beside this is the same program as a master: the lines in
//! which they differ are all that it took.

use std::io::{BufRead, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sled::transaction::{ConflictableTransactionError, Transactional};
use sled::{Db, Tree};

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

/// Writes every event of `input`.
pub(crate) async fn take(shop: &Shop, input: impl BufRead) -> Result<(), Error> {
    for line in input.lines() {
        match serde_json::from_str(&line?)? {
            Event::Joined { name, customer, portrait } => {
                let customer = serde_json::to_vec(&customer)?;
                (&shop.customers, &shop.portraits).transaction(|(customers, portraits)| {
                    customers.insert(name.as_bytes(), &customer[..])?;
                    portraits.insert(name.as_bytes(), &portrait[..])?;
                    Ok::<_, ConflictableTransactionError>(())
                })?;
            }
            Event::Ordered { number, what } => {
                shop.orders.insert(number.to_be_bytes(), what.as_bytes())?;
            }
            Event::Left { name } => {
                (&shop.customers, &shop.portraits).transaction(|(customers, portraits)| {
                    customers.remove(name.as_bytes())?;
                    portraits.remove(name.as_bytes())?;
                    Ok::<_, ConflictableTransactionError>(())
                })?;
            }
        }
        shop.db.flush_async().await?;
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
        "take" => take(&shop, std::io::stdin().lock()).await,
        "print" => print(&shop, std::io::stdout().lock()),
        _ => Err("usage: take DIR < EVENTS, or print DIR".into()),
    }
}
