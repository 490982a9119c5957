//! A client's connection: what is spoken on it, and how it is served.
//!
//! Here: the TLS handshake, HTTP/1 or HTTP/2 by the first bytes, hyper set up for each, and what runs hyper's tasks. Not
//! here: sockets (`client_io`), requests (`gateway`), who accepts (`worker`).

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use hyper::{server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    client_io::{ClientIo, ClientStream, Guard},
    clock::nanos,
    frames::Frames,
    gateway,
    peers::Entered,
    respond::{self, ProxyError},
    strict::{self, Strict},
    tunnel::Tunnel,
    view::View,
    watch::{Verdict, Watch},
    worker::{KEEPALIVE_AFTER, Worker},
};

/// What hyper reads of a connection at once. It is no limit on heads: the guard has that.
const READ_BUFFER: usize = 64 * 1024;
/// What furt takes of a body over HTTP/2 before the service does.
const STREAM_WINDOW: u32 = 256 * 1024;
/// And of all bodies of one connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One client's connection.
pub struct Connection {
    /// The worker it belongs to.
    pub worker: Rc<Worker>,
    /// Its place in the look-over.
    pub watch: Rc<Watch>,
    /// The peer.
    pub peer: IpAddr,
    /// The peer as text, made once.
    pub peer_value: HeaderValue,
    /// Whether it speaks TLS.
    pub secure: bool,
    /// What follows the answer that switched protocols.
    pub tunnel: Cell<Option<Tunnel>>,
    /// Whether the peer is one of `trusted_proxies`, and by which configuration.
    trusted: Cell<(u32, bool)>,
}

/// A connection that has shown no bytes yet.
pub struct Fresh {
    worker: Rc<Worker>,
    peer: IpAddr,
    /// Its share of what its peer may have, for as long as it lives.
    _entered: Option<Entered>,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.worker.closed();
    }
}

impl Fresh {
    /// Of `peer`; `entered` is its share of what the peer may have.
    pub fn new(worker: Rc<Worker>, peer: IpAddr, entered: Option<Entered>) -> Self {
        worker.opened();
        Self { worker, peer, _entered: entered }
    }

    /// Finds out what is spoken, and serves it.
    pub async fn serve(self, stream: TcpStream) {
        let Some((stream, first, secure)) = Box::pin(self.opened(stream)).await else { return };
        let http2 = first.starts_with(PREFACE);
        let now = self.worker.coarse.now();
        let watch = self.worker.watched(if http2 { Watch::shared(now) } else { Watch::new(self.worker.coarse.exact()) });
        let connection = Connection::new(&self, watch, secure);
        // The larger and rarer of the two is boxed, so that the other does not pay for it.
        if http2 { Box::pin(connection.serve_http2(stream, first)).await } else { connection.serve_http1(stream, first).await }
    }

    /// The first bytes of a connection, enough to tell HTTP/2 from HTTP/1, after the TLS handshake where there is one.
    /// `None`: it closed, was too slow, or made no sense.
    async fn opened(&self, stream: TcpStream) -> Option<(ClientStream, Bytes, bool)> {
        let view = self.worker.view();
        let deadline = self.worker.deadlines.set(self.worker.coarse.now() + nanos(view.config.client_timeout));
        let opening = async {
            let (mut stream, secure) = match &view.config.tls {
                None => (ClientStream::Plain(stream), false),
                Some(_) if !speaks_tls(&stream).await? => {
                    refuse_plain(stream).await;
                    return None;
                }
                Some(config) => (ClientStream::Tls(Box::new(TlsAcceptor::from(config.clone()).accept(stream).await.ok()?)), true),
            };
            let mut first = BytesMut::new();
            loop {
                let came = poll_fn(|context| {
                    let mut piece = [0; 2048];
                    let mut buffer = ReadBuf::new(&mut piece);
                    ready!(Pin::new(&mut stream).poll_read(context, &mut buffer))?;
                    first.extend_from_slice(buffer.filled());
                    Poll::Ready(io::Result::Ok(buffer.filled().len()))
                });
                if came.await.ok()? == 0 {
                    return None;
                }
                let compared = first.len().min(PREFACE.len());
                if first.len() >= PREFACE.len() || first.get(..compared) != PREFACE.get(..compared) {
                    return Some((stream, first.freeze(), secure));
                }
            }
        };
        deadline.within(opening).await.ok()?
    }
}

/// Whether a client begins as TLS does: with a record of the handshake (RFC 8446 §5.1).
async fn speaks_tls(stream: &TcpStream) -> Option<bool> {
    let mut first = [0];
    let length = stream.peek(&mut first).await.ok()?;
    (length > 0).then_some(first == [22])
}

/// Plain HTTP where TLS is spoken: the words cost nothing and spare a search.
async fn refuse_plain(mut stream: TcpStream) {
    let words = respond::raw(&ProxyError::Malformed("this port speaks TLS: use https"));
    if stream.write_all(&words).await.is_ok() && stream.shutdown().await.is_ok() {
        // The request is read away, or its reset would take the words with it.
        let mut waste = [0; 1024];
        while let Ok(1..) = stream.read(&mut waste).await {}
    }
}

impl Connection {
    fn new(fresh: &Fresh, watch: Rc<Watch>, secure: bool) -> Rc<Self> {
        let Fresh { worker, peer, .. } = fresh;
        // An address as text is always a valid value.
        let peer_value = HeaderValue::from_str(&peer.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let view = worker.view();
        let trusted = Cell::new((view.reloads, view.config.trusted_proxies.contains(*peer)));
        Rc::new(Self { worker: worker.clone(), watch, peer: *peer, peer_value, secure, tunnel: Cell::new(None), trusted })
    }

    /// Whether the peer is one of the `trusted_proxies` of a view.
    pub fn trusted_by(&self, view: &View) -> bool {
        if self.trusted.get().0 != view.reloads {
            self.trusted.set((view.reloads, view.config.trusted_proxies.contains(self.peer)));
        }
        self.trusted.get().1
    }

    async fn serve_http1(self: Rc<Self>, stream: ClientStream, first: Bytes) {
        let config = self.worker.view().config.clone();
        let limits = strict::Limits { head: config.max_header_size, fields: config.max_headers, target: config.max_uri_length };
        let guard = Guard::Http1(Strict::new(), limits);
        let io = TokioIo::new(ClientIo::new(stream, first, self.watch.clone(), self.worker.coarse.clone(), guard));
        let connection = self.clone();
        let service = service_fn(move |request| {
            // Before the first poll of what serves it: the guard waits for what is under way.
            connection.watch.arrived();
            // Boxed, an idle connection has no room set aside for a request, and the connection can be taken apart.
            Box::pin(gateway::serve(connection.clone(), connection.watch.clone(), request))
        });
        let mut server = conn::http1::Builder::new()
            .auto_date_header(false)
            .header_read_timeout(None)
            // The guard counts, and says more: hyper's own limits are behind it.
            .max_buf_size(READ_BUFFER.max(2 * config.max_header_size))
            // Not pipeline_flush: answers held back for the next request are lost when that one does not parse.
            .max_headers(config.max_headers)
            .writev(false)
            .serve_connection(io, service);
        // How a client's connection ended is the client's business; what it asked was logged.
        let ended = poll_fn(|context| server.poll_without_shutdown(context)).await;
        let parts = server.into_parts();
        let mut io = parts.io.into_inner();
        match self.tunnel.take() {
            Some(tunnel) if ended.is_ok() => Box::pin(tunnel.run(io, parts.read_buf, self.watch.clone())).await,
            _ => drop(poll_fn(|context| Pin::new(&mut io).poll_shutdown(context)).await),
        }
    }

    async fn serve_http2(self: Rc<Self>, stream: ClientStream, first: Bytes) {
        let config = self.worker.view().config.clone();
        let guard = Guard::Http2(Box::new(Frames::new(self.worker.coarse.now()).with_header_size(config.max_header_size)));
        let io = TokioIo::new(ClientIo::new(stream, first, self.watch.clone(), self.worker.coarse.clone(), guard));
        // Hyper makes the future of a request and has it executed at once, so one place for its watch is enough.
        let next = Rc::new(Cell::new(None));
        let (connection, executor) = (self.clone(), StreamExecutor { next: next.clone() });
        let service = service_fn(move |request| {
            let watch = connection.worker.watched(Watch::exchange(connection.worker.coarse.now()));
            connection.watch.arrived();
            watch.arrived();
            next.set(Some(watch.clone()));
            gateway::serve(connection.clone(), watch, request)
        });
        let server = conn::http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(config.h2_max_streams)
            // A client may think better of all that it has asked for at once, before any of it was looked at. How often
            // it does so is the guard's to judge.
            .max_pending_accept_reset_streams(usize::try_from(config.h2_max_streams).unwrap_or(usize::MAX))
            // In the life of a connection, refused streams among them: clients assume a hundred at once before they know
            // how many they may. Each may have cost a connection to a service.
            .max_local_error_reset_streams(256)
            .max_header_list_size(u32::try_from(config.max_header_size).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(READ_BUFFER)
            .keep_alive_interval(Some(KEEPALIVE_AFTER))
            .serve_connection(io, service);
        let mut server = pin!(server);
        let mut retired = false;
        let ended = poll_fn(|context| {
            if !retired && self.watch.verdict() == Verdict::Retire {
                retired = true;
                server.as_mut().graceful_shutdown();
            }
            self.watch.wait(context);
            server.as_mut().poll(context)
        });
        drop(ended.await);
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone)]
pub struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}

/// The same for the requests of one HTTP/2 connection; what its watch judges over time is dropped, which resets its
/// stream and nothing else.
#[derive(Clone)]
struct StreamExecutor {
    next: Rc<Cell<Option<Rc<Watch>>>>,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, future: F) {
        let watch = self.next.take();
        tokio::task::spawn_local(async move {
            match watch {
                Some(watch) => tokio::select! {
                    biased;
                    () = watch.stopped() => {}
                    _ = future => {}
                },
                None => drop(future.await),
            }
        });
    }
}
