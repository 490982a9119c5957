//! The order of furt's system calls for one registration: read the request, write the store, sync it,
//! and only then write the answer.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::unlimited;
use crate::{
    upstream::Upstream,
    world::{World, eventually},
};

const REGISTRATIONS: usize = 5;

/// strace on a running furt.
struct Trace {
    child: Child,
}

impl Trace {
    /// `None` when it cannot be had here.
    fn of(furt: &World, out: &Path) -> Option<Self> {
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-s", "64", "-e", "trace=read,recvfrom,write,writev,sendto,sendmsg,pwrite64,fsync,fdatasync", "-o"]);
        command.arg(out).args(["-p", &furt.id().to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
        // It says so when it is attached, and ends when it may not be.
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let attached = lines.any(|line| line.contains("attached"));
        std::thread::spawn(move || lines.for_each(drop));
        let trace = Self { child };
        attached.then_some(trace)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A call as far as it matters here, in the order in which it began or, for a sync, had returned.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    RequestRead,
    StoreWritten,
    StoreSynced,
    AnswerWritten,
}

/// Reads a trace. A call that another one interrupts stands in two lines: where it began, with its
/// arguments, and where it was resumed, with its result.
fn calls(trace: &str) -> Vec<Call> {
    let mut begun = std::collections::HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (whole, result) = match (rest.strip_suffix("<unfinished ...>"), rest.strip_prefix("<... ")) {
            (Some(beginning), _) => {
                begun.insert(thread.to_owned(), beginning.to_owned());
                (beginning.to_owned(), None)
            }
            (_, Some(resumed)) => {
                let end = resumed.split_once("resumed>").map_or("", |(_, end)| end);
                (begun.remove(thread).unwrap_or_default() + end, Some(true))
            }
            _ => (rest.to_owned(), Some(false)),
        };
        let name = whole.split('(').next().unwrap_or_default().to_owned();
        let store = whole.contains("registry.redb>");
        match name.as_str() {
            "read" | "recvfrom" if result.is_some() && whole.contains("/internal/register-service HTTP/1.1") => {
                calls.push(Call::RequestRead)
            }
            "fsync" | "fdatasync" if store && whole.trim_end().ends_with("= 0") && result.is_some() => calls.push(Call::StoreSynced),
            // These count from where they began, so once.
            "pwrite64" if store && result != Some(true) => calls.push(Call::StoreWritten),
            "write" | "writev" | "sendto" | "sendmsg" if whole.contains("HTTP/1.1 200 OK") && result != Some(true) => {
                calls.push(Call::AnswerWritten);
            }
            _ => {}
        }
    }
    calls
}

#[test]
fn the_sync_of_a_registration_has_returned_before_its_200_is_written() {
    let upstream = Upstream::start("traced");
    let furt = unlimited().start();
    furt.register("traced", &upstream.url(), &["GET /traced comments:read"]);
    // Its state changes no more, so nothing but registering writes to the store.
    furt.until("traced", "UP");
    let out = furt.dir.join("trace");
    let Some(trace) = Trace::of(&furt, &out) else {
        eprintln!("SKIPPED: strace is not here or may not attach, so the order of system calls was not seen");
        return;
    };
    for at in 0..REGISTRATIONS {
        furt.register("traced", &upstream.url(), &[&format!("GET /traced/{at} comments:read")]);
    }
    let calls = eventually("all answers are in the trace", || {
        let calls = calls(&fs::read_to_string(&out).expect("a trace"));
        (calls.iter().filter(|call| **call == Call::AnswerWritten).count() == REGISTRATIONS).then_some(calls)
    });
    drop(trace);
    for exchange in calls.split_inclusive(|call| *call == Call::AnswerWritten) {
        let last = |wanted| exchange.iter().rposition(|call| *call == wanted);
        let read = last(Call::RequestRead);
        assert!(read.is_some() && read < last(Call::StoreWritten), "the store is written after the request is read: {exchange:?}");
        assert!(last(Call::StoreWritten) < last(Call::StoreSynced), "what was written is synced, before the answer: {exchange:?}");
    }
}
