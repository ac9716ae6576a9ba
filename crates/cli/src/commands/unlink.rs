//! A link that is not to be any more.

use std::process::ExitCode;

use anyhow::{Context, bail};
use replikv::{Centre, LinkError, LinkId, LinkSeen, MasterConfig, Role, StoreError, Unlinked, links, role};

use super::NO;
use crate::store::{self, Store};
use crate::{aggregates, args};

pub(crate) async fn run(args: args::Unlink, json: bool) -> anyhow::Result<ExitCode> {
    let link = LinkId::new(args.link.as_str())?;
    let store = store::open_existing(&args.store)?;
    let (role, there) = standing(&store).await.with_context(|| args.store.clone())?;
    let is_master = match role {
        Some(Role::Centre) => false,
        Some(Role::Master) if !there.is_empty() => true,
        _ => bail!("{}: it is no centre's store, and has no links", args.store),
    };
    // Before the store is opened as a centre's, which drops its figures.
    let found = there.iter().any(|seen| seen.link == link);
    if found {
        undo(store, is_master, &link, &args).await.with_context(|| args.store.clone())?;
    } else {
        store.close().await.with_context(|| args.store.clone())?;
    }
    if json {
        say!("{}", serde_json::json!({ "unlinked": found }))?;
    }
    if !found {
        note!("replikv: there is no link of that name");
        return Ok(ExitCode::from(NO));
    }
    Ok(ExitCode::SUCCESS)
}

async fn standing(store: &Store) -> Result<(Option<Role>, Vec<LinkSeen>), StoreError> {
    Ok((role(store).await?, links(store).await?))
}

async fn undo(store: Store, is_master: bool, link: &LinkId, args: &args::Unlink) -> anyhow::Result<()> {
    let goes = aggregates::names(&store).await?;
    let centre = if is_master {
        Centre::open_master(store, MasterConfig::default()).await?
    } else {
        Centre::open(store).await?
    };
    // They are of other links from now on.
    aggregates::note_gone(&args.store, &goes);
    let unlinked = if args.remove_data { Unlinked::RemoveData } else { Unlinked::KeepData };
    match centre.unlink(link, unlinked).await {
        // It was being undone, which opening the centre has gone on with.
        Ok(()) | Err(LinkError::NoSuchLink { .. }) => Ok(centre.shutdown().await?),
        Err(error) => Err(error.into()),
    }
}
