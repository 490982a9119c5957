//! Other people's implementations beside furt: scripts of `tests/peers`, which speak JSON by lines.
//!
//! What cannot run here says that it was skipped, and why.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use serde_json::Value;

/// Far more than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Not through the captured output of a test that passes.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// A running script; killed when dropped.
pub struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<Value>,
}

impl Peer {
    /// Starts a script that needs a Python package. `None`: it cannot be here.
    pub fn start<A: AsRef<OsStr>>(script: &str, package: &str, arguments: impl IntoIterator<Item = A>) -> Option<Self> {
        let imports = Command::new("python3").args(["-c", &format!("import {package}")]).stderr(Stdio::null()).status();
        if !imports.is_ok_and(|status| status.success()) {
            skipped(&format!("python3 has no package {package}, {script} did not run"));
            return None;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(script);
        let mut command = Command::new("python3");
        command.arg(path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (tells, said) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Nobody listens any more when the test is over.
                let _ = tells.send(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")));
            }
        });
        let stdin = child.stdin.take();
        Some(Self { child, stdin, said })
    }

    /// Gives it an order.
    #[track_caller]
    pub fn order(&mut self, order: &Value) {
        writeln!(self.stdin.as_mut().expect("piped"), "{order}").expect("the script takes it");
    }

    /// What it says next.
    #[track_caller]
    pub fn says(&self) -> Value {
        self.said.recv_timeout(PATIENCE).expect("the script says something in time")
    }

    /// Gives it an order and takes what it says.
    #[track_caller]
    pub fn ask(&mut self, order: &Value) -> Value {
        self.order(order);
        self.says()
    }

    /// The first thing it says that has this field; the field.
    #[track_caller]
    pub fn tells(&self, field: &str) -> Value {
        loop {
            let mut said = self.says();
            if let Some(value) = said.get_mut(field) {
                return value.take();
            }
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}
