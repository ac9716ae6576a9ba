//! Somebody in the middle who changes what is said, and computes every checksum anew.

use crate::support::{Error, Store, assert_equal, connect, contents, master, serve, slave, soon, store};
use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use futures_util::{SinkExt, StreamExt};
use replikv_core::{Batch, LinkId, ReplicaStore};
use replikv_node::{Codec, FollowError, Master, MasterConfig, Slave};
use replikv_proto::{DecoderLimits, Message, ProtocolError, Record, Records};
use tokio_util::codec::Framed;

type Change = Box<dyn FnMut(&mut Vec<Bytes>) + Send>;

// Follows through the one in the middle, who changes the first records that pass; the rest passes as it is.
async fn through(master: &Master<Store>, slave: &Slave<Store>, mut change: Change) -> Result<(), FollowError> {
    let (slave_end, to_slave) = tokio::io::duplex(64 << 10);
    let (to_master, master_end) = tokio::io::duplex(64 << 10);
    serve(master, master_end);
    let mut to_slave = Framed::new(to_slave, Codec::new(DecoderLimits::for_batches(1 << 20)));
    let mut to_master = Framed::new(to_master, Codec::new(DecoderLimits::for_batches(1 << 20)));
    let relaying = tokio::spawn(async move {
        let mut changed = false;
        loop {
            tokio::select! {
                message = to_slave.next() => match message {
                    Some(Ok(message)) => to_master.send(message).await.ok(),
                    _ => break,
                },
                message = to_master.next() => match message {
                    Some(Ok(Message::Records(records))) if !changed => {
                        changed = true;
                        let mut records = split(records);
                        change(&mut records);
                        to_slave.send(Message::Records(Records { parts: records })).await.ok()
                    }
                    Some(Ok(message)) => to_slave.send(message).await.ok(),
                    _ => break,
                },
            };
        }
    });
    let followed = soon(slave.follow(slave_end)).await.map(drop);
    relaying.abort();
    followed
}

fn split(records: Records) -> Vec<Bytes> {
    let mut all = Vec::new();
    for mut part in records.parts {
        while !part.is_empty() {
            all.push(Record::take(&mut part).unwrap().bytes().clone());
        }
    }
    all
}

// A master that has written, and a slave that has followed so far; then ten more batches.
async fn behind() -> Result<(Master<Store>, Slave<Store>, Store), Error> {
    let copy = store();
    let master = master(&store(), MasterConfig::default()).await;
    let slave = slave(&copy, "edge").await;
    let token = master.put("before", "v").await?;
    let (_, following) = connect(&master, &slave);
    soon(slave.wait_applied(token)).await?;
    following.abort();
    drop(following.await);
    for n in 0..10u8 {
        master.write(Batch::new().put([n], vec![n; 30]).delete("before").note("a note")).await?;
    }
    Ok((master, slave, copy))
}

// The slave refuses what was changed, holds a state that the master had, and makes up for it on an honest connection.
async fn is_refused(what: &str, change: Change) -> Result<(), Error> {
    let (master, slave, copy) = behind().await?;
    let followed = through(&master, &slave, change).await;
    assert!(matches!(followed, Err(FollowError::Protocol(ProtocolError::BadRecord { .. }))), "{what}: {followed:?}");
    assert!(followed.is_err_and(|error| error.is_retryable()));
    let applied = copy.cursor(&LinkId::default()).await?.ok_or("it has followed")?.position.seq.as_u64();
    // Record 1 begins the epoch, record 2 puts `before`; each of the others puts one key.
    let there = contents(&copy).await;
    let expected = if applied == 2 { 1 } else { applied - 2 };
    assert_eq!(there.len() as u64, expected, "{what}");
    assert!(there.iter().all(|(key, value)| key == "before" || value[..] == vec![key[0]; 30]), "{what}");
    connect(&master, &slave);
    soon(slave.wait_applied(master.status().published.seq)).await?;
    assert_equal(&master, &slave).await;
    Ok(())
}

#[tokio::test]
async fn a_bit_flipped_anywhere_in_a_record_is_refused() -> Result<(), Error> {
    let seed = std::env::var("REPLIKV_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_240_917);
    println!("reproduce: REPLIKV_SEED={seed} cargo test -p replikv-node --all-features --test node tampering");
    let mut rng = Rng::with_seed(seed);
    for _ in 0..60 {
        let (record, place) = (rng.usize(..10), rng.usize(..));
        let flip = move |records: &mut Vec<Bytes>| {
            let mut bytes = BytesMut::from(&records[record][..]);
            let bit = place % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            records[record] = bytes.freeze();
        };
        is_refused(&format!("record {record}, bit {place}"), Box::new(flip)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn records_that_are_left_out_repeated_or_swapped_are_refused() -> Result<(), Error> {
    is_refused("the first is left out", Box::new(|records| drop(records.remove(0)))).await?;
    is_refused("one in the middle is left out", Box::new(|records| drop(records.remove(4)))).await?;
    is_refused("one comes twice", Box::new(|records| records.insert(3, records[3].clone()))).await?;
    is_refused("two are swapped", Box::new(|records| records.swap(5, 6))).await?;
    is_refused("one is cut", Box::new(|records| records[9].truncate(40))).await?;
    Ok(())
}

#[tokio::test]
async fn a_record_with_another_body_and_a_hash_to_match_is_refused() -> Result<(), Error> {
    // The body of one record under the header of another, as far as lengths allow it: every batch has the same length.
    let forge = |records: &mut Vec<Bytes>| {
        let header_len = |record: &Bytes| record.len() - Record::decode(record.clone()).unwrap().header().body_len;
        let (at, other) = (header_len(&records[2]), header_len(&records[3]));
        let forged = [&records[2][..at], &records[3][other..]].concat();
        records[2] = forged.into();
    };
    is_refused("a body from elsewhere", Box::new(forge)).await
}
