//! The view in force, and its two writers: the subscriber, which installs what the control plane says, and whoever
//! reloads furt.conf.
//!
//! Here: the swap; that neither writer loses the other's change; what has to happen beside it, once it is seen.
//! Not here: how a view is made. A reader takes no lock and writes nothing.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use arc_swap::{ArcSwap, Cache};
use furt_proto::rate::Rate;
use tokio::sync::watch;

use super::View;
use crate::{address_limit::AddressLimits, config::Config};

/// The view in force: the one place where a change becomes visible. Clones are the same place.
#[derive(Debug, Clone)]
pub struct Current(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    view: Arc<ArcSwap<View>>,
    /// Held by a writer from reading the view in force to its swap.
    writing: Mutex<()>,
    installed: watch::Sender<()>,
    refused: AtomicU64,
    heard_unix_ms: AtomicI64,
}

/// One worker's way to the view in force; see [`Current::cache`].
pub type CurrentCache = Cache<Arc<ArcSwap<View>>, Arc<View>>;

impl Current {
    /// Starts with a view.
    pub fn new(view: View) -> Self {
        Self(Arc::new(Inner {
            view: Arc::new(ArcSwap::from_pointee(view)),
            writing: Mutex::default(),
            installed: watch::Sender::new(()),
            refused: AtomicU64::new(0),
            heard_unix_ms: AtomicI64::new(0),
        }))
    }

    /// The view in force. Load it once per request and use it to its end.
    pub fn load(&self) -> Arc<View> {
        self.0.view.load_full()
    }

    /// For one worker: asks whether the view changed, and touches no shared counter when it did not.
    pub fn cache(&self) -> CurrentCache {
        Cache::new(self.0.view.clone())
    }

    /// Makes what the control plane says the view in force; its configuration stays the one in force.
    ///
    /// When this returns, no request of whatever view goes to an instance that is drained, but for those that its
    /// requests in flight count already; see [`crate::balance::InstanceState::enter`].
    pub fn install(&self, view: View) {
        self.write(|held| View {
            config: held.config.clone(),
            reloads: held.reloads,
            address_limits: held.address_limits.clone(),
            failed_keys: held.failed_keys.clone(),
            ..view
        });
        self.0.installed.send_replace(());
    }

    /// Makes another furt.conf the one in force, from the next request on. What a running furt cannot change (`listen`,
    /// `workers`, `internal`) stays as it is.
    pub fn reconfigure(&self, config: Config) {
        self.write(|held| {
            let Config { listen, workers, internal, .. } = *held.config;
            let config = Config { listen, workers, internal, ..config };
            let limits = |is: Option<Rate>, was: Option<Rate>, limits: &Option<Arc<AddressLimits>>| match is == was {
                true => limits.clone(),
                false => is.map(AddressLimits::new).map(Arc::new),
            };
            View {
                address_limits: limits(config.ip_rate_limit, held.config.ip_rate_limit, &held.address_limits),
                failed_keys: limits(config.failed_key_limit, held.config.failed_key_limit, &held.failed_keys),
                config: Arc::new(config),
                reloads: held.reloads.wrapping_add(1),
                ..held.clone()
            }
        });
    }

    fn write(&self, next: impl FnOnce(&View) -> View) {
        // A writer that panicked has swapped nothing.
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.load();
        let view = next(&held);
        let opened = held.drained.iter().filter(|(at, _)| !view.drained.contains(*at));
        // Before the swap: who sees the new view may choose them. The others after it: who sees it chooses none of them.
        opened.for_each(|(_, instance)| instance.state.open());
        let closed = view.drained.clone();
        self.0.view.store(Arc::new(view));
        closed.values().for_each(|instance| instance.state.close());
    }

    /// Hears of every view that is installed.
    pub fn follow(&self) -> watch::Receiver<()> {
        self.0.installed.subscribe()
    }

    /// Counts a snapshot that was not installed.
    pub fn refuse(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many snapshots were not installed.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// The control plane said something, `unix_ms` milliseconds after 1970.
    pub fn hear(&self, unix_ms: i64) {
        self.0.heard_unix_ms.store(unix_ms, Ordering::Relaxed);
    }

    /// When the control plane was last heard, milliseconds since 1970; `None`: never.
    pub fn heard_unix_ms(&self) -> Option<i64> {
        Some(self.0.heard_unix_ms.load(Ordering::Relaxed)).filter(|ms| *ms != 0)
    }
}
