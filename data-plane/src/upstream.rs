//! Connections to services: made to checked addresses only, kept per worker, used again.
//!
//! Here: connecting, the pool of idle connections, and whether a request that failed may be sent
//! again. Not here: which instance, which headers.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use foldhash::fast::RandomState;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

use crate::{body::RequestBody, metrics::Counters, view::Instance, worker::Worker};

/// Idle connections that a worker keeps to one address.
const MAX_IDLE: usize = 256;
/// An idle connection is closed after this long; many servers close theirs after 60 s.
const IDLE_NS: u64 = 30_000_000_000;
/// A request that may not be sent twice does not use a connection idle for longer (DESIGN §9).
const FRESH_NS: u64 = 1_000_000_000;
/// For what is left of a request's body once its answer has ended.
const LINGER: Duration = Duration::from_secs(5);
/// Most of a head, either way, in bytes; also how much of a body is read at once.
const MAX_BUFFER: usize = 64 * 1024;
/// Most of what a service says before its answer's head is whole, in bytes: the head, and interim answers, which
/// have no other bound and would keep a worker from everything else.
const MAX_AHEAD: u64 = 4 * MAX_BUFFER as u64;

/// A connection to an instance, lent to one request. One that is dropped instead of given back ends soon.
pub struct Lease {
    /// Where the request goes in.
    pub sender: SendRequest<RequestBody>,
    /// The address that it was made to.
    address: SocketAddr,
    /// Bytes that may still be read from it; [`MAX_AHEAD`] when it is lent.
    left: Rc<Cell<u64>>,
    /// Whether it has carried a request before.
    pub reused: bool,
    held: Held,
}

/// Held for as long as a connection is wanted; its end tells the connection's task.
type Held = oneshot::Sender<Infallible>;

impl Lease {
    /// Whether any byte of an answer has come since it was lent.
    pub fn heard(&self) -> bool {
        self.left.get() != MAX_AHEAD
    }

    /// The head of the answer has come; its body has bounds of its own.
    pub fn answered(&self) {
        self.left.set(u64::MAX);
    }
}

struct Idle {
    sender: SendRequest<RequestBody>,
    left: Rc<Cell<u64>>,
    since: u64,
    held: Held,
}

/// The idle connections of one worker, by address, the latest used last. Instances at one address
/// share them: it is the same server.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<SocketAddr, Vec<Idle>, RandomState>>,
}

impl Pool {
    /// An idle connection to one of an instance's addresses that is still open. `repeatable`: the
    /// request may be sent again if the connection turns out to be closed.
    pub fn take(&self, instance: &Instance, now: u64, repeatable: bool) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        let longest = if repeatable { IDLE_NS } else { FRESH_NS };
        instance.addresses.iter().find_map(|address| {
            let connections = idle.get_mut(address)?;
            // The latest used is last: once it has been idle for too long, all have.
            while let Some(Idle { sender, left, held, .. }) = connections.pop_if(|idle| now.saturating_sub(idle.since) <= longest) {
                if sender.is_ready() {
                    left.set(MAX_AHEAD);
                    return Some(Lease { sender, address: *address, left, reused: true, held });
                }
            }
            None
        })
    }

    /// Keeps a connection whose answer has ended.
    pub fn give_back(&self, lease: Lease, now: u64) {
        if !lease.sender.is_ready() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(lease.address).or_default();
        if connections.len() < MAX_IDLE {
            connections.push(Idle { sender: lease.sender, left: lease.left, since: now, held: lease.held });
        }
    }

    /// Closes what has been idle for too long or was closed from the other side.
    pub fn look(&self, now: u64) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|idle| now.saturating_sub(idle.since) <= IDLE_NS && !idle.sender.is_closed());
            !connections.is_empty()
        });
    }
}

/// A new connection to the first address of an instance that accepts one.
pub async fn connect(worker: &Worker, instance: &Instance) -> io::Result<Lease> {
    let mut failure = io::Error::new(io::ErrorKind::AddrNotAvailable, "the instance has no address");
    for address in &instance.addresses {
        Counters::add(&worker.shared.counters.upstream_connects);
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return handshake(stream, *address).await;
            }
            Err(error) => {
                Counters::add(&worker.shared.counters.upstream_connect_failures);
                failure = error;
            }
        }
    }
    Err(failure)
}

async fn handshake(stream: TcpStream, address: SocketAddr) -> io::Result<Lease> {
    let left = Rc::new(Cell::new(MAX_AHEAD));
    let socket = Heard { inner: stream, left: left.clone() };
    let (sender, connection) =
        http1::Builder::new().max_buf_size(MAX_BUFFER).writev(false).handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
    let (held, unwanted) = oneshot::channel();
    tokio::task::spawn_local(drive(connection, unwanted));
    Ok(Lease { sender, address, left, reused: false, held })
}

/// Drives a connection to its end. A service may answer whole before it has the whole of a request's body, and then
/// take the rest; a client that never sends the rest does not keep the connection.
async fn drive(connection: impl Future<Output = hyper::Result<()>>, unwanted: oneshot::Receiver<Infallible>) {
    let mut connection = pin!(connection);
    // Its errors reach the request that it carries; without one there is nobody to tell.
    tokio::select! {
        biased;
        _ = connection.as_mut() => {}
        _ = unwanted => drop(timeout(LINGER, connection).await),
    }
}

/// A socket that counts what it hears, and hears so much and no more.
struct Heard {
    inner: TcpStream,
    left: Rc<Cell<u64>>,
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left.get() == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "no answer in all that the service said")));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.left.set(self.left.get().saturating_sub((buffer.filled().len() - before) as u64));
        result
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, data)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, data)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// How many requests may be sent a second time: 20 % of the requests and 10 a second more.
#[derive(Debug)]
pub struct RetryBudget {
    tokens: Cell<f64>,
    at: Cell<u64>,
}

impl RetryBudget {
    const MOST: f64 = 100.0;

    /// A full one.
    pub fn new(now: u64) -> Self {
        Self { tokens: Cell::new(10.0), at: Cell::new(now) }
    }

    /// A request was sent.
    pub fn earn(&self) {
        self.tokens.set((self.tokens.get() + 0.2).min(Self::MOST));
    }

    /// Whether one may be sent again now.
    pub fn spend(&self, now: u64) -> bool {
        let seconds = Duration::from_nanos(now.saturating_sub(self.at.replace(now))).as_secs_f64();
        let tokens = (self.tokens.get() + 10.0 * seconds).min(Self::MOST);
        self.tokens.set(if tokens >= 1.0 { tokens - 1.0 } else { tokens });
        tokens >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_fifth_of_the_requests_and_ten_a_second() {
        let budget = RetryBudget::new(0);
        let spent = |now| (0..1000).take_while(|_| budget.spend(now)).count();
        assert_eq!(spent(0), 10);
        assert_eq!(spent(1_000_000_000), 10);
        (0..100).for_each(|_| budget.earn());
        assert!((19..=21).contains(&spent(1_000_000_000)));
    }
}
