//! Answering reads on a connection, for masters and slaves.
//!
//! One question is read from the store at a time, and only while the answers before it have mostly gone: what a
//! connection pins is one answer and a buffer, however much is asked, and however slowly the answers are taken. Those
//! who wait for a write wait beside that, and are answered when it is there.

use std::collections::HashMap;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::FuturesUnordered;
use replikv_core::ScanOptions;
use replikv_proto::{
    Answered, AnsweredBody, FenceRequest, Goodbye, GoodbyeReason, Message, ProtocolError, ReadFailure, Request,
    RequestBody, Response, WaitFor,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::clock::ahead;
use crate::transport::{Connection, ConnectionError};
use crate::{ReadError, Reader, ServeError};

/// How many of one connection may wait for a write at once.
const MAX_WAITS: usize = 64;
/// The largest page, but for what its last entry has more.
const MAX_PAGE: u64 = 4 << 20;
/// The most entries of a page.
const MAX_ENTRIES: u64 = 64 << 10;

/// Who can be asked over a connection.
pub(crate) trait Asked: Reader {
    /// Its status, as JSON.
    fn status_json(&self) -> serde_json::Result<Vec<u8>>;

    /// Hands over to that slave: what came of it, as JSON.
    fn hand_over(&self, _successor: String, _patience: Duration) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(ready(Err("this node is a slave: only a master hands over".into())))
    }

    /// Promises what is asked: what came of it, as JSON.
    fn fence(&self, request: FenceRequest) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// Why answering has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// This side closes; the other one was told.
    Closing,
    /// The other side said goodbye.
    Goodbye(Goodbye),
    /// The other side has asked, and has gone.
    Left,
    /// Something came that is no question.
    Other(Box<Message>),
}

/// Answers questions until something else comes.
///
/// `admit` is asked before the first read: whether there is room for one more who reads; and before a fence. The other side may be silent
/// for as long as `patience`, if it takes what it is sent.
pub(crate) async fn answer_all<T>(
    connection: &mut Connection<T>,
    node: &impl Asked,
    closing: &CancellationToken,
    patience: Duration,
    mut admit: impl FnMut(Wish) -> Result<(), Refused> + Send,
) -> Result<Ended, ServeError>
where
    T: AsyncRead + AsyncWrite + Send,
{
    let mut waits = Waits::default();
    let mut deadline = ahead(patience);
    let (mut asked, mut admitted) = (false, false);
    loop {
        while connection.has_room()
            && let Some(message) = connection.next_message()?
        {
            let Request { id, body } = match message {
                Message::Request(request) => request,
                Message::Goodbye(goodbye) => return Ok(Ended::Goodbye(goodbye)),
                other => return Ok(Ended::Other(Box::new(other))),
            };
            (deadline, asked) = (ahead(patience), true);
            let reads = matches!(body, RequestBody::Get { .. } | RequestBody::Scan { .. } | RequestBody::Wait(_));
            let fences = matches!(body, RequestBody::Fence(_));
            if (reads && !admitted) || fences {
                match admit(if fences { Wish::Fence } else { Wish::Read }) {
                    Ok(()) => admitted |= reads,
                    Err(Refused::Busy) => {
                        connection.send(&answered(id, AnsweredBody::Failed(ReadFailure::Busy)))?;
                        // It must not keep the place of somebody who follows.
                        let words = "as many read here as may: try again".into();
                        connection.send(&Message::Goodbye(Goodbye { reason: GoodbyeReason::Refused, words }))?;
                        return Ok(Ended::Left);
                    }
                    Err(Refused::Never(words)) => {
                        connection.send(&Message::Response(Response { id, body: Err(words.into()) }))?;
                        continue;
                    }
                }
            }
            match body {
                RequestBody::Wait(write) => {
                    if let Some(failure) = waits.begin(id, node, write)? {
                        connection.send(&answered(id, AnsweredBody::Failed(failure)))?;
                    }
                }
                RequestBody::Forget { id } => waits.forget(id),
                body => connection.send(&answer(id, body, node).await)?,
            }
        }
        let room = connection.has_room();
        tokio::select! {
            biased;
            () = closing.cancelled() => {
                let words = "the node was shut down".into();
                connection.send(&Message::Goodbye(Goodbye { reason: GoodbyeReason::Closing, words }))?;
                return Ok(Ended::Closing);
            }
            Some((id, body)) = waits.next(), if room && !waits.is_empty() => connection.send(&answered(id, body))?,
            driven = connection.drive(room) => match driven {
                // Whoever takes a long answer is busy, not silent.
                Ok(crate::transport::Driven::Wrote) => deadline = ahead(patience),
                Ok(_) => {}
                // Whoever has its answer may just go.
                Err(ConnectionError::Closed) if asked => return Ok(Ended::Left),
                Err(error) => return Err(error.into()),
            },
            () = sleep_until(deadline) => {
                return Err(ProtocolError::Silent { seconds: patience.as_secs() }.into());
            }
        }
    }
}

/// What somebody asks for that is not allowed everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Read,
    Fence,
}

/// Why somebody may not read.
#[derive(Debug)]
pub(crate) enum Refused {
    /// For the moment.
    Busy,
    /// Never here.
    Never(&'static str),
}

/// The answer to what asks for no data, or that there is none. For connections that do not read, too.
pub(crate) fn tell(node: &impl Asked, id: u32, body: &RequestBody) -> Response {
    let json = |json: serde_json::Result<Vec<u8>>| json.map(Bytes::from).map_err(|error| error.to_string());
    let body = match body {
        RequestBody::Status => json(node.status_json()),
        RequestBody::Standing => json(serde_json::to_vec(&Reader::status(node))),
        RequestBody::Get { .. } | RequestBody::Scan { .. } | RequestBody::Wait(_) | RequestBody::Forget { .. } => {
            Err("a connection that is followed answers no reads: read on another one".into())
        }
        RequestBody::HandOver { .. } => Err("a handover is asked for on a connection of its own".into()),
        RequestBody::Fence(_) => Err("a fence is asked for on a connection of its own".into()),
        _ => Err("this node does not know the question: it is older than who asks".into()),
    };
    Response { id, body }
}

async fn answer(id: u32, body: RequestBody, node: &impl Asked) -> Message {
    let (most, read) = match body {
        RequestBody::Get { key, after, most } => {
            let read = node.read(&key, after).await;
            (most, read.map(|read| AnsweredBody::Value(read.at, read.value)))
        }
        RequestBody::Scan { range, max_entries, max_bytes, reverse, after, most } => {
            let bound = |wanted: u64, max: u64| usize::try_from(wanted.min(max)).unwrap_or(usize::MAX);
            let options = ScanOptions {
                max_entries: bound(max_entries, MAX_ENTRIES),
                max_bytes: bound(max_bytes, MAX_PAGE),
                reverse,
            };
            let read = node.read_page(range, options, after).await;
            (most, read.map(|read| AnsweredBody::Page(read.at, read.value.rest().cloned(), read.value.ops().clone())))
        }
        RequestBody::HandOver { slave, patience_ms } => {
            let handed_over = node.hand_over(slave, Duration::from_millis(patience_ms)).await;
            return Message::Response(Response { id, body: handed_over.map(Bytes::from) });
        }
        RequestBody::Fence(request) => {
            let fenced = node.fence(request).await;
            return Message::Response(Response { id, body: fenced.map(Bytes::from) });
        }
        body => return Message::Response(tell(node, id, &body)),
    };
    let len = match &read {
        Ok(AnsweredBody::Value(_, Some(value))) => value.len() as u64,
        Ok(AnsweredBody::Page(_, _, entries)) => entries.byte_len() as u64,
        _ => 0,
    };
    let body = match read {
        Ok(_) if len > most => AnsweredBody::Failed(ReadFailure::TooLarge { len, max: most }),
        Ok(body) => body,
        Err(error) => AnsweredBody::Failed(error.to_failure()),
    };
    answered(id, body)
}

fn answered(id: u32, body: AnsweredBody) -> Message {
    Message::Answered(Answered { id, body })
}

/// Those of a connection who wait for a write.
#[derive(Default)]
struct Waits<'a> {
    waiting: FuturesUnordered<Abortable<BoxFuture<'a, (u32, AnsweredBody)>>>,
    handles: HashMap<u32, AbortHandle>,
}

impl<'a> Waits<'a> {
    fn begin(&mut self, id: u32, node: &'a impl Asked, write: WaitFor) -> Result<Option<ReadFailure>, ProtocolError> {
        if self.handles.contains_key(&id) {
            return Err(ProtocolError::Misbehaved { what: "two of its questions have one id".into() });
        }
        if self.handles.len() >= MAX_WAITS {
            return Ok(Some(ReadFailure::Busy));
        }
        let wait = async move {
            let body = match node.wait_applied(write).await {
                Ok(()) => AnsweredBody::Reached,
                Err(error) => AnsweredBody::Failed(ReadError::from(error).to_failure()),
            };
            (id, body)
        };
        let (handle, registration) = AbortHandle::new_pair();
        self.handles.insert(id, handle);
        self.waiting.push(Abortable::new(Box::pin(wait), registration));
        Ok(None)
    }

    fn forget(&mut self, id: u32) {
        if let Some(handle) = self.handles.remove(&id) {
            handle.abort();
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next one who is answered. Cancel safe.
    async fn next(&mut self) -> Option<(u32, AnsweredBody)> {
        loop {
            // Those that were forgotten end with nothing to say.
            if let Ok((id, body)) = self.waiting.next().await? {
                self.handles.remove(&id);
                return Some((id, body));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use replikv_core::{DataReader, KeyRange, Page, StoreError};
    use replikv_proto::{DecoderLimits, ReadAt};

    use super::*;
    use crate::reader::Reading;
    use crate::{Changes, ChangesError, ChangesFrom, ReaderStatus, WaitError};

    /// Counts what is read from it: values of 1 MiB.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    #[async_trait]
    impl DataReader for Counted {
        async fn get_data(&self, _key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            Ok(None)
        }

        async fn scan_data(&self, _range: KeyRange, _options: ScanOptions) -> Result<Page, StoreError> {
            Err(StoreError::Closed)
        }
    }

    #[async_trait]
    impl Reader for Counted {
        async fn read(&self, _key: &[u8], _after: Option<WaitFor>) -> Result<Reading<Option<Bytes>>, ReadError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Reading { value: Some(vec![7; 1 << 20].into()), at: ReadAt::default() })
        }

        async fn read_page(
            &self,
            _range: KeyRange,
            _options: ScanOptions,
            _after: Option<WaitFor>,
        ) -> Result<Reading<Page>, ReadError> {
            Err(StoreError::Closed.into())
        }

        async fn changes(&self, _from: ChangesFrom, _ranges: Vec<KeyRange>) -> Result<Changes, ChangesError> {
            Err(ChangesError::Unsupported)
        }

        async fn wait_applied(&self, _write: WaitFor) -> Result<(), WaitError> {
            Err(WaitError::Closed)
        }

        fn status(&self) -> ReaderStatus {
            unreachable!("nobody asks")
        }
    }

    impl Asked for Counted {
        fn status_json(&self) -> serde_json::Result<Vec<u8>> {
            Ok(Vec::new())
        }

        fn fence(&self, _request: FenceRequest) -> BoxFuture<'_, Result<Vec<u8>, String>> {
            Box::pin(ready(Err("it is no slave".into())))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_for_who_has_not_taken_the_answer_before() {
        let (node, closing) = (Counted::default(), CancellationToken::new());
        let (here, there) = tokio::io::duplex(64 << 10);
        let mut asking = Connection::new(here, DecoderLimits::default());
        for id in 0..1000 {
            let key = Bytes::from_static(b"k");
            let body = RequestBody::Get { key, after: None, most: u64::MAX };
            asking.send(&Message::Request(Request { id, body })).unwrap();
        }
        let mut connection = Connection::new(there, DecoderLimits::default());
        let patience = Duration::from_secs(10);
        let answering = answer_all(&mut connection, &node, &closing, patience, |_| Ok(()));
        let asks = async { while asking.drive(false).await.is_ok() {} };
        let ended = tokio::select! {
            ended = answering => ended,
            () = asks => panic!("it goes on asking"),
        };
        assert!(matches!(ended, Err(ServeError::Protocol(ProtocolError::Silent { .. }))), "{ended:?}");
        assert_eq!(node.0.load(Ordering::Relaxed), 1);
    }
}
