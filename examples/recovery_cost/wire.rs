//! A connection that is listened to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use replikv::proto::{Decoder, DecoderLimits, Event, Message, Verdict};
use replikv::{KeyRange, Master, Slave};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use super::{Res, Store};

/// When the slave hears what its master says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// As soon as it can.
    AtOnce,
    /// Once neither of both has anything more to say, as over the slowest of connections: so rounds are counted, and it
    /// takes as long as it takes.
    Late,
}

/// Whoever has said nothing for so long waits. On a busy machine a round may be counted twice, and none is overlooked.
const SILENCE: Duration = Duration::from_millis(200);

/// What passes on the wire, both ways.
#[derive(Default)]
pub(crate) struct Wire(Mutex<Passed>);

#[derive(Default, Clone)]
pub(crate) struct Passed {
    pub(crate) bytes: u64,
    pub(crate) questions: u64,
    /// How often the slave has to hear of its master before it can ask on: a question is of one round more than the
    /// latest answer that was heard before it.
    pub(crate) rounds: u64,
    asked: VecDeque<(KeyRange, u64)>,
    answered: u64,
    last: Option<Instant>,
}

impl Wire {
    pub(crate) fn passed(&self) -> Passed {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When nobody has anything more to say, unless something comes before.
    fn silent_at(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last.map_or_else(Instant::now, |last| last + SILENCE)
    }

    fn said(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last = Some(Instant::now());
    }

    fn note(&self, bytes: usize, messages: &[Message]) {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passed.bytes += bytes as u64;
        passed.last = Some(Instant::now());
        messages.iter().for_each(|message| passed.note(message));
    }
}

impl Passed {
    fn note(&mut self, message: &Message) {
        match message {
            Message::Compare(compare) => {
                let round = self.answered + 1;
                self.questions += 1;
                self.rounds = self.rounds.max(round);
                self.asked.extend(compare.ranges.iter().map(|asked| (asked.range.clone(), round)));
            }
            Message::Compared(compared) => {
                let counts = compared.verdicts.iter().map(|(Verdict::Equal(count) | Verdict::Split(count))| *count);
                (0..counts.sum()).for_each(|_| self.pop());
            }
            Message::Ranges(content) => {
                let ends = |range: &KeyRange| match (range.end(), content.range.end()) {
                    (_, None) => true,
                    (end, Some(last)) => end.is_some_and(|end| end <= last),
                };
                while self.asked.front().is_some_and(|(range, _)| ends(range)) {
                    self.pop();
                }
            }
            _ => {}
        }
    }

    fn pop(&mut self) {
        if let Some((_, round)) = self.asked.pop_front() {
            self.answered = self.answered.max(round);
        }
    }
}

/// A slave that follows its master, over a stream in this process.
pub(crate) struct Connected {
    pub(crate) wire: Arc<Wire>,
    pub(crate) begun: Instant,
    serving: JoinHandle<()>,
    following: JoinHandle<()>,
}

impl Connected {
    pub(crate) fn new(master: &Master<Store>, slave: &Slave<Store>, heard: Heard) -> Self {
        let (at_master, master_end) = tokio::io::duplex(256 << 10);
        let (at_slave, slave_end) = tokio::io::duplex(256 << 10);
        let wire = Arc::new(Wire::default());
        let (from_master, to_master) = tokio::io::split(master_end);
        let (from_slave, to_slave) = tokio::io::split(slave_end);
        tokio::spawn(pass(from_master, to_slave, wire.clone(), heard));
        tokio::spawn(pass(from_slave, to_master, wire.clone(), Heard::AtOnce));
        let (master, slave) = (master.clone(), slave.clone());
        let serving = tokio::spawn(async move { drop(master.serve(at_master).await) });
        let following = tokio::spawn(async move { drop(slave.follow(at_slave).await) });
        Self { wire, begun: Instant::now(), serving, following }
    }

    pub(crate) async fn close(self) {
        self.following.abort();
        drop(self.following.await);
        drop(self.serving.await);
    }
}

/// What it took until the slave had caught up.
pub(crate) async fn follow(master: &Master<Store>, slave: &Slave<Store>, heard: Heard) -> Res<(Passed, Duration)> {
    let connected = Connected::new(master, slave, heard);
    slave.wait_caught_up().await?;
    let cost = (connected.wire.passed(), connected.begun.elapsed());
    connected.close().await;
    Ok(cost)
}

type Reader = ReadHalf<DuplexStream>;

async fn pass(mut from: Reader, mut to: WriteHalf<DuplexStream>, wire: Arc<Wire>, heard: Heard) -> Res<()> {
    let mut decoder = Decoder::new(DecoderLimits { data: 128 << 20, control: 4 << 20 });
    let (mut chunk, mut seen, mut held) = (vec![0; 64 << 10], BytesMut::new(), BytesMut::new());
    let mut messages = Vec::new();
    loop {
        let silent = tokio::time::sleep_until(wire.silent_at().into());
        let len = tokio::select! {
            biased;
            len = from.read(&mut chunk) => len?,
            () = silent, if !held.is_empty() => {
                if wire.silent_at() <= Instant::now() {
                    wire.note(held.len(), &std::mem::take(&mut messages));
                    to.write_all(&held.split()).await?;
                }
                continue;
            }
        };
        if len == 0 {
            to.write_all(&held).await?;
            return Ok(to.shutdown().await?);
        }
        seen.extend_from_slice(&chunk[..len]);
        while let Some(event) = decoder.decode(&mut seen)? {
            if let Event::Message(message) = event {
                messages.push(*message);
            }
        }
        if heard == Heard::Late {
            held.extend_from_slice(&chunk[..len]);
            wire.said();
        } else {
            wire.note(len, &std::mem::take(&mut messages));
            to.write_all(&chunk[..len]).await?;
        }
    }
}
