//! Where the program's log goes: standard error, as text or JSON.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use furt::config::{Format, Log};
use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    filter::Targets,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Full, Json, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use super::screen::stderr_is_coloured;

/// Begins logging; what comes back changes level and format from then on.
pub fn install(log: Log) -> impl Fn(Log) + Send + Sync + 'static {
    let lines = Lines {
        text: format::format().with_ansi(stderr_is_coloured()),
        json: format::format().json().flatten_event(true),
        as_json: Arc::default(),
    };
    let as_json = lines.as_json.clone();
    let (filter, handle) = reload::Layer::new(filter(log.level));
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).event_format(lines);
    // A second subscriber cannot be installed; the first one then goes on.
    let _ = tracing_subscriber::registry().with(filter).with(lines.with_ansi(stderr_is_coloured())).try_init();
    let change = move |log: Log| {
        as_json.store(log.format == Format::Json, Ordering::Relaxed);
        // Without a subscriber there is nothing to change.
        let _ = handle.reload(self::filter(log.level));
    };
    change(log);
    change
}

/// What furt is built on speaks only of trouble, whatever the level.
fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::from_level(level.min(Level::WARN)))
        .with_target("furt", level)
        // What h2 warns of is the client's doing: it could fill the log.
        .with_target("h2", LevelFilter::ERROR)
}

/// A line in the format of the moment: a reload may change it.
struct Lines {
    text: format::Format<Full>,
    json: format::Format<Json>,
    as_json: Arc<AtomicBool>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        match self.as_json.load(Ordering::Relaxed) {
            true => self.json.format_event(context, writer, event),
            false => self.text.format_event(context, writer, event),
        }
    }
}
