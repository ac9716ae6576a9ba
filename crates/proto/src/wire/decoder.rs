//! From bytes to messages.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::compression::{self, HEAD_LEN, Inflater};
use super::frame::{COMPRESSED, CRITICAL, FrameHeader, MORE, MUST_KNOW};
use super::message::carries_data;
use super::{Compression, FRAME_HEADER_LEN, MAX_FRAME_LEN, Message, PREAMBLE_LEN, Preamble, VERSION};

/// How large a message may be, in bytes. Checked before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Messages that carry data: records, ranges, responses.
    pub data: usize,
    /// All others.
    pub control: usize,
}

impl Default for DecoderLimits {
    /// For a peer that is not known yet: 64 KiB.
    fn default() -> Self {
        Self { data: 64 << 10, control: 64 << 10 }
    }
}

impl DecoderLimits {
    /// For a slave that is not known yet, of a master whose keys have up to `max_key` bytes: the hello of a slave in mid
    /// copy names keys.
    pub fn for_hello(max_key: usize) -> Self {
        let Self { data, control } = Self::default();
        Self { data, control: control.saturating_add(max_key.saturating_mul(4)) }
    }

    /// For a master whose batches have up to `max_batch` bytes.
    pub fn for_batches(max_batch: usize) -> Self {
        // Room for headers, notes, and the records that travel with the largest one.
        Self { data: max_batch.saturating_add(4 << 20), control: 1 << 20 }
    }
}

/// What was found in the bytes.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The peer's preamble; this version is spoken.
    Preamble {
        /// The version.
        version: u16,
        /// What the peer has said of itself, also what this program does not know; see [`Preamble::features`].
        features: u32,
    },
    /// A whole message.
    Message(Box<Message>),
}

/// Turns bytes into messages. The same bytes give the same messages, however they are cut.
///
/// After an error the decoder is of no use any more.
#[derive(Debug)]
pub struct Decoder {
    limits: DecoderLimits,
    /// What may arrive compressed.
    reads: Option<Compression>,
    inflater: Inflater,
    greeted: bool,
    partial: Option<Partial>,
}

/// A message of which fragments are still to come.
#[derive(Debug)]
struct Partial {
    kind: u8,
    request: u32,
    /// Segments that are full.
    full: Vec<Bytes>,
    /// The one that is being filled.
    payload: BytesMut,
    len: usize,
}

/// A longer message is put together in segments of this length, each of which can be let go on its own. Longer than the
/// largest block that glibc ever takes from its heap, 32 MiB: what is dropped goes back to the system at once, and does
/// not stay in a list of free blocks.
const SEGMENT: usize = 33 << 20;
/// Up to here a segment is as large as what is in it needs.
const GROWS: usize = 8 << 20;

impl Partial {
    fn new(frame: &FrameHeader, payload: BytesMut) -> Self {
        let len = payload.len();
        Self { kind: frame.kind, request: frame.request, full: Vec::new(), payload, len }
    }

    fn push(&mut self, fragment: &[u8]) {
        self.len += fragment.len();
        let (fits, more) = fragment.split_at(fragment.len().min(SEGMENT - self.payload.len()));
        let filled = self.payload.len() + fits.len();
        if filled > self.payload.capacity() {
            let wanted = if filled > GROWS { SEGMENT } else { filled.max(2 * self.payload.len()) };
            self.payload.reserve(wanted - self.payload.len());
        }
        self.payload.put_slice(fits);
        if !more.is_empty() {
            let full = std::mem::replace(&mut self.payload, BytesMut::with_capacity(SEGMENT));
            self.full.push(full.freeze());
            self.payload.put_slice(more);
        }
    }

    fn finish(self) -> Vec<Bytes> {
        let mut segments = self.full;
        segments.push(self.payload.freeze());
        segments
    }
}

impl Decoder {
    /// A decoder that accepts messages up to `limits`.
    pub fn new(limits: DecoderLimits) -> Self {
        Self { limits, reads: None, inflater: Inflater::default(), greeted: false, partial: None }
    }

    /// Reads what is compressed like this, too. Default: nothing. The peer must be told, in the [preamble](Self::preamble).
    #[must_use]
    pub fn reading(self, compression: Option<Compression>) -> Self {
        Self { reads: compression, ..self }
    }

    /// What this side is to say first.
    pub fn preamble(&self) -> Preamble {
        Preamble::reading(self.reads)
    }

    /// Accepts messages up to `limits` from now on.
    pub fn set_limits(&mut self, limits: DecoderLimits) {
        self.limits = limits;
    }

    /// Takes the next event off the front of `input`; `Ok(None)` if more bytes are needed.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection must be closed.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, DecodeError> {
        if !self.greeted {
            return self.greeting(input);
        }
        loop {
            let Some(header) = input.first_chunk::<FRAME_HEADER_LEN>() else { return Ok(None) };
            let frame = FrameHeader::from_bytes(header);
            let len = frame.len as usize;
            self.check(&frame)?;
            let inflates = match frame.flags & COMPRESSED {
                0 => None,
                _ => match self.check_head(&frame, &input[FRAME_HEADER_LEN..])? {
                    Some(inflates) => Some(inflates),
                    None => return Ok(None),
                },
            };
            if input.len() < FRAME_HEADER_LEN + len {
                input.reserve(FRAME_HEADER_LEN + len - input.len());
                return Ok(None);
            }
            if !frame.verify(&input[..FRAME_HEADER_LEN], &input[FRAME_HEADER_LEN..FRAME_HEADER_LEN + len]) {
                return Err(DecodeError::Damaged);
            }
            input.advance(FRAME_HEADER_LEN);
            let mut payload = input.split_to(len);
            if let Some((algorithm, len)) = inflates {
                payload = self
                    .inflater
                    .inflate(algorithm, &payload[HEAD_LEN..], len)
                    .ok_or(malformed(&frame, "a compressed frame does not become as many bytes as it says"))?;
            }
            if let Some(message) = self.assemble(&frame, payload)? {
                return Ok(Some(Event::Message(Box::new(message))));
            }
        }
    }

    fn greeting(&mut self, input: &mut BytesMut) -> Result<Option<Event>, DecodeError> {
        let Some(bytes) = input.first_chunk::<PREAMBLE_LEN>() else {
            return if Preamble::may_begin_with(input) { Ok(None) } else { Err(DecodeError::OtherProtocol) };
        };
        let theirs = Preamble::from_bytes(bytes).ok_or(DecodeError::OtherProtocol)?;
        let version = Preamble::OWN
            .agree(theirs)
            .ok_or(DecodeError::NoCommonVersion { min: theirs.min_version, max: theirs.max_version })?;
        input.advance(PREAMBLE_LEN);
        self.greeted = true;
        Ok(Some(Event::Preamble { version, features: theirs.features }))
    }

    // Everything that can be told from the header is told before a byte of the payload is waited for.
    fn check(&self, frame: &FrameHeader) -> Result<(), DecodeError> {
        let len = frame.len as usize;
        if len > MAX_FRAME_LEN {
            return Err(DecodeError::FrameTooLarge { len, max: MAX_FRAME_LEN });
        }
        let known = CRITICAL | MORE | self.reads.map_or(0, |_| COMPRESSED);
        let unknown = frame.flags & MUST_KNOW & !known;
        if unknown != 0 {
            return Err(DecodeError::UnknownFlags { flags: unknown });
        }
        if frame.channel != 0 {
            return Err(DecodeError::UnknownChannel { channel: frame.channel });
        }
        self.check_len(frame, len)?;
        if let Some(partial) = &self.partial
            && (partial.kind, partial.request) != (frame.kind, frame.request)
        {
            return Err(DecodeError::Interleaved);
        }
        Ok(())
    }

    // So many bytes more do not make the message longer than it may be.
    fn check_len(&self, frame: &FrameHeader, len: usize) -> Result<(), DecodeError> {
        let max = if carries_data(frame.kind) { self.limits.data } else { self.limits.control };
        let begun = self.partial.as_ref().map_or(0, |partial| partial.len);
        match begun + len {
            len if len > max => Err(DecodeError::MessageTooLarge { len, max }),
            _ => Ok(()),
        }
    }

    // How a frame is to be inflated, and to how many bytes: before the rest of it is waited for. `None` while even that is
    // still to come.
    fn check_head(&self, frame: &FrameHeader, payload: &[u8]) -> Result<Option<(Compression, usize)>, DecodeError> {
        if (frame.len as usize) <= HEAD_LEN {
            return Err(malformed(frame, "a compressed frame has nothing in it"));
        }
        let Some((code, len)) = compression::head(payload) else { return Ok(None) };
        let Some(algorithm) = self.reads.filter(|reads| reads.code() == code) else {
            return Err(DecodeError::OtherCompression { algorithm: code });
        };
        if len == 0 {
            return Err(malformed(frame, "a compressed frame becomes nothing"));
        }
        if len > MAX_FRAME_LEN {
            return Err(DecodeError::FrameTooLarge { len, max: MAX_FRAME_LEN });
        }
        self.check_len(frame, len)?;
        Ok(Some((algorithm, len)))
    }

    fn assemble(&mut self, frame: &FrameHeader, payload: BytesMut) -> Result<Option<Message>, DecodeError> {
        let more = frame.flags & MORE != 0;
        let whole = match (self.partial.take(), more) {
            (None, false) => vec![payload.freeze()],
            (_, _) if payload.is_empty() => return Err(DecodeError::Interleaved),
            (None, true) => {
                self.partial = Some(Partial::new(frame, payload));
                return Ok(None);
            }
            (Some(mut partial), more) => {
                partial.push(&payload);
                if more {
                    self.partial = Some(partial);
                    return Ok(None);
                }
                partial.finish()
            }
        };
        match Message::from_payload(frame.kind, frame.request, whole) {
            Ok(Some(message)) => Ok(Some(message)),
            Ok(None) if frame.flags & CRITICAL != 0 => Err(DecodeError::UnknownKind { kind: frame.kind }),
            Ok(None) => Ok(None),
            Err(what) => Err(malformed(frame, what)),
        }
    }
}

fn malformed(frame: &FrameHeader, what: &'static str) -> DecodeError {
    DecodeError::Malformed { kind: frame.kind, what }
}

/// Bytes that are not the protocol, split by whose fault that is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Incompatible: the peer speaks something else.
    #[error("the peer does not speak this protocol")]
    OtherProtocol,
    /// Incompatible: the peer is too old or too new.
    #[error("the peer speaks versions {min} to {max} of the protocol, this program speaks {VERSION}")]
    NoCommonVersion {
        /// Its oldest.
        min: u16,
        /// Its newest.
        max: u16,
    },
    /// Incompatible: a message that must be understood is not known.
    #[error("the peer sent a message of kind {kind}, which this program does not know")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// Incompatible: a flag that must be understood is not known.
    #[error("the peer set flags {flags:#04x}, which this program does not know")]
    UnknownFlags {
        /// The unknown ones.
        flags: u8,
    },
    /// Incompatible: a channel that was never opened.
    #[error("the peer used channel {channel}, which is not open")]
    UnknownChannel {
        /// The channel.
        channel: u16,
    },
    /// Misbehaved: a frame is compressed in another way than was asked for.
    #[error("the peer compressed a frame with algorithm {algorithm}, which it was not asked for")]
    OtherCompression {
        /// The code of the algorithm.
        algorithm: u8,
    },
    /// Misbehaved: a frame is longer than any may be, as it is sent or as it is inflated.
    #[error("a frame of {len} bytes, at most {max} are allowed")]
    FrameTooLarge {
        /// Its length.
        len: usize,
        /// The most.
        max: usize,
    },
    /// Misbehaved: a message is longer than was agreed.
    #[error("a message of at least {len} bytes, at most {max} are allowed")]
    MessageTooLarge {
        /// Its length, so far.
        len: usize,
        /// The most.
        max: usize,
    },
    /// Misbehaved: fragments of two messages are mixed, or a fragment is empty.
    #[error("fragments of a message do not follow one another")]
    Interleaved,
    /// Malformed: a payload does not decode.
    #[error("a message of kind {kind} is malformed: {what}")]
    Malformed {
        /// The kind.
        kind: u8,
        /// What was found.
        what: &'static str,
    },
    /// Damaged on the way.
    #[error("a frame was damaged on the way: its checksum does not match")]
    Damaged,
}

impl DecodeError {
    /// True if a new connection can do better.
    pub fn is_retryable(&self) -> bool {
        // What is incompatible stays so until somebody upgrades; all else may have been an accident.
        !matches!(
            self,
            Self::OtherProtocol
                | Self::NoCommonVersion { .. }
                | Self::UnknownKind { .. }
                | Self::UnknownFlags { .. }
                | Self::UnknownChannel { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_fragments_takes_twice_its_length_at_most_and_a_segment_at_once_if_it_is_long() {
        let frame = FrameHeader::from_bytes(&[0; FRAME_HEADER_LEN]);
        let mut partial = Partial::new(&frame, BytesMut::from(&[7; 100][..]));
        for fragment in std::iter::repeat_n(100, 300).chain([MAX_FRAME_LEN; 7]) {
            partial.push(&vec![7; fragment]);
            let (len, takes) = (partial.len, partial.payload.capacity());
            assert!(takes <= 2 * len, "{takes} for {len}");
        }
        [(); 3].into_iter().for_each(|()| partial.push(&[7; MAX_FRAME_LEN]));
        assert!((SEGMENT..SEGMENT + GROWS).contains(&partial.payload.capacity()), "{}", partial.payload.capacity());
    }
}
