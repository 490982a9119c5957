//! The `furt` program: arguments, config, logs, start, wait, drain.
//!
//! Not here: what the commands say ([`cli`]), what runs ([`furt::Furt`]).

use std::{path::Path, process::ExitCode, time::Duration};

use clap::Parser;
use furt::{Furt, config};
use tracing::{info, warn};

mod cli;

use cli::{Command, Failure};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// For what still runs on threads of its own when all is done.
const LAST_THREADS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let done = match &arguments.command {
        Command::Run => run(arguments.config.as_deref()),
        _ => cli::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            ExitCode::FAILURE
        }
    }
}

/// `furt run`: until SIGTERM or SIGINT, then what is in flight is finished.
fn run(named: Option<&Path>) -> Result<(), Failure> {
    let config = config::load(named)?;
    let relog = cli::logging::install(config.log);
    if let Some(file) = config::find(named) {
        info!(version = env!("CARGO_PKG_VERSION"), file = %file.display(), "configuration read");
    }
    for warning in &config.warnings {
        warn!("{warning}");
    }
    cli::process::raise_descriptor_limit();
    let runtime = cli::process::runtime()?;
    let done = runtime.block_on(async {
        let shutdown = cli::process::shutdown_on_signals()?;
        let hangups = cli::process::hangups()?;
        let furt = Furt::bind(config).await?.reload_on(hangups, Box::new(relog));
        furt.run(shutdown).await?;
        Ok(())
    });
    // A thread that waits for the system, be it a name server or a sick disk, does not keep furt from ending.
    runtime.shutdown_timeout(LAST_THREADS);
    done
}
