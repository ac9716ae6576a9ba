//! What is kept in `Meta`, and under which keys. Every value begins with a format byte; the rest is postcard.

use bytes::Bytes;
use replikv_core::{Epoch, Position, Seq, SourceId, StoreError, StoreLimits};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{EpochStart, Resync};

/// The format of what is kept in `Meta`.
pub const LAYOUT_FORMAT: u8 = 1;

/// What a store is for. A store remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// It is written to, and keeps a log.
    Master,
    /// It follows a master.
    Slave,
    /// It gathers from several masters, over links.
    Centre,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Slave => "slave",
            Self::Centre => "centre",
        })
    }
}

/// A value of `Meta` with a key of its own.
pub trait Stored: Serialize + DeserializeOwned {
    /// What it is, for errors.
    const WHAT: &'static str;

    /// The stored form.
    fn to_bytes(&self) -> Bytes {
        encoded(LAYOUT_FORMAT, self)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// `NewerFormat` if a newer program wrote it, `Corrupt` if it does not decode.
    fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        decoded(Self::WHAT, LAYOUT_FORMAT, bytes)
    }
}

pub(crate) fn encoded(format: u8, value: &impl Serialize) -> Bytes {
    // Postcard fails only when a buffer is full, or a sequence has no length.
    postcard::to_extend(value, vec![format]).map_or_else(|_| Bytes::new(), Bytes::from)
}

/// Reads what [`encoded`] wrote in `format`, the newest that there is.
pub(crate) fn decoded<T: DeserializeOwned>(what: &'static str, format: u8, bytes: &[u8]) -> Result<T, StoreError> {
    let corrupt = || StoreError::Corrupt { what: format!("{what} does not decode") };
    match bytes.split_first().ok_or_else(corrupt)? {
        (&found, rest) if found == format => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            _ => Err(corrupt()),
        },
        (&found, _) if found > format => {
            Err(StoreError::NewerFormat { what, found: found.into(), supported: format.into() })
        }
        _ => Err(corrupt()),
    }
}

/// What a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What it is for.
    pub role: Role,
    /// The history that it is the master of.
    pub source: Option<SourceId>,
}

impl Identity {
    /// Its key.
    pub const KEY: &'static [u8] = b"identity";

    /// The identity of a master's store.
    pub fn master(source: SourceId) -> Self {
        Self { role: Role::Master, source: Some(source) }
    }

    /// The identity of a slave's store.
    pub fn slave() -> Self {
        Self { role: Role::Slave, source: None }
    }

    /// The identity of a centre's store.
    pub fn centre() -> Self {
        Self { role: Role::Centre, source: None }
    }
}

impl Stored for Identity {
    const WHAT: &'static str = "the identity of the store";
}

/// Where a master's history ends. Every write set of a master requires the head that it builds upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The last record.
    pub position: Position,
    /// Bytes of records ever appended.
    pub log_bytes: u64,
    /// How long masters have run on this store, in milliseconds.
    pub uptime_ms: u64,
}

impl Head {
    /// Its key.
    pub const KEY: &'static [u8] = b"head";
}

impl Stored for Head {
    const WHAT: &'static str = "the head of the log";
}

/// Where a master's log begins: records after this one are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The last record that is not.
    pub position: Position,
    /// Bytes of records up to there.
    pub log_bytes: u64,
}

impl Floor {
    /// Its key.
    pub const KEY: &'static [u8] = b"floor";
}

impl Stored for Floor {
    const WHAT: &'static str = "the floor of the log";
}

impl Resync {
    /// Its key.
    pub const KEY: &'static [u8] = b"resync";
}

impl Stored for Resync {
    const WHAT: &'static str = "the resync under way";
}

/// What a slave that keeps the log must know to serve it, also before it hears of its own master again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What whoever follows must be able to hold, as its master has told.
    pub limits: StoreLimits,
}

impl Kept {
    /// Its key.
    pub const KEY: &'static [u8] = b"kept";
}

impl Stored for Kept {
    const WHAT: &'static str = "what is known of the kept log";
}

/// Says that the store is a copy of another one, which may go on: whoever opens it must say as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// When it was complete; milliseconds since the Unix epoch. `None` while it is not.
    pub taken_unix_ms: Option<u64>,
}

impl Backup {
    /// Its key.
    pub const KEY: &'static [u8] = b"backup";
}

impl Stored for Backup {
    const WHAT: &'static str = "the mark of a backup";
}

/// Says that the history of this master has gone on elsewhere: nobody writes to it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseded {
    /// The newer epoch that was met; `None` if the master itself has handed over.
    pub by: Option<Epoch>,
}

impl Superseded {
    /// Its key.
    pub const KEY: &'static [u8] = b"superseded";

    /// In words.
    pub fn words(&self) -> String {
        match self.by {
            Some(epoch) => format!("another master was promoted, in epoch {}", epoch.number),
            None => "this master has handed over to another one".into(),
        }
    }
}

impl Stored for Superseded {
    const WHAT: &'static str = "the mark of a master that was superseded";
}

/// Where the epochs of a history begin, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epochs(pub Vec<EpochStart>);

impl Epochs {
    /// Its key.
    pub const KEY: &'static [u8] = b"epochs";
}

impl Stored for Epochs {
    const WHAT: &'static str = "the list of epochs";
}

/// A point that the history passed through. Checkpoints outlive records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The record.
    pub position: Position,
    /// Bytes of records appended until then; 0 on a slave.
    pub log_bytes: u64,
    /// The master's running time then, in milliseconds; 0 on a slave.
    pub uptime_ms: u64,
}

impl Stored for Checkpoint {
    const WHAT: &'static str = "a checkpoint";
}

impl Checkpoint {
    /// What their keys begin with.
    pub const PREFIX: &'static [u8] = b"checkpoint/";
    /// Every so many records there is one.
    pub const EVERY: u64 = 256;
    /// So many of the newest are kept; of the older ones every 64th, so many again; and so on.
    pub const KEEP: u64 = 1024;

    /// True if the record numbered `seq` is one.
    pub fn is_due(seq: Seq) -> bool {
        seq.as_u64().is_multiple_of(Self::EVERY)
    }

    /// A checkpoint as a slave keeps it.
    pub fn at(position: Position) -> Self {
        Self { position, log_bytes: 0, uptime_ms: 0 }
    }

    /// Its key.
    pub fn key(&self) -> Bytes {
        Self::key_of(self.position.seq.as_u64())
    }

    /// The keys of those that go when this one comes: the number kept is bounded.
    pub fn expired_keys(&self) -> impl Iterator<Item = Bytes> + use<> {
        let newest = self.position.seq.as_u64() / Self::EVERY;
        let steps = (0..4).map(|level| 64u64.pow(level));
        steps.filter_map(move |step| {
            let expired = newest.checked_sub(Self::KEEP * step)?;
            let goes = expired > 0 && expired.is_multiple_of(step) && !expired.is_multiple_of(step * 64);
            goes.then(|| Self::key_of(expired * Self::EVERY))
        })
    }

    /// Adds it to `kept`, a list in order that it comes after, and takes out those that go when it comes: as in a store.
    pub fn keep_in(self, kept: &mut Vec<Self>) {
        for key in self.expired_keys() {
            if let Ok(at) = kept.binary_search_by(|held| held.key().cmp(&key)) {
                kept.remove(at);
            }
        }
        kept.push(self);
    }

    fn key_of(seq: u64) -> Bytes {
        Bytes::from([Self::PREFIX, &seq.to_be_bytes()].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replikv_core::Digest;
    use std::collections::BTreeSet;

    fn position(seq: u64) -> Position {
        Position {
            source: SourceId::from_bytes([1; 16]),
            epoch: Epoch { number: 1, nonce: 2 },
            seq: Seq::new(seq),
            digest: Digest::from_bytes([3; 16]),
        }
    }

    #[test]
    fn a_newer_format_is_named_and_damage_is_noticed() {
        let identity = Identity::slave();
        let mut bytes = identity.to_bytes().to_vec();
        assert_eq!(Identity::from_bytes(&bytes).unwrap(), identity);
        bytes[0] = LAYOUT_FORMAT + 1;
        assert!(matches!(Identity::from_bytes(&bytes), Err(StoreError::NewerFormat { found: 2, supported: 1, .. })));
        assert!(matches!(Identity::from_bytes(b""), Err(StoreError::Corrupt { .. })));
        assert!(matches!(Head::from_bytes(&[1, 2, 3]), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn checkpoints_are_thinned_to_a_bound() {
        let mut kept = BTreeSet::new();
        for index in 1..300_000u64 {
            let checkpoint = Checkpoint::at(position(index * Checkpoint::EVERY));
            kept.insert(checkpoint.key());
            checkpoint.expired_keys().for_each(|key| assert!(kept.remove(&key), "what goes was there"));
        }
        // Each level outlives the one below it 64 times.
        let lasts = |index: &u64| 64u64.pow((index.trailing_zeros() / 6).min(4)) * Checkpoint::KEEP;
        let expected = (1..300_000u64).filter(|index| 299_999 - index < lasts(index));
        assert!(kept.iter().cloned().eq(expected.map(|index| Checkpoint::key_of(index * Checkpoint::EVERY))));
        assert!(kept.len() <= 4 * Checkpoint::KEEP as usize, "{} are kept", kept.len());
        assert!(kept.len() > Checkpoint::KEEP as usize);
    }

    #[test]
    fn a_list_of_checkpoints_is_thinned_as_a_store_is() {
        let (mut stored, mut listed) = (BTreeSet::new(), Vec::new());
        for index in 1..100_000u64 {
            let checkpoint = Checkpoint::at(position(index * Checkpoint::EVERY));
            stored.insert(checkpoint.key());
            checkpoint.expired_keys().for_each(|key| {
                stored.remove(&key);
            });
            checkpoint.keep_in(&mut listed);
        }
        assert!(listed.iter().map(Checkpoint::key).eq(stored));
    }

    #[test]
    fn a_superseded_master_says_by_which_epoch_if_it_has_not_handed_over() {
        let by = Superseded { by: Some(Epoch { number: 47, nonce: 2 }) };
        assert!(by.words().contains("epoch 47"), "{}", by.words());
        assert!(Superseded { by: None }.words().contains("handed over"));
    }
}
