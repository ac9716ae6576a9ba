//! One connection: buffers on both sides of a byte stream, and the codec between.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use replikv_proto::{Compression, DecodeError, DecoderLimits, EncodeError, Message, Outgoing};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_util::codec::Decoder as _;

use super::{Codec, Packing, Piece};
use crate::metrics::Traffic;

/// A connection broke, or the peer's bytes make no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The transport failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// What arrived is not the protocol, or damaged, or of no common version.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message does not fit the protocol.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The peer is gone without a goodbye.
    #[error("the peer closed the connection")]
    Closed,
}

/// What [`Connection::drive`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driven {
    /// Bytes have arrived.
    Read,
    /// Bytes were sent.
    Wrote,
}

/// Messages in and out of a byte stream.
///
/// A message is copied once, into a buffer of this connection: a peer that does not read pins that buffer and no
/// shared record. A message of more than one frame is copied a frame at a time, and what is left of it is shared.
#[derive(Debug)]
pub(crate) struct Connection<T> {
    read: ReadHalf<T>,
    write: WriteHalf<T>,
    codec: Codec,
    input: BytesMut,
    output: BytesMut,
    /// What comes after `output`. Empty, but for a message of many frames and those that were queued behind it.
    outgoing: VecDeque<Queued>,
    /// What compresses for the peer, if it asks for that.
    packing: Option<Arc<Packing>>,
    traffic: Traffic,
    // Until more bytes have arrived, decoding again cannot tell more.
    starved: bool,
}

/// A message on its way, and how it is compressed.
#[derive(Debug)]
struct Queued {
    outgoing: Outgoing,
    packing: Option<(Compression, Arc<Packing>)>,
    /// What it holds, if others are sent that as well.
    piece: Option<Piece>,
    /// The number of the next fragment.
    index: usize,
}

impl Queued {
    // Appends the next frame. False if there is none after it.
    fn next_frame(&mut self, out: &mut BytesMut) -> bool {
        let Some((algorithm, packing)) = &self.packing else { return self.outgoing.next_frame(out) };
        let Some(fragment) = self.outgoing.next_fragment() else { return false };
        match self.piece {
            Some(piece) => packing.pack_once(&fragment, *algorithm, piece, self.index, out),
            None => packing.pack(&fragment, *algorithm, out),
        }
        self.index += 1;
        !fragment.is_last()
    }
}

/// A connection takes further messages while it has less than this to send.
const HIGH_WATER: usize = 64 << 10;
/// Buffers that grew for one large message are given back.
const KEEP: usize = 1 << 20;

impl<T: AsyncRead + AsyncWrite> Connection<T> {
    pub(crate) fn new(stream: T, limits: DecoderLimits) -> Self {
        let (read, write) = tokio::io::split(stream);
        let (input, output) = (BytesMut::new(), BytesMut::new());
        let (codec, traffic) = (Codec::new(limits), Traffic::default());
        Self { read, write, codec, input, output, outgoing: VecDeque::new(), packing: None, traffic, starved: true }
    }

    /// Counts what goes over it.
    pub(crate) fn counted(self, traffic: Traffic) -> Self {
        Self { traffic, ..self }
    }

    /// Asks the peer to compress what it sends.
    pub(crate) fn reading(self, compression: Option<Compression>) -> Self {
        Self { codec: self.codec.reading(compression), ..self }
    }

    /// Compresses what is queued from now on, if the peer asks for it.
    pub(crate) fn compress(&mut self, packing: Arc<Packing>) {
        self.packing = Some(packing);
    }

    /// How what is queued is compressed.
    pub(crate) fn compression(&self) -> Option<Compression> {
        self.packing.as_ref().and_then(|_| self.codec.asked_for())
    }

    pub(crate) fn set_limits(&mut self, limits: DecoderLimits) {
        self.codec.set_limits(limits);
    }

    /// Queues a message.
    pub(crate) fn send(&mut self, message: &Message) -> Result<(), ConnectionError> {
        self.queue(message, None)
    }

    /// Queues a message of the records of `piece`, which others are sent as well.
    pub(crate) fn send_shared(&mut self, message: &Message, piece: Piece) -> Result<(), ConnectionError> {
        self.queue(message, Some(piece))
    }

    fn queue(&mut self, message: &Message, piece: Option<Piece>) -> Result<(), ConnectionError> {
        self.traffic.sent_messages.add(1);
        let outgoing = self.codec.begin(message, &mut self.output)?;
        let packing = self.compression().zip(self.packing.clone());
        let mut queued = Queued { outgoing, packing, piece, index: 0 };
        if self.outgoing.is_empty() && queued.outgoing.is_short() {
            queued.next_frame(&mut self.output);
        } else {
            self.outgoing.push_back(queued);
        }
        Ok(())
    }

    /// True if another message may be queued.
    pub(crate) fn has_room(&self) -> bool {
        self.output.len() < HIGH_WATER && self.outgoing.is_empty()
    }

    /// True if something is queued and not sent yet.
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.outgoing.is_empty()
    }

    fn refill(&mut self) {
        while self.output.len() < HIGH_WATER {
            let Some(queued) = self.outgoing.front_mut() else { return };
            let compressed = queued.packing.is_some();
            if !queued.next_frame(&mut self.output) {
                self.outgoing.pop_front();
            }
            // It takes its time, and may leave next to nothing: others have their turn in between.
            if compressed {
                return;
            }
        }
    }

    /// The next message that has arrived whole.
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, ConnectionError> {
        if self.starved {
            return Ok(None);
        }
        let message = self.codec.decode(&mut self.input)?;
        self.starved = message.is_none();
        self.traffic.received_messages.add(u64::from(message.is_some()));
        Ok(message)
    }

    /// Moves bytes: reads if `read` says so, writes what is queued. Returns after either.
    ///
    /// Cancel safe: bytes are in a buffer or still in the transport.
    pub(crate) async fn drive(&mut self, read: bool) -> Result<Driven, ConnectionError> {
        self.refill();
        let writing = !self.output.is_empty();
        if self.input.is_empty() && self.input.capacity() > KEEP {
            self.input = BytesMut::new();
        }
        self.input.reserve(if read { 64 << 10 } else { 0 });
        tokio::select! {
            biased;
            sent = self.write.write_buf(&mut self.output), if writing => {
                let sent = sent?;
                if sent == 0 {
                    return Err(ConnectionError::Closed);
                }
                self.traffic.sent_bytes.add(sent as u64);
                if self.output.is_empty() && self.outgoing.is_empty() {
                    if self.output.capacity() > KEEP {
                        self.output = BytesMut::new();
                    }
                    self.write.flush().await?;
                }
                Ok(Driven::Wrote)
            }
            received = self.read.read_buf(&mut self.input), if read => {
                self.starved = false;
                let received = received?;
                self.traffic.received_bytes.add(received as u64);
                if received == 0 { Err(ConnectionError::Closed) } else { Ok(Driven::Read) }
            }
            // Nothing to write, and no wish to read: whoever polls this has other things to wait for.
            () = std::future::pending(), if !read && !writing => Ok(Driven::Wrote),
        }
    }

    /// Sends what is queued, and closes this side. For last words; nothing is read any more.
    pub(crate) async fn finish(&mut self) -> Result<(), ConnectionError> {
        loop {
            self.refill();
            let left = self.output.len() as u64;
            if left == 0 {
                break;
            }
            self.write.write_all_buf(&mut self.output).await?;
            self.traffic.sent_bytes.add(left);
        }
        Ok(self.write.shutdown().await?)
    }
}
