//! In a centre: of each link, of all of them, and of what its masters have aggregated.

use replikv_core::{Durability, KeyRange, Keyspace, LinkId, ReplicaStore, Subspace, WriteSet};
use replikv_node::aggregate::{Aggregate, Count};
use replikv_node::{
    Centre, DeriveAbort, DerivedStore, FollowError, HealthState, InData, LinkConfig, LinkError, LinkStore, Master,
    MasterConfig, OpenError, Slave, SlaveConfig, Unlinked, links,
};
use replikv_testkit::{ApplyFault, FaultStore, Faults};

use crate::kinds::{Kinds, batch, target, value};
use crate::slave::{Deriving, catch_up, connect};
use crate::support::{Contents, Error, Store, contents, copy_of, put_raw, soon, store};
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
    put_raw(&derives, Keyspace::Data, b"own/ab", b"cde").await?;
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

/// How an unlinking is cut short before one of its steps.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// The store refuses it.
    Refused,
    /// The store fails, and what is not synced is lost.
    Failed,
    /// Nobody waits for it any more, before anybody sees the step,
    Dropped,
    /// or when everybody does.
    DroppedInSight,
}

impl Cut {
    /// Undoes the link `gone`. True if it was through before it came to that.
    async fn unlink(self, centre: &Centre<Deriving>, faults: &Faults, steps: usize) -> Result<bool, Error> {
        let gone = named("gone");
        let unlinking = centre.unlink(&gone, Unlinked::RemoveData);
        faults.pass_applies(steps);
        let held = match self {
            Self::Refused => {
                faults.next_apply(ApplyFault::Refuse(support::transient()));
                return Ok(soon(unlinking).await.is_ok());
            }
            Self::Failed => {
                faults.next_apply(ApplyFault::UnknownAndUnsyncedLost);
                return Ok(soon(unlinking).await.is_ok());
            }
            Self::Dropped => faults.hold_apply(),
            Self::DroppedInSight => faults.hold_apply_visible(),
        };
        tokio::select! {
            biased;
            unlinked = soon(unlinking) => unlinked.map(|()| true).map_err(Error::from),
            () = held.reached() => Ok(false),
        }
    }
}

/// A store that two links have flowed into, and what is to be there without `gone`.
async fn gathered(rng: &mut fastrand::Rng, kinds: &Kinds) -> Result<(Store, Contents), Error> {
    let central = store();
    let derives = kinds.on(central.clone()).await;
    put_raw(&derives, Keyspace::Data, b"own/ab", b"cde").await?;
    let centre = Centre::open(derives).await?;
    for (name, entries) in [("gone", 1_500), ("stays", 300)] {
        let source = store();
        let mut writes = WriteSet::builder();
        for n in 0..entries {
            let key = format!("{}{n:04}", char::from(b'a' + n as u8 % 6));
            writes.put(Keyspace::Data, key, value(rng))?;
        }
        source.inner().apply(writes.build(), Durability::Synced).await?;
        let edge = support::master(&source, MasterConfig::default()).await;
        let link = link(&centre, name).await;
        let (_serving, following) = connect(&edge, &link);
        soon(link.wait_caught_up()).await?;
        soon(link.shutdown()).await?;
        soon(following).await??;
    }
    soon(centre.shutdown()).await?;
    let central = FaultStore::new(central.inner().open_again());
    let mut left = contents(&central).await;
    left.retain(|(key, _)| !key.starts_with(b"gone/"));
    Ok((central, left))
}

/// Cuts the unlinking short, and goes on with it; true if it was through before.
async fn goes_on_after(
    kinds: &Kinds,
    before: &(Store, Contents),
    (cut, steps, reopened): (Cut, usize, bool),
) -> Result<bool, Error> {
    let when = format!("{cut:?} after {steps} steps, {}", if reopened { "by another process" } else { "by the same" });
    let mut central = copy_of(&before.0).await;
    let mut derives = kinds.on(central.clone()).await;
    let mut centre = Centre::open(derives.clone()).await?;
    let through = cut.unlink(&centre, &central.faults(), steps).await?;
    if reopened {
        central = central.power_loss().await?;
        central.faults().clear();
        let applies = central.faults().calls().applies;
        derives = kinds.on(central.clone()).await;
        assert_eq!(central.faults().calls().applies, applies, "nothing has to be derived anew: {when}");
        kinds.assert_of(&derives, &contents(&derives).await, &format!("at once: {when}")).await;
        centre = Centre::open(derives.clone()).await?;
    }
    central.faults().clear();
    match soon(centre.unlink(&named("gone"), Unlinked::RemoveData)).await {
        Ok(()) | Err(LinkError::NoSuchLink { .. }) => {}
        Err(error) => return Err(format!("{when}: {error:?}").into()),
    }
    assert!(contents(&derives).await == before.1, "{when}");
    kinds.assert_of(&centre, &before.1, &when).await;
    let names: Vec<_> = links(&central).await?.into_iter().map(|seen| seen.link).collect();
    assert_eq!(names, [named("stays")], "{when}");
    // Free for whoever comes next.
    soon(link(&centre, "gone").await.shutdown()).await?;
    Ok(through)
}

#[tokio::test]
async fn an_unlinking_that_was_cut_short_takes_out_what_its_data_came_to_and_the_next_one_the_rest() -> Result<(), Error>
{
    let mut rng = rng("an_unlinking_that_was_cut_short_takes_out_what_its_data_came_to_and_the_next_one_the_rest");
    let kinds = Kinds::new();
    let before = gathered(&mut rng, &kinds).await?;
    for (cut, reopened) in [
        (Cut::Refused, false),
        (Cut::Refused, true),
        (Cut::Failed, true),
        (Cut::Dropped, false),
        (Cut::Dropped, true),
        (Cut::DroppedInSight, false),
        (Cut::DroppedInSight, true),
    ] {
        let mut steps = 0;
        while !goes_on_after(&kinds, &before, (cut, steps, reopened)).await? {
            steps += 1;
        }
        assert!(steps >= 4, "{cut:?}: it has {steps} steps");
    }
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
