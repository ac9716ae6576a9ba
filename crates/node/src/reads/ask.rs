//! One question on a connection of its own, with an answer as JSON.

use bytes::Bytes;
use replikv_proto::{DecoderLimits, Message, Refusal, Reject, RejectCode, Request, RequestBody};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::ServeError;
use crate::transport::Connection;

/// Asks the node at the other end of `stream`. If this is dropped or fails, what was asked may have been done.
pub(crate) async fn ask<T, A>(stream: T, body: RequestBody) -> Result<A, ServeError>
where
    T: AsyncRead + AsyncWrite + Send,
    A: DeserializeOwned,
{
    let answer = ask_for_json(stream, body, 1 << 20).await?;
    serde_json::from_slice(&answer).map_err(|error| refused(error.to_string()))
}

/// As [`ask`], for the answer as it comes, of so many bytes at most.
pub(crate) async fn ask_for_json<T>(stream: T, body: RequestBody, most: usize) -> Result<Bytes, ServeError>
where
    T: AsyncRead + AsyncWrite + Send,
{
    let mut connection = Connection::new(stream, DecoderLimits { data: most, control: 1 << 20 });
    connection.send(&Message::Request(Request { id: 1, body }))?;
    loop {
        match connection.next_message()? {
            Some(Message::Response(response)) => return response.body.map_err(refused),
            Some(Message::Reject(reject)) => return Err(ServeError::Refused(Refusal::from(reject))),
            Some(_) => {}
            None => drop(connection.drive(true).await?),
        }
    }
}

fn refused(words: String) -> ServeError {
    ServeError::Refused(Reject { code: RejectCode::Unsupported, words, retry: false }.into())
}
