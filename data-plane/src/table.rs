//! The compiled routing table: host, method and canonical path to a route (DESIGN §8).
//!
//! Here: two persistent tries over the segments of patterns, one of static routes and one of
//! registered ones, and the one search over them, which a request and `explain` share.
//! Not here: where routes come from, who may use them, whether a service is up.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use furt_proto::{
    names::{RouteHost, RouteMethod},
    pattern::{RoutePattern, Segment},
    permission::Permission,
};
use http::{HeaderName, HeaderValue};

use crate::map::Map;

/// What a caller must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Nothing; a valid key is named to the service.
    Public,
    /// Any valid key.
    AnyKey,
    /// A key that covers this permission.
    Permission(Permission),
    /// The snapshot says something about this route that this program does not understand, and here
    /// is what: requests get 503, never an open door.
    Unusable(Arc<str>),
}

/// Which instances of the service declared a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    /// All of them.
    All,
    /// Those with these numbers, ascending.
    Only(Box<[u32]>),
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Who holds it; for a static route, its label.
    pub service: Arc<str>,
    /// The slot of that service in the view.
    pub slot: u32,
    /// The hosts it answers for.
    pub host: RouteHost,
    /// The method it answers to, or any.
    pub method: RouteMethod,
    /// The paths it answers to.
    pub pattern: RoutePattern,
    /// What a caller must show.
    pub access: Access,
    /// To the head of the answer; `None`: furt's `upstream_timeout`.
    pub timeout: Option<Duration>,
    /// From the request to the end of the answer; `None`: as furt.conf says for all.
    pub deadline: Option<Duration>,
    /// Which instances serve it.
    pub instances: Declared,
    /// Whether it was written in furt.conf.
    pub is_static: bool,
    /// Set on the way to the service, replacing the client's own.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
}

impl Route {
    /// Whether the instance with this number serves it.
    pub fn declared_by(&self, number: u32) -> bool {
        match &self.instances {
            Declared::All => true,
            Declared::Only(numbers) => numbers.binary_search(&number).is_ok(),
        }
    }
}

/// What a search found.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// The route that governs the request.
    Found(&'a Arc<Route>),
    /// The path is known for this host under these methods only; ascending, `HEAD` beside `GET`.
    MethodNotAllowed(Vec<&'a str>),
    /// The path is not known for this host.
    NotFound,
}

/// Every route of a view. A clone is two pointers; a changed clone leaves the old one as it was.
#[derive(Debug, Clone, Default)]
pub struct Table {
    fixed: Arc<Node>,
    registered: Arc<Node>,
    len: usize,
}

impl Table {
    /// The route for a request: `host` in lower case without port, empty for none; `path` canonical.
    pub fn find(&self, host: &str, method: &str, path: &str) -> Lookup<'_> {
        if let Some(route) = self.search(path, &mut |terminal| terminal.select(host, method)) {
            return Lookup::Found(route);
        }
        let methods = self.methods(host, path);
        if methods.is_empty() { Lookup::NotFound } else { Lookup::MethodNotAllowed(methods) }
    }

    /// Whether any route, of whatever method, fits host and path.
    pub fn knows(&self, host: &str, path: &str) -> bool {
        self.search(path, &mut |terminal| terminal.by_host(host).next()).is_some()
    }

    /// Every route whose pattern matches the path, of any host and method: static ones first, then by
    /// specificity. `find` walks the same way and stops at the first that fits.
    pub fn candidates(&self, path: &str) -> Vec<&Arc<Route>> {
        let mut all = Vec::new();
        self.search(path, &mut |terminal| {
            all.extend(terminal.all());
            None::<()>
        });
        all
    }

    /// Adds a route. Costs in the length of its pattern.
    pub fn insert(&mut self, route: Arc<Route>) {
        let pattern = route.pattern.clone();
        let trie = if route.is_static { &mut self.fixed } else { &mut self.registered };
        insert(trie, &mut pattern.segments(), route);
        self.len += 1;
    }

    /// Takes a route out that was added; any other is left alone.
    pub fn remove(&mut self, route: &Arc<Route>) {
        let trie = if route.is_static { &mut self.fixed } else { &mut self.registered };
        if remove(trie, &mut route.pattern.segments(), route) {
            self.len -= 1;
        }
    }

    /// How many routes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shows every terminal that matches to `visit`, best first, until it gives an answer.
    fn search<'a, T>(&'a self, path: &str, visit: &mut impl FnMut(&'a Terminal) -> Option<T>) -> Option<T> {
        let path = path.strip_prefix('/')?;
        descend(&self.fixed, Some(path), visit).or_else(|| descend(&self.registered, Some(path), visit))
    }

    /// The methods under which a path is known for a host.
    fn methods(&self, host: &str, path: &str) -> Vec<&str> {
        let mut methods = Vec::new();
        self.search(path, &mut |terminal| {
            methods.extend(terminal.by_host(host).flat_map(Methods::routes).map(|route| route.method.as_str()));
            None::<()>
        });
        // GET answers HEAD too, so a client may use both.
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.dedup();
        methods
    }
}

/// A place between two segments of patterns.
#[derive(Debug, Clone, Default)]
struct Node {
    literals: Map<Text, Arc<Node>>,
    one: Option<Arc<Node>>,
    rest: Option<Arc<Terminal>>,
    end: Option<Arc<Terminal>>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.literals.is_empty() && self.one.is_none() && self.rest.is_none() && self.end.is_none()
    }
}

/// A literal segment. Nearly all are short and stand where they are looked for: a search does not
/// follow a pointer, and miss the cache, to compare one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Arc<[u8]>),
}

/// As many bytes as leave [`Text`] at three words.
const SHORT: usize = 22;

impl Text {
    fn new(text: &str) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(start), Ok(len)) => {
                start.copy_from_slice(text.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(text.as_bytes().into()),
        }
    }
}

impl Borrow<[u8]> for Text {
    fn borrow(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        }
    }
}

impl Hash for Text {
    /// As the bytes it is looked up by.
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<[u8]>::borrow(self).hash(state);
    }
}

/// Depth first, the more specific segment before the less: that is the order of specificity, and
/// coming back from a dead end is the backtracking. The depth is bounded by the longest pattern.
/// `path`: what follows the last `/`, `None` after the last segment.
fn descend<'a, T>(node: &'a Node, path: Option<&str>, visit: &mut impl FnMut(&'a Terminal) -> Option<T>) -> Option<T> {
    let Some(path) = path else { return node.end.as_deref().and_then(visit) };
    let (segment, after) = match path.bytes().position(|byte| byte == b'/') {
        Some(at) => (&path[..at], Some(&path[at + 1..])),
        None => (path, None),
    };
    if let Some(found) = node.literals.get(segment.as_bytes()).and_then(|child| descend(child, after, visit)) {
        return Some(found);
    }
    if segment.is_empty() {
        return None;
    }
    if let Some(found) = node.one.as_deref().and_then(|child| descend(child, after, visit)) {
        return Some(found);
    }
    node.rest.as_deref().and_then(visit)
}

fn insert<'p>(node: &mut Arc<Node>, segments: &mut impl Iterator<Item = Segment<'p>>, route: Arc<Route>) {
    let node = Arc::make_mut(node);
    match segments.next() {
        None => Arc::make_mut(node.end.get_or_insert_default()).insert(route),
        Some(Segment::Rest) => Arc::make_mut(node.rest.get_or_insert_default()).insert(route),
        Some(Segment::One) => insert(node.one.get_or_insert_default(), segments, route),
        Some(Segment::Literal(literal)) => match node.literals.get_mut(literal.as_bytes()) {
            Some(child) => insert(child, segments, route),
            None => {
                let mut child = Arc::default();
                insert(&mut child, segments, route);
                node.literals.insert(Text::new(literal), child);
            }
        },
    }
}

/// Whether the route was there; nodes left empty are gone.
fn remove<'p>(node: &mut Arc<Node>, segments: &mut impl Iterator<Item = Segment<'p>>, route: &Arc<Route>) -> bool {
    fn from_terminal(terminal: &mut Option<Arc<Terminal>>, route: &Arc<Route>) -> bool {
        let Some(own) = terminal else { return false };
        let removed = Arc::make_mut(own).remove(route);
        if own.is_empty() {
            *terminal = None;
        }
        removed
    }
    let node = Arc::make_mut(node);
    match segments.next() {
        None => from_terminal(&mut node.end, route),
        Some(Segment::Rest) => from_terminal(&mut node.rest, route),
        Some(Segment::One) => {
            let Some(child) = &mut node.one else { return false };
            let removed = remove(child, segments, route);
            if child.is_empty() {
                node.one = None;
            }
            removed
        }
        Some(Segment::Literal(literal)) => {
            let Some(child) = node.literals.get_mut(literal.as_bytes()) else { return false };
            let removed = remove(child, segments, route);
            if child.is_empty() {
                node.literals.remove(literal.as_bytes());
            }
            removed
        }
    }
}

/// The routes of one pattern, by host: ten thousand tenants may all have `/*`.
#[derive(Debug, Clone, Default)]
struct Terminal {
    any: Methods,
    exact: Map<Arc<str>, Methods>,
    suffix: Map<Arc<str>, Methods>,
}

impl Terminal {
    /// The route with the closest host, and of that the closest method.
    fn select(&self, host: &str, method: &str) -> Option<&Arc<Route>> {
        if self.exact.is_empty() && self.suffix.is_empty() {
            return self.any.select(method);
        }
        self.by_host(host).find_map(|routes| routes.select(method))
    }

    /// The routes of every host that fits, the closest first.
    fn by_host<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a Methods> {
        let suffixes = if self.suffix.is_empty() { "" } else { host };
        // A suffix starts with its dot, and something must come before it (`RouteHost::fits`).
        let dots = suffixes.bytes().enumerate().skip(1).filter(|(_, byte)| *byte == b'.');
        let suffix = dots.filter_map(move |(at, _)| self.suffix.get(&suffixes[at..]));
        let any = Some(&self.any).filter(|any| !any.is_empty());
        self.exact.get(host).into_iter().chain(suffix).chain(any)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.exact.values().chain(self.suffix.values()).chain([&self.any]).flat_map(Methods::routes)
    }

    fn insert(&mut self, route: Arc<Route>) {
        match &route.host {
            RouteHost::Any => self.any.insert(route),
            RouteHost::Exact(host) => Self::insert_host(&mut self.exact, &host.clone(), route),
            RouteHost::Suffix(suffix) => Self::insert_host(&mut self.suffix, &suffix.clone(), route),
        }
    }

    fn insert_host(hosts: &mut Map<Arc<str>, Methods>, host: &Arc<str>, route: Arc<Route>) {
        match hosts.get_mut(host) {
            Some(methods) => methods.insert(route),
            None => {
                hosts.insert(host.clone(), Methods(vec![(tag(route.method.as_str()), route)]));
            }
        }
    }

    fn remove(&mut self, route: &Arc<Route>) -> bool {
        let (hosts, host) = match &route.host {
            RouteHost::Any => return self.any.remove(route),
            RouteHost::Exact(host) => (&mut self.exact, host),
            RouteHost::Suffix(suffix) => (&mut self.suffix, suffix),
        };
        let Some(methods) = hosts.get_mut(host) else { return false };
        let removed = methods.remove(route);
        if methods.is_empty() {
            hosts.remove(host);
        }
        removed
    }

    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.exact.is_empty() && self.suffix.is_empty()
    }
}

/// The routes of one pattern and host, by method, then by service.
///
/// The registry lets no two services hold one; were it to happen, the order decides, and so the
/// table is the same whichever came first. Beside each route stands the start of its method, so that
/// a search need not look into routes that it does not choose.
#[derive(Debug, Clone, Default)]
struct Methods(Vec<(Tag, Arc<Route>)>);

/// The first eight bytes of a method, in its order; zeros fill up, which no method has.
type Tag = u64;

fn tag(method: &str) -> Tag {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(method.bytes()) {
        *to = from;
    }
    u64::from_be_bytes(first)
}

impl Methods {
    fn select(&self, method: &str) -> Option<&Arc<Route>> {
        self.get(method).or_else(|| if method == "HEAD" { self.get("GET") } else { None }).or_else(|| self.get("*"))
    }

    fn get(&self, method: &str) -> Option<&Arc<Route>> {
        let wanted = tag(method);
        let same = |own: &str| method.len() < 8 || own == method;
        let found = self.0.iter().find(|(tag, route)| *tag == wanted && same(route.method.as_str()));
        found.map(|(_, route)| route)
    }

    fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.0.iter().map(|(_, route)| route)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn insert(&mut self, route: Arc<Route>) {
        let at = self.0.partition_point(|(_, own)| (&own.method, &own.service) <= (&route.method, &route.service));
        self.0.insert(at, (tag(route.method.as_str()), route));
    }

    fn remove(&mut self, route: &Arc<Route>) -> bool {
        let at = self.routes().position(|own| Arc::ptr_eq(own, route));
        if let Some(at) = at {
            self.0.remove(at);
        }
        at.is_some()
    }
}

#[cfg(test)]
mod tests;
