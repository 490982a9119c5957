//! The task that keeps one instance registered.
//!
//! Here: one session after the other, what is told between them, the farewell. Not here: what happens within a
//! session (`session`), how long to wait (`backoff`).

use std::{fmt, time::Duration};

use furt_proto::v1::{DrainRequest, DrainResponse, RegisterRequest};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};
use tracing::{error, info, warn};

use crate::{
    backoff::Backoff,
    registrar::Registrar,
    session::{Ended, GRACE, Session},
    state::State,
};

/// How long furt waits for requests in flight when nothing else was said.
const DRAIN: Duration = Duration::from_secs(30);
/// The longest that furt takes.
const LONGEST_DRAIN: Duration = Duration::from_secs(300);

/// Keeps one instance registered while it [runs](Self::run).
pub struct Keeper {
    registrar: Registrar,
    request: RegisterRequest,
    drain: Duration,
    state: watch::Sender<State>,
}

impl Keeper {
    pub(crate) fn new(registrar: Registrar, request: RegisterRequest) -> Self {
        Self { registrar, request, drain: DRAIN, state: watch::Sender::new(State::Registering) }
    }

    /// How long the farewell may wait for requests in flight, in whole seconds. 30 s unless said, at most 300 s.
    pub fn drain_for(mut self, longest: Duration) -> Self {
        self.drain = longest.min(LONGEST_DRAIN);
        self
    }

    /// How the registration stands, from now on.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Registers and stays registered until `shutdown`; then says farewell and ends.
    ///
    /// When it has ended, furt sends nothing more and has nothing in flight beyond the answer's `in_flight`. `None`:
    /// furt did not hear the farewell. It ends at most the time to drain and 5 s after `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> Option<DrainResponse> {
        let left = self.stay(&shutdown).await;
        match &left {
            Some(drained) => info!(service = self.request.service, in_flight = drained.in_flight, "deregistered from furt"),
            None => warn!(service = self.request.service, "ended without a farewell that furt has heard"),
        }
        self.state.send_replace(State::Left);
        left
    }

    async fn stay(&self, shutdown: &CancellationToken) -> Option<DrainResponse> {
        let mut backoff = Backoff::default();
        let mut registration_id = None;
        loop {
            let (session, inbound) = Session::open(self.registrar.clone(), self.request.clone(), self.drain_seconds(), &self.state);
            let (end, stood) = session.hold(inbound, shutdown).await;
            if let State::Registered(registration) = &*self.state.borrow() {
                registration_id = Some(registration.registration_id.clone());
            }
            let ended = match end {
                Ok(drained) => return Some(drained),
                Err(ended) => ended,
            };
            if shutdown.is_cancelled() {
                return None;
            }
            let wait = backoff.wait(&ended, stood, fastrand::f64());
            self.tell(ended, wait);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.drain(registration_id?).await,
                () = sleep(wait) => {}
            }
        }
    }

    fn tell(&self, ended: Ended, wait: Duration) {
        let RegisterRequest { service, instance, .. } = &self.request;
        let again_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        match ended {
            Ended::Refused(refusal) => {
                error!(service, instance, again_in_ms, "furt refuses the registration: {refusal}");
                self.state.send_replace(State::Refused(refusal));
            }
            Ended::Lost(cause) | Ended::Closed(cause) | Ended::Later { cause, .. } => {
                warn!(service, instance, again_in_ms, "not registered with furt: {cause}");
                self.state.send_replace(State::Lost(cause));
            }
        }
    }

    /// The farewell of one whose session was lost before: furt may hold the registration all the same. Tried once.
    async fn drain(&self, registration_id: String) -> Option<DrainResponse> {
        let RegisterRequest { service, instance, .. } = self.request.clone();
        let instance = if instance.is_empty() { "default".to_owned() } else { instance };
        let request = DrainRequest { service, instance, registration_id, seconds: Some(self.drain_seconds()), undo: false };
        let drained = async {
            let mut client = self.registrar.client().await?;
            client.drain(self.registrar.request(request)).await.map(Response::into_inner)
        };
        let answer = timeout(Duration::from_secs(self.drain_seconds().into()) + GRACE, drained).await;
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("furt has said nothing for too long"))).ok()
    }

    fn drain_seconds(&self) -> u32 {
        // At most 300, by `drain_for`.
        u32::try_from(self.drain.as_secs()).unwrap_or(u32::MAX)
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("registrar", &self.registrar).field("request", &self.request).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
