//! Links that take a prefix off their master's keys.

use super::*;

async fn stripping(centre: &Centre<Store>, name: &str, prefix: &'static str) -> Result<Link, LinkError> {
    centre.link(LinkConfig::new(named(name), SlaveConfig::new(name)).strip(Subspace::raw(prefix))).await
}

async fn keys(store: &Store) -> Vec<Bytes> {
    contents(store).await.into_iter().map(|(key, _)| key).collect()
}

/// What `master` holds under `strip`, as a centre holds it under `target`.
async fn moved(master: &Master<Store>, strip: &str, target: &str) -> Contents {
    let target = Subspace::raw(target.to_owned());
    under(master.store(), strip).await.into_iter().map(|(key, value)| (target.key(key), value)).collect()
}

/// Changes of what is under `users/`, of what is before and behind it, and of ranges across its bounds.
fn batch_across(rng: &mut fastrand::Rng) -> Batch {
    let key = |rng: &mut fastrand::Rng| {
        let prefix = [&b"user"[..], b"users", b"users/", b"users/", b"users/", b"users/a", b"users0", b"a", b"z"];
        [prefix[rng.usize(..prefix.len())], &[b'a' + rng.u8(..8)][..rng.usize(..2)]].concat()
    };
    let mut batch = Batch::new();
    for _ in 0..rng.usize(1..6) {
        let first = key(rng);
        batch = match rng.u8(..16) {
            0 => batch.delete_range(KeyRange::from_bounds(first..)),
            1 => batch.delete_range(KeyRange::from_bounds(..first)),
            2 => batch.delete_range(KeyRange::from_bounds(first..key(rng))),
            3 => batch.delete_range(KeyRange::prefix("users/")),
            4..=5 => batch.delete(first),
            _ => batch.put(first, vec![rng.u8(..); rng.usize(..100)]),
        };
    }
    batch
}

#[tokio::test]
async fn a_link_that_strips_a_prefix_holds_what_lies_under_it_without_it() -> Result<(), Error> {
    let mut rng = rng("stripping::a_link_that_strips_a_prefix_holds_what_lies_under_it_without_it");
    for gathers_into_a_master in [false, true] {
        let master = master(&store(), MasterConfig::default()).await;
        for _ in 0..20 {
            master.write(batch_across(&mut rng)).await?;
        }
        let central = store();
        let centre = if gathers_into_a_master {
            Centre::open_master(central.clone(), MasterConfig::default()).await?
        } else {
            Centre::open(central.clone()).await?
        };
        // Copied at first, and gone on with from the log, each time after it was away.
        for round in 0..4 {
            let link = stripping(&centre, "edge", "users/").await?;
            let (serving, following) = connect(&master, &link);
            for _ in 0..100 {
                master.write(batch_across(&mut rng)).await?;
            }
            let last = master.put("users/last", [round]).await?;
            soon(link.wait_applied(last)).await?;
            assert!(contents(&central).await == moved(&master, "users/", "edge/").await, "round {round}");
            assert!(contents(link.store()).await == moved(&master, "users/", "users/").await, "round {round}");
            assert_eq!(link.get("users/last").await?.as_deref(), Some(&[round][..]));
            following.abort();
            drop(soon(serving).await);
            soon(link.shutdown()).await?;
            for _ in 0..20 {
                master.write(batch_across(&mut rng)).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_link_that_strips_knows_no_other_keys() -> Result<(), Error> {
    let centre = Centre::open(store()).await?;
    let link = stripping(&centre, "edge", "users/").await?;
    let central = centre.store();
    link.store().apply_one(Keyspace::Data, Op::Put { key: b"users/k", value: b"v" }).await?;
    let before = contents(central).await;
    assert_eq!(before, [(Bytes::from("edge/k"), Bytes::from("v"))]);
    for outside in [&b"k"[..], b"users", b"users0"] {
        for op in [Op::Put { key: outside, value: b"v" }, Op::Delete { key: outside }] {
            let refused = link.store().apply_one(Keyspace::Data, op).await;
            assert!(matches!(refused, Err(StoreError::NotSubscribed { .. })), "{refused:?}");
        }
        assert_eq!(link.store().get(Keyspace::Data, outside).await?, None);
        assert!(matches!(link.get(outside).await, Err(StoreError::NotSubscribed { .. })));
        link.store().apply_one(Keyspace::Data, Op::delete_range(&KeyRange::only(outside))).await?;
    }
    let keys = ["k", "users/k", "users0"].map(Bytes::from);
    let found = link.store().get_many(Keyspace::Data, &keys).await?;
    assert_eq!(found, [None, Some(Bytes::from("v")), None]);
    assert_eq!(contents(central).await, before);
    Ok(())
}

#[tokio::test]
async fn a_link_that_strips_and_fell_behind_the_log_compares() -> Result<(), Error> {
    let retention = Retention { max_bytes: 10_000, max_age_ms: None, hold_back_bytes: 0 };
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let master = master(&store(), MasterConfig::default().retention(retention).ring_bytes(1000)).await;
    for n in 0..1_000u32 {
        master.put([&b"users/"[..], &n.to_be_bytes()].concat(), "v").await?;
        master.put([&b"orders/"[..], &n.to_be_bytes()].concat(), "v").await?;
    }
    support::put_raw(&central, Keyspace::Data, b"edge0", b"1").await?;
    let behind = stripping(&centre, "edge", "users/").await?;
    let (serving, _following) = connect(&master, &behind);
    soon(behind.wait_caught_up()).await?;
    soon(behind.shutdown()).await?;
    drop(soon(serving).await);
    drop(behind);
    until(|| master.forget(replikv_proto::SlotKind::Slave, "edge")).await;
    let seq = master.status().published.seq;
    master.write(Batch::new().delete_range(KeyRange::from_bounds("a".."users/\0\0\x01"))).await?;
    for n in 900..1_200u32 {
        master.put([&b"users/"[..], &n.to_be_bytes()].concat(), [9; 200]).await?;
    }
    until(|| master.status().floor.seq > seq).await;
    let link = stripping(&centre, "edge", "users/").await?;
    let _connection = connect(&master, &link);
    soon(link.wait_applied(master.status().published.seq)).await?;
    soon(link.wait_caught_up()).await?;
    assert_eq!(link.status().comparisons, 1);
    assert!(under(&central, "edge/").await == under(master.store(), "users/").await);
    assert!(centre.get("edge0").await?.is_some(), "it was nobody's to remove");
    Ok(())
}

#[tokio::test]
async fn links_that_strip_the_same_prefix_lie_side_by_side_and_are_undone_alone() -> Result<(), Error> {
    let source = master(&store(), MasterConfig::default()).await;
    for n in 0..50u32 {
        source.put(format!("users/{n}"), n.to_be_bytes()).await?;
        source.put(format!("orders/{n}"), "beside").await?;
    }
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let (one, two) = (stripping(&centre, "one", "users/").await?, stripping(&centre, "two", "users/").await?);
    let ((serving, following), _two) = (connect(&source, &one), connect(&source, &two));
    let last = source.write(Batch::new().delete_range(KeyRange::from_bounds("orders/4".."users/2"))).await?;
    for link in [&one, &two] {
        soon(link.wait_applied(last)).await?;
    }
    let mut all = moved(&source, "users/", "one/").await;
    assert!(all.len() > 20);
    all.extend(moved(&source, "users/", "two/").await);
    assert!(contents(&central).await == all);
    let seen = centre.links().await?;
    let users = KeyRanges::from(KeyRange::prefix("users/"));
    assert!(
        seen.iter().all(|seen| seen.strip.as_deref() == Some(&b"users/"[..]) && seen.ranges.as_ref() == Some(&users))
    );
    following.abort();
    drop(soon(serving).await);
    one.shutdown().await?;
    centre.unlink(&named("one"), Unlinked::RemoveData).await?;
    assert!(contents(&central).await == moved(&source, "users/", "two/").await);
    // What was undone may strip something else.
    let one = stripping(&centre, "one", "orders/").await?;
    let _one = connect(&source, &one);
    soon(one.wait_caught_up()).await?;
    let mut all = moved(&source, "orders/", "one/").await;
    assert!(!all.is_empty());
    all.extend(moved(&source, "users/", "two/").await);
    assert!(contents(&central).await == all);
    Ok(())
}

#[tokio::test]
async fn a_link_keeps_the_prefix_that_it_stripped_at_first() -> Result<(), Error> {
    let central = MemoryStore::new();
    for round in 0..2 {
        let centre = Centre::open(FaultStore::new(central.open_again())).await?;
        let strips = stripping(&centre, "strips", "users/").await?;
        assert_eq!(strips.ranges(), &KeyRanges::from(KeyRange::prefix("users/")));
        strips.shutdown().await?;
        link(&centre, "plain").await.shutdown().await?;
        for (name, prefix, words) in [
            ("strips", "user", "link strips strips \"users/\" off its master's keys, not \"user\""),
            ("strips", "", "link strips strips \"users/\" off its master's keys, not \"\""),
            ("plain", "users/", "link plain strips \"\" off its master's keys, not \"users/\""),
        ] {
            let refused = stripping(&centre, name, prefix).await.map(drop).unwrap_err();
            assert!(matches!(&refused, LinkError::Strips { .. }), "{refused}");
            assert_eq!(refused.to_string(), words, "round {round}");
        }
        // What is refused leaves nothing open.
        stripping(&centre, "strips", "users/").await?.shutdown().await?;
        centre.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_link_that_strips_subscribes_within_what_it_strips() -> Result<(), Error> {
    let source = master(&store(), MasterConfig::default()).await;
    source.write(Batch::new().put("users/a1", "1").put("users/b1", "1").put("orders/a", "1")).await?;
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let part = |ranges: KeyRanges| {
        LinkConfig::new(named("edge"), SlaveConfig::new("centre").subscribe(ranges)).strip(Subspace::raw("users/"))
    };
    for ranges in [
        KeyRanges::all(),
        KeyRange::prefix("user").into(),
        KeyRanges::new([KeyRange::prefix("users/a"), KeyRange::prefix("orders/")]),
        KeyRange::from_bounds("users/z"..).into(),
    ] {
        let refused = centre.link(part(ranges)).await.map(drop).unwrap_err();
        assert!(matches!(&refused, LinkError::NotStripped { .. }), "{refused}");
    }
    assert!(centre.links().await?.is_empty());
    for (ranges, held) in [
        (Some(KeyRange::prefix("users/a")), &["edge/a1"][..]),
        // What it has kept.
        (None, &["edge/a1"]),
        (Some(KeyRange::prefix("users/")), &["edge/a1", "edge/b1"]),
        (Some(KeyRange::from_bounds("users/b".."users/c")), &["edge/b1"]),
    ] {
        let link = match ranges {
            Some(ranges) => centre.link(part(ranges.into())).await?,
            None => stripping(&centre, "edge", "users/").await?,
        };
        let (serving, following) = connect(&source, &link);
        soon(link.wait_applied(source.status().published.seq)).await?;
        soon(link.wait_caught_up()).await?;
        assert_eq!(keys(&central).await, held);
        following.abort();
        drop(soon(serving).await);
        link.shutdown().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_entry_at_the_stripped_prefix_itself_lies_at_the_target_if_that_is_a_key() -> Result<(), Error> {
    for (target, itself) in [("edge/", Some("edge/")), ("", None)] {
        let source = master(&store(), MasterConfig::default()).await;
        source.write(Batch::new().put("users/", "itself").put("users/a", "1").put("users/b", "1")).await?;
        let central = store();
        let centre = Centre::open(central.clone()).await?;
        let config = LinkConfig::new(named("edge"), SlaveConfig::new("edge")).strip(Subspace::raw("users/"));
        let link = centre.link(config.into(Subspace::raw(target))).await?;
        let _connection = connect(&source, &link);
        soon(link.wait_caught_up()).await?;
        let held = |keys: &[&str]| -> Vec<Bytes> {
            let behind = keys.iter().map(|key| Bytes::from(format!("{target}{key}")));
            itself.map(Bytes::from).into_iter().chain(behind).collect()
        };
        assert_eq!(keys(&central).await, held(&["a", "b"]));
        let last = source.write(Batch::new().put("users/", "again").put("users/c", "1").delete("users/a")).await?;
        soon(link.wait_applied(last)).await?;
        assert_eq!(keys(&central).await, held(&["b", "c"]));
        let (found, put) = (link.get("users/").await, Op::Put { key: b"users/", value: b"v" });
        if itself.is_some() {
            assert_eq!(found?.as_deref(), Some(&b"again"[..]));
            let gone = source.write(Batch::new().delete("users/")).await?;
            soon(link.wait_applied(gone)).await?;
            assert!(centre.get("edge/").await?.is_none());
        } else {
            assert!(matches!(found, Err(StoreError::NotSubscribed { .. })), "{found:?}");
            assert_eq!(link.store().get(Keyspace::Data, b"users/").await?, None);
            let refused = link.store().apply_one(Keyspace::Data, put).await;
            assert!(matches!(refused, Err(StoreError::KeyEmpty)), "{refused:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_stripped_leaves_room_for_longer_keys() -> Result<(), Error> {
    let max_key = store().limits().max_key;
    let limits = StoreLimits { max_key, max_value: 1 << 20, max_batch: 2 << 20 };
    let longest = [&b"users/"[..], &vec![b'k'; max_key - 6]].concat();
    let source = master(&store(), MasterConfig::default().limits(limits)).await;
    source.put(&longest, "v").await?;
    let central = store();
    let centre = Centre::open(central.clone()).await?;
    let fits = stripping(&centre, "edge", "users/").await?;
    assert_eq!(fits.store().limits().max_key, max_key + 1);
    let _connection = connect(&source, &fits);
    soon(fits.wait_caught_up()).await?;
    assert!(under(&central, "edge/").await == under(source.store(), "users/").await);
    assert_eq!(contents(&central).await.len(), 1);
    let (_serving, refused) = connect(&source, &stripping(&centre, "edge-1", "users/").await?);
    match soon(refused).await? {
        Err(FollowError::Refused(refusal)) => assert_eq!(refusal.code, RejectCode::LimitsTooSmall),
        end => panic!("{end:?}"),
    }
    Ok(())
}
