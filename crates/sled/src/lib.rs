//! sled 0.34 as a replikv store.
