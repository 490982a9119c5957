//! Colour and width: what a terminal sees, and what everything else does not.

use std::process::{Command, Stdio};

use crate::{
    cli::{Ended, asking, has, installed},
    port::Port,
    upstream::Upstream,
    world::{World, eventually},
};

fn with_two() -> (World, Upstream) {
    let (furt, upstream) = (World::start(), Upstream::start("sagjan"));
    let nobody = Port::take();
    furt.register("sagjan", &upstream.url(), &["GET /api/comments/* comments:read"]);
    furt.until("sagjan", "UP");
    furt.register("obr", &nobody.url(), &["GET /api/obr/* obr:read"]);
    eventually("obr's first ping was missed", || (furt.health_of("obr")["consecutive_failures"] == 1).then_some(()));
    (furt, upstream)
}

/// What a terminal of `columns` is shown by `furt LINE`, with these variables.
fn on_a_terminal(furt: &World, line: &str, columns: u16, variables: &[(&str, &str)]) -> String {
    let command = format!("stty cols {columns}; exec {} {line} --gateway {}", env!("CARGO_BIN_EXE_furt"), furt.internal);
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).current_dir(&furt.dir).env_clear().env("PATH", "/usr/bin:/bin").env("SHELL", "/bin/sh");
    let output = script.envs(variables.iter().copied()).stdin(Stdio::null()).output().expect("script runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8").replace("\r\n", "\n");
    assert!(output.status.success(), "{text}");
    text
}

const XTERM: (&str, &str) = ("TERM", "xterm");

#[test]
fn what_is_no_terminal_gets_no_escape_codes() {
    let (furt, _upstream) = with_two();
    for line in
        ["services", "services sagjan", "services obr", "routes", "explain GET /api/obr/a", "--help", "services nobody", "no-such-command"]
    {
        let ended = Ended::of(asking(&furt, line).env(XTERM.0, XTERM.1));
        let both = format!("{}{}", ended.out, ended.err);
        assert!(!both.is_empty() && !both.contains('\u{1b}'), "{line}: {both:?}");
    }
}

#[test]
fn a_terminal_gets_colour_unless_somebody_objects() {
    if !installed("script") {
        return;
    }
    let (furt, _upstream) = with_two();
    let coloured = on_a_terminal(&furt, "services", 200, &[XTERM]);
    has(&coloured, &["\u{1b}[32mUP\u{1b}[0m", "\u{1b}[33mUNKNOWN\u{1b}[0m"]);
    for objection in [&[XTERM, ("NO_COLOR", "1")][..], &[("TERM", "dumb")], &[]] {
        let plain = on_a_terminal(&furt, "services", 200, objection);
        assert!(!plain.contains('\u{1b}'), "{objection:?}: {plain:?}");
        has(&plain, &["sagjan", "UP", "obr", "UNKNOWN"]);
    }
    // Colour takes no room: without it the columns are where they were.
    let plain = on_a_terminal(&furt, "services", 200, &[("TERM", "dumb")]);
    let without = ["\u{1b}[32m", "\u{1b}[33m", "\u{1b}[0m"].iter().fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(without, plain);
    assert!(!on_a_terminal(&furt, "services --json", 200, &[XTERM]).contains('\u{1b}'), "JSON has no colour");
}

#[test]
fn a_narrow_terminal_is_shown_all_of_it() {
    if !installed("script") {
        return;
    }
    let (furt, upstream) = with_two();
    for columns in [200, 100, 60, 30] {
        let shown = on_a_terminal(&furt, "services", columns, &[("TERM", "dumb")]);
        let error = "refused";
        has(&shown, &["SERVICE", "sagjan", "obr", &upstream.url(), "UNKNOWN", error]);
        let longest = shown.lines().map(str::len).max().unwrap_or(0);
        // Only what is one word is longer than so narrow a terminal.
        assert!(columns < 60 || longest <= usize::from(columns), "{longest} of {columns}:\n{shown}");
    }
}
