//! What a session does to the registration it holds (DESIGN §7).
//!
//! Not here: its stream (`session`).

use super::*;

impl Registry {
    /// A session holds a registration from now on.
    pub fn session_opened(&self, service: &ServiceName, instance: &InstanceId, registration_id: &str) {
        if self.lock().services.count_session(service, instance, registration_id, true) {
            self.telemetry().session_opened(service, instance);
        }
    }

    /// A session ended without a farewell: a crash as far as furt can tell, so the instance is suspect at once. It is
    /// not removed, and a registration that has taken its place is not blamed.
    pub fn session_lost(&self, service: &ServiceName, instance: &InstanceId, registration_id: &str, cause: &str) {
        let mut state = self.lock();
        let holds = state.services.count_session(service, instance, registration_id, false);
        let held = |current: &crate::records::Instance| current.sessions > 0;
        let by_another = state.services.current(service.as_str(), instance.as_str(), registration_id).is_some_and(held);
        drop(state);
        // A service may be back before its old connection is found broken.
        if !holds || by_another {
            return;
        }
        self.telemetry().session_lost(service, instance, cause);
        self.suspect_instance(service.as_str(), instance, registration_id, cause);
    }

    /// A session ended as it should.
    pub fn session_closed(&self, service: &ServiceName, instance: &InstanceId, registration_id: &str) {
        self.lock().services.count_session(service, instance, registration_id, false);
    }

    /// How a registration stands; `None`: another has taken its place, or it is gone.
    pub fn standing(&self, service: &ServiceName, instance: &InstanceId, registration_id: &str) -> Option<v1::session_response::State> {
        let state = self.lock();
        let current = state.services.current(service.as_str(), instance.as_str(), registration_id)?;
        Some(v1::session_response::State {
            status: current.health.state.name().into(),
            epoch: self.shared.epoch.clone(),
            version: state.services.publication().version(),
            drained: current.is_drained(),
        })
    }

    /// Changes whenever there is something newer to tell.
    pub(crate) fn follow_changes(&self) -> watch::Receiver<Stamp> {
        self.follow()
    }
}
