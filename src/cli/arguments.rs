//! What can be written after `furt`, in the order of `furt --help`.
//!
//! The comments here are the help, the man page and the completions. Not here: what the commands do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use furt::config;

/// How the help ends; the man page says it at more length.
const NOTES: &str = "\
Environment:
  FURT_TOKEN  the bearer token, for a furt that asks for one
  NO_COLOR    no colour on a terminal

Exit status: 0 done, 1 refused or failed, 2 wrong usage.
To see it work: furt demo. To begin: furt init.";

/// An API gateway: services register themselves, furt checks their health and routes to them.
#[derive(Parser)]
#[command(name = "furt", version, after_help = NOTES)]
pub struct Arguments {
    /// The furt.conf to use [default: ./furt.conf, then /etc/furt/furt.conf].
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What furt can be asked to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run the gateway until SIGTERM or SIGINT. SIGHUP reloads furt.conf.
    Run,
    /// See it work: a gateway, a sample service that registers itself, and a few requests.
    ///
    /// It writes nothing outside of a temporary directory, and stays up until Ctrl-C.
    Demo {
        /// Exit after the requests.
        #[arg(long)]
        once: bool,
    },
    /// Write a first furt.conf, with a grant and a caller's key; never over an existing one.
    ///
    /// Writes ./furt.conf, or the file that --config names, readable by its owner only. The key is printed
    /// once; the file has its SHA-256.
    Init {
        /// Print JSON, for machines.
        #[arg(long)]
        json: bool,
    },
    /// Check furt.conf: everything that is wrong or odd in it, at once.
    Check {
        /// Print JSON, for machines.
        #[arg(long)]
        json: bool,
    },
    /// API keys.
    Key {
        /// What to do with them.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// What a running furt is asked.
    #[command(flatten)]
    Ask(Asked),
    /// Print a completion script for a shell.
    ///
    /// bash: furt completions bash > ~/.local/share/bash-completion/completions/furt
    ///
    /// zsh, in a directory of $fpath: furt completions zsh > _furt
    ///
    /// fish: furt completions fish > ~/.config/fish/completions/furt.fish
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the man page: furt man | man -l -
    ///
    /// To keep it: furt man > /usr/local/share/man/man1/furt.1
    Man,
    /// The sample service of `furt demo`.
    #[command(hide = true)]
    DemoService {
        /// The internal listener to register at.
        gateway: String,
    },
}

/// What can be done with API keys.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// Make a key: it is printed once, with the lines for furt.conf.
    ///
    /// furt.conf is read, not written: when it knows the caller already, the lines let the old key and the new
    /// one work side by side for a time. [token] and token_sha256 take such a digest too.
    New {
        /// The caller's name, e.g. website.
        #[arg(value_parser = caller)]
        name: String,
        /// Print JSON, for machines.
        #[arg(long)]
        json: bool,
    },
}

/// What is asked of the internal listener of a running furt.
#[derive(Subcommand)]
pub enum Asked {
    /// Register a service as its JSON file says.
    Register {
        /// The registration, as POST /internal/register-service takes it; "-" reads standard input.
        #[arg(value_name = "FILE.json", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Decide and answer, change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        talk: Talk,
    },
    /// Take an instance out, or a whole service; requests in flight are not waited for.
    Deregister {
        #[command(flatten)]
        place: Place,
        /// Only if this is still its registration (`furt services NAME` shows it); else nothing is done.
        #[arg(long, value_name = "ID", requires = "instance")]
        registration_id: Option<String>,
        #[command(flatten)]
        talk: Talk,
    },
    /// Send no new requests to an instance, or to any of a service, and wait for those in flight.
    ///
    /// Drained by an operator it stays registered, and drained, until `furt undrain`. Drained by the service's
    /// own registrar it is deregistered at the end.
    Drain {
        #[command(flatten)]
        place: Place,
        /// How long to wait for the requests in flight [default: 30].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=300))]
        seconds: Option<u32>,
        #[command(flatten)]
        talk: Talk,
    },
    /// Take an operator's drain back.
    Undrain {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        talk: Talk,
    },
    /// Probe an instance, or all of a service, now; wakes parked ones.
    ///
    /// An answer makes it UP. A miss is noted, but only those of the regular probes count towards DOWN.
    Probe {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        talk: Talk,
    },
    /// Show the registered services and their health.
    ///
    /// UNKNOWN: not probed yet, takes requests when none is UP. UP. DOWN: takes none; probed on, more rarely.
    /// In brackets: suspect, a connect or a session broke since the last answer, others come first; drained, by an
    /// operator, until `furt undrain`; withdrawn, furt.conf allows it no longer, and NOTE says why; parked, no more
    /// probes until it registers or `furt probe`; restored, kept over a restart of furt and not renewed since.
    Services {
        /// Only this one: with its routes, its uptime, and its changes of state with their causes.
        name: Option<String>,
        #[command(flatten)]
        talk: Talk,
    },
    /// Show every route, static ones first.
    Routes {
        #[command(flatten)]
        talk: Talk,
    },
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
        #[command(flatten)]
        talk: Talk,
    },
    /// Follow what happens: registrations, refusals, changes of state, reloads.
    ///
    /// Follows until it is interrupted, over restarts of furt too. With --json each line is one event.
    Events {
        #[command(flatten)]
        choice: EventChoice,
        #[command(flatten)]
        talk: Talk,
    },
    /// Have the running furt read its furt.conf again: all of it applies, or nothing.
    Reload {
        #[command(flatten)]
        talk: Talk,
    },
}

impl Asked {
    /// Whom to ask and how to print it.
    pub fn talk(&self) -> &Talk {
        match self {
            Self::Register { talk, .. }
            | Self::Deregister { talk, .. }
            | Self::Drain { talk, .. }
            | Self::Undrain { talk, .. }
            | Self::Probe { talk, .. }
            | Self::Services { talk, .. }
            | Self::Routes { talk }
            | Self::Explain { talk, .. }
            | Self::Events { talk, .. }
            | Self::Reload { talk } => talk,
        }
    }

    /// The registered service it names, and the instance.
    pub fn named(&self) -> Option<(&str, Option<&str>)> {
        match self {
            Self::Deregister { place, .. } | Self::Drain { place, .. } | Self::Undrain { place, .. } | Self::Probe { place, .. } => {
                Some((&place.service, place.instance.as_deref()))
            }
            Self::Services { name: Some(name), .. } => Some((name, None)),
            _ => None,
        }
    }
}

/// Whom to ask and how to print it.
#[derive(Args)]
pub struct Talk {
    /// The internal listener of the running furt [default: [gateway] listen of furt.conf, else 127.0.0.1:7810].
    #[arg(long, value_name = "HOST:PORT", value_parser = gateway)]
    pub gateway: Option<String>,
    /// Print JSON, for machines.
    #[arg(long)]
    pub json: bool,
}

/// A registered service, or one of its instances.
#[derive(Args)]
pub struct Place {
    /// The service.
    pub service: String,
    /// The instance; without it all of the service.
    pub instance: Option<String>,
}

/// Which events to show.
#[derive(Args)]
pub struct EventChoice {
    /// Begin after the event with this cursor (its "cursor" in --json); 0: with the oldest that is kept
    /// [default: from now on].
    #[arg(long, value_name = "CURSOR")]
    pub since: Option<String>,
    /// Only those of this service.
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Show what is kept and end, instead of following.
    #[arg(long)]
    pub once: bool,
    /// Show the newest N of what is kept and end.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// HOST:PORT, with or without `http://` before it.
fn gateway(text: &str) -> Result<String, String> {
    let address = text.trim_start_matches("http://").trim_end_matches('/');
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    // Of an IPv6 address without brackets nobody can tell where the port begins.
    let bracketed = host.starts_with('[') == host.contains(':');
    let visible = host.bytes().all(|byte| byte.is_ascii_graphic());
    if host.is_empty() || !visible || !bracketed || port.parse::<u16>().is_err() {
        return Err(format!("expected HOST:PORT such as {}", config::DEFAULT_GATEWAY));
    }
    Ok(address.to_owned())
}

/// A caller's name, as a label of furt.conf.
fn caller(text: &str) -> Result<String, String> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if text.trim().is_empty() || text.contains('"') || !visible {
        return Err("expected visible ASCII without quotes, e.g. website".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_arguments_hold_together() {
        Arguments::command().debug_assert();
        for line in [
            "furt explain GET /a --host h --key-name k --gateway h:1 --json",
            "furt services",
            "furt services sagjan --config f",
            "furt --config f deregister sagjan",
            "furt deregister sagjan default --registration-id 01J",
            "furt drain sagjan --seconds 300",
            "furt events --since 0 --service sagjan --limit 3",
            "furt key new website --json",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        for line in [
            "furt",
            "furt serve",
            "furt run --json",
            "furt check --gateway h:1",
            "furt deregister sagjan --registration-id 01J",
            "furt drain sagjan --seconds 301",
            "furt events --limit many",
            "furt key new sag\"jan",
            "furt completions tcsh",
        ] {
            assert_eq!(parse(line).err().map(|error| error.exit_code()), Some(2), "{line}");
        }
    }

    #[test]
    fn a_gateway_is_a_host_and_a_port() {
        assert_eq!(gateway("http://furt.internal:7810/"), Ok("furt.internal:7810".into()));
        assert_eq!(gateway("[::1]:7810"), Ok("[::1]:7810".into()));
        for wrong in ["127.0.0.1", "::1", "::1:7810", ":7810", "https://furt", "furt:port", "a b:1", ""] {
            assert_eq!(gateway(wrong), Err("expected HOST:PORT such as 127.0.0.1:7810".into()), "{wrong}");
        }
    }

    #[test]
    fn every_talking_command_has_the_same_two_options() {
        let command = Arguments::command();
        let talking = ["register", "deregister", "drain", "undrain", "probe", "services", "routes", "explain", "events", "reload"];
        for name in talking {
            let found = command.find_subcommand(name).unwrap_or_else(|| panic!("{name} is there"));
            let longs: Vec<_> = found.get_arguments().filter_map(|argument| argument.get_long()).collect();
            assert!(longs.contains(&"gateway") && longs.contains(&"json"), "{name}: {longs:?}");
        }
    }
}
