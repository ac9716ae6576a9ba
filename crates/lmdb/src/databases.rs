//! Finding and creating the databases of a store, and refusing those that cannot be replicated.

use std::collections::BTreeSet;

use heed::types::Bytes;
use heed::{CommitOrAbort, RoTxn, RwTxn};
use replikv_core::StoreError;

use crate::adopt::{AnyEnv, Opener, on_env};
use crate::book::Book;
use crate::layout::Layout;
use crate::options::{LmdbOptions, LmdbOrder};
use crate::table::{Change, Table, Tables, read_failed};

pub(crate) type Database = heed::Database<'static, Bytes, Bytes>;
type Local<'e> = heed::Database<'e, Bytes, Bytes>;

/// What a store remembers of itself is in a database of this name. An application has none.
pub(crate) const BOOK: &str = "replikv-book";

/// Where in the book the layout is.
const LAYOUT: &[u8] = b"tables";

/// How many databases a store has beside its tables.
pub(crate) const OWN_DATABASES: u32 = 4;

// LMDB's flags of a named database, as it stores them.
const REVERSE_KEY: u16 = 0x02;
const DUP_SORT: u16 = 0x04;
const INTEGER_KEY: u16 = 0x08;

/// Opens every database of a store, and creates those that are not there.
pub(crate) fn open_or_create(env: &AnyEnv, options: &LmdbOptions) -> Result<Tables, StoreError> {
    // One transaction for everything, and none for reading: that may be open on this thread already.
    let kept = on_env!(env, env => {
        let wtxn = env.write_txn().map_err(read_failed)?;
        env.create_databases_and_commit(wtxn, |opener, wtxn| {
            Ok::<_, Opening>(CommitOrAbort::<_, ()>::Commit(create_all(&opener.into(), wtxn, options)?))
        })
    });
    Ok(kept.map_err(Opening::into_error)?.unwrap_commit().into_tables())
}

/// Opens every database of a store; `None` if one is not there.
pub(crate) fn open_existing(env: &AnyEnv, options: &LmdbOptions) -> Result<Option<Tables>, StoreError> {
    let kept = on_env!(env, env => {
        let rtxn = env.read_txn().map_err(read_failed)?;
        env.open_databases_and_commit(rtxn, |opener, rtxn| {
            Ok::<_, Opening>(CommitOrAbort::<_, ()>::Commit(open_all(&opener.into(), rtxn, options)?))
        })
    });
    Ok(kept.map_err(Opening::into_error)?.unwrap_commit().map(Kept::into_tables))
}

/// Databases within the transaction that opens them.
struct Found<'e> {
    layout: Layout,
    log: Local<'e>,
    meta: Local<'e>,
    book: Local<'e>,
    rest: Local<'e>,
    tables: Vec<(Local<'e>, LmdbOrder)>,
}

/// The same, once it is committed.
struct Kept {
    layout: Layout,
    own: [Database; 4],
    tables: Vec<(Database, LmdbOrder)>,
}

impl heed::OnCommit for Found<'_> {
    type Committed = Kept;

    fn on_commit(self, token: &heed::CommitToken) -> Kept {
        let own = [self.rest, self.log, self.meta, self.book].on_commit(token);
        let tables = self.tables.into_iter().map(|(database, order)| (database.on_commit(token), order)).collect();
        Kept { layout: self.layout, own, tables }
    }
}

impl Kept {
    fn into_tables(self) -> Tables {
        let [rest, log, meta, book] = self.own;
        let tables = self.tables.into_iter().zip(&self.layout.tables);
        let tables =
            tables.map(|((database, order), table)| Table::of_subspace(&table.database, database, order, &table.space));
        let rest = Table::whole(&self.layout.data, rest);
        let (log, meta) = (Table::whole(&self.layout.log, log), Table::whole(&self.layout.meta, meta));
        Tables::new(rest, tables.collect(), log, meta, book)
    }
}

fn create_all<'e>(opener: &Opener<'_, 'e>, wtxn: &mut RwTxn<'e>, options: &LmdbOptions) -> Result<Found<'e>, Opening> {
    let names = Names::open(opener, wtxn)?;
    let mut changed = false;
    let mut create = |name: &str, order: LmdbOrder, wtxn: &mut RwTxn<'e>, layout: Option<&Layout>| {
        changed |= names.order_of(wtxn, name)?.is_none();
        opener.create(wtxn, name, order.flags()).map_err(|error| names.explain(error, wtxn, options, layout))
    };
    let is_new = names.order_of(wtxn, BOOK)?.is_none();
    let book = create(BOOK, LmdbOrder::Bytes, wtxn, None)?;
    let layout = layout(opener, book, wtxn, options)?;
    for name in layout.names() {
        plain(names.order_of(wtxn, name)?, name)?;
    }
    // They are made together with the book. Without it they are the application's, and would be written over.
    for (name, option) in [(&layout.log, "log_database"), (&layout.meta, "meta_database")] {
        if is_new && names.order_of(wtxn, name)?.is_some() {
            return Err(Opening::refused(format!(
                "the environment has a database {name} of its own: choose another {option}"
            )));
        }
    }
    let mut orders = Vec::new();
    for table in &layout.tables {
        orders.push(wanted(table.order, names.order_of(wtxn, &table.database)?, &table.database)?);
    }
    let rest = create(&layout.data, LmdbOrder::Bytes, wtxn, Some(&layout))?;
    let log = create(&layout.log, LmdbOrder::Bytes, wtxn, Some(&layout))?;
    let meta = create(&layout.meta, LmdbOrder::Bytes, wtxn, Some(&layout))?;
    let mut tables = Vec::new();
    for (table, order) in layout.tables.iter().zip(orders) {
        tables.push((create(&table.database, order, wtxn, Some(&layout))?, order));
    }
    let bytes = layout.to_bytes();
    if book.get(wtxn, LAYOUT)? != Some(&bytes) {
        book.put(wtxn, LAYOUT, &bytes)?;
        changed = true;
    }
    if changed {
        sign(book, wtxn)?;
    }
    let found = Found { layout, log, meta, book, rest, tables };
    refuse_misplaced(&found, wtxn)?;
    Ok(found)
}

fn open_all<'e>(
    opener: &Opener<'_, 'e>,
    rtxn: &RoTxn<'e>,
    options: &LmdbOptions,
) -> Result<Option<Found<'e>>, Opening> {
    let names = Names::open(opener, rtxn)?;
    let open = |name: &str| opener.open(rtxn, Some(name)).map_err(|error| names.explain(error, rtxn, options, None));
    let Some(book) = open(BOOK)? else { return Ok(None) };
    let layout = layout(opener, book, rtxn, options)?;
    for name in layout.names() {
        plain(names.order_of(rtxn, name)?, name)?;
    }
    let (Some(rest), Some(log), Some(meta)) = (open(&layout.data)?, open(&layout.log)?, open(&layout.meta)?) else {
        return Ok(None);
    };
    let mut tables = Vec::new();
    for table in &layout.tables {
        let order = wanted(table.order, names.order_of(rtxn, &table.database)?, &table.database)?;
        let Some(database) = open(&table.database)? else { return Ok(None) };
        tables.push((database, order));
    }
    let found = Found { layout, log, meta, book, rest, tables };
    refuse_misplaced(&found, rtxn)?;
    Ok(Some(found))
}

// A store that is nobody's yet may become another one.
fn layout<'e>(
    opener: &Opener<'_, 'e>,
    book: Local<'e>,
    txn: &RoTxn<'e>,
    options: &LmdbOptions,
) -> Result<Layout, Opening> {
    let stored = book.get(txn, LAYOUT)?.map(Layout::from_bytes).transpose().map_err(Opening::Refused)?;
    let meta = match &stored {
        Some(stored) => opener.open(txn, Some(&stored.meta))?,
        None => None,
    };
    let used = match meta {
        Some(meta) => !meta.is_empty(txn)?,
        None => false,
    };
    Layout::resolve(options, stored, used).map_err(Opening::Refused)
}

// Within this transaction it is the same database as after it.
fn sign(book: Local<'_>, wtxn: &mut RwTxn<'_>) -> Result<(), Opening> {
    Book::sign(book, wtxn).map_err(|error| match error.into() {
        Change::Unfit(error) => Opening::Refused(error),
        Change::Heed(error) => Opening::Heed(error),
    })
}

// Such keys would be in the store, and in no scan.
fn refuse_misplaced(found: &Found<'_>, txn: &RoTxn<'_>) -> Result<(), Opening> {
    for (table, (database, order)) in found.layout.tables.iter().zip(&found.tables) {
        let prefix = table.space.prefix();
        let next = found.rest.get_greater_than(txn, prefix)?;
        if next.is_some_and(|(key, _)| key.starts_with(prefix)) {
            return Err(Opening::refused(format!(
                "database {} holds keys that begin with the prefix of table {}: move them there, or choose another prefix",
                found.layout.data, table.database
            )));
        }
        if *order == LmdbOrder::IntegerKeys
            && let Some((key, _)) = database.first(txn)?
            && let Some(reason) = order.refuses(key.len(), None)
        {
            return Err(Opening::refused(format!("database {}: {reason}", table.database)));
        }
    }
    Ok(())
}

/// The unnamed database, in which LMDB keeps the named ones: each as an entry whose value begins with four bytes of
/// padding and two of flags. Reading them there needs no call that could change anything.
struct Names<'e> {
    unnamed: Option<Local<'e>>,
}

/// The size of such a value: padding, flags, depth, and five numbers of a page's width.
const NAMED_LEN: usize = 8 + 5 * size_of::<usize>();

impl<'e> Names<'e> {
    fn open(opener: &Opener<'_, 'e>, txn: &RoTxn<'e>) -> Result<Self, Opening> {
        Ok(Self { unnamed: opener.open(txn, None)? })
    }

    /// How the database of this name keeps its keys; `None` if it is not there.
    fn order_of(&self, txn: &RoTxn<'_>, name: &str) -> Result<Option<LmdbOrder>, Opening> {
        let Some(unnamed) = self.unnamed else { return Ok(None) };
        let Some(&[_, _, _, _, low, high, ..]) = unnamed.get(txn, name.as_bytes())? else { return Ok(None) };
        let flags = u16::from_ne_bytes([low, high]);
        match (flags & DUP_SORT != 0, flags & REVERSE_KEY != 0, flags & INTEGER_KEY != 0) {
            (true, ..) => Err(Opening::refused(format!(
                "database {name} has duplicates (DUPSORT), and cannot be replicated: move its entries to a database \
                 whose keys are made of key and value together"
            ))),
            (_, false, false) => Ok(Some(LmdbOrder::Bytes)),
            (_, true, false) => Ok(Some(LmdbOrder::ReverseKeys)),
            (_, false, true) => Ok(Some(LmdbOrder::IntegerKeys)),
            (_, true, true) => Err(Opening::refused(format!(
                "database {name} has reversed integer keys, which nothing else can keep in that order"
            ))),
        }
    }

    /// How many databases the environment would hold with those of a store.
    fn needed(&self, txn: &RoTxn<'_>, options: &LmdbOptions, layout: Option<&Layout>) -> Result<usize, Opening> {
        // Where the layout is not read yet, what was asked for must do.
        let layout = layout.cloned().unwrap_or_else(|| Layout::asked(options));
        let tables = layout.tables.iter().map(|table| &table.database[..]);
        let own = layout.names().into_iter().chain([BOOK]).chain(tables);
        let mut names: BTreeSet<Vec<u8>> = own.map(|name| name.as_bytes().to_vec()).collect();
        if let Some(unnamed) = self.unnamed {
            // An application may keep entries of its own beside the names.
            for entry in unnamed.iter(txn)?.take(100_000) {
                let (name, value) = entry?;
                if value.len() == NAMED_LEN {
                    names.insert(name.to_vec());
                }
            }
        }
        Ok(names.len())
    }

    // LMDB says that a table of its own is full, which says nothing to anybody.
    fn explain(&self, error: heed::Error, txn: &RoTxn<'_>, options: &LmdbOptions, layout: Option<&Layout>) -> Opening {
        let heed::Error::Mdb(heed::MdbError::DbsFull) = error else { return Opening::Heed(error) };
        match self.needed(txn, options, layout) {
            Ok(needed) => Opening::refused(format!(
                "max_dbs is too small for the databases of a store beside those that are there: open the environment \
                 with max_dbs({needed}), or more"
            )),
            Err(error) => error,
        }
    }
}

fn plain(order: Option<LmdbOrder>, name: &str) -> Result<(), Opening> {
    match order {
        None | Some(LmdbOrder::Bytes) => Ok(()),
        Some(order) => Err(Opening::refused(format!(
            "database {name} has {}: only plain byte order is possible here; what is to be replicated can be a table",
            words(order)
        ))),
    }
}

fn wanted(asked: Option<LmdbOrder>, there: Option<LmdbOrder>, name: &str) -> Result<LmdbOrder, Opening> {
    match (asked, there) {
        (Some(asked), Some(there)) if asked != there => Err(Opening::refused(format!(
            "database {name} has {}, it was asked for with {}",
            words(there),
            words(asked)
        ))),
        (asked, there) => Ok(there.or(asked).unwrap_or_default()),
    }
}

fn words(order: LmdbOrder) -> &'static str {
    match order {
        LmdbOrder::Bytes => "plain byte order",
        LmdbOrder::ReverseKeys => "reverse keys",
        LmdbOrder::IntegerKeys => "integer keys",
    }
}

/// Why the databases could not be opened.
#[derive(Debug)]
enum Opening {
    Refused(StoreError),
    Heed(heed::Error),
}

impl Opening {
    fn refused(words: String) -> Self {
        Self::Refused(StoreError::backend(words))
    }

    fn into_error(self) -> StoreError {
        match self {
            Self::Refused(error) => error,
            Self::Heed(error) => read_failed(error),
        }
    }
}

impl From<heed::Error> for Opening {
    fn from(error: heed::Error) -> Self {
        Self::Heed(error)
    }
}
