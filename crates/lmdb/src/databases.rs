//! Finding and creating the databases of a store, and refusing those that cannot be replicated.

use std::collections::BTreeSet;

use heed::types::Bytes;
use heed::{CommitOrAbort, RoTxn, RwTxn};
use replikv_core::StoreError;

use crate::adopt::{AnyEnv, Opener, on_env};
use crate::book::Book;
use crate::options::{LmdbOptions, LmdbOrder};
use crate::order::MAX_KEY;
use crate::table::{Change, Table, Tables, read_failed};

pub(crate) type Database = heed::Database<'static, Bytes, Bytes>;
type Local<'e> = heed::Database<'e, Bytes, Bytes>;

/// The databases that are replikv's own. An application has none of these names.
const LOG: &str = "replikv-log";
const META: &str = "replikv-meta";
const BOOK: &str = "replikv-book";

/// How many databases a store has beside its tables.
pub(crate) const OWN_DATABASES: u32 = 4;

// LMDB's flags of a named database, as it stores them.
const REVERSE_KEY: u16 = 0x02;
const DUP_SORT: u16 = 0x04;
const INTEGER_KEY: u16 = 0x08;

/// Opens every database of a store, and creates those that are not there.
pub(crate) fn open_or_create(env: &AnyEnv, options: &LmdbOptions) -> Result<Tables, StoreError> {
    check_names(options)?;
    // One transaction for everything, and none for reading: that may be open on this thread already.
    let kept = on_env!(env, env => {
        let wtxn = env.write_txn().map_err(read_failed)?;
        env.create_databases_and_commit(wtxn, |opener, wtxn| {
            Ok::<_, Opening>(CommitOrAbort::<_, ()>::Commit(create_all(&opener.into(), wtxn, options)?))
        })
    });
    Ok(kept.map_err(Opening::into_error)?.unwrap_commit().into_tables(options))
}

/// Opens every database of a store; `None` if one is not there.
pub(crate) fn open_existing(env: &AnyEnv, options: &LmdbOptions) -> Result<Option<Tables>, StoreError> {
    check_names(options)?;
    let kept = on_env!(env, env => {
        let rtxn = env.read_txn().map_err(read_failed)?;
        env.open_databases_and_commit(rtxn, |opener, rtxn| {
            Ok::<_, Opening>(CommitOrAbort::<_, ()>::Commit(open_all(&opener.into(), rtxn, options)?))
        })
    });
    Ok(kept.map_err(Opening::into_error)?.unwrap_commit().map(|kept| kept.into_tables(options)))
}

/// Databases within the transaction that opens them.
struct Found<'e> {
    log: Local<'e>,
    meta: Local<'e>,
    book: Local<'e>,
    rest: Local<'e>,
    tables: Vec<(Local<'e>, LmdbOrder)>,
}

/// The same, once it is committed.
struct Kept {
    own: [Database; 4],
    tables: Vec<(Database, LmdbOrder)>,
}

impl heed::OnCommit for Found<'_> {
    type Committed = Kept;

    fn on_commit(self, token: &heed::CommitToken) -> Kept {
        let own = [self.rest, self.log, self.meta, self.book].on_commit(token);
        let tables = self.tables.into_iter().map(|(database, order)| (database.on_commit(token), order)).collect();
        Kept { own, tables }
    }
}

impl Kept {
    fn into_tables(self, options: &LmdbOptions) -> Tables {
        let [rest, log, meta, book] = self.own;
        let tables = self.tables.into_iter().zip(&options.tables);
        let tables = tables
            .map(|((database, order), option)| Table::of_subspace(&option.database, database, order, &option.space));
        let rest = Table::whole(&options.data_database, rest);
        Tables::new(rest, tables.collect(), Table::whole(LOG, log), Table::whole(META, meta), book)
    }
}

fn create_all<'e>(opener: &Opener<'_, 'e>, wtxn: &mut RwTxn<'e>, options: &LmdbOptions) -> Result<Found<'e>, Opening> {
    let names = Names::open(opener, wtxn)?;
    let mut created = false;
    let mut create = |name: &str, order: LmdbOrder, wtxn: &mut RwTxn<'e>| {
        created |= names.order_of(wtxn, name)?.is_none();
        opener.create(wtxn, name, order.flags()).map_err(|error| names.explain(error, wtxn, options))
    };
    let mut orders = Vec::new();
    plain(names.order_of(wtxn, &options.data_database)?, &options.data_database)?;
    for option in &options.tables {
        orders.push(wanted(option.order, names.order_of(wtxn, &option.database)?, &option.database)?);
    }
    let rest = create(&options.data_database, LmdbOrder::Bytes, wtxn)?;
    let log = create(LOG, LmdbOrder::Bytes, wtxn)?;
    let meta = create(META, LmdbOrder::Bytes, wtxn)?;
    let book = create(BOOK, LmdbOrder::Bytes, wtxn)?;
    let mut tables = Vec::new();
    for (option, order) in options.tables.iter().zip(orders) {
        tables.push((create(&option.database, order, wtxn)?, order));
    }
    if created {
        sign(book, wtxn)?;
    }
    let found = Found { log, meta, book, rest, tables };
    refuse_misplaced(&found, wtxn, options)?;
    Ok(found)
}

fn open_all<'e>(
    opener: &Opener<'_, 'e>,
    rtxn: &RoTxn<'e>,
    options: &LmdbOptions,
) -> Result<Option<Found<'e>>, Opening> {
    let names = Names::open(opener, rtxn)?;
    let open = |name: &str| opener.open(rtxn, Some(name)).map_err(|error| names.explain(error, rtxn, options));
    plain(names.order_of(rtxn, &options.data_database)?, &options.data_database)?;
    let mut tables = Vec::new();
    for option in &options.tables {
        let order = wanted(option.order, names.order_of(rtxn, &option.database)?, &option.database)?;
        let Some(database) = open(&option.database)? else { return Ok(None) };
        tables.push((database, order));
    }
    let (Some(rest), Some(log), Some(meta), Some(book)) =
        (open(&options.data_database)?, open(LOG)?, open(META)?, open(BOOK)?)
    else {
        return Ok(None);
    };
    let found = Found { log, meta, book, rest, tables };
    refuse_misplaced(&found, rtxn, options)?;
    Ok(Some(found))
}

// Within this transaction it is the same database as after it.
fn sign(book: Local<'_>, wtxn: &mut RwTxn<'_>) -> Result<(), Opening> {
    Book::sign(book, wtxn).map_err(|error| match error.into() {
        Change::Unfit(error) => Opening::Refused(error),
        Change::Heed(error) => Opening::Heed(error),
    })
}

// Such keys would be in the store, and in no scan.
fn refuse_misplaced(found: &Found<'_>, txn: &RoTxn<'_>, options: &LmdbOptions) -> Result<(), Opening> {
    for (option, (database, order)) in options.tables.iter().zip(&found.tables) {
        let prefix = option.space.prefix();
        let next = found.rest.get_greater_than(txn, prefix)?;
        if next.is_some_and(|(key, _)| key.starts_with(prefix)) {
            return Err(Opening::refused(format!(
                "database {} holds keys that begin with the prefix of table {}: move them there, or choose another prefix",
                options.data_database, option.database
            )));
        }
        if *order == LmdbOrder::IntegerKeys
            && let Some((key, _)) = database.first(txn)?
            && let Some(reason) = order.refuses(key.len(), None)
        {
            return Err(Opening::refused(format!("database {}: {reason}", option.database)));
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
                "database {name} holds several values to a key (DUPSORT), and cannot be replicated: move its entries \
                 to a database whose keys are made of key and value together"
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
    fn needed(&self, txn: &RoTxn<'_>, options: &LmdbOptions) -> Result<usize, Opening> {
        let own = [&options.data_database[..], LOG, META, BOOK].into_iter();
        let mut names: BTreeSet<Vec<u8>> = own
            .chain(options.tables.iter().map(|table| &table.database[..]))
            .map(|name| name.as_bytes().to_vec())
            .collect();
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
    fn explain(&self, error: heed::Error, txn: &RoTxn<'_>, options: &LmdbOptions) -> Opening {
        let heed::Error::Mdb(heed::MdbError::DbsFull) = error else { return Opening::Heed(error) };
        match self.needed(txn, options) {
            Ok(needed) => Opening::refused(format!(
                "max_dbs is too small for the databases of a store beside those that are there: open the environment \
                 with max_dbs({needed}), or more"
            )),
            Err(error) => error,
        }
    }
}

fn check_names(options: &LmdbOptions) -> Result<(), StoreError> {
    let refused = |words: String| Err(StoreError::backend(words));
    let mut taken = BTreeSet::from([LOG, META, BOOK]);
    if !taken.insert(&options.data_database) {
        return refused(format!("database {} is replikv's own: choose another name", options.data_database));
    }
    for table in &options.tables {
        if !taken.insert(&table.database) {
            return refused(format!("database {} cannot be a table: it has another use already", table.database));
        }
        if table.space.prefix().is_empty() {
            return refused(format!("table {} has no prefix: name it as data_database", table.database));
        }
        if table.space.prefix().len() >= MAX_KEY {
            return refused(format!("table {} has a prefix that leaves no room for keys", table.database));
        }
    }
    for (index, one) in options.tables.iter().enumerate() {
        if let Some(other) = options.tables[..index].iter().find(|other| other.space.overlaps(&one.space)) {
            return refused(format!(
                "the subspaces of tables {} and {} overlap: a key could belong to both",
                other.database, one.database
            ));
        }
    }
    Ok(())
}

fn plain(order: Option<LmdbOrder>, name: &str) -> Result<(), Opening> {
    match order {
        None | Some(LmdbOrder::Bytes) => Ok(()),
        Some(order) => Err(Opening::refused(format!(
            "database {name} has {}: only one of plain byte order can be the data database; make it a table",
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
