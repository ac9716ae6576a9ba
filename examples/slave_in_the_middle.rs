//! A slave in the middle: masters count words, each in texts of its own; a centre adds up what they have counted.
//!
//! Each document of this repository has a master, whose entries are its lines, and which keeps in the same records how
//! often each word is in them. A centre follows all of them over TCP, and keeps the counts over all documents, and how dense
//! the lines are, as a floating point sum. Meanwhile lines are changed, removed and put back, a master is restarted, and one
//! document is unlinked at the end. What the centre says is compared with a recomputation from the texts, bit for bit; the
//! example fails if they differ.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use replikv::aggregate::{Again, Aggregate, Count, Emit, FloatSum};
use replikv::{
    Batch, Centre, DeriveAbort, DerivedStore, KeyRange, LinkConfig, LinkId, LinkStore, Master, MasterConfig,
    MemoryStore, Slave, SlaveConfig, Subspace, Token, Unlinked,
};
use tokio::net::TcpListener;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Centred = DerivedStore<MemoryStore>;

/// What a document holds: its lines, by number.
type Lines = BTreeMap<u32, String>;

fn words(line: &str) -> impl Iterator<Item = String> + '_ {
    let words = line.split(|letter: char| !letter.is_alphabetic());
    words.filter(|word| word.len() > 3).map(str::to_lowercase)
}

/// How much of a line is words.
fn density(line: &str) -> f64 {
    let letters = words(line).map(|word| word.chars().count()).sum::<usize>();
    letters as f64 / line.chars().count().max(1) as f64
}

fn text(value: &[u8]) -> std::result::Result<&str, DeriveAbort> {
    std::str::from_utf8(value).map_err(|_| DeriveAbort::refuse("a line is no text"))
}

/// Where a master puts what it has counted.
fn target() -> Subspace {
    Subspace::raw("counts/")
}

/// How often each word is in the lines of a master.
fn counts() -> Aggregate<String, Count> {
    Aggregate::of(KeyRange::prefix("line/"), "words", 1, Count, |_, line, emit| {
        words(text(line)?).for_each(|word| emit.to(word, ()));
        Ok(())
    })
}

/// The same over all masters: from what each of them has counted, which is under `LINK/counts/` in the centre.
fn totals() -> Aggregate<String, Again<Count>> {
    counts().again("words", 1, |key| target_of(key)?.strip_prefix(b"counts/"))
}

/// How dense the lines are, of each document: from the lines themselves.
fn densities() -> Aggregate<String, FloatSum> {
    Aggregate::new("density", 1, FloatSum, |key: &[u8], line: &[u8], emit: &mut Emit<String, f64>| {
        if target_of(key).is_some_and(|key| key.starts_with(b"line/")) {
            let document = key.split(|&byte| byte == b'/').next().unwrap_or_default();
            emit.to(String::from_utf8_lossy(document).into_owned(), density(text(line)?));
        }
        Ok(())
    })
}

/// The key of a master, of one of the centre.
fn target_of(key: &[u8]) -> Option<&[u8]> {
    let slash = key.iter().position(|&byte| byte == b'/')?;
    key.get(slash + 1..)
}

fn line_key(number: u32) -> Bytes {
    Bytes::from([&b"line/"[..], &number.to_be_bytes()].concat())
}

/// A document, its master, and the centre's link to it.
struct Document {
    name: String,
    lines: Lines,
    store: MemoryStore,
    master: Master<MemoryStore>,
    link: Slave<LinkStore<Centred>>,
}

impl Document {
    async fn open(path: &Path, centre: &Centre<Centred>) -> Result<Self> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let lines: Lines = (1..).zip(std::fs::read_to_string(path)?.lines().map(str::to_owned)).collect();
        let store = MemoryStore::new();
        let master = Master::open(store.clone(), MasterConfig::default().derive(target(), counts())).await?;
        let link = centre.link(LinkConfig::new(LinkId::new(&name)?, SlaveConfig::new("centre"))).await?;
        let document = Self { name, lines, store, master, link };
        document.follow().await?;
        Ok(document)
    }

    /// Serves the master on a port of its own, and follows it there.
    async fn follow(&self) -> Result {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(self.master.clone().serve_tcp(listener));
        let link = self.link.clone();
        tokio::spawn(async move { link.follow_tcp(address).await });
        Ok(())
    }

    async fn write_all(&self) -> Result {
        let lines: Vec<_> = self.lines.iter().collect();
        for part in lines.chunks(16) {
            let batch = part.iter().fold(Batch::new(), |batch, (number, line)| batch.put(line_key(**number), line));
            self.master.write(batch).await?;
        }
        Ok(())
    }

    /// Every third line in capitals, the first ten away, and the last ones in one range.
    async fn edit(&mut self) -> Result<Token> {
        let mut batch = Batch::new();
        for (number, line) in self.lines.iter_mut().filter(|(number, _)| *number % 3 == 0) {
            *line = format!("{} again", line.to_uppercase());
            batch = batch.put(line_key(*number), &line);
        }
        for number in 1..=10 {
            self.lines.remove(&number);
            batch = batch.delete(line_key(number));
        }
        let last = self.lines.keys().next_back().copied().unwrap_or_default().saturating_sub(20);
        drop(self.lines.split_off(&last));
        batch = batch.delete_range(KeyRange::from_bounds(line_key(last)..line_key(u32::MAX)));
        Ok(self.master.write(batch).await?)
    }

    /// The master ends, and is opened again from its store.
    async fn restart(&mut self) -> Result {
        self.master.shutdown().await?;
        self.link.shutdown().await?;
        self.store = self.store.open_again();
        self.master = Master::open(self.store.clone(), MasterConfig::default().derive(target(), counts())).await?;
        Ok(())
    }
}

/// What the texts come to, from the texts alone.
fn recomputed(documents: &[Document]) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let (mut counts, mut densities) = (BTreeMap::<String, u64>::new(), BTreeMap::new());
    for document in documents {
        for word in document.lines.values().flat_map(|line| words(line)) {
            *counts.entry(word).or_default() += 1;
        }
        // As bits: they are to be the very same.
        let sum = document.lines.values().fold(0.0, |sum, line| sum + density(line));
        densities.insert(document.name.clone(), f64::to_bits(sum));
    }
    (counts, densities)
}

async fn check(centre: &Centre<Centred>, documents: &[Document], when: &str) -> Result {
    for document in documents {
        document.link.wait_applied(document.master.status().published.seq).await?;
    }
    let (counts, sums) = recomputed(documents);
    let totals = totals().all(centre).await?.value;
    if totals.iter().cloned().collect::<BTreeMap<_, _>>() != counts {
        return Err(format!("{when}: the counts of the centre are not those of the texts").into());
    }
    let found = densities().all(centre).await?.value.into_iter();
    if found.map(|(name, sum)| (name, sum.to_bits())).collect::<BTreeMap<_, _>>() != sums {
        return Err(format!("{when}: the densities of the centre are not those of the texts").into());
    }
    let all: u64 = totals.iter().map(|(_, count)| count).sum();
    println!("{when}: {all} words, {} different ones, in {} documents, as recomputed", totals.len(), documents.len());
    Ok(())
}

#[tokio::main]
async fn main() -> Result {
    let store = DerivedStore::builder(MemoryStore::new()).derive(totals()).derive(densities()).open().await?;
    let centre = Centre::open(store).await?;
    let docs = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"))?;
    let mut paths: Vec<_> = docs.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    let mut documents = Vec::new();
    for path in &paths {
        documents.push(Document::open(path, &centre).await?);
    }
    for document in &documents {
        document.write_all().await?;
    }
    check(&centre, &documents, "as they are").await?;
    let mut most = totals().all(&centre).await?.value;
    most.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    for (word, count) in most.iter().take(10) {
        println!("{count:>7}  {word}");
    }
    for document in &mut documents {
        document.edit().await?;
    }
    check(&centre, &documents, "edited").await?;
    let first = documents.first_mut().ok_or("there are no documents")?;
    first.restart().await?;
    let config = LinkConfig::new(LinkId::new(&first.name)?, SlaveConfig::new("centre"));
    first.link = centre.link(config).await?;
    first.follow().await?;
    first.edit().await?;
    check(&centre, &documents, "after a restart").await?;
    let last = documents.pop().ok_or("there are no documents")?;
    last.link.shutdown().await?;
    centre.unlink(&LinkId::new(&last.name)?, Unlinked::RemoveData).await?;
    check(&centre, &documents, &format!("without {}", last.name)).await?;
    centre.shutdown().await?;
    Ok(())
}
