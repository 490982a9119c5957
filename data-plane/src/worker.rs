//! A worker: one thread that accepts, serves and looks over its own connections.
//!
//! Each has its own listening socket on the one address (SO_REUSEPORT), its own connections to the
//! services and its own counters; workers share nothing that they write to for each request but the
//! limiters, the requests in flight, and the counts of who holds the route and the instance.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdListener},
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
    clock::{Clock, Coarse, nanos},
    connection::Fresh,
    deadline::Deadlines,
    headers::Via,
    health::HealthCache,
    metrics::{Counters, ServiceMetrics},
    peers::Peers,
    subscribe::Suspicions,
    upstream::{Bounds, Pool, RetryBudget},
    view::{Current, CurrentCache, View},
    watch::{Limits, Watch},
};

/// How often a worker looks over its deadlines.
const TICK: Duration = Duration::from_millis(50);
/// Its connections, which may be many and whose limits are seconds, it looks over every so many ticks.
const LOOK_EVERY: u32 = 4;
/// The kernel asks a peer that has been silent for so long whether it is still there, and again in intervals; nine
/// unanswered questions end its connection (tcp(7), tcp_keepalive_probes).
pub const KEEPALIVE_AFTER: Duration = Duration::from_secs(75);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// In-flight requests have this long to finish when furt stops (DESIGN §13).
const DRAIN: Duration = Duration::from_secs(30);
const BACKLOG: i32 = 4096;

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
    /// Who has how many connections.
    peers: Peers,
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
            peers: Peers::new(),
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
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What the kernel does about a peer that says nothing.
pub fn keepalive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL)
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
    /// When the log was last told that this machine is short of something.
    complained: Cell<u64>,
    open: Cell<usize>,
    left: Notify,
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
            complained: Cell::new(0),
            open: Cell::new(0),
            left: Notify::new(),
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
            self.exhausted(error);
            // Out of descriptors: wait for some to come back instead of spinning.
            tokio::time::sleep(TICK).await;
        }
    }

    /// Tells the log, once a second, that this machine is short of something, such as descriptors.
    pub fn exhausted(&self, error: &io::Error) {
        let now = self.coarse.now();
        if now.saturating_sub(self.complained.get()) >= nanos(Duration::from_secs(1)) {
            self.complained.set(now);
            warn!(%error, "cannot open one more connection");
        }
    }

    /// A connection begins to be served.
    pub fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// A connection has ended.
    pub fn closed(&self) {
        self.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
        self.open.set(self.open.get() - 1);
        self.left.notify_one();
    }

    /// Registers a watch with the look-over.
    pub fn watched(&self, watch: Watch) -> Rc<Watch> {
        let watch = Rc::new(watch);
        self.watches.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }

    fn admit(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        let counters = &self.shared.counters;
        Counters::add(&counters.accepted);
        let peer = peer.ip().to_canonical();
        let config = self.view().config.clone();
        let counted = config.max_connections_per_address.filter(|_| !config.trusted_proxies.contains(peer));
        let entered = counted.map(|most| self.shared.peers.enter(peer, most));
        let most = u64::try_from(config.max_connections).unwrap_or(u64::MAX);
        if matches!(entered, Some(None)) {
            return Counters::add(&counters.refused_connections);
        }
        if counters.connections.fetch_add(1, Ordering::Relaxed) >= most {
            counters.connections.fetch_sub(1, Ordering::Relaxed);
            return Counters::add(&counters.refused_connections);
        }
        tokio::task::spawn_local(Fresh::new(self.clone(), peer, entered.flatten()).serve(stream));
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
                let limits = Limits { head: nanos(view.config.client_timeout), idle: nanos(view.config.client_idle_timeout) };
                self.watches.borrow_mut().retain(|watch| watch.upgrade().inspect(|watch| watch.look(now, &limits)).is_some());
                self.pool.look(now, Bounds::of(&view.config));
            }
            self.flush_log();
        }
    }

    async fn drain(&self) {
        let finished = async {
            while self.open.get() > 0 {
                // A request may end and leave its connection idle, so idle ones are closed again and again.
                let now = self.coarse.now();
                self.watches.borrow().iter().filter_map(Weak::upgrade).for_each(|watch| watch.retire(now));
                tokio::select! {
                    () = self.left.notified() => {}
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
        assert_eq!(
            (accepted.tcp_keepalive_time().unwrap(), accepted.tcp_keepalive_interval().unwrap()),
            (KEEPALIVE_AFTER, KEEPALIVE_INTERVAL)
        );
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
