//! A reader on the other side of a connection.

mod task;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{DataReader, KeyRange, Page, ScanOptions, StoreError};
use replikv_proto::{AnsweredBody, RequestBody, WaitFor};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::task::{Ask, Link, Reply};
use crate::clock::unix_ms;
use crate::reader::Reading;
use crate::{Changes, ChangesError, ChangesFrom, Health, HealthState, ReadError, Reader, ReaderStatus, WaitError};

/// How many questions wait for their turn, before those who ask wait.
const QUEUE: usize = 64;
/// How many wait for a write at once: as many as the other side lets a connection.
const WAITS: usize = 64;

/// The settings of a [`RemoteReader`]. Each has a default.
#[derive(Debug, Clone)]
pub struct RemoteReaderConfig {
    pub(super) connect_timeout: Duration,
    pub(super) silence: Duration,
    pub(super) status_every: Duration,
    pub(super) backoff: (Duration, Duration),
    pub(super) max_answer: usize,
}

impl Default for RemoteReaderConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            silence: Duration::from_secs(10),
            status_every: Duration::from_secs(1),
            backoff: (Duration::from_millis(100), Duration::from_secs(10)),
            max_answer: 260 << 20,
        }
    }
}

impl RemoteReaderConfig {
    /// How long connecting may take. Whoever asks meanwhile waits as long. Default: 10 seconds.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long the other side may be silent before the connection is given up. Longer than its store takes for a read:
    /// it answers one after the other. Default: 10 seconds.
    #[must_use]
    pub fn silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// How often the other side is asked where it stands: what [`Reader::status`] tells is as old at most, and says so.
    /// Less than the handshake timeout of the other side, which gives up who does not ask. Default: one second.
    #[must_use]
    pub fn status_every(mut self, interval: Duration) -> Self {
        self.status_every = interval;
        self
    }

    /// How long to wait between attempts to connect: the first pause, which doubles up to the longest, half of it random.
    /// Default: 100 milliseconds and 10 seconds.
    #[must_use]
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = (first, longest);
        self
    }

    /// The longest answer that is taken, in bytes: that much memory is used when such a value is read. Longer ones are
    /// refused with [`ReadError::TooLarge`]. Default: 260 MiB, more than any store that comes with this library holds in
    /// one value.
    #[must_use]
    pub fn max_answer(mut self, bytes: usize) -> Self {
        self.max_answer = bytes;
        self
    }
}

/// Reads from a master or a slave on the other side of a connection: from what serves
/// ([`Master::serve`](crate::Master::serve)), or answers reads ([`Slave::serve_reads`](crate::Slave::serve_reads)).
///
/// Handles are cheap to clone and share one connection: their questions are sent as they come, and answered by number.
/// Whoever asks while it connects waits until that has worked or not. While it does not work every question fails at
/// once with [`ReadError::Unreachable`], and connecting is tried again, after pauses that grow. Questions that were
/// asked when the connection is lost fail in the same way: nothing is asked twice.
///
/// When the last handle is gone, the connection ends.
///
/// # Cancel safety
/// Of every method: if dropped, the question is forgotten here, and an answer that comes late is not looked at. Whoever
/// waits for a write is forgotten on the other side too.
#[derive(Clone)]
pub struct RemoteReader {
    inner: Arc<Inner>,
}

struct Inner {
    asks: mpsc::Sender<Ask>,
    forgets: mpsc::UnboundedSender<u32>,
    ids: AtomicU32,
    waits: Semaphore,
    seen: Arc<ArcSwap<Seen>>,
    max_answer: u64,
    _closing: DropGuard,
}

/// What the other side last told, and when.
#[derive(Debug)]
struct Seen {
    status: ReaderStatus,
    at: Instant,
}

impl RemoteReader {
    /// Reads at `address`, HOST:PORT, which is looked up for each connection.
    ///
    /// Must be called within a tokio runtime. Returns at once: the first question waits for the connection.
    #[cfg(feature = "tcp")]
    pub fn tcp(address: impl Into<String>, config: RemoteReaderConfig) -> Self {
        let address = Arc::<str>::from(address.into());
        let connect = move || {
            let address = address.clone();
            async move {
                let stream = tokio::net::TcpStream::connect(&*address).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            }
        };
        Self::connecting(connect, config)
    }

    /// Reads over `stream`, and never again once that ends.
    ///
    /// Must be called within a tokio runtime.
    pub fn over<T>(stream: T, config: RemoteReaderConfig) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut stream = Some(stream);
        let connect = move || {
            let taken = stream.take().ok_or_else(|| io::Error::other("the stream has ended, and there is no other"));
            async move { taken }
        };
        Self::connecting(connect, config)
    }

    /// Reads over streams that `connect` makes, one after the other, as they are needed.
    ///
    /// Must be called within a tokio runtime.
    pub fn connecting<T, F>(connect: impl FnMut() -> F + Send + 'static, config: RemoteReaderConfig) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
        F: Future<Output = io::Result<T>> + Send + 'static,
    {
        let (asks, asked) = mpsc::channel(QUEUE);
        let (forgets, forgotten) = mpsc::unbounded_channel();
        let seen =
            Arc::new(ArcSwap::from_pointee(Seen { status: unreachable("not connected yet"), at: Instant::now() }));
        let closing = CancellationToken::new();
        let max_answer = config.max_answer as u64;
        let link = Link::new(config, asked, forgotten, seen.clone(), closing.clone());
        tokio::spawn(link.run(connect));
        let inner = Inner {
            asks,
            forgets,
            ids: AtomicU32::new(1),
            waits: Semaphore::new(WAITS),
            seen,
            max_answer,
            _closing: closing.drop_guard(),
        };
        Self { inner: Arc::new(inner) }
    }

    async fn ask(&self, body: RequestBody) -> Result<AnsweredBody, ReadError> {
        let id = self.inner.ids.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        // Before it is asked: if this is dropped, it must be forgotten from then on.
        let mut forget = Forget { forgets: &self.inner.forgets, id: Some(id) };
        let gone = || ReadError::Unreachable { reason: "its runtime has ended".into() };
        self.inner.asks.send(Ask { id, body, answer }).await.map_err(|_| gone())?;
        let reply = answered.await.map_err(|_| gone())?;
        forget.id = None;
        match reply? {
            Reply::Answered(body) => match *body {
                AnsweredBody::Failed(failure) => Err(ReadError::from_failure(failure)),
                body => Ok(body),
            },
            Reply::Words(words) => Err(ReadError::Refused { words }),
        }
    }
}

impl fmt::Debug for RemoteReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteReader").field("seen", &self.inner.seen.load()).finish_non_exhaustive()
    }
}

/// A question that is forgotten if nobody waits for its answer.
struct Forget<'a> {
    forgets: &'a mpsc::UnboundedSender<u32>,
    id: Option<u32>,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // Nothing is to be forgotten where nobody listens any more.
            let _ = self.forgets.send(id);
        }
    }
}

fn odd() -> ReadError {
    ReadError::Refused { words: "it answered another question".into() }
}

#[async_trait]
impl Reader for RemoteReader {
    async fn read(&self, key: &[u8], after: Option<WaitFor>) -> Result<Reading<Option<Bytes>>, ReadError> {
        let key = Bytes::copy_from_slice(key);
        match self.ask(RequestBody::Get { key, after, most: self.inner.max_answer }).await? {
            AnsweredBody::Value(at, value) => Ok(Reading { value, at }),
            _ => Err(odd()),
        }
    }

    async fn read_page(
        &self,
        range: KeyRange,
        options: ScanOptions,
        after: Option<WaitFor>,
    ) -> Result<Reading<Page>, ReadError> {
        let body = RequestBody::Scan {
            range: range.clone(),
            max_entries: options.max_entries as u64,
            max_bytes: options.max_bytes as u64,
            reverse: options.reverse,
            after,
            most: self.inner.max_answer,
        };
        match self.ask(body).await? {
            AnsweredBody::Page(at, rest, entries) => {
                let page = Page::received(&range, options.reverse, entries, rest);
                Ok(Reading { value: page.map_err(|error| ReadError::Refused { words: error.to_string() })?, at })
            }
            _ => Err(odd()),
        }
    }

    /// Refused with [`ChangesError::Unsupported`]: follow the master with a slave, whose changes can be read.
    async fn changes(&self, _from: ChangesFrom, _ranges: Vec<KeyRange>) -> Result<Changes, ChangesError> {
        Err(ChangesError::Unsupported)
    }

    async fn wait_applied(&self, write: WaitFor) -> Result<(), WaitError> {
        // Never closed.
        let _turn = self.inner.waits.acquire().await;
        match self.ask(RequestBody::Wait(write)).await? {
            AnsweredBody::Reached => Ok(()),
            _ => Err(odd().into()),
        }
    }

    /// What the other side last told, and how long ago that was: its silence and its lag are that much longer.
    fn status(&self) -> ReaderStatus {
        let seen = self.inner.seen.load();
        let age = u64::try_from(seen.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut status = seen.status.clone();
        status.last_contact_ms = status.last_contact_ms.map(|silence| silence.saturating_add(age));
        if let Some(lag) = status.lag.as_mut().filter(|lag| lag.seqs > 0) {
            lag.millis = lag.millis.saturating_add(age);
        }
        status
    }
}

#[async_trait]
impl DataReader for RemoteReader {
    async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read(key, None).await?.value)
    }

    async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        Ok(self.read_page(range, options, None).await?.value)
    }
}

fn unreachable(reason: impl Into<String>) -> ReaderStatus {
    let health = Health { state: HealthState::Disconnected, reason: reason.into(), since_unix_ms: unix_ms() };
    ReaderStatus { health, position: None, consistent: false, lag: None, last_contact_ms: None }
}
