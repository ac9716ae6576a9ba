//! A stream that is worse than a duplex: it hands out few bytes at a time, flips a bit, counts, or is stopped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: DuplexStream,
    at_most: usize,
    flip: Option<u64>,
    read: Arc<AtomicU64>,
}

impl Wire {
    pub(crate) fn new(stream: DuplexStream) -> Self {
        Self { stream, at_most: usize::MAX, flip: None, read: Arc::default() }
    }

    /// Hands out no more than so many bytes at a time.
    pub(crate) fn at_most(mut self, bytes: usize) -> Self {
        self.at_most = bytes;
        self
    }

    /// Flips one bit of those that are read.
    pub(crate) fn flip(mut self, bit: u64) -> Self {
        self.flip = Some(bit);
        self
    }

    /// How many bytes were read so far.
    pub(crate) fn counter(&self) -> Arc<AtomicU64> {
        self.read.clone()
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let mut part = vec![0; buf.remaining().min(self.at_most)];
        let mut part = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let from = self.read.fetch_add(part.filled().len() as u64, Ordering::Relaxed);
        if let Some(flip) =
            self.flip.and_then(|bit| Some((usize::try_from((bit / 8).checked_sub(from)?).ok()?, bit % 8)))
            && let Some(byte) = part.filled_mut().get_mut(flip.0)
        {
            *byte ^= 1 << flip.1;
        }
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let part = &bytes[..bytes.len().min(self.at_most)];
        Pin::new(&mut self.stream).poll_write(cx, part)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
