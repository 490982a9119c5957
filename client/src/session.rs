//! One session: from opening the stream to its end, whoever ends it.
//!
//! Here: what is said and heard. Not here: whether there is another one (`keeper`).

use std::{error::Error, pin::pin, time::Duration};

use furt_proto::v1::{
    DrainResponse, RegisterRequest, RegisterResponse, SessionRequest, SessionResponse,
    session_request::{Farewell, KeepAlive, Message as Said},
    session_response::{Message as Heard, State as Standing},
};
use futures_util::{Stream, StreamExt, TryFutureExt};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;
use tracing::{info, warn};

use crate::{
    registrar::{Registrar, root},
    state::{Refusal, Registration, State},
};

/// How often a sign of life is given.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A furt that answers none of three is as good as gone, though its HTTP/2 may still answer pings.
const SILENCE: Duration = Duration::from_secs(30);
/// What furt's answer to a farewell may take beyond the time it was given to drain.
pub const GRACE: Duration = Duration::from_secs(5);
/// Messages that wait for the connection. More than a few mean that it stands still, and the silence will tell.
const WAITING: usize = 4;

/// How a session ended that did not end with a farewell.
#[derive(Debug)]
pub enum Ended {
    /// furt itself ended it: it shuts down, or has no room. Why, for people.
    Closed(String),
    /// The stream broke, never came to be, or furt fell silent. Why, for people.
    Lost(String),
    /// furt has no room for it now.
    Later {
        /// Why, for people.
        cause: String,
        /// When furt wants to be asked again.
        after: Duration,
    },
    /// furt said no.
    Refused(Refusal),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        match (status.code(), retry) {
            (Code::ResourceExhausted, Some(after)) => Self::Later { cause: status.message().to_owned(), after },
            // FAILED_PRECONDITION: another process has registered under this instance's id, or an operator has taken
            // it out. To register again at once would be a tug of war, and never would leave nobody in the end.
            (
                Code::InvalidArgument
                | Code::Unauthenticated
                | Code::PermissionDenied
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::NotFound
                | Code::OutOfRange
                | Code::ResourceExhausted
                | Code::Unimplemented,
                _,
            ) => Self::Refused(Refusal::from(&status)),
            // A status with a source was made here, of what became of the connection; one without was sent.
            (code, _) => match status.source() {
                Some(source) => Self::Lost(format!("{code:?}: {}: {}", status.message(), root(source))),
                None if code == Code::Unavailable => Self::Closed(status.message().to_owned()),
                None => Self::Lost(format!("{code:?}: {}", status.message())),
            },
        }
    }
}

/// The client's side of one session.
pub struct Session<'a> {
    said: mpsc::Sender<SessionRequest>,
    state: &'a watch::Sender<State>,
    drain_seconds: u32,
    registered_at: Option<Instant>,
}

impl<'a> Session<'a> {
    /// What furt will say; nothing happens before it is polled. The registration is the first thing said.
    pub fn open(
        registrar: Registrar,
        request: RegisterRequest,
        drain_seconds: u32,
        state: &'a watch::Sender<State>,
    ) -> (Self, impl Stream<Item = Result<SessionResponse, Status>>) {
        let (said, outbound) = mpsc::channel(WAITING);
        let session = Self { said, state, drain_seconds, registered_at: None };
        session.say(Said::Register(request));
        let inbound = async move {
            let mut client = registrar.client().await?;
            client.session(registrar.request(ReceiverStream::new(outbound))).await.map(Response::into_inner)
        };
        (session, inbound.try_flatten_stream())
    }

    /// Holds the session until it ends. On `shutdown` it says farewell; what furt answers to that is its good end.
    ///
    /// Answers also how long the registration stood.
    pub async fn hold(
        mut self,
        inbound: impl Stream<Item = Result<SessionResponse, Status>>,
        shutdown: &CancellationToken,
    ) -> (Result<DrainResponse, Ended>, Duration) {
        let ended = self.listen(inbound, shutdown).await;
        (ended, self.registered_at.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    async fn listen(
        &mut self,
        inbound: impl Stream<Item = Result<SessionResponse, Status>>,
        shutdown: &CancellationToken,
    ) -> Result<DrainResponse, Ended> {
        let mut inbound = pin!(inbound);
        let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut leaving, mut patience) = (false, Instant::now() + SILENCE);
        loop {
            tokio::select! {
                heard = inbound.next() => match heard {
                    Some(Ok(response)) => {
                        if let Some(drained) = self.hear(response) {
                            return Ok(drained);
                        }
                        if !leaving {
                            patience = Instant::now() + SILENCE;
                        }
                    }
                    Some(Err(status)) => return Err(status.into()),
                    None => return Err(Ended::Closed("the session is over".into())),
                },
                _ = keep_alive.tick() => self.say(Said::KeepAlive(KeepAlive {})),
                () = shutdown.cancelled(), if !leaving => {
                    self.say(Said::Farewell(Farewell { seconds: Some(self.drain_seconds) }));
                    leaving = true;
                    patience = Instant::now() + self.drain() + GRACE;
                }
                () = sleep_until(patience) => return Err(Ended::Lost("furt has said nothing for too long".into())),
            }
        }
    }

    /// How long the farewell may take. Who was never registered has nothing in flight.
    fn drain(&self) -> Duration {
        self.registered_at.map_or(Duration::ZERO, |_| Duration::from_secs(self.drain_seconds.into()))
    }

    fn say(&self, message: Said) {
        // A full channel means a connection that stands still; `patience` ends that.
        let _ = self.said.try_send(SessionRequest { message: Some(message) });
    }

    /// The answer to the farewell, if it is that.
    fn hear(&mut self, response: SessionResponse) -> Option<DrainResponse> {
        match response.message? {
            Heard::Registered(answer) => self.registered(answer),
            Heard::State(standing) => self.standing(standing),
            Heard::Drained(drained) => return Some(drained),
        }
        None
    }

    fn registered(&mut self, answer: RegisterResponse) {
        let RegisterResponse { service, instance, registration_id, routes, epoch, version, status, .. } = answer;
        info!(service, instance, registration_id, routes, epoch, version, "registered with furt");
        for warning in answer.warnings {
            warn!(service, code = warning.code, route = warning.route, with = warning.with, "{}", warning.message);
        }
        self.registered_at.get_or_insert_with(Instant::now);
        self.state.send_replace(State::Registered(Registration { registration_id, status, drained: false, epoch, version }));
    }

    /// Watchers hear only of what changed.
    fn standing(&self, Standing { status, epoch, version, drained }: Standing) {
        self.state.send_if_modified(|state| {
            let State::Registered(was) = state else { return false };
            let now = Registration { registration_id: was.registration_id.clone(), status, drained, epoch, version };
            let changed = *was != now;
            *was = now;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_refusal_a_farewell_of_furts_and_a_lost_connection_are_told_apart() {
        let check = |status: Status, expected: &str| {
            let shown = format!("{:?}", Ended::from(status));
            assert!(shown.starts_with(expected), "{shown}");
        };
        let retry = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
        check(Status::with_error_details(Code::ResourceExhausted, "too often", retry), r#"Later { cause: "too often", after: 7s }"#);
        check(Status::resource_exhausted("too large"), "Refused(");
        check(Status::invalid_argument("no url"), "Refused(");
        check(Status::unauthenticated("no token"), "Refused(");
        check(Status::permission_denied("no grant"), "Refused(");
        check(Status::already_exists("held by obr"), "Refused(");
        check(Status::failed_precondition("another one has taken its place"), "Refused(");
        check(Status::unimplemented("no sessions here"), "Refused(");
        check(Status::unavailable("furt shuts down"), r#"Closed("furt shuts down")"#);
        check(Status::internal("oh"), r#"Lost("Internal: oh")"#);
        let mut broken = Status::unavailable("transport error");
        broken.set_source(Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        check(broken, r#"Lost("Unavailable: transport error: connection reset")"#);
    }
}
