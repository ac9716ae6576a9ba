//! From messages to bytes.

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
        let parts = message.payload().map_err(|source| EncodeError { message: message.name(), source })?;
        let (kind, request) = (message.kind(), message.request_id());
        let mut payload = join(parts);
        loop {
            let fragment = payload.split_to(payload.len().min(MAX_FRAME_LEN));
            let flags = if payload.is_empty() { CRITICAL } else { CRITICAL | MORE };
            out.reserve(fragment.len() + super::FRAME_HEADER_LEN);
            out.put_slice(&FrameHeader::seal(kind, flags, 0, request, &fragment));
            out.put_slice(&fragment);
            if payload.is_empty() {
                return Ok(());
            }
        }
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
