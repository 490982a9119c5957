//! The internal listener: gRPC over h2c and JSON over HTTP/1.1 or HTTP/2 on one port (DESIGN §2).
//!
//! Here: accepting, the bounds of a connection, the guard in front of everything, which of the two a request is for.
//! Not here: what the guard asks (`guard`), paths (`http`), RPCs (`grpc`).

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use furt_proto::v1;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic_health::server::HealthReporter;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use crate::identity::Peer;
use crate::refusal::{Code, Refusal};
use crate::registry::{MOST_DRAIN_SECONDS, Registry};
use crate::{body, grpc, guard, http as paths, openapi};

mod edge;
mod shares;

pub use edge::{Edge, Observer, ReloadDone, RequestId};
use shares::Shares;

/// Bounds of connections; the defaults are those of a machine that serves thousands of services.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// At once; the next waits in the kernel's queue.
    connections: usize,
    /// Of those, from one address; the next is closed. No one peer keeps the others out.
    connections_each: usize,
    /// For a request's head to arrive, the idle time before it included.
    head: Duration,
    /// Until the head of an RPC's answer.
    call: Duration,
    /// For what is in flight at shutdown.
    grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connections: 4096, connections_each: 1024, head: seconds(10), call: seconds(30), grace: seconds(3) }
    }
}

/// Bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// Streams of one HTTP/2 connection at once.
const MAX_STREAMS: u32 = 128;
/// A silent HTTP/2 peer is asked for a sign of life this often, and given a third of it to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// What is waited after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The internal listener, bound.
pub struct Internal {
    socket: TcpListener,
    server: Arc<Server>,
    health: HealthReporter,
}

impl Internal {
    /// Over a socket that is bound already: its port must be known before there is a registry.
    ///
    /// Errors: the descriptors for reflection that were compiled in cannot be read.
    pub fn on(socket: TcpListener, registry: Registry, observer: Arc<dyn Observer>) -> io::Result<Self> {
        Self::on_within(socket, registry, observer, Limits::default())
    }

    fn on_within(socket: TcpListener, registry: Registry, observer: Arc<dyn Observer>, limits: Limits) -> io::Result<Self> {
        let openapi = openapi::document().map_err(io::Error::other)?.to_string().into();
        let closing = CancellationToken::new();
        let watchers = Arc::new(Semaphore::new(edge::MOST_WATCHERS));
        let edge = Arc::new(Edge { registry, observer, bodies: body::Reader::default(), openapi, closing, watchers });
        let (grpc, health) = grpc::router(Arc::clone(&edge)).map_err(io::Error::other)?;
        let http = paths::router(Arc::clone(&edge));
        let server = Server { edge, http, grpc, connections: builder(limits), limits };
        Ok(Self { socket, server: Arc::new(server), health })
    }

    /// Serves until `shutdown`, then ends streams, lets what is in flight finish for a few seconds, and returns.
    pub async fn run(self, shutdown: CancellationToken) {
        self.health.set_serving::<v1::registry_service_server::RegistryServiceServer<grpc::Rpc>>().await;
        let free = Arc::new(Semaphore::new(self.server.limits.connections));
        let shares = Shares::new(self.server.limits.connections_each);
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                (stream, peer, permit) = self.accept(&free) => if let Some(share) = shares.take(peer.ip()) {
                    let server = Arc::clone(&self.server);
                    tasks.spawn(async move {
                        server.connection(stream, peer).await;
                        drop((share, permit));
                    });
                },
                // A task that panicked takes its own connection with it, and nothing else.
                Some(ended) = tasks.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "a connection of the internal listener ended by a fault of furt");
                },
            }
        }
        drop(self.socket);
        self.server.edge.closing.cancel();
        let rest = async { while tasks.join_next().await.is_some() {} };
        if timeout(self.server.limits.grace, rest).await.is_err() {
            info!("connections of the internal listener were cut");
        }
    }

    /// The next connection, once there is room for one more.
    async fn accept(&self, free: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            let Ok(permit) = Arc::clone(free).acquire_owned().await else { return std::future::pending().await };
            match self.socket.accept().await {
                Ok((stream, peer)) => return (stream, peer, permit),
                Err(error) => {
                    warn!(%error, "the internal listener could not accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn builder(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE / 3);
    builder
}

/// What every connection shares.
struct Server {
    edge: Arc<Edge>,
    http: Router,
    grpc: Router,
    connections: auto::Builder<TokioExecutor>,
    limits: Limits,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // Answers are small and waited for; without it they would sit out a delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let opened = tokio::select! {
            () = self.edge.closing.cancelled() => return,
            opened = timeout(self.limits.head, is_http2(stream)) => opened,
        };
        let Ok(Ok((stream, http2))) = opened else { return };
        let service = service_fn(|request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.answer(peer, request).await) }
        });
        let builder = self.connections.clone();
        let builder = if http2 { builder.http2_only() } else { builder.http1_only() };
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.edge.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%peer, %error, "a connection of the internal listener broke off");
        }
    }

    async fn answer(&self, address: SocketAddr, request: Request<Incoming>) -> Response<Body> {
        let request_id = RequestId::new();
        let (mut head, body) = request.into_parts();
        let body = Body::new(body);
        let is_grpc = is_grpc(&head.headers);
        let guarded = guard::check(&self.edge.registry.config(), address.ip(), &head);
        let mut response = match guarded {
            Err(refusal) => {
                warn!(peer = %address.ip(), code = %refusal.code(), reason = %refusal, request_id = request_id.as_str(),
                    "request refused by the internal listener");
                if head.version < Version::HTTP_2 {
                    body::discard(&head.headers, body).await;
                }
                if is_grpc { status(refusal.into()) } else { paths::refused(&refusal, &request_id) }
            }
            Ok(()) => {
                head.extensions.insert(Peer::new(Some(address.ip()), authorization(&head.headers)));
                head.extensions.insert(request_id.clone());
                let request = Request::from_parts(head, body);
                if is_grpc { self.grpc(request).await } else { infallible(self.http.clone().oneshot(request).await) }
            }
        };
        if let Ok(id) = HeaderValue::try_from(request_id.as_str()) {
            response.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
        }
        response
    }

    /// A request with its body read, within the bounds of all bodies, when it is of one message; a session with its
    /// messages read one by one within the same bounds. tonic sets a message's room aside when its length is announced:
    /// five bytes on each of many streams would fill the memory.
    async fn whole(&self, request: Request<Body>) -> Result<Request<Body>, Refusal> {
        if request.uri().path() == SESSION {
            return Ok(request.map(|body| self.edge.bodies.messages(body)));
        }
        if !is_unary(request.uri().path()) {
            return Ok(request);
        }
        let (head, body) = request.into_parts();
        let body = self.edge.bodies.read(&head.headers, body).await?;
        Ok(Request::from_parts(head, body.into()))
    }

    /// How long an RPC may take to begin its answer.
    fn patience(&self, path: &str) -> Duration {
        if path == DRAIN { self.limits.call + LONGEST_DRAIN } else { self.limits.call }
    }

    async fn grpc(&self, request: Request<Body>) -> Response<Body> {
        let is_register = request.uri().path() == REGISTER;
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let patience = self.patience(request.uri().path());
        let request = match self.whole(request).await {
            Ok(request) => request,
            Err(refusal) => return self.unread(is_register, &peer, refusal).await,
        };
        match timeout(patience, self.grpc.clone().oneshot(request)).await {
            Ok(answered) => {
                let response = infallible(answered);
                match undecoded(response.headers()) {
                    Some(fault) => self.unread(is_register, &peer, Refusal::one(Code::Malformed, fault)).await,
                    None => response.map(|body| Body::new(Ending::new(body, &self.edge.closing))),
                }
            }
            Err(_) => status(tonic::Status::deadline_exceeded("the call took too long")),
        }
    }

    /// A message that cannot be read. A registration among them goes the way of all registrations, as the JSON ones
    /// do: it counts against the peer's rate and is logged.
    async fn unread(&self, is_register: bool, peer: &Peer, refusal: Refusal) -> Response<Body> {
        let refusal = match is_register && refusal.code() != Code::Unavailable {
            true => {
                self.edge.registry.register(peer, v1::RegisterRequest::default(), refusal.faults.clone()).await.err().unwrap_or(refusal)
            }
            false => refusal,
        };
        status(refusal.into())
    }
}

/// The RPC that registers.
const REGISTER: &str = "/furt.v1.RegistryService/Register";
/// The one that waits for requests in flight.
const DRAIN: &str = "/furt.v1.RegistryService/Drain";
/// The one of `RegistryService` that is sent more than one message.
const SESSION: &str = "/furt.v1.RegistryService/Session";
/// What a drain may wait (`DrainRequest.seconds`).
const LONGEST_DRAIN: Duration = Duration::from_secs(MOST_DRAIN_SECONDS as u64);

/// What tonic says of a message that prost could not decode. To tonic that is a fault of the server's, but the caller
/// sent it.
fn undecoded(headers: &HeaderMap) -> Option<String> {
    let status = tonic::Status::from_header_map(headers).filter(|status| status.code() == tonic::Code::Internal)?;
    let fault = status.message().strip_prefix("failed to decode Protobuf message: ")?;
    Some(format!("the message does not decode: {fault}"))
}

/// Whether an RPC takes one message and no more.
fn is_unary(path: &str) -> bool {
    (path.starts_with("/furt.v1.RegistryService/") && path != SESSION) || path == "/furt.v1.SnapshotService/Get"
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
    }
}

/// A gRPC answer without messages: HTTP 200 with the status in the head ("trailers-only").
fn status(status: tonic::Status) -> Response<Body> {
    status.into_http()
}

/// `application/grpc` and `application/grpc+proto`; gRPC-Web is another protocol, which furt does not speak here.
fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

/// The one `Authorization` there is; of two nobody could say which counts.
fn authorization(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
}

/// Whether a connection opens with HTTP/2's preface, and the connection with nothing taken from it.
///
/// Three bytes tell: no method begins with `PRI` (RFC 9113 §3.4). hyper-util would look too, but without a time limit.
async fn is_http2(mut stream: TcpStream) -> io::Result<(impl AsyncRead + AsyncWrite, bool)> {
    const PREFACE: &[u8] = b"PRI";
    let mut seen = Vec::with_capacity(PREFACE.len());
    while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
        let byte = stream.read_u8().await?;
        seen.push(byte);
    }
    let http2 = seen == PREFACE;
    let (read, write) = stream.into_split();
    Ok((tokio::io::join(Cursor::new(seen).chain(read), write), http2))
}

/// A gRPC body that ends with UNAVAILABLE when furt shuts down: streams would else outlive it.
struct Ending {
    body: Body,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl Ending {
    fn new(body: Body, closing: &CancellationToken) -> Self {
        Self { body, closing: Box::pin(closing.clone().cancelled_owned()), ended: false }
    }
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // What is ready goes out first: an answer that is there is never turned into an error.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        if self.closing.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        let mut trailers = HeaderMap::new();
        let _ = tonic::Status::unavailable("furt shuts down").add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
