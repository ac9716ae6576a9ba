//! Where in a history: sequence numbers, epochs, digests, and what is made of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a batch in a master's history. The first record is 1; 0 stands before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(u64);

impl Seq {
    /// Before the first record.
    pub const ZERO: Self = Self(0);

    /// The sequence number `n`.
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// The number itself.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The number that follows, or `None` after the last one that can be told.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// `self + n`, or `None` on overflow.
    pub const fn checked_add(self, n: u64) -> Option<Self> {
        match self.0.checked_add(n) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// How many records lie between `earlier` and this; 0 if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The key of this record in [`Keyspace::Log`](crate::Keyspace::Log): eight bytes, big-endian.
    pub const fn to_key(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// Reads what [`to_key`](Self::to_key) wrote; `None` if `key` is not eight bytes long.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        Some(Self(u64::from_be_bytes(key.try_into().ok()?)))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A reign of one master over a history: a number, and a nonce that tells two claims to one number apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Grows by one with each reign; the first is 1.
    pub number: u64,
    /// Random, drawn when the epoch begins.
    pub nonce: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08x}", self.number, self.nonce >> 32)
    }
}

macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

sixteen_bytes! {
    /// The identity of a history, drawn at random when a master's store is first opened. It outlives processes,
    /// hosts and epochs.
    SourceId
}

sixteen_bytes! {
    /// 128 bits that stand for a record and every record before it.
    Digest
}

sixteen_bytes! {
    /// 128 bits that stand for the entries of a range of keys.
    Fingerprint
}

/// A point of a history: which one, in whose reign, how far, and a digest of all that happened until then.
///
/// The digest makes a position comparable: two stores that name equal positions have applied equal batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The history.
    pub source: SourceId,
    /// The epoch of the record at `seq`.
    pub epoch: Epoch,
    /// The last record that this position includes.
    pub seq: Seq,
    /// The digest of the record at `seq`.
    pub digest: Digest,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seq {} of epoch {}, source {}", self.seq, self.epoch, self.source)
    }
}

/// What a write returns: enough to wait, on any reader, until that write is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token {
    /// The history that was written to.
    pub source: SourceId,
    /// The epoch in which the write was committed.
    pub epoch: Epoch,
    /// The record of the write.
    pub seq: Seq,
}

impl From<Position> for Token {
    fn from(position: Position) -> Self {
        Self { source: position.source, epoch: position.epoch, seq: position.seq }
    }
}

/// The name of a link: one slave's subscription to one master, as kept in the slave's store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkId(String);

impl LinkId {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 128;

    /// A link named `name`.
    ///
    /// # Errors
    /// [`InvalidLinkId`] if the name is empty, longer than [`MAX_LEN`](Self::MAX_LEN), or holds control characters.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidLinkId> {
        let name = name.into();
        if name.is_empty() || name.len() > Self::MAX_LEN || name.chars().any(char::is_control) {
            return Err(InvalidLinkId { name });
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The link of a store that has only one: `default`.
impl Default for LinkId {
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for LinkId {
    type Error = InvalidLinkId;

    fn try_from(name: String) -> Result<Self, InvalidLinkId> {
        Self::new(name)
    }
}

impl From<LinkId> for String {
    fn from(link: LinkId) -> Self {
        link.0
    }
}

/// A name that no link, and no slave, can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no name: 1 to {} bytes, no control characters", LinkId::MAX_LEN)]
pub struct InvalidLinkId {
    /// The name that was refused.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sequence_number_has_no_next() {
        assert_eq!(Seq::ZERO.next(), Some(Seq::new(1)));
        assert_eq!(Seq::new(u64::MAX).next(), None);
        assert_eq!(Seq::new(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn log_keys_sort_as_their_numbers() {
        assert!(Seq::new(255).to_key() < Seq::new(256).to_key());
        assert_eq!(Seq::from_key(&Seq::new(77).to_key()), Some(Seq::new(77)));
        assert_eq!(Seq::from_key(b"seven"), None);
    }

    #[test]
    fn a_link_has_a_printable_name() {
        assert!(LinkId::new("edge-1").is_ok());
        for bad in [String::new(), "x".repeat(129), "a\nb".into()] {
            assert!(LinkId::new(bad).is_err());
        }
    }

    #[test]
    fn a_link_is_its_name() {
        let link = LinkId::try_from("edge-1".to_string()).unwrap();
        assert_eq!(link, LinkId::new("edge-1").unwrap());
        assert_eq!(String::from(link), "edge-1");
        assert!(LinkId::try_from("a\nb".to_string()).is_err());
    }
}
