//! A link that is not to be any more.

use std::process::ExitCode;

use anyhow::{Context, bail};
use replikv::{Centre, LinkError, LinkId, MasterConfig, Role, Unlinked, links, role};

use super::NO;
use crate::store;
use crate::{aggregates, args};

pub(crate) async fn run(args: args::Unlink, json: bool) -> anyhow::Result<ExitCode> {
    let link = LinkId::new(args.link.as_str())?;
    let store = store::open_existing(&args.store)?;
    let goes = aggregates::names(&store).await.with_context(|| args.store.clone())?;
    let centre = match role(&store).await? {
        Some(Role::Centre) => Centre::open(store).await,
        Some(Role::Master) if !links(&store).await?.is_empty() => {
            Centre::open_master(store, MasterConfig::default()).await
        }
        _ => bail!("{}: it is no centre's store, and has no links", args.store),
    };
    let centre = centre.with_context(|| args.store.clone())?;
    // They are of other links from now on.
    aggregates::note_gone(&args.store, &goes);
    let unlinked = if args.remove_data { Unlinked::RemoveData } else { Unlinked::KeepData };
    let found = match centre.unlink(&link, unlinked).await {
        Ok(()) => true,
        Err(LinkError::NoSuchLink { .. }) => false,
        Err(error) => return Err(anyhow::Error::new(error).context(args.store)),
    };
    centre.shutdown().await.with_context(|| args.store.clone())?;
    if json {
        say!("{}", serde_json::json!({ "unlinked": found }))?;
    }
    if !found {
        note!("replikv: there is no link of that name");
        return Ok(ExitCode::from(NO));
    }
    Ok(ExitCode::SUCCESS)
}
