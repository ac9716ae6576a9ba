//! A centre: many masters into one store.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use replikv::{
    Centre, Ending, FollowError, KeyRange, KeyRanges, LinkConfig, LinkError, LinkId, LinkStore, MasterConfig,
    OpenError, QuarantineFile, Role, Slave, SlaveConfig, Subspace, Unlinked,
};
use serde_json::json;
use tokio::time::sleep;

use crate::aggregates;
use crate::args::{self, Link, OnDivergence};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::store::{self, Store};
use crate::ui;

type Follower = Slave<LinkStore<Store>>;

pub(crate) async fn run(args: args::Gather, json: bool) -> anyhow::Result<ExitCode> {
    LinkId::new(args.id.as_str())?;
    aggregates::check(&args.aggregates)?;
    let mut interrupt = Interrupt::new()?;
    let ranges = args.ranges.iter().map(|(name, _)| name);
    for name in ranges.chain(args.only.iter().chain(&args.strips).chain(&args.prefixes).map(|(name, _)| name)) {
        ensure!(
            args.links.iter().any(|link| link.name == *name),
            "there is no link {name}: --link says which there are"
        );
    }
    for (at, link) in args.links.iter().enumerate() {
        if let Some(other) = args.links[..at].iter().find(|other| other.address == link.address) {
            bail!(
                "links {} and {} follow one master, {}, which knows this centre by one name, --id: gather it by one link",
                other.name,
                link.name,
                link.address
            );
        }
    }
    // Before the store is made: what is no address leaves nothing behind, and with --once a name that leads nowhere.
    args.links.iter().try_for_each(|link| super::check_port(&link.address))?;
    let mut lost = Vec::new();
    for link in &args.links {
        if args.once {
            super::check_address(&link.address).await?;
        } else if !super::find_address(&link.address).await? {
            lost.push(&link.name);
        }
    }
    let listener = match args.listen {
        Some(address) => Some(super::listen(address, args.insecure).await?),
        None => None,
    };
    super::expose_metrics(args.metrics, args.insecure, json).await?;
    let configs = args.links.iter().map(|link| config(link, &args)).collect::<anyhow::Result<Vec<_>>>()?;
    let centre = tokio::select! {
        biased;
        () = interrupt.wait() => return Ok(ExitCode::from(if args.once { INTERRUPTED } else { 0 })),
        centre = open(&args, listener.is_some()) => centre?,
    };
    let mut links = Vec::new();
    for (config, link) in configs.into_iter().zip(&args.links) {
        match centre.link(config).await {
            Ok(follower) => links.push((link, follower)),
            Err(error) => {
                drop(try_join_all(links.iter().map(|(_, follower)| follower.shutdown())).await);
                give_up(&centre, &args.links).await.with_context(|| args.store.clone())?;
                return Err(refused(&args.store, &error));
            }
        }
    }
    if let (Some(listener), Some(master)) = (listener, centre.master()) {
        let address = listener.local_addr()?;
        tokio::spawn(master.clone().serve_tcp(listener));
        if json {
            say!("{}", json!({ "serving": args.store, "address": address.to_string() }))?;
        } else {
            say!("serving {} on {address}", args.store)?;
        }
    }
    let mut following: FuturesUnordered<_> = links.iter().map(|(link, follower)| follow(link, follower)).collect();
    let result = tokio::select! {
        biased;
        () = interrupt.wait() => Ok(Some(ExitCode::from(if args.once { INTERRUPTED } else { 0 }))),
        // One that ends for good ends all: a centre that quietly lacks a link would look complete.
        Some(ended) = following.next() => ended.map(|_| None),
        result = announce(&links, &args, &lost, json) => result.map(|()| None),
    };
    let seen = links.iter().map(|(link, follower)| (*link, follower.status())).collect::<Vec<_>>();
    // Connections are polled on, for the last acks and the goodbyes.
    let ending = try_join_all(links.iter().map(|(_, follower)| follower.shutdown()));
    let goodbyes = async { while following.next().await.is_some() {} };
    let (ended, ()) = tokio::join!(ending, goodbyes);
    let given_up = give_up(&centre, &args.links).await.with_context(|| args.store.clone());
    let closed = centre.shutdown().await.with_context(|| args.store.clone());
    let code = result?;
    ended.with_context(|| args.store.clone())?;
    given_up?;
    closed?;
    if args.once && code.is_none() {
        for (link, status) in seen {
            let seq = status.position.map_or(0, |position| position.seq.as_u64());
            if json {
                let name = link.name.as_str();
                say!("{}", json!({ "link": name, "caught_up": true, "seq": seq, "records": status.records }))?;
            } else {
                let records = ui::thousands(status.records);
                say!("{}: caught up at record {seq}, {records} records applied", link.name)?;
            }
        }
    }
    Ok(code.unwrap_or(ExitCode::SUCCESS))
}

async fn open(args: &args::Gather, serves: bool) -> anyhow::Result<Centre<Store>> {
    let store = store::open(&args.store)?;
    // What has a log goes on having one, whether anybody is served or not.
    let keeps_log = replikv::role(&store).await? == Some(Role::Master);
    let store = keeping(store, args).await?;
    let opened = if serves || keeps_log {
        Centre::open_master(store, MasterConfig::default()).await
    } else {
        Centre::open(store).await
    };
    opened.map_err(|error| match error {
        OpenError::Backup => store::is_backup(&args.store),
        error => anyhow::Error::new(error).context(args.store.clone()),
    })
}

async fn keeping(store: Store, args: &args::Gather) -> anyhow::Result<Store> {
    if !store::is_of(&store, &[Role::Centre, Role::Master]).await? {
        return Ok(store);
    }
    let prefixes = prefixes(&store, args).await?;
    aggregates::keep(store, &args.store, &args.aggregates, prefixes).await
}

// Of all links, those that are there already and are not gathered now among them.
async fn prefixes(store: &Store, args: &args::Gather) -> anyhow::Result<Vec<Bytes>> {
    let there = replikv::links(store).await?;
    let new = args.links.iter().filter(|link| there.iter().all(|seen| seen.link != link.name));
    let new = new.map(|link| {
        let said = single(link, &args.prefixes, "--prefix")?;
        anyhow::Ok(said.map_or_else(|| Bytes::from(format!("{}/", link.name)), |said| said.prefix().clone()))
    });
    there.iter().map(|seen| anyhow::Ok(seen.prefix.clone())).chain(new).collect()
}

fn config(link: &Link, args: &args::Gather) -> anyhow::Result<LinkConfig> {
    let mut slave = SlaveConfig::new(args.id.as_str()).compression(args.compress);
    if args.once {
        slave = slave.temporary();
    }
    if let Some(dir) = &args.quarantine {
        args.on_divergence.check_quarantine()?;
        let name: String = link.name.as_str().chars().map(|c| if c == '/' { '_' } else { c }).collect();
        let quarantine = QuarantineFile::new(dir.join(format!("{name}.ndjson")));
        // Before anything else: not when the first entry is to be kept.
        quarantine.check().with_context(|| quarantine.path().display().to_string())?;
        slave = match args.on_divergence {
            OnDivergence::Refuse => slave,
            OnDivergence::Resync => slave.resync(quarantine),
            OnDivergence::AdoptSource => slave.adopt_source(quarantine),
        };
    }
    let ranges = args.ranges.iter().filter(|(name, _)| *name == link.name).map(|(_, range)| range.clone());
    let only = args.only.iter().filter(|(name, _)| *name == link.name).map(|(_, prefix)| KeyRange::prefix(prefix));
    let ranges: KeyRanges = ranges.chain(only).collect();
    if !ranges.is_empty() {
        slave = slave.subscribe(ranges);
    }
    let mut config = LinkConfig::new(link.name.clone(), slave);
    if let Some(prefix) = single(link, &args.prefixes, "--prefix")? {
        config = config.into(prefix);
    }
    if let Some(prefix) = single(link, &args.strips, "--strip")? {
        config = config.strip(prefix);
    }
    Ok(config)
}

fn single(link: &Link, prefixes: &[(LinkId, String)], option: &str) -> anyhow::Result<Option<Subspace>> {
    let mut own = prefixes.iter().filter(|(name, _)| *name == link.name);
    let prefix = own.next().map(|(_, prefix)| Subspace::raw(prefix.clone()));
    ensure!(own.next().is_none(), "link {} has more than one {option}", link.name);
    Ok(prefix)
}

async fn follow(link: &Link, follower: &Follower) -> anyhow::Result<Ending> {
    let ended = follower.follow_tcp(&link.address).await;
    ended.map_err(|error: FollowError| {
        anyhow::Error::new(error).context(format!("link {} cannot follow {}", link.name, link.address))
    })
}

// A link that has got nothing from its master keeps no claim: another prefix may be the right one.
async fn give_up(centre: &Centre<Store>, links: &[Link]) -> Result<(), LinkError> {
    for seen in centre.links().await? {
        if seen.cursor.is_none() && !seen.open && links.iter().any(|link| link.name == seen.link) {
            centre.unlink(&seen.link, Unlinked::KeepData).await?;
        }
    }
    Ok(())
}

fn refused(url: &str, error: &LinkError) -> anyhow::Error {
    let hint = match error {
        LinkError::Claimed { .. } | LinkError::Moved { .. } | LinkError::TooLong { .. } => {
            "; --prefix NAME=PREFIX says where a link's entries go"
        }
        LinkError::Strips { .. } => "; --strip NAME=PREFIX says what a link strips",
        LinkError::NotStripped { .. } => "; --only and --range name keys as the master has them",
        _ => "",
    };
    anyhow!("{url}: {error}{hint}")
}

// Says once for each link that its connection stands, and returns when everything is here if that is what is asked.
async fn announce(
    links: &[(&Link, Follower)],
    args: &args::Gather,
    lost: &[&LinkId],
    json: bool,
) -> anyhow::Result<()> {
    let connected = links.iter().map(|(link, follower)| async move {
        let mut progress = follower.subscribe();
        let mut unreachable_said = lost.contains(&&link.name);
        while !progress.borrow_and_update().connected {
            tokio::select! {
                biased;
                changed = progress.changed() => if changed.is_err() {
                    return Ok(());
                },
                () = sleep(Duration::from_secs(1)), if !unreachable_said => {
                    unreachable_said = true;
                    let reason = follower.status().health.reason;
                    note!("replikv: link {}: no connection to {} yet ({reason}); trying again", link.name, link.address);
                }
            }
        }
        if json {
            say!("{}", json!({ "link": link.name.as_str(), "following": link.address, "store": args.store }))?;
        } else {
            say!("{}: following {} into {}", link.name, link.address, args.store)?;
        }
        anyhow::Ok(())
    });
    try_join_all(connected).await?;
    if args.once && try_join_all(links.iter().map(|(_, follower)| follower.wait_caught_up())).await.is_ok() {
        return Ok(());
    }
    std::future::pending().await
}
