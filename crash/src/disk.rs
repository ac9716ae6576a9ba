//! A disk after power loss: which of the unsynced operations are there is for the disk to choose.
//!
//! What POSIX promises, and no more: a file's bytes are there after a sync of the file, its name after a sync of the
//! directory. Everything between two syncs comes in any order, or not at all. [`Rule`] says whether a sync of a file
//! brings its name as well, as the journals of Linux file systems do.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use bytes::Bytes;
use fastrand::Rng;

use crate::recording::{Inode, Step};

/// The files of a disk, by path; a directory is `None`.
pub(crate) type Image = BTreeMap<String, Option<Content>>;

/// What a file holds: these bytes, and zeros up to its length. Files are made long before much is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    /// Never ends in a zero.
    bytes: Vec<u8>,
    len: usize,
}

impl Content {
    pub(crate) fn new(mut bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        trim(&mut bytes);
        Self { bytes, len }
    }

    /// Without the zeros at the end.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn resize(&mut self, len: usize) {
        self.len = len;
        self.bytes.truncate(len);
        trim(&mut self.bytes);
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.len = self.len.max(end);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(bytes);
        trim(&mut self.bytes);
    }
}

fn trim(bytes: &mut Vec<u8>) {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(end);
}

/// What a power loss leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Everything: what a killed process leaves.
    Kept,
    /// Nothing.
    Dropped,
    /// Some operations and not others.
    Subset,
    /// Of each file the operations up to some point, another one for each file.
    Reordered,
    /// Some blocks of 512 bytes and not others.
    Torn512,
    /// Some blocks of 4096 bytes and not others.
    Torn4096,
    /// Names up to some point, where only a sync of their directory makes them durable.
    Names,
    /// The same, and those that are in doubt come in any order: all that POSIX allows.
    AnyNames,
}

impl Mode {
    pub(crate) const ALL: [Self; 8] = [
        Self::Kept,
        Self::Dropped,
        Self::Subset,
        Self::Reordered,
        Self::Torn512,
        Self::Torn4096,
        Self::Names,
        Self::AnyNames,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Dropped => "dropped",
            Self::Subset => "subset",
            Self::Reordered => "reordered",
            Self::Torn512 => "torn-512",
            Self::Torn4096 => "torn-4096",
            Self::Names => "names",
            Self::AnyNames => "any-names",
        }
    }

    pub(crate) fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).with_context(|| format!("{name} is no mode"))
    }

    fn rule(self) -> Rule {
        if matches!(self, Self::Names | Self::AnyNames) { Rule::Posix } else { Rule::Journal }
    }
}

/// When a name is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// With any later sync: names are journalled in order.
    Journal,
    /// With a sync of the directory that holds it.
    Posix,
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Bytes },
    Truncate(u64),
    Extend(u64),
}

#[derive(Debug, Default)]
struct File {
    durable: Content,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Naming {
    Make { path: String, node: Node },
    Rename { from: String, to: String, node: Node },
    Remove { path: String },
}

/// A file, also after its name and its number have become another's.
type FileId = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File(FileId),
    Directory,
}

#[derive(Debug)]
struct Named {
    naming: Naming,
    journalled: bool,
    posix: bool,
}

/// A disk while a program runs.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: Vec<File>,
    /// Which file has a number now.
    numbers: BTreeMap<Inode, FileId>,
    /// Names whose durability nobody can doubt.
    names: BTreeMap<String, Node>,
    /// The names that a running program sees.
    live: BTreeMap<String, Node>,
    /// What happened to names since.
    naming: Vec<Named>,
    /// Files whose syncs do not count: their paths end in this.
    deaf: Option<String>,
}

impl Disk {
    /// A disk that holds `image`, durably. `inodes` gives its files their numbers. Syncs of files whose paths end in
    /// `deaf` have no effect.
    pub(crate) fn new(image: &Image, inodes: &BTreeMap<String, Inode>, deaf: Option<String>) -> Result<Self> {
        let mut disk = Self { deaf, ..Self::default() };
        for (path, content) in image {
            let node = match content {
                None => Node::Directory,
                Some(bytes) => {
                    let inode = *inodes.get(path).with_context(|| format!("{path} has no number"))?;
                    let id = disk.file(inode);
                    disk.files[id].durable.clone_from(bytes);
                    Node::File(id)
                }
            };
            disk.names.insert(path.clone(), node);
        }
        disk.live.clone_from(&disk.names);
        Ok(disk)
    }

    /// The next operation of the recording happens.
    pub(crate) fn take(&mut self, step: &Step) {
        match step {
            Step::Create { path, inode } => {
                // The number of a file that is gone may be another file's now.
                self.numbers.remove(inode);
                let node = Node::File(self.file(*inode));
                self.name(Naming::Make { path: path.clone(), node });
            }
            Step::Directory { path } => self.name(Naming::Make { path: path.clone(), node: Node::Directory }),
            Step::Rename { from, to } => {
                if let Some(node) = self.live.get(from).copied() {
                    self.name(Naming::Rename { from: from.clone(), to: to.clone(), node });
                }
            }
            Step::Remove { path } => self.name(Naming::Remove { path: path.clone() }),
            Step::Write { inode, offset, bytes, synced } => {
                let change = Change::Write { offset: *offset, bytes: bytes.clone() };
                let id = self.file(*inode);
                if *synced { self.files[id].write_through(&change) } else { self.files[id].pending.push(change) }
            }
            Step::Truncate { inode, size } => self.change(*inode, Change::Truncate(*size)),
            Step::Extend { inode, size } => self.change(*inode, Change::Extend(*size)),
            Step::Sync { path, inode } => self.sync(path, *inode),
            Step::Note(_) | Step::Nothing => {}
        }
    }

    fn file(&mut self, inode: Inode) -> FileId {
        let files = &mut self.files;
        *self.numbers.entry(inode).or_insert_with(|| {
            files.push(File::default());
            files.len() - 1
        })
    }

    fn change(&mut self, inode: Inode, change: Change) {
        let id = self.file(inode);
        self.files[id].pending.push(change);
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.live);
        self.naming.push(Named { naming, journalled: false, posix: false });
    }

    fn sync(&mut self, path: &str, inode: Inode) {
        if self.deaf.as_ref().is_some_and(|deaf| path.ends_with(deaf.as_str())) {
            return;
        }
        if let Some(id) = self.numbers.get(&inode) {
            let file = &mut self.files[*id];
            for change in std::mem::take(&mut file.pending) {
                change.apply(&mut file.durable);
            }
        }
        for named in &mut self.naming {
            named.journalled = true;
            named.posix |= match &named.naming {
                Naming::Make { path: at, .. } | Naming::Remove { path: at } => parent(at) == path,
                Naming::Rename { to, .. } => parent(to) == path,
            };
        }
        let settled = self.naming.iter().take_while(|named| named.posix).count();
        for named in self.naming.drain(..settled) {
            named.naming.apply(&mut self.names);
        }
    }

    /// What the disk holds if the power goes now, while `next` is under way. `rng` decides what it kept.
    pub(crate) fn lose_power(&self, next: Option<&Step>, mode: Mode, rng: &mut Rng) -> Image {
        let names = self.names_left(mode, rng);
        // An operation that returns when it is durable may have come half way.
        let in_flight = match next {
            Some(Step::Write { inode, offset, bytes, synced: true }) => {
                let change = Change::Write { offset: *offset, bytes: bytes.clone() };
                self.numbers.get(inode).map(|id| (*id, change))
            }
            _ => None,
        };
        // Sometimes every file has grown to its full length before any block of it was written.
        let grown = matches!(mode, Mode::Subset | Mode::Torn512 | Mode::Torn4096) && rng.u8(..4) == 0;
        let keeps_all_bytes = matches!(mode, Mode::Names | Mode::AnyNames) && rng.bool();
        let mut image = Image::new();
        for (path, node) in &names {
            if !ancestors(path).all(|above| names.get(above) == Some(&Node::Directory)) {
                continue;
            }
            let Node::File(id) = node else {
                image.insert(path.clone(), None);
                continue;
            };
            let file = &self.files[*id];
            let mut pending = file.pending.clone();
            pending.extend(in_flight.iter().filter(|(of, _)| of == id).map(|(_, change)| change.clone()));
            let mut bytes = file.durable.clone();
            let prefix = rng.usize(..=pending.len());
            let mut full = bytes.len();
            for (at, change) in pending.iter().enumerate() {
                full = change.length_after(full);
                match mode {
                    Mode::Kept => change.apply(&mut bytes),
                    Mode::Dropped => {}
                    Mode::Reordered if at < prefix => change.apply(&mut bytes),
                    Mode::Reordered => {}
                    Mode::Names | Mode::AnyNames if keeps_all_bytes => change.apply(&mut bytes),
                    Mode::Subset | Mode::Names | Mode::AnyNames => {
                        if rng.bool() {
                            change.apply(&mut bytes);
                        }
                    }
                    Mode::Torn512 => change.tear(&mut bytes, 512, rng),
                    Mode::Torn4096 => change.tear(&mut bytes, 4096, rng),
                }
            }
            if grown && bytes.len() < full {
                bytes.resize(full);
            }
            image.insert(path.clone(), Some(bytes));
        }
        image
    }

    fn names_left(&self, mode: Mode, rng: &mut Rng) -> BTreeMap<String, Node> {
        let mut names = self.names.clone();
        let rule = mode.rule();
        let durable = |named: &Named| if rule == Rule::Posix { named.posix } else { named.journalled };
        let in_doubt = self.naming.iter().filter(|named| !durable(named)).count();
        // In order, as journals keep them: up to some point. By POSIX alone: any of them.
        let kept_in_doubt = match mode {
            Mode::Kept => in_doubt,
            Mode::Dropped => 0,
            // Names before bytes: what a rename without a sync before it risks.
            Mode::Reordered if rng.bool() => in_doubt,
            _ => rng.usize(..=in_doubt),
        };
        let any = mode == Mode::AnyNames;
        let mut doubted = 0;
        for named in &self.naming {
            let kept = durable(named) || {
                doubted += 1;
                if any { rng.bool() } else { doubted <= kept_in_doubt }
            };
            if kept {
                named.naming.apply(&mut names);
            }
        }
        names
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, Node>) {
        match self {
            Self::Make { path, node } => drop(names.insert(path.clone(), *node)),
            // Also where the old name was never on stable storage: the directory of the new one holds it.
            Self::Rename { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
                let is_below = |path: &str| path.strip_prefix(from.as_str()).is_some_and(|rest| rest.starts_with('/'));
                let below: Vec<String> = names.keys().filter(|path| is_below(path)).cloned().collect();
                for path in below {
                    if let Some(node) = names.remove(&path) {
                        names.insert(format!("{to}{}", &path[from.len()..]), node);
                    }
                }
            }
            Self::Remove { path } => drop(names.remove(path)),
        }
    }
}

impl File {
    // Durable on return. What is still pending is older, and must not come on top of it later.
    fn write_through(&mut self, change: &Change) {
        change.apply(&mut self.durable);
        let Change::Write { offset, bytes } = change else { return };
        for pending in &mut self.pending {
            if let Change::Write { offset: old_offset, bytes: old } = pending {
                let (start, end) = ((*offset).max(*old_offset), (offset + len(bytes)).min(*old_offset + len(old)));
                if start < end {
                    let mut merged = old.to_vec();
                    let newer = &bytes[index(start - offset)..index(end - offset)];
                    merged[index(start - *old_offset)..index(end - *old_offset)].copy_from_slice(newer);
                    *old = merged.into();
                }
            }
        }
    }
}

impl Change {
    fn apply(&self, file: &mut Content) {
        match self {
            Self::Write { offset, bytes } => file.write(index(*offset), bytes),
            Self::Truncate(size) => file.resize(index(*size)),
            Self::Extend(size) => file.resize(file.len().max(index(*size))),
        }
    }

    // Each block of the file is written or not.
    fn tear(&self, file: &mut Content, block: usize, rng: &mut Rng) {
        let Self::Write { offset, bytes } = self else {
            return if rng.bool() {
                self.apply(file)
            };
        };
        let (start, mut at) = (index(*offset), 0);
        while at < bytes.len() {
            let end = (block - (start + at) % block + at).min(bytes.len());
            if rng.bool() {
                file.write(start + at, &bytes[at..end]);
            }
            at = end;
        }
    }

    fn length_after(&self, length: usize) -> usize {
        match self {
            Self::Write { offset, bytes } => length.max(index(*offset) + bytes.len()),
            Self::Truncate(size) => index(*size),
            Self::Extend(size) => length.max(index(*size)),
        }
    }
}

fn len(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

// Files that are recorded fit into memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(path: &str, inode: Inode) -> Step {
        Step::Create { path: path.into(), inode }
    }

    fn write(inode: Inode, offset: u64, text: &str, synced: bool) -> Step {
        Step::Write { inode, offset, bytes: Bytes::copy_from_slice(text.as_bytes()), synced }
    }

    fn sync(path: &str, inode: Inode) -> Step {
        Step::Sync { path: path.into(), inode }
    }

    fn disk(steps: &[Step]) -> Disk {
        let mut disk = Disk::default();
        steps.iter().for_each(|step| disk.take(step));
        disk
    }

    // Everything that a power loss can leave, over many draws.
    fn outcomes(disk: &Disk, next: Option<&Step>, mode: Mode) -> Vec<Image> {
        let mut rng = Rng::with_seed(7);
        let mut seen: Vec<Image> = Vec::new();
        for _ in 0..400 {
            let image = disk.lose_power(next, mode, &mut rng);
            if !seen.contains(&image) {
                seen.push(image);
            }
        }
        seen
    }

    fn text(image: &Image, path: &str) -> Option<String> {
        let content = image.get(path)?.as_ref()?;
        let zeros = content.len() - content.bytes().len();
        Some(String::from_utf8_lossy(content.bytes()).into_owned() + &"\0".repeat(zeros))
    }

    #[test]
    fn what_was_synced_is_there_in_every_state() {
        let disk = disk(&[create("a", 1), write(1, 0, "one", false), sync("a", 1), write(1, 3, "two", false)]);
        for mode in Mode::ALL.into_iter().filter(|mode| mode.rule() == Rule::Journal) {
            for image in outcomes(&disk, None, mode) {
                assert!(text(&image, "a").is_some_and(|text| text.starts_with("one")), "{mode:?}");
            }
        }
        assert_eq!(text(&outcomes(&disk, None, Mode::Kept)[0], "a").as_deref(), Some("onetwo"));
        assert_eq!(text(&outcomes(&disk, None, Mode::Dropped)[0], "a").as_deref(), Some("one"));
    }

    #[test]
    fn unsynced_writes_come_in_any_order_and_in_pieces() {
        let base = disk(&[create("a", 1), sync("a", 1), write(1, 0, "xx", false), write(1, 2, "yy", false)]);
        let left: Vec<_> = outcomes(&base, None, Mode::Subset).iter().filter_map(|image| text(image, "a")).collect();
        for expected in ["", "xx", "\0\0yy", "xxyy", "\0\0\0\0"] {
            assert!(left.iter().any(|text| text == expected), "{expected:?} is missing in {left:?}");
        }
        let long = "z".repeat(1024);
        let torn = disk(&[create("a", 1), sync("a", 1), write(1, 0, &long, false)]);
        let lens: Vec<_> = outcomes(&torn, None, Mode::Torn512).iter().filter_map(|image| text(image, "a")).collect();
        assert!(lens.iter().any(|text| text.len() == 512) && lens.iter().any(|text| text.starts_with('\0')));
    }

    #[test]
    fn a_name_is_safe_with_its_directory_and_with_a_journal_sooner() {
        let steps = [create("a", 1), write(1, 0, "one", false), sync("a", 1)];
        let unsafe_name = disk(&steps);
        assert!(outcomes(&unsafe_name, None, Mode::Names).iter().any(|image| text(image, "a").is_none()));
        assert!(outcomes(&unsafe_name, None, Mode::Dropped).iter().all(|image| text(image, "a").is_some()));
        let mut safe = disk(&steps);
        safe.take(&sync("", 0));
        assert!(outcomes(&safe, None, Mode::Names).iter().all(|image| text(image, "a").is_some()));
    }

    #[test]
    fn what_is_below_a_directory_is_renamed_with_it() {
        let steps = [
            Step::Directory { path: "new".into() },
            create("new/a", 1),
            write(1, 0, "one", false),
            sync("new/a", 1),
            sync("new", 0),
            Step::Rename { from: "new".into(), to: "old".into() },
        ];
        let mut disk = disk(&steps);
        for image in outcomes(&disk, None, Mode::AnyNames) {
            let (new, old) = (text(&image, "new/a"), text(&image, "old/a"));
            assert!(new.is_none() || old.is_none(), "{image:?}");
            assert!(new.or(old).is_none_or(|text| text == "one"), "{image:?}");
        }
        disk.take(&sync("", 0));
        for image in outcomes(&disk, None, Mode::AnyNames) {
            assert_eq!((text(&image, "old/a").as_deref(), image.len()), (Some("one"), 2), "{image:?}");
        }
    }

    #[test]
    fn a_rename_may_come_before_the_bytes_and_never_half() {
        let steps = [
            create("new", 1),
            create("old", 2),
            write(2, 0, "old", false),
            sync("old", 2),
            sync("", 0),
            write(1, 0, "new", false),
            Step::Rename { from: "new".into(), to: "old".into() },
        ];
        let left = outcomes(&disk(&steps), None, Mode::Reordered);
        let texts: Vec<_> = left.iter().filter_map(|image| text(image, "old")).collect();
        assert!(texts.contains(&"old".into()) && texts.contains(&"".into()) && texts.contains(&"new".into()));
        assert!(left.iter().all(|image| text(image, "old").is_some()));
    }

    #[test]
    fn a_write_that_returns_when_it_is_durable_is_in_doubt_only_while_it_runs() {
        let base = [create("a", 1), write(1, 0, "....", false), write(1, 1, "!", true)];
        let disk = disk(&base);
        let image = &outcomes(&disk, None, Mode::Dropped)[0];
        assert_eq!(text(image, "a"), None, "the name was never synced");
        let after: Vec<_> = outcomes(&disk, None, Mode::Subset).iter().filter_map(|image| text(image, "a")).collect();
        assert!(after.iter().all(|text| text.as_bytes()[1] == b'!'), "{after:?}");
        let next = write(1, 1, "?", true);
        let during: Vec<_> =
            outcomes(&disk, Some(&next), Mode::Subset).iter().filter_map(|image| text(image, "a")).collect();
        assert!(during.iter().any(|text| text.as_bytes()[1] == b'?'));
        assert!(during.iter().any(|text| text.as_bytes()[1] == b'!'));
    }

    #[test]
    fn a_deaf_file_is_never_synced() {
        let mut disk = Disk { deaf: Some("a".into()), ..Disk::default() };
        for step in [create("a", 1), write(1, 0, "one", false), sync("a", 1), sync("", 0)] {
            disk.take(&step);
        }
        assert_eq!(text(&outcomes(&disk, None, Mode::Dropped)[0], "a").as_deref(), Some(""));
    }
}
