//! Entries that live for a time, in any store and on any slave.
//!
//! A value carries the time at which it ends, and readers, on masters and slaves, take what has ended for absent. An
//! index in order of time lets a sweeper on the master find what to delete without a search, and the deletes travel in
//! the log as any others. Entry and index change in one batch, at their place in the commit order: nothing is left over,
//! and an entry that was renewed is not swept.

use std::time::{SystemTime, UNIX_EPOCH};

use replikv::{
    Abort, Batch, DataReader, LmdbOptions, LmdbStore, Master, MasterConfig, MemoryStore, ScanOptions, Slave,
    SlaveConfig, Subspace, Table, Token,
};
use serde::{Deserialize, Serialize};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Serialize, Deserialize)]
struct Session {
    user: String,
    /// Milliseconds since 1970.
    ends: u64,
}

#[derive(Clone)]
struct Sessions {
    entries: Table<String, Session>,
    /// When an entry ends, and its key; sorted by time.
    ends: Table<(u64, String), ()>,
}

impl Sessions {
    fn new() -> Self {
        let entries = Table::new("sessions", Subspace::named("sessions"));
        Self { entries, ends: Table::new("session ends", Subspace::named("session ends")) }
    }

    /// Writes or renews an entry.
    async fn put(&self, master: &Master<LmdbStore>, key: &str, session: Session) -> Result<Token> {
        let (sessions, key, session) = (self.clone(), key.to_owned(), std::sync::Arc::new(session));
        let put = move |view: &replikv::TransactView<'_>, mut batch: Batch| {
            if let Some(old) = sessions.current(view, &key)? {
                batch = sessions.ends.delete(batch, &(old.ends, key.clone()));
            }
            let refuse = |error: replikv::table::TableError| Abort::refuse(error.to_string());
            batch = sessions.entries.put(batch, &key, &session).map_err(refuse)?;
            sessions.ends.put(batch, &(session.ends, key.clone()), &()).map_err(refuse)
        };
        Ok(master.transact(put).await?)
    }

    /// What is there and has not ended by `now`.
    async fn get(&self, reader: &(impl DataReader + ?Sized), key: &str, now: u64) -> Result<Option<Session>> {
        let session = self.entries.get(reader, &key.to_owned()).await?;
        Ok(session.filter(|session| session.ends > now))
    }

    /// Deletes what has ended by `now`, in batches of at most 100 entries; says how many.
    async fn sweep(&self, master: &Master<LmdbStore>, now: u64) -> Result<usize> {
        let mut swept = 0;
        loop {
            let due = self.ends.range(..(now + 1, String::new()));
            let (page, _) = self.ends.page(master, due, ScanOptions::default().max_entries(100)).await?;
            if page.is_empty() {
                return Ok(swept);
            }
            swept += page.len();
            let sessions = self.clone();
            let sweep = move |view: &replikv::TransactView<'_>, mut batch: Batch| {
                for ((ends, key), ()) in &page {
                    batch = sessions.ends.delete(batch, &(*ends, key.clone()));
                    // It may have been renewed since the page was read.
                    if sessions.current(view, key)?.is_some_and(|session| session.ends == *ends) {
                        batch = sessions.entries.delete(batch, key);
                    }
                }
                Ok(batch)
            };
            master.transact(sweep).await?;
        }
    }

    fn current(&self, view: &replikv::TransactView<'_>, key: &str) -> std::result::Result<Option<Session>, Abort> {
        let key = self.entries.key(&key.to_owned());
        let Some(value) = view.get(&key)? else { return Ok(None) };
        let entry = self.entries.decode(&key, &value).map_err(|error| Abort::refuse(error.to_string()))?;
        Ok(entry.map(|(_, session)| session))
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

    // A program asks the clock; here time is what the lines say.
    let start = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let (minute, hour) = (start + 60_000, start + 3_600_000);
    let sessions = Sessions::new();
    for n in 0..1_000 {
        let session = Session { user: format!("user {n}"), ends: if n % 2 == 0 { minute } else { hour } };
        sessions.put(&master, &n.to_string(), session).await?;
    }
    let renewed = Session { user: "user 0".into(), ends: hour };
    let token = sessions.put(&master, "0", renewed).await?;
    slave.wait_applied(token).await?;

    // Nobody has swept yet: what has ended is absent all the same.
    assert!(sessions.get(&slave, "2", start).await?.is_some_and(|session| session.user == "user 2"));
    assert!(sessions.get(&slave, "2", minute).await?.is_none());
    assert!(sessions.get(&slave, "0", minute).await?.is_some(), "it was renewed");

    let swept = sessions.sweep(&master, minute).await?;
    println!("{swept} of 1000 sessions have ended after a minute");
    assert_eq!(swept, 499);
    let token = master.write(Batch::new().put("swept", minute.to_string())).await?;
    slave.wait_applied(token).await?;
    let (left, _) = sessions.entries.page(&slave, sessions.entries.range(..), ScanOptions::default()).await?;
    assert_eq!(left.len(), 501, "the slave has let go of them as well");
    assert!(left.iter().any(|(key, _)| key == "0"));

    slave.shutdown().await?;
    Ok(master.shutdown().await?)
}
