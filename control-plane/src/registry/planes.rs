//! The data planes that follow, as far as the registry has to know: what they have installed, and what they said of
//! requests in flight and of instances they could not reach.
//!
//! Not here: what they are sent (`snapshots`).

use std::collections::HashMap;

use super::*;

/// Every data plane that follows.
#[derive(Default)]
pub(super) struct Planes {
    planes: HashMap<u64, Plane>,
    last: u64,
}

struct Plane {
    /// Of this process: its installing is waited for.
    local: bool,
    installed: u64,
    counted: Option<Counted>,
}

/// Requests in flight to drained instances, as a data plane counted them.
struct Counted {
    /// At which version.
    version: u64,
    /// By service and number; what is not there has none.
    requests: HashMap<(String, u32), u32>,
}

/// Most instances whose requests in flight are taken from one message.
const MOST_COUNTED: usize = 100_000;
/// Data planes that may follow at once from elsewhere: far more than anybody runs, and each is heard under the lock.
const MOST_PLANES: usize = 1_000;

impl Planes {
    /// Requests in flight to these instances, which `version` drained; `None` while a data plane has not said so.
    pub(super) fn in_flight(&self, service: &str, numbers: &[u32], version: u64) -> Option<u32> {
        let mut sum = 0u32;
        for plane in self.planes.values() {
            let counted = plane.counted.as_ref().filter(|counted| counted.version >= version)?;
            for number in numbers {
                sum = sum.saturating_add(counted.requests.get(&(service.to_owned(), *number)).copied().unwrap_or(0));
            }
        }
        Some(sum)
    }
}

#[cfg(test)]
impl Planes {
    /// Counts that are kept of all data planes.
    pub(super) fn remembered(&self) -> usize {
        self.planes.values().filter_map(|plane| plane.counted.as_ref()).map(|counted| counted.requests.len()).sum()
    }
}

/// What the snapshots ask.
impl Registry {
    pub(crate) fn follow(&self) -> watch::Receiver<Stamp> {
        self.shared.changed.subscribe()
    }
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.shared.closed
    }

    /// Whether one more data plane from elsewhere may follow.
    pub(crate) fn has_room_for_a_plane(&self) -> bool {
        self.lock().planes.planes.len() < MOST_PLANES
    }

    /// A data plane begins to follow; `local`: one of this process.
    pub(crate) fn attach(&self, local: bool) -> u64 {
        let mut state = self.lock();
        state.planes.last += 1;
        let id = state.planes.last;
        state.planes.planes.insert(id, Plane { local, installed: 0, counted: None });
        self.tell_planes(&state);
        id
    }

    /// A data plane says where it stands in this epoch.
    pub(crate) fn heard(&self, id: u64, request: &v1::WatchRequest) {
        let mut state = self.lock();
        let State { services, planes, .. } = &mut *state;
        if let Some(plane) = planes.planes.get_mut(&id) {
            // What it says of a version that is yet to come is not known to be so.
            let version = request.version.min(services.publication().version());
            plane.installed = version;
            if request.counted {
                // What is asked about later are drained instances, so nothing else is kept.
                let drained = |count: &&v1::InFlight| services.is_drained(&count.service, count.instance);
                let counts = request.in_flight.iter().take(MOST_COUNTED).filter(drained);
                let requests = counts.map(|count| ((count.service.clone(), count.instance), count.requests)).collect();
                plane.counted = Some(Counted { version, requests });
            }
        }
        self.tell_planes(&state);
    }

    /// A data plane has left.
    pub(crate) fn detach(&self, id: u64) {
        let mut state = self.lock();
        state.planes.planes.remove(&id);
        self.tell_planes(&state);
    }

    fn tell_planes(&self, state: &State) {
        let least = state.planes.planes.values().filter(|plane| plane.local).map(|plane| plane.installed).min();
        self.shared.installed.send_if_modified(|last| std::mem::replace(last, least) != least);
        self.shared.counted.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A data plane could not connect.
    pub(crate) fn suspect(&self, suspicion: &v1::Suspicion) {
        let reason: String = suspicion.reason.chars().take(200).collect();
        let Some(id) = self.lock().services.numbered(&suspicion.service, suspicion.instance) else { return };
        self.suspect_instance(&suspicion.service, &id, &suspicion.registration_id, &reason);
    }

    /// Something other than a probe speaks against an instance.
    pub(super) fn suspect_instance(&self, service: &str, id: &InstanceId, registration_id: &str, reason: &str) {
        let mut state = self.lock();
        let suspected = state.services.suspect(service, id, registration_id, moment());
        self.publish(state);
        if let Some(instance) = suspected {
            self.shared.due.notify_one();
            self.telemetry().suspected(service, &instance, reason);
        }
    }
}
