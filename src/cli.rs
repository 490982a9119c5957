//! The command line: what can be asked, and how a failure is told (DESIGN §2).
//!
//! In reading order: [`arguments`]; [`process`], [`logging`]; the commands that need no running furt:
//! [`init`], [`check`], [`key`], [`completions`], [`man`], [`demo`] with its [`sample`] service; those that
//! ask one: [`ask`], with [`events`]; what these use: [`gateway`], [`client`], [`sse`], [`refused`]; what
//! people read: [`told`], [`services`], [`explain`], [`fields`], [`table`], [`screen`]. Not here: `furt run`,
//! which is `main`.

use std::{
    fmt,
    io::{self, Write},
    path::Path,
};

use furt::{BindError, RunError, config::LoadError};

mod arguments;
mod ask;
mod check;
mod client;
mod completions;
mod demo;
mod events;
mod explain;
mod fields;
mod gateway;
mod init;
mod key;
pub mod logging;
mod man;
pub mod process;
mod refused;
mod sample;
mod screen;
mod services;
mod sse;
mod table;
mod told;

use arguments::KeyCommand;
pub use arguments::{Arguments, Command};

/// Why a command did not do what it was asked: exit code 1.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// A sentence that says the next step too.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// It is on the screen already.
    pub fn told() -> Self {
        Self(String::new())
    }

    /// Says it on standard error.
    pub fn tell(&self) {
        if !self.0.is_empty() {
            // There is nobody to tell when this cannot be written.
            let _ = writeln!(io::stderr(), "{self}");
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::NotFound => {
                Self::new(format!("furt: {error}. `furt init` writes a first one; to see furt work without one: furt demo"))
            }
            LoadError::Unreadable { ref file, error: ref reason } => {
                let next = match reason.kind() {
                    io::ErrorKind::NotFound => format!("; `furt init{}` writes a first one", named(Some(file))),
                    // `furt init` writes it for its owner alone.
                    io::ErrorKind::PermissionDenied => {
                        let file = quoted(&file.to_string_lossy());
                        format!(". Let the user that runs furt read it, such as by its group: chgrp GROUP {file} && chmod 640 {file}")
                    }
                    _ => String::new(),
                };
                Self::new(format!("furt: {error}{next}"))
            }
            LoadError::Faulty(report) => {
                let count = report.errors.len();
                let faults = if count == 1 { "fault".to_owned() } else { format!("{count} faults") };
                Self::new(format!("{report}\nfurt: not started for the {faults} above; `furt check` tells whether they are gone"))
            }
        }
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        Self::new(format!("furt: {error}"))
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::new(error.to_string())
    }
}

/// Any command but `furt run`.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.config.as_deref();
    match &arguments.command {
        // `main` runs it itself, to be read first.
        Command::Run => Ok(()),
        Command::Init { json } => init::init(config, *json),
        Command::Check { json } => check::check(config, *json),
        Command::Key { command: KeyCommand::New { name, json } } => key::new(config, name, *json),
        Command::Ask(asked) => process::small_runtime()?.block_on(ask::ask(config, asked)),
        Command::Completions { shell } => completions::completions(*shell),
        Command::Man => man::man(),
        Command::Demo { once } => process::runtime()?.block_on(demo::demo(*once)),
        Command::DemoService { gateway } => process::small_runtime()?.block_on(sample::serve(gateway)),
    }
}

/// ` --config FILE` for a command line that is shown, as a shell takes it; empty when none was named.
fn named(config: Option<&Path>) -> String {
    config.map(|file| format!(" --config {}", quoted(&file.to_string_lossy()))).unwrap_or_default()
}

/// A word of a shell's command line.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_a_shell_takes_them() {
        assert_eq!(named(None), "");
        assert_eq!(named(Some(Path::new("/etc/furt/furt.conf"))), " --config /etc/furt/furt.conf");
        assert_eq!(quoted("a b'c"), r"'a b'\''c'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_file_that_is_not_there_and_one_that_may_not_be_read_have_different_ways_out() {
        let said = |kind: io::ErrorKind| {
            Failure::from(LoadError::Unreadable { file: "/etc/furt/furt.conf".into(), error: kind.into() }).to_string()
        };
        assert!(said(io::ErrorKind::NotFound).ends_with("; `furt init --config /etc/furt/furt.conf` writes a first one"));
        assert!(said(io::ErrorKind::PermissionDenied).ends_with(": chgrp GROUP /etc/furt/furt.conf && chmod 640 /etc/furt/furt.conf"));
        assert!(!said(io::ErrorKind::IsADirectory).contains("furt init"));
    }
}
