//! A table changes its shape while it is written, read and replicated.
//!
//! The new shape gets a table of its own. Programs that read both are rolled out first, on masters and slaves. Then a
//! note in the log marks the switch: from there on writers write the new table only, while the old entries move over in
//! small steps. A second note marks the end. Both are positions of the history, so that whoever reads `changes` knows,
//! on any slave and after any restart, which shapes can still come.

use std::time::Duration;

use futures_util::TryStreamExt;
use replikv::{
    Abort, Batch, ChangesFrom, DataReader, LmdbOptions, LmdbStore, Master, MasterConfig, MemoryStore, ScanOptions,
    Slave, SlaveConfig, Subspace, Table, TransactView,
};
use serde::{Deserialize, Serialize};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BEGINS: &[u8] = b"schema: people 2 begins";
const COMPLETE: &[u8] = b"schema: people 2 complete";

/// As it was.
#[derive(Debug, Serialize, Deserialize)]
struct OldPerson {
    name: String,
}

/// As it is to be.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Person {
    given: String,
    family: String,
}

impl From<OldPerson> for Person {
    fn from(old: OldPerson) -> Self {
        let (given, family) = old.name.split_once(' ').unwrap_or((&old.name, ""));
        Self { given: given.into(), family: family.into() }
    }
}

/// Both tables, and the rules by which they are used together.
#[derive(Clone)]
struct People {
    old: Table<u64, OldPerson>,
    new: Table<u64, Person>,
}

impl People {
    fn new() -> Self {
        let table = Subspace::named("people");
        Self { old: Table::new("people", table), new: Table::new("people 2", Subspace::named("people 2")) }
    }

    /// Either shape. The old table is read first: an entry that moves in between is then found in the new one.
    async fn get(&self, reader: &(impl DataReader + ?Sized), id: u64) -> Result<Option<Person>> {
        if let Some(old) = self.old.get(reader, &id).await? {
            return Ok(Some(old.into()));
        }
        Ok(self.new.get(reader, &id).await?)
    }

    /// What writers do from the switch on.
    fn put(&self, batch: Batch, id: u64, person: &Person) -> Result<Batch> {
        Ok(self.new.put(self.old.delete(batch, &id), &id, person)?)
    }

    /// Moves what is left in the old table, a page at a time; may be stopped and begun again at any time.
    async fn migrate(&self, master: &Master<LmdbStore>) -> Result {
        let mut range = self.old.range(..);
        loop {
            let (page, rest) = self.old.page(master, range, ScanOptions::default().max_entries(50)).await?;
            let (people, ids) = (self.clone(), page.into_iter().map(|(id, _)| id).collect::<Vec<_>>());
            // Somebody may have written since: what counts is what is there at this place of the history.
            master.transact(move |view, batch| people.moved(view, batch, &ids)).await?;
            match rest {
                Some(rest) => range = rest,
                None => break,
            }
        }
        master.write(Batch::new().note(COMPLETE)).await?;
        Ok(())
    }

    fn moved(&self, view: &TransactView<'_>, mut batch: Batch, ids: &[u64]) -> std::result::Result<Batch, Abort> {
        for id in ids {
            let key = self.old.key(id);
            let Some(value) = view.get(&key)? else { continue };
            let refuse = |error: replikv::table::TableError| Abort::refuse(error.to_string());
            let Some((_, old)) = self.old.decode(&key, &value).map_err(refuse)? else { continue };
            batch = self.new.put(self.old.delete(batch, id), id, &old.into()).map_err(refuse)?;
        }
        Ok(batch)
    }
}

#[tokio::main]
async fn main() -> Result {
    let dir = tempfile::tempdir()?;
    let master = Master::open(LmdbStore::open(dir.path(), LmdbOptions::default())?, MasterConfig::default()).await?;
    let slave = Slave::open(MemoryStore::new(), SlaveConfig::new("edge-1")).await?;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (serving, following) = (master.clone(), slave.clone());
    tokio::spawn(async move { serving.serve(near).await });
    tokio::spawn(async move { following.follow(far).await });

    let people = People::new();
    for id in 0..500 {
        let old = OldPerson { name: format!("Ada {id}") };
        master.write(people.old.put(Batch::new(), &id, &old)?).await?;
    }

    // The switch. What is written meanwhile goes to the new table, and is not overwritten by what moves.
    let begins = master.write(Batch::new().note(BEGINS)).await?;
    slave.wait_applied(begins).await?;
    let migrating = tokio::spawn({
        let (people, master) = (people.clone(), master.clone());
        async move { people.migrate(&master).await }
    });
    for id in (0..500).step_by(7) {
        let person = Person { given: "Grace".into(), family: id.to_string() };
        master.write(people.put(Batch::new(), id, &person)?).await?;
        assert!(people.get(&slave, 499 - id).await?.is_some(), "a reader never misses an entry that moves");
    }
    migrating.await??;

    // Every entry has the new shape, on the slave as well, and those that were written meanwhile kept what was written.
    let last = master.write(Batch::new().put("done", "")).await?;
    slave.wait_applied(last).await?;
    for id in 0..500 {
        let given = if id % 7 == 0 { "Grace" } else { "Ada" };
        let expected = Person { given: given.into(), family: id.to_string() };
        assert_eq!(people.new.get(&slave, &id).await?, Some(expected));
        assert!(people.old.get(&slave, &id).await?.is_none());
    }

    // Between the marks both shapes come, after the second the new one only.
    let mut changes = master.changes(ChangesFrom::Oldest, []).await?;
    let mut marks = Vec::new();
    while let Some(change) = tokio::time::timeout(Duration::from_secs(60), changes.try_next()).await?? {
        if change.note().starts_with(b"schema: ") {
            marks.push((change.position().seq, String::from_utf8_lossy(change.note()).into_owned()));
        }
        if change.position().seq == last.seq {
            break;
        }
    }
    for (seq, mark) in &marks {
        println!("{seq}: {mark}");
    }
    assert_eq!(marks.len(), 2);
    slave.shutdown().await?;
    Ok(master.shutdown().await?)
}
