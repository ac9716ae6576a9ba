//! replikv.
