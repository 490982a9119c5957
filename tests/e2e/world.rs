//! A running furt with a furt.conf, on ports of its own.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use furt_proto::v1::{RegisterRequest, registry_service_client::RegistryServiceClient};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{
    client::{Answer, Request},
    port::Port,
};

/// May do everything in `comments:`.
pub const WEBSITE_KEY: &str = "website-key-0123456789-0123456789";
/// May only read comments.
pub const READER_KEY: &str = "reader-key-0123456789-0123456789-";
/// May do everything.
pub const ADMIN_KEY: &str = "admin-key-0123456789-0123456789-0";

/// Far more than any condition takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` gives something, looking again and again; fails when it never does.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A number from the environment, for runs longer than CI has time for.
pub fn from_environment(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// A furt.conf under construction.
#[derive(Clone)]
pub struct Conf {
    server: Vec<String>,
    gateway: Vec<String>,
    grants: String,
    more: String,
    public_port: u16,
    internal_port: u16,
    enabled: bool,
}

impl Conf {
    /// Three keys, a default grant for any permission and path, and the shipped intervals: a health
    /// check never interferes within a test.
    pub fn new() -> Self {
        Self {
            server: Vec::new(),
            gateway: Vec::new(),
            grants: "[service \"*\"]\npermissions = *\nallow_public = true\n".into(),
            more: String::new(),
            public_port: 0,
            internal_port: 0,
            enabled: true,
        }
    }

    /// A line of `[server]`.
    pub fn server(mut self, line: &str) -> Self {
        self.server.push(line.into());
        self
    }

    /// A line of `[gateway]`.
    pub fn gateway(mut self, line: &str) -> Self {
        self.gateway.push(line.into());
        self
    }

    /// These grants instead of the default one.
    pub fn grants(mut self, text: &str) -> Self {
        self.grants = text.into();
        self
    }

    /// Further sections.
    pub fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self.more.push('\n');
        self
    }

    /// No internal listener, static routes only.
    pub fn disabled(mut self) -> Self {
        self.enabled = false;
        self
    }

    /// Pings every 200 ms, every 400 ms while DOWN.
    pub fn quick(self) -> Self {
        self.gateway("health_check_interval = 200ms").gateway("health_check_timeout = 200ms").gateway("down_check_interval = 400ms")
    }

    fn text(&self, state_dir: &str) -> String {
        let mut text = format!("[server]\nhost = 127.0.0.1\nport = {}\nstate_dir = {state_dir}\n", self.public_port);
        let mut lines = |lines: &[String]| lines.iter().for_each(|line| writeln!(text, "{line}").expect("a string takes it"));
        lines(&self.server);
        lines(&[format!("\n[gateway]\nenabled = {}\nlisten = 127.0.0.1:{}", self.enabled, self.internal_port)]);
        lines(&self.gateway);
        let key = |key: &str, name: &str, permissions: &str| format!("\n[api_key \"{key}\"]\nname = {name}\npermissions = {permissions}\n");
        text.push('\n');
        text.push_str(&self.grants);
        text.push_str(&key(WEBSITE_KEY, "Website", "comments:*"));
        text.push_str(&key(READER_KEY, "Reader", "comments:read"));
        text.push_str(&key(ADMIN_KEY, "Admin", "*"));
        text.push('\n');
        text.push_str(&self.more);
        text
    }

    /// Starts a furt with it.
    pub fn start(self) -> World {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("furt-e2e-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for the test");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let ports = [Port::take(), Port::take()];
        let conf = Self { public_port: ports[0].number(), internal_port: ports[1].number(), ..self };
        let mut world = World { public: nowhere, internal: nowhere, dir, conf, child: None, log: Arc::default(), _ports: ports };
        world.start_again();
        world
    }
}

/// A running furt; killed, and its directory removed, when dropped.
pub struct World {
    /// Where callers go.
    pub public: SocketAddr,
    /// Where services register; port 0 with `enabled = false`.
    pub internal: SocketAddr,
    /// The directory of its furt.conf and state.
    pub dir: PathBuf,
    conf: Conf,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
    /// Its own also while it is gone.
    _ports: [Port; 2],
}

impl World {
    /// With [`Conf::new`].
    pub fn start() -> Self {
        Conf::new().start()
    }

    /// Starts furt with the furt.conf as it is now, on the ports it had.
    pub fn start_again(&mut self) {
        let conf = self.dir.join("furt.conf");
        let state_dir = self.dir.join("state");
        fs::write(&conf, self.conf.text(&state_dir.display().to_string())).expect("furt.conf is written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_furt"))
            .args(["run", "--config"])
            .arg(&conf)
            .current_dir(&self.dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("furt starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        self.child = Some(child);
        let (told, listening) = mpsc::channel();
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, addresses)) = line.split_once("furt listening ") {
                    // Only the first such line is waited for.
                    let _ = told.send(addresses.to_owned());
                }
                log.lock().expect("nobody panics with it").push(line);
            }
        });
        let Ok(addresses) = listening.recv_timeout(PATIENCE) else { panic!("furt did not start:\n{}", self.log().join("\n")) };
        let address = |name: &str| {
            let found = addresses.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            found.and_then(|address| address.parse().ok())
        };
        self.public = address("public").unwrap_or_else(|| panic!("no public address in {addresses:?}"));
        if self.conf.enabled {
            self.internal = address("internal").unwrap_or_else(|| panic!("no internal address in {addresses:?}"));
        }
    }

    /// Writes another furt.conf for the furt that runs, on the ports it has.
    pub fn rewrite(&mut self, conf: Conf) {
        self.conf = Conf { public_port: self.conf.public_port, internal_port: self.conf.internal_port, ..conf };
        let text = self.conf.text(&self.dir.join("state").display().to_string());
        fs::write(self.dir.join("furt.conf"), text).expect("furt.conf is written");
    }

    /// Asks it to read furt.conf again.
    pub fn reload(&self) -> Answer {
        Request::post("/internal/reload", "").send(self.internal)
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// A signal, without waiting.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status().expect("kill runs");
        assert!(sent.success(), "furt takes SIG{name}");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("furt runs").id()
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("furt runs");
        let status = eventually("furt ends", || child.try_wait().expect("a child of ours"));
        self.child = None;
        status
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("a child of ours").is_none())
    }

    /// What it logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("nobody panics with it").clone()
    }

    /// Whether a line of its log has all of these words.
    pub fn logged(&self, words: &[&str]) -> bool {
        self.log().iter().any(|line| words.iter().all(|word| line.contains(word)))
    }

    /// Posts a registration as it is.
    pub fn post(&self, body: &Value) -> Answer {
        Request::post("/internal/register-service", body.to_string()).send(self.internal)
    }

    /// Registers routes written as `METHOD PATH [PERMISSION]` and gives the `data` of the answer.
    #[track_caller]
    pub fn register(&self, service: &str, url: &str, routes: &[&str]) -> Value {
        let answer = self.post(&registration(service, url, routes));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"].clone()
    }

    /// Registers an instance of its own name.
    #[track_caller]
    pub fn register_instance(&self, service: &str, instance: &str, url: &str, routes: &[&str]) -> Value {
        let mut body = registration(service, url, routes);
        body["instance"] = instance.into();
        let answer = self.post(&body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"].clone()
    }

    /// Sends a request through the public listener.
    pub fn send(&self, request: &Request) -> Answer {
        request.send(self.public)
    }

    /// `GET path` as the website.
    pub fn get(&self, path: &str) -> Answer {
        self.send(&Request::get(path).key(WEBSITE_KEY))
    }

    /// The body of `/health` as the internal listener shows it.
    pub fn health(&self) -> Value {
        Request::get("/health").send(self.internal).json()
    }

    /// What `/health` says of one service; null when it is not there.
    pub fn health_of(&self, service: &str) -> Value {
        self.health()["services"][service].clone()
    }

    /// Waits until `/health` shows a service as `status`.
    #[track_caller]
    pub fn until(&self, service: &str, status: &str) -> Value {
        eventually(&format!("{service} is {status}"), || Some(self.health_of(service)).filter(|found| found["status"] == status))
    }

    /// What the control plane holds once every service's health is known, to see that nothing changes.
    pub fn registry(&self) -> Value {
        eventually("every service was probed", || {
            let answer = Request::get("/internal/services").send(self.internal);
            assert_eq!(answer.status, 200, "{answer:?}");
            let data = &answer.json()["data"];
            let known = data["services"].as_array()?.iter().all(|service| service["status"] != "UNKNOWN");
            known.then(|| json!({"services": data["services"], "version": data["version"]}))
        })
    }

    /// This life of its control plane.
    pub fn registry_epoch(&self) -> String {
        Request::get("/internal/services").send(self.internal).json()["data"]["epoch"].as_str().expect("an epoch").to_owned()
    }

    /// Runs something with a gRPC client of the internal listener.
    pub fn grpc<T>(&self, work: impl AsyncFnOnce(RegistryServiceClient<Channel>) -> T) -> T {
        block_on(async {
            let channel =
                Channel::from_shared(format!("http://{}", self.internal)).expect("a url").connect().await.expect("furt speaks h2c");
            work(RegistryServiceClient::new(channel)).await
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let last = log.len().saturating_sub(40);
            eprintln!("the end of furt's log:\n{}", log[last..].join("\n"));
        }
        // Left behind at worst.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs a future to its end on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// A registration with routes written as `METHOD PATH [PERMISSION]`.
pub fn registration(service: &str, url: &str, routes: &[&str]) -> Value {
    let route = |text: &&str| {
        let mut parts = text.split(' ');
        let mut route = json!({"method": parts.next(), "path": parts.next()});
        if let Some(permission) = parts.next() {
            route["permission"] = permission.into();
        }
        route
    };
    json!({"service": service, "url": url, "routes": routes.iter().map(route).collect::<Vec<_>>()})
}

/// The same for gRPC.
pub fn grpc_registration(service: &str, url: &str, routes: &[&str]) -> RegisterRequest {
    let route = |text: &&str| {
        let mut parts = text.split(' ').map(str::to_owned);
        furt_proto::v1::Route {
            method: parts.next().unwrap_or_default(),
            path: parts.next().unwrap_or_default(),
            permission: parts.next().unwrap_or_default(),
            ..Default::default()
        }
    };
    RegisterRequest { service: service.into(), url: url.into(), routes: routes.iter().map(route).collect(), ..Default::default() }
}
