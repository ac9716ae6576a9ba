//! What the recorder wrote: file operations and notes, in the order in which they took effect.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, Bytes};

/// The number of a file, whatever its names are.
pub(crate) type Inode = u64;

/// One entry of a recording.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A new file, empty.
    Create { path: String, inode: Inode },
    /// A new directory.
    Directory { path: String },
    /// Bytes of a file. `synced`: the call returned once they were on stable storage.
    Write { inode: Inode, offset: u64, bytes: Bytes, synced: bool },
    /// The file has this length now.
    Truncate { inode: Inode, size: u64 },
    /// The file has at least this length now.
    Extend { inode: Inode, size: u64 },
    /// A file or a directory was synced.
    Sync { path: String, inode: Inode },
    /// A name has moved.
    Rename { from: String, to: String },
    /// A name is gone.
    Remove { path: String },
    /// The program said something.
    Note(Note),
    /// Nothing that survives anything: a range was written out, a map was synced.
    Nothing,
}

impl Step {
    /// For people.
    pub(crate) fn in_short(&self) -> String {
        match self {
            Self::Write { inode, offset, bytes, synced } => {
                format!("write {} bytes at {offset} of {inode}{}", bytes.len(), if *synced { ", synced" } else { "" })
            }
            other => format!("{other:?}"),
        }
    }
}

/// What a watched program says, at its place among the file operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note {
    /// Everything up to this record is durable.
    pub(crate) durable: u64,
    /// Its digest, if it was known.
    pub(crate) digest: Option<[u8; 16]>,
    /// A slave: at that record its data is a state of its master.
    pub(crate) consistent: bool,
}

impl Note {
    const LEN: usize = 26;

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.durable.to_le_bytes());
        bytes[8] = self.consistent.into();
        bytes[9] = self.digest.is_some().into();
        bytes[10..].copy_from_slice(&self.digest.unwrap_or_default());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bytes: [u8; Self::LEN] = bytes.try_into().context("a note of another length")?;
        let digest = bytes[10..].try_into()?;
        Ok(Self {
            durable: u64::from_le_bytes(bytes[..8].try_into()?),
            consistent: bytes[8] != 0,
            digest: (bytes[9] != 0).then_some(digest),
        })
    }
}

/// LMDB keeps its readers there, makes it anew at each start, and nothing in it has to survive.
const MAPPED: &str = "lock.mdb";

/// Reads a recording.
pub(crate) fn read(path: &Path) -> Result<Vec<Step>> {
    let mut rest = Bytes::from(std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?);
    let mut steps = Vec::new();
    while rest.has_remaining() {
        ensure!(rest.len() >= 32, "the recording is cut");
        let (kind, flags, path_len) = (rest.get_u8(), rest.get_u8(), usize::from(rest.get_u16_le()));
        rest.advance(4);
        let (inode, offset, len) = (rest.get_u64_le(), rest.get_u64_le(), rest.get_u64_le());
        ensure!(rest.len() >= path_len, "the recording is cut");
        let path = String::from_utf8(rest.split_to(path_len).to_vec())?;
        let data = if matches!(kind, b'W' | b'N' | b'M') { usize::try_from(len)? } else { 0 };
        ensure!(rest.len() >= data, "the recording is cut");
        let data = rest.split_to(data);
        steps.push(match kind {
            b'C' => Step::Create { path, inode },
            b'K' => Step::Directory { path },
            b'W' => Step::Write { inode, offset, bytes: data, synced: flags & 1 != 0 },
            b'T' => Step::Truncate { inode, size: offset },
            b'A' => Step::Extend { inode, size: offset },
            b'S' => Step::Sync { path, inode },
            b'M' => Step::Rename { from: path, to: String::from_utf8(data.to_vec())? },
            b'U' => Step::Remove { path },
            b'N' => Step::Note(Note::from_bytes(&data)?),
            b'R' | b'Y' => Step::Nothing,
            b'P' if path.ends_with(MAPPED) => Step::Nothing,
            b'P' => bail!("{path} is written through a map: what is written there cannot be seen"),
            b'X' => bail!("{path} was called, whose effect is not recorded"),
            other => bail!("the recording has an entry of kind {other}"),
        });
    }
    Ok(steps)
}
