//! Are two stores equal, and if not, where.

use std::process::ExitCode;

use anyhow::{bail, ensure};

use super::NO;
use crate::args;
use crate::formats::add_bytes;
use crate::store::{self, Difference};
use crate::ui;

pub(crate) async fn run(args: args::Verify, json: bool) -> anyhow::Result<ExitCode> {
    if let Some(from) = &args.from {
        return super::verify_from::run(&args, from, json).await;
    }
    let [first, second] = &args.stores[..] else { bail!("give --store twice, or --from: two stores are compared") };
    ensure!(first != second, "{first} is given twice: two stores are compared");
    let (one, two) = (store::open_to_read(first)?, store::open_to_read(second)?);
    let bar = ui::bar("comparing", None);
    let mut shown = Vec::new();
    let tell = |key: &bytes::Bytes, difference| {
        if shown.len() < args.show {
            shown.push((key.clone(), difference));
        }
    };
    let found = store::compare(&one, &two, tell, |entries| bar.set_position(entries)).await?;
    bar.finish_and_clear();
    one.close().await?;
    two.close().await?;
    if json {
        let list = shown.iter().map(|(key, kind)| {
            let mut difference = serde_json::Map::new();
            add_bytes(&mut difference, "key", key);
            difference.insert("kind".into(), serde_json::json!(kind));
            difference
        });
        let differences: Vec<_> = list.collect();
        let equal = found.is_equal();
        say!("{}", serde_json::json!({ "equal": equal, "counts": found, "differences": differences }))?;
    } else if found.is_equal() {
        say!("equal: {} entries", ui::thousands(found.equal))?;
    } else {
        for (key, difference) in &shown {
            let words = match difference {
                Difference::OnlyFirst => format!("only in {first}"),
                Difference::OnlySecond => format!("only in {second}"),
                Difference::Values => "values differ".into(),
            };
            say!("{}: {words}", ui::printable(key))?;
        }
        say!(
            "different: {} equal, {} values differ, {} only in {first}, {} only in {second}",
            ui::thousands(found.equal),
            ui::thousands(found.different),
            ui::thousands(found.only_first),
            ui::thousands(found.only_second),
        )?;
    }
    Ok(if found.is_equal() { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}
