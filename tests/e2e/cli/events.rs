//! `furt events`.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use serde_json::Value;

use crate::{
    cli::{ask, asking, has},
    upstream::Upstream,
    world::{World, eventually},
};

/// A `furt events` that follows; killed when dropped.
struct Following {
    child: Child,
    lines: Receiver<String>,
    notes: Receiver<String>,
}

impl Following {
    fn start(furt: &World, line: &str) -> Self {
        let mut child = asking(furt, line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("furt starts");
        let lines = pipe(child.stdout.take().expect("piped"));
        let notes = pipe(child.stderr.take().expect("piped"));
        Self { child, lines, notes }
    }

    /// The next line; far more time than it takes.
    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).expect("an event in time")
    }

    /// The next event of `--json` of that kind; others may come before it.
    #[track_caller]
    fn kind(&self, kind: &str) -> Value {
        loop {
            let line = self.line();
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
            if event["kind"] == kind {
                return event;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pipe(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

const FIELDS: [&str; 9] = ["cursor", "time", "kind", "service", "instance", "from", "to", "message", "version"];

#[test]
fn what_is_kept_is_told_and_the_command_ends() {
    let furt = World::start();
    let upstream = Upstream::start("sagjan");
    furt.register("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    furt.register("obr", &upstream.url(), &["GET /api/obr/* obr:read"]);
    furt.until("sagjan", "UP");
    furt.until("obr", "UP");
    // More than is written in one go.
    for count in 0..100 {
        furt.register(&format!("other-{count}"), &upstream.url(), &[&format!("GET /other-{count}")]);
    }
    let told = ask(&furt, "events --once").done();
    assert!((0..100).all(|count| told.contains(&format!("other-{count}/default"))), "{told}");
    has(&told, &["REGISTERED", "sagjan/default", "obr/default", "TRANSITION", "UNKNOWN -> UP"]);
    let told = ask(&furt, "events --once --service sagjan").done();
    assert!(told.contains("sagjan/default") && !told.contains("obr"), "{told}");

    let json = ask(&furt, "events --once --json").done();
    let events: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    for event in &events {
        assert!(FIELDS.iter().all(|field| event.get(field).is_some()), "{event}");
    }
    let registered = events.iter().position(|event| event["kind"] == "REGISTERED" && event["service"] == "sagjan").expect("it is kept");
    let cursor = events[registered]["cursor"].as_str().expect("a cursor");
    let rest = ask(&furt, &format!("events --once --json --since {cursor}")).done();
    assert_eq!(rest.lines().count(), events.len() - registered - 1, "those after the cursor: {rest}");
    let last = ask(&furt, "events --limit 2 --json").done();
    assert_eq!(last.lines().collect::<Vec<_>>(), json.lines().skip(events.len() - 2).collect::<Vec<_>>(), "the newest two");
    assert_eq!(ask(&furt, "events --limit 0").done(), "");
    has(&ask(&furt, "events --once --since never").failed(), &["refused (400 VALIDATION_ERROR)", "since"]);
}

#[test]
fn what_happens_is_followed_over_a_restart_of_furt() {
    let mut furt = World::start();
    let upstream = Upstream::start("sagjan");
    let following = Following::start(&furt, "events --since 0 --json");
    following.kind("STARTED");
    furt.register("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    let event = following.kind("REGISTERED");
    assert_eq!((&event["service"], &event["instance"]), (&"sagjan".into(), &"default".into()));
    let event = following.kind("TRANSITION");
    assert_eq!((&event["from"], &event["to"]), (&"UNKNOWN".into(), &"UP".into()));

    furt.kill();
    let note = following.notes.recv_timeout(Duration::from_secs(20)).expect("the loss is told");
    has(&note, &["was lost", "waiting"]);
    furt.start_again();
    following.kind("STARTED");
    furt.register("obr", &upstream.url(), &["GET /api/obr/* obr:read"]);
    let event = following.kind("REGISTERED");
    assert_eq!(event["service"], "obr");
}

#[test]
fn only_what_happens_from_now_on_is_followed_unless_asked() {
    let furt = World::start();
    let upstream = Upstream::start("sagjan");
    furt.register("before", &upstream.url(), &["GET /before"]);
    furt.until("before", "UP");
    let mut following = Following::start(&furt, "events");
    // When it has begun is seen by what it tells: renewals are no events, so each is a new registration.
    let mut count = 0;
    let line = eventually("it follows", || {
        count += 1;
        furt.register(&format!("after-{count}"), &upstream.url(), &[&format!("GET /after-{count}")]);
        following.lines.try_recv().ok()
    });
    has(&line, &["after-"]);
    assert!(following.child.try_wait().expect("a child of ours").is_none(), "it goes on");
    let all: Vec<String> = following.lines.try_iter().collect();
    assert!(all.iter().all(|line| !line.contains("before")), "{all:?}");
}
