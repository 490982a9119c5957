//! What a process needs of the system: runtimes, signals, descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Failure;

/// For the control plane; the data plane's workers bring their own.
pub fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread().worker_threads(2).thread_name("furt-control").enable_all().build().map_err(failed)
}

/// For a command that asks and exits.
pub fn small_runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread().enable_all().build().map_err(failed)
}

fn failed(error: std::io::Error) -> Failure {
    Failure::new(format!("furt: cannot start: {error}"))
}

/// Cancelled by the first SIGTERM or SIGINT; a second one ends the process at once.
pub fn shutdown_on_signals() -> Result<CancellationToken, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if again {
                std::process::exit(1);
            }
            info!("shutting down");
            token.cancel();
        }
    });
    Ok(shutdown)
}

/// Raises the soft limit of open files to the hard one: a gateway holds many connections, and the soft
/// limit is low only for the sake of programs that use select(2).
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        warn!(%error, "cannot raise the limit of open files");
    }
}
