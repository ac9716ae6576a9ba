//! The first sixteen bytes of each direction. They never change.

/// The length of the preamble, in bytes.
pub const PREAMBLE_LEN: usize = 16;

/// The version of the protocol that this program speaks, and the oldest that it understands.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"RPLKV\r\n\x1a";

use super::Compression;

/// What each side says first: which versions it speaks, and which features it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// The oldest version.
    pub min_version: u16,
    /// The newest version.
    pub max_version: u16,
    /// Features beyond the version: what this side [reads compressed](Compression::feature). Unknown bits are ignored.
    pub features: u32,
}

impl Preamble {
    /// What this program says.
    pub const OWN: Self = Self { min_version: VERSION, max_version: VERSION, features: 0 };

    /// What this program says if it reads what is compressed like this.
    pub fn reading(compression: Option<Compression>) -> Self {
        Self { features: compression.map_or(0, Compression::feature), ..Self::OWN }
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; PREAMBLE_LEN] {
        let mut bytes = [0; PREAMBLE_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.min_version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.max_version.to_le_bytes());
        bytes[12..].copy_from_slice(&self.features.to_le_bytes());
        bytes
    }

    /// Reads its bytes; `None` if they do not begin with the magic.
    pub fn from_bytes(bytes: &[u8; PREAMBLE_LEN]) -> Option<Self> {
        let [m0, m1, m2, m3, m4, m5, m6, m7, min0, min1, max0, max1, f0, f1, f2, f3] = *bytes;
        ([m0, m1, m2, m3, m4, m5, m6, m7] == MAGIC).then_some(Self {
            min_version: u16::from_le_bytes([min0, min1]),
            max_version: u16::from_le_bytes([max0, max1]),
            features: u32::from_le_bytes([f0, f1, f2, f3]),
        })
    }

    /// True if `bytes`, fewer than a preamble, can still become one. Whoever speaks another protocol is told at once.
    pub fn may_begin_with(bytes: &[u8]) -> bool {
        bytes.iter().zip(MAGIC).all(|(&byte, magic)| byte == magic)
    }

    /// The version that both sides speak: the newest of the older side.
    pub fn agree(self, other: Self) -> Option<u16> {
        let version = self.max_version.min(other.max_version);
        (version >= self.min_version && version >= other.min_version).then_some(version)
    }
}
