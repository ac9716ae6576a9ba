//! The keys of [`Keyspace::Meta`](crate::Keyspace::Meta) that the contract itself names.

use bytes::Bytes;

use crate::LinkId;

/// What the keys of cursors begin with.
pub const CURSOR_PREFIX: &[u8] = b"cursor/";

/// The key of the cursor of `link`.
pub fn cursor_key(link: &LinkId) -> Bytes {
    Bytes::from([CURSOR_PREFIX, link.as_str().as_bytes()].concat())
}
