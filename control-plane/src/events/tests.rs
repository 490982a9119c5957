use std::collections::BTreeSet;

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use proptest::prelude::*;

use super::*;

fn events(room: usize) -> Events {
    Events::new("e", room)
}

fn push(events: &Events, service: &str, message: impl ToString) {
    events.push(v1::Event { kind: "UPDATED".into(), service: service.into(), message: message.to_string(), ..Default::default() });
}

fn watch(events: &Events, since: &str, service: &str) -> BoxStream<'static, v1::Event> {
    events.watch(since, service).unwrap().boxed()
}

/// What a watcher is told without waiting, in short.
fn now(stream: &mut BoxStream<'static, v1::Event>) -> Vec<String> {
    let ready = std::iter::from_fn(|| stream.next().now_or_never().flatten());
    ready.map(|event| if event.kind == "GAP" { "GAP".into() } else { event.message }).collect()
}

#[test]
fn a_watcher_is_told_from_now_on_or_all_or_what_is_newer_than_its_cursor() {
    let events = events(10);
    push(&events, "a", 1);
    push(&events, "b", 2);
    let (mut from_now, mut all) = (watch(&events, "", ""), watch(&events, "0", ""));
    let (mut newer, mut newest) = (watch(&events, "e.1", ""), watch(&events, "e.2", ""));
    let mut begin = watch(&events, "e.0", "");
    assert_eq!((events.newest(), Events::new("e", 1).newest()), ("e.2".to_owned(), "e.0".to_owned()));
    push(&events, "a", 3);
    assert_eq!(now(&mut from_now), ["3"]);
    assert_eq!(now(&mut all), ["1", "2", "3"]);
    assert_eq!(now(&mut newer), ["2", "3"]);
    assert_eq!(now(&mut newest), ["3"]);
    assert_eq!(now(&mut begin), ["1", "2", "3"]);
    assert_eq!(now(&mut watch(&events, "0", "a")), ["1", "3"]);
    assert_eq!(now(&mut watch(&events, "0", "c")), [""; 0]);
}

#[test]
fn what_is_no_longer_kept_is_a_gap() {
    let events = events(3);
    let mut slow = watch(&events, "", "");
    let mut of_b = watch(&events, "", "b");
    for message in 1..=5 {
        push(&events, "a", message);
    }
    assert_eq!(now(&mut slow), ["GAP", "3", "4", "5"]);
    assert_eq!(now(&mut of_b), ["GAP"]);
    assert_eq!(now(&mut watch(&events, "e.1", "")), ["GAP", "3", "4", "5"]);
    assert_eq!(now(&mut watch(&events, "e.2", "")), ["3", "4", "5"]);
    assert_eq!(now(&mut watch(&events, "0", "")), ["3", "4", "5"]);
    assert_eq!(now(&mut watch(&events, "another.4", "")), ["GAP", "3", "4", "5"]);
    assert_eq!(now(&mut watch(&events, "another.4", "b")), ["GAP"]);
}

#[test]
fn the_cursor_of_a_gap_goes_on_with_all_that_are_kept() {
    let events = events(3);
    for room_taken in 0..6 {
        let gap = watch(&events, "another.9", "").next().now_or_never().flatten().unwrap();
        let kept = now(&mut watch(&events, "0", ""));
        assert_eq!(now(&mut watch(&events, &gap.cursor, "")), kept, "{gap:?}");
        push(&events, "a", room_taken);
    }
}

#[test]
fn what_is_no_cursor_is_refused_by_field() {
    let events = events(3);
    push(&events, "a", 1);
    for bad in
        ["1", "e", "e.", ".1", "e.x", "e.-1", "e.+1", "e.1.2", "e 1.1", "e.99999999999999999999", "e.2", &format!("{}.1", "e".repeat(65))]
    {
        let Err(refusal) = events.watch(bad, "") else { panic!("{bad} is taken") };
        assert_eq!((refusal.code(), refusal.faults[0].field.as_str()), (Code::Validation, "since"), "{bad}");
    }
}

#[tokio::test]
async fn a_watcher_sleeps_until_there_is_something_and_ends_with_the_events() {
    let events = events(3);
    let mut stream = watch(&events, "", "b");
    let (first, ()) = tokio::join!(stream.next(), async {
        push(&events, "a", 1);
        tokio::task::yield_now().await;
        push(&events, "b", 2);
    });
    let first = first.unwrap();
    assert_eq!((first.message.as_str(), first.cursor.as_str()), ("2", "e.2"));
    assert!(first.time.ends_with('Z') && first.time.len() == "2025-11-14T20:30:00.070Z".len(), "{first:?}");
    let (end, ()) = tokio::join!(stream.next(), async { events.close() });
    assert_eq!(end, None);
    assert_eq!(watch(&events, "0", "").next().await, None);
}

#[test]
fn long_stretches_of_other_services_are_passed_over() {
    let events = events(ROOM);
    let mut of_b = watch(&events, "0", "b");
    for index in 0..3 * SCAN {
        push(&events, "a", index);
    }
    push(&events, "b", "mine");
    assert_eq!(now(&mut of_b), ["mine"]);
}

#[test]
fn kinds_are_those_of_the_proto() {
    let proto = include_str!("../../../proto/furt/v1/registry.proto");
    let begin = proto.find("// What kind: REGISTERED").unwrap();
    let end = begin + proto[begin..].find("string kind").unwrap();
    let word = |word: &&str| word.len() > 1 && word.chars().all(|character| character.is_ascii_uppercase() || character == '_');
    let documented: BTreeSet<_> =
        proto[begin..end].split(|character: char| !character.is_alphanumeric() && character != '_').filter(word).collect();
    assert_eq!(documented, Kind::ALL.iter().map(|kind| kind.name()).collect());
}

/// What a watcher of the model does next.
#[derive(Debug, Clone)]
enum Act {
    Push(&'static str),
    /// This watcher reads so many events.
    Read(usize, usize),
    /// This watcher goes away and comes back with the last cursor it saw.
    Again(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop_oneof![Just("a"), Just("b")].prop_map(Act::Push),
        3 => (0..4usize, 1..6usize).prop_map(|(watcher, most)| Act::Read(watcher, most)),
        1 => (0..4usize).prop_map(Act::Again),
    ]
}

/// A watcher, and what the model says of it.
struct Model {
    service: &'static str,
    stream: BoxStream<'static, v1::Event>,
    cursor: String,
    /// The sequence of the last event that it was told, or passed over.
    seen: u64,
}

impl Model {
    fn read(&mut self, most: usize, all: &[&str], room: usize) {
        for _ in 0..most {
            let oldest = all.len().saturating_sub(room) as u64 + 1;
            let told = self.stream.next().now_or_never().flatten();
            let fell_behind = self.seen + 1 < oldest;
            let Some(event) = told else {
                let missed = all.iter().skip(self.seen as usize).filter(|service| self.wants(service)).count();
                assert!(!fell_behind && missed == 0, "nothing is told, though there is something");
                self.seen = all.len() as u64;
                return;
            };
            self.cursor = event.cursor.clone();
            let sequence: u64 = event.cursor.strip_prefix("e.").unwrap().parse().unwrap();
            if event.kind == "GAP" {
                assert!(fell_behind, "a gap where nothing is missing: {event:?}");
                assert_eq!(sequence, oldest - 1);
            } else {
                assert!(!fell_behind, "what is missing is not told: {event:?}");
                let passed = all.iter().take(sequence as usize - 1).skip(self.seen as usize);
                assert_eq!(passed.filter(|service| self.wants(service)).count(), 0, "missed before {event:?}");
                assert_eq!((event.message, &*event.service), (sequence.to_string(), all[sequence as usize - 1]));
                assert!(sequence > self.seen && self.wants(&event.service));
            }
            self.seen = sequence;
        }
    }

    fn wants(&self, service: &str) -> bool {
        self.service.is_empty() || self.service == service
    }
}

proptest! {
    /// At any pace, over any number of reconnects, a watcher is told all of its events in order, once, or a GAP.
    #[test]
    fn every_watcher_is_told_all_in_order_or_a_gap(room in 1..12usize, acts in proptest::collection::vec(act(), 1..200)) {
        let events = events(room);
        let mut all: Vec<&str> = Vec::new();
        let watcher = |service| Model { service, stream: watch(&events, "0", service), cursor: "e.0".into(), seen: 0 };
        let mut watchers = ["", "", "a", "b"].map(watcher);
        for act in acts {
            match act {
                Act::Push(service) => {
                    all.push(service);
                    push(&events, service, all.len());
                }
                Act::Read(which, most) => watchers[which].read(most, &all, room),
                Act::Again(which) => {
                    let watcher = &mut watchers[which];
                    watcher.stream = watch(&events, &watcher.cursor, watcher.service);
                    watcher.seen = watcher.cursor.strip_prefix("e.").unwrap().parse().unwrap();
                }
            }
        }
        for watcher in &mut watchers {
            watcher.read(usize::MAX, &all, room);
        }
    }
}
