//! `furt man`: the man page, made from what `--help` is made from.
//!
//! One page with every command, so that one can search in it. Not here: the words of the commands (`arguments`).

use std::io;

use clap::{Arg, Command, CommandFactory};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};

use super::{Failure, arguments::Arguments, gateway::TOKEN, process::say};

/// Prints the page as roff.
pub fn man() -> Result<(), Failure> {
    let page = page().map_err(|error| Failure::new(format!("furt: cannot make the man page: {error}")))?;
    say(page.trim_end())
}

fn page() -> io::Result<String> {
    let mut command = Arguments::command();
    command.build();
    let mut page = Vec::new();
    let man = Man::new(command.clone()).title("FURT").manual("furt");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;

    let mut roff = Roff::new();
    section(&mut roff, "SYNOPSIS");
    roff.text([bold("furt"), roman(" [--config FILE] "), italic("command"), roman(" [options]")]);
    section(&mut roff, "DESCRIPTION");
    paragraphs(&mut roff, DESCRIPTION);
    section(&mut roff, "COMMANDS");
    let shown: Vec<&Command> = commands(&command).collect();
    shown.iter().for_each(|found| entry(&mut roff, found));
    section(&mut roff, "COMMON OPTIONS");
    let global = command.get_arguments().filter(|argument| argument.is_global_set());
    // Alike wherever they are, so told once.
    let common =
        COMMON.iter().filter_map(|name| shown.iter().flat_map(|found| found.get_arguments()).find(|argument| argument.get_id() == *name));
    global.chain(common).for_each(|argument| option(&mut roff, argument));
    item(&mut roff, [bold("-h"), roman(", "), bold("--help")], "What a command does, and its options.");
    for (title, items) in [("EXIT STATUS", STATUS), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("EXAMPLES", EXAMPLES)] {
        section(&mut roff, title);
        for (term, meaning) in items {
            item(&mut roff, [bold(*term)], meaning);
        }
    }
    roff.to_writer(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// Options that mean the same in every command that has them.
const COMMON: [&str; 2] = ["gateway", "json"];

/// Every command that does something, those below `furt key` too.
fn commands(command: &Command) -> impl Iterator<Item = &Command> {
    let below = |found: &Command| found.get_subcommands().any(|inner| inner.get_name() != "help");
    let shown = |found: &&Command| !found.is_hide_set() && found.get_name() != "help";
    command.get_subcommands().filter(shown).flat_map(move |found| {
        let (own, inner) = if below(found) { (None, Some(found.get_subcommands().filter(shown))) } else { (Some(found), None) };
        own.into_iter().chain(inner.into_iter().flatten())
    })
}

const DESCRIPTION: &str = "furt is an API gateway for services that come and go. A service registers itself over HTTP or gRPC and says \
    which routes it serves; furt probes its health, routes callers with an API key to it, withdraws its routes when it stops answering \
    and brings them back when it answers again. Who may register what, and who may call what, is written in furt.conf.\n\n\
    furt run is the gateway. The commands that ask a running one talk to its internal listener, and print tables for people or, with \
    --json, the answer as it came.";

const STATUS: &[(&str, &str)] = &[
    ("0", "It is done."),
    ("1", "It was refused or failed; standard error says why and what to do."),
    ("2", "The command line was wrong."),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    (TOKEN, "Sent as bearer token to the internal listener, where it or a grant asks for one."),
    ("NO_COLOR", "When it is set and not empty, no colour on a terminal. There is none elsewhere, nor with TERM=dumb."),
];

const FILES: &[(&str, &str)] = &[
    ("./furt.conf", "Read unless --config names another file."),
    ("/etc/furt/furt.conf", "Read when there is no ./furt.conf."),
    (
        "./furt-state, /var/lib/furt",
        "Where furt keeps the registrations, unless state_dir says otherwise: the latter as a service of systemd.",
    ),
];

const EXAMPLES: &[(&str, &str)] = &[
    ("furt init && furt check && furt run", "A first furt.conf, and a gateway with it."),
    ("furt register sagjan.json --dry-run", "Whether a registration would be taken; every fault of it at once."),
    ("furt explain GET /api/comments/1 --key-name website", "Where a request would go, and why."),
    ("furt drain sagjan blue && furt deregister sagjan blue", "Take an instance out without losing a request."),
    ("furt events --since 0 --service sagjan", "What happened to a service, and what happens."),
    ("furt services --json | jq '.data.services[] | select(.status != \"UP\")'", "What is not UP."),
];

fn section(roff: &mut Roff, title: &str) {
    roff.control("SH", [title]);
}

fn paragraphs(roff: &mut Roff, text: &str) {
    for (index, paragraph) in text.split("\n\n").enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(sentence(paragraph))]);
    }
}

fn item(roff: &mut Roff, term: impl Into<Vec<Inline>>, meaning: &str) {
    roff.control("TP", []);
    roff.text(term);
    roff.text([roman(meaning)]);
}

/// One command: how it is called, what it does, what it takes.
fn entry(roff: &mut Roff, command: &Command) {
    let own: Vec<&Arg> = command.get_arguments().filter(|argument| !argument.is_global_set() && !argument.is_hide_set()).collect();
    let own: Vec<&Arg> = own.into_iter().filter(|argument| argument.get_id() != "help" && argument.get_id() != "version").collect();
    roff.control("SS", [command.get_bin_name().unwrap_or(command.get_name())]);
    let mut synopsis = vec![bold(command.get_bin_name().unwrap_or(command.get_name()))];
    for argument in own.iter().filter(|argument| argument.is_positional()).chain(own.iter().filter(|argument| !argument.is_positional())) {
        let (before, after) = if argument.is_required_set() { (" ", "") } else { (" [", "]") };
        synopsis.push(roman(before));
        synopsis.extend(term(argument));
        synopsis.push(roman(after));
    }
    roff.text(synopsis);
    roff.control("PP", []);
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    paragraphs(roff, &about);
    for argument in own.into_iter().filter(|argument| !COMMON.contains(&argument.get_id().as_str())) {
        option(roff, argument);
    }
}

fn option(roff: &mut Roff, argument: &Arg) {
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let values = argument.get_possible_values();
    let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
    let takes = argument.get_action().takes_values() && !names.is_empty();
    let one_of = if takes { format!(" One of {}.", names.join(", ")) } else { String::new() };
    item(roff, term(argument), &format!("{}{one_of}", sentence(&help)));
}

/// On one line, with the full stop that clap takes off.
fn sentence(text: &str) -> String {
    let text = text.trim().replace('\n', " ");
    if text.is_empty() || text.ends_with('.') || text.ends_with(" -") { text } else { format!("{text}.") }
}

/// `--host HOST`, `FILE.json`.
fn term(argument: &Arg) -> Vec<Inline> {
    let value = argument.get_value_names().map(|names| names.join(" ")).unwrap_or_else(|| argument.get_id().as_str().to_uppercase());
    match argument.get_long() {
        None => vec![italic(value)],
        Some(long) if argument.get_action().takes_values() => vec![bold(format!("--{long}")), roman(" "), italic(value)],
        Some(long) => vec![bold(format!("--{long}"))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_command_and_every_section() {
        let page = page().unwrap();
        let mut command = Arguments::command();
        command.build();
        let names: Vec<&str> = commands(&command).map(Command::get_name).collect();
        assert!(names.len() > 15 && names.contains(&"new") && names.contains(&"undrain"), "{names:?}");
        for name in names {
            let title = if name == "new" { ".SS \"furt key new\"\n".into() } else { format!(".SS \"furt {name}\"\n") };
            assert!(page.contains(&title), "{title} is not in the page");
        }
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"] {
            assert!(page.lines().any(|line| line == format!(".SH {section}") || line == format!(".SH \"{section}\"")), "{section}");
        }
        assert!(!page.contains("demo-service") && !page.contains("demo\\-service") && !page.contains("furt help"), "{page}");
    }
}
