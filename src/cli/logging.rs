//! Where the program's log goes: standard error, as text or JSON.

use std::io::{self, IsTerminal};

use furt::config::{Format, Log};
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Begins logging. What furt is built on speaks only of trouble, whatever the level.
pub fn install(log: Log) {
    let others = log.level.min(Level::WARN);
    let filter = Targets::new().with_default(LevelFilter::from_level(others)).with_target("furt", log.level);
    let registry = tracing_subscriber::registry().with(filter);
    // A second subscriber cannot be installed; the first one then goes on.
    let _ = match log.format {
        Format::Text => registry.with(fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal())).try_init(),
        Format::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init(),
    };
}
