//! A worker: one thread that accepts, serves and looks over its own connections.
//!
//! Each has its own listening socket on the one address (SO_REUSEPORT), its own connections to the
//! services and its own counters; workers share nothing that they write to for each request but the
//! limiters, the requests in flight, and the counts of who holds the route and the instance.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use furt_proto::time::unix_ms_now;
use http::HeaderValue;
use hyper::{server::conn, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::LocalSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    access_log::{self, Line},
    client_io::{ClientIo, Limits, Phase, Watch},
    clock::{Clock, Coarse, nanos},
    deadline::Deadlines,
    gateway,
    headers::Via,
    health::HealthCache,
    metrics::{Counters, ServiceMetrics},
    subscribe::Suspicions,
    upstream::{Pool, RetryBudget},
    view::{Current, CurrentCache, View},
};

/// How often a worker looks over its deadlines.
const TICK: Duration = Duration::from_millis(50);
/// Its connections, which may be many and whose limits are seconds, it looks over every so many ticks.
const LOOK_EVERY: u32 = 4;
/// How long a connection may be idle between two requests.
const CLIENT_IDLE: Duration = Duration::from_secs(75);
/// Between two of the kernel's questions to a client that has been silent for `CLIENT_IDLE`; nine unanswered ones end
/// its connection (tcp(7), tcp_keepalive_probes).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// In-flight requests have this long to finish when furt stops (DESIGN §13).
const DRAIN: Duration = Duration::from_secs(30);
/// Most of a request's head, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Most header fields of a request.
const MAX_FIELDS: usize = 100;
/// Streams that one HTTP/2 connection may have open at once.
const MAX_STREAMS: u32 = 128;
const BACKLOG: i32 = 4096;
/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What all workers share.
pub struct Shared {
    /// The view in force.
    pub current: Current,
    /// The time they share.
    pub clock: Clock,
    /// What they count.
    pub counters: Counters,
    /// The counts of requests that met no service.
    pub unrouted: ServiceMetrics,
    /// What furt says of itself in `Via`.
    pub via: Via,
    health: HealthCache,
    /// Where instances that refused a connection are told.
    pub suspicions: Suspicions,
    /// Readiness is false: furt is stopping.
    pub draining: AtomicBool,
    /// Whether the log has said where `/internal/` lives.
    pub told_internal: AtomicBool,
}

impl Shared {
    /// Whether there is a snapshot and furt is not stopping.
    pub fn is_ready(&self) -> bool {
        self.current.load().is_ready() && !self.draining.load(Ordering::Relaxed)
    }

    /// The body of `/health`, for someone who may see all of it or not.
    pub fn health(&self, view: &View, full: bool) -> Bytes {
        self.health.body(view, full, self.snapshot_age(), Instant::now())
    }

    /// Since the control plane was last heard; `None`: it never was.
    pub fn snapshot_age(&self) -> Option<Duration> {
        let heard = self.current.heard_unix_ms()?;
        Some(Duration::from_millis(unix_ms_now().saturating_sub(heard).max(0).unsigned_abs()))
    }
}

/// The data plane, bound and not yet running.
pub struct DataPlane {
    shared: Arc<Shared>,
    listeners: Vec<StdListener>,
    address: SocketAddr,
}

impl DataPlane {
    /// Binds the public listener as the configuration in force says, one socket for each worker. `suspicions` gets
    /// the instances that could not be connected to.
    ///
    /// # Errors
    /// When the address is taken, also by another furt.
    pub fn bind(current: Current, suspicions: Suspicions) -> io::Result<Self> {
        let config = current.load().config.clone();
        // SO_REUSEPORT would let a second furt share the address in silence, so ask without it first.
        let address = socket(config.listen, false)?.local_addr()?;
        let listeners = (0..config.workers.max(1)).map(|_| socket(address, true)).collect::<io::Result<Vec<_>>>()?;
        let workers = listeners.len();
        let shared = Shared {
            current,
            clock: Clock::start(),
            counters: Counters::default(),
            unrouted: ServiceMetrics::new(workers),
            via: Via::new(),
            health: HealthCache::default(),
            suspicions,
            draining: AtomicBool::new(false),
            told_internal: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared), listeners, address })
    }

    /// The address of the public listener.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What the workers share, for `/health`, `/metrics` and explain.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Serves until `shutdown`, then drains: no new connection, idle ones closed, requests under way
    /// given 30 s.
    ///
    /// # Errors
    /// When a worker's thread cannot be started, or a worker ends before it is told to.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let log = access_log::start()?;
        let (stop, ended) = (shutdown.child_token(), CancellationToken::new());
        let mut threads = Vec::new();
        for (number, listener) in self.listeners.into_iter().enumerate() {
            let (shared, log, stop, ended) = (self.shared.clone(), log.clone(), stop.clone(), ended.clone());
            let worker = move || {
                let _ended = ended.drop_guard();
                run(shared, number, listener, log, stop);
            };
            threads.push(thread::Builder::new().name(format!("furt-worker-{number}")).spawn(worker)?);
        }
        drop(log);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = ended.cancelled() => {}
        }
        // With one of them gone the others go too: half a gateway is none.
        let by_fault = !shutdown.is_cancelled();
        self.shared.draining.store(true, Ordering::Relaxed);
        stop.cancel();
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().map(thread::JoinHandle::join).filter(Result::is_err).count());
        if joined.await.unwrap_or(0) > 0 {
            error!("a worker ended by a panic");
        }
        if by_fault { Err(io::Error::other("a worker ended by a fault of its own")) } else { Ok(()) }
    }
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<StdListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // Accepted sockets inherit it: one system call less for each.
    socket.set_tcp_nodelay(true)?;
    // An event stream may be silent for ever, and so may a client that is not there any more.
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(CLIENT_IDLE).with_interval(KEEPALIVE_INTERVAL))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn run(shared: Arc<Shared>, number: usize, listener: StdListener, log: access_log::Log, shutdown: CancellationToken) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error!(%error, number, "a worker cannot start"),
    };
    LocalSet::new().block_on(&runtime, async move {
        match TcpListener::from_std(listener) {
            Ok(listener) => Worker::new(shared, number, log).serve(listener, shutdown).await,
            Err(error) => error!(%error, number, "a worker cannot listen"),
        }
    });
}

/// A view as one worker's requests hold it: taking it costs no counter that other workers touch.
pub struct Held(Arc<View>);

impl std::ops::Deref for Held {
    type Target = View;
    fn deref(&self) -> &View {
        &self.0
    }
}

struct Seen {
    cache: CurrentCache,
    view: Rc<Held>,
}

/// One worker's own.
pub struct Worker {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Which of them it is.
    pub number: usize,
    /// Its time.
    pub coarse: Rc<Coarse>,
    /// Its idle connections to services.
    pub pool: Pool,
    /// Deadlines of requests under way.
    pub deadlines: Deadlines,
    /// Requests that may be sent again.
    pub retries: RetryBudget,
    /// Its end of the access log.
    log: RefCell<access_log::Writer>,
    seen: RefCell<Seen>,
    watches: RefCell<Vec<Weak<Watch>>>,
    open: Cell<usize>,
    closed: Notify,
}

impl Worker {
    fn new(shared: Arc<Shared>, number: usize, log: access_log::Log) -> Rc<Self> {
        let coarse = Rc::new(Coarse::new(shared.clock));
        let seen = Seen { cache: shared.current.cache(), view: Rc::new(Held(shared.current.load())) };
        Rc::new(Self {
            number,
            retries: RetryBudget::new(coarse.now()),
            coarse,
            pool: Pool::default(),
            deadlines: Deadlines::default(),
            log: RefCell::new(access_log::Writer::new(log)),
            seen: RefCell::new(seen),
            watches: RefCell::default(),
            open: Cell::new(0),
            closed: Notify::new(),
            shared,
        })
    }

    /// The view in force. The counter of the shared pointer is touched only when the view changes.
    pub fn view(&self) -> Rc<Held> {
        let seen = &mut *self.seen.borrow_mut();
        let current = seen.cache.load();
        if !Arc::ptr_eq(current, &seen.view.0) {
            seen.view = Rc::new(Held(current.clone()));
        }
        seen.view.clone()
    }

    /// Writes a line of the access log.
    pub fn write_log(&self, line: &Line<'_>, json: bool) {
        let dropped = self.log.borrow_mut().line(line, json);
        self.count_dropped(dropped);
    }

    fn flush_log(&self) {
        let dropped = self.log.borrow_mut().flush();
        self.count_dropped(dropped);
    }

    fn count_dropped(&self, lines: u64) {
        if lines > 0 {
            self.shared.counters.log_lines_dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }

    async fn serve(self: Rc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let mut look_over = tokio::task::spawn_local(self.clone().look_over());
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                // Without it no limit on time would hold any more.
                _ = &mut look_over => return error!(number = self.number, "a worker's look-over ended"),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => self.accept_failed(&error).await,
            }
        }
        drop(listener);
        self.drain().await;
    }

    async fn accept_failed(&self, error: &io::Error) {
        // A connection that its client gave up is no fault of ours (accept(2), "Error handling").
        if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted) {
            warn!(%error, "cannot accept a connection");
            // Out of descriptors: wait for some to come back instead of spinning.
            tokio::time::sleep(TICK).await;
        }
    }

    fn admit(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        let counters = &self.shared.counters;
        Counters::add(&counters.accepted);
        let most = u64::try_from(self.view().config.max_connections).unwrap_or(u64::MAX);
        if counters.connections.fetch_add(1, Ordering::Relaxed) >= most {
            counters.connections.fetch_sub(1, Ordering::Relaxed);
            return Counters::add(&counters.refused_connections);
        }
        let connection = Connection::new(self.clone(), peer.ip().to_canonical());
        tokio::task::spawn_local(connection.serve(stream));
    }

    /// Looks over connections, deadlines and idle upstream connections for as long as there are any.
    async fn look_over(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        let mut tick = 0;
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.coarse.tick();
            let now = self.coarse.now();
            self.deadlines.look(now);
            // An idle worker lets go of a view that is no longer in force.
            let view = self.view();
            tick = (tick + 1) % LOOK_EVERY;
            if tick == 0 {
                let limits = Limits { head: nanos(view.config.client_timeout), idle: nanos(CLIENT_IDLE) };
                self.watches.borrow_mut().retain(|watch| watch.upgrade().inspect(|watch| watch.look(now, &limits)).is_some());
                self.pool.look(now);
            }
            self.flush_log();
        }
    }

    async fn drain(&self) {
        let finished = async {
            while self.open.get() > 0 {
                // A request may end and leave its connection idle, so idle ones are closed again and again.
                self.watches.borrow().iter().filter_map(Weak::upgrade).for_each(|watch| watch.close_if_idle());
                tokio::select! {
                    () = self.closed.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        };
        if tokio::time::timeout(DRAIN, finished).await.is_err() {
            warn!(open = self.open.get(), "requests did not finish in time and are broken off");
        }
        self.flush_log();
    }
}

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
    /// Whether the peer is one of `trusted_proxies`, and by which configuration.
    trusted: Cell<(u32, bool)>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.worker.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
        self.worker.open.set(self.worker.open.get() - 1);
        self.worker.closed.notify_one();
    }
}

impl Connection {
    fn new(worker: Rc<Worker>, peer: IpAddr) -> Rc<Self> {
        let watch = Rc::new(Watch::new(worker.coarse.exact()));
        worker.watches.borrow_mut().push(Rc::downgrade(&watch));
        worker.open.set(worker.open.get() + 1);
        // An address as text is always a valid value.
        let peer_value = HeaderValue::from_str(&peer.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let view = worker.view();
        let trusted = Cell::new((view.reloads, view.config.trusted_proxies.contains(peer)));
        Rc::new(Self { worker, watch, peer, peer_value, trusted })
    }

    /// Whether the peer is one of the `trusted_proxies` of a view.
    pub fn trusted_by(&self, view: &View) -> bool {
        if self.trusted.get().0 != view.reloads {
            self.trusted.set((view.reloads, view.config.trusted_proxies.contains(self.peer)));
        }
        self.trusted.get().1
    }

    async fn serve(self: Rc<Self>, stream: TcpStream) {
        let Some(first) = Box::pin(self.first_bytes(&stream)).await else { return };
        let http1 = !first.starts_with(PREFACE);
        let io = TokioIo::new(ClientIo::new(stream, first, self.watch.clone(), self.worker.coarse.clone(), http1));
        // The larger and rarer of the two is boxed, so that the other does not pay for it.
        if http1 { self.serve_http1(io).await } else { Box::pin(self.serve_http2(io)).await }
    }

    async fn serve_http1(self: Rc<Self>, io: TokioIo<ClientIo>) {
        let service = service_fn(move |request| gateway::serve(self.clone(), request));
        let server = conn::http1::Builder::new()
            .auto_date_header(false)
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            // Not pipeline_flush: answers held back for the next request are lost when that one does not parse.
            .max_headers(MAX_FIELDS)
            .writev(false)
            .serve_connection(io, service);
        // How a client's connection ended is the client's business; what it asked was logged.
        drop(server.await);
    }

    async fn serve_http2(self: Rc<Self>, io: TokioIo<ClientIo>) {
        self.watch.enter(Phase::Idle, self.worker.coarse.now());
        let service = service_fn(move |request| gateway::serve(self.clone(), request));
        let server = conn::http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .keep_alive_interval(Some(CLIENT_IDLE))
            .serve_connection(io, service);
        drop(server.await);
    }

    /// The first bytes of a connection, enough to tell HTTP/2 from HTTP/1. `None`: it closed or was
    /// too slow to say anything.
    async fn first_bytes(&self, stream: &TcpStream) -> Option<Bytes> {
        let deadline = self.worker.deadlines.set(self.worker.coarse.now() + nanos(self.worker.view().config.client_timeout));
        let mut first = Vec::new();
        loop {
            deadline.within(stream.readable()).await.ok()?.ok()?;
            let mut piece = [0; 2048];
            match stream.try_read(&mut piece) {
                Ok(0) => return None,
                Ok(length) => first.extend_from_slice(piece.get(..length)?),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return None,
            }
            let compared = first.len().min(PREFACE.len());
            if first.len() >= PREFACE.len() || first.get(..compared) != PREFACE.get(..compared) {
                return Some(first.into());
            }
        }
    }
}

#[derive(Clone)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}

/// Says once where `/internal/` lives to whoever looks for it on the public listener.
pub fn tell_internal(shared: &Shared, view: &View, path: &str) {
    if !shared.told_internal.swap(true, Ordering::Relaxed) {
        match view.config.internal {
            Some(internal) => info!(path, %internal, "/internal/ is not served on the public listener; it lives on the internal one"),
            None => info!(path, "/internal/ is not served on the public listener, and [gateway] enabled = false"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, view::model};

    #[test]
    fn an_accepted_client_is_asked_for_signs_of_life() {
        let listener = socket(([127, 0, 0, 1], 0).into(), true).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = socket2::SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap() && accepted.tcp_nodelay().unwrap());
        assert_eq!((accepted.tcp_keepalive_time().unwrap(), accepted.tcp_keepalive_interval().unwrap()), (CLIENT_IDLE, KEEPALIVE_INTERVAL));
    }

    #[tokio::test]
    async fn a_worker_that_ends_by_a_fault_takes_the_data_plane_with_it() {
        let config = Config { workers: 2, ..model::config() };
        let bind = || DataPlane::bind(Current::new(View::empty(config.clone())), Suspicions::default()).unwrap();
        let told_to = CancellationToken::new();
        told_to.cancel();
        assert!(bind().run(told_to).await.is_ok());
        let broken = bind();
        // Tokio takes no blocking socket.
        broken.listeners[1].set_nonblocking(false).unwrap();
        assert!(broken.run(CancellationToken::new()).await.is_err());
    }
}
