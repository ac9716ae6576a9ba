//! The codec in the shape of tokio-util, over the pure functions of `replikv-proto`.

use bytes::BytesMut;
use replikv_proto::{Compression, Decoder, DecoderLimits, Encoder, Event, Message, Outgoing};
use tokio_util::codec;

use super::ConnectionError;

/// Frames [`Message`]s on a byte stream: `tokio_util::codec::Framed::new(stream, Codec::new(..))`.
///
/// The preamble is sent with the first message; the peer's is checked when it arrives, and is not an item.
#[derive(Debug)]
pub struct Codec {
    encoder: Encoder,
    decoder: Decoder,
    greeted: bool,
    /// What the peer has said of itself, once it has.
    features: u32,
}

impl Codec {
    /// A codec that accepts messages up to `limits`.
    pub fn new(limits: DecoderLimits) -> Self {
        Self { encoder: Encoder::new(), decoder: Decoder::new(limits), greeted: false, features: 0 }
    }

    /// Asks the peer to compress what it sends like this, if it can. Default: not at all. What this side sends is never
    /// compressed.
    #[must_use]
    pub fn reading(self, compression: Option<Compression>) -> Self {
        Self { decoder: self.decoder.reading(compression), ..self }
    }

    /// How the peer has asked for what it is sent to be compressed.
    pub(super) fn asked_for(&self) -> Option<Compression> {
        Compression::of_features(self.features)
    }

    /// Accepts larger messages, once the peer is known.
    pub fn set_limits(&mut self, limits: DecoderLimits) {
        self.decoder.set_limits(limits);
    }

    /// As `encode`, a frame at a time.
    pub(super) fn begin(&mut self, message: &Message, out: &mut BytesMut) -> Result<Outgoing, ConnectionError> {
        let outgoing = self.encoder.begin(message)?;
        if !self.greeted {
            out.extend_from_slice(&self.decoder.preamble().to_bytes());
            self.greeted = true;
        }
        Ok(outgoing)
    }
}

impl codec::Encoder<Message> for Codec {
    type Error = ConnectionError;

    fn encode(&mut self, message: Message, out: &mut BytesMut) -> Result<(), ConnectionError> {
        let mut outgoing = self.begin(&message, out)?;
        while outgoing.next_frame(out) {}
        Ok(())
    }
}

impl codec::Decoder for Codec {
    type Item = Message;
    type Error = ConnectionError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Message>, ConnectionError> {
        loop {
            match self.decoder.decode(input)? {
                None => return Ok(None),
                Some(Event::Message(message)) => return Ok(Some(*message)),
                Some(Event::Preamble { features, .. }) => self.features = features,
            }
        }
    }
}
