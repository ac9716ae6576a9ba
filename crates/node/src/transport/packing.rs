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

#[cfg(all(test, feature = "lz4"))]
mod tests {
    use replikv_core::{Batch, Epoch, SourceId};
    use replikv_proto::{Encoder, MAX_FRAME_LEN, Message, Outgoing, Records, origin};

    use super::*;

    fn at(seq: u64, digest: u8) -> Position {
        let start = origin(SourceId::from_bytes([1; 16]), Epoch { number: 1, nonce: 1 });
        Position { seq: Seq::new(seq), digest: replikv_core::Digest::from_bytes([digest; 16]), ..start }
    }

    fn message(len: usize) -> Outgoing {
        let text: Vec<u8> = b"some words, again ".iter().copied().cycle().take(len).collect();
        Encoder::new().begin(&Message::Records(Records { parts: vec![text.into()] })).unwrap()
    }

    fn frame(packing: &Packing, piece: Piece, len: usize) -> BytesMut {
        let mut out = BytesMut::new();
        let fragment = message(len).next_fragment().unwrap();
        packing.pack_once(&fragment, Compression::Lz4, piece, 0, &mut out);
        out
    }

    fn made(packing: &Packing, after: u64) -> bool {
        let key = Key { after: Seq::new(after), index: 0, algorithm: Compression::Lz4 };
        lock(&packing.frames).map.get(&key).is_some_and(|held| held.cell.get().is_some())
    }

    #[test]
    fn whoever_reads_first_decides_where_a_message_ends() {
        let packing = Packing::new(Volume::default());
        let parts = || vec![Bytes::from_static(&[0; 600])];
        let plan = |after, offered: Option<u64>, last| {
            packing.plan(Seq::new(after), Compression::Lz4, |known| {
                assert_eq!(known.map(|known| known.seq.as_u64()), offered);
                Some((parts(), at(last, 1)))
            })
        };
        assert!(plan(5, None, 9).is_some());
        assert!(plan(5, Some(9), 9).is_some());
        assert!(plan(9, None, 12).is_some());
        // It is not there any more: what is there instead holds from now on.
        assert!(plan(5, Some(9), 7).is_some());
        assert!(plan(5, Some(7), 7).is_some());
        assert_eq!(packing.plan(Seq::new(5), Compression::Lz4, |_| None), None);
        assert!(plan(5, Some(7), 7).is_some());
    }

    #[test]
    fn a_frame_is_made_once_and_never_for_another_history() {
        let packing = Packing::new(Volume::default());
        let piece = Piece { after: Seq::new(5), last: at(9, 1) };
        assert!(!made(&packing, 5));
        let first = frame(&packing, piece, 5000);
        assert!(made(&packing, 5));
        // Whatever somebody else brings along for the same records is not looked at.
        let fragment = Encoder::new().begin(&Message::Records(Records { parts: vec![vec![7; 5000].into()] }));
        let mut again = BytesMut::new();
        packing.pack_once(&fragment.unwrap().next_fragment().unwrap(), Compression::Lz4, piece, 0, &mut again);
        assert_eq!(again, first);
        // The same number, in another history; and one of another length.
        let other = Piece { last: at(9, 2), ..piece };
        let fragment = Encoder::new().begin(&Message::Records(Records { parts: vec![vec![7; 5000].into()] }));
        let mut another = BytesMut::new();
        packing.pack_once(&fragment.unwrap().next_fragment().unwrap(), Compression::Lz4, other, 0, &mut another);
        assert_ne!(another, first);
        assert_ne!(frame(&packing, other, 6000), another);
        assert_eq!(frame(&packing, piece, 5000), first);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let packing = Packing::new(Volume::default());
        for after in 0..40 {
            frame(&packing, Piece { after: Seq::new(after), last: at(after + 1, 1) }, MAX_FRAME_LEN);
        }
        for after in 1000..100_000 {
            packing
                .plan(Seq::new(after), Compression::Lz4, |_| Some((vec![Bytes::from_static(b"x")], at(after + 1, 1))));
        }
        for after in 0..40 {
            frame(&packing, Piece { after: Seq::new(after), last: at(after + 1, 1) }, MAX_FRAME_LEN);
            frame(&packing, Piece { after: Seq::new(after), last: at(after + 2, 1) }, MAX_FRAME_LEN);
        }
        let frames = lock(&packing.frames);
        assert!(frames.bytes <= FRAMES);
        assert_eq!(frames.bytes, frames.map.values().map(|held| held.len + BESIDE).sum::<usize>());
        assert_eq!((frames.order.len(), frames.map.len()), (7, 7), "8 MiB, and a bit beside each");
        assert!(frames.order.iter().all(|key| frames.map.contains_key(key)));
        assert!(frames.map.contains_key(&Key { after: Seq::new(39), index: 0, algorithm: Compression::Lz4 }));
    }

    #[test]
    fn compressors_are_used_again() {
        let packing = Packing::new(Volume::default());
        std::thread::scope(|scope| {
            for n in 0..16 {
                let packing = &packing;
                scope.spawn(move || {
                    for m in 0..50 {
                        let last = at(n * 1000 + m + 1, 1);
                        frame(packing, Piece { after: Seq::new(n * 1000 + m), last }, 2000);
                    }
                });
            }
        });
        assert!((1..=COMPRESSORS).contains(&lock(&packing.idle).len()));
    }

    #[test]
    fn a_batch_is_what_it_was() {
        // The frames that are kept are those that a connection would have made.
        let (ops, _, _) = Batch::new().put("k", "v".repeat(5000)).into_parts().unwrap();
        let message = Message::Records(Records { parts: vec![ops.as_bytes().clone()] });
        let packing = Packing::new(Volume::default());
        let (mut once, mut alone) = (BytesMut::new(), BytesMut::new());
        let fragment = Encoder::new().begin(&message).unwrap().next_fragment().unwrap();
        packing.pack_once(&fragment, Compression::Lz4, Piece { after: Seq::ZERO, last: at(1, 1) }, 0, &mut once);
        packing.pack(&fragment, Compression::Lz4, &mut alone);
        assert_eq!(once, alone);
        assert!(once.len() < 500);
    }
}
