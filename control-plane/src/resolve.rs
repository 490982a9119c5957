//! Names of upstream hosts: looked up off the workers, kept for a while, the last good answer kept for longer.
//!
//! Here: the cache, and the task that looks up again what is registered or written in furt.conf.
//! Not here: whether an address is allowed (`admission`).

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use furt_proto::url::UpstreamUrl;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::{admission::Resolved, registry::Registry};

/// How long an answer is used before the name is looked up again.
pub const FRESH: Duration = Duration::from_secs(30);
/// How long a lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Lookups at once; each holds one of Tokio's blocking threads.
const AT_ONCE: usize = 16;
/// Names remembered.
const MOST: usize = 20_000;

/// Looks names up.
pub trait Lookup: Send + Sync + 'static {
    /// The addresses of a name.
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
}

/// The system's resolver, on Tokio's blocking threads.
#[derive(Debug, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

/// A cache over a [`Lookup`].
pub struct Resolver {
    lookup: Arc<dyn Lookup>,
    cache: Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>,
}

impl Resolver {
    /// Knows nothing yet.
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        Self { lookup, cache: Mutex::new(HashMap::new()) }
    }

    /// The addresses of a url's host: itself when it is an address, else looked up unless the answer is fresh.
    pub async fn resolve(&self, url: &UpstreamUrl) -> Resolved {
        if let Some(address) = url.address() {
            return Ok(vec![address.to_canonical()]);
        }
        let now = Instant::now();
        if let Some((at, addresses)) = self.cache().get(url.host())
            && now.duration_since(*at) < FRESH
        {
            return Ok(addresses.clone());
        }
        self.look_up(url.host()).await
    }

    /// Looks up whatever the cache says.
    async fn look_up(&self, host: &str) -> Resolved {
        let answer = match timeout(LOOKUP_TIMEOUT, self.lookup.lookup(host.to_owned())).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
        }?;
        let mut addresses: Vec<_> = answer.iter().map(IpAddr::to_canonical).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err("the name has no address".into());
        }
        let now = Instant::now();
        let mut cache = self.cache();
        if cache.len() >= MOST {
            cache.retain(|_, (at, _)| now.duration_since(*at) < FRESH);
        }
        if cache.len() < MOST {
            cache.insert(host.to_owned(), (now, addresses.clone()));
        }
        Ok(addresses)
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<String, (Instant, Vec<IpAddr>)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Addresses with the url's port.
pub fn with_port(addresses: &[IpAddr], url: &UpstreamUrl) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(*address, url.port())).collect()
}

/// A name that is in use, and what to do with its answer.
pub(crate) struct Wanted<T> {
    pub url: UpstreamUrl,
    pub user: T,
}

/// Looks up again every name in use, each [`FRESH`].
pub struct Refresher {
    registry: Registry,
}

impl Refresher {
    /// For all that a registry holds.
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// At once, then again and again until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            let next = Instant::now() + FRESH;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.refresh() => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.registry.names_changed() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    async fn refresh(&self) {
        let registry = &self.registry;
        let statics = stream::iter(registry.static_names()).map(|wanted| async move {
            let answer = registry.resolver().look_up(wanted.url.host()).await;
            (wanted, answer)
        });
        let mut statics = statics.buffer_unordered(AT_ONCE);
        while let Some((wanted, answer)) = statics.next().await {
            registry.static_resolved(&wanted, answer);
        }
        let services = stream::iter(registry.registered_names()).map(|wanted| async move {
            let answer = registry.resolver().look_up(wanted.url.host()).await;
            (wanted, answer)
        });
        let mut services = services.buffer_unordered(AT_ONCE);
        while let Some((wanted, answer)) = services.next().await {
            registry.registered_resolved(&wanted, answer);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Names with the addresses a test gives them; counts lookups.
    #[derive(Default, Clone)]
    pub(crate) struct FakeLookup(Arc<Mutex<Names>>);

    #[derive(Default)]
    struct Names {
        known: HashMap<String, Vec<IpAddr>>,
        lookups: usize,
    }

    impl FakeLookup {
        pub(crate) fn set(&self, host: &str, addresses: &[&str]) {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            self.0.lock().unwrap().known.insert(host.into(), addresses);
        }
        pub(crate) fn forget(&self, host: &str) {
            self.0.lock().unwrap().known.remove(host);
        }
    }

    impl Lookup for FakeLookup {
        fn lookup(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
            let mut state = self.0.lock().unwrap();
            state.lookups += 1;
            let answer = state.known.get(&host).cloned().ok_or_else(|| io::Error::other("no such name"));
            Box::pin(std::future::ready(answer))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_a_while_and_addresses_need_none() {
        let lookup = FakeLookup::default();
        lookup.set("sagjan.internal", &["10.0.0.2", "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1"]);
        let resolver = Resolver::new(Arc::new(lookup.clone()));
        let url: UpstreamUrl = "http://sagjan.internal:7812".parse().unwrap();
        let expected: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        assert_eq!(resolver.resolve(&url).await, Ok(expected.clone()));
        assert_eq!(resolver.resolve(&url).await, Ok(expected));
        assert_eq!(resolver.resolve(&"http://[::1]:1".parse().unwrap()).await.unwrap().len(), 1);
        assert_eq!(lookup.0.lock().unwrap().lookups, 1);
        tokio::time::advance(FRESH).await;
        lookup.forget("sagjan.internal");
        assert!(resolver.resolve(&url).await.unwrap_err().contains("no such name"));
    }
}
