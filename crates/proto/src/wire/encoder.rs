//! From messages to bytes.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{CRITICAL, FrameHeader, MAX_FRAME_LEN, MORE};
use super::{Message, Preamble};

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

    /// Appends the preamble. It comes first, once.
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
        if self.ended {
            return false;
        }
        let len = self.left.min(MAX_FRAME_LEN);
        let fragment = self.take(len);
        self.ended = self.left == 0;
        let flags = if self.ended { CRITICAL } else { CRITICAL | MORE };
        out.reserve(len + super::FRAME_HEADER_LEN);
        out.put_slice(&FrameHeader::seal(self.kind, flags, 0, self.request, &fragment));
        fragment.iter().for_each(|piece| out.put_slice(piece));
        !self.ended
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

pub(super) fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.put_slice(part));
    whole.freeze()
}
