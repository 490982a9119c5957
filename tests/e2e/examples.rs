//! The services of `examples/`, as they are, against the real furt: in Rust over furt-client, in Python and in Lua over
//! plain JSON.
//!
//! One that cannot run here says that it was skipped, and why.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use serde_json::{Value, json};

use crate::{
    client::{Client, Request},
    world::{Conf, WEBSITE_KEY, World, eventually},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Rust,
    Python,
    Lua,
}

const ALL: [Language; 3] = [Language::Rust, Language::Python, Language::Lua];

impl Language {
    fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Lua => "lua",
        }
    }

    /// How it is started; none when it cannot be here, which is said aloud.
    fn command(self) -> Option<Command> {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let runs = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
            output.is_ok_and(|output| output.status.success())
        };
        let with = |program: &str, file: PathBuf| {
            let mut command = Command::new(program);
            command.arg(file);
            command
        };
        let (found, lacking) = match self {
            Self::Rust => {
                let program = rust_program();
                (program.exists().then(|| Command::new(program)), "cargo build -p furt-client --example comments")
            }
            Self::Python => (runs("python3", &["-c", ""]).then(|| with("python3", examples.join("python/comments.py"))), "python3"),
            Self::Lua => {
                let there = runs("lua5.4", &["-e", "require 'socket'"]);
                (there.then(|| with("sh", examples.join("lua/comments.sh"))), "Debian's lua5.4 and lua-socket")
            }
        };
        if found.is_none() {
            // Not through the captured output of a test that passes.
            let _ = writeln!(std::io::stderr(), "SKIPPED: the example in {} needs {lacking}", self.name());
        }
        found
    }
}

/// Where cargo puts the examples of what it tests, this test being in `deps` beside them.
fn rust_program() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples/comments")
}

/// A running example; killed when dropped.
struct Example {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Example {
    /// Starts one on a port that is free.
    fn start(language: Language, furt: &World, service: &str, instance: &str) -> Option<Self> {
        let mut command = language.command()?;
        command.env("FURT_GATEWAY", furt.internal.to_string()).env("SERVICE", service).env("INSTANCE", instance).env("PORT", "0");
        command.env_remove("FURT_TOKEN");
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = started.expect("the example starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let kept = log.clone();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| kept.lock().expect("nobody panics with it").push(line)));
        Some(Self { child, log })
    }

    /// SIGTERM, without waiting.
    fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success(), "it takes SIGTERM");
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Waits until it ends by itself.
    fn ended(&mut self) -> ExitStatus {
        eventually("the example ends", || self.child.try_wait().expect("a child of ours"))
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("what the example said:\n{}", self.log.lock().expect("nobody panics with it").join("\n"));
        }
    }
}

/// Requests under way to a service, by furt's metrics.
fn in_flight(furt: &World, service: &str) -> u64 {
    let metrics = Request::get("/metrics").send(furt.internal).text();
    let label = format!("furt_upstream_in_flight{{service=\"{service}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&label)?.parse().ok()).unwrap_or(0)
}

/// None once nobody registered the service.
fn instances(furt: &World, service: &str) -> Vec<Value> {
    let answer = Request::get(&format!("/internal/services/{service}")).send(furt.internal);
    if answer.status == 404 {
        return Vec::new();
    }
    answer.json()["data"]["service"]["instances"].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone()
}

fn lives_and_leaves(language: Language) {
    let furt = Conf::new().quick().start();
    let Some(mut service) = Example::start(language, &furt, "comments", "default") else { return };
    furt.until("comments", "UP");
    let comment = json!({"author": "Website", "text": "first, \"naturally\"\n"});
    let posted = furt.send(&Request::post("/api/comments/a", "first, \"naturally\"\n").key(WEBSITE_KEY));
    assert_eq!((posted.status, posted.json()), (201, comment.clone()));
    assert_eq!(furt.get("/api/comments/a?page=2").json(), json!([comment]));
    assert_eq!(furt.get("/api/comments/b").json(), json!([]));

    let mut caller = Client::new(furt.public);
    let request = Request::post("/api/comments/a", "the last one").key(WEBSITE_KEY).to_bytes(furt.public);
    let (first, rest) = request.split_at(request.len() - 3);
    caller.write(first).expect("it is sent");
    eventually("the service has the request", || (in_flight(&furt, "comments") == 1).then_some(()));
    service.terminate();
    let mut seen = Vec::new();
    eventually("it gets no new requests", || {
        seen.push(furt.get("/api/comments/a").status);
        (seen.last() == Some(&503)).then_some(())
    });
    assert!(seen.iter().all(|status| [200, 503].contains(status)), "{seen:?}");
    assert!(service.runs(), "it waits for what is in flight");
    caller.write(rest).expect("it is sent");
    assert_eq!(caller.read("POST").expect("an answer").status, 201);

    assert!(service.ended().success());
    assert_eq!(instances(&furt, "comments"), [Value::Null; 0], "deregistered");
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
}

#[test]
fn a_service_in_rust_registers_serves_and_leaves_in_order() {
    lives_and_leaves(Language::Rust);
}

#[test]
fn a_service_in_python_registers_serves_and_leaves_in_order() {
    lives_and_leaves(Language::Python);
}

#[test]
fn a_service_in_lua_registers_serves_and_leaves_in_order() {
    lives_and_leaves(Language::Lua);
}

/// Every example that can run here, each as a service of its own name, once furt has seen it UP.
fn services(furt: &World) -> Vec<(&'static str, Example)> {
    let start = |language: Language| Some((language.name(), Example::start(language, furt, language.name(), "default")?));
    let services: Vec<_> = ALL.into_iter().filter_map(start).collect();
    services.iter().for_each(|(name, _)| drop(furt.until(name, "UP")));
    services
}

#[test]
fn all_are_back_by_themselves_when_furt_was_killed_and_has_lost_its_state() {
    let mut furt = Conf::new().quick().start();
    let mut services = services(&furt);
    furt.kill();
    fs::remove_dir_all(furt.dir.join("state")).expect("furt kept its state there");
    furt.start_again();
    for (name, service) in &mut services {
        let mut seen = Vec::new();
        eventually("the service is back", || {
            seen.push(furt.get(&format!("/api/{name}/a")).status);
            (seen.last() == Some(&200)).then_some(())
        });
        // Not known yet, or known: never anything else.
        assert!(seen.iter().all(|status| [200, 404].contains(status)), "{name}: {seen:?}");
        furt.until(name, "UP");
        assert!(service.runs(), "{name}: the same process, never touched");
    }
}

#[test]
fn all_register_again_long_before_it_is_due_when_furt_was_killed() {
    // The shipped intervals: a renewal is due after a minute, far beyond what this test waits for.
    let mut furt = World::start();
    let services = services(&furt);
    furt.kill();
    furt.start_again();
    for (name, _) in &services {
        let renewed = |instance: &Value| instance["restored"] == false;
        eventually("furt has heard from the service", || instances(&furt, name).first().is_some_and(renewed).then_some(()));
        furt.get(&format!("/api/{name}/a")).status(200);
    }
}

/// Callers that never pause, and every answer they got.
struct Callers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<u16>>>,
}

impl Callers {
    fn start(furt: &World, path: &str) -> Self {
        let (stop, answered): (Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
        let requests = [Request::get(path), Request::post(path, "again")].map(|request| request.key(WEBSITE_KEY));
        let threads = requests.map(|request| {
            let (stop, answered, public) = (stop.clone(), answered.clone(), furt.public);
            std::thread::spawn(move || {
                let mut statuses = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    statuses.push(request.send(public).status);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                statuses
            })
        });
        Self { stop, answered, threads: threads.into() }
    }

    /// Waits until they got twenty more answers.
    fn go_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("callers are answered", || (self.answered.load(Ordering::Relaxed) >= before + 20).then_some(()));
    }

    fn stop(self) -> Vec<u16> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("every request was answered")).collect()
    }
}

#[test]
fn as_instances_of_one_service_they_restart_one_after_the_other_and_no_request_fails() {
    let furt = Conf::new().quick().start();
    let start = |language: Language| Some((language, Example::start(language, &furt, "comments", language.name())?));
    let up = |count: usize| {
        let up = |instance: &&Value| instance["status"] == "UP";
        eventually("all are UP", || (instances(&furt, "comments").iter().filter(up).count() == count).then_some(()));
    };
    let running: Vec<_> = ALL.into_iter().filter_map(start).collect();
    let count = running.len();
    if count < 2 {
        // With one alone nothing serves while it restarts.
        let _ = writeln!(std::io::stderr(), "SKIPPED: of the examples only {count} can run here, so none took over from another");
        return;
    }
    up(count);
    let callers = Callers::start(&furt, "/api/comments/a");
    let mut later = Vec::new();
    for (language, mut service) in running {
        service.terminate();
        assert!(service.ended().success(), "{language:?}");
        callers.go_on();
        let left = instances(&furt, "comments");
        assert!(left.iter().all(|instance| instance["id"] != language.name()), "it took its leave: {left:?}");
        later.push(start(language).expect("it started before"));
        up(count);
        callers.go_on();
    }
    let statuses = callers.stop();
    assert!(statuses.iter().all(|status| [200, 201].contains(status)), "{statuses:?}");
}
