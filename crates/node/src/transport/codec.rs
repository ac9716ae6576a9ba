//! The codec in the shape of tokio-util, over the pure functions of `replikv-proto`.

use bytes::BytesMut;
use replikv_proto::{Decoder, DecoderLimits, Encoder, Event, Message, Outgoing};
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
}

impl Codec {
    /// A codec that accepts messages up to `limits`.
    pub fn new(limits: DecoderLimits) -> Self {
        Self { encoder: Encoder::new(), decoder: Decoder::new(limits), greeted: false }
    }

    /// Accepts larger messages, once the peer is known.
    pub fn set_limits(&mut self, limits: DecoderLimits) {
        self.decoder.set_limits(limits);
    }

    /// As `encode`, a frame at a time.
    pub(super) fn begin(&mut self, message: &Message, out: &mut BytesMut) -> Result<Outgoing, ConnectionError> {
        let outgoing = self.encoder.begin(message)?;
        if !self.greeted {
            self.encoder.encode_preamble(out);
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
                Some(_) => {}
            }
        }
    }
}
