//! How a node is, for people and probes.

use std::fmt::Display;

use replikv_core::{KeyRange, KeyRanges};
use serde::{Deserialize, Serialize, Serializer};

/// What to think of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HealthState {
    /// It does its work, and nothing is missing.
    Ready,
    /// It does its work, and something is still missing.
    CatchingUp,
    /// Nothing was heard of the other side for too long.
    Stale,
    /// Its history is not the other side's.
    Diverged,
    /// It cannot go on until somebody does something.
    Blocked,
    /// Its master's writers are faster, and it does not get there: its lag has done nothing but grow for ten minutes, or it
    /// copies or compares again and again and never gets to the end.
    Outpaced,
    /// Another master goes on in its place: one was promoted, or this one has handed over.
    Replaced,
    /// There is no connection; it tries again.
    Disconnected,
    /// It was shut down.
    Stopped,
    /// One that this program does not know: a newer one told it.
    #[serde(other)]
    Other,
}

/// How a node is, why, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// In one word.
    pub state: HealthState,
    /// In one sentence.
    pub reason: String,
    /// Since when, by this machine's clock; milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
}

/// What has a name, for whoever reads a status.
pub(crate) fn displayed<T: Display, S: Serializer>(named: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
    named.as_ref().map(ToString::to_string).serialize(to)
}

/// Key ranges, for whoever reads a status.
pub(crate) fn ranges_as_text<S: Serializer>(ranges: &Option<KeyRanges>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Text {
        start: String,
        end: Option<String>,
    }
    let text = |range: &KeyRange| Text {
        start: range.start().escape_ascii().to_string(),
        end: range.end().map(|end| end.escape_ascii().to_string()),
    };
    let texts = ranges.as_ref().map(|ranges| ranges.iter().map(text).collect::<Vec<_>>());
    texts.serialize(to)
}
