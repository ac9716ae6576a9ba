//! Connections: two pipes of bytes, and the codec at each end.

use bytes::BytesMut;
use replikv_proto::{
    Compression, Compressor, DecodeError, Decoder, DecoderLimits, EncodeError, Encoder, Event, Message,
};

use super::Scene;
use super::context::{Context, Node};

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Master,
    Slave,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Master => Self::Slave,
            Self::Slave => Self::Master,
        }
    }
}

/// Who is at the ends of a connection: the number of a node, and of its incarnation or session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) server: Node,
    pub(super) session: u64,
    pub(super) slave: usize,
}

/// One connection, as the network sees it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) ends: Ends,
    /// Bytes on their way to the master, and to the slave.
    to_master: Pipe,
    to_slave: Pipe,
    /// Something happened to it that no byte stream does: it is not trusted to heal.
    pub(super) tainted: bool,
    /// The next message from the master is sent twice, or not at all.
    pub(super) twice: bool,
    pub(super) never: bool,
    /// Records were not sent, and none were since, which would show it.
    lost: bool,
    /// A bit of the next bytes is flipped.
    pub(super) flip: bool,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    pub(super) bytes: BytesMut,
    /// A delivery is under way.
    pub(super) scheduled: bool,
    /// Nothing passes, and nobody is told.
    pub(super) blocked: bool,
    /// No more will come after what is there.
    pub(super) ended: bool,
}

impl Link {
    pub(super) fn new(ends: Ends) -> Self {
        let (to_master, to_slave) = (Pipe::default(), Pipe::default());
        Self { ends, to_master, to_slave, tainted: false, twice: false, never: false, lost: false, flip: false }
    }

    pub(super) fn pipe(&mut self, to: Side) -> &mut Pipe {
        match to {
            Side::Master => &mut self.to_master,
            Side::Slave => &mut self.to_slave,
        }
    }

    /// Nothing more happens to it.
    pub(super) fn forgive(&mut self) {
        (self.twice, self.never, self.flip) = (false, false, false);
    }

    pub(super) fn is_over(&self) -> bool {
        self.to_master.ended && self.to_slave.ended
    }
}

/// What came out of a connection that is of no use any more.
#[derive(Debug)]
pub(super) enum Broken {
    Closed,
    Decode(DecodeError),
    Encode,
}

/// One end of a connection, as a driver holds it: buffers and codec.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) link: usize,
    pub(super) side: Side,
    encoder: Encoder,
    decoder: Decoder,
    /// What compresses, once the peer has asked for it.
    compressor: Option<Compressor>,
    greeted: bool,
    input: BytesMut,
    output: BytesMut,
    ended: bool,
}

impl Conn {
    pub(super) fn new(ctx: &Context, link: usize, side: Side) -> Self {
        let reads = ctx.sizes.compression.filter(|_| side == Side::Slave);
        Self {
            link,
            side,
            encoder: Encoder::new(),
            decoder: Decoder::new(DecoderLimits::default()).reading(reads),
            compressor: None,
            greeted: false,
            input: BytesMut::new(),
            output: BytesMut::new(),
            ended: false,
        }
    }

    pub(super) fn set_limits(&mut self, limits: DecoderLimits) {
        self.decoder.set_limits(limits);
    }

    /// Queues a message.
    pub(super) fn send(&mut self, ctx: &mut Context, message: &Message) -> Result<(), Broken> {
        if !self.greeted {
            self.output.extend_from_slice(&self.decoder.preamble().to_bytes());
            self.greeted = true;
        }
        let records = matches!(message, Message::Records(_));
        let data = records || matches!(message, Message::Ranges(_) | Message::Compared(_));
        let link = &mut ctx.links[self.link];
        let copies = match (data, link.never, link.twice) {
            // Across a compacted stretch nobody can verify the chain: it is lost with the records before it.
            _ if link.lost && matches!(message, Message::Touched(_)) => 0,
            (true, true, _) => 0,
            (true, false, true) => 2,
            _ => 1,
        };
        if records {
            link.lost = copies == 0;
        }
        if data && (link.never || link.twice) {
            (link.never, link.twice, link.tainted) = (false, false, true);
        }
        for _ in 0..copies {
            let mut outgoing = self.encoder.begin(message).map_err(|_: EncodeError| Broken::Encode)?;
            while let Some(fragment) = outgoing.next_fragment() {
                match &mut self.compressor {
                    Some(compressor) => drop(fragment.compress(compressor, &mut self.output)),
                    None => fragment.encode(&mut self.output),
                }
            }
        }
        ctx.trace(self.output.len() as u64);
        ctx.tell(|| {
            let words = match message {
                Message::Records(records) => {
                    let numbers =
                        records.parts.iter().filter_map(|part| replikv_proto::Record::decode(part.clone()).ok());
                    format!("records {:?}", numbers.map(|record| record.header().seq.as_u64()).collect::<Vec<_>>())
                }
                Message::Ranges(content) => format!("page {:?} read at {}", content.range, content.read_at.seq),
                message => format!("{message:?}").chars().take(600).collect(),
            };
            format!("{:?} of link {} {:?} sends {copies} of {words}", self.side, self.link, ctx.links[self.link].ends)
        });
        ctx.oracle.buffered(&ctx.sizes, self.output.len());
        Ok(())
    }

    /// True if another message may be queued.
    pub(super) fn has_room(&self, ctx: &mut Context) -> bool {
        let room = self.output.len() < ctx.sizes.high_water;
        if !room {
            ctx.coverage.met(Scene::Backpressure);
        }
        room
    }

    /// The next message that has arrived whole.
    pub(super) fn next_message(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            match self.decoder.decode(&mut self.input).map_err(Broken::Decode)? {
                Some(Event::Message(message)) => return Ok(Some(*message)),
                Some(Event::Preamble { features, .. }) => {
                    self.compressor = Compression::of_features(features).map(Compressor::new);
                }
                None if self.ended => return Err(Broken::Closed),
                None => return Ok(None),
            }
        }
    }

    /// Hands queued bytes to the network, as far as it takes them. True if it took any.
    pub(super) fn flush(&mut self, ctx: &mut Context) -> bool {
        let capacity = ctx.sizes.socket;
        let pipe = ctx.links[self.link].pipe(self.side.other());
        if pipe.ended {
            // Whoever writes to a peer that is gone hears of it when it reads.
            self.output.clear();
            return false;
        }
        let taken = capacity.saturating_sub(pipe.bytes.len()).min(self.output.len());
        if taken == 0 {
            return false;
        }
        pipe.bytes.extend_from_slice(&self.output.split_to(taken));
        ctx.schedule_delivery(self.link, self.side.other());
        true
    }

    /// Sends what is queued, for last words, and ends this side.
    pub(super) fn finish(&mut self, ctx: &mut Context) {
        let pipe = ctx.links[self.link].pipe(self.side.other());
        if !pipe.ended {
            pipe.bytes.extend_from_slice(&self.output);
            pipe.ended = true;
            ctx.schedule_delivery(self.link, self.side.other());
        }
        self.output.clear();
        self.deaf(ctx);
    }

    /// The process is gone: what the network has taken may still arrive.
    pub(super) fn abandon(&mut self, ctx: &mut Context) {
        self.output.clear();
        self.finish(ctx);
    }

    /// The machine is gone: nobody tells the peer.
    pub(super) fn vanish(&mut self, ctx: &mut Context) {
        ctx.links[self.link].pipe(self.side.other()).blocked = true;
        self.deaf(ctx);
    }

    fn deaf(&mut self, ctx: &mut Context) {
        let pipe = ctx.links[self.link].pipe(self.side);
        pipe.bytes.clear();
        pipe.ended = true;
    }

    /// Takes what arrived while nobody listened here.
    pub(super) fn take_arrived(&mut self, ctx: &mut Context) {
        let Link { ends, .. } = ctx.links[self.link];
        let pipe = ctx.links[self.link].pipe(self.side);
        let waits = !pipe.bytes.is_empty() || pipe.ended;
        if pipe.scheduled || pipe.blocked || !waits {
            return;
        }
        let (bytes, ended) = (pipe.bytes.split(), pipe.ended);
        self.receive(&bytes, ended);
        // The other side may have more.
        ctx.wake(Node::Slave(ends.slave));
    }

    /// Bytes have arrived; `ended` if no more will.
    pub(super) fn receive(&mut self, bytes: &[u8], ended: bool) {
        self.input.extend_from_slice(bytes);
        self.ended |= ended;
    }
}
