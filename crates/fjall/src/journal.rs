//! The end of a journal that power loss has torn.
//!
//! A journal of fjall is a row of batches; each is a start, as many items as the start says, and an end with their checksum.
//! Numbers are little-endian.
//!
//! | entry | bytes |
//! | --- | --- |
//! | start | `1`, number of items (4), sequence number (8) |
//! | item | `2`, kind, compression, keyspace (8), length of the key (2), of the value (4), of what is stored of it (4), both |
//! | end | `3`, XXH3 of the bytes of all items (8), `FJL`, `3` |
//! | clear | `4`, keyspace (8); counts as an item |
//!
//! fjall cuts a journal where it finds no entry, or an end of the file. Where all entries are in their places, and the
//! bytes of a value were lost, it refuses the database instead, though nothing that was synced is missing.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

const LOCK: &str = "lock";
const MAGIC: [u8; 4] = *b"FJL\x03";

/// Cuts the newest journal of the database in `path` behind its last whole batch before the first that is none. The older
/// ones were synced before it was begun: if one of them is torn, that is damage, and nothing is cut. Returns false if nothing
/// was, which is so too if somebody has the database open.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn cut_torn_end(path: &Path) -> io::Result<bool> {
    // The lock that fjall takes itself.
    let lock = File::options().read(true).write(true).open(path.join(LOCK))?;
    if lock.try_lock().is_err() {
        return Ok(false);
    }
    let mut journals = journals(path)?;
    let Some(newest) = journals.pop() else { return Ok(false) };
    for older in journals {
        if torn_at(&File::open(older)?)?.is_some() {
            return Ok(false);
        }
    }
    let file = File::options().read(true).write(true).open(newest)?;
    let Some(end) = torn_at(&file)? else { return Ok(false) };
    file.set_len(end)?;
    file.sync_all()?;
    Ok(true)
}

// Oldest first.
fn journals(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut journals: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".jnl")?.parse().ok()) {
            journals.push((number, path.join(name)));
        }
    }
    journals.sort();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}

// Where the last whole batch ends, if something that is none follows: zeros are what is set aside in advance.
fn torn_at(mut journal: &File) -> io::Result<Option<u64>> {
    let end = whole_batches(BufReader::new(journal))?;
    journal.seek(SeekFrom::Start(end))?;
    let mut rest = BufReader::new(journal);
    loop {
        let read = rest.fill_buf()?;
        if read.is_empty() {
            return Ok(None);
        }
        if read.iter().any(|&byte| byte != 0) {
            return Ok(Some(end));
        }
        let read = read.len();
        rest.consume(read);
    }
}

/// Where the last batch ends before the first that is not whole.
fn whole_batches(mut journal: impl BufRead) -> io::Result<u64> {
    let mut end = 0;
    loop {
        match batch(&mut journal) {
            Ok(Some(len)) => end += len,
            Ok(None) => return Ok(end),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(end),
            Err(error) => return Err(error),
        }
    }
}

// Its length; `None` if it is not whole.
fn batch(journal: &mut impl BufRead) -> io::Result<Option<u64>> {
    let start: [u8; 13] = bytes(journal)?;
    let [1, a, b, c, d, ..] = start else { return Ok(None) };
    let (mut len, mut hash) = (start.len() as u64, Xxh3::new());
    for _ in 0..u32::from_le_bytes([a, b, c, d]) {
        match item(journal, &mut hash)? {
            Some(more) => len += more,
            None => return Ok(None),
        }
    }
    let end: [u8; 13] = bytes(journal)?;
    let [tag, checksum @ .., m, a, g, i] = end;
    let whole = tag == 3 && u64::from_le_bytes(checksum) == hash.digest() && [m, a, g, i] == MAGIC;
    Ok(whole.then_some(len + end.len() as u64))
}

fn item(journal: &mut impl BufRead, hash: &mut Xxh3) -> io::Result<Option<u64>> {
    let [tag] = bytes(journal)?;
    let (head, content) = match tag {
        2 => {
            let head: [u8; 20] = bytes(journal)?;
            let [.., k0, k1, _, _, _, _, s0, s1, s2, s3] = head;
            (head.to_vec(), u64::from(u16::from_le_bytes([k0, k1])) + u64::from(u32::from_le_bytes([s0, s1, s2, s3])))
        }
        4 => (bytes::<8>(journal)?.to_vec(), 0),
        _ => return Ok(None),
    };
    hash.update(&[tag]);
    hash.update(&head);
    let mut left = journal.take(content);
    loop {
        let read = left.fill_buf()?;
        if read.is_empty() {
            break;
        }
        hash.update(read);
        let read = read.len();
        left.consume(read);
    }
    match left.limit() {
        0 => Ok(Some(1 + head.len() as u64 + content)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn bytes<const N: usize>(journal: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    journal.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: [&[u8]; 3] = [
        b"\x02\0\0\x01\0\0\0\0\0\0\0\x01\0\x05\0\0\0\x05\0\0\0kvalue",
        b"\x04\x01\0\0\0\0\0\0\0",
        b"\x02\x01\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0gg",
    ];

    fn batch_of(items: &[&[u8]]) -> Vec<u8> {
        let content = items.concat();
        let mut batch = vec![1];
        batch.extend_from_slice(&u32::try_from(items.len()).unwrap().to_le_bytes());
        batch.extend_from_slice(&7u64.to_le_bytes());
        batch.extend_from_slice(&content);
        batch.push(3);
        batch.extend_from_slice(&xxhash_rust::xxh3::xxh3_64(&content).to_le_bytes());
        batch.extend_from_slice(&MAGIC);
        batch
    }

    fn end_of(journal: &[u8]) -> usize {
        usize::try_from(whole_batches(BufReader::with_capacity(7, journal)).unwrap()).unwrap()
    }

    #[test]
    fn a_journal_ends_behind_its_last_whole_batch() {
        let (one, two) = (batch_of(&ITEMS), batch_of(&ITEMS[..1]));
        let journal = [&one[..], &two].concat();
        for len in 0..journal.len() {
            let expected = if len < one.len() { 0 } else { one.len() };
            assert_eq!(end_of(&journal[..len]), expected, "{len}");
            // As it is set aside in advance.
            let zeros = vec![0; journal.len() + 9 - len];
            assert_eq!(end_of(&[&journal[..len], &zeros].concat()), expected, "{len}");
        }
        assert_eq!(end_of(&journal), journal.len());
        // No byte of items and their checksum may be another.
        for at in 13..one.len() {
            let mut torn = journal.clone();
            torn[at] ^= 0x41;
            assert_eq!(end_of(&torn), 0, "{at}");
        }
    }

    #[test]
    fn only_the_newest_journal_is_cut_and_only_by_whoever_has_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let whole = batch_of(&ITEMS);
        let torn = [&whole[..], b"\x01\x01"].concat();
        let set_aside = [&whole[..], &[0; 20_000]].concat();
        fs::write(file("9.jnl"), &set_aside).unwrap();
        fs::write(file("10.jnl"), &torn).unwrap();
        fs::write(file(LOCK), "").unwrap();
        let held = File::open(file(LOCK)).unwrap();
        held.lock().unwrap();
        assert!(!cut_torn_end(dir.path()).unwrap());
        assert_eq!(fs::read(file("10.jnl")).unwrap(), torn);
        drop(held);
        assert!(cut_torn_end(dir.path()).unwrap());
        assert_eq!(fs::read(file("10.jnl")).unwrap(), whole);
        assert_eq!(fs::read(file("9.jnl")).unwrap(), set_aside);
        assert!(!cut_torn_end(dir.path()).unwrap());
        // What was set aside in advance is no end that was torn.
        fs::write(file("10.jnl"), &set_aside).unwrap();
        assert!(!cut_torn_end(dir.path()).unwrap());
        assert_eq!(fs::read(file("10.jnl")).unwrap(), set_aside);
        // Damage in an older one is not made worse.
        fs::write(file("9.jnl"), &torn).unwrap();
        fs::write(file("10.jnl"), &torn).unwrap();
        assert!(!cut_torn_end(dir.path()).unwrap());
        assert_eq!(fs::read(file("10.jnl")).unwrap(), torn);
    }
}
