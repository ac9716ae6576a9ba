//! LMDB, through heed, as a replikv store.
