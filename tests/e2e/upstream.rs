//! An upstream inside the test that keeps, byte for byte, what furt sent it.

use std::{
    io::Write,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::Receiver,
    },
    thread::JoinHandle,
};

use tokio::time::Instant;

use crate::wire::{self, Fields, Wire};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    pub at: Instant,
    /// Which of the upstream's connections it came on.
    pub connection: usize,
}

impl Seen {
    /// The one value of a field; none when it is missing or repeated.
    pub fn field(&self, name: &str) -> Option<&str> {
        wire::value(&self.fields, name)
    }
    /// Every value of a field.
    pub fn values(&self, name: &str) -> Vec<&str> {
        wire::values(&self.fields, name)
    }
}

/// What the upstream does with a request.
pub enum Reply {
    /// Writes this and keeps the connection.
    Bytes(Vec<u8>),
    /// Writes this and closes.
    Last(Vec<u8>),
    /// Says nothing until it is stopped.
    Hang,
    /// Writes each piece as the test sends it, then keeps the connection.
    Pieces(Receiver<Vec<u8>>),
}

/// What it answers to furt's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Status(u16),
    /// Accepts and never answers.
    Hang,
}

type Handler = Box<dyn Fn(&Seen) -> Reply + Send + Sync>;

struct Shared {
    handler: Handler,
    health: Mutex<Health>,
    requests: Mutex<Vec<Seen>>,
    probes: Mutex<Vec<Seen>>,
    faults: Mutex<Vec<String>>,
    /// What each connection has received.
    raw: Mutex<Vec<Vec<u8>>>,
    open: Mutex<Vec<TcpStream>>,
    accepted: AtomicUsize,
    stopped: AtomicBool,
}

/// A listening upstream; gone when dropped.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// A plain answer with a length.
pub fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    answer(200, &[], body)
}

/// An answer with fields of its own and a length.
pub fn answer(status: u16, fields: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n", body.len()).into_bytes();
    for (name, value) in fields {
        bytes.extend(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Upstream {
    /// Answers every request with 200, its name in `X-Upstream`, and `NAME METHOD TARGET` as the body.
    pub fn start(name: &'static str) -> Self {
        Self::start_on(0, name)
    }

    /// Like [`Self::start`], on a port of one's choice.
    pub fn start_on(port: u16, name: &str) -> Self {
        let name = name.to_owned();
        Self::with_on(port, move |seen| {
            let body = format!("{name} {} {}", seen.method, seen.target);
            let mut bytes = answer(200, &[("Content-Type", "text/plain"), ("X-Upstream", &name)], &body);
            if seen.method == "HEAD" {
                bytes.truncate(bytes.len() - body.len());
            }
            Reply::Bytes(bytes)
        })
    }

    /// Answers as `handler` says; probes are answered by [`Health`].
    pub fn with(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::with_on(0, handler)
    }

    /// Like [`Self::with`], on a port of one's choice.
    pub fn with_on(port: u16, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the upstream's port is free");
        let address = listener.local_addr().expect("a bound socket");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            health: Mutex::new(Health::Status(200)),
            requests: Mutex::default(),
            probes: Mutex::default(),
            faults: Mutex::default(),
            raw: Mutex::default(),
            open: Mutex::default(),
            accepted: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the probes get from now on.
    pub fn set_health(&self, health: Health) {
        *lock(&self.shared.health) = health;
    }

    /// The requests received so far, probes aside.
    pub fn requests(&self) -> Vec<Seen> {
        lock(&self.shared.requests).clone()
    }

    /// The only request received.
    #[track_caller]
    pub fn request(&self) -> Seen {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "exactly one request: {requests:?}");
        requests.into_iter().next_back().expect("just counted")
    }

    /// The newest request received.
    #[track_caller]
    pub fn last(&self) -> Seen {
        self.requests().pop().expect("a request was forwarded")
    }

    /// The probes received so far.
    pub fn probes(&self) -> Vec<Seen> {
        lock(&self.shared.probes).clone()
    }

    /// What any connection received that was no well-formed request.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.shared.faults).clone()
    }

    /// Everything received on any connection, whether it made sense or not.
    pub fn raw(&self) -> Vec<u8> {
        lock(&self.shared.raw).concat()
    }

    /// What it received on connections that were not for probes.
    pub fn raw_requests(&self) -> Vec<u8> {
        let raw = lock(&self.shared.raw);
        raw.iter().filter(|bytes| !String::from_utf8_lossy(bytes).to_lowercase().contains("x-furt-epoch:")).flatten().copied().collect()
    }

    /// Closes every open connection, as a restarting server would, and goes on listening.
    pub fn drop_connections(&self) {
        for stream in lock(&self.shared.open).drain(..) {
            // The peer may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Stops listening and closes every connection.
    pub fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accept call, which then sees the flag.
        let _ = TcpStream::connect(self.address);
        let _ = acceptor.join();
        self.drop_connections();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(other) = stream.try_clone() else { continue };
        let _ = stream.set_nodelay(true);
        lock(&shared.open).push(other);
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        lock(&shared.raw).push(Vec::new());
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let watcher = Arc::clone(&shared);
            let mut wire = Wire::watched(stream, move |piece| lock(&watcher.raw)[number].extend_from_slice(piece));
            serve(&mut wire, &shared, number);
            let _ = wire.stream().shutdown(Shutdown::Both);
        });
    }
}

fn serve(wire: &mut Wire, shared: &Shared, connection: usize) {
    loop {
        let seen = match read(wire, connection) {
            Ok(Some(seen)) => seen,
            Ok(None) => return,
            Err(error) => {
                // A connection cut off by furt is no malformed request; an unfinished one stays in `raw`.
                if error.kind() == std::io::ErrorKind::InvalidData {
                    lock(&shared.faults).push(error.to_string());
                }
                return;
            }
        };
        let reply = if seen.field("x-furt-epoch").is_some() {
            lock(&shared.probes).push(seen);
            let health = *lock(&shared.health);
            match health {
                Health::Status(status) => Reply::Bytes(answer(status, &[("Location", "/elsewhere")], "")),
                Health::Hang => Reply::Hang,
            }
        } else {
            lock(&shared.requests).push(seen.clone());
            (shared.handler)(&seen)
        };
        if !write(wire, reply) {
            return;
        }
    }
}

fn read(wire: &mut Wire, connection: usize) -> std::io::Result<Option<Seen>> {
    let Some(head) = wire.head()? else { return Ok(None) };
    if let Some(fault) = wire::request_fault(&head) {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, fault));
    }
    let at = Instant::now();
    if wire::value(&head.fields, "expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
        wire.stream().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let (body, trailers) = wire.request_body(&head.fields)?;
    let mut parts = head.line.split(' ').map(str::to_owned);
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Ok(Some(Seen { method, target, fields: head.fields, body, trailers, at, connection }))
}

/// Whether the connection goes on.
fn write(wire: &mut Wire, reply: Reply) -> bool {
    match reply {
        Reply::Bytes(bytes) => wire.stream().write_all(&bytes).is_ok(),
        Reply::Last(bytes) => {
            let _ = wire.stream().write_all(&bytes);
            false
        }
        Reply::Hang => {
            let _ = wire.rest();
            false
        }
        Reply::Pieces(pieces) => pieces.iter().all(|piece| wire.stream().write_all(&piece).is_ok()),
    }
}
