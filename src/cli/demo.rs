//! `furt demo`: a service registers itself and is reached through the gateway, in one command.
//!
//! Here: a gateway in this process, the sample service in one of its own, a few requests and their
//! answers. Writes nothing outside of a directory for temporary files, which it removes.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use furt::{Furt, config};
use http::{HeaderValue, Method};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{
    Failure,
    client::{self, Answer, Question, send},
    explain::explanation,
    key, logging,
    process::{self, say},
    table::shown,
};

/// For the sample service to start and be registered.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the demonstration; `once`: ends after the requests instead of staying up.
pub async fn demo(once: bool) -> Result<(), Failure> {
    let place = Place::new()?;
    let (key, digest) = key::random()?;
    let file = place.0.join("furt.conf");
    fs::write(&file, configuration(&place.0, &digest)?)
        .map_err(|error| Failure::new(format!("furt: cannot write {}: {error}", file.display())))?;
    let config = config::load(Some(&file))?;
    let _ = logging::install(config.log);
    process::raise_descriptor_limit();

    let shutdown = process::shutdown_on_signals()?;
    let furt = Furt::bind(config).await?;
    let public = furt.public_addr();
    let internal = furt.internal_addr().unwrap_or(config::DEFAULT_GATEWAY);
    say(format!("furt demo: the gateway listens on {public} for callers and on {internal} for services.\n"))?;
    let mut running = tokio::spawn(furt.run(shutdown.clone()));

    let shown = tokio::select! {
        shown = show(public, internal, &key, once) => shown,
        _ = shutdown.cancelled() => Err(Failure::new("furt: stopped before it had shown everything")),
        ended = &mut running => return ended.map_err(|error| Failure::new(format!("furt: {error}")))?.map_err(Failure::from),
    };
    if shown.is_ok() && !once {
        // When somebody kills the sample service meanwhile, its routes are seen to be withdrawn.
        shutdown.cancelled().await;
    }
    shutdown.cancel();
    let stopped = running.await.map_err(|error| Failure::new(format!("furt: {error}")))?;
    let mut service = shown?;
    // It may be gone already.
    let _ = service.kill().await;
    stopped.map_err(Failure::from)
}

/// The sample service registers, and the requests that tell the story are sent.
async fn show(public: SocketAddr, internal: SocketAddr, key: &str, once: bool) -> Result<Child, Failure> {
    let service = start_service(internal).await?;
    let steps = [
        ("A request without a key:", Method::GET, "/api/comments/test-post", None),
        ("With a key, through the wildcard /api/comments/*:", Method::GET, "/api/comments/test-post?page=2", Some(key)),
        ("The key lacks the permission that DELETE asks for:", Method::DELETE, "/api/comments/test-post", Some(key)),
        ("Nobody registered this path:", Method::GET, "/api/nothing", Some(key)),
    ];
    for (title, method, target, key) in steps {
        request(public, title, method, target, key).await?;
    }
    say("Why the second one went where it went (furt explain GET /api/comments/test-post --key-name demo):")?;
    let target = format!("/internal/explain?method=GET&path={}&key_name=demo", client::encoded("/api/comments/test-post"));
    let answer = ask(internal, Question::new(Method::GET, target)).await?;
    say(format!("{}\n", indented(&explanation(&answer, "/api/comments/test-post"))))?;
    if !once {
        let pid = service.id().map(|id| id.to_string()).unwrap_or_default();
        // As it was called here, so that the lines work as they are.
        let furt = std::env::args().next().map_or("furt".into(), |name| shown(&name));
        say("furt stays up; Ctrl-C ends it and the sample service. Try:")?;
        say(format!("  curl -i -H 'X-API-Key: {key}' http://{public}/api/comments/hello"))?;
        say(format!("  curl http://{public}/health"))?;
        say(format!("  {furt} services --gateway {internal}"))?;
        say(format!("  {furt} events --since 0 --gateway {internal}"))?;
        say(format!("  kill {pid}    # the sample service; three missed pings later its requests get 503"))?;
    }
    Ok(service)
}

/// Starts the sample service as a process of its own and waits until furt has confirmed it.
async fn start_service(internal: SocketAddr) -> Result<Child, Failure> {
    let failed = |why: String| Failure::new(format!("furt: the sample service did not start: {why}"));
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    say("The sample service starts and registers itself:")?;
    say(format!("  POST http://{internal}/internal/register-service"))?;
    let mut command = Command::new(program);
    command.args(["demo-service", &internal.to_string()]);
    // The pipe to its standard input ends with this process, however that ends, and the service with it.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let output = child.stdout.take().ok_or_else(|| failed("it has no output".into()))?;
    let mut lines = BufReader::new(output).lines();
    let first = timeout(PATIENCE, lines.next_line()).await.map_err(|_| failed("it was not registered in time".into()))?;
    let first = first.map_err(|error| failed(error.to_string()))?.ok_or_else(|| failed("it ended".into()))?;
    say(format!("  {}\n", shown(&first)))?;
    if !first.contains("\"success\":true") {
        return Err(failed("furt refused it".into()));
    }
    // Renewals are read and dropped, so that the pipe never fills.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(child)
}

async fn request(public: SocketAddr, title: &str, method: Method, target: &str, key: Option<&str>) -> Result<(), Failure> {
    say(title)?;
    say(format!("  {method} http://{public}{target}{}", if key.is_some() { "   X-API-Key: furt_…" } else { "" }))?;
    let mut question = Question::new(method, target);
    if let Some(key) = key.and_then(|key| HeaderValue::from_str(key).ok()) {
        question.headers.insert("x-api-key", key);
    }
    let answer = ask(public, question).await?;
    say(format!("  {}", answer.status))?;
    say(format!("  {}\n", shown(&String::from_utf8_lossy(&answer.body))))?;
    Ok(())
}

async fn ask(address: SocketAddr, question: Question) -> Result<Answer, Failure> {
    send(&address.to_string(), question).await.map_err(|error| Failure::new(format!("furt: {error}")))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}").trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The furt.conf of the demonstration; pings are frequent, so that a killed service is noticed while one looks.
fn configuration(place: &Path, digest: &str) -> Result<String, Failure> {
    let (public, internal) = (free("127.0.0.1:7811")?, free("127.0.0.1:7810")?);
    Ok(format!(
        "[server]\nhost = {}\nport = {}\nlog_level = error\nlog_requests = false\nstate_dir = \"{}\"\n\
         [gateway]\nlisten = {internal}\nallow_registration_from = 127.0.0.1\nhealth_check_interval = 2\nhealth_check_timeout = 1\n\
         [service \"sagjan\"]\npermissions = comments:*\npaths = /api/comments/*\n\
         [api_key \"demo\"]\nkey_sha256 = {digest}\npermissions = comments:read, comments:write\n",
        public.ip(),
        public.port(),
        place.join("state").display(),
    ))
}

/// The usual address of a listener, or port 0 when somebody has it.
fn free(usual: &str) -> Result<SocketAddr, Failure> {
    let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
    let usual = usual.parse().unwrap_or(fallback);
    match TcpListener::bind(usual) {
        Ok(_) => Ok(usual),
        Err(error) => {
            say(format!("{usual} cannot be had ({error}); a free port is taken instead."))?;
            Ok(fallback)
        }
    }
}

/// A directory of the demonstration's own, removed with everything in it.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("furt-demo-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::new(format!("furt: cannot make {}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed is left for whoever clears temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
