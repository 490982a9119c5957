//! What a process needs of the system: runtimes, signals, descriptors, standard output.

use std::{
    fmt::Display,
    io::{self, Write},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
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

/// A line on standard output. Whoever reads it may have seen enough (`furt routes | head`): then the
/// command ends without a word.
pub fn say(line: impl Display) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::told()),
        Err(error) => Err(Failure::new(format!("furt: cannot write: {error}"))),
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::new(format!("furt: cannot start: {error}"))
}

/// Cancelled by the first SIGTERM or SIGINT. A second SIGINT ends the process at once: somebody at a
/// terminal does not want to wait.
pub fn shutdown_on_signals() -> Result<CancellationToken, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("shutting down");
        token.cancel();
        interrupt.recv().await;
        std::process::exit(1);
    });
    Ok(shutdown)
}

/// SIGHUP, which then no longer ends the process.
pub fn hangups() -> Result<Signal, Failure> {
    signal(SignalKind::hangup()).map_err(failed)
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
