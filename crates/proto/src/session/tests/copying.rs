//! Copy under writes: what the master frames, and when; and that a cursor says all that a copy needs to go on.

use super::*;
use crate::{Decoder, DecoderLimits, Encoder, Event, RejectCode, Request, RequestBody, Response, Stretch};

/// A master that was just asked for its first page, and the range that it was asked for.
fn first_page(history: &History) -> (MasterSession, KeyRange) {
    let mut master = streaming(history, None);
    let Some(MasterAction::ReadPage { range, .. }) = master.poll_action() else { panic!("a page") };
    assert_eq!(range, KeyRange::all());
    (master, range)
}

fn sent_content(action: Option<MasterAction>) -> Content {
    match action {
        Some(MasterAction::Send(Message::Ranges(content))) => content,
        other => panic!("expected content, got {other:?}"),
    }
}

fn reads_page(action: Option<&MasterAction>) -> bool {
    matches!(action, Some(MasterAction::ReadPage { .. }))
}

fn half() -> KeyRange {
    KeyRange::from_bounds(.."m")
}

fn put(key: &str) -> Batch {
    Batch::new().put(key, "1")
}

// Else an old page overwrites a newer record.
#[test]
fn from_the_request_of_a_page_until_it_is_framed_no_record_is_framed() {
    let mut history = History::of(5).trimmed(5);
    let (mut master, _) = first_page(&history);
    history.write(put("a"));
    master.handle_view(history.view());
    assert!(master.poll_action().is_none(), "the page is being read");

    // A question is answered meanwhile, and nothing slips in behind it.
    master.handle_message(at(1), Message::Request(Request { id: 1, body: RequestBody::Status })).unwrap();
    assert!(matches!(master.poll_action(), Some(MasterAction::Answer(_))));
    master.respond(Response { id: 1, body: Ok(Bytes::new()) });
    assert!(matches!(master.poll_action(), Some(MasterAction::Send(Message::Response(_)))));
    assert!(master.poll_action().is_none(), "the page is still being read");

    let read_at = history.hand(put("b"));
    master.handle_view(history.view());
    master.handle_page(content(half(), read_at, &["b"]));
    history.write(put("c"));
    let unpublished = View { published: history.position(6), ..history.view() };
    master.handle_view(unpublished);
    assert!(master.poll_action().is_none(), "the page waits for its record, and record 6 waits for the page");

    master.handle_view(history.view());
    let Some(MasterAction::Locate(asked)) = master.poll_action() else { panic!("the moment of reading is looked up") };
    assert!(master.poll_action().is_none(), "no record while that is not known");
    master.handle_located(&history.locate(&asked));
    assert_eq!(sent_content(master.poll_action()).read_at, read_at);
    let Some(MasterAction::ReadRecords { after, .. }) = master.poll_action() else { panic!("records") };
    assert_eq!(after, history.position(5), "none was framed before");
}

#[test]
fn content_and_records_take_turns() {
    let mut history = History::of(5).trimmed(5);
    let (mut master, _) = first_page(&history);
    let mut kinds = String::new();
    let mut rest = KeyRange::all();
    for n in 0..4u8 {
        history.write(put("x"));
        history.write(put("y"));
        master.handle_view(history.view());
        let end = Bytes::from(vec![b'a' + n]);
        master.handle_page(content(KeyRange::new(rest.start().clone(), Some(end.clone())), history.head(), &[]));
        rest = KeyRange::new(end, None);
        loop {
            match master.poll_action() {
                Some(MasterAction::Send(Message::Ranges(_))) => kinds.push('p'),
                Some(MasterAction::ReadRecords { after, .. }) => {
                    // One message of records between two pages, however many there are.
                    master.handle_records(history.read(after, 1));
                }
                Some(MasterAction::Send(Message::Records(_))) => kinds.push('r'),
                Some(MasterAction::ReadPage { range, .. }) => {
                    assert_eq!(range, rest);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(kinds, "prprprpr");
}

// Else a page shows what is never published.
#[test]
fn a_page_is_sent_only_once_what_it_may_show_is_published() {
    let mut history = History::of(5).trimmed(5);
    let (mut master, _) = first_page(&history);
    let read_at = history.hand(put("a"));
    master.handle_view(history.view());
    master.handle_page(content(half(), read_at, &["a"]));
    assert!(master.poll_action().is_none());
    history.publish();
    master.handle_view(history.view());
    let page = sent_content(master.poll_action());
    assert_eq!((page.read_at, page.range), (read_at, half()));
}

#[test]
fn a_page_whose_record_failed_is_read_again() {
    let mut history = History::of(5).trimmed(5);
    let (mut master, _) = first_page(&history);
    let read_at = history.hand(put("lost"));
    master.handle_view(history.view());
    master.handle_page(content(half(), read_at, &["lost"]));
    history.fail();
    master.handle_view(history.view());
    assert!(reads_page(master.poll_action().as_ref()), "the page that shows it is dropped");
    master.handle_page(content(half(), history.head(), &[]));
    assert!(sent_content(master.poll_action()).entries.is_empty());
}

#[test]
fn a_page_whose_record_was_replaced_by_another_of_its_number_is_read_again() {
    for others in [1, 2] {
        let mut history = History::of(5).trimmed(5);
        let (mut master, _) = first_page(&history);
        let read_at = history.hand(put("lost"));
        master.handle_view(history.view());
        master.handle_page(content(half(), read_at, &["lost"]));
        history.fail();
        for _ in 0..others {
            history.write(put("other"));
        }
        master.handle_view(history.view());
        let Some(MasterAction::Locate(asked)) = master.poll_action() else { panic!("it is looked up") };
        assert_eq!(asked, [read_at]);
        let located = history.locate(&asked);
        assert_eq!(located, [Located::Mismatch]);
        master.handle_located(&located);
        assert!(reads_page(master.poll_action().as_ref()));
        assert!(master.poll_action().is_none());
    }
}

#[test]
fn a_page_whose_moment_can_no_longer_be_told_is_read_again() {
    let mut history = History::of(5).trimmed(5);
    let (mut master, _) = first_page(&history);
    let read_at = history.hand(put("a"));
    master.handle_view(history.view());
    master.handle_page(content(half(), read_at, &["a"]));
    history.publish();
    history.write(put("b"));
    history.floor = 7;
    master.handle_view(history.view());
    let Some(MasterAction::Locate(asked)) = master.poll_action() else { panic!("it is looked up") };
    assert_eq!(asked, [read_at]);
    master.handle_located(&[Located::Below]);
    assert!(reads_page(master.poll_action().as_ref()));
}

#[test]
fn a_page_that_nobody_asked_for_is_not_sent() {
    let history = History::of(5);
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    master.handle_page(content(KeyRange::all(), history.head(), &["a"]));
    assert!(master.poll_action().is_none());
}

/// What the cursor of a slave is after `messages`, by what it checks itself.
fn cursor_after(history: &History, cursor: Option<Cursor>, mode: Mode, messages: Vec<Message>) -> Cursor {
    let mut slave = SlaveSession::new(slave_config(cursor.clone()), at(0));
    slave.handle_message(at(0), Message::Welcome(welcome(history, mode))).unwrap();
    messages.into_iter().for_each(|message| slave.handle_message(at(0), message).unwrap());
    let mut applier = crate::Applier::new(replikv_core::LinkId::default(), cursor.clone(), 1);
    for action in all_actions(&mut slave) {
        match action {
            SlaveAction::Begin(cursor) => applier.begin(cursor),
            SlaveAction::Apply(record) => applier.push_record(record),
            SlaveAction::Copy(content) => applier.push_content(content),
            _ => {}
        }
    }
    let mut last = cursor;
    while let Some(group) = applier.next_group().unwrap() {
        last = Some(group.cursor);
    }
    // What a slave knows is what its store holds.
    Cursor::from_bytes(&last.unwrap().to_bytes()).unwrap()
}

#[test]
fn a_copy_that_was_cut_goes_on_where_it_was_with_any_parent_of_the_same_history() {
    let mut history = History::of(5).trimmed(5);
    let from = history.head();
    // The first parent reads a page at 7, of which the slave has gone through 6 when the connection breaks.
    history.write(put("a"));
    let read_at = history.write(put("b"));
    let page = Message::Ranges(content(half(), read_at, &["a", "b"]));
    let cut = cursor_after(&history, None, Mode::Copy { from }, vec![page, history.records(5, 6)]);
    assert_eq!((cut.position, cut.is_consistent()), (history.position(6), false));

    // Another parent, with more of the history and a log of its own length.
    history.write(put("z"));
    let parent = history.clone().trimmed(6);
    let mut second = streaming(&parent, Some(cut.clone()));
    let Some(MasterAction::ReadPage { range, .. }) = second.poll_action() else { panic!("the copy goes on") };
    assert_eq!(range, KeyRange::from_bounds("m"..), "where it was");
    second.handle_page(content(range, parent.head(), &["z"]));
    let rest = Message::Ranges(sent_content(second.poll_action()));
    let Some(MasterAction::ReadRecords { after, .. }) = second.poll_action() else { panic!("records") };
    assert_eq!(after, parent.position(6));

    // All is copied, and the slave knows by itself that it has not passed the last moment of reading yet.
    let copied = cursor_after(&parent, Some(cut.clone()), Mode::Resume, vec![rest.clone(), parent.records(6, 7)]);
    assert!(copied.coverage.rest().is_none() && !copied.is_consistent());
    // A third connection brings the rest; nothing about the copy belongs to a connection.
    let mut third = streaming(&parent, Some(copied.clone()));
    assert!(matches!(third.poll_action(), Some(MasterAction::ReadRecords { .. })), "no page is read again");
    let done = cursor_after(&parent, Some(copied), Mode::Resume, vec![parent.records(7, 8)]);
    assert_eq!(done, Cursor::at(parent.head()));
    assert!(done.is_consistent());
}

/// Whether a slave takes `message` from such a master, as it sets its decoder.
fn is_taken(message: &Message) -> bool {
    let (encoder, mut bytes) = (Encoder::new(), BytesMut::new());
    encoder.encode_preamble(&mut bytes);
    encoder.encode(message, &mut bytes).unwrap();
    let mut decoder = Decoder::new(DecoderLimits::for_batches(LIMITS.max_batch));
    loop {
        match decoder.decode(&mut bytes) {
            Ok(Some(Event::Message(_))) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

// Else the slave ends the connection, comes back, and is sent the same for ever.
#[test]
fn what_no_slave_could_take_is_refused_by_name_and_never_sent() {
    let page = |len: usize| {
        let history = History::of(5).trimmed(5);
        let (master, range) = first_page(&history);
        let entries = puts([(&b"k"[..], &vec![0; len][..])]);
        (master, Content { range, read_at: history.head(), entries })
    };
    // Batches of 4 MiB, and 4 MiB beside; what a page is more than its value is that of any other so long.
    let beside = {
        let (_, content) = page(8 << 20);
        Message::Ranges(content).payload().unwrap().iter().map(Bytes::len).sum::<usize>() - (8 << 20)
    };
    for (len, fits) in [((8 << 20) - beside, true), ((8 << 20) - beside + 1, false), (8 << 20, false), (9 << 20, false)]
    {
        let (mut master, content) = page(len);
        assert_eq!(is_taken(&Message::Ranges(content.clone())), fits, "{len}");
        let held = content.entries.byte_len();
        master.handle_page(content);
        match master.poll_action() {
            Some(MasterAction::Send(Message::Ranges(_))) if fits => {}
            Some(MasterAction::Send(Message::Reject(reject))) if !fits => {
                assert_eq!((reject.code, reject.retry), (RejectCode::LimitsTooSmall, false));
                assert!(reject.words.contains(&held.to_string()), "{}", reject.words);
                assert!(matches!(master.poll_action(), Some(MasterAction::Close(Some(_)))));
                assert!(master.poll_action().is_none());
            }
            other => panic!("{len}: {other:?}"),
        }
    }

    // The same of a record.
    let mut history = History::of(5);
    let mut master = streaming(&history, Some(Cursor::at(history.position(5))));
    history.write(Batch::new().put("k", vec![0; 8 << 20]));
    master.handle_view(history.view());
    let Some(MasterAction::ReadRecords { after, max_bytes, .. }) = master.poll_action() else { panic!("records") };
    master.handle_records(history.read(after, max_bytes));
    let Some(MasterAction::Send(Message::Reject(reject))) = master.poll_action() else { panic!("a refusal") };
    assert_eq!(reject.code, RejectCode::LimitsTooSmall);
}

// Else what the keys hold now would come after records that have changed them since.
#[test]
fn while_keys_are_looked_up_nothing_else_is_read() {
    let history = History::of(9);
    let mut master = streaming(&history, Some(Cursor::at(history.position(2))));
    assert!(matches!(master.poll_action(), Some(MasterAction::ReadRecords { .. })));
    let key = Bytes::from_static(b"key 003");
    let stretch = Stretch { end: history.position(5), deleted: Vec::new(), touched: vec![key.clone()] };
    master.handle_records(LogAnswer::Compacted(stretch));
    let Some(MasterAction::LookUp { keys, .. }) = master.poll_action() else { panic!("it is looked up") };
    assert_eq!(keys, [key]);
    assert!(master.poll_action().is_none());
    master.handle_values(&[Some(Bytes::from_static(b"value"))], history.head());
    let Some(MasterAction::Send(Message::Touched(touched))) = master.poll_action() else { panic!("it is told") };
    assert_eq!((touched.end, touched.read_at), (Some(history.position(5)), history.head()));
    let Some(MasterAction::ReadRecords { after, .. }) = master.poll_action() else { panic!("and what came after it") };
    assert_eq!(after, history.position(5));
}
