//! May this peer register this? The rules of DESIGN §4, every fault at once.
//!
//! Here: grant, paths, permissions, addresses, routes that others hold. Pure: whoever asks brings what is known.
//! Not here: who may talk to furt at all (`identity`), rates (`limits`), shape (`registration`), name lookups (`resolve`).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use furt_proto::{names::ServiceName, permission::covered, url::UpstreamUrl, v1};

use crate::{
    claims::{Claim, Claims, method_covers, methods_meet},
    config::{Config, Grant},
    identity::{Peer, listed, not_registrar, outside_from},
    machine::Machine,
    records::Instance,
    refusal::{Code, Fault},
    registration::{Draft, RouteKey},
};

/// Most warnings of one answer.
const MAX_WARNINGS: usize = 20;
/// Trie nodes that looking for warnings may visit for one registration: about a millisecond.
const WARNING_BUDGET: u64 = 20_000;

/// The rules as furt.conf has them, made once.
#[derive(Debug)]
pub struct Admission {
    config: Arc<Config>,
    statics: Claims<Arc<str>>,
}

/// What a name stood for when it was looked up: its addresses, or why there are none.
pub type Resolved = Result<Vec<IpAddr>, String>;

/// Who a registration is from.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// Someone who asks now.
    Asks(&'a Peer),
    /// Someone who asked before; whether with an operator's token.
    Asked {
        /// With an operator's token, which stands for the grant's `from` and token.
        by_operator: bool,
    },
}

/// What admission asks about the services that are registered.
pub trait Held {
    /// Who holds which route.
    fn claims(&self) -> &Claims<ServiceName>;
    /// Why a service that holds a route may not come back for it; `None`: it is there.
    fn is_past(&self, service: &ServiceName) -> Option<&'static str>;
    /// Instances of a service that are neither parked nor withdrawn, this one left out.
    fn others_awake(&self, service: &ServiceName, instance: &str) -> usize;
    /// Whether this instance is there, and neither parked nor withdrawn.
    fn is_awake(&self, service: &ServiceName, instance: &str) -> bool;
}

impl Admission {
    /// The rules of a configuration.
    pub fn new(config: Arc<Config>) -> Self {
        let mut statics = Claims::default();
        for route in &config.published.static_routes {
            for method in &route.methods {
                let key = RouteKey { pattern: route.pattern.clone(), host: route.host.clone(), method: method.clone() };
                statics.insert(&key, route.name.clone());
            }
        }
        Self { statics, config }
    }

    /// The grant of a service: its own, or the default one.
    pub fn grant(&self, service: &ServiceName) -> Option<&Grant> {
        self.config.grants.of(service)
    }

    /// Rules 1 (`from`), 2, 3 and 5: what the grant says of the peer, the routes and the url. Needs no lock.
    pub fn granted(
        &self,
        who: &Who<'_>,
        address: IpAddr,
        draft: &Draft,
        resolved: Option<&Resolved>,
        machine: &impl Machine,
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        let Some(service) = &draft.service else { return faults };
        let Some(grant) = self.grant(service) else {
            faults.push(Fault::new("service", Code::PermissionNotGranted, no_grant(service, draft, address)));
            return faults;
        };
        let not_registrar = match who {
            Who::Asks(peer) => not_registrar(&self.config, grant, peer, address, service),
            Who::Asked { by_operator: true } => None,
            Who::Asked { by_operator: false } => outside_from(grant, address, service),
        };
        faults.extend(not_registrar.map(|message| Fault::new("", Code::RegistrationRefused, message)));
        for (index, route) in draft.routes.iter().enumerate() {
            let mut refuse = |name: &str, message: String| {
                faults.push(Fault::new(format!("routes[{index}].{name}"), Code::PermissionNotGranted, message));
            };
            if let (Some(pattern), Some(paths)) = (&route.pattern, &grant.paths)
                && !paths.iter().any(|path| path.covers(pattern))
            {
                refuse("path", format!("{pattern} is outside the paths granted to {service}: {}", list(paths)));
            }
            if let Some(host) = route.host.as_ref().filter(|host| **host != Default::default())
                && !grant.hosts.iter().any(|granted| granted.covers(host))
            {
                refuse("host", format!("{host} is outside the hosts granted to {service}: {}", list(&grant.hosts)));
            }
            if let Some(permission) = &route.permission
                && !covered(&grant.permissions, permission)
            {
                refuse("permission", format!("{permission} is outside the permissions granted to {service}: {}", list(&grant.permissions)));
            }
            if route.public && !grant.allow_public {
                refuse("public", format!("{service} may not have public routes; its grant would need allow_public = true"));
            }
        }
        if let (Some(url), Some(resolved)) = (&draft.url, resolved) {
            faults.extend(self.addresses(service, address, url, resolved, machine));
        }
        faults
    }

    /// Rule 5 for the addresses that a url stands for. Also asked anew whenever a name is looked up again.
    pub fn addresses(
        &self,
        service: &ServiceName,
        peer: IpAddr,
        url: &UpstreamUrl,
        resolved: &Resolved,
        machine: &impl Machine,
    ) -> Option<Fault> {
        let never = |message: String| Some(Fault::new("url", Code::Validation, message));
        let addresses = match resolved {
            Ok(addresses) if !addresses.is_empty() => addresses,
            Ok(_) => return never(format!("{} has no address", url.host())),
            Err(error) => return never(format!("{} could not be looked up: {error}", url.host())),
        };
        for address in addresses.iter().map(IpAddr::to_canonical) {
            if let Some(kind) = never_an_upstream(address) {
                return never(format!("an upstream must not be {kind}, which {address} is"));
            }
            if machine.listens_on(url.port()) && (address.is_loopback() || machine.owns(address)) {
                return never(format!("{} is furt itself", SocketAddr::new(address, url.port())));
            }
            let (inside, allowed) = match self.grant(service).and_then(|grant| grant.upstreams.as_ref()) {
                Some(upstreams) => (upstreams.contains(address), format!("its grant says upstreams = {upstreams}")),
                None => {
                    let own = address == peer || (address.is_loopback() && peer.is_loopback());
                    (own, format!("without upstreams in its grant that is the registering peer's own address, {peer}"))
                }
            };
            if !inside {
                let message = format!("{address} is not where {service} may be; {allowed}");
                return Some(Fault::new("url", Code::PermissionNotGranted, message));
            }
        }
        None
    }

    /// Whether furt.conf allows what is registered already: every rule anew, but for the token, which is not kept, and
    /// for what others hold, since who holds a route keeps it. `before`: instances of the service that are awake and
    /// registered earlier.
    pub fn still(&self, instance: &Instance, before: usize, held: &impl Held, machine: &impl Machine) -> Vec<Fault> {
        let draft = Draft::of((*instance.registration).clone());
        let addresses: Resolved = Ok(instance.addresses.iter().map(|address| address.ip()).collect());
        // A name that is not looked up yet is checked when it is.
        let resolved = Some(&addresses).filter(|_| !instance.addresses.is_empty());
        let who = Who::Asked { by_operator: instance.by_operator };
        let listed = listed(&self.config, Some(instance.peer)).err();
        let mut faults: Vec<_> = listed.into_iter().flat_map(|refusal| refusal.faults).collect();
        faults.extend(self.granted(&who, instance.peer, &draft, resolved, machine));
        let service = &instance.registration.service;
        let grant = self.grant(service);
        if let Some(grant) = grant.filter(|grant| before >= grant.max_instances) {
            faults.push(too_many(service, before, grant));
        }
        let paths_are_named = grant.is_some_and(|grant| grant.paths.is_some());
        for (index, key) in draft.routes.iter().enumerate().filter_map(|(index, route)| Some((index, route.key()?))) {
            let conflict = self.conflict(service, &key, paths_are_named, held);
            faults.extend(conflict.map(|message| Fault::new(format!("routes[{index}].path"), Code::RouteConflict, message)));
        }
        faults
    }

    /// Rules 2 (count) and 4: what others hold. The part that has to be asked in one breath with the change.
    pub fn unclaimed(&self, draft: &Draft, held: &impl Held) -> (Vec<Fault>, Vec<v1::Warning>) {
        let mut faults = Vec::new();
        let mut warnings = Warnings { found: Vec::new(), budget: WARNING_BUDGET };
        let Some(service) = &draft.service else { return (faults, warnings.found) };
        let grant = self.grant(service);
        if let (Some(grant), Some(instance)) = (grant, &draft.instance) {
            let others = held.others_awake(service, instance.as_str());
            if others >= grant.max_instances && !held.is_awake(service, instance.as_str()) {
                faults.push(too_many(service, others, grant));
            }
        }
        let paths_are_named = grant.is_some_and(|grant| grant.paths.is_some());
        for (index, key) in draft.routes.iter().enumerate().filter_map(|(index, route)| Some((index, route.key()?))) {
            match self.conflict(service, &key, paths_are_named, held) {
                Some(message) => faults.push(Fault::new(format!("routes[{index}].path"), Code::RouteConflict, message)),
                None => warnings.look(&self.statics, held.claims(), service, &key),
            }
        }
        (faults, warnings.found)
    }

    fn conflict(&self, service: &ServiceName, key: &RouteKey, paths_are_named: bool, held: &impl Held) -> Option<String> {
        if let Some(first) = key.pattern.reserved() {
            return Some(format!("{key}: /{first} and what is below it is furt's own"));
        }
        let whole = self.statics.covering(key, |_, host, method, _| host.covers(&key.host) && method_covers(method, &key.method));
        if let Some(Claim { key: theirs, holder }) = whole {
            return Some(format!("{key} is covered by {theirs}, the route \"{holder}\" of furt.conf, which always wins"));
        }
        let held_by = |claim: Claim<ServiceName>, how: &str| {
            let Claim { key: theirs, holder } = claim;
            let free = match held.is_past(&holder) {
                Some(why) => format!("; {holder} {why}: DELETE /internal/services/{holder} on the internal listener frees it"),
                None => String::new(),
            };
            format!("{key} {how} {theirs}, held by {holder}{free}")
        };
        let claims = held.claims();
        // Who holds a route keeps it, also when a wider one has been allowed around it since.
        if claims.holder(key) == Some(service) {
            return None;
        }
        if let Some(claim) = claims.same(key, Some(service)) {
            return Some(held_by(claim, "is the same as"));
        }
        if paths_are_named {
            return None;
        }
        // A closer host on the very same pattern is an overlap like any other; its grant names that host.
        let inside = claims.covering(key, |pattern, _, method, holder| {
            holder != service && methods_meet(method, &key.method) && pattern != key.pattern.as_str()
        });
        inside.map(|claim| format!("{}; a grant that names paths for it would allow it", held_by(claim, "lies inside")))
    }
}

fn too_many(service: &ServiceName, others: usize, grant: &Grant) -> Fault {
    let message = format!("{service} has {others} instances already; its grant says max_instances = {}", grant.max_instances);
    Fault::new("instance", Code::PermissionNotGranted, message)
}

/// Addresses that no grant makes an upstream (DESIGN §4, rule 5).
fn never_an_upstream(address: IpAddr) -> Option<&'static str> {
    match address {
        // 0.0.0.0/8 is "this host on this network" (RFC 1122 §3.2.1.3); Linux connects 0.0.0.0 to itself.
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("unspecified"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local"),
        IpAddr::V4(v4) if v4.is_multicast() || v4 == Ipv4Addr::BROADCAST => Some("multicast"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("unspecified"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("multicast"),
        _ => None,
    }
}

/// No grant: the lines of furt.conf that would allow just this.
fn no_grant(service: &ServiceName, draft: &Draft, peer: IpAddr) -> String {
    let mut permissions: Vec<_> = draft.routes.iter().filter_map(|route| route.permission.as_ref()).map(ToString::to_string).collect();
    let mut paths: Vec<_> = draft.routes.iter().filter_map(|route| route.pattern.as_ref()).map(ToString::to_string).collect();
    let mut hosts: Vec<_> = draft.routes.iter().filter_map(|route| route.host.as_ref()).map(ToString::to_string).collect();
    hosts.retain(|host| !host.is_empty());
    // A comma would end the entry of a list; such a path is left for a person to grant.
    paths.retain(|path| !path.contains([',', ';', '"']));
    let mut lines = format!("there is no grant for {service}; to allow this registration, add to furt.conf:\n[service \"{service}\"]");
    for (name, values) in [("permissions", &mut permissions), ("paths", &mut paths), ("hosts", &mut hosts)] {
        values.sort();
        values.dedup();
        if !values.is_empty() {
            lines.push_str(&format!("\n{name} = {}", values.join(", ")));
        }
    }
    let literal = draft.url.as_ref().and_then(UpstreamUrl::address);
    if let Some(address) = literal.filter(|address| *address != peer && !(address.is_loopback() && peer.is_loopback())) {
        lines.push_str(&format!("\nupstreams = {address}"));
    }
    if draft.routes.iter().any(|route| route.public) {
        lines.push_str("\nallow_public = true");
    }
    lines
}

fn list(values: &[impl ToString]) -> String {
    if values.is_empty() {
        return "none".into();
    }
    let mut shown: Vec<_> = values.iter().take(10).map(ToString::to_string).collect();
    if values.len() > shown.len() {
        shown.push("…".into());
    }
    shown.join(", ")
}

/// Overlaps worth a look, and what looking may still cost.
struct Warnings {
    found: Vec<v1::Warning>,
    budget: u64,
}

impl Warnings {
    fn look(&mut self, statics: &Claims<Arc<str>>, claims: &Claims<ServiceName>, service: &ServiceName, key: &RouteKey) {
        let room = MAX_WARNINGS - self.found.len();
        if room == 0 || self.budget == 0 {
            return;
        }
        for claim in statics.meeting(key, None, room, &mut self.budget) {
            let with = format!("{} of furt.conf (\"{}\")", claim.key, claim.holder);
            let message = format!("{} meets {}, the route \"{}\" of furt.conf, which wins where both match", key, claim.key, claim.holder);
            self.add(key, with, message);
        }
        let room = MAX_WARNINGS - self.found.len();
        if room == 0 {
            return;
        }
        for claim in claims.meeting(key, Some(service), room, &mut self.budget) {
            let with = format!("{} of {}", claim.key, claim.holder);
            let message = format!("{} meets {}, held by {}; the more specific wins where both match", key, claim.key, claim.holder);
            self.add(key, with, message);
        }
    }

    fn add(&mut self, key: &RouteKey, with: String, message: String) {
        self.found.push(v1::Warning { code: "ROUTES_OVERLAP".into(), route: key.to_string(), with, message });
    }
}

#[cfg(test)]
mod tests;
