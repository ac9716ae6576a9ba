//! A slave's store that becomes a master's.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use replikv::{
    FenceConfig, FencedPromoteError, FencedPromotion, FencedSlave, PromoteError, Promoted, promote, promote_fenced_tcp,
};
use serde_json::{Value, json};

use crate::args;
use crate::store::{self, Store};
use crate::ui;

pub(crate) async fn run(args: args::Promote, as_json: bool) -> anyhow::Result<ExitCode> {
    for address in &args.fence {
        // Whoever is gone may have no name any more: that is for the promotion to count.
        super::check_port(address)?;
    }
    let store = store::open_existing(&args.store)?;
    let promoted = match args.slaves.zip(args.replicated) {
        Some((slaves, replicated)) => fenced(&store, &args, slaves, replicated).await.map(Ok),
        None => promote(&store).await.map(Err).with_context(|| args.store.clone()),
    };
    store.close().await.with_context(|| args.store.clone())?;
    let (promoted, fenced) = match promoted? {
        Ok(fenced) => (fenced.promoted, Some(fenced)),
        Err(promoted) => (promoted, None),
    };
    tell(&args.store, promoted, fenced.as_ref(), as_json)?;
    Ok(ExitCode::SUCCESS)
}

async fn fenced(
    store: &Store,
    args: &args::Promote,
    slaves: usize,
    replicated: usize,
) -> anyhow::Result<FencedPromotion> {
    let patience = Duration::from_secs(args.patience);
    let mut config = FenceConfig::new(slaves, replicated).by(args.store.clone()).patience(patience);
    if args.anew {
        config = config.anew();
    }
    enough_named(slaves, config.needed(), &args.fence).with_context(|| args.store.clone())?;
    promote_fenced_tcp(store, &config, &args.fence).await.map_err(|error| {
        let advice = match &error {
            FencedPromoteError::TooFew { .. } => {
                "nobody was promoted, and those that are fenced stay so: run this again when more can be reached, promote \
                 without --fence and lose what only others hold, or lift the fences with unfence, this store's first"
            }
            FencedPromoteError::Ahead { .. } => "nobody was promoted: promote that one, with --anew",
            FencedPromoteError::Promote(PromoteError::Fenced { .. }) => {
                "nobody was promoted: promote that one, or, if that was given up, this one with --anew"
            }
            _ => return anyhow::Error::new(error).context(args.store.clone()),
        };
        anyhow!("{}: {error}; {advice}", args.store)
    })
}

// Otherwise it would come to nothing, and leave those that are named fenced. More than there are is refused by the promotion.
fn enough_named(slaves: usize, needed: usize, others: &[String]) -> anyhow::Result<()> {
    let named = BTreeSet::from_iter(others).len();
    ensure!(
        needed > slaves || named + 1 >= needed,
        "{needed} of {slaves} slaves have to be fenced, this one among them: name {} others or more with --fence, not {named}; \
         nobody is fenced",
        needed - 1
    );
    Ok(())
}

fn tell(store: &str, promoted: Promoted, fenced: Option<&FencedPromotion>, as_json: bool) -> std::io::Result<()> {
    let (last, epoch) = (promoted.last.seq.as_u64(), promoted.first.epoch.number);
    if as_json {
        let mut told = json!({ "promoted": store, "epoch": epoch, "last": last });
        if let Some(FencedPromotion { fenced, unfenced, needed, .. }) = fenced {
            let there = fenced.iter().filter_map(|slave| {
                let FencedSlave { address, name, position, .. } = slave;
                let address = address.as_ref()?;
                let (seq, epoch) = (position.seq.as_u64(), position.epoch.number);
                Some(json!({ "address": address, "name": name, "seq": seq, "epoch": epoch }))
            });
            told["fenced"] = there.collect();
            let not = unfenced.iter().map(|slave| json!({ "address": slave.address, "reason": slave.reason }));
            told["unfenced"] = not.collect::<Vec<Value>>().into();
            told["needed"] = json!(needed);
        }
        return say!("{told}");
    }
    for slave in fenced.into_iter().flat_map(|fenced| &fenced.fenced) {
        if let Some(address) = &slave.address {
            let (name, seq) = (slave.name.as_deref().unwrap_or_default(), ui::thousands(slave.position.seq.as_u64()));
            note!("fenced {name} at {address}: it stands at record {seq} of epoch {}", slave.position.epoch.number);
        }
    }
    for slave in fenced.into_iter().flat_map(|fenced| &fenced.unfenced) {
        note!("not fenced: {}: {}", slave.address, slave.reason);
    }
    let last = ui::thousands(last);
    note!("promoted {store}: it holds record {last} and all before, and goes on in epoch {epoch}; serve it");
    Ok(())
}
