//! From messages to bytes.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{COMPRESSED, CRITICAL, FrameHeader, MAX_FRAME_LEN, MORE};
use super::message::carries_data;
use super::{Compressor, FRAME_HEADER_LEN, Message, Preamble};

/// Encodes messages into frames. Every message goes on channel 0, the only one there is so far.
#[derive(Debug, Default)]
pub struct Encoder(());

/// A message that cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {message} message cannot be encoded")]
pub struct EncodeError {
    /// Which one.
    pub message: &'static str,
    source: postcard::Error,
}

impl Encoder {
    /// An encoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the preamble of a side that reads nothing compressed. It comes first, once.
    pub fn encode_preamble(&self, out: &mut BytesMut) {
        out.put_slice(&Preamble::OWN.to_bytes());
    }

    /// Appends `message`, in as many frames as it needs.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing was appended.
    pub fn encode(&self, message: &Message, out: &mut BytesMut) -> Result<(), EncodeError> {
        let mut outgoing = self.begin(message)?;
        while outgoing.next_frame(out) {}
        Ok(())
    }

    /// As [`encode`](Self::encode), a frame at a time: a long message is copied as there is room for it, and never as a
    /// whole. Frames of another message must not come in between.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn begin(&self, message: &Message) -> Result<Outgoing, EncodeError> {
        let parts = message.payload().map_err(|source| EncodeError { message: message.name(), source })?;
        let left = parts.iter().map(Bytes::len).sum();
        Ok(Outgoing { kind: message.kind(), request: message.request_id(), parts: parts.into(), left, ended: false })
    }
}

/// A message on its way: it shares the buffers of what it tells.
#[derive(Debug)]
pub struct Outgoing {
    kind: u8,
    request: u32,
    parts: VecDeque<Bytes>,
    left: usize,
    ended: bool,
}

impl Outgoing {
    /// True if one more frame is the last one, or there is none.
    pub fn is_short(&self) -> bool {
        self.left <= MAX_FRAME_LEN
    }

    /// Appends the next frame. False if there is a frame no more after it.
    pub fn next_frame(&mut self, out: &mut BytesMut) -> bool {
        let Some(fragment) = self.next_fragment() else { return false };
        fragment.encode(out);
        !fragment.is_last()
    }

    /// What goes into the next frame. `None` after the last one.
    pub fn next_fragment(&mut self) -> Option<Fragment> {
        if self.ended {
            return None;
        }
        let len = self.left.min(MAX_FRAME_LEN);
        let pieces = self.take(len);
        self.ended = self.left == 0;
        let flags = if self.ended { CRITICAL } else { CRITICAL | MORE };
        Some(Fragment { kind: self.kind, flags, request: self.request, pieces, len })
    }

    fn take(&mut self, mut len: usize) -> Vec<Bytes> {
        self.left -= len;
        let mut pieces = Vec::new();
        while let Some(part) = self.parts.front_mut().filter(|_| len > 0) {
            let piece = part.split_to(part.len().min(len));
            len -= piece.len();
            if part.is_empty() {
                self.parts.pop_front();
            }
            pieces.push(piece);
        }
        pieces
    }
}

/// What goes into one frame. It shares the buffers of its message.
#[derive(Debug)]
pub struct Fragment {
    kind: u8,
    flags: u8,
    request: u32,
    pieces: Vec<Bytes>,
    len: usize,
}

/// What was compressed, and what came of it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// The length of the payload as it was.
    pub before: usize,
    /// The length of the payload as it is sent.
    pub after: usize,
}

impl Fragment {
    /// The length of its payload, in bytes.
    pub fn byte_len(&self) -> usize {
        self.len
    }

    /// True if its message ends with it.
    pub fn is_last(&self) -> bool {
        self.flags & MORE == 0
    }

    /// Appends its frame.
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.len + FRAME_HEADER_LEN);
        out.put_slice(&FrameHeader::seal(self.kind, self.flags, 0, self.request, &self.pieces));
        self.pieces.iter().for_each(|piece| out.put_slice(piece));
    }

    /// Appends its frame, compressed; as it is if that is no shorter. `None` if it was not tried: the message carries no
    /// data, or it is a few bytes.
    pub fn compress(&self, compressor: &mut Compressor, out: &mut BytesMut) -> Option<Packed> {
        if !carries_data(self.kind) || !Compressor::takes(self.len) {
            self.encode(out);
            return None;
        }
        let start = out.len();
        out.put_bytes(0, FRAME_HEADER_LEN);
        if !compressor.append(&self.pieces, out) {
            out.truncate(start);
            self.encode(out);
            return Some(Packed { before: self.len, after: self.len });
        }
        let payload = start + FRAME_HEADER_LEN;
        let header = FrameHeader::seal(self.kind, self.flags | COMPRESSED, 0, self.request, &[&out[payload..]]);
        out[start..payload].copy_from_slice(&header);
        Some(Packed { before: self.len, after: out.len() - payload })
    }
}

pub(super) fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.put_slice(part));
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_in_order_and_one_alone_is_not_copied() {
        let [a, b] = [&b"ab"[..], b"c"].map(Bytes::from_static);
        assert_eq!(join(Vec::new()), Bytes::new());
        assert_eq!(join(vec![a.clone()]).as_ptr(), a.as_ptr());
        assert_eq!(join(vec![a, b]), &b"abc"[..]);
    }
}
