//! An upstream in a process of its own, which can be killed with -9 and started again on the same port.
//!
//! The process is this test binary again, told by its environment to be an upstream: so it is always
//! built with the tests and never installed with furt. It ends when its standard input does, so that
//! it cannot outlive a test that was killed.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use furt_proto::v1::{SessionRequest, registry_service_client::RegistryServiceClient, session_request::Message as Said};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;

use crate::{
    client::Request,
    port::Port,
    upstream::Upstream,
    world::{block_on, grpc_registration},
};

/// A running upstream process, or one that was killed; killed for good when dropped.
pub struct Process {
    pub name: String,
    port: Port,
    registers: Registers,
    child: Option<Child>,
}

/// Whether it registers for itself, and how.
#[derive(Clone)]
enum Registers {
    Not,
    OverJson(SocketAddr),
    /// As this instance.
    BySession(SocketAddr, String),
}

impl Process {
    /// An upstream that answers every request with 200 and says its name and process id.
    pub fn start(name: &str) -> Self {
        Self::launch(name, Registers::Not)
    }

    /// The same, and it registers `GET /api/NAME/*` for itself with the furt at `internal`, renewing
    /// and registering again by the rules of DESIGN §7 only.
    pub fn registering(name: &str, internal: SocketAddr) -> Self {
        Self::launch(name, Registers::OverJson(internal))
    }

    /// The same as an instance of its own name, by a session that it holds; it says the instance's name.
    pub fn in_session(name: &str, instance: &str, internal: SocketAddr) -> Self {
        Self::launch(name, Registers::BySession(internal, instance.into()))
    }

    fn launch(name: &str, registers: Registers) -> Self {
        let mut process = Self { name: name.into(), port: Port::take(), registers, child: None };
        process.start_again();
        process
    }

    pub fn url(&self) -> String {
        self.port.url()
    }

    /// Starts it, on the port it always had.
    pub fn start_again(&mut self) {
        let program = std::env::current_exe().expect("the path of this test");
        let mut command = Command::new(program);
        command.args(["--exact", "process::an_upstream_of_its_own", "--nocapture"]);
        command.env("UPSTREAM_NAME", &self.name).env("UPSTREAM_PORT", self.port.number().to_string());
        command.env_remove("UPSTREAM_REGISTERS_WITH").env_remove("UPSTREAM_INSTANCE");
        match &self.registers {
            Registers::Not => &mut command,
            Registers::OverJson(internal) => command.env("UPSTREAM_REGISTERS_WITH", internal.to_string()),
            Registers::BySession(internal, instance) => {
                command.env("UPSTREAM_REGISTERS_WITH", internal.to_string()).env("UPSTREAM_INSTANCE", instance)
            }
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the upstream starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let listening = lines.by_ref().map_while(Result::ok).any(|line| line == "listening");
        // Whatever else it says is read, so that it never waits for a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        self.child = Some(child);
        assert!(listening, "{} did not listen on {}", self.name, self.port.address);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The upstream process itself when [`Process`] starts it; else a look at what it would be.
#[test]
fn an_upstream_of_its_own() {
    let variable = |name: &str| std::env::var(name).ok();
    let (Some(name), Some(port)) = (variable("UPSTREAM_NAME"), variable("UPSTREAM_PORT")) else {
        let upstream = Upstream::start("looked-at");
        assert_eq!(Request::get("/x?y").send(upstream.address).text(), "looked-at GET /x?y");
        assert_eq!(upstream.request().target, "/x?y");
        return;
    };
    let instance = variable("UPSTREAM_INSTANCE");
    let says = format!("{}-{}", instance.as_ref().unwrap_or(&name), std::process::id());
    let upstream = Upstream::start_on(port.parse().expect("a port"), &says);
    writeln!(std::io::stderr(), "listening").expect("the parent reads");
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let internal = variable("UPSTREAM_REGISTERS_WITH").map(|internal| internal.parse().expect("an address"));
    match (internal, instance) {
        (Some(internal), Some(instance)) => stay_in_session(&name, &instance, internal, &upstream),
        (Some(internal), None) => stay_registered(&name, internal, &upstream),
        (None, _) => loop {
            std::thread::park();
        },
    }
}

/// What a service does: register, renew as often as it was told, and register again when a probe
/// tells of another epoch or of a registration that was not renewed.
fn stay_registered(name: &str, internal: SocketAddr, upstream: &Upstream) {
    let path = format!("/api/{name}/*");
    let body = json!({"service": name, "url": upstream.url(), "routes": [{"method": "GET", "path": path, "permission": "comments:read"}]});
    let request = Request::post("/internal/register-service", body.to_string());
    let pause = || std::thread::sleep(Duration::from_millis(20));
    loop {
        let Some(data) = request.try_send(internal).ok().filter(|answer| answer.status == 200).map(|answer| answer.json()["data"].clone())
        else {
            pause();
            continue;
        };
        let renew_after = data["renew_after_seconds"].as_u64().expect("how often to renew");
        let (renew_at, seen) = (Instant::now() + Duration::from_secs(renew_after), upstream.probes().len());
        let lost = |epoch: &Value| {
            upstream.probes()[seen..]
                .iter()
                .any(|probe| probe.field("x-furt-epoch") != epoch.as_str() || probe.field("x-furt-registered") == Some("false"))
        };
        while Instant::now() < renew_at && !lost(&data["epoch"]) {
            pause();
        }
    }
}

/// What a service does that speaks gRPC: register by a session and hold it, and again when it ends.
fn stay_in_session(name: &str, instance: &str, internal: SocketAddr, upstream: &Upstream) {
    let route = format!("GET /api/{name}/* comments:read");
    let mut registration = grpc_registration(name, &upstream.url(), &[&route]);
    registration.instance = instance.into();
    let hold = async || {
        let mut client = RegistryServiceClient::connect(format!("http://{internal}")).await.ok()?;
        let (sends, requests) = mpsc::channel(1);
        sends.send(SessionRequest { message: Some(Said::Register(registration.clone())) }).await.ok()?;
        let mut answers = client.session(ReceiverStream::new(requests)).await.ok()?.into_inner();
        while answers.message().await.ok()?.is_some() {}
        Some(())
    };
    loop {
        block_on(hold());
        std::thread::sleep(Duration::from_millis(20));
    }
}
