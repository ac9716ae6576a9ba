//! Keeping count of transactions, so that those of others are noticed.
//!
//! LMDB numbers its write transactions without gaps. Each one of ours writes down its own number; where the next one of
//! ours does not follow it, somebody else has committed in between. The book is a database of its own, so that nothing
//! of it is seen in any keyspace.

use heed::types::Bytes;
use heed::{Database, RoTxn, RwTxn};
use replikv_core::StoreError;

use crate::table::read_failed;

/// The last transaction of ours, and how many of others there were before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Book {
    pub(crate) last: u64,
    pub(crate) foreign: u64,
}

const KEY: &[u8] = b"transactions";
const FORMAT: u8 = 1;

impl Book {
    pub(crate) fn read(database: Database<'_, Bytes, Bytes>, txn: &RoTxn<'_>) -> Result<Option<Self>, StoreError> {
        match database.get(txn, KEY).map_err(read_failed)? {
            None => Ok(None),
            Some([FORMAT, numbers @ ..]) if numbers.len() == 16 => {
                let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                Ok(Some(Self { last: number(&numbers[..8]), foreign: number(&numbers[8..]) }))
            }
            Some([found, ..]) if *found > FORMAT => Err(StoreError::NewerFormat {
                what: "the count of transactions",
                found: (*found).into(),
                supported: FORMAT.into(),
            }),
            Some(_) => Err(StoreError::Corrupt { what: "the count of transactions does not decode".into() }),
        }
    }

    /// As of a transaction that may be somebody else's.
    pub(crate) fn foreign_at(self, txn_id: usize) -> u64 {
        self.foreign + (txn_id as u64).saturating_sub(self.last)
    }

    /// Writes down that this transaction is one of ours.
    pub(crate) fn sign(database: Database<'_, Bytes, Bytes>, txn: &mut RwTxn<'_>) -> Result<(), Sign> {
        let id = txn.id();
        let book = match Self::read(database, txn).map_err(Sign::Read)? {
            // The one before this is the last that was committed.
            Some(book) => Self { last: id as u64, foreign: book.foreign_at(id.saturating_sub(1)) },
            None => Self { last: id as u64, foreign: 0 },
        };
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&book.last.to_be_bytes());
        bytes.extend_from_slice(&book.foreign.to_be_bytes());
        database.put(txn, KEY, &bytes).map_err(Sign::Write)
    }
}

/// Why a transaction could not be signed.
#[derive(Debug)]
pub(crate) enum Sign {
    Read(StoreError),
    Write(heed::Error),
}

impl From<Sign> for crate::table::Change {
    fn from(error: Sign) -> Self {
        match error {
            Sign::Read(error) => Self::Unfit(error),
            Sign::Write(error) => Self::Heed(error),
        }
    }
}
