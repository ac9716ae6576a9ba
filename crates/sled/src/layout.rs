//! Which trees make up a store: chosen, refused, and remembered in replikv's own tree.
//!
//! The entry `t` of that tree holds [`MAGIC`], a byte of version, and for each native tree its prefix and its name, each
//! behind its length in four bytes, big-endian. It also tells a tree of replikv's from one of the application's.

use bytes::Bytes;
use replikv_core::{StoreError, StoreLimits, Subspace};
use sled::{Db, IVec, Tree};

use crate::SledOptions;
use crate::database::{failed, unknown};
use crate::options::{DEFAULT_TREE, TreeOption};
use crate::trees::Trees;

const KEY: &[u8] = b"t";
const MAGIC: &[u8] = b"replikv-trees";
const VERSION: u8 = 1;

/// replikv's own tree in an application's database.
const OWN: &[u8] = b"replikv";

/// A store that a database holds already.
#[derive(Debug)]
struct Known {
    own: Bytes,
    trees: Vec<TreeOption>,
}

/// Names the own tree of the store in `database` that `options` mean.
///
/// # Errors
/// With the names, if there are several.
pub(crate) fn choose_own(database: &Db, options: &SledOptions, adopted: bool) -> Result<Bytes, StoreError> {
    if let Some(name) = &options.own_tree {
        return Ok(name.clone());
    }
    let usual = if adopted { OWN } else { DEFAULT_TREE };
    let known = known(database)?;
    match &known[..] {
        [] => Ok(Bytes::from_static(usual)),
        [one] => Ok(one.own.clone()),
        _ if known.iter().any(|known| known.own == usual) => Ok(Bytes::from_static(usual)),
        [one, other, ..] => Err(refused(format!(
            "trees {} and {} each hold a store: say with own_tree which is meant",
            shown(&one.own),
            shown(&other.own)
        ))),
    }
}

/// Opens the trees of a store, and creates those that are not there. Nothing is changed if one is refused.
///
/// # Errors
/// With names and a way out, if a tree cannot be what it is asked to be.
pub(crate) fn arrange(
    database: &Db,
    own: &Bytes,
    options: &SledOptions,
    adopted: bool,
    limits: StoreLimits,
) -> Result<Trees, StoreError> {
    let (mine, others): (Vec<_>, Vec<_>) = known(database)?.into_iter().partition(|known| known.own == *own);
    let known = mine.into_iter().next().map(|known| known.trees);
    let is_there = |name: &[u8]| database.tree_names().iter().any(|there| there == name);
    let open = |name: &[u8]| database.open_tree(name).map_err(failed);
    check_options(own, &options.trees)?;
    let mut trees = known.clone().unwrap_or_default();
    trees.extend(options.trees.iter().filter(|option| !known.iter().flatten().any(|known| known == *option)).cloned());
    check_together(own, &trees)?;
    check_others(own, &trees, &others)?;
    let held = if is_there(own) { Some(open(own)?) } else { None };
    if known.is_none() {
        check_own(own, held.as_ref(), adopted)?;
    }
    for option in trees.iter().filter(|option| !known.iter().flatten().any(|known| known == *option)) {
        let tree = if is_there(&option.name) { Some(open(&option.name)?) } else { None };
        check_new(own, held.as_ref(), option, tree.as_ref(), limits)?;
    }
    let held = open(own)?;
    // A store that an earlier version has begun in a default tree is left as it is.
    let sign = known.as_ref() != Some(&trees) && (adopted || !trees.is_empty() || held.is_empty());
    let arranged = Trees::open(held.clone(), &trees, open)?;
    if sign {
        held.insert(KEY, encode(&trees)).map_err(unknown)?;
    }
    Ok(arranged)
}

fn known(database: &Db) -> Result<Vec<Known>, StoreError> {
    let mut known = Vec::new();
    let mut names = database.tree_names();
    names.sort();
    for name in names {
        let entry = database.open_tree(&name).and_then(|tree| tree.get(KEY)).map_err(failed)?;
        if let Some(trees) = entry.map_or(Ok(None), |entry| decode(&entry))? {
            known.push(Known { own: copied(&name), trees });
        }
    }
    Ok(known)
}

fn check_options(own: &Bytes, options: &[TreeOption]) -> Result<(), StoreError> {
    for (index, one) in options.iter().enumerate() {
        if one.name == *own {
            return Err(refused(format!("tree {} is replikv's own: it cannot be a tree of the data", shown(own))));
        }
        if let Some(other) = options[..index].iter().find(|other| other.name == one.name) {
            return Err(refused(format!(
                "tree {} is named twice, for the subspaces {} and {}",
                shown(&one.name),
                shown(other.space.prefix()),
                shown(one.space.prefix())
            )));
        }
    }
    Ok(())
}

// Those of the options, and those that the store remembers.
fn check_together(own: &Bytes, trees: &[TreeOption]) -> Result<(), StoreError> {
    for (index, one) in trees.iter().enumerate() {
        if let Some(other) = trees[..index].iter().find(|other| other.name == one.name) {
            return Err(refused(format!(
                "tree {} is the subspace {} of the store in tree {}, and cannot become {}",
                shown(&one.name),
                shown(other.space.prefix()),
                shown(own),
                shown(one.space.prefix())
            )));
        }
        if let Some(other) = trees[..index].iter().find(|other| other.space.overlaps(&one.space)) {
            return Err(refused(format!(
                "the subspaces of trees {} and {} overlap: a key could belong to both",
                shown(&other.name),
                shown(&one.name)
            )));
        }
    }
    Ok(())
}

fn check_others(own: &Bytes, trees: &[TreeOption], others: &[Known]) -> Result<(), StoreError> {
    for other in others {
        for tree in trees {
            if tree.name == other.own || other.trees.iter().any(|taken| taken.name == tree.name) {
                return Err(refused(format!(
                    "tree {} belongs to the store in tree {}: it cannot be a tree of the one in {} too",
                    shown(&tree.name),
                    shown(&other.own),
                    shown(own)
                )));
            }
        }
        if other.trees.iter().any(|taken| taken.name == *own) {
            return Err(refused(format!(
                "tree {} belongs to the store in tree {}: choose another own_tree",
                shown(own),
                shown(&other.own)
            )));
        }
    }
    Ok(())
}

// A tree that holds no store yet.
fn check_own(own: &Bytes, held: Option<&Tree>, adopted: bool) -> Result<(), StoreError> {
    if *own == DEFAULT_TREE {
        return match adopted {
            true => Err(refused("the default tree is the application's: choose another own_tree".into())),
            false => Ok(()),
        };
    }
    match held.is_some_and(|held| !held.is_empty()) {
        true => Err(refused(format!("tree {} holds entries, and no store: choose another own_tree", shown(own)))),
        false => Ok(()),
    }
}

// A tree that becomes part of the store.
fn check_new(
    own: &Bytes,
    held: Option<&Tree>,
    option: &TreeOption,
    tree: Option<&Tree>,
    limits: StoreLimits,
) -> Result<(), StoreError> {
    let (name, prefix) = (shown(&option.name), option.space.prefix());
    if prefix.len() >= limits.max_key {
        return Err(refused(format!("tree {name} has a prefix that leaves no room for keys")));
    }
    let mut begun = false;
    if let Some(held) = held {
        let begins_with = |bytes: &[u8]| held.scan_prefix(bytes).next().transpose().map_err(failed);
        if begins_with(&[b"d", &prefix[..]].concat())?.is_some() {
            return Err(refused(format!(
                "tree {} holds keys that begin with the prefix of tree {name}: move them there, or choose another prefix",
                shown(own)
            )));
        }
        begun = begins_with(b"l")?.is_some() || begins_with(b"m")?.is_some();
    }
    let Some(tree) = tree.filter(|tree| !tree.is_empty()) else { return Ok(()) };
    if begun {
        return Err(refused(format!(
            "tree {name} holds entries of which the store in tree {} knows nothing, and no record would tell slaves of \
             them: empty it, and write them through the master; or begin anew in another own_tree",
            shown(own)
        )));
    }
    // Once: what is written later goes through the store.
    for entry in tree {
        let (key, value) = entry.map_err(failed)?;
        let len = prefix.len() + key.len();
        if len == 0 {
            return Err(refused(format!("tree {name} holds an empty key: give it a subspace with a prefix")));
        }
        if len > limits.max_key {
            return Err(refused(format!(
                "tree {name} holds a key that has {len} bytes with its prefix: a store takes up to {}",
                limits.max_key
            )));
        }
        if value.len() > limits.max_value {
            return Err(refused(format!(
                "tree {name} holds a value of {} bytes, at key {}: a store takes up to {}",
                value.len(),
                shown(&key),
                limits.max_value
            )));
        }
    }
    Ok(())
}

fn encode(trees: &[TreeOption]) -> Vec<u8> {
    let mut bytes = [MAGIC, &[VERSION]].concat();
    for part in trees.iter().flat_map(|tree| [tree.space.prefix(), &tree.name]) {
        // Both have been names or keys, which are shorter.
        bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

// `None` if it is something else.
fn decode(entry: &[u8]) -> Result<Option<Vec<TreeOption>>, StoreError> {
    let Some((&version, mut rest)) = entry.strip_prefix(MAGIC).and_then(<[u8]>::split_first) else { return Ok(None) };
    if version != VERSION {
        let (found, supported) = (version.into(), VERSION.into());
        return Err(StoreError::NewerFormat { what: "the list of trees", found, supported });
    }
    let mut part = || {
        let (len, behind) = rest.split_first_chunk()?;
        let (part, behind) = behind.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
        rest = behind;
        Some((Bytes::copy_from_slice(part), behind.is_empty()))
    };
    let mut trees = Vec::new();
    let mut is_end = entry.len() == MAGIC.len() + 1;
    while !is_end {
        let (Some((prefix, false)), Some((name, end))) = (part(), part()) else {
            return Err(StoreError::Corrupt { what: "the list of trees".into() });
        };
        trees.push(TreeOption { space: Subspace::raw(prefix), name });
        is_end = end;
    }
    Ok(Some(trees))
}

fn copied(name: &IVec) -> Bytes {
    Bytes::copy_from_slice(name)
}

fn refused(words: String) -> StoreError {
    StoreError::backend(words)
}

/// A name in words.
pub(crate) fn shown(name: &[u8]) -> String {
    if name == DEFAULT_TREE { "(default)".into() } else { name.escape_ascii().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(prefix: &'static [u8], name: &'static [u8]) -> TreeOption {
        TreeOption { space: Subspace::raw(prefix), name: Bytes::from_static(name) }
    }

    #[test]
    fn the_list_of_trees_is_read_as_it_was_written() {
        for trees in [vec![], vec![tree(b"", b"users")], vec![tree(b"u\0", b"users"), tree(b"\xFF", b"")]] {
            assert_eq!(decode(&encode(&trees)).unwrap(), Some(trees));
        }
    }

    #[test]
    fn the_list_of_trees_has_these_bytes() {
        let bytes = encode(&[tree(b"u/", b"users"), tree(b"", b"o")]);
        assert_eq!(bytes, b"replikv-trees\x01\0\0\0\x02u/\0\0\0\x05users\0\0\0\0\0\0\0\x01o");
    }

    #[test]
    fn what_is_cut_or_newer_or_something_else_is_told_apart() {
        let whole = encode(&[tree(b"u/", b"users"), tree(b"o", b"orders")]);
        assert_eq!(decode(b"replikv-trees").unwrap(), None);
        assert_eq!(decode(b"the application's").unwrap(), None);
        let ends = [MAGIC.len() + 1, MAGIC.len() + 1 + 4 + 2 + 4 + 5];
        for len in (MAGIC.len() + 1..whole.len()).filter(|len| !ends.contains(len)) {
            assert!(matches!(decode(&whole[..len]), Err(StoreError::Corrupt { .. })), "{len}");
        }
        let newer = [MAGIC, &[2]].concat();
        assert!(matches!(decode(&newer), Err(StoreError::NewerFormat { found: 2, supported: 1, .. })));
    }
}
