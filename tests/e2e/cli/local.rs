//! The commands that need no running furt.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    cli::{Ended, furt_in, has, installed, words},
    client::Request,
    port::Port,
    upstream::Upstream,
};

/// A directory of the test's own, removed in the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("furt-cli-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    fn run(&self, line: &str) -> Ended {
        Ended::of(&mut furt_in(&self.0, &words(line)))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A furt that was started by hand, killed when dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs furt in `dir` and waits until it listens: the public address and the internal one.
fn run(dir: &Path) -> (Started, SocketAddr, SocketAddr) {
    let mut child = furt_in(dir, &["run"]).stderr(Stdio::piped()).spawn().expect("furt starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let started = Started(child);
    let line = lines.find(|line| line.contains("furt listening")).expect("it listens");
    std::thread::spawn(move || lines.for_each(drop));
    let address = |name: &str| line.split(' ').find_map(|part| part.strip_prefix(name)?.parse().ok());
    (started, address("public=").expect("a public address"), address("internal=").expect("an internal address"))
}

#[test]
fn the_first_furt_conf_is_checked_runs_and_takes_the_service_it_speaks_of() {
    let dir = Dir::new();
    let said = dir.run("init").done();
    let key = said.lines().find_map(|line| line.trim().strip_prefix("KEY=")).expect("a key").to_owned();
    let conf = dir.0.join("furt.conf");
    assert_eq!(fs::metadata(&conf).expect("furt.conf").permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&conf).expect("text");
    assert!(!text.contains(&key), "only the digest is kept");
    assert_eq!(said.matches(&key).count(), 1, "the key is shown once");

    let checked = dir.run("check").done();
    assert!(checked.starts_with("furt.conf is valid: ") && checked.lines().count() == 1, "no warning: {checked}");

    // Other tests have the usual ports.
    let text = text.replace("port = 7811", "port = 0").replace("listen = 127.0.0.1:7810", "listen = 127.0.0.1:0");
    fs::write(&conf, text).expect("written");
    let (_furt, public, internal) = run(&dir.0);
    let upstream = Upstream::start("hello");
    let posted = said.lines().find_map(|line| line.split_once("-d '")?.1.strip_suffix('\'')).expect("a registration to try");
    let body = posted.replace("http://127.0.0.1:8080", &upstream.url());
    Request::post("/internal/register-service", body).send(internal).status(200);
    let answer = Request::get("/hello/world").key(&key).send(public);
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello GET /hello/world"));
    Request::get("/hello/world").send(public).refused(401, "UNAUTHORIZED");
}

#[test]
fn init_never_writes_over_a_file() {
    let dir = Dir::new();
    dir.run("init --config my.conf").done();
    let before = fs::read(dir.0.join("my.conf")).expect("written");
    has(&dir.run("init --config my.conf").failed(), &["my.conf is there already", "furt check --config my.conf"]);
    assert_eq!(fs::read(dir.0.join("my.conf")).expect("still there"), before);
    has(&dir.run("init --config etc/furt.conf").failed(), &["mkdir -p etc"]);
    assert!(!dir.0.join("furt.conf").exists(), "nothing else was written");
    let made = dir.run("init --json");
    let json = made.json();
    assert_eq!((json["file"].as_str(), json["key_name"].as_str()), (Some("furt.conf"), Some("first")));
    let text = fs::read_to_string(dir.0.join("furt.conf")).expect("written");
    has(&text, &[json["key_sha256"].as_str().expect("a digest")]);
    made.done();
}

#[test]
fn without_a_furt_conf_the_next_step_is_told() {
    let dir = Dir::new();
    for line in ["run", "check"] {
        has(&dir.run(line).failed(), &["no furt.conf found", "furt init", "furt demo"]);
    }
    has(&dir.run("check --config my.conf").failed(), &["my.conf", "furt init --config my.conf"]);
}

#[test]
fn a_check_is_told_to_people_and_machines() {
    let dir = Dir::new();
    fs::write(dir.0.join("furt.conf"), "[server]\nport = many\nprot = 1\n").expect("written");
    let told = dir.run("check");
    assert_eq!(told.code, Some(1));
    has(&told.out, &["error: furt.conf:2: port: ", "warning: furt.conf:3: prot: ", "\"port\""]);
    let told = dir.run("check --json");
    assert_eq!((told.code, told.err.as_str()), (Some(1), ""));
    let json = told.json();
    assert_eq!(json["valid"], false);
    assert_eq!((&json["errors"][0]["line"], &json["errors"][0]["key"]), (&2.into(), &"port".into()));
    assert_eq!((&json["warnings"][0]["line"], &json["warnings"][0]["key"]), (&3.into(), &"prot".into()));
}

#[test]
fn a_new_key_comes_with_the_lines_for_furt_conf_and_those_of_a_rotation() {
    let dir = Dir::new();
    let said = dir.run("key new website").done();
    let line = |text: &str, start: &str| text.lines().find(|line| line.trim().starts_with(start)).map(str::to_owned).expect("a line");
    has(&said, &["[api_key \"website\"]", "furt reload"]);
    let first = line(&said, "key_sha256 = ");
    fs::write(dir.0.join("furt.conf"), format!("[api_key \"website\"]\n{first}\npermissions = a:b\n")).expect("written");
    let said = dir.run("key new website").done();
    let digest = first.trim_start_matches("key_sha256 = ");
    let both = line(&said, "key_sha256 = ");
    assert!(both.ends_with(&format!(", {digest}")), "the old one goes on working: {both}");
    fs::write(dir.0.join("furt.conf"), format!("[api_key \"website\"]\n{both}\npermissions = a:b\n")).expect("written");
    dir.run("check").done();
    let json = dir.run("key new other --json").json();
    assert_eq!(json["key"].as_str().map(str::len), Some(69));
    assert_eq!((&json["name"], json["key_sha256"].as_str().map(str::len)), (&"other".into(), Some(64)));
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_where_help_is() {
    let dir = Dir::new();
    for line in [
        "no-such-command",
        "run --json",
        "services --gateway nowhere",
        "drain sagjan --seconds 301",
        "deregister sagjan --registration-id x",
        "key new",
        "completions tcsh",
    ] {
        let ended = dir.run(line);
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{line}");
        has(&ended.err, &["--help"]);
    }
    has(&dir.run("--help").done(), &["services", "events", "FURT_TOKEN", "Exit status"]);
    has(&dir.run("--version").done(), &[env!("CARGO_PKG_VERSION")]);
}

/// Lets a program read text and say whether it is well-formed.
fn takes(program: &str, arguments: &[&str], text: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut input = child.stdin.take().expect("piped");
    let text = text.to_owned();
    let writing = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    writing.join().expect("no panic").expect("it reads all");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{program} {arguments:?}: {said}");
}

#[test]
fn shells_read_their_completions() {
    let dir = Dir::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = dir.run(&format!("completions {shell}")).done();
        has(&script, &["undrain", "registration-id", "config"]);
        assert!(!script.contains("demo-service"), "{shell} offers what is not for people");
        match shell {
            "bash" | "zsh" if installed(shell) => takes(shell, &["-n"], &script),
            "fish" if installed(shell) => takes(shell, &["--no-execute"], &script),
            _ => {}
        }
    }
    if installed("bash") {
        let script = dir.run("completions bash").done();
        let try_it = format!(
            "{script}\nCOMP_WORDS=(furt und) COMP_CWORD=1 COMP_LINE='furt und' COMP_POINT=8\n_furt furt und furt\n[ \"${{COMPREPLY[*]}}\" = undrain ]"
        );
        takes("bash", &[], &try_it);
    }
}

#[test]
fn the_man_page_renders() {
    let dir = Dir::new();
    let page = dir.run("man").done();
    assert!(page.lines().any(|line| line.starts_with(".TH FURT 1")), "{page}");
    has(&page, &[".SH NAME", ".SH COMMANDS", ".SS \"furt key new\"", ".SH \"EXIT STATUS\"", "FURT_TOKEN"]);
    if installed("groff") {
        takes("groff", &["-man", "-Tutf8", "-ww", "-z"], &page);
    }
    if installed("mandoc") {
        takes("mandoc", &["-T", "lint", "-W", "error"], &page);
    }
    if installed("man") {
        let file = dir.0.join("furt.1");
        fs::write(&file, &page).expect("written");
        let output = Command::new("man").arg("-l").arg(&file).env("MANPAGER", "cat").output().expect("man runs");
        // Bold and underlined letters are struck over.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let plain = text.chars().fold(String::new(), |mut plain, character| {
            if character == '\u{8}' {
                plain.pop();
            } else {
                plain.push(character);
            }
            plain
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        has(&plain, &["furt undrain SERVICE [INSTANCE]", "EXIT STATUS", "--registration-id"]);
    }
}

#[test]
fn nobody_there_is_told_with_the_address_and_who_said_so() {
    let dir = Dir::new();
    let nobody = Port::take();
    let free = nobody.address;
    let gateway = format!("--gateway {free}");
    has(&dir.run(&format!("services {gateway}")).failed(), &[&free.to_string(), "--gateway names this address", "`furt run`"]);
    // JSON is for answers; there is none.
    has(&dir.run(&format!("services --json {gateway}")).failed(), &["cannot reach furt at"]);
    let conf = |text: String| fs::write(dir.0.join("furt.conf"), text).expect("written");
    conf(format!("[gateway]\nlisten = {free}\n"));
    has(&dir.run("routes").failed(), &[&free.to_string(), "[gateway] listen of furt.conf", "--gateway names another"]);
    conf(format!("[gateway]\nenabled = false\nlisten = {free}\n"));
    has(&dir.run("reload").failed(), &["enabled = false"]);
    has(&dir.run("events --once --config gone.conf").failed(), &["cannot read gone.conf"]);
}

#[test]
fn somebody_else_there_is_not_taken_for_furt() {
    let dir = Dir::new();
    let other = Upstream::start("other");
    for line in ["services", "services --json", "probe sagjan", "reload"] {
        let said = dir.run(&format!("{line} --gateway {}", other.address)).failed();
        has(&said, &["not as furt does", "--gateway"]);
    }
    let closing = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = closing.local_addr().expect("bound");
    std::thread::spawn(move || closing.incoming().for_each(drop));
    has(&dir.run(&format!("routes --gateway {address}")).failed(), &["did not answer in HTTP", "--gateway"]);
}

#[test]
fn a_registration_that_cannot_be_read_is_told() {
    has(&Dir::new().run("register gone.json --gateway 127.0.0.1:1").failed(), &["cannot read gone.json"]);
}
