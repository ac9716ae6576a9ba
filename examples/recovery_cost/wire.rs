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

/// What passes on the wire, both ways.
#[derive(Default)]
pub(crate) struct Wire(Mutex<Passed>);

#[derive(Default, Clone)]
pub(crate) struct Passed {
    pub(crate) bytes: u64,
    pub(crate) questions: u64,
    /// How often somebody has to wait for the other side, one after the other, be the connection as slow as it may: a
    /// question is of one round more than the latest answer that was there before it.
    pub(crate) rounds: u64,
    asked: VecDeque<(KeyRange, u64)>,
    answered: u64,
}

impl Wire {
    pub(crate) fn passed(&self) -> Passed {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, bytes: usize, messages: &[Message]) {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passed.bytes += bytes as u64;
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
    pub(crate) fn new(master: &Master<Store>, slave: &Slave<Store>) -> Self {
        let (at_master, master_end) = tokio::io::duplex(256 << 10);
        let (at_slave, slave_end) = tokio::io::duplex(256 << 10);
        let wire = Arc::new(Wire::default());
        let (from_master, to_master) = tokio::io::split(master_end);
        let (from_slave, to_slave) = tokio::io::split(slave_end);
        tokio::spawn(pass(from_master, to_slave, wire.clone()));
        tokio::spawn(pass(from_slave, to_master, wire.clone()));
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
pub(crate) async fn follow(master: &Master<Store>, slave: &Slave<Store>) -> Res<(Passed, Duration)> {
    let connected = Connected::new(master, slave);
    slave.wait_caught_up().await?;
    let cost = (connected.wire.passed(), connected.begun.elapsed());
    connected.close().await;
    Ok(cost)
}

async fn pass(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, wire: Arc<Wire>) -> Res<()> {
    let mut decoder = Decoder::new(DecoderLimits { data: 128 << 20, control: 4 << 20 });
    let (mut chunk, mut seen) = (vec![0; 64 << 10], BytesMut::new());
    loop {
        let len = from.read(&mut chunk).await?;
        if len == 0 {
            return Ok(to.shutdown().await?);
        }
        seen.extend_from_slice(&chunk[..len]);
        let mut messages = Vec::new();
        while let Some(event) = decoder.decode(&mut seen)? {
            if let Event::Message(message) = event {
                messages.push(*message);
            }
        }
        wire.note(len, &messages);
        to.write_all(&chunk[..len]).await?;
    }
}
