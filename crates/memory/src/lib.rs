//! An ordered map in memory as a replikv store.
