//! In a centre: of each link, of all of them, and of what its masters have aggregated.

use replikv_core::{KeyRange, LinkId, Subspace};
use replikv_node::aggregate::{Aggregate, Count};
use replikv_node::{
    Centre, DeriveAbort, DerivedStore, FollowError, HealthState, InData, LinkConfig, LinkError, LinkStore, Master,
    MasterConfig, OpenError, Slave, SlaveConfig, Unlinked,
};
use replikv_testkit::FaultStore;

use crate::kinds::{Kinds, batch, target};
use crate::slave::{Deriving, catch_up, connect};
use crate::support::{Error, Store, contents, put_raw, soon, store};
use crate::{rng, support};

fn named(name: &str) -> LinkId {
    LinkId::new(name).unwrap()
}

pub(crate) async fn link(centre: &Centre<Deriving>, name: &str) -> Slave<LinkStore<Deriving>> {
    centre.link(LinkConfig::new(named(name), SlaveConfig::new("centre"))).await.unwrap()
}

/// What comes after the target of `name`, in the part of any link.
pub(crate) fn inside(name: &'static str) -> impl Fn(&[u8]) -> Option<&[u8]> + Send + Sync {
    move |key| {
        let slash = key.iter().position(|&byte| byte == b'/')?;
        target_of(name, &key[slash + 1..])
    }
}

fn target_of<'k>(name: &str, key: &'k [u8]) -> Option<&'k [u8]> {
    key.strip_prefix(&target(name).prefix()[..])
}

#[tokio::test]
async fn a_centre_aggregates_over_all_links_and_takes_out_what_is_unlinked() -> Result<(), Error> {
    let mut rng = rng("a_centre_aggregates_over_all_links_and_takes_out_what_is_unlinked");
    let kinds = Kinds::new();
    let again = kinds.max.again("again", 1, inside("max"));
    let central = store();
    let derives = kinds.on(central.clone()).await;
    // What no link has brought counts as well.
    put_raw(&derives, replikv_core::Keyspace::Data, b"own/ab", b"cde").await?;
    let centre = Centre::open(derives.clone()).await?;
    let mut edges = Vec::new();
    for n in 0..4 {
        let edge = support::master(&store(), kinds.config(MasterConfig::default())).await;
        let link = link(&centre, &format!("edge-{n}")).await;
        let connection = connect(&edge, &link);
        edges.push((edge, link, connection));
    }
    for round in 0..25 {
        for (edge, ..) in &edges {
            edge.write(batch(&mut rng)).await?;
        }
        for (edge, link, _) in &edges {
            soon(link.wait_applied(edge.status().published.seq)).await?;
        }
        kinds.assert_of(&centre, &contents(&derives).await, &format!("in round {round}")).await;
    }
    // Each link's part of what its master aggregates can be read where it is.
    for (n, (edge, ..)) in edges.iter().enumerate() {
        let there = InData::new(&centre, Subspace::raw(format!("edge-{n}/~/top/")));
        assert_eq!(kinds.top.all(&there).await?.value, kinds.top.all(edge).await?.value);
    }
    for (name, unlinked) in [("edge-0", Unlinked::RemoveData), ("edge-1", Unlinked::KeepData)] {
        let (_, link, (_, following)) = edges.remove(0);
        following.abort();
        drop(following.await);
        soon(link.shutdown()).await?;
        soon(centre.unlink(&named(name), unlinked)).await?;
        kinds.assert_of(&centre, &contents(&derives).await, &format!("without {name}")).await;
    }
    assert!(!contents(&derives).await.iter().any(|(key, _)| key.starts_with(b"edge-0/")));
    // Opened again, with one that combines what masters have aggregated.
    for (_, link, (_, following)) in edges {
        following.abort();
        drop(following.await);
        soon(link.shutdown()).await?;
    }
    soon(centre.shutdown()).await?;
    let store =
        DerivedStore::builder(FaultStore::new(central.inner().open_again())).derive(again.clone()).open().await?;
    let all = contents(&store).await;
    let data: Vec<_> = all.into_iter().filter(|(key, _)| !key.starts_with(b"own/")).collect();
    let wanted = crate::kinds::groups(&data).into_iter().map(|(group, values)| (group, *values.iter().max().unwrap()));
    assert_eq!(again.all(&store).await?.value, wanted.collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_link_from_which_nothing_can_be_derived_stops_alone() -> Result<(), Error> {
    let picky: Aggregate<String, Count> = Aggregate::new("picky", 1, Count, |_, value, emit| {
        let text = std::str::from_utf8(value).map_err(|_| DeriveAbort::refuse("it is no text"))?;
        emit.to(text.to_owned(), ());
        Ok(())
    });
    let central = DerivedStore::builder(store()).derive(picky.clone()).open().await?;
    let centre = Centre::open(central).await?;
    let mut edges = Vec::new();
    for n in 0..3 {
        let edge = support::master(&store(), MasterConfig::default()).await;
        let link = link(&centre, &format!("edge-{n}")).await;
        let connection = connect(&edge, &link);
        soon(link.wait_applied(edge.put("a", "text").await?)).await?;
        edges.push((edge, link, connection));
    }
    for (n, (edge, ..)) in edges.iter().enumerate() {
        edge.put("b", if n == 1 { &b"\xFF"[..] } else { b"text" }).await?;
    }
    let (_, blocked, (_, following)) = edges.remove(1);
    let error = soon(following).await?.expect_err("it cannot go on");
    assert!(matches!(&error, FollowError::Store(_)) && !error.is_retryable(), "{error}");
    assert_eq!(blocked.status().health.state, HealthState::Blocked);
    for (edge, link, _) in &edges {
        soon(link.wait_applied(edge.put("c", "text").await?)).await?;
    }
    assert_eq!(picky.get(&centre, &"text".into()).await?, Some(7));
    Ok(())
}

#[tokio::test]
async fn a_centre_that_is_a_master_derives_into_its_own_history() -> Result<(), Error> {
    let mut rng = rng("a_centre_that_is_a_master_derives_into_its_own_history");
    let kinds = Kinds::new();
    let central = store();
    let config = || kinds.config(MasterConfig::default());
    let centre = Centre::open_master(central.clone(), config()).await?;
    let refused = LinkConfig::new(named("wide"), SlaveConfig::new("centre")).into(Subspace::raw("~/"));
    assert!(matches!(centre.link(refused).await.map(drop), Err(LinkError::Derived { .. })));
    let master = centre.master().ok_or("it is a master")?;
    let mut edges = Vec::new();
    for n in 0..3 {
        let edge = support::master(&store(), MasterConfig::default()).await;
        let link = centre.link(LinkConfig::new(named(&format!("edge-{n}")), SlaveConfig::new("centre"))).await?;
        let connection = connect(&edge, &link);
        edges.push((edge, link, connection));
    }
    for _ in 0..25 {
        for (edge, link, _) in &edges {
            let token = edge.write(batch(&mut rng)).await?;
            soon(link.wait_applied(token)).await?;
        }
        let data = crate::master::own(&central).await;
        kinds.assert_of(master, &data, "of what links bring").await;
    }
    // Whoever hangs below it has it all.
    let below = support::slave(&store(), "below").await;
    let (here, there) = tokio::io::duplex(64 << 10);
    let (serving, following) = (master.clone(), below.clone());
    tokio::spawn(async move { serving.serve(there).await });
    tokio::spawn(async move { following.follow(here).await });
    soon(below.wait_applied(master.status().published.seq)).await?;
    let there = InData::new(&below, target("joined"));
    assert_eq!(kinds.joined.all(&there).await?.value, kinds.joined.all(master).await?.value);
    let (_, link, (_, following)) = edges.remove(0);
    following.abort();
    drop(following.await);
    soon(link.shutdown()).await?;
    soon(centre.unlink(&named("edge-0"), Unlinked::RemoveData)).await?;
    kinds.assert_of(master, &crate::master::own(&central).await, "without one of them").await;
    for (_, link, (_, following)) in edges {
        following.abort();
        drop(following.await);
        soon(link.shutdown()).await?;
    }
    soon(centre.shutdown()).await?;
    // A target where a link has its claim.
    let inner = FaultStore::new(central.inner().open_again());
    let config = MasterConfig::default().derive(Subspace::raw("edge-1/x"), kinds.sum.clone());
    let refused = Centre::open_master(inner, config).await.map(drop);
    assert!(matches!(&refused, Err(OpenError::Derive { name, .. }) if name == "sum"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_link_that_has_the_whole_store_leaves_what_is_derived_alone() -> Result<(), Error> {
    let kinds = Kinds::new();
    let central = kinds.on(store()).await;
    let centre = Centre::open(central.clone()).await?;
    let config = LinkConfig::new(named("all"), SlaveConfig::new("centre")).into(Subspace::root());
    let link = centre.link(config).await?;
    let edge: Master<Store> = support::master(&store(), MasterConfig::default()).await;
    edge.put("ab", "cde").await?;
    edge.write(replikv_core::Batch::new().delete_range(KeyRange::all()).put("ac", "cdef")).await?;
    catch_up(&edge, &link).await?;
    kinds.assert_of(&centre, &contents(edge.store()).await, "of all").await;
    Ok(())
}
