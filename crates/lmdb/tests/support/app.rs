//! Environments of an application that knows nothing of replikv.

use std::path::Path;

use replikv_lmdb::heed::{CommitOrAbort, Database, DatabaseFlags, Env, EnvOpenOptions, IntegerComparator, WithTls};

/// An environment with heed's own defaults, and room.
pub(crate) fn environment(dir: &Path) -> Env<WithTls> {
    environment_with(dir, |open| {
        open.max_dbs(16);
    })
}

#[allow(unsafe_code, reason = "heed asks its caller to vouch for the file")]
pub(crate) fn environment_with(dir: &Path, set: impl FnOnce(&mut EnvOpenOptions<WithTls>)) -> Env<WithTls> {
    let mut open = EnvOpenOptions::new();
    open.map_size(1 << 30);
    set(&mut open);
    // SAFETY: nothing but LMDB touches the file.
    unsafe { open.open(dir) }.expect("an environment")
}

pub(crate) fn create<KC: 'static, DC: 'static>(
    env: &Env<WithTls>,
    name: &str,
    flags: DatabaseFlags,
) -> Database<'static, KC, DC> {
    let wtxn = env.write_txn().expect("a transaction");
    let created = env.create_databases_and_commit(wtxn, |opener, wtxn| {
        let mut options = opener.database_options().types::<KC, DC>();
        options.name(name).flags(flags).create(wtxn).map(CommitOrAbort::<_, ()>::Commit)
    });
    created.expect("a database").commit().expect("it is committed")
}

pub(crate) fn open<KC: 'static, DC: 'static>(env: &Env<WithTls>, name: &str) -> Database<'static, KC, DC> {
    let rtxn = env.read_txn().expect("a transaction");
    let opened = env.open_databases_and_commit(rtxn, |opener, rtxn| {
        opener.open_database(rtxn, Some(name)).map(CommitOrAbort::<_, ()>::Commit)
    });
    opened.expect("a database").commit().flatten().expect("it is there")
}

pub(crate) fn open_integers<KC: 'static, DC: 'static>(
    env: &Env<WithTls>,
    name: &str,
) -> Database<'static, KC, DC, IntegerComparator> {
    let rtxn = env.read_txn().expect("a transaction");
    let opened = env.open_databases_and_commit(rtxn, |opener, rtxn| {
        let mut options = opener.database_options().types::<KC, DC>().key_comparator::<IntegerComparator>();
        options.name(name).open(rtxn).map(CommitOrAbort::<_, ()>::Commit)
    });
    opened.expect("a database").commit().flatten().expect("it is there")
}
