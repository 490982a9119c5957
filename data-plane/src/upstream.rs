//! Connections to services: made to checked addresses only, kept per worker, used again.
//!
//! Here: connecting, over TLS where the url says so, and what a request is lent: a connection of its own over
//! HTTP/1.1, a share of one over HTTP/2. In `pool` what is kept between requests. Not here: which instance, which
//! headers, whether a request may go again.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use furt_proto::network::is_local_fault;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::{
    body::RequestBody,
    connection::LocalExecutor,
    metrics::Counters,
    view::{Instance, Protocol, View},
    worker::Worker,
};

mod pool;
mod retry;

pub use pool::{Bounds, Pool, tls_name};
pub use retry::RetryBudget;

/// For what is left of a request's body once its answer has ended.
const LINGER: Duration = Duration::from_secs(5);
/// Most of a head, either way, in bytes; also how much of a body is read at once.
const MAX_BUFFER: usize = 64 * 1024;
/// Most of what a service says before its answer's head is whole, in bytes: the head, and interim answers, which
/// have no other bound and would keep a worker from everything else.
const MAX_AHEAD: u64 = 4 * MAX_BUFFER as u64;
/// Streams that furt opens on one HTTP/2 connection, and what it takes of each before the caller does: a caller that
/// reads nothing is to stall its own stream only, so the connection's window is the sum.
const MAX_STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// A service on an HTTP/2 connection that answers no ping for so long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a connection leads: connections of one endpoint can stand in for one another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    address: SocketAddr,
    /// The name that the certificate has to have, and under which trust it was asked for; `None`: no TLS.
    tls: Option<(Arc<str>, u64)>,
}

impl Endpoint {
    /// `trust`: the id of the view's `upstream_tls`.
    fn of(instance: &Instance, address: SocketAddr, trust: u64) -> Self {
        Self { address, tls: instance.tls.clone().map(|name| (name, trust)) }
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// This machine cannot make one now; that speaks against no instance.
    Ours(io::Error),
    /// The instance accepts none.
    Theirs(String),
}

/// A connection to an instance, or a share of one, lent to one request.
pub struct Lease {
    endpoint: Endpoint,
    /// Whether it has carried a request before.
    pub reused: bool,
    wire: Wire,
}

enum Wire {
    Http1(Http1),
    Http2(Stream),
}

/// A connection over HTTP/1.1; one that is dropped instead of given back ends soon.
struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    line: Rc<Line>,
    held: Held,
}

/// Held for as long as a connection is wanted; its end tells the connection's task.
type Held = oneshot::Sender<Infallible>;

/// A share of a connection over HTTP/2.
struct Stream(Rc<Http2>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
    }
}

/// A connection over HTTP/2.
struct Http2 {
    sender: http2::SendRequest<RequestBody>,
    /// Requests under way, and how many the service wants at the most.
    streams: Cell<u32>,
    most: Rc<Cell<u32>>,
    /// Since when it is idle; 0: not looked at since it was busy.
    idle_since: Cell<u64>,
}

/// What is known of the bytes of one connection over HTTP/1.1.
#[derive(Default)]
struct Line {
    /// Bytes that may still be read from it; [`MAX_AHEAD`] when it is lent.
    left: Cell<u64>,
    /// Who gets the connection once the service switched protocols.
    switched: RefCell<Option<oneshot::Sender<Switched>>>,
}

/// A connection that speaks something else from here on, and what was read of it already.
pub type Switched = (Socket, Bytes);

impl Lease {
    /// Sends a request.
    ///
    /// # Errors
    /// With the request when nothing of it was sent.
    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match &mut self.wire {
            Wire::Http1(http1) => http1.sender.try_send_request(request).await,
            Wire::Http2(stream) => {
                // Each request has a sender of its own: they are handles on the one connection.
                let mut sender = stream.0.sender.clone();
                sender.try_send_request(request).await
            }
        }
    }

    /// Whether any byte of an answer has come since it was lent. Over HTTP/2 that is not known before the head.
    pub fn heard(&self) -> bool {
        match &self.wire {
            Wire::Http1(http1) => http1.line.left.get() != MAX_AHEAD,
            Wire::Http2(_) => false,
        }
    }

    /// The head of the answer has come; its body has bounds of its own.
    pub fn answered(&self) {
        if let Wire::Http1(http1) = &self.wire {
            http1.line.left.set(u64::MAX);
        }
    }

    /// Where the connection comes out once the service has switched protocols. Asked for before the request is sent.
    pub fn when_switched(&self) -> Option<oneshot::Receiver<Switched>> {
        let Wire::Http1(http1) = &self.wire else { return None };
        let (sender, receiver) = oneshot::channel();
        *http1.line.switched.borrow_mut() = Some(sender);
        Some(receiver)
    }
}

/// A connection for one request to an instance: a share of one that is there over HTTP/2, else a new one, to the first
/// of its addresses that accepts one.
///
/// # Errors
/// When there is none to be had.
pub async fn connect(worker: &Worker, view: &View, instance: &Instance) -> Result<Lease, ConnectError> {
    let (h2, trust) = (instance.protocol == Protocol::H2, view.config.upstream_tls.id());
    if h2
        && instance.keep_alive
        && let Some(first) = instance.addresses.first()
    {
        // One connects for all that come meanwhile.
        let gate = worker.pool.gate(&Endpoint::of(instance, *first, trust));
        let _turn = gate.lock().await;
        if let Some(mut shared) = worker.pool.share(instance, worker.coarse.now(), true, trust) {
            // Made while this one waited: as fresh as its own would be.
            shared.reused = false;
            return Ok(shared);
        }
        return fresh(worker, view, instance, h2).await;
    }
    fresh(worker, view, instance, h2).await
}

async fn fresh(worker: &Worker, view: &View, instance: &Instance, h2: bool) -> Result<Lease, ConnectError> {
    let mut failure = ConnectError::Theirs("the instance has no address".into());
    for address in &instance.addresses {
        Counters::add(&worker.shared.counters.upstream_connects);
        match open(view, instance, *address, h2).await {
            Ok(socket) => {
                let endpoint = Endpoint::of(instance, *address, view.config.upstream_tls.id());
                let made = if h2 { handshake_h2(worker, instance, endpoint, socket).await } else { handshake(endpoint, socket).await };
                return made.map_err(|error| ConnectError::Theirs(error.to_string()));
            }
            Err(error) => {
                Counters::add(&worker.shared.counters.upstream_connect_failures);
                failure = if is_local_fault(&error) { ConnectError::Ours(error) } else { ConnectError::Theirs(error.to_string()) };
            }
        }
    }
    Err(failure)
}

async fn open(view: &View, instance: &Instance, address: SocketAddr, h2: bool) -> io::Result<Socket> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let Some(host) = &instance.tls else { return Ok(Socket { stream: Transport::Plain(stream), line: Rc::default() }) };
    let stream = view.config.upstream_tls.connect(host, h2, stream).await?;
    Ok(Socket { stream: Transport::Tls(Box::new(stream)), line: Rc::default() })
}

async fn handshake(endpoint: Endpoint, socket: Socket) -> hyper::Result<Lease> {
    let line = socket.line.clone();
    line.left.set(MAX_AHEAD);
    let (sender, connection) = http1::Builder::new().max_buf_size(MAX_BUFFER).writev(false).handshake(TokioIo::new(socket)).await?;
    let (held, unwanted) = oneshot::channel();
    tokio::task::spawn_local(drive(connection, line.clone(), unwanted));
    Ok(Lease { endpoint, reused: false, wire: Wire::Http1(Http1 { sender, line, held }) })
}

/// Drives a connection to its end. A service may answer whole before it has the whole of a request's body, and then
/// take the rest; a client that never sends the rest does not keep the connection.
async fn drive(mut connection: http1::Connection<TokioIo<Socket>, RequestBody>, line: Rc<Line>, unwanted: oneshot::Receiver<Infallible>) {
    // Its errors reach the request that it carries; without one there is nobody to tell.
    let ended = {
        let mut ending = poll_fn(|context| connection.poll_without_shutdown(context));
        tokio::select! {
            biased;
            ended = &mut ending => Some(ended),
            _ = unwanted => timeout(LINGER, ending).await.ok(),
        }
    };
    let Some(Ok(())) = ended else { return };
    let parts = connection.into_parts();
    let mut socket = parts.io.into_inner();
    let switched = line.switched.borrow_mut().take();
    match switched {
        // Nobody waits for it: it did not switch.
        Some(switched) => drop(switched.send((socket, parts.read_buf))),
        None => drop(poll_fn(|context| Pin::new(&mut socket).poll_shutdown(context)).await),
    }
}

async fn handshake_h2(worker: &Worker, instance: &Instance, endpoint: Endpoint, socket: Socket) -> hyper::Result<Lease> {
    socket.line.left.set(u64::MAX);
    let (sender, mut connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_header_list_size(MAX_BUFFER as u32)
        .max_send_buf_size(MAX_BUFFER)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(socket))
        .await?;
    let most = Rc::new(Cell::new(MAX_STREAMS));
    let shared = Rc::new(Http2 { sender, streams: Cell::new(1), most: most.clone(), idle_since: Cell::new(0) });
    tokio::task::spawn_local(async move {
        let ended = poll_fn(|context| {
            let polled = Pin::new(&mut connection).poll(context);
            most.set(u32::try_from(connection.current_max_send_streams()).unwrap_or(MAX_STREAMS).min(MAX_STREAMS));
            polled
        });
        drop(ended.await);
    });
    if instance.keep_alive {
        worker.pool.keep(endpoint.clone(), shared.clone());
    }
    Ok(Lease { endpoint, reused: false, wire: Wire::Http2(Stream(shared)) })
}

/// Whether a service that speaks HTTP/2 says that it did nothing with a request: it refused the stream, or named an
/// earlier one as its last when it went away (RFC 9113 §8.7, §6.8).
pub fn is_unprocessed(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM)
                || h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR);
        }
        source = cause.source();
    }
    false
}

/// The socket to a service: it counts what it hears, and hears so much and no more.
pub struct Socket {
    stream: Transport,
    line: Rc<Line>,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Asks the kernel to find out when the other side is gone: what it switched to may be silent for ever.
    pub fn keep_alive(&self) {
        let stream = match &self.stream {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
        };
        // Without it a dead service is found by the next write.
        let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&crate::worker::keepalive());
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = self.line.left.get();
        if left == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "no answer in all that the service said")));
        }
        let before = buffer.filled().len();
        match &mut self.stream {
            Transport::Plain(stream) => ready!(Pin::new(stream).poll_read(context, buffer))?,
            Transport::Tls(stream) => ready!(Pin::new(stream).poll_read(context, buffer))?,
        }
        if left != u64::MAX {
            self.line.left.set(left.saturating_sub((buffer.filled().len() - before) as u64));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, data),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, data),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(context, data),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(context, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
