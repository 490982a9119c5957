//! A service by hand, connection by connection: it reads and writes what it is told to, resets, or does nothing at all.
//!
//! Here: accepting, one request's bytes, the end of a connection. Not here: answers of services that behave (`upstream`).

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::upstream::ok;

/// Longer than anything a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the service and the threads of its connections know of each other.
#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    /// Connections that a function has at the moment.
    held: AtomicUsize,
    accepted: AtomicUsize,
    sockets: Mutex<HashMap<usize, TcpStream>>,
}

/// A listening service; gone when dropped.
pub struct RawService {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// One connection that furt made.
pub struct Accepted {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Which of the service's connections it is.
    pub number: usize,
    resets: bool,
}

impl RawService {
    /// Hands each connection to `serve`, on a thread of its own. furt's probes come over connections too; who reads
    /// requests by [`Accepted::request`] never sees them.
    pub fn start(serve: impl Fn(&mut Accepted) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("a bound socket");
        let shared = Arc::new(Shared::default());
        let (known, serve) = (shared.clone(), Arc::new(serve));
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if known.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let number = known.accepted.fetch_add(1, Ordering::SeqCst);
                if let Ok(socket) = stream.try_clone() {
                    known.sockets().insert(number, socket);
                }
                let (known, serve) = (known.clone(), serve.clone());
                std::thread::spawn(move || {
                    let mut accepted = Accepted::new(stream, number);
                    known.held.fetch_add(1, Ordering::SeqCst);
                    serve(&mut accepted);
                    known.held.fetch_sub(1, Ordering::SeqCst);
                    if !accepted.resets {
                        // furt may have closed it already.
                        let _ = accepted.stream.shutdown(Shutdown::Both);
                    }
                    known.sockets().remove(&number);
                });
            }
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections that furt has made so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections whose function has not returned.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn sockets(&self) -> std::sync::MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RawService {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accept call, which then sees the flag.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for (_, socket) in self.shared.sockets().drain() {
            // furt may have closed it already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Accepted {
    fn new(stream: TcpStream, number: usize) -> Self {
        stream.set_nodelay(true).expect("a socket takes it");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes it");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes it");
        Self { stream, buffer: Vec::new(), number, resets: false }
    }

    /// The head of the next request, blank line included; none when the connection has ended. Probes are answered and
    /// not shown.
    pub fn request(&mut self) -> Option<String> {
        loop {
            let end = loop {
                if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                    break end + 4;
                }
                self.fill().ok().filter(|count| *count > 0)?;
            };
            let head: Vec<u8> = self.buffer.drain(..end).collect();
            let head = String::from_utf8_lossy(&head).into_owned();
            if !head.to_lowercase().contains("\r\nx-furt-epoch:") {
                return Some(head);
            }
            self.write(ok("")).ok()?;
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.buffer.extend_from_slice(&piece[..count]);
                    return Ok(count);
                }
                error => return error,
            }
        }
    }

    /// Takes so many bytes that follow a head; false when the connection ended before.
    pub fn take(&mut self, count: usize) -> bool {
        while self.buffer.len() < count {
            if !self.fill().is_ok_and(|count| count > 0) {
                return false;
            }
        }
        self.buffer.drain(..count);
        true
    }

    /// Sends bytes.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Reads whatever comes until furt lets go.
    pub fn until_closed(&mut self) {
        while self.fill().is_ok_and(|count| count > 0) {
            self.buffer.clear();
        }
    }

    /// Lets the connection end by a reset once its function returns: closing with a linger of zero sends one (socket(7),
    /// SO_LINGER).
    pub fn reset(&mut self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("a socket takes it");
        self.resets = true;
    }
}

/// The target of a request's head.
pub fn target(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}
