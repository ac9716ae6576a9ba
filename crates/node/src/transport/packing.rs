//! Compressing for those who asked for it: once for all of them, where they are sent the same.
//!
//! Records go to every slave that follows the whole of a history in the very same bytes. So that they also go in the same
//! messages, whoever reads first decides where a message ends, and whoever comes to the same place later gets what is there
//! already. Kept is only what was sent a moment ago, bounded in bytes; a slave that is further behind costs a compression
//! of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use replikv_core::{Position, Seq};
use replikv_proto::{Compression, Compressor, Fragment};

use crate::metrics::Counter;

/// Frames of so many bytes are kept, as they were before they were compressed.
const FRAMES: usize = 8 << 20;
/// What keeping a frame costs beside its bytes, roughly.
const BESIDE: usize = 256;
/// How many that compress are kept of each algorithm: about as many as work at once.
const COMPRESSORS: usize = 4;

/// What compresses for all connections of a master or a relay.
#[derive(Debug)]
pub(crate) struct Packing {
    frames: Mutex<Frames>,
    idle: Mutex<Vec<Compressor>>,
    volume: Volume,
}

/// What was compressed, and what came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Volume {
    pub(crate) before: Counter,
    pub(crate) after: Counter,
}

/// Where records of a history begin and end: the one after `after` up to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) after: Seq,
    pub(crate) last: Position,
}

impl Packing {
    pub(crate) fn new(volume: Volume) -> Self {
        Self { frames: Mutex::default(), idle: Mutex::default(), volume }
    }

    /// Reads records after `after` for a message, which ends where the one did that somebody else was sent from there.
    /// `read` is told where that is, if anybody was; it may end elsewhere.
    pub(crate) fn plan(
        &self,
        after: Seq,
        algorithm: Compression,
        read: impl FnOnce(Option<Position>) -> Option<(Vec<Bytes>, Position)>,
    ) -> Option<(Vec<Bytes>, Position)> {
        let key = Key { after, index: 0, algorithm };
        // Nobody else decides meanwhile.
        let mut frames = lock(&self.frames);
        let (parts, last) = read(frames.map.get(&key).map(|held| held.last))?;
        let len = parts.iter().map(Bytes::len).sum::<usize>().min(replikv_proto::MAX_FRAME_LEN);
        frames.cell(key, last, len);
        Some((parts, last))
    }

    /// Appends the frame of a fragment, compressed if that is worth it.
    pub(super) fn pack(&self, fragment: &Fragment, algorithm: Compression, out: &mut BytesMut) {
        let idle = {
            let mut idle = lock(&self.idle);
            idle.iter().position(|one| one.algorithm() == algorithm).map(|index| idle.swap_remove(index))
        };
        let mut compressor = idle.unwrap_or_else(|| Compressor::new(algorithm));
        if let Some(packed) = fragment.compress(&mut compressor, out) {
            self.volume.before.add(packed.before as u64);
            self.volume.after.add(packed.after as u64);
        }
        let mut idle = lock(&self.idle);
        if idle.iter().filter(|one| one.algorithm() == algorithm).count() < COMPRESSORS {
            idle.push(compressor);
        }
    }

    /// As [`pack`](Self::pack), of the fragment numbered `index` of a message of records: once for all who are sent that.
    pub(super) fn pack_once(
        &self,
        fragment: &Fragment,
        algorithm: Compression,
        piece: Piece,
        index: usize,
        out: &mut BytesMut,
    ) {
        let key = Key { after: piece.after, index, algorithm };
        let cell = lock(&self.frames).cell(key, piece.last, fragment.byte_len());
        // Whoever comes meanwhile waits here for as long as it would take to compress it once more.
        let frame = cell.get_or_init(|| {
            let mut frame = BytesMut::new();
            self.pack(fragment, algorithm, &mut frame);
            frame[..].into()
        });
        out.extend_from_slice(frame);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    after: Seq,
    /// The number of the fragment within its message.
    index: usize,
    algorithm: Compression,
}

/// A frame, once somebody has made it.
type Cell = Arc<OnceLock<Box<[u8]>>>;

#[derive(Debug)]
struct Held {
    last: Position,
    len: usize,
    cell: Cell,
}

/// The frames that were sent last.
#[derive(Debug, Default)]
struct Frames {
    map: HashMap<Key, Held>,
    /// The oldest first. Each is in the map.
    order: VecDeque<Key>,
    bytes: usize,
}

impl Frames {
    /// The frame at `key`, of a message that ends with `last`; an empty one if none is there. Positions name all that comes
    /// before them: the same bytes end there.
    fn cell(&mut self, key: Key, last: Position, len: usize) -> Cell {
        match self.map.get(&key) {
            Some(held) if held.last == last && held.len == len => return held.cell.clone(),
            // The history went another way there, or a message ended elsewhere.
            Some(other) => self.bytes -= other.len + BESIDE,
            None => self.order.push_back(key),
        }
        self.bytes += len + BESIDE;
        let cell = Cell::default();
        self.map.insert(key, Held { last, len, cell: cell.clone() });
        while self.bytes > FRAMES {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(held) = self.map.remove(&oldest) {
                self.bytes -= held.len + BESIDE;
            }
        }
        cell
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What panics under these locks leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
