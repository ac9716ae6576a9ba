//! Running the program.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use replikv::{
    Coverage, Fill, KeyRanges, Keyspace, LinkId, LmdbOptions, LmdbStore, Op, ReplicaStore, ReplicaStoreExt, meta,
};
use serde_json::Value;

/// Only turns a hang into a failure.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// What a command that has ended leaves.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.code(0)
    }

    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.text().lines().collect()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Every line of output parses as JSON.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &&str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.lines().iter().map(parse).collect()
    }

    /// It said no in one line on standard error, and nothing on standard output.
    #[track_caller]
    pub(crate) fn says(self, code: i32, words: &str) -> Self {
        let said = self.code(code);
        assert!(said.stdout.is_empty(), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        assert!(said.stderr.starts_with("replikv: ") && said.stderr.ends_with('\n'), "{said:?}");
        assert!(said.stderr.contains(words), "{words:?} is not said: {said:?}");
        said
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replikv"));
    command.env_remove("REPLIKV_LOG");
    command
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(args: &[&str]) -> Ended {
    Running::spawn(args).end()
}

/// Runs a command that is given all its standard input at once.
#[track_caller]
pub(crate) fn run_with(args: &[&str], input: &[u8]) -> Ended {
    let mut running = Running::spawn(args);
    // A command that has said no reads no further.
    drop(running.input().write_all(input));
    running.end()
}

/// A command that runs.
#[derive(Debug)]
pub(crate) struct Running {
    child: Option<Child>,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Running {
    pub(crate) fn spawn(args: &[&str]) -> Self {
        let pipe = Stdio::piped;
        let mut child = program().args(args).stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
        let input = child.stdin.take();
        let lines =
            lines_of(child.stdout.take().unwrap(), |bytes| bytes.iter().map(|byte| char::from(*byte)).collect());
        let errors = lines_of(child.stderr.take().unwrap(), |bytes| String::from_utf8(bytes).unwrap());
        Self { child: Some(child), input, lines, errors }
    }

    /// A master that serves, and its address.
    #[track_caller]
    pub(crate) fn master(store: &str, more: &[&str]) -> (Self, String) {
        let args = [&["serve", "--store", store, "--listen", "127.0.0.1:0"], more].concat();
        let running = Self::spawn(&args);
        let ready = running.line();
        let address = ready.strip_prefix(&format!("serving {store} on ")).unwrap_or_else(|| panic!("{ready}"));
        (running, address.to_string())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn input(&mut self) -> &mut ChildStdin {
        self.input.as_mut().unwrap()
    }

    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// The next line of standard output.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.next(&self.lines)
    }

    /// The next line of standard error.
    #[track_caller]
    pub(crate) fn error_line(&self) -> String {
        self.next(&self.errors)
    }

    #[track_caller]
    fn next(&self, lines: &Receiver<String>) -> String {
        match lines.recv_timeout(HANG) {
            Ok(line) => line.trim_end_matches('\n').into(),
            Err(RecvTimeoutError::Timeout) => panic!("it says nothing"),
            Err(RecvTimeoutError::Disconnected) => panic!("it has ended: {:?}", self.errors.iter().collect::<String>()),
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.id())]).status().unwrap();
        assert!(sent.success());
    }

    /// The end of whichever comes to it first.
    #[track_caller]
    pub(crate) fn first_to_end<const N: usize>(mut running: [Self; N]) -> Ended {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < HANG, "nobody ends");
            for one in &mut running {
                if one.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                    let ended = Self {
                        child: one.child.take(),
                        input: None,
                        lines: std::mem::replace(&mut one.lines, channel().1),
                        errors: std::mem::replace(&mut one.errors, channel().1),
                    };
                    return ended.end_by_itself();
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        self.input = None;
        self.end_by_itself()
    }

    /// Waits for its end, with its standard input left open.
    #[track_caller]
    pub(crate) fn end_by_itself(mut self) -> Ended {
        let mut child = self.child.take().unwrap();
        let start = Instant::now();
        let mut bytes = Vec::new();
        // The pipes close when it ends.
        let code = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None if start.elapsed() > HANG => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    panic!("it hangs");
                }
                None => match self.lines.recv_timeout(Duration::from_millis(5)) {
                    Ok(line) => bytes.extend(line.chars().map(|byte| byte as u8)),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(1)),
                },
            }
        };
        for line in &self.lines {
            bytes.extend(line.chars().map(|byte| byte as u8));
        }
        Ended { code, stdout: bytes, stderr: self.errors.iter().collect() }
    }

    /// Ends it with a signal.
    #[track_caller]
    pub(crate) fn interrupt(self, name: &str) -> Ended {
        self.signal(name);
        self.end_by_itself()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

// Bytes are carried as the characters of their numbers: a line may hold anything.
fn lines_of(output: impl Read + Send + 'static, words: fn(Vec<u8>) -> String) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            match output.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => drop(sender.send(words(line))),
            }
        }
    });
    lines
}

/// A place for stores and files.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    pub(crate) fn lmdb(&self, name: &str) -> String {
        self.url("lmdb", name)
    }

    pub(crate) fn url(&self, kind: &str, name: &str) -> String {
        if kind == "memory" { "memory:".into() } else { format!("{kind}:{}", self.path(name).display()) }
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.name(name)
    }

    /// An LMDB store with a few entries.
    pub(crate) fn filled(&self, name: &str) -> String {
        let url = self.lmdb(name);
        fill(&url, &[("apple", "1"), ("banana", "2"), ("cherry", "3"), ("damson", "4")]);
        url
    }
}

#[track_caller]
pub(crate) fn fill(store: &str, entries: &[(&str, &str)]) {
    let lines: String = entries
        .iter()
        .map(|(key, value)| serde_json::json!({ "key": key, "value": value }).to_string() + "\n")
        .collect();
    run_with(&["import", "--store", store, "-"], lines.as_bytes()).ok();
}

/// Everything in a store, as NDJSON.
#[track_caller]
pub(crate) fn contents(store: &str) -> String {
    run(&["export", "--store", store]).ok().text().into()
}

/// Puts an entry into an LMDB store that nobody has open, past whoever it belongs to.
pub(crate) fn tamper(path: &Path, key: &str, value: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let held = LmdbStore::open(path, LmdbOptions::default()).unwrap();
        let put = Op::Put { key: key.as_bytes(), value: value.as_bytes() };
        held.apply_one(Keyspace::Data, put).await.unwrap();
        held.close().await.unwrap();
    });
}

/// Puts a slave, whose LMDB store nobody has open, back into the middle of its copy.
pub(crate) fn put_back_into_copy(path: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let held = LmdbStore::open(path, LmdbOptions::default()).unwrap();
        let link = LinkId::default();
        let mut cursor = held.cursor(&link).await.unwrap().unwrap();
        cursor.coverage = Coverage::within(&KeyRanges::all(), Fill::Copy);
        let (key, value) = (meta::cursor_key(&link), cursor.to_bytes());
        held.apply_one(Keyspace::Meta, Op::Put { key: &key, value: &value }).await.unwrap();
        held.close().await.unwrap();
    });
}

/// Waits until a file is there.
#[track_caller]
pub(crate) fn appears(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < HANG, "{} does not appear", path.display());
        thread::sleep(Duration::from_millis(2));
    }
}
