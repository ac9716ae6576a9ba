//! Figures of groups of keys, which `follow` and `gather` keep in the transactions that change the data.

mod decimal;

use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use replikv::aggregate::Sum;
use replikv::{Aggregate, DerivedStore, DerivedStoreBuilder, InStore, StoreError};

pub(crate) use self::decimal::in_words;
use crate::store::Store;

/// Of each kind the same, so that whoever prints it need not know which it is: exact numbers, in units of [`decimal::ONE`].
pub(crate) type Figures = Aggregate<Vec<u8>, Sum>;

/// The longest name of an aggregate.
const MAX_NAME: usize = 48;
/// What a group has of its keys at most. Beside the longest name it fits into a key of LMDB: no key of a master ends the
/// following.
const MAX_GROUP: usize = 400;
/// Counts up when the same definition comes to something else than before.
const MEANING: u8 = 1;

/// What is kept under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Definition {
    name: String,
    figure: Figure,
    separator: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    Count,
    Bytes,
    Sum,
}

impl FromStr for Definition {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let form = || "write NAME=count, NAME=bytes or NAME=sum, and :SEPARATOR after it if that is not /".to_owned();
        let (name, rest) = words.split_once('=').ok_or_else(form)?;
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(format!("{name:?} is no name: 1 to {MAX_NAME} bytes, none of them a control character"));
        }
        let (figure, separator) = rest.split_once(':').unwrap_or((rest, "/"));
        let figure = match figure {
            "count" => Figure::Count,
            "bytes" => Figure::Bytes,
            "sum" => Figure::Sum,
            _ => return Err(form()),
        };
        Ok(Self { name: name.into(), figure, separator: separator.into() })
    }
}

impl Definition {
    fn aggregate(&self, prefixes: &[Bytes]) -> Figures {
        let (figure, separator, prefixes) = (self.figure, self.separator.clone(), prefixes.to_vec());
        Aggregate::new(stored_name(&self.name), self.version(&prefixes), Sum, move |key, value, emit| {
            if let Some(units) = figure.of(value) {
                emit.to(group(key, &prefixes, separator.as_bytes()).to_vec(), units);
            }
            Ok(())
        })
    }

    // Whatever decides what an entry contributes is in it: another definition is derived anew.
    fn version(&self, prefixes: &[Bytes]) -> u32 {
        let figure = match self.figure {
            Figure::Count => "count",
            Figure::Bytes => "bytes",
            Figure::Sum => "sum",
        };
        let words = [figure.as_bytes(), self.separator.as_bytes()];
        let words = words.into_iter().chain(prefixes.iter().map(|prefix| &prefix[..]));
        let words = words.flat_map(|word| (word.len() as u64).to_be_bytes().into_iter().chain(word.iter().copied()));
        fnv(std::iter::once(MEANING).chain(words))
    }
}

impl Figure {
    /// What an entry contributes; `None` if that is nothing.
    fn of(self, value: &[u8]) -> Option<i128> {
        match self {
            Self::Count => Some(decimal::ONE),
            Self::Bytes => Some(value.len() as i128 * decimal::ONE),
            Self::Sum => decimal::parse(value),
        }
    }
}

/// The part of a key before the first separator, without the prefix of its link.
fn group<'k>(key: &'k [u8], prefixes: &[Bytes], separator: &[u8]) -> &'k [u8] {
    let own = prefixes.iter().find_map(|prefix| key.strip_prefix(&prefix[..])).unwrap_or(key);
    let end = match separator.len() {
        0 => 0,
        len => own.windows(len).position(|window| window == separator).unwrap_or(own.len()),
    };
    &own[..end.min(MAX_GROUP)]
}

fn fnv(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Apart from what other programs derive.
const STORED: &str = "replikv/";

fn stored_name(name: &str) -> String {
    format!("{STORED}{name}")
}

/// The name of an aggregate of the program, by that which is stored.
pub(crate) fn name_of(stored: &str) -> Option<&str> {
    stored.strip_prefix(STORED)
}

/// What reads the aggregate of that name, whatever its definition is.
pub(crate) fn named(name: &str) -> Figures {
    Aggregate::new(stored_name(name), 0, Sum, |_, _, _| Ok(()))
}

/// Says which definitions cannot be kept together.
pub(crate) fn check(definitions: &[Definition]) -> anyhow::Result<()> {
    for (at, definition) in definitions.iter().enumerate() {
        if definitions[..at].iter().any(|other| other.name == definition.name) {
            bail!("there is more than one --aggregate {}", definition.name);
        }
    }
    Ok(())
}

/// Lets `store` keep `definitions` of all that is written through it: what it does not hold yet is derived from its entries
/// first, and what it holds of others goes. `prefixes` are those of links.
pub(crate) async fn keep(
    store: Store,
    url: &str,
    definitions: &[Definition],
    mut prefixes: Vec<Bytes>,
) -> anyhow::Result<Store> {
    if definitions.is_empty() {
        return Ok(store);
    }
    prefixes.sort();
    prefixes.dedup();
    let aggregates = definitions.iter().map(|definition| definition.aggregate(&prefixes));
    let builder = aggregates.fold(DerivedStore::builder(store), DerivedStoreBuilder::derive);
    Ok(Arc::new(builder.open().await.with_context(|| url.to_owned())?))
}

/// What is derived in a store, by the names that people know.
pub(crate) async fn names(store: &Store) -> Result<Vec<String>, StoreError> {
    let names = InStore::new(store).names().await?;
    Ok(names.iter().map(|name| name_of(name).unwrap_or(name).to_owned()).collect())
}

/// Says what is no longer there, since the store was opened by who does not keep it up.
pub(crate) fn note_gone(url: &str, names: &[String]) {
    if !names.is_empty() {
        note!("replikv: {url} keeps no longer what was aggregated as {}", names.join(", "));
    }
}

/// As [`keep`], of a slave's store, for a command that is not to change which figures there are: refused, before anything is
/// written, unless `definitions` hold all that the store keeps.
pub(crate) async fn keep_on(store: Store, url: &str, definitions: &[Definition]) -> anyhow::Result<Store> {
    for (stored, version) in InStore::new(&store).versions().await.with_context(|| url.to_owned())? {
        let Some(name) = name_of(&stored) else {
            bail!("{url}: another program derives {stored} in it, which would go: do this with that program")
        };
        let said = definitions.iter().any(|definition| definition.name == name && definition.version(&[]) == version);
        ensure!(said, "{url}: it keeps the aggregate {name}, which would go: say --aggregate as it was said to follow");
    }
    keep(store, url, definitions, Vec::new()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defined(words: &str) -> Definition {
        words.parse().unwrap()
    }

    #[test]
    fn a_definition_is_a_name_a_figure_and_a_separator() {
        let of =
            |name: &str, figure, separator: &str| Definition { name: name.into(), figure, separator: separator.into() };
        assert_eq!(defined("n=count"), of("n", Figure::Count, "/"));
        assert_eq!(defined("a b=bytes::"), of("a b", Figure::Bytes, ":"));
        assert_eq!(defined("n=sum:"), of("n", Figure::Sum, ""));
        assert_eq!(defined("n=sum:, "), of("n", Figure::Sum, ", "));
        let long = format!("{}=count", "n".repeat(MAX_NAME + 1));
        for wrong in ["", "count", "=count", "n=", "n=max", "n\n=count", &long] {
            assert!(wrong.parse::<Definition>().is_err(), "{wrong}");
        }
        assert!(check(&[defined("n=count"), defined("m=count")]).is_ok());
        assert!(check(&[defined("n=count"), defined("n=sum")]).is_err());
    }

    #[test]
    fn a_group_is_what_its_master_has_before_the_first_separator() {
        let prefixes = [Bytes::from("one/"), Bytes::from("two:")];
        let group = |key: &'static str, separator: &str| {
            String::from_utf8(group(key.as_bytes(), &prefixes, separator.as_bytes()).to_vec()).unwrap()
        };
        assert_eq!(group("one/users/a/b", "/"), "users");
        assert_eq!(group("two:users", "/"), "users");
        assert_eq!(group("three/users", "/"), "three");
        assert_eq!(group("one/a::b:c", "::"), "a");
        assert_eq!(group("one//a", "/"), "");
        assert_eq!(group("one/a/b", ""), "");
        assert_eq!(super::group(&[b'k'; 480], &[], b"/").len(), MAX_GROUP);
    }

    #[test]
    fn whatever_decides_what_an_entry_contributes_is_in_the_version() {
        let prefixes =
            |prefixes: &[&'static str]| prefixes.iter().map(|prefix| Bytes::from(*prefix)).collect::<Vec<_>>();
        let versions = [
            defined("n=count").version(&[]),
            defined("n=bytes").version(&[]),
            defined("n=sum").version(&[]),
            defined("n=count:").version(&[]),
            defined("n=count:::").version(&[]),
            defined("n=count").version(&prefixes(&["a"])),
            defined("n=count").version(&prefixes(&["a", "b"])),
            defined("n=count").version(&prefixes(&["ab"])),
        ];
        for (at, version) in versions.iter().enumerate() {
            assert!(!versions[..at].contains(version), "{versions:?}");
        }
        // A store may have been left by another build of the program.
        assert_eq!(versions[0], 0x7e74_5a3e);
    }
}
