//! Golden bytes: formats are promises. `tests/golden` holds one file for each thing that is sent or stored; what this
//! program writes must be these bytes, and these bytes must mean the same to it.
//!
//! A file that changes is a new version of a format. `REPLIKV_REGENERATE_GOLDEN=1` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::support::{CRITICAL, MORE, decode_all, encode, ops, preamble, seal};
use bytes::{Bytes, BytesMut};
use replikv_core::{
    Batch, Coverage, Cursor, Digest, EncodedOps, Epoch, Fill, Fingerprint, KeyRange, KeyRanges, Keyspace, Op, Position,
    Seq, SourceId, StoreLimits, Subspace,
};
use replikv_proto::layout::{Backup, Checkpoint, Epochs, Floor, Head, Identity, Kept, Role, Stored, Superseded};
use replikv_proto::{
    Above, Ack, Answered, AnsweredBody, Claim, ClaimState, Compacted, Compaction, Compare, Compared, Content,
    EpochStart, FRAME_HEADER_LEN, Fence, FenceRequest, Filtered, Goodbye, GoodbyeReason, Heartbeat, Held, Hello, Lag,
    LogParts, Message, Mode, OnDivergence, Passage, PathNode, PreparedRecord, Probe, Probed, RangeSummary, ReadAt,
    ReadFailure, Record, RecordDraft, RecordHeader, RecordKind, Records, Reject, RejectCode, Request, RequestBody,
    Response, Resync, Share, Skipped, Slot, Subscription, Summary, TombstoneFloor, Touched, Verdict, WaitFor, Welcome,
    origin, read_stretch,
};

fn source() -> SourceId {
    SourceId::from_bytes(*b"a source's bytes")
}

const EPOCH: Epoch = Epoch { number: 1, nonce: 0x0102_0304_0506_0708 };
/// Another one of the same history.
const SECOND: Epoch = Epoch { number: 2, nonce: 9 };
const LIMITS: StoreLimits = StoreLimits { max_key: 511, max_value: 1 << 20, max_batch: 64 << 20 };

fn position(seq: u64) -> Position {
    Position { source: source(), epoch: EPOCH, seq: Seq::new(seq), digest: Digest::from_bytes(*b"a record's diges") }
}

fn cursor_that_copies() -> Cursor {
    let mut coverage = Coverage::begin(KeyRange::from_bounds("users/".."users0"));
    assert!(coverage.advance(&KeyRange::from_bounds("users/".."users/m"), position(320)));
    Cursor { position: position(300), coverage }
}

fn cursor_that_compares() -> Cursor {
    let mut coverage = Coverage::new(KeyRange::all(), Fill::Compare);
    assert!(coverage.cover(&KeyRange::from_bounds("users/".."users/m"), position(320)));
    assert!(coverage.cover(&KeyRange::from_bounds("y"..), position(310)));
    Cursor { position: position(300), coverage }
}

fn question() -> Compare {
    let summary = |from: &'static str, to: Option<&'static str>, count| RangeSummary {
        range: KeyRange::new(Bytes::from_static(from.as_bytes()), to.map(|to| Bytes::from_static(to.as_bytes()))),
        count,
        fingerprint: Fingerprint::from_bytes(*b"sixteen bytes of"),
    };
    Compare {
        ranges: vec![
            summary("", Some("users/bo"), 256),
            summary("users/bo", Some("users/c"), 300),
            summary("users/x", Some("w"), 2),
            summary("x", None, 0),
        ],
    }
}

fn messages() -> Vec<(&'static str, Message)> {
    let hello = |cursor| Hello {
        slave: "edge-1".into(),
        nonce: 77,
        cursor,
        holds_data: false,
        checkpoints: vec![position(256)],
        limits: LIMITS,
        ranges: Vec::new(),
        path: Vec::new(),
        temporary: false,
        on_divergence: OnDivergence::Refuse,
    };
    let welcome = |mode| Welcome {
        source: source(),
        epochs: vec![EpochStart { epoch: EPOCH, first: Seq::new(1) }],
        head: position(1000),
        floor: position(256),
        limits: LIMITS,
        mode,
        heartbeat_ms: 5000,
        log_bytes: 123_456,
        behind_bytes: 78_900,
        verifies: false,
        path: Vec::new(),
        checkpoints: match mode {
            Mode::Copy { .. } | Mode::Compare { .. } | Mode::Resync { .. } => vec![position(256), position(512)],
            _ => Vec::new(),
        },
    };
    let records = Records { parts: records().into_iter().map(|(_, bytes)| bytes).collect() };
    let content = Content {
        range: KeyRange::from_bounds("users/".."users/m"),
        read_at: position(320),
        entries: ops(Batch::new().put("users/alice", "1").put("users/bob", "")),
    };
    let progress = (Seq::new(300), Seq::new(299), true);
    let (applied, durable, consistent) = progress;
    let words = || "in words".to_owned();
    let probe = |entries| Probe { range: KeyRange::from_bounds("users/".."users0"), max_bytes: 262_144, entries };
    let probed = |held| Probed { range: KeyRange::from_bounds("users/".."users/m"), at: position(320), held };
    let summary = Summary { count: 2, bytes: 29, fingerprint: Fingerprint::from_bytes(*b"sixteen bytes of") };
    let held = ops(Batch::new().put("users/alice", "1").put("users/bob", ""));
    vec![
        ("frame_16_probe", Message::Probe(probe(false))),
        ("frame_16_probe_for_entries", Message::Probe(probe(true))),
        ("frame_17_probed", Message::Probed(probed(Held::Summary(summary)))),
        ("frame_17_probed_entries", Message::Probed(probed(Held::Entries(held)))),
        ("frame_01_hello_first", Message::Hello(hello(None))),
        ("frame_01_hello_again", Message::Hello(hello(Some(Cursor::at(position(300)))))),
        ("frame_01_hello_in_mid_copy", Message::Hello(hello(Some(cursor_that_copies())))),
        ("frame_01_hello_of_ranges", Message::Hello(Hello { ranges: ranges().into(), ..hello(None) })),
        ("frame_19_filtered", Message::Filtered(filtered())),
        ("frame_01_hello_in_mid_comparison", Message::Hello(hello(Some(cursor_that_compares().for_hello())))),
        (
            "frame_01_hello_resync",
            Message::Hello(Hello { on_divergence: OnDivergence::Resync, ..hello(Some(Cursor::at(position(300)))) }),
        ),
        (
            "frame_01_hello_adopt_source",
            Message::Hello(Hello {
                on_divergence: OnDivergence::AdoptSource,
                ..hello(Some(Cursor::at(position(300))))
            }),
        ),
        ("frame_02_challenge", Message::Challenge(Bytes::from_static(b"opaque"))),
        ("frame_03_auth", Message::Auth(Bytes::from_static(b"opaque"))),
        ("frame_04_welcome_resume", Message::Welcome(welcome(Mode::Resume))),
        ("frame_04_welcome_copy", Message::Welcome(welcome(Mode::Copy { from: position(1000) }))),
        ("frame_04_welcome_compare", Message::Welcome(welcome(Mode::Compare { from: position(1000) }))),
        ("frame_04_welcome_wait", Message::Welcome(welcome(Mode::Wait))),
        (
            "frame_04_welcome_resync",
            Message::Welcome(welcome(Mode::Resync {
                from: position(1000),
                reason: RejectCode::SlaveAhead,
                ancestor: Some(position(256)),
            })),
        ),
        ("frame_04_welcome_verifies", Message::Welcome(Welcome { verifies: true, ..welcome(Mode::Resume) })),
        (
            "frame_04_welcome_path",
            Message::Welcome(Welcome {
                verifies: true,
                path: vec![
                    PathNode { name: "relay-1".into(), nonce: 77 },
                    PathNode { name: "relay-2".into(), nonce: 300 },
                ],
                ..welcome(Mode::Resume)
            }),
        ),
        ("frame_05_reject", Message::Reject(Reject { code: RejectCode::Busy, words: words(), retry: true })),
        ("frame_05_reject_loop", Message::Reject(Reject { code: RejectCode::Loop, words: words(), retry: false })),
        ("frame_06_records", Message::Records(records)),
        ("frame_07_ack", Message::Ack(Ack { applied, durable, consistent })),
        (
            "frame_08_heartbeat_source",
            Message::Heartbeat(Heartbeat::Source { head: position(1000), log_bytes: 123_456, time: 1_700_000_000_000 }),
        ),
        (
            "frame_08_heartbeat_relay",
            Message::Heartbeat(Heartbeat::Relay {
                head: position(1000),
                log_bytes: 123_456,
                time: 1_700_000_000_000,
                above: Above { lag: Some(Lag { seqs: 3, bytes: 300, millis: 40 }), silence_ms: Some(2_000) },
            }),
        ),
        ("frame_08_heartbeat_follower", Message::Heartbeat(Heartbeat::Follower { applied, durable, consistent })),
        ("frame_09_compare", Message::Compare(question())),
        ("frame_10_ranges", Message::Ranges(content)),
        ("frame_11_request", Message::Request(Request { id: 5, body: RequestBody::Status })),
        ("frame_11_request_standing", ask(RequestBody::Standing)),
        (
            "frame_11_request_get",
            ask(RequestBody::Get { key: key(), after: Some(WaitFor::Token(position(300).into())), most: 1 << 20 }),
        ),
        (
            "frame_11_request_get_drawn",
            ask(RequestBody::Get {
                key: Bytes::from_static(b"k"),
                after: Some(WaitFor::Seq(Seq::new(300))),
                most: 1 << 16,
            }),
        ),
        (
            "frame_11_request_scan",
            ask(RequestBody::Scan {
                range: KeyRange::from_bounds("a".."b"),
                max_entries: 1000,
                max_bytes: 1 << 16,
                reverse: true,
                after: Some(WaitFor::Seq(Seq::new(300))),
                most: 1 << 20,
            }),
        ),
        ("frame_11_request_wait", ask(RequestBody::Wait(WaitFor::Token(position(300).into())))),
        ("frame_11_request_forget", ask(RequestBody::Forget { id: 4 })),
        ("frame_11_request_hand_over", ask(RequestBody::HandOver { slave: "standby".into(), patience_ms: 60_000 })),
        (
            "frame_11_request_fence",
            ask(RequestBody::Fence(FenceRequest { source: source(), epoch: SECOND, by: "standby".into() })),
        ),
        ("frame_11_request_unknown", ask(RequestBody::Unknown(Bytes::from_static(b"\x01\x63more")))),
        ("frame_12_response", Message::Response(Response { id: 5, body: Ok(Bytes::from_static(b"{}")) })),
        ("frame_12_response_none", Message::Response(Response { id: 5, body: Err(words()) })),
        ("frame_13_goodbye", Message::Goodbye(Goodbye { reason: GoodbyeReason::Trimmed, words: words() })),
        (
            "frame_14_compared",
            Message::Compared(Compared {
                read_at: position(1000),
                verdicts: vec![Verdict::Equal(300), Verdict::Split(2), Verdict::Equal(1)],
                start: Bytes::from_static(b"users/m"),
            }),
        ),
        (
            "touched",
            Message::Touched(Touched {
                read_at: position(320),
                end: Some(position(256)),
                ops: ops(Batch::new().delete_range("a".."b").put("key", "value").delete("old")),
            }),
        ),
        (
            "touched_more_follows",
            Message::Touched(Touched { read_at: position(320), end: None, ops: ops(Batch::new().delete("old")) }),
        ),
        ("frame_18_answered_value", answered(AnsweredBody::Value(read_at(), Some(Bytes::from_static(b"value"))))),
        ("frame_18_answered_missing", answered(AnsweredBody::Value(ReadAt::default(), None))),
        (
            "frame_18_answered_page",
            answered(AnsweredBody::Page(
                read_at(),
                Some(KeyRange::from_bounds("key\0".."x")),
                ops(Batch::new().put("key", "value")),
            )),
        ),
        ("frame_18_answered_reached", answered(AnsweredBody::Reached)),
        ("frame_18_answered_behind", answered(AnsweredBody::Failed(ReadFailure::Behind { at: Seq::new(299) }))),
        (
            "frame_18_answered_failed",
            answered(AnsweredBody::Failed(ReadFailure::Store { words: words(), retry: true })),
        ),
    ]
}

fn key() -> Bytes {
    Bytes::from_static(b"key")
}

fn ranges() -> KeyRanges {
    KeyRanges::new([KeyRange::from_bounds("aa".."c"), KeyRange::prefix("key")])
}

/// A run, and two records: one of which a part lies within the ranges, and one of which nothing does.
fn filtered() -> Filtered {
    let records: Vec<_> = records().into_iter().map(|(_, bytes)| Record::decode(bytes).unwrap()).collect();
    let log_bytes = records[..2].iter().map(|record| record.bytes().len() as u64).sum();
    let run = Passage::Skipped(Skipped { through: records[1].position(), log_bytes, time: 1_700_000_000_000 });
    let share = |index: usize| Passage::Share(Share::of(&records[index], &ranges()));
    Filtered { passages: vec![run, share(2), share(4)] }
}

fn ask(body: RequestBody) -> Message {
    Message::Request(Request { id: 5, body })
}

fn answered(body: AnsweredBody) -> Message {
    Message::Answered(Answered { id: 5, body })
}

fn read_at() -> ReadAt {
    ReadAt {
        includes: Some(position(300)),
        shows: Some(position(301)),
        consistent: true,
        lag: Some(Lag { seqs: 7, bytes: 700, millis: 70 }),
        last_contact_ms: Some(12),
    }
}

/// One record of each kind, with and without a note, one after another.
fn records() -> Vec<(&'static str, Bytes)> {
    let mut at = origin(source(), EPOCH);
    let mut record = |name, kind, note: &'static [u8], body: EncodedOps| {
        let draft = RecordDraft { epoch: EPOCH, kind, time: 1_700_000_000_000, note, body: body.as_bytes() };
        let record = PreparedRecord::after(&at, &draft).unwrap();
        at = record.position();
        let mut bytes = BytesMut::new();
        record.append_to(&mut bytes);
        (name, bytes.freeze())
    };
    let all = Batch::new().put("key", "value").delete("old").delete_range("a".."b").delete_range("x"..);
    vec![
        record("record_1_epoch", RecordKind::Epoch, b"", EncodedOps::default()),
        record("record_2_base", RecordKind::Base, b"", EncodedOps::default()),
        record("record_3_batch", RecordKind::Batch, b"", ops(all)),
        record("record_4_batch_note", RecordKind::Batch, b"a note", ops(Batch::new().put("key", ""))),
        record("record_5_note_alone", RecordKind::Batch, b"a note alone", EncodedOps::default()),
    ]
}

/// What the golden records come to when they are compacted: what is written to the log, and to `Meta`.
fn compaction() -> [(&'static str, Bytes); 2] {
    let records: Vec<_> = records().into_iter().map(|(_, bytes)| Record::decode(bytes).unwrap()).collect();
    let log_bytes = records.iter().map(|record| record.bytes().len() as u64).sum();
    let parts = LogParts::new(Floor { position: origin(source(), EPOCH), log_bytes: 0 });
    let head = Head { position: records.last().unwrap().position(), log_bytes, uptime_ms: 777 };
    let compaction = Compaction { window_bytes: 0, window_records: 0 };
    let mut folding = compaction.fold(&parts, &head, &records, 1024, None, &[]).unwrap().unwrap();
    let index = vec![None; folding.index_keys().len()];
    assert!(folding.found(&index).unwrap().is_empty());
    let step = folding.finish(&[]).unwrap().unwrap();
    let written = |keyspace| {
        let mut bytes = BytesMut::new();
        let ops = step.writes.ops().filter(|(found, op)| *found == keyspace && matches!(op, Op::Put { .. }));
        ops.for_each(|(_, op)| op.encode_into(&mut bytes));
        bytes.freeze()
    };
    [("compaction_log", written(Keyspace::Log)), ("compaction_meta", written(Keyspace::Meta))]
}

#[test]
fn the_golden_bytes_of_a_run_mean_what_they_meant() {
    let written = EncodedOps::from_bytes(golden("compaction_log").into()).unwrap();
    let mut entries: Vec<_> = written
        .iter()
        .map(|op| match op {
            Op::Put { key, value } => (written.as_bytes().slice_ref(key), written.as_bytes().slice_ref(value)),
            other => panic!("{other:?}"),
        })
        .collect();
    entries.sort_unstable();
    let stretch = read_stretch(entries, true, Seq::ZERO, usize::MAX).unwrap().unwrap();
    assert_eq!(stretch.end.seq, Seq::new(5));
    assert_eq!(stretch.touched, ["key", "old"]);
    assert_eq!(stretch.deleted, [KeyRange::from_bounds("a".."b"), KeyRange::from_bounds("x"..)]);
}

/// Whether a stored form means what it should.
type Meaning = fn(&[u8]) -> bool;

fn stored() -> Vec<(&'static str, Bytes, Meaning)> {
    fn same<T: Stored + PartialEq>(bytes: &[u8], value: &T) -> bool {
        T::from_bytes(bytes).is_ok_and(|found| found == *value)
    }
    fn head() -> Head {
        Head { position: position(1000), log_bytes: 123_456, uptime_ms: 999_999 }
    }
    fn floor() -> Floor {
        Floor { position: position(256), log_bytes: 44_556 }
    }
    fn epochs() -> Epochs {
        let start = |epoch, first| EpochStart { epoch, first: Seq::new(first) };
        Epochs(vec![start(EPOCH, 1), start(SECOND, 700)])
    }
    fn checkpoint() -> Checkpoint {
        Checkpoint { position: position(512), log_bytes: 55_667, uptime_ms: 777 }
    }
    fn resync() -> Resync {
        Resync { reason: RejectCode::Diverged, was: position(300), ancestor: Some(position(256)) }
    }
    fn subscription() -> Subscription {
        Subscription { ranges: ranges(), dropping: KeyRange::from_bounds("x"..).into() }
    }
    fn backup() -> Backup {
        Backup { taken_unix_ms: Some(1_700_000_000_000) }
    }
    fn claim() -> Claim {
        Claim::new(&Subspace::raw("edge-1/"))
    }
    fn stripping() -> Claim {
        claim().stripping(&Subspace::raw("users/"))
    }
    fn superseded() -> Superseded {
        Superseded { by: Some(SECOND) }
    }
    fn fence() -> Fence {
        Fence { source: source(), epoch: SECOND, store: 300, own: true, by: "standby".into() }
    }
    fn compacted() -> Compacted {
        Compacted { position: position(512), log_bytes: 55_667, entries: 300, runs: 7, bytes: 12_345 }
    }
    fn slot() -> Slot {
        Slot { position: position(300), seen_unix_ms: 1_700_000_000_000, seen_uptime_ms: 777 }
    }
    vec![
        ("stored_identity_master", Identity::master(source()).to_bytes(), |b| same(b, &Identity::master(source()))),
        ("stored_identity_slave", Identity { role: Role::Slave, source: None }.to_bytes(), |b| {
            same(b, &Identity::slave())
        }),
        ("stored_identity_centre", Identity::centre().to_bytes(), |b| same(b, &Identity::centre())),
        ("stored_claim", claim().to_bytes(), |b| same(b, &claim())),
        ("stored_claim_removing", claim().given_up(ClaimState::Removing).to_bytes(), |b| {
            same(b, &claim().given_up(ClaimState::Removing))
        }),
        ("stored_claim_that_strips", stripping().to_bytes(), |b| same(b, &stripping())),
        ("stored_superseded", superseded().to_bytes(), |b| same(b, &superseded())),
        ("stored_superseded_by_itself", Superseded { by: None }.to_bytes(), |b| same(b, &Superseded { by: None })),
        ("stored_fence", fence().of_copy().to_bytes(), |b| same(b, &fence().of_copy())),
        ("stored_fence_own", fence().to_bytes(), |b| same(b, &fence())),
        ("stored_head", head().to_bytes(), |b| same(b, &head())),
        ("stored_floor", floor().to_bytes(), |b| same(b, &floor())),
        ("stored_kept", Kept { limits: LIMITS }.to_bytes(), |b| same(b, &Kept { limits: LIMITS })),
        ("stored_epochs", epochs().to_bytes(), |b| same(b, &epochs())),
        ("stored_checkpoint", checkpoint().to_bytes(), |b| same(b, &checkpoint())),
        ("stored_resync", resync().to_bytes(), |b| same(b, &resync())),
        ("stored_subscription", subscription().settled().to_bytes(), |b| same(b, &subscription().settled())),
        ("stored_subscription_dropping", subscription().to_bytes(), |b| same(b, &subscription())),
        ("stored_backup", backup().to_bytes(), |b| same(b, &backup())),
        ("stored_backup_begun", Backup { taken_unix_ms: None }.to_bytes(), |b| {
            same(b, &Backup { taken_unix_ms: None })
        }),
        ("stored_compacted", compacted().to_bytes(), |b| same(b, &compacted())),
        ("stored_tombstone_floor", TombstoneFloor(floor()).to_bytes(), |b| same(b, &TombstoneFloor(floor()))),
        ("stored_slot", slot().to_bytes(), |b| same(b, &slot())),
        ("stored_cursor", Cursor::at(position(300)).to_bytes(), |b| {
            Cursor::from_bytes(b) == Some(Cursor::at(position(300)))
        }),
        ("stored_cursor_in_mid_copy", cursor_that_copies().to_bytes(), |b| {
            Cursor::from_bytes(b) == Some(cursor_that_copies())
        }),
        ("stored_cursor_in_mid_comparison", cursor_that_compares().to_bytes(), |b| {
            Cursor::from_bytes(b) == Some(cursor_that_compares())
        }),
    ]
}

/// An ack in three frames, and the headers of a message that is longer than a frame.
fn fragments() -> [(&'static str, Vec<u8>); 2] {
    let ack = encode(&Message::Ack(Ack { applied: Seq::new(300), durable: Seq::new(299), consistent: true }));
    let payload = &ack[FRAME_HEADER_LEN..];
    let cut = [
        seal(7, CRITICAL | MORE, 0, 0, &payload[..1]),
        seal(7, CRITICAL | MORE, 0, 0, &payload[1..4]),
        seal(7, CRITICAL, 0, 0, &payload[4..]),
    ];
    let long = encode(&Message::Records(Records { parts: vec![Bytes::from(vec![b'r'; (1 << 20) + 3])] }));
    let headers = [&long[..FRAME_HEADER_LEN], &long[FRAME_HEADER_LEN + (1 << 20)..]].concat();
    [("fragments_of_an_ack", cut.concat()), ("fragments_of_a_long_message_headers", headers)]
}

fn everything() -> BTreeMap<&'static str, Vec<u8>> {
    let mut all = BTreeMap::from([("preamble", preamble())]);
    all.extend(messages().iter().map(|(name, message)| (*name, encode(message))));
    all.extend(records().into_iter().map(|(name, bytes)| (name, bytes.to_vec())));
    all.extend(stored().into_iter().map(|(name, bytes, _)| (name, bytes.to_vec())));
    all.extend(compaction().into_iter().map(|(name, bytes)| (name, bytes.to_vec())));
    all.extend(fragments());
    all
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Its name, then sixteen bytes a line: offset, hex, and as text what is text.
fn to_hex(name: &str, bytes: &[u8]) -> String {
    let mut out = format!("# {}\n", name.replace('_', " "));
    for (index, line) in bytes.chunks(16).enumerate() {
        let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = line.iter().map(|&b| if b.is_ascii_graphic() { char::from(b) } else { '.' }).collect();
        writeln!(out, "{:<47}  # {:04x} {text}", hex.join(" "), index * 16).unwrap();
    }
    out
}

fn from_hex(text: &str) -> Vec<u8> {
    let code = text.lines().map(|line| line.split('#').next().unwrap_or(""));
    code.flat_map(str::split_whitespace).map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn golden(name: &str) -> Vec<u8> {
    let path = directory().join(name).with_extension("hex");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    from_hex(&text)
}

#[test]
fn what_is_written_is_the_golden_bytes() {
    if std::env::var_os("REPLIKV_REGENERATE_GOLDEN").is_some() {
        for (name, bytes) in everything() {
            std::fs::write(directory().join(name).with_extension("hex"), to_hex(name, &bytes)).unwrap();
        }
    }
    for (name, bytes) in everything() {
        let expected = golden(name);
        assert!(bytes == expected, "{name} has changed:\n{}was:\n{}", to_hex(name, &bytes), to_hex(name, &expected));
    }
}

#[test]
fn every_golden_file_is_looked_at() {
    let files = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort_unstable();
    assert_eq!(names, everything().into_keys().collect::<Vec<_>>());
}

#[test]
fn the_golden_bytes_of_messages_mean_what_they_meant() {
    assert_eq!(golden("preamble"), preamble());
    for (name, message) in messages() {
        let (found, error) = decode_all(&golden(name));
        assert_eq!((found.len(), error), (1, None), "{name}");
        let joined = |message: &Message| match message {
            Message::Records(records) => Message::Records(Records { parts: vec![records.parts.concat().into()] }),
            other => other.clone(),
        };
        assert_eq!(joined(&found[0]), joined(&message), "{name}");
    }
    let ack = Message::Ack(Ack { applied: Seq::new(300), durable: Seq::new(299), consistent: true });
    assert_eq!(decode_all(&golden("fragments_of_an_ack")), (vec![ack], None));
}

#[test]
fn each_message_is_named_in_words_as_its_file_is() {
    for (file, message) in messages() {
        let kind = file.trim_start_matches("frame_").trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
        let first = message.name().split(' ').next();
        assert!(first.is_some_and(|name| !name.is_empty() && kind.starts_with(name)), "{file}: {}", message.name());
    }
}

#[test]
fn the_golden_bytes_of_records_mean_what_they_meant() {
    let mut at = origin(source(), EPOCH);
    for (name, expected) in records() {
        let record = Record::decode(golden(name).into()).unwrap();
        record.header().verify_after(&at).unwrap();
        assert_eq!(record, Record::decode(expected).unwrap(), "{name}");
        at = record.position();
    }
    assert_eq!(at.digest, digest_by_hand());
}

/// The digest of the last record, computed as docs/protocol.md says.
fn digest_by_hand() -> Digest {
    let hash = |parts: &[&[u8]]| -> [u8; 16] { blake3::hash(&parts.concat()).as_bytes()[..16].try_into().unwrap() };
    let mut digest = hash(&[b"replikv record chain v1", source().as_bytes()]);
    for (_, bytes) in records() {
        let record = Record::decode(bytes).unwrap();
        let RecordHeader { epoch, seq, time, kind, note, .. } = record.header();
        let body = hash(&[record.body().as_bytes()]);
        digest = hash(&[
            &digest,
            &epoch.number.to_le_bytes(),
            &epoch.nonce.to_le_bytes(),
            &seq.as_u64().to_le_bytes(),
            &time.to_le_bytes(),
            &[*kind as u8],
            &(note.len() as u64).to_le_bytes(),
            note,
            &body,
        ]);
    }
    Digest::from_bytes(digest)
}

#[test]
fn the_golden_bytes_of_what_is_stored_mean_what_they_meant() {
    for (name, _, means_the_same) in stored() {
        assert!(means_the_same(&golden(name)), "{name}");
    }
}
