//! `furt completions`: what a shell needs to complete furt's command lines.

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Failure, arguments::Arguments, process::say};

/// Prints the script for a shell.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(shell, &mut shown(&Arguments::command()), "furt", &mut script);
    say(String::from_utf8_lossy(&script).trim_end())
}

/// The command line without what is not for people; clap_complete would offer that too.
fn shown(whole: &Command) -> Command {
    let commands = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("furt").version(env!("CARGO_PKG_VERSION")).args(whole.get_arguments().cloned()).subcommands(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_offered_and_none_that_is_not_for_people() {
        let mut script = Vec::new();
        generate(Shell::Bash, &mut shown(&Arguments::command()), "furt", &mut script);
        let script = String::from_utf8(script).unwrap();
        for word in ["run", "undrain", "events", "--registration-id", "--config", "--key-name"] {
            assert!(script.contains(word), "{word}");
        }
        assert!(!script.contains("demo-service"), "{script}");
    }
}
