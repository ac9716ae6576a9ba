//! One question on a connection of its own, with an answer as JSON.

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
    let mut connection = Connection::new(stream, DecoderLimits { data: 1 << 20, control: 1 << 20 });
    connection.send(&Message::Request(Request { id: 1, body }))?;
    let refused =
        |words: String| ServeError::Refused(Reject { code: RejectCode::Unsupported, words, retry: false }.into());
    loop {
        match connection.next_message()? {
            Some(Message::Response(response)) => {
                let answer = response.body.map_err(refused)?;
                return serde_json::from_slice(&answer).map_err(|error| refused(error.to_string()));
            }
            Some(Message::Reject(reject)) => return Err(ServeError::Refused(Refusal::from(reject))),
            Some(_) => {}
            None => drop(connection.drive(true).await?),
        }
    }
}
