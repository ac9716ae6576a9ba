//! Probes: what a range holds at one point of the history, told in the stream of records at just that point.

use super::*;
use crate::{Held, Probe, Probed, Summary, Touched};

fn probe(entries: bool) -> Probe {
    Probe { range: KeyRange::from_bounds("b".."m"), max_bytes: 40, entries }
}

fn put(key: &str) -> Batch {
    Batch::new().put(key, "1")
}

/// A master that has sent everything, and is asked.
fn asked(history: &History, entries: bool) -> MasterSession {
    let mut master = streaming(history, Some(Cursor::at(history.head())));
    assert!(master.poll_action().is_none(), "everything is there");
    master.handle_message(at(0), Message::Probe(probe(entries))).unwrap();
    assert!(master.has_action());
    master
}

fn read(master: &mut MasterSession) -> (KeyRange, usize) {
    match master.poll_action() {
        Some(MasterAction::ReadExactly { range, max_bytes }) => (range, max_bytes),
        other => panic!("expected a read, got {other:?}"),
    }
}

fn answer(history: &History, at: usize, held: Held) -> Probed {
    Probed { range: KeyRange::from_bounds("b".."c"), at: history.position(at), held }
}

fn summary() -> Held {
    Held::Summary(Summary { count: 1, bytes: 4, fingerprint: replikv_core::Fingerprint::from_bytes([7; 16]) })
}

/// A slave that has applied `from` records, and asks.
fn asking(history: &History, from: usize, entries: bool) -> SlaveSession {
    let cursor = Cursor::at(history.position(from));
    let mut slave = SlaveSession::new(slave_config(Some(cursor)), at(0));
    let welcome = Welcome { verifies: true, ..welcome(history, Mode::Resume) };
    slave.handle_message(at(0), Message::Welcome(welcome)).unwrap();
    assert!(slave.may_probe());
    slave.probe(probe(entries));
    assert!(!slave.may_probe(), "one at a time");
    let sent = std::iter::from_fn(|| slave.poll_action()).last();
    assert!(matches!(sent, Some(SlaveAction::Send(Message::Probe(sent))) if sent == probe(entries)));
    slave
}

// Else the slave would look at its range after records that the answer knows nothing of.
#[test]
fn from_the_question_until_its_answer_no_record_is_framed() {
    let mut history = History::of(5);
    let mut master = asked(&history, true);
    assert_eq!(read(&mut master), (probe(true).range, 40));
    history.write(put("a"));
    master.handle_view(history.view());
    assert!(master.poll_action().is_none(), "it is being read");
    let read_at = history.head();
    master.handle_page(content(KeyRange::from_bounds("b".."c"), read_at, &["b"]));
    let Some(MasterAction::Send(Message::Probed(probed))) = master.poll_action() else { panic!("the answer") };
    assert_eq!((probed.at, probed.range), (read_at, KeyRange::from_bounds("b".."c")));
    assert_eq!(probed.held, Held::Entries(puts([(&b"b"[..], &b"v"[..])])));
    assert!(matches!(master.poll_action(), Some(MasterAction::ReadRecords { .. })), "then what led there");
}

#[test]
fn what_is_not_published_is_not_told_and_what_came_to_nothing_is_read_again() {
    let mut history = History::of(5);
    let mut master = asked(&history, false);
    read(&mut master);
    let published = history.view();
    history.write(put("b"));
    let handed = history.head();
    master.handle_view(View { handed, ..published });
    master.handle_page(content(KeyRange::from_bounds("b".."c"), handed, &["b"]));
    assert!(master.poll_action().is_none(), "it may come to nothing");
    master.handle_view(published);
    assert_eq!(read(&mut master).0, probe(false).range, "it has");
    master.handle_page(content(probe(false).range, published.published, &[]));
    let Some(MasterAction::Send(Message::Probed(probed))) = master.poll_action() else { panic!("the answer") };
    assert!(matches!(probed.held, Held::Summary(Summary { count: 0, .. })));
    assert!(master.poll_action().is_none());
}

#[test]
fn an_answer_comes_between_the_record_that_it_is_of_and_the_next_one() {
    let history = History::of(9);
    for at_seq in 4..=9 {
        let mut slave = asking(&history, 4, false);
        let probed = answer(&history, at_seq, summary());
        slave.handle_message(at(0), Message::Probed(probed.clone())).unwrap();
        slave.handle_message(at(0), history.records(4, 9)).unwrap();
        let mut position = history.position(4);
        let mut told = false;
        while let Some(action) = slave.poll_action() {
            match action {
                SlaveAction::Apply(record) => position = record.position(),
                SlaveAction::Probed(found) => {
                    assert_eq!((*found, position), (probed.clone(), history.position(at_seq)));
                    told = true;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(told && slave.may_probe(), "record {at_seq}");
    }
}

#[test]
fn an_answer_that_was_not_asked_or_is_of_the_past_or_of_elsewhere_ends_the_session() {
    let history = History::of(9);
    let good = answer(&history, 6, summary());
    let wrong = [
        ("of the past", answer(&history, 3, summary())),
        ("of another source", Probed { at: elsewhere(good.at), ..good.clone() }),
        ("of another history", Probed { at: parted(history.position(4)), ..good.clone() }),
        ("of another range", Probed { range: KeyRange::from_bounds("a".."c"), ..good.clone() }),
        ("of more", Probed { range: KeyRange::from_bounds("b".."n"), ..good.clone() }),
        ("of nothing", Probed { range: KeyRange::from_bounds("b".."b"), ..good.clone() }),
        ("of another kind", answer(&history, 6, Held::Entries(EncodedOps::default()))),
    ];
    for (what, probed) in wrong {
        let mut slave = asking(&history, 4, false);
        assert!(slave.handle_message(at(0), Message::Probed(probed)).is_err(), "{what}");
    }
    let outside = answer(&history, 6, Held::Entries(puts([(&b"x"[..], &b"v"[..])])));
    assert!(asking(&history, 4, true).handle_message(at(0), Message::Probed(outside)).is_err());
    let mut slave = asking(&history, 4, false);
    slave.handle_message(at(0), Message::Probed(good.clone())).unwrap();
    assert!(slave.handle_message(at(0), Message::Probed(good.clone())).is_err(), "answered twice");
    // It speaks of a record that is not the one which comes.
    let mut slave = asking(&history, 4, false);
    slave.handle_message(at(0), Message::Probed(Probed { at: parted(good.at), ..good })).unwrap();
    assert!(slave.handle_message(at(0), history.records(4, 9)).is_err());
}

#[test]
fn a_master_is_asked_one_thing_at_a_time_and_an_older_one_nothing() {
    let history = History::of(5);
    let mut master = asked(&history, false);
    assert!(master.handle_message(at(0), Message::Probe(probe(false))).is_err());
    let mut master = streaming(&history, Some(Cursor::at(history.head())));
    let empty = Probe { range: KeyRange::from_bounds("b".."b"), ..probe(false) };
    assert!(master.handle_message(at(0), Message::Probe(empty)).is_err());
    let mut slave = SlaveSession::new(slave_config(Some(Cursor::at(history.head()))), at(0));
    assert_eq!(slave.verifies(), None);
    slave.handle_message(at(0), Message::Welcome(welcome(&history, Mode::Resume))).unwrap();
    assert_eq!((slave.verifies(), slave.may_probe()), (Some(false), false));
    slave.probe(probe(false));
    let mut sent = std::iter::from_fn(|| slave.poll_action());
    assert!(!sent.any(|action| matches!(action, SlaveAction::Send(Message::Probe(_)))));
}

// Where the record was compacted away meanwhile, nothing is sent at whose end the data is what was read.
#[test]
fn an_answer_that_a_compacted_stretch_has_passed_is_asked_for_again() {
    let history = History::of(9);
    for (end, passed) in [(5, false), (6, true), (9, true)] {
        let mut slave = asking(&history, 4, true);
        let entries = Held::Entries(puts([(&b"b"[..], &b"v"[..])]));
        slave.handle_message(at(0), Message::Probed(answer(&history, 6, entries))).unwrap();
        let (end, read_at) = (Some(history.position(end)), history.position(9));
        let touched = Touched { read_at, end, ops: puts([(&b"b"[..], &b"w"[..])]) };
        slave.handle_message(at(0), Message::Touched(touched)).unwrap();
        let actions: Vec<_> = std::iter::from_fn(|| slave.poll_action()).collect();
        let asked =
            |action: &SlaveAction| matches!(action, SlaveAction::Send(Message::Probe(again)) if *again == probe(true));
        assert_eq!(actions.iter().any(asked), passed, "{end:?}");
        assert!(!actions.iter().any(|action| matches!(action, SlaveAction::Probed(_))), "{end:?}");
        if passed {
            // And that one is answered.
            let again = Probed { at: history.position(9), ..answer(&history, 9, Held::Entries(EncodedOps::default())) };
            slave.handle_message(at(0), Message::Probed(again)).unwrap();
        }
    }
}

// What a slave holds that was ahead cannot be compared with what comes before it.
#[test]
fn a_master_that_has_lost_what_it_sent_answers_with_a_goodbye() {
    let history = History::of(5);
    let mut master = asked(&history, false);
    read(&mut master);
    let back = View { published: history.position(3), handed: history.position(3), ..history.view() };
    master.handle_view(back);
    master.handle_page(content(probe(false).range, history.position(3), &[]));
    let mut actions = std::iter::from_fn(|| master.poll_action());
    assert!(matches!(actions.next(), Some(MasterAction::Send(Message::Goodbye(_)))));
    assert!(matches!(actions.next(), Some(MasterAction::Close(None))));
}
