//! The commands of furt as people and scripts use them: what they print, where, and how they end.
//!
//! Here: a command to run, and what came of it. `furt demo` has its own module.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::world::World;

mod asking;
mod events;
mod local;
mod terminal;

/// The words of a command line.
fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// furt with an empty environment, run in `dir`.
fn furt_in(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_furt"));
    command.args(arguments).current_dir(dir).env_clear().stdin(Stdio::null());
    command
}

/// A command that asks this furt.
fn asking(furt: &World, line: &str) -> Command {
    let gateway = furt.internal.to_string();
    furt_in(&furt.dir, &[words(line), vec!["--gateway", &gateway]].concat())
}

/// What a command printed, and its exit code.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    #[track_caller]
    fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.output().expect("furt runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("furt writes UTF-8");
        Self { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    /// It did what it was asked, and said nothing else.
    #[track_caller]
    fn done(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self.out
    }

    /// It failed, and said why on standard error only.
    #[track_caller]
    fn failed(self) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(1), ""), "{}", self.err);
        self.err
    }

    /// The one JSON value that it printed.
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {:?}; standard error: {}", self.out, self.err))
    }
}

/// What a command that asks this furt printed.
#[track_caller]
fn ask(furt: &World, line: &str) -> Ended {
    Ended::of(&mut asking(furt, line))
}

#[track_caller]
fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

/// Whether a program is there to help with a test; says so when it is not.
fn installed(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        eprintln!("SKIPPED: {program} is not installed");
    }
    there
}
