//! Host names in use: which there are, and what they stand for now.
//!
//! Not here: looking them up (`resolve`), whether an address is allowed (`admission`).

use super::*;
use crate::resolve::Wanted;

/// Whose addresses may change: an instance under one registration.
pub(crate) struct NamedInstance {
    service: ServiceName,
    instance: InstanceId,
    registration_id: Arc<str>,
    peer: IpAddr,
}

/// What the resolver asks.
impl Registry {
    pub(crate) fn resolver(&self) -> &Resolver {
        &self.shared.resolver
    }

    /// Resolves when names may be in use that were not before.
    pub(crate) async fn names_changed(&self) {
        self.shared.renamed.notified().await;
    }

    /// Static routes whose url is a name, by their place in furt.conf.
    pub(crate) fn static_names(&self) -> Vec<Wanted<usize>> {
        let config = self.config();
        let routes = config.published.static_routes.iter().enumerate();
        routes.filter(|(_, route)| route.url.address().is_none()).map(|(user, route)| Wanted { url: route.url.clone(), user }).collect()
    }

    /// An operator wrote the name, so whatever it stands for is taken.
    pub(crate) fn static_resolved(&self, wanted: &Wanted<usize>, answer: Resolved) {
        let name = self.config().published.static_routes.get(wanted.user).map(|route| route.name.clone()).unwrap_or_default();
        let addresses = match answer {
            Ok(addresses) => with_port(&addresses, &wanted.url),
            Err(error) => return self.telemetry().not_resolved(&name, wanted.url.host(), &error),
        };
        let mut state = self.lock();
        let config = self.config();
        // furt.conf may have been read again since the name was looked up.
        let same = config.published.static_routes.get(wanted.user).is_some_and(|route| route.url == wanted.url);
        match state.statics.get_mut(wanted.user) {
            Some(known) if same && *known != addresses => *known = addresses.clone(),
            _ => return,
        }
        let part = published::static_routes(&config, &state.statics);
        state.services.publication_mut().publish([part]);
        self.publish(state);
        self.telemetry().resolved(&name, wanted.url.host(), &format!("{addresses:?}"));
    }

    /// Instances whose url is a name.
    pub(crate) fn registered_names(&self) -> Vec<Wanted<NamedInstance>> {
        self.walk(|service, out| {
            for (id, instance) in service.instances.iter().filter(|(_, instance)| instance.registration.url.address().is_none()) {
                let user = NamedInstance {
                    service: service.name.clone(),
                    instance: id.clone(),
                    registration_id: instance.registration_id.clone(),
                    peer: instance.peer,
                };
                out.push(Wanted { url: instance.registration.url.clone(), user });
            }
        })
    }

    /// What a registered name stands for now, checked as at registration; the last good addresses stay otherwise.
    pub(crate) fn registered_resolved(&self, wanted: &Wanted<NamedInstance>, answer: Resolved) {
        let Wanted { url, user } = wanted;
        let rules = self.rules();
        let machine = ThisMachine::of(&rules.config);
        if let Some(fault) = rules.admission.addresses(&user.service, user.peer, url, &answer, &machine) {
            return self.telemetry().not_resolved(user.service.as_str(), url.host(), &fault.message);
        }
        let addresses = with_port(&answer.unwrap_or_default(), url);
        let mut state = self.lock();
        let changed = state.services.set_addresses(&user.service, &user.instance, &user.registration_id, addresses.clone());
        self.store_soon(&mut state);
        self.publish(state);
        if changed {
            self.telemetry().resolved(user.service.as_str(), url.host(), &format!("{addresses:?}"));
        }
    }
}
