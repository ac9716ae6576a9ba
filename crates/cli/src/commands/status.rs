//! Where a node stands, and how it is.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::TryStreamExt;
use replikv::proto::layout::{Backup, Floor, Head, Stored, Superseded};
use replikv::proto::{Compacted, LogParts, Slot, SlotLimits, SlotName, SlotView, Slots, TombstoneFloor};
use replikv::{
    Cursor, Fence, KeyRange, KeyRanges, Keyspace, ReplicaStore, ReplicaStoreExt, Role, ScanOptions, Seq, fence,
    remote_status, role, subscription,
};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::NO;
use super::place::ANSWER;
use crate::formats::add_bytes;
use crate::store::{self, Store};
use crate::{args, ui};

pub(crate) async fn run(args: args::Status, json: bool) -> anyhow::Result<ExitCode> {
    let mut status = match (&args.from, &args.store) {
        (Some(address), _) => ask(address).await?,
        (None, Some(url)) => look(url).await?,
        (None, None) => bail!("say --from ADDR or --store URL"),
    };
    words_for_bytes(&mut status);
    let trouble = if args.check { trouble(&status, args.max_lag) } else { None };
    if json {
        say!("{status}")?;
    } else {
        print(&status, "")?;
    }
    match trouble {
        Some(words) => {
            note!("replikv: {words}");
            Ok(ExitCode::from(NO))
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

pub(super) async fn ask(address: &str) -> anyhow::Result<Value> {
    super::check_address(address).await?;
    let asking = async {
        let stream = TcpStream::connect(address).await?;
        anyhow::Ok(serde_json::from_slice(&remote_status(stream).await?)?)
    };
    let answer = timeout(ANSWER, asking).await.unwrap_or_else(|_| Err(anyhow!("no answer")));
    answer.with_context(|| format!("the node at {address} cannot be asked"))
}

async fn look(url: &str) -> anyhow::Result<Value> {
    let store = store::open_to_read(url)?;
    let status = match role(&store).await? {
        None => json!({ "role": null }),
        Some(Role::Master) => {
            let head: Head = stored(&store, Head::KEY).await?;
            let parts = log_parts(&store).await?;
            let mut told = json!({ "role": "master", "source": head.position.source, "head": head.position,
                "floor": parts.floor.position,
                "tombstone_floor": parts.begins().position, "compacted": parts.compacted(),
                "log_bytes": head.log_bytes, "retained_bytes": head.log_bytes.saturating_sub(parts.missing_bytes()),
                "slots": slots(&store, &head, parts.begins().position.seq).await? });
            if let Some(mark) = superseded(&store).await? {
                told["superseded"] = json!({ "by": mark.by, "reason": mark.words() });
            }
            told
        }
        Some(Role::Centre) => json!({ "role": "centre" }),
        Some(role) => {
            let cursors = KeyRange::prefix(replikv::meta::CURSOR_PREFIX);
            let found = store.first(Keyspace::Meta, cursors).await?.and_then(|(_, bytes)| Cursor::from_bytes(&bytes));
            let consistent = found.as_ref().is_some_and(Cursor::is_consistent);
            let mut told = json!({ "role": role, "position": found.map(|cursor| cursor.position), "consistent": consistent,
                "ranges": subscription(&store).await?.map(|ranges| ranges_as_json(&ranges)) });
            if let Some(Fence { epoch, by, own, .. }) = fence(&store).await? {
                told["fence"] = json!({ "epoch": epoch, "by": by, "own": own });
            }
            let (head, floor): (Option<Head>, Option<Floor>) =
                (optional(&store, Head::KEY).await?, optional(&store, Floor::KEY).await?);
            if let Some((head, floor)) = head.zip(floor) {
                told["kept_log"] = json!({ "floor": floor.position,
                    "retained_bytes": head.log_bytes.saturating_sub(floor.log_bytes),
                    "slots": slots(&store, &head, floor.position.seq).await? });
            }
            told
        }
    };
    let mut status = status;
    let links = replikv::links(&store).await?;
    if !links.is_empty() || status["role"] == "centre" {
        let told = links.iter().map(|seen| {
            let cursor = seen.cursor.as_ref();
            json!({ "link": seen.link, "prefix": seen.prefix.escape_ascii().to_string(),
                "strip": seen.strip.as_ref().map(|strip| strip.escape_ascii().to_string()), "state": seen.state,
                "source": seen.source, "position": cursor.map(|cursor| cursor.position),
                "consistent": cursor.is_some_and(Cursor::is_consistent),
                "ranges": seen.ranges.as_ref().map(ranges_as_json) })
        });
        status["links"] = told.collect();
    }
    if let Some(bytes) = store.get(Keyspace::Meta, Backup::KEY).await? {
        status["backup"] = json!({ "taken_unix_ms": Backup::from_bytes(&bytes)?.taken_unix_ms });
    }
    store.close().await?;
    Ok(status)
}

/// By whom the master of this store was replaced, if it was.
pub(super) async fn superseded(store: &impl ReplicaStore) -> anyhow::Result<Option<Superseded>> {
    optional(store, Superseded::KEY).await
}

pub(super) async fn log_parts(store: &Store) -> anyhow::Result<LogParts> {
    Ok(LogParts {
        floor: stored(store, Floor::KEY).await?,
        compacted: optional(store, Compacted::KEY).await?,
        tombstones: optional(store, TombstoneFloor::KEY).await?,
    })
}

async fn optional<V: Stored>(store: &impl ReplicaStore, key: &[u8]) -> anyhow::Result<Option<V>> {
    Ok(store.get(Keyspace::Meta, key).await?.map(|bytes| V::from_bytes(&bytes)).transpose()?)
}

// As a running master tells them, as far as the store knows: nobody is connected.
async fn slots(store: &Store, head: &Head, floor: Seq) -> anyhow::Result<Vec<Value>> {
    let range = KeyRange::prefix(SlotName::PREFIX);
    let entries: Vec<_> = store.entries(Keyspace::Meta, range, ScanOptions::default()).try_collect().await?;
    let mut found = Vec::new();
    for (key, bytes) in entries {
        if let Some(name) = SlotName::from_key(&key) {
            found.push((name, Slot::from_bytes(&bytes)?));
        }
    }
    let slots = Slots::new(SlotLimits { max: usize::MAX, expire_after_ms: None }, found);
    let slowest = slots.slowest(floor).map(|(name, _)| name.clone());
    let views = slots.all(floor).into_iter();
    let told = views.map(|SlotView { name, slot, state }| {
        json!({ "name": name.name, "kind": name.kind, "state": state, "position": slot.position,
            "lag_seqs": head.position.seq.since(slot.position.seq), "seen_unix_ms": slot.seen_unix_ms,
            "holds_log": slowest.as_ref() == Some(&name) })
    });
    Ok(told.collect())
}

// As a running slave tells them.
fn ranges_as_json(ranges: &KeyRanges) -> Value {
    let told = ranges.iter().map(|range| {
        let end = range.end().map(|end| end.escape_ascii().to_string());
        json!({ "start": range.start().escape_ascii().to_string(), "end": end })
    });
    told.collect()
}

async fn stored<V: Stored>(store: &Store, key: &[u8]) -> anyhow::Result<V> {
    let bytes = store.get(Keyspace::Meta, key).await?.with_context(|| format!("{} is missing", V::WHAT))?;
    Ok(V::from_bytes(&bytes)?)
}

fn trouble(status: &Value, max_lag: Option<Duration>) -> Option<String> {
    let state = status["health"]["state"].as_str().unwrap_or("unknown");
    // A slave that goes through what is being written is well for as long as it is close enough behind.
    let close = max_lag.filter(|_| state == "catching_up").zip(lag_of(status)).is_some_and(|(max, lag)| lag <= max);
    if state != "ready" && !close {
        let reason = status["health"]["reason"].as_str().unwrap_or_default();
        return Some(format!("not healthy: {state}: {reason}"));
    }
    let max = max_lag?;
    if let Some(lag) = lag_of(status).filter(|lag| *lag > max) {
        return Some(format!("it is {} behind", ui::time_words(lag)));
    }
    // What its master wrote since is not known.
    let silence = status["last_contact_ms"].as_u64().map(Duration::from_millis);
    if let Some(silence) = silence.filter(|silence| *silence > max) {
        return Some(format!("nothing was heard of its master for {}", ui::time_words(silence)));
    }
    let slaves = status["slaves"].as_array()?;
    slaves.iter().find_map(|slave| {
        let lag = Duration::from_millis(slave["lag_ms"].as_u64()?);
        let name = slave["name"].as_str().unwrap_or_default();
        (lag > max).then(|| format!("slave {name} is {} behind", ui::time_words(lag)))
    })
}

// A slave's own, if it holds a state of its master and somebody knows.
fn lag_of(status: &Value) -> Option<Duration> {
    let lag = status["lag"]["millis"].as_u64().map(Duration::from_millis);
    lag.filter(|_| {
        status["consistent"] != false
            && !["empty", "copying", "comparing"].iter().any(|state| status["state"] == *state)
    })
}

// Identities and digests are sixteen bytes each; people and scripts know them by their digits.
fn words_for_bytes(value: &mut Value) {
    match value {
        Value::Object(members) => {
            // Whatever it has of bytes, a key is a key.
            if let Some(key) = members.get("key").and_then(bytes) {
                members.remove("key");
                add_bytes(members, "key", &key);
            }
            members.values_mut().for_each(words_for_bytes);
        }
        Value::Array(_) if bytes(value).is_some_and(|bytes| bytes.len() == 16) => {
            let bytes = bytes(value).unwrap_or_default();
            *value = Value::String(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        Value::Array(items) => items.iter_mut().for_each(words_for_bytes),
        _ => {}
    }
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_array()?.iter().map(|item| item.as_u64()?.try_into().ok()).collect()
}

// One line a fact, nested ones indented.
fn print(value: &Value, indent: &str) -> std::io::Result<()> {
    let Some(members) = value.as_object() else { return Ok(()) };
    for (name, value) in members {
        match value {
            Value::Object(_) if value.get("seq").is_some() => {
                let (seq, epoch, digest) = (&value["seq"], &value["epoch"]["number"], &value["digest"]);
                say!("{indent}{name}: record {seq}, epoch {epoch}, digest {}", text(digest))?;
            }
            Value::Object(_) => {
                say!("{indent}{name}:")?;
                print(value, &format!("{indent}  "))?;
            }
            // The way from the master down.
            Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_string) => {
                let items: Vec<_> = items.iter().map(text).collect();
                say!("{indent}{name}: {}", items.join(" -> "))?;
            }
            Value::Array(items) => {
                say!("{indent}{name}: {}", items.len())?;
                for item in items {
                    print(item, &format!("{indent}  "))?;
                    say!("")?;
                }
            }
            value => say!("{indent}{name}: {}", text(value))?,
        }
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slave(state: &str, millis: u64) -> Value {
        let health = json!({ "state": "catching_up", "reason": "it is not through" });
        json!({ "state": state, "health": health, "lag": { "millis": millis }, "slaves": null })
    }

    #[test]
    fn a_slave_that_holds_no_state_of_its_master_is_not_close() {
        let max = Some(Duration::from_secs(5));
        assert_eq!(trouble(&slave("catching_up", 5000), max), None);
        assert!(trouble(&slave("catching_up", 5001), max).is_some());
        assert!(trouble(&slave("catching_up", 0), None).is_some(), "nobody said how close is close");
        for state in ["empty", "copying", "comparing"] {
            let words = trouble(&slave(state, 0), max);
            assert_eq!(words.as_deref(), Some("not healthy: catching_up: it is not through"), "{state}");
        }
    }
}
