//! A program that keeps its data in LMDB, through heed, and is a master: its slaves have the same databases.
//!
//! `take DIR` reads events from standard input, one JSON object a line, and writes each in a transaction of its own.
//! `print DIR` prints what the directory holds. `before.rs` beside this is the same program before it was a master: the
//! lines in which they differ are all that it took. Slaves connect to the address in `LISTEN`.

use std::io::{BufRead, Write};
use std::path::Path;

use heed::byteorder::NativeEndian;
use heed::types::{Bytes, SerdeJson, Str, U64};
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, IntegerComparator};
use replikv::lmdb::LmdbMaster;
use serde::{Deserialize, Serialize};

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

/// The databases of the shop.
struct Shop {
    env: Env,
    customers: Database<'static, Str, SerdeJson<Customer>>,
    orders: Database<'static, U64<NativeEndian>, Str, IntegerComparator>,
    portraits: Database<'static, Str, Bytes>,
}

impl Shop {
    #[allow(unsafe_code, reason = "heed asks its caller to vouch for the file")]
    fn open(dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir)?;
        // SAFETY: nothing but LMDB touches the file.
        let env = unsafe { EnvOpenOptions::new().max_dbs(16).map_size(1 << 30).open(dir)? };
        let wtxn = env.write_txn()?;
        let databases = env.create_databases_and_commit(wtxn, |opener, wtxn| {
            let customers = opener.create_database(wtxn, Some("customers"))?;
            let portraits = opener.create_database(wtxn, Some("portraits"))?;
            let mut orders = opener.database_options().types().key_comparator::<IntegerComparator>();
            let orders = orders.name("orders").create(wtxn)?;
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((customers, orders, portraits)))
        })?;
        let (customers, orders, portraits) = databases.unwrap_commit();
        Ok(Self { env, customers, orders, portraits })
    }
}

/// Writes every event of `input`.
pub(crate) async fn take(dir: &Path, input: impl BufRead) -> Result<(), Error> {
    let shop = Shop::open(dir)?;
    let master = replikv::lmdb::adopt(&shop.env, ["customers", "orders", "portraits"]).await?;
    tokio::spawn(master.clone().serve_tcp(tokio::net::TcpListener::bind(std::env::var("LISTEN")?).await?));
    for line in input.lines() {
        let event = serde_json::from_str(&line?)?;
        let mut wtxn = shop.env.write_txn()?;
        let mut recorder = master.begin(&mut wtxn)?;
        match event {
            Event::Joined { name, customer, portrait } => {
                recorder.put(&shop.customers, &name, &customer)?;
                recorder.put(&shop.portraits, &name, &portrait)?;
            }
            Event::Ordered { number, what } => {
                recorder.put(&shop.orders, &number, &what)?;
            }
            Event::Left { name } => {
                recorder.delete(&shop.customers, &name)?;
            }
        }
        recorder.finish()?.commit(wtxn)?;
    }
    Ok(())
}

/// Prints what there is, from one instant.
pub(crate) fn print(dir: &Path, mut output: impl Write) -> Result<(), Error> {
    let shop = Shop::open(dir)?;
    let rtxn = shop.env.read_txn()?;
    for customer in shop.customers.iter(&rtxn)? {
        let (name, customer) = customer?;
        let portrait = shop.portraits.get(&rtxn, name)?.unwrap_or_default();
        writeln!(
            output,
            "{name} <{}>, {:?}, a portrait of {} bytes",
            customer.email,
            customer.discount,
            portrait.len()
        )?;
    }
    for order in shop.orders.range(&rtxn, &(10..))? {
        let (number, what) = order?;
        writeln!(output, "order {number}: {what}")?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let dir = arguments.next().ok_or("usage: take DIR < EVENTS, or print DIR")?;
    match &command[..] {
        "take" => take(Path::new(&dir), std::io::stdin().lock()).await,
        "print" => print(Path::new(&dir), std::io::stdout().lock()),
        _ => Err("usage: take DIR < EVENTS, or print DIR".into()),
    }
}
