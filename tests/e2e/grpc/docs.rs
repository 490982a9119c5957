//! `docs/grpc.md`: every command in it, run again, still gives what the page says.
//!
//! A command begins with `$ ` and goes on while a quote is open, after a backslash, and to the end of a here-document;
//! what follows up to the next is its output. With `FURT_WRITE_DOCS` set the page is written anew instead.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::Grpcurl;
use crate::{
    client::Request,
    upstream::Upstream,
    world::{World, eventually},
};

/// What the page calls furt's internal listener and the service.
const INTERNAL: &str = "127.0.0.1:7810";
const SERVICE: &str = "127.0.0.1:7812";

/// Different each time.
const VOLATILE: [&str; 8] = ["registrationId", "registeredAt", "epoch", "version", "lastPing", "responseTimeMs", "time", "cursor"];
/// Not shown while they are 0.
const SOMETIMES: [&str; 2] = ["upSeconds", "downSeconds"];

enum Piece {
    Prose(String),
    Command(String),
    Output(String),
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/grpc.md")
}

/// Whether a command goes on in the next line.
fn is_open(command: &str) -> bool {
    let quotes = command.matches('\'').count();
    let here = command.contains("<<'END'");
    if here { !command.ends_with("\nEND\n") } else { quotes % 2 == 1 || command.ends_with("\\\n") }
}

fn pieces(page: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut console = false;
    let mut lines = page.lines().map(|line| format!("{line}\n"));
    while let Some(line) = lines.next() {
        let fence = line.starts_with("```");
        console = if fence { line == "```console\n" } else { console };
        match line.strip_prefix("$ ") {
            Some(command) if console => {
                let mut command = command.to_owned();
                while is_open(&command) {
                    command.push_str(&lines.next().expect("the command ends"));
                }
                pieces.push(Piece::Command(command));
            }
            _ if console && !fence => match pieces.last_mut() {
                Some(Piece::Output(output)) => output.push_str(&line),
                _ => pieces.push(Piece::Output(line)),
            },
            _ => match pieces.last_mut() {
                Some(Piece::Prose(prose)) => prose.push_str(&line),
                _ => pieces.push(Piece::Prose(line)),
            },
        }
    }
    pieces
}

/// The output without what is different each time.
fn normal(output: &str) -> String {
    let key = |line: &str| line.trim_start().strip_prefix('"').and_then(|rest| rest.split_once("\": ")).map(|(key, _)| key.to_owned());
    let line = |line: &str| match key(line) {
        Some(key) if SOMETIMES.contains(&key.as_str()) => None,
        Some(key) if VOLATILE.contains(&key.as_str()) => {
            let begin = line.split_once(": ").map_or(line, |(begin, _)| begin);
            Some(format!("{begin}: …{}\n", if line.ends_with(',') { "," } else { "" }))
        }
        _ => Some(format!("{line}\n")),
    };
    output.lines().filter_map(line).collect()
}

struct Terminal<'a> {
    furt: &'a World,
    upstream: &'a Upstream,
    /// Where `grpcurl` is, and nothing else.
    programs: PathBuf,
}

impl Terminal<'_> {
    fn run(&self, command: &str) -> String {
        let command = command.replace(INTERNAL, &self.furt.internal.to_string()).replace(SERVICE, &self.upstream.address.to_string());
        let path = format!("{}:{}", self.programs.display(), std::env::var("PATH").unwrap_or_default());
        let script = format!("exec 2>&1\n{command}");
        let output = Command::new("sh").arg("-c").arg(script).env("PATH", path).stdin(Stdio::null()).output().expect("sh runs");
        let output = String::from_utf8(output.stdout).expect("text");
        output.replace(&self.furt.internal.to_string(), INTERNAL).replace(&self.upstream.address.to_string(), SERVICE)
    }

    /// Whoever types looks again a moment later: by then what is registered has been probed.
    fn settle(&self) {
        eventually("every health check that is due was answered", || {
            let services = Request::get("/internal/services").send(self.furt.internal).json();
            let known = |service: &serde_json::Value| service["status"] != "UNKNOWN";
            services["data"]["services"].as_array()?.iter().all(known).then_some(())
        });
    }
}

#[test]
fn the_page_about_grpc_shows_what_grpcurl_says() {
    let furt = World::start();
    let Some(grpcurl) = Grpcurl::find(&furt) else { return };
    let upstream = Upstream::start("sagjan");
    let programs = furt.dir.join("programs");
    fs::create_dir(&programs).expect("a directory");
    symlink(&grpcurl.program, programs.join("grpcurl")).expect("a link");
    let terminal = Terminal { furt: &furt, upstream: &upstream, programs };

    let text = fs::read_to_string(page()).expect("the page");
    let mut written = String::new();
    let mut pieces = pieces(&text).into_iter().peekable();
    let mut commands = String::new();
    while let Some(piece) = pieces.next() {
        match piece {
            Piece::Prose(prose) => written.push_str(&prose),
            // Only what follows a command is output.
            Piece::Output(output) => panic!("an output of nothing: {output}"),
            Piece::Command(command) => {
                let said = match pieces.next_if(|piece| matches!(piece, Piece::Output(_))) {
                    Some(Piece::Output(said)) => said,
                    _ => String::new(),
                };
                let says = terminal.run(&command);
                if std::env::var_os("FURT_WRITE_DOCS").is_none() {
                    assert_eq!(normal(&says), normal(&said), "`{command}` says something else than the page");
                }
                terminal.settle();
                written.push_str(&format!("$ {command}{says}"));
                commands.push_str(&command);
            }
        }
    }
    // Every RPC there is has its place.
    for service in ["furt.v1.RegistryService", "furt.v1.SnapshotService"] {
        for rpc in grpcurl.text(&[], &["list", service]).lines() {
            let (_, name) = rpc.rsplit_once('.').expect("SERVICE.RPC");
            assert!(commands.contains(&format!("{service}/{name}")), "{rpc} is not shown");
        }
    }
    if std::env::var_os("FURT_WRITE_DOCS").is_some() {
        fs::write(page(), written).expect("the page is written");
    }
}
