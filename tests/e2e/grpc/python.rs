//! Sessions held by another implementation of gRPC: Python's grpcio, which is built on C++.
//!
//! `python3` has to have the packages grpcio and grpcio-reflection; without them these tests say that they were skipped.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    events::told,
    upstream::Upstream,
    world::{World, registration},
};

/// Far more than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A Python process that holds a session; killed when dropped.
struct Session {
    child: Child,
    answers: Receiver<Value>,
}

impl Session {
    /// None when it cannot be here, which is said aloud: not through the captured output of a test that passes.
    fn open(furt: &World, registration: &Value) -> Option<Self> {
        let imports = Command::new("python3").args(["-c", "import grpc, grpc_reflection"]).stderr(Stdio::null()).status();
        if !imports.is_ok_and(|status| status.success()) {
            let _ = writeln!(std::io::stderr(), "SKIPPED: python3 has no grpcio and grpcio-reflection, sessions from Python were not held");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/grpc/session.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(furt.internal.to_string()).arg(registration.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (tells, answers) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Nobody listens any more when the test is over.
                let _ = tells.send(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")));
            }
        });
        Some(Self { child, answers })
    }

    fn say(&mut self, message: &Value) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{message}").expect("the session takes it");
    }

    #[track_caller]
    fn answer(&self) -> Value {
        self.answers.recv_timeout(PATIENCE).expect("an answer in time")
    }

    /// The next answer that is no state told unasked.
    #[track_caller]
    fn answer_but_states(&self) -> Value {
        std::iter::repeat_with(|| self.answer()).find(|answer| answer.get("state").is_none()).expect("it waits for one")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn python_holds_a_session_and_takes_its_leave() {
    let furt = World::start();
    let upstream = Upstream::start("sagjan");
    let body = registration("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    let Some(mut session) = Session::open(&furt, &body) else { return };
    assert_eq!(session.answer()["registered"]["service"], "sagjan");
    furt.get("/api/comments/a").status(200);
    session.say(&json!({"keep_alive": {}}));
    assert!(session.answer()["state"]["status"].is_string());
    session.say(&json!({"farewell": {"seconds": 1}}));
    let drained = session.answer_but_states();
    assert_eq!((&drained["drained"]["instances"], &drained["drained"]["deregistered"]), (&json!(["default"]), &json!(true)));
    assert!(session.child.wait().expect("it ends").success(), "the stream ended with OK");
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
}

#[test]
fn python_killed_with_9_is_suspect_and_a_refusal_is_told_by_status() {
    let furt = World::start();
    let upstream = Upstream::start("sagjan");
    let bad = registration("sagjan", "ftp://a", &["GET /api/comments/* comments:read"]);
    let Some(refused) = Session::open(&furt, &bad) else { return };
    assert_eq!(refused.answer()["status"], "INVALID_ARGUMENT");
    let body = registration("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    let Some(mut session) = Session::open(&furt, &body) else { return };
    assert_eq!(session.answer()["registered"]["service"], "sagjan");
    session.child.kill().expect("it runs");
    let events = told(&furt, "the lost session makes it suspect", |event| event.kind == "SUSPECTED");
    assert!(events.iter().any(|event| event.kind == "SESSION_LOST" && event.service == "sagjan"), "{events:#?}");
    furt.get("/api/comments/a").status(200);
}
