//! furt in one process: the control plane and the data plane, bound and run together.
//!
//! Here: the one place that knows both planes, and the order of start and stop. Not here: decisions
//! of either plane, the command line. In [`config`], what both are told.

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use furt_control_plane::{
    listener::Internal,
    monitor::Monitor,
    probe::HttpProbe,
    registry::Registry,
    snapshots::Snapshots,
    store::{Memory, Redb, Store},
};
use furt_data_plane::{
    disk::{self, Keeper},
    subscribe::{Subscriber, Suspicions},
    view::{Current, View},
    worker::{DataPlane, Shared},
};
use furt_proto::v1::{snapshot_service_client::SnapshotServiceClient, snapshot_service_server::SnapshotServiceServer};
use tokio::{
    net::TcpListener,
    signal::unix::Signal,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub mod config;
mod observed;
mod reload;
pub mod tls;

use config::Config;
use observed::Observed;
use reload::Reload;
pub use reload::Relog;

/// For what nobody waits for to be stored at shutdown.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// Both planes, bound and not yet running.
pub struct Furt {
    data: DataPlane,
    internal: Option<Internal>,
    internal_addr: Option<SocketAddr>,
    registry: Registry,
    subscriber: Subscriber<SnapshotServiceServer<Snapshots>>,
    monitor: Monitor<HttpProbe>,
    keeper: Option<Keeper>,
    reload: Arc<Reload>,
    hangups: Option<Signal>,
    state_dir: PathBuf,
}

/// A listener that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({key} in furt.conf): {error}{}", next_step(error))]
pub struct BindError {
    address: SocketAddr,
    key: &'static str,
    error: io::Error,
}

fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => ". Is another furt running? Stop it, or choose another port",
        io::ErrorKind::PermissionDenied => ". Choose a port from 1024, or let furt bind lower ones (CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => ". Choose an address of this machine",
        _ => "",
    }
}

/// A part that ended before it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("furt stopped: {0}")]
pub struct RunError(String);

impl Furt {
    /// Binds both listeners and puts the planes together; nothing is accepted yet. Port 0 takes a free
    /// port, see [`Furt::public_addr`]. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When an address cannot be had.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        let Config { enabled, mut control, mut data, state_dir, .. } = config.clone();
        let failed = |address, key| move |error| BindError { address, key, error };

        // Each plane is told where the other one really listens, so sockets come before planes.
        let socket = match enabled {
            true => Some(TcpListener::bind(control.listen).await.map_err(failed(control.listen, "[gateway] listen"))?),
            false => None,
        };
        let internal_addr = socket.as_ref().map(TcpListener::local_addr).transpose().map_err(failed(control.listen, "[gateway] listen"))?;
        data.internal = internal_addr;
        control.listen = internal_addr.unwrap_or(control.listen);

        let public = data.listen;
        let current = Current::new(View::empty(data));
        let suspicions = Suspicions::default();
        let data = DataPlane::bind(current.clone(), suspicions.clone()).map_err(failed(public, "[server] host and port"))?;
        control.public = Some(data.local_addr());

        // Without the internal listener nobody registers, so there is nothing to keep.
        let store: Box<dyn Store> = if enabled { Box::new(Redb::new(&state_dir)) } else { Box::new(Memory) };
        let registry = Registry::with_store(control, store);
        let reload = Arc::new(Reload::new(config, registry.clone(), current.clone()));
        let observer = Arc::new(Observed::new(data.shared(), reload.clone()));
        let internal = socket.map(|socket| Internal::on(socket, registry.clone(), observer)).transpose();
        let internal = internal.map_err(failed(internal_addr.unwrap_or(public), "[gateway] listen"))?;

        // The generated client over the service itself: no socket, but all else is as over one.
        let client = SnapshotServiceClient::new(SnapshotServiceServer::new(registry.snapshots()));
        let keeper = enabled.then(|| Keeper::new(state_dir.clone(), current.clone()));
        let subscriber = Subscriber::new(client, current, suspicions);
        let asked = registry.clone();
        let probe = HttpProbe::new(move || asked.config().upstream_tls.clone());
        let monitor = Monitor::new(registry.clone(), probe);
        Ok(Self { data, internal, internal_addr, registry, subscriber, monitor, keeper, reload, hangups: None, state_dir })
    }

    /// Reads furt.conf again at each of these signals; `relog` takes what it says of the log.
    pub fn reload_on(self, hangups: Signal, relog: Relog) -> Self {
        self.reload.relog_with(relog);
        Self { hangups: Some(hangups), ..self }
    }

    /// Where callers are served.
    pub fn public_addr(&self) -> SocketAddr {
        self.data.local_addr()
    }

    /// Where services register; `None` with `[gateway] enabled = false`.
    pub fn internal_addr(&self) -> Option<SocketAddr> {
        self.internal_addr
    }

    /// Serves until `shutdown`, then lets what is in flight finish, for up to 30 s.
    ///
    /// Nothing is accepted before the static routes and keys are installed. On the way down the public
    /// listener goes first; the internal one tells of it (not ready) until the last request is done.
    ///
    /// # Errors
    /// When a part of furt ends by a fault of its own.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let (public, internal) = (self.public_addr(), self.internal_addr);
        let shared = self.data.shared();
        let rest = CancellationToken::new();
        let mut tasks = JoinSet::new();
        // A store that cannot be read is told there, and tried again. Meanwhile the services of the last run serve: the
        // view that the first snapshot meets holds them, and that snapshot says that it is partial.
        if self.registry.restore().await.is_err() {
            disk::resume(&self.state_dir, &shared.current);
        }
        tasks.spawn(self.subscriber.run(rest.clone()));
        tokio::select! {
            () = installed(&shared) => {}
            // Then what follows starts, hears the same, and stops in order.
            () = shutdown.cancelled() => {}
            Some(_) = tasks.join_next() => return Err(RunError("the subscriber ended before the first snapshot".into())),
        }
        tasks.spawn(self.monitor.run(rest.clone()));
        if let Some(keeper) = self.keeper {
            tasks.spawn(keeper.run(rest.clone()));
        }
        if let Some(hangups) = self.hangups {
            tasks.spawn(reload_at(hangups, self.reload, rest.clone()));
        }
        if let Some(listener) = self.internal {
            tasks.spawn(listener.run(rest.clone()));
        }
        tell(public, internal);

        let serving = self.data.run(shutdown.clone());
        tokio::pin!(serving);
        let mut ended = tokio::select! {
            ended = &mut serving => ended.map_err(|error| RunError(error.to_string())),
            Some(task) = tasks.join_next() => {
                // Without one of its tasks furt would serve what is no longer true.
                let why = task.err().map_or("a task ended".into(), |fault| fault.to_string());
                error!(%why, "a part of furt ended; shutting down");
                shutdown.cancel();
                let _ = serving.await;
                Err(RunError(why))
            }
        };
        rest.cancel();
        self.registry.close();
        while let Some(task) = tasks.join_next().await {
            if let Err(fault) = task {
                ended = ended.and(Err(RunError(fault.to_string())));
            }
        }
        if timeout(LAST_COMMIT, self.registry.flush()).await.is_err() {
            warn!("the last uptime and timelines were not stored");
        }
        info!("furt stopped");
        ended
    }
}

impl fmt::Debug for Furt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Furt").field("public", &self.public_addr()).field("internal", &self.internal_addr).finish_non_exhaustive()
    }
}

/// The first snapshot comes from this process, so it is there within moments.
async fn installed(shared: &Shared) {
    while !shared.current.load().is_ready() {
        sleep(Duration::from_millis(1)).await;
    }
}

/// What went wrong is told where it is found, and furt goes on as before.
async fn reload_at(mut hangups: Signal, reload: Arc<Reload>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(()) = hangups.recv() => tokio::select! {
                () = shutdown.cancelled() => return,
                _ = reload.reload() => {}
            },
        }
    }
}

fn tell(public: SocketAddr, internal: Option<SocketAddr>) {
    match internal {
        Some(internal) => info!(%public, %internal, "furt listening"),
        None => info!(%public, "furt listening"),
    }
}
