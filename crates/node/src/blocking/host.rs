//! Whose threads the work runs on, and waiting without any of them.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};

use super::BlockingError;

/// Enough for one node: callers wait on their own threads, and stores bring theirs.
const WORKERS: usize = 2;
/// How long what runs on the last handle's runtime may take to let go of it.
const LETTING_GO: Duration = Duration::from_secs(10);

/// The runtime that a handle's work runs on.
#[derive(Debug, Clone)]
pub(crate) enum Host {
    /// It came with the handle.
    Own(Arc<OwnRuntime>),
    /// It is somebody else's.
    Lent(Handle),
    /// There is none: what needs no task of its own works nevertheless.
    Nobody,
}

impl Host {
    /// A runtime that ends with the last clone.
    pub(super) fn own() -> Result<Self, BlockingError> {
        refuse_inside_runtime()?;
        let runtime = start().map_err(BlockingError::Runtime)?;
        Ok(Self::Own(Arc::new(OwnRuntime(Some(runtime)))))
    }

    pub(super) fn handle(&self) -> Option<&Handle> {
        match self {
            Self::Own(runtime) => runtime.0.as_ref().map(Runtime::handle),
            Self::Lent(handle) => Some(handle),
            Self::Nobody => None,
        }
    }

    /// Blocks until `future` is done.
    pub(super) fn wait<T, E>(&self, future: impl Future<Output = Result<T, E>>) -> Result<T, BlockingError>
    where
        BlockingError: From<E>,
    {
        match self.block(future, None)? {
            Some(result) => Ok(result?),
            None => Err(BlockingError::TimedOut),
        }
    }

    /// As [`wait`](Self::wait), and gives `future` up after `timeout`.
    pub(super) fn wait_for<T, E>(
        &self,
        future: impl Future<Output = Result<T, E>>,
        timeout: Duration,
    ) -> Result<T, BlockingError>
    where
        BlockingError: From<E>,
    {
        // A time that the clock cannot tell never comes.
        match self.block(future, Instant::now().checked_add(timeout))? {
            Some(result) => Ok(result?),
            None => Err(BlockingError::TimedOut),
        }
    }

    /// Blocks until `future` is done; `None` if it is not at `deadline`.
    ///
    /// The thread parks between polls, and needs no runtime for that: timers of a runtime that was shut down panic, and
    /// one that nobody drives never wakes anybody.
    pub(super) fn block<F: Future>(
        &self,
        future: F,
        deadline: Option<Instant>,
    ) -> Result<Option<F::Output>, BlockingError> {
        refuse_inside_runtime()?;
        // A store of somebody's own may spawn.
        let _context = self.handle().map(Handle::enter);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Ok(Some(output));
            }
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(Duration::ZERO) => return Ok(None),
                Some(left) => thread::park_timeout(left),
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn refuse_inside_runtime() -> Result<(), BlockingError> {
    match Handle::try_current() {
        Err(outside) if outside.is_missing_context() => Ok(()),
        _ => Err(BlockingError::InsideRuntime),
    }
}

fn start() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(WORKERS).thread_name("replikv").enable_all().build()
}

/// A runtime that may be dropped anywhere.
#[derive(Debug)]
pub(crate) struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        let Some(runtime) = self.0.take() else { return };
        // Dropping it where it is not allowed to block would panic.
        match refuse_inside_runtime() {
            Ok(()) => runtime.shutdown_timeout(LETTING_GO),
            Err(_) => runtime.shutdown_background(),
        }
    }
}
