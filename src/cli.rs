//! The command line: what can be asked, and how a failure is told (DESIGN §2).
//!
//! In reading order: [`process`], [`logging`]; the commands [`check`], [`key`], [`ask`], [`demo`] with
//! its [`sample`] service; what they use: [`client`], [`table`]. Not here: `furt run`, which is `main`.

use std::{
    fmt,
    io::{self, Write},
    path::PathBuf,
};

use clap::{Parser, Subcommand};
use furt::{BindError, RunError, config::LoadError};

mod ask;
mod check;
mod client;
mod demo;
mod key;
pub mod logging;
pub mod process;
mod sample;
mod table;

/// furt, an API gateway: services register themselves, furt checks their health and routes to them.
#[derive(Parser)]
#[command(name = "furt", version, propagate_version = true, max_term_width = 100)]
pub struct Arguments {
    /// The furt.conf to use [default: ./furt.conf, then /etc/furt/furt.conf].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The internal listener of a running furt [default: [gateway] listen of furt.conf, else 127.0.0.1:7810].
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub gateway: Option<String>,
    /// Print JSON, for machines.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What furt can be asked to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run the gateway until SIGTERM or SIGINT.
    Run,
    /// Check furt.conf: everything that is wrong or odd in it, at once.
    Check,
    /// See it work: a gateway, a sample service that registers itself, and a few requests.
    Demo {
        /// Exit after the requests.
        #[arg(long)]
        once: bool,
    },
    /// API keys.
    Key {
        /// What to do with them.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Register a service as its JSON file says. Set FURT_TOKEN when the grant has a token.
    Register {
        /// The registration, as POST /internal/register-service takes it; "-" reads standard input.
        #[arg(value_name = "FILE.json")]
        file: PathBuf,
        /// Decide and answer, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the registered services and their health.
    Services {
        /// Only this one, with its routes.
        name: Option<String>,
    },
    /// Show every route, static ones first.
    Routes,
    /// Tell where a request would go, and why.
    Explain {
        /// The method, e.g. GET.
        method: String,
        /// The path as a client would send it.
        path: String,
        /// The Host a client would send.
        #[arg(long)]
        host: Option<String>,
        /// The name of the caller's key; without it no key is sent.
        #[arg(long, value_name = "NAME")]
        key_name: Option<String>,
    },
    /// The sample service of `furt demo`.
    #[command(hide = true)]
    DemoService,
}

/// What can be done with API keys.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// Make a key: it is printed once, with the lines for furt.conf.
    New {
        /// The caller's name.
        name: String,
    },
}

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
            LoadError::NotFound => Self::new(format!("furt: {error}. To see furt work without one: furt demo")),
            LoadError::Unreadable { .. } => Self::new(format!("furt: {error}")),
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
    match &arguments.command {
        // `main` runs it itself, to be read first.
        Command::Run => Ok(()),
        Command::Check => check::check(arguments),
        Command::Key { command: KeyCommand::New { name } } => key::new(name, arguments.json),
        Command::Demo { once } => process::runtime()?.block_on(demo::demo(*once)),
        Command::DemoService => process::small_runtime()?.block_on(sample::serve(arguments.gateway.as_deref().unwrap_or_default())),
        command => process::small_runtime()?.block_on(ask::ask(arguments, command)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_hold_together() {
        Arguments::command().debug_assert();
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        assert!(parse("furt explain GET /a --host h --key-name k --gateway h:1 --json").is_ok());
        assert!(parse("furt services").is_ok());
        assert_eq!(parse("furt serve").err().map(|error| error.exit_code()), Some(2));
    }
}
