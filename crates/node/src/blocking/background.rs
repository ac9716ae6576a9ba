//! What goes on while the program does other things.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{BlockingError, Host};
use crate::{Ending, FollowError};

/// How long a dropped guard waits for its task.
const LETTING_GO: Duration = Duration::from_secs(10);

/// Listens on `address`, and serves in the background until the guard is dropped.
pub(super) fn serve<F>(
    host: &Host,
    address: impl std::net::ToSocketAddrs,
    work: impl FnOnce(tokio::net::TcpListener) -> F + Send + 'static,
) -> Result<Serving, BlockingError>
where
    F: Future<Output = std::io::Result<()>> + Send,
{
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok((listener.local_addr()?, listener))
    };
    let (address, listener) = listen().map_err(BlockingError::Listen)?;
    let work = async move { work(tokio::net::TcpListener::from_std(listener)?).await };
    Ok(Serving::new(address, Background::start(host, work, Ok(()))?))
}

/// A task that ends by itself, or when this is dropped.
#[derive(Debug)]
pub(super) struct Background<T: Send + 'static> {
    /// Until it has ended: it is not asked again then.
    task: Option<JoinHandle<T>>,
    result: Option<T>,
    stop: CancellationToken,
    host: Host,
}

impl<T: Send + 'static> Background<T> {
    /// Runs `work`; if it is stopped first, the result is `stopped`.
    pub(super) fn start(
        host: &Host,
        work: impl Future<Output = T> + Send + 'static,
        stopped: T,
    ) -> Result<Self, BlockingError> {
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let task = async move {
            tokio::select! {
                biased;
                result = work => result,
                () = stopping.cancelled() => stopped,
            }
        };
        let task = Some(host.handle().ok_or(BlockingError::NoRuntime)?.spawn(task));
        Ok(Self { task, result: None, stop, host: host.clone() })
    }

    fn result(&mut self) -> Result<Option<&T>, BlockingError> {
        if self.result.is_none() && self.task.as_ref().is_none_or(JoinHandle::is_finished) {
            self.join(None)?;
        }
        Ok(self.result.as_ref())
    }

    fn join(&mut self, timeout: Option<Duration>) -> Result<&T, BlockingError> {
        let gone = |reason: String| BlockingError::Gone { reason };
        let result = match (self.result.take(), &mut self.task) {
            (Some(result), _) => result,
            (None, None) => return Err(gone("it has ended before".into())),
            (None, Some(task)) => {
                let ended = async { Ok::<_, BlockingError>(task.await) };
                let ended = match timeout {
                    Some(timeout) => self.host.wait_for(ended, timeout)?,
                    None => self.host.wait(ended)?,
                };
                self.task = None;
                ended.map_err(|error| gone(error.to_string()))?
            }
        };
        Ok(self.result.insert(result))
    }

    fn stop(mut self) -> Result<T, BlockingError> {
        self.stop.cancel();
        self.join(None)?;
        self.result.take().ok_or_else(|| BlockingError::Gone { reason: "it has no result".into() })
    }
}

impl<T: Send + 'static> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.cancel();
        // Whoever starts the same thing again must not meet this one; inside a runtime nobody may wait for that.
        if self.task.is_some() {
            drop(self.join(Some(LETTING_GO)).map(drop));
        }
    }
}

/// A master's listener, in the background. It stops when this is dropped, and its connections end; inside an async
/// runtime, a moment later.
#[derive(Debug)]
#[must_use = "it stops when it is dropped"]
pub struct Serving {
    address: SocketAddr,
    work: Background<std::io::Result<()>>,
}

impl Serving {
    pub(super) fn new(address: SocketAddr, work: Background<std::io::Result<()>>) -> Self {
        Self { address, work }
    }

    /// The address that is really bound: port 0 took a free one.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops, and waits until the address is free. Slaves connect again when somebody serves it.
    ///
    /// # Errors
    /// [`BlockingError::Listen`] if the listener has failed before; [`BlockingError::Gone`].
    pub fn stop(self) -> Result<(), BlockingError> {
        self.work.stop()?.map_err(BlockingError::Listen)
    }
}

/// A slave that follows in the background. It stops when this is dropped; inside an async runtime, a moment later. What
/// is being committed then is committed, the rest is sent again to whoever follows next.
#[derive(Debug)]
#[must_use = "it stops when it is dropped"]
pub struct Following {
    work: Background<Result<Ending, FollowError>>,
}

impl Following {
    pub(super) fn new(work: Background<Result<Ending, FollowError>>) -> Self {
        Self { work }
    }

    /// How it has ended; `None` while it follows. Ends by itself only where another connection cannot help; see
    /// [`FollowError`].
    ///
    /// # Errors
    /// [`BlockingError::Gone`].
    pub fn result(&mut self) -> Result<Option<&Result<Ending, FollowError>>, BlockingError> {
        self.work.result()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// [`BlockingError::TimedOut`] if it still follows after `timeout`; [`BlockingError::Gone`].
    pub fn wait(&mut self, timeout: Duration) -> Result<&Result<Ending, FollowError>, BlockingError> {
        self.work.join(Some(timeout))
    }

    /// Stops, and tells how it has ended: [`Ending::Shutdown`] if it followed until now.
    ///
    /// # Errors
    /// [`BlockingError::Gone`].
    pub fn stop(self) -> Result<Result<Ending, FollowError>, BlockingError> {
        self.work.stop()
    }
}
