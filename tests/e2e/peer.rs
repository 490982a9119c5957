//! Other people's implementations beside furt: scripts of `tests/peers`, which speak JSON by lines, and programs that
//! Debian has.
//!
//! What cannot run here says that it was skipped, and why.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
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

/// A program with nothing of this environment but the path to programs. `None`: it is not here.
pub fn program(name: &str) -> Option<Command> {
    let mut command = Command::new(name);
    command.env_clear().stdin(Stdio::null());
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    let mut asked = Command::new(name);
    let there = asked.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Some(command);
    }
    skipped(&format!("there is no {name}"));
    None
}

/// What it printed, of a run that succeeded.
#[track_caller]
pub fn printed(output: &Output) -> String {
    let (printed, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {complained}{printed}", output.status);
    printed.into_owned()
}
