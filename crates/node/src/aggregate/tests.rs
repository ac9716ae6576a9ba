//! What is stored is a promise: its bytes.

use bytes::Bytes;
use replikv_core::{KeyRange, Subspace};
use replikv_proto::{Change, DeriveRun, Derives, space_in};

use super::*;

/// What an aggregate makes of one entry, as keys and values.
fn stored<C: Combine>(aggregate: Aggregate<String, C>) -> Vec<(String, String)> {
    let mut derives = Derives::default();
    derives.push(Subspace::raw(&b"T/"[..]), Arc::new(aggregate));
    let mut run = DeriveRun::new(&derives);
    let space = space_in(&Subspace::raw(&b"T/"[..]));
    run.fetched_range(space.range(), []);
    let change = Change { key: Bytes::from("k"), old: None, new: Some(Bytes::from("7")) };
    run.derive(&[change]).unwrap();
    let ops = run.into_ops().unwrap();
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let put = |op| match op {
        replikv_core::Op::Put { key, value } => (text(key), text(value)),
        other => panic!("{other:?}"),
    };
    ops.iter().map(put).collect()
}

fn digit(value: &[u8]) -> i128 {
    i128::from(value[0] - b'0')
}

fn texts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn summaries_are_stored_as_they_were_before() {
    let sum = Aggregate::new("sum", 1, Sum, |_, value, emit| {
        emit.to("group".to_owned(), digit(value));
        Ok(())
    });
    // Format, one value, 7 in zigzag.
    assert_eq!(stored(sum), texts(&[("T/dggroup", r"\x01\x01\x0e")]));
}

#[test]
fn values_are_kept_under_group_and_key() {
    let max = Aggregate::new("max", 1, Max::<u32>::default(), |_, value, emit| {
        emit.to("group".to_owned(), u32::from(value[0]));
        emit.to("group".to_owned(), 1);
        Ok(())
    });
    let wanted = [("T/dggroup", r"\x01\x027"), (r"T/dvgroup\x00\x01k\x00\x01", r"\x01\x027\x01")];
    assert_eq!(stored(max), texts(&wanted));
}

#[test]
fn an_entry_that_contributes_what_it_did_costs_nothing() {
    let parity = Aggregate::new("parity", 1, Count, |_, value, emit| {
        emit.to(if digit(value) % 2 == 0 { "even" } else { "odd" }.to_owned(), ());
        Ok(())
    });
    let mut derives = Derives::default();
    derives.push(Subspace::raw(&b"T/"[..]), Arc::new(parity));
    let mut run = DeriveRun::new(&derives);
    let change = |old: &str, new: &str| Change {
        key: Bytes::from("k"),
        old: Some(Bytes::copy_from_slice(old.as_bytes())),
        new: Some(Bytes::copy_from_slice(new.as_bytes())),
    };
    run.derive(&[change("3", "5")]).expect("nothing has to be read");
    assert!(run.into_ops().unwrap().is_empty());
}

#[test]
fn a_map_that_does_not_always_say_the_same_is_found_out() {
    let odd = Aggregate::new("odd", 1, Count, |_, _, emit| {
        emit.to("group".to_owned(), ());
        Ok(())
    });
    let mut derives = Derives::default();
    derives.push(Subspace::raw(&b"T/"[..]), Arc::new(odd));
    let mut run = DeriveRun::new(&derives);
    run.fetched_range(KeyRange::all(), []);
    let gone = Change { key: Bytes::from("k"), old: Some(Bytes::from("3")), new: None };
    let refused = run.derive(&[gone]);
    assert!(matches!(&refused, Err(replikv_proto::Stopped::Refused { name, .. }) if name == "odd"), "{refused:?}");
}
