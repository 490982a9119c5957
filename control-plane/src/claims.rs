//! Who holds which route: a trie over patterns, so that asking costs by the pattern and not by the table.
//!
//! Here: insert, remove, and the three questions of admission. Not here: what an answer means.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering},
};

use furt_proto::{
    names::{RouteHost, RouteMethod},
    pattern::{RoutePattern, Segment},
};

use crate::registration::RouteKey;

/// Routes and their holders; each key has one holder.
#[derive(Debug)]
pub struct Claims<H> {
    root: Node<H>,
    /// Nodes looked at since the start; what tests of cost compare.
    work: AtomicU64,
}

#[derive(Debug)]
struct Node<H> {
    literals: HashMap<Box<str>, Node<H>>,
    one: Option<Box<Node<H>>>,
    here: Hosts<H>,
    rest: Hosts<H>,
}

type Hosts<H> = HashMap<RouteHost, Methods<H>>;
type Methods<H> = Vec<(RouteMethod, H)>;
/// Hosts that meet another, with what is held there.
type Fitting<'a, H> = Box<dyn Iterator<Item = (&'a RouteHost, &'a Methods<H>)> + 'a>;

/// A route of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim<H> {
    /// The route.
    pub key: RouteKey,
    /// Who holds it.
    pub holder: H,
}

/// Whether one request could be meant for both methods; a GET route serves HEAD as well (DESIGN §8).
pub fn methods_meet(one: &RouteMethod, two: &RouteMethod) -> bool {
    one.meets(two) || matches!((one.as_str(), two.as_str()), ("GET", "HEAD") | ("HEAD", "GET"))
}

/// Whether every request for `inner` would fit `outer`.
pub fn method_covers(outer: &RouteMethod, inner: &RouteMethod) -> bool {
    outer.is_any() || outer == inner || (outer.as_str() == "GET" && inner.as_str() == "HEAD")
}

impl<H> Default for Node<H> {
    fn default() -> Self {
        Self { literals: HashMap::new(), one: None, here: HashMap::new(), rest: HashMap::new() }
    }
}

impl<H> Default for Claims<H> {
    fn default() -> Self {
        Self { root: Node::default(), work: AtomicU64::new(0) }
    }
}

impl<H: Clone + PartialEq> Claims<H> {
    /// How many nodes were looked at, ever.
    pub fn work(&self) -> u64 {
        self.work.load(Ordering::Relaxed)
    }

    /// Notes a holder. A key that is held already keeps its holder.
    pub fn insert(&mut self, key: &RouteKey, holder: H) {
        let (node, hosts_are_rest) = key.pattern.segments().fold((&mut self.root, false), |(node, _), segment| match segment {
            Segment::Literal(text) => (node.literals.entry(text.into()).or_default(), false),
            Segment::One => (&mut **node.one.get_or_insert_default(), false),
            Segment::Rest => (node, true),
        });
        let hosts = if hosts_are_rest { &mut node.rest } else { &mut node.here };
        let methods = hosts.entry(key.host.clone()).or_insert_with(|| Vec::with_capacity(1));
        if !methods.iter().any(|(method, _)| *method == key.method) {
            methods.push((key.method.clone(), holder));
        }
    }

    /// Forgets a key, and the nodes that only it needed.
    pub fn remove(&mut self, key: &RouteKey) {
        let segments: Vec<_> = key.pattern.segments().collect();
        self.root.remove(&segments, key);
    }

    /// Who holds exactly this key.
    pub fn holder(&self, key: &RouteKey) -> Option<&H> {
        let methods = self.hosts(key)?.get(&key.host)?;
        methods.iter().find(|(method, _)| *method == key.method).map(|(_, holder)| holder)
    }

    /// A route with the same pattern and host whose method meets, held by somebody else.
    pub fn same(&self, key: &RouteKey, own: Option<&H>) -> Option<Claim<H>> {
        let methods = self.hosts(key)?.get(&key.host)?;
        let (method, holder) = methods.iter().find(|(method, holder)| methods_meet(method, &key.method) && Some(holder) != own)?;
        Some(Claim { key: RouteKey { method: method.clone(), ..key.clone() }, holder: holder.clone() })
    }

    fn hosts(&self, key: &RouteKey) -> Option<&Hosts<H>> {
        let mut node = &self.root;
        for segment in key.pattern.segments() {
            self.work.fetch_add(1, Ordering::Relaxed);
            match segment {
                Segment::Literal(text) => node = node.literals.get(text)?,
                Segment::One => node = node.one.as_deref()?,
                Segment::Rest => return Some(&node.rest),
            }
        }
        Some(&node.here)
    }

    /// The first route for which `wanted` (asked with pattern, host, method and holder) holds among those whose pattern covers that of `key`, itself included.
    pub fn covering(&self, key: &RouteKey, mut wanted: impl FnMut(&str, &RouteHost, &RouteMethod, &H) -> bool) -> Option<Claim<H>> {
        let segments: Vec<_> = key.pattern.segments().collect();
        let mut walk = Walk { path: String::new(), left: u64::MAX, work: 0 };
        let found = self.root.covering(&segments, &mut walk, &mut |pattern, hosts| {
            for (host, methods) in fitting_hosts(hosts, &key.host) {
                if let Some((method, holder)) = methods.iter().find(|(method, holder)| wanted(pattern, host, method, holder)) {
                    return claim(pattern, host, method, holder).map_or(ControlFlow::Continue(()), ControlFlow::Break);
                }
            }
            ControlFlow::Continue(())
        });
        self.work.fetch_add(walk.work, Ordering::Relaxed);
        found.break_value()
    }

    /// Somebody else's routes that a request could meet as well as `key`, up to `limit`. At most `budget` nodes
    /// are looked at, which is then lowered by those: what is found here is good to know and decides nothing.
    pub fn meeting(&self, key: &RouteKey, own: Option<&H>, limit: usize, budget: &mut u64) -> Vec<Claim<H>> {
        let segments: Vec<_> = key.pattern.segments().collect();
        let mut walk = Walk { path: String::new(), left: *budget, work: 0 };
        let mut found = Vec::new();
        let _ = self.root.meeting(&segments, &mut walk, &mut |pattern, hosts, left| {
            for (host, methods) in fitting_hosts(hosts, &key.host) {
                let Some(rest) = left.checked_sub(1) else { return ControlFlow::Break(()) };
                *left = rest;
                for (method, holder) in methods.iter().filter(|(method, holder)| methods_meet(method, &key.method) && Some(holder) != own) {
                    found.extend(claim(pattern, host, method, holder));
                    if found.len() >= limit {
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        });
        self.work.fetch_add(walk.work, Ordering::Relaxed);
        *budget = walk.left;
        found
    }
}

fn claim<H: Clone>(pattern: &str, host: &RouteHost, method: &RouteMethod, holder: &H) -> Option<Claim<H>> {
    // The text was put together from parsed patterns, so it parses.
    let pattern: RoutePattern = pattern.parse().ok()?;
    Some(Claim { key: RouteKey { pattern, host: host.clone(), method: method.clone() }, holder: holder.clone() })
}

/// The hosts that meet `host`, by lookup when it is an exact one: many services may share a pattern.
fn fitting_hosts<'a, H>(hosts: &'a Hosts<H>, host: &'a RouteHost) -> Fitting<'a, H> {
    let RouteHost::Exact(name) = host else {
        return Box::new(hosts.iter().filter(move |(other, _)| other.meets(host)));
    };
    let suffixes = name.char_indices().filter(|(_, character)| *character == '.').map(|(at, _)| RouteHost::Suffix(name[at..].into()));
    let keys = [host.clone(), RouteHost::Any].into_iter().chain(suffixes);
    Box::new(keys.filter_map(move |key| hosts.get_key_value(&key)))
}

/// The pattern on the way to a node, and what the walk may still cost.
struct Walk {
    path: String,
    left: u64,
    work: u64,
}

impl Walk {
    fn step(&mut self) -> ControlFlow<()> {
        self.work += 1;
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn inside<T>(&mut self, segment: &str, visit: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push('/');
        self.path.push_str(segment);
        let result = visit(self);
        self.path.truncate(length);
        result
    }
}

impl<H: Clone + PartialEq> Node<H> {
    fn is_empty(&self) -> bool {
        self.literals.is_empty() && self.one.is_none() && self.here.is_empty() && self.rest.is_empty()
    }

    fn remove(&mut self, segments: &[Segment<'_>], key: &RouteKey) {
        match segments.split_first() {
            None => remove_host(&mut self.here, key),
            Some((Segment::Rest, _)) => remove_host(&mut self.rest, key),
            Some((Segment::One, after)) => {
                if let Some(one) = &mut self.one {
                    one.remove(after, key);
                    if one.is_empty() {
                        self.one = None;
                    }
                }
            }
            Some((Segment::Literal(text), after)) => {
                if let Some(child) = self.literals.get_mut(*text) {
                    child.remove(after, key);
                    if child.is_empty() {
                        self.literals.remove(*text);
                    }
                }
            }
        }
    }

    fn covering<B>(
        &self,
        segments: &[Segment<'_>],
        walk: &mut Walk,
        visit: &mut impl FnMut(&str, &Hosts<H>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        walk.work += 1;
        let Some((segment, after)) = segments.split_first() else { return visit(&walk.path, &self.here) };
        if let Segment::Literal(text) = segment
            && let Some(child) = self.literals.get(*text)
        {
            walk.inside(text, |walk| child.covering(after, walk, visit))?;
        }
        if *segment == Segment::Literal("") {
            return ControlFlow::Continue(());
        }
        if let Some(one) = &self.one
            && *segment != Segment::Rest
        {
            walk.inside("*", |walk| one.covering(after, walk, visit))?;
        }
        if self.rest.is_empty() {
            return ControlFlow::Continue(());
        }
        walk.inside("*", |walk| visit(&walk.path, &self.rest))
    }

    fn meeting(
        &self,
        segments: &[Segment<'_>],
        walk: &mut Walk,
        visit: &mut impl FnMut(&str, &Hosts<H>, &mut u64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        walk.step()?;
        let Some((segment, after)) = segments.split_first() else { return visit(&walk.path, &self.here, &mut walk.left) };
        match segment {
            Segment::Literal(text) => {
                if let Some(child) = self.literals.get(*text) {
                    walk.inside(text, |walk| child.meeting(after, walk, visit))?;
                }
                if text.is_empty() {
                    return ControlFlow::Continue(());
                }
            }
            Segment::One => {
                for (text, child) in self.literals.iter().filter(|(text, _)| !text.is_empty()) {
                    walk.inside(text, |walk| child.meeting(after, walk, visit))?;
                }
            }
            Segment::Rest => {
                for (text, child) in self.literals.iter().filter(|(text, _)| !text.is_empty()) {
                    walk.inside(text, |walk| child.all(walk, visit))?;
                }
            }
        }
        if let Some(one) = &self.one {
            walk.inside("*", |walk| if *segment == Segment::Rest { one.all(walk, visit) } else { one.meeting(after, walk, visit) })?;
        }
        walk.inside("*", |walk| visit(&walk.path, &self.rest, &mut walk.left))
    }

    fn all(&self, walk: &mut Walk, visit: &mut impl FnMut(&str, &Hosts<H>, &mut u64) -> ControlFlow<()>) -> ControlFlow<()> {
        walk.step()?;
        visit(&walk.path, &self.here, &mut walk.left)?;
        for (text, child) in &self.literals {
            walk.inside(text, |walk| child.all(walk, visit))?;
        }
        if let Some(one) = &self.one {
            walk.inside("*", |walk| one.all(walk, visit))?;
        }
        walk.inside("*", |walk| visit(&walk.path, &self.rest, &mut walk.left))
    }
}

fn remove_host<H>(hosts: &mut Hosts<H>, key: &RouteKey) {
    if let Some(methods) = hosts.get_mut(&key.host) {
        methods.retain(|(method, _)| *method != key.method);
        if methods.is_empty() {
            hosts.remove(&key.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(method: &str, host: &str, pattern: &str) -> RouteKey {
        RouteKey { method: method.parse().unwrap(), host: host.parse().unwrap(), pattern: pattern.parse().unwrap() }
    }

    #[test]
    fn a_key_that_is_removed_leaves_nothing_behind() {
        let mut claims = Claims::default();
        let keys = [key("GET", "", "/a/*/b"), key("GET", "", "/a/*"), key("POST", "a.org", "/a/*"), key("GET", "", "/a/b/")];
        for key in &keys {
            claims.insert(key, "sagjan");
        }
        assert_eq!(claims.same(&keys[1], Some(&"obr")).unwrap().holder, "sagjan");
        assert_eq!(claims.same(&keys[1], Some(&"sagjan")), None);
        for key in &keys {
            claims.remove(key);
        }
        assert!(claims.root.is_empty());
    }

    #[test]
    fn a_star_meets_every_method_and_get_serves_head() {
        let mut claims = Claims::default();
        claims.insert(&key("GET", "", "/a"), "sagjan");
        for (method, held) in [("GET", true), ("*", true), ("HEAD", true), ("POST", false)] {
            assert_eq!(claims.same(&key(method, "", "/a"), None).is_some(), held, "{method}");
        }
    }

    fn any_key() -> impl Strategy<Value = RouteKey> {
        let host = prop_oneof![Just(""), Just("a.org"), Just("b.a.org"), Just("*.org"), Just("*.a.org")];
        let method = prop_oneof![Just("GET"), Just("HEAD"), Just("POST"), Just("*")];
        ("(/(a|b|\\*)){1,4}/?", host, method).prop_map(|(pattern, host, method)| key(method, host, &pattern))
    }

    proptest! {
        #[test]
        fn the_three_questions_agree_with_looking_at_every_route(
            held in proptest::collection::vec((any_key(), 0..3u8), 0..40), asked in any_key(), own in 0..3u8, gone in 0..40usize,
        ) {
            let mut claims = Claims::default();
            let mut naive: Vec<(RouteKey, u8)> = Vec::new();
            for (key, holder) in held {
                claims.insert(&key, holder);
                if !naive.iter().any(|(other, _)| *other == key) {
                    naive.push((key, holder));
                }
            }
            if gone < naive.len() {
                claims.remove(&naive.swap_remove(gone).0);
            }
            let others = || naive.iter().filter(|(key, holder)| *holder != own && methods_meet(&key.method, &asked.method));
            let same = others().any(|(key, _)| key.pattern == asked.pattern && key.host == asked.host);
            prop_assert_eq!(claims.same(&asked, Some(&own)).is_some(), same);
            let covers = others().any(|(key, _)| key.pattern.covers(&asked.pattern) && key.host.meets(&asked.host));
            let covering = claims.covering(&asked, |_, _, method, holder| *holder != own && methods_meet(method, &asked.method));
            prop_assert_eq!(covering.is_some(), covers, "{:?}", covering);
            let mut meets: Vec<_> = others().filter(|(key, _)| key.pattern.meets(&asked.pattern) && key.host.meets(&asked.host)).cloned().collect();
            let mut meeting: Vec<_> =
                claims.meeting(&asked, Some(&own), usize::MAX, &mut u64::MAX.clone()).into_iter().map(|claim| (claim.key, claim.holder)).collect();
            meets.sort();
            meeting.sort();
            prop_assert_eq!(meeting, meets);
        }
    }
}
