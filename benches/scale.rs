//! What a large registry costs: `cargo bench --bench scale`, about a minute after the build.
//!
//! Two real `furt run` processes, one with 10 services and 10 routes, one with 10,000 services and
//! 100,000 routes, registered over the JSON endpoint. Shown and checked: one more registration is
//! live, and durable, in under 10 ms; a request costs within 10 % of what it costs with 10 routes; publishing
//! one change compiles one service; killed and started again, the first request is answered within a second. CPU time is what the kernel counted for the process
//! (`/proc/PID/task/*/schedstat`), in interleaved rounds.
//!
//! Not as shipped: one worker, the access log off, and no scheduled probe within the run (it would
//! be counted as cost of the requests; the budget for probing is its own).

use std::{
    collections::HashMap,
    error::Error,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

const KEY: &str = "bench-key-of-more-than-thirty-two-characters";
const SMALL: Size = Size { services: 10, routes_each: 1 };
const LARGE: Size = Size { services: 10_000, routes_each: 10 };
/// Services that take requests: as many in both processes, so that both hold the same upstream connections.
const IN_USE: usize = 10;
const CONNECTIONS: usize = 16;
/// Many short rounds: what else the machine does falls on all of them alike, or on few.
const ROUNDS: usize = 60;
const REQUESTS_A_ROUND: usize = 4_000;
const REGISTRATIONS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);
const LIVE_WITHIN_MS: f64 = 10.0;
const COST_WITHIN: f64 = 1.10;
const BACK_WITHIN_MS: f64 = 1_000.0;
/// Times that each process is killed and started again.
const RESTARTS: usize = 5;

#[derive(Clone, Copy)]
struct Size {
    services: usize,
    routes_each: usize,
}

fn main() -> Outcome<()> {
    let upstream = upstream()?;
    let mut small = Furt::start("small", upstream, SMALL)?;
    let small_growth = small.one_more()?;
    let mut large = Furt::start("large", upstream, LARGE)?;
    let large_growth = large.one_more()?;

    println!(
        "\n| services | routes | registered in s | MiB resident | one more live after ms, median (min–max) of {REGISTRATIONS} \
         | changes published | services compiled | routes compiled |\n|---|---|---|---|---|---|---|---|"
    );
    for (furt, growth) in [(&small, &small_growth), (&large, &large_growth)] {
        let Size { services, routes_each } = furt.size;
        println!(
            "| {services} | {} | {:.2} | {:.0} | {} | {} | {} | {} |",
            services * routes_each,
            furt.registered_in.as_secs_f64(),
            furt.resident_mib()?,
            spread(&growth.live_ms),
            growth.after.versions,
            growth.after.services,
            growth.after.routes,
        );
    }

    let mut ten = Load::start(&small, IN_USE)?;
    let mut many = Load::start(&large, IN_USE)?;
    let mut wide = Load::start(&large, LARGE.services / 10)?;
    for _ in 0..ROUNDS {
        for load in [&mut ten, &mut many, &mut wide] {
            load.round()?;
        }
    }
    println!(
        "\n| routes | services in use | CPU µs/request, least quarter of {ROUNDS} rounds of {REQUESTS_A_ROUND} | median (min–max) |\n|---|---|---|---|"
    );
    for load in [&ten, &many, &wide] {
        let Size { services, routes_each } = load.furt.size;
        println!("| {} | {} | {:.2} | {} |", services * routes_each, load.services, quarter(&load.costs_us), spread(&load.costs_us));
    }
    let ratio = quarter(&many.costs_us) / quarter(&ten.costs_us);
    println!("\nA request with 100,000 routes costs {ratio:.3} times one with 10.");

    let last = |size: Size| format!("/s{}/r0/x", size.services - 1);
    drop((ten, many, wide));
    println!("\n| services | killed and started again, the last service answers after ms | MiB resident then |\n|---|---|---|");
    let mut back_ms = Vec::new();
    for furt in [&mut small, &mut large] {
        back_ms = (0..RESTARTS).map(|_| furt.again(&last(furt.size))).collect::<Outcome<Vec<_>>>()?;
        println!("| {} | {} | {:.0} |", furt.size.services, spread(&back_ms), furt.resident_mib()?);
    }

    let mut missed = Vec::new();
    if median(&back_ms) > BACK_WITHIN_MS {
        missed.push(format!("a restart with {} services may take {BACK_WITHIN_MS} ms", LARGE.services));
    }
    let growths = [&small_growth, &large_growth];
    if growths.iter().any(|growth| median(&growth.live_ms) >= LIVE_WITHIN_MS) {
        missed.push(format!("one more registration must be live in under {LIVE_WITHIN_MS} ms"));
    }
    if ratio > COST_WITHIN {
        missed.push(format!("a request with 100,000 routes may cost {COST_WITHIN} times one with 10"));
    }
    let one_each = |growth: &Compiled| growth.services <= growth.versions && growth.routes == REGISTRATIONS as u64;
    if !growths.iter().all(|growth| one_each(&growth.after)) {
        missed.push("publishing one change must compile one service".to_owned());
    }
    if !missed.is_empty() {
        return Err(missed.join("; ").into());
    }
    println!("\nscale: all within bounds");
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The mean of the lowest quarter: on a shared machine, the rounds that were disturbed least.
fn quarter(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.truncate(sorted.len().div_ceil(4));
    sorted.iter().sum::<f64>() / sorted.len() as f64
}

fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({least:.2}–{most:.2})", median(values))
}

/// What registering [`REGISTRATIONS`] services more took and did.
struct Growth {
    live_ms: Vec<f64>,
    after: Compiled,
}

/// Counters of the process, or their growth.
struct Compiled {
    /// Changes published: registrations, and transitions of health.
    versions: u64,
    /// Services of which a part was compiled for them.
    services: u64,
    /// Routes put into the table for them.
    routes: u64,
}

/// A running `furt run`, killed when dropped.
struct Furt {
    child: Child,
    folder: PathBuf,
    public: SocketAddr,
    internal: Connection,
    upstream: SocketAddr,
    size: Size,
    registered_in: Duration,
}

impl Drop for Furt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Furt {
    fn start(name: &str, upstream: SocketAddr, size: Size) -> Outcome<Self> {
        let folder = std::env::temp_dir().join(format!("furt-scale-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let (public, internal) = (free_address()?, free_address()?);
        let file = folder.join("furt.conf");
        fs::write(&file, configuration(public, internal, &folder))?;
        let child = spawn(&folder)?;
        let mut furt = Self { child, folder, public, internal: connect(internal)?, upstream, size, registered_in: Duration::ZERO };
        let started = Instant::now();
        for service in 0..size.services {
            furt.register(&format!("s{service}"), size.routes_each)?;
        }
        furt.registered_in = started.elapsed();
        furt.all_up(size.services)?;
        Ok(furt)
    }

    /// Kills it and starts it again; milliseconds from there to the answer of a service.
    fn again(&mut self, path: &str) -> Outcome<f64> {
        self.child.kill()?;
        self.child.wait()?;
        let started = Instant::now();
        self.child = spawn(&self.folder)?;
        let status = connect(self.public)?.get(path)?;
        let took = started.elapsed().as_secs_f64() * 1e3;
        if status == 200 { Ok(took) } else { Err(format!("the first request after a restart: {status}").into()) }
    }

    fn register(&mut self, service: &str, routes: usize) -> Outcome<()> {
        let routes: Vec<_> = (0..routes)
            .map(|route| serde_json::json!({"method": "GET", "path": format!("/{service}/r{route}/*"), "permission": "bench:get"}))
            .collect();
        let body = serde_json::json!({"service": service, "url": format!("http://{}", self.upstream), "routes": routes}).to_string();
        let head = format!("POST /internal/register-service HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (status, answer) = self.internal.exchange(&head)?;
        if status == 200 { Ok(()) } else { Err(format!("registering {service}: {status} {answer}").into()) }
    }

    /// Registers services one at a time and asks for their route as soon as the answer is there.
    fn one_more(&mut self) -> Outcome<Growth> {
        let before = self.counters()?;
        let mut caller = connect(self.public)?;
        let mut live_ms = Vec::new();
        for number in 0..REGISTRATIONS {
            let service = format!("more{number}");
            if caller.get(&format!("/{service}/r0/x"))? != 404 {
                return Err(format!("{service} was routed before it registered").into());
            }
            let sent = Instant::now();
            self.register(&service, 1)?;
            while caller.get(&format!("/{service}/r0/x"))? != 200 {
                if sent.elapsed() > PATIENCE {
                    return Err(format!("{service} was never routed").into());
                }
            }
            live_ms.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        self.all_up(self.size.services + REGISTRATIONS)?;
        let after = self.counters()?;
        let after = Compiled {
            versions: after.versions - before.versions,
            services: after.services - before.services,
            routes: after.routes - before.routes,
        };
        Ok(Growth { live_ms, after })
    }

    /// CPU time by thread, in nanoseconds. Threads come and go: those that wait for a disk.
    fn cpu_ns(&self) -> Outcome<HashMap<OsString, u64>> {
        let mut threads = HashMap::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let thread = thread?;
            // It may have ended since it was listed.
            let Ok(schedstat) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let spent = schedstat.split_whitespace().next().ok_or("empty schedstat")?.parse()?;
            threads.insert(thread.file_name(), spent);
        }
        Ok(threads)
    }

    fn resident_mib(&self) -> Outcome<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    }

    fn all_up(&mut self, services: usize) -> Outcome<()> {
        let asked = Instant::now();
        loop {
            let metrics = self.metrics()?;
            let up = metrics.lines().filter(|line| line.starts_with("furt_service_up{") && line.ends_with(" 1")).count();
            if up == services {
                return Ok(());
            }
            if asked.elapsed() > PATIENCE {
                return Err(format!("{up} of {services} services are up").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn counters(&mut self) -> Outcome<Compiled> {
        let metrics = self.metrics()?;
        let value = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok()).map(|value| value as u64).ok_or(format!("no metric {name}"))
        };
        Ok(Compiled {
            versions: value("furt_snapshot_version")?,
            services: value("furt_services_compiled_total")?,
            routes: value("furt_routes_compiled_total")?,
        })
    }

    fn metrics(&mut self) -> Outcome<String> {
        Ok(self.internal.exchange("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?.1)
    }
}

fn spawn(folder: &Path) -> Outcome<Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_furt"));
    command.args(["run", "--config"]).arg(folder.join("furt.conf")).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command.stderr(fs::File::create(folder.join("log"))?).spawn()?)
}

/// Callers of one process on kept-alive connections; their paths go round the routes of so many services.
struct Load<'a> {
    furt: &'a Furt,
    services: usize,
    callers: Vec<Connection>,
    sent: usize,
    costs_us: Vec<f64>,
}

impl<'a> Load<'a> {
    /// Once round, so that the upstream connections are there.
    fn start(furt: &'a Furt, services: usize) -> Outcome<Self> {
        let callers = (0..CONNECTIONS).map(|_| connect(furt.public)).collect::<Outcome<Vec<_>>>()?;
        let mut load = Self { furt, services, callers, sent: 0, costs_us: Vec::new() };
        while load.sent < (2 * services).max(2_000) {
            load.turn()?;
        }
        Ok(load)
    }

    /// One request on each connection, all under way at once.
    fn turn(&mut self) -> Outcome<()> {
        for caller in &mut self.callers {
            let Size { services, routes_each } = self.furt.size;
            // Spread over the whole table, not over its first services.
            let service = self.sent % self.services * (services / self.services);
            let route = self.sent / self.services % routes_each;
            caller.send_get(&format!("/s{service}/r{route}/items/42"))?;
            self.sent += 1;
        }
        for caller in &mut self.callers {
            let (status, body) = caller.receive()?;
            if status != 200 {
                return Err(format!("a request failed: {status} {body}").into());
            }
        }
        Ok(())
    }

    /// Takes down the CPU time of the process for one request, in microseconds.
    fn round(&mut self) -> Outcome<()> {
        let (before, first) = (self.furt.cpu_ns()?, self.sent);
        while self.sent < first + REQUESTS_A_ROUND {
            self.turn()?;
        }
        let since = |(thread, now): (OsString, u64)| now.saturating_sub(before.get(&thread).copied().unwrap_or(0));
        let spent: u64 = self.furt.cpu_ns()?.into_iter().map(since).sum();
        self.costs_us.push(spent as f64 / 1e3 / (self.sent - first) as f64);
        Ok(())
    }
}

fn configuration(public: SocketAddr, internal: SocketAddr, folder: &Path) -> String {
    format!(
        "[server]\nhost = {}\nport = {}\nworkers = 1\nlog_requests = false\nstate_dir = {}\n\n\
         [gateway]\nlisten = {internal}\nregistration_rate = 1000000/s\nhealth_check_interval = 3600\ndown_check_interval = 3600\n\n\
         [service \"*\"]\npermissions = bench:*\nupstreams = 127.0.0.1\n\n\
         [api_key \"{KEY}\"]\nname = bench\npermissions = bench:*\nrate_limit = 1000000/s\n",
        public.ip(),
        public.port(),
        folder.join("state").display(),
    )
}

fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// One kept-alive HTTP/1.1 connection.
struct Connection(BufReader<TcpStream>);

fn connect(address: SocketAddr) -> Outcome<Connection> {
    let asked = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(Connection(BufReader::with_capacity(1 << 16, stream)));
            }
            Err(error) if asked.elapsed() > PATIENCE => return Err(format!("{address}: {error}").into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

impl Connection {
    fn send_get(&mut self, path: &str) -> Outcome<()> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: api.example.com\r\nX-API-Key: {KEY}\r\nAccept: */*\r\n\r\n");
        Ok(self.0.get_mut().write_all(head.as_bytes())?)
    }

    fn get(&mut self, path: &str) -> Outcome<u16> {
        self.send_get(path)?;
        Ok(self.receive()?.0)
    }

    fn exchange(&mut self, request: &str) -> Outcome<(u16, String)> {
        self.0.get_mut().write_all(request.as_bytes())?;
        self.receive()
    }

    fn receive(&mut self) -> Outcome<(u16, String)> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).ok_or("the connection was closed")?.parse()?;
        let mut length = None;
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse()?);
            }
        }
        let mut body = vec![0; length.ok_or("an answer without content-length")?];
        self.0.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body)?))
    }
}

/// An upstream that answers every request with 200, on a thread of its own for as long as the bench runs.
fn upstream() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener that was bound");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream));
            }
        });
    });
    Ok(address)
}

async fn answer(mut stream: tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"ok\":true}";
    let mut head = Vec::with_capacity(2048);
    while let Ok(1..) = stream.read_buf(&mut head).await {
        // No request here has a body, and none follows before this one is answered.
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
    }
}
