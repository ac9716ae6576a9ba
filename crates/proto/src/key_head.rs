//! The beginning of a key as a number.

/// The first eight bytes, with zeros behind a key that has fewer. Numbers are in the order of their keys, but for keys that
/// have the same one: most comparisons need no look at the key.
pub(crate) fn key_head(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = key.len().min(head.len());
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head)
}
