//! Compressed frames: which algorithms there are, and how a payload becomes shorter and comes back.

use std::fmt;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};

use super::MAX_FRAME_LEN;

/// How what a slave is sent may be compressed. Which there are depends on the features of this build.
///
/// A payload is compressed frame by frame, each on its own: what is lost or sent again never matters to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// LZ4: costs least.
    #[cfg(feature = "lz4")]
    Lz4,
    /// Zstandard at level 1: makes less of it, for more time.
    #[cfg(feature = "zstd")]
    Zstd,
}

/// Before the compressed bytes: the algorithm (1), and how many bytes they become (4).
pub(super) const HEAD_LEN: usize = 5;
/// What is shorter gains nothing.
const SHORT: usize = 512;
/// What joins the pieces of a fragment is given back if it is larger.
const KEEP: usize = 512 << 10;
#[cfg(feature = "zstd")]
const LEVEL: i32 = 1;

impl Compression {
    /// All that this build knows. The first one that a peer reads is taken.
    pub const ALL: &'static [Self] = &[
        #[cfg(feature = "lz4")]
        Self::Lz4,
        #[cfg(feature = "zstd")]
        Self::Zstd,
    ];

    /// Its name: `lz4`, `zstd`.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "lz4")]
            Self::Lz4 => "lz4",
            #[cfg(feature = "zstd")]
            Self::Zstd => "zstd",
        }
    }

    /// Its bit among the [features](super::Preamble::features) of whoever reads it.
    pub fn feature(self) -> u32 {
        1 << (self.code() - 1)
    }

    /// The first one that a peer of these features reads, and this build writes.
    pub fn of_features(features: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| features & known.feature() != 0)
    }

    // What names it in a frame.
    pub(super) fn code(self) -> u8 {
        match self {
            #[cfg(feature = "lz4")]
            Self::Lz4 => 1,
            #[cfg(feature = "zstd")]
            Self::Zstd => 2,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of no compression that this build knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no compression {name:?}; this build knows: {}", known())]
pub struct UnknownCompression {
    /// What was named.
    pub name: String,
}

fn known() -> String {
    match Compression::ALL {
        [] => "none".into(),
        all => all.iter().map(|known| known.name()).collect::<Vec<_>>().join(", "),
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> Result<Self, UnknownCompression> {
        let named = Self::ALL.iter().copied().find(|known| known.name() == name);
        named.ok_or_else(|| UnknownCompression { name: name.into() })
    }
}

/// What compresses: buffers and tables, to be used again and again. They take up to about 2 MiB.
pub struct Compressor {
    algorithm: Compression,
    joined: Vec<u8>,
    #[cfg(feature = "lz4")]
    lz4: Option<lz4_flex::block::CompressTable>,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Compressor {
    /// One that compresses like this.
    pub fn new(algorithm: Compression) -> Self {
        Self {
            algorithm,
            joined: Vec::new(),
            #[cfg(feature = "lz4")]
            lz4: None,
            #[cfg(feature = "zstd")]
            zstd: None,
        }
    }

    /// How it compresses.
    pub fn algorithm(&self) -> Compression {
        self.algorithm
    }

    /// Whether a fragment of this length is worth it.
    pub(super) fn takes(len: usize) -> bool {
        len >= SHORT
    }

    /// Appends the head and `pieces`, compressed, to `out`. False, with nothing appended, if that is no shorter.
    pub(super) fn append(&mut self, pieces: &[Bytes], out: &mut BytesMut) -> bool {
        let mut joined = std::mem::take(&mut self.joined);
        let raw: &[u8] = match pieces {
            [one] => one,
            pieces => {
                joined.clear();
                pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
                &joined
            }
        };
        let start = out.len();
        let appended = self.append_raw(raw, out);
        if !appended {
            out.truncate(start);
        }
        if joined.capacity() <= KEEP {
            self.joined = joined;
        }
        appended
    }

    fn append_raw(&mut self, raw: &[u8], out: &mut BytesMut) -> bool {
        let start = out.len();
        out.resize(start + HEAD_LEN + self.bound(raw.len()), 0);
        let Some(len) = self.compress(raw, &mut out[start + HEAD_LEN..]) else { return false };
        out.truncate(start + HEAD_LEN + len);
        out[start] = self.algorithm.code();
        // A fragment has at most `MAX_FRAME_LEN` bytes, which fits.
        out[start + 1..start + HEAD_LEN].copy_from_slice(&(raw.len() as u32).to_le_bytes());
        HEAD_LEN + len < raw.len()
    }

    fn bound(&self, len: usize) -> usize {
        #[cfg(not(any(feature = "lz4", feature = "zstd")))]
        let _ = len;
        match self.algorithm {
            #[cfg(feature = "lz4")]
            Compression::Lz4 => lz4_flex::block::get_maximum_output_size(len),
            #[cfg(feature = "zstd")]
            Compression::Zstd => zstd::zstd_safe::compress_bound(len),
        }
    }

    // How many bytes it became; `None` if the algorithm fails, for want of memory.
    fn compress(&mut self, raw: &[u8], out: &mut [u8]) -> Option<usize> {
        #[cfg(not(any(feature = "lz4", feature = "zstd")))]
        let _ = (raw, out);
        match self.algorithm {
            #[cfg(feature = "lz4")]
            Compression::Lz4 => {
                let table = self.lz4.get_or_insert_with(lz4_flex::block::CompressTable::large);
                lz4_flex::block::compress_into_with_table(raw, out, table).ok()
            }
            #[cfg(feature = "zstd")]
            Compression::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Compressor::new(LEVEL).ok();
                }
                self.zstd.as_mut()?.compress_to_buffer(raw, out).ok()
            }
        }
    }
}

/// What a compressed payload says of itself: the code of its algorithm, and how many bytes it becomes.
pub(super) fn head(payload: &[u8]) -> Option<(u8, usize)> {
    let [code, l0, l1, l2, l3] = *payload.first_chunk::<HEAD_LEN>()?;
    Some((code, u32::from_le_bytes([l0, l1, l2, l3]) as usize))
}

/// What inflates.
#[derive(Default)]
pub(super) struct Inflater {
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl Inflater {
    /// What `packed` becomes, if that is `len` bytes, neither more nor less. The caller has checked the length against every
    /// limit: as much is allocated, and no algorithm ever writes past it.
    pub(super) fn inflate(&mut self, algorithm: Compression, packed: &[u8], len: usize) -> Option<BytesMut> {
        debug_assert!((1..=MAX_FRAME_LEN).contains(&len));
        let mut raw = BytesMut::zeroed(len);
        let inflated = self.inflate_into(algorithm, packed, &mut raw)?;
        (inflated == len).then_some(raw)
    }

    fn inflate_into(&mut self, algorithm: Compression, packed: &[u8], raw: &mut [u8]) -> Option<usize> {
        #[cfg(not(any(feature = "lz4", feature = "zstd")))]
        let _ = (packed, raw);
        match algorithm {
            #[cfg(feature = "lz4")]
            Compression::Lz4 => lz4_flex::block::decompress_into(packed, raw).ok(),
            #[cfg(feature = "zstd")]
            Compression::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Decompressor::new().ok();
                }
                self.zstd.as_mut()?.decompress_to_buffer(packed, raw).ok()
            }
        }
    }
}

#[cfg(all(test, any(feature = "lz4", feature = "zstd")))]
mod tests {
    use super::*;

    #[test]
    fn what_joins_pieces_is_kept_unless_it_is_large() {
        for &algorithm in Compression::ALL {
            let mut compressor = Compressor::new(algorithm);
            let mut kept = |len: usize| {
                assert!(compressor.append(&[vec![7; len].into(), vec![7; 100].into()], &mut BytesMut::new()));
                compressor.joined.capacity()
            };
            assert!((1000..=KEEP).contains(&kept(1000)), "{algorithm}");
            assert_eq!(kept(KEEP), 0, "{algorithm}");
        }
    }
}
