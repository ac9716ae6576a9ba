//! fjall 3 as a replikv store.
//!
//! # fjall
//! fjall is version 3 here, and no part of this crate's interface: a directory that it wrote can be read by whatever reads
//! fjall's format 3. What a master or slave holds is in the keyspace `data`, keys and values as they were written; what is
//! replikv's own is in `replikv-log` and `replikv-meta`.
//!
//! # What fjall promises, and what not
//! A batch of fjall is atomic over keyspaces: it is one entry of a journal with a checksum, and a read of a snapshot
//! sees all of it or nothing. `Durability::Synced` is a batch that is committed with `PersistMode::SyncData`: the
//! journal, to its end, is on stable storage. `Durability::Buffered` is one with `PersistMode::Buffer`: the operating
//! system has it, so it survives a kill of the process, and power loss takes it, with all that was written after it.
//! Where recovery meets a batch that is not whole, the journal ends there, and what follows is given up. For fjall that
//! is so unless the batch has its full length and wrong bytes in it, which power loss leaves of long values: then fjall
//! refuses the database, and this crate cuts the journal there before it opens it. Neither can tell such an end from
//! damage: a byte that rots in the journal costs what was written from there on, which with the default settings can be
//! a few hundred MiB that are not in tables yet. A byte that rots in a table is found when it is read. Tables are
//! written by threads of fjall's; if one fails, of a full disk for example, fjall takes no more writes, the next one
//! fails as `Fatal`, and the store refuses everything until it is opened again. fjall itself would wait for ever where
//! such a thread was to make room; this crate waits before it writes, and looks whether the threads live. fjall has no
//! range delete: each key that a range holds is deleted by its own entry, in the same batch, and takes a hundred bytes
//! of memory and its own length until the next table is written.

mod blocking;
mod error;
mod files;
mod journal;
mod options;
mod store;

pub use options::FjallOptions;
pub use store::FjallStore;
