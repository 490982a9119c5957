//! The `Session` RPC: a service registers with the first message and stays, and the stream is its sign of life
//! (DESIGN §7, §10).
//!
//! Here: what is answered to each message, when the state is told unasked, and how a session ends. Not here: what
//! registering decides (`registry`), who may (`identity`), what a lost session does to health (`health`).
//!
//! A session is a stream that is polled when its client has room for an answer: nothing is read before what was asked
//! is answered, and nothing queues for a client that does not read. A peer that vanished without a word is found by
//! the listener's HTTP/2 keep-alive (a ping every 30 s, 10 s for its answer), which ends the stream. A service that
//! wants to be found out sooner speaks up more often itself, and learns of furt's death the same way.

use std::time::Duration;

use furt_proto::{
    names::{InstanceId, ServiceName, quoted},
    v1::{self, session_request::Message as Heard, session_response::Message as Said},
};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    identity::{Action, Peer, authorize},
    refusal::{Code, Fault, Refusal},
    registry::{Registry, Stamp},
    telemetry::OpenSession,
};

/// How long a client may take to send the first message.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// Between two looks at the state of an instance: changes within it are told as one.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Sessions at once; each is some kilobytes.
const MOST_SESSIONS: i64 = 10_000;
/// What happened as long as nothing else is known to have.
const CONNECTION_LOST: &str = "the connection was lost";

/// Holds a session with `peer`: what comes in over `inbound`, what goes out in the answer. The answer ends with OK
/// after a farewell, and when the client closes its side; with UNAVAILABLE at `shutdown`, after which no session that
/// ends, however it does, is taken for lost.
///
/// Refused: who may not register, and one session too many.
pub fn open<S>(
    registry: Registry,
    peer: Peer,
    inbound: S,
    shutdown: CancellationToken,
) -> Result<impl Stream<Item = Result<v1::SessionResponse, Status>> + Send + use<S>, Refusal>
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin + 'static,
{
    authorize(&registry.config(), &peer, Action::Register, None)?;
    let too_many = || Refusal::one(Code::Unavailable, format!("there are {MOST_SESSIONS} sessions already"));
    let counted = registry.telemetry().session(MOST_SESSIONS).ok_or_else(too_many)?;
    let changed = registry.follow_changes();
    let told = Told::default();
    let session = Session { registry, peer, inbound, shutdown, changed, held: None, told, looked: None, _counted: counted };
    Ok(stream::unfold(Some(session), |session| async move {
        let mut session = session?;
        match session.next().await {
            Ok(Next::Say(said)) => Some((Ok(say(said)), Some(session))),
            Ok(Next::SayLast(said)) => Some((Ok(say(said)), None)),
            Ok(Next::End) => None,
            Err(status) => Some((Err(status), None)),
        }
    }))
}

fn say(message: Said) -> v1::SessionResponse {
    v1::SessionResponse { message: Some(message) }
}

enum Next {
    Say(Said),
    SayLast(Said),
    End,
}

/// What a client knows of its state.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    status: String,
    drained: bool,
}

struct Session<S> {
    registry: Registry,
    peer: Peer,
    inbound: S,
    shutdown: CancellationToken,
    changed: watch::Receiver<Stamp>,
    /// What it registered; `None` before.
    held: Option<Held>,
    told: Told,
    looked: Option<Instant>,
    _counted: OpenSession,
}

impl<S: Stream<Item = Result<v1::SessionRequest, Status>> + Unpin> Session<S> {
    /// The next answer, when there is one. After an error, and after the last, the session is over.
    async fn next(&mut self) -> Result<Next, Status> {
        if self.held.is_none() {
            let first = tokio::select! {
                () = self.shutdown.cancelled() => return Err(shutting_down()),
                first = timeout(FIRST_WORD, self.inbound.next()) => first,
            };
            let late = |_| Refusal::one(Code::RequestTimeout, format!("no message within {} s", FIRST_WORD.as_secs()));
            return self.hear(first.map_err(late)?).await;
        }
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Err(shutting_down()),
                heard = self.inbound.next() => return self.hear(heard).await,
                () = changed(&mut self.changed, self.looked.map(|looked| looked + LOOK_EVERY)) => {
                    if let Some(state) = self.look()? {
                        return Ok(Next::Say(Said::State(state)));
                    }
                }
            }
        }
    }

    async fn hear(&mut self, heard: Option<Result<v1::SessionRequest, Status>>) -> Result<Next, Status> {
        let request = match heard {
            Some(Ok(request)) => request,
            Some(Err(status)) => return Err(self.broken(status)),
            None => {
                self.lost_by("the session was closed without a farewell");
                return Ok(Next::End);
            }
        };
        match request.message {
            Some(Heard::Register(request)) => Ok(Next::Say(Said::Registered(self.register(request).await?))),
            Some(Heard::KeepAlive(_)) => {
                let state = self.standing()?;
                self.told = Told { status: state.status.clone(), drained: state.drained };
                Ok(Next::Say(Said::State(state)))
            }
            Some(Heard::Farewell(farewell)) => self.farewell(farewell.seconds).await,
            None => Err(self.refused(Refusal::one(Code::Validation, "a message of a session is register, keep_alive or farewell"))),
        }
    }

    /// Registers, changes or renews. A refusal ends the session, but what was registered before stands and is not lost:
    /// the service has just spoken.
    async fn register(&mut self, request: v1::RegisterRequest) -> Result<v1::RegisterResponse, Status> {
        if let Some(fault) = self.fault_of(&request) {
            return Err(self.refused(fault.into()));
        }
        let answer = match self.registry.register(&self.peer, request, Vec::new()).await {
            Ok(answer) => answer,
            Err(refusal) => return Err(self.refused(refusal)),
        };
        if self.held.as_ref().is_none_or(|held| held.registration_id != answer.registration_id) {
            let held = Held::new(&self.registry, &self.shutdown, &answer)?;
            // The registration before is no more, so it cannot be lost either.
            if let Some(before) = self.held.replace(held) {
                before.close();
            }
        }
        self.told = Told { status: answer.status.clone(), drained: false };
        // A drain that stands over the registration is news to the client.
        self.changed.mark_changed();
        Ok(answer)
    }

    fn fault_of(&self, request: &v1::RegisterRequest) -> Option<Fault> {
        if request.dry_run {
            return Some(Fault::new("dry_run", Code::Validation, "a session registers; a dry run is asked of Register"));
        }
        let held = self.held.as_ref()?;
        let instance = if request.instance.is_empty() { InstanceId::default().to_string() } else { request.instance.clone() };
        let other = |field: &str, held: &str, got: &str| {
            (held != got).then(|| {
                let message =
                    format!("this session is that of {}, got {}; another one has a session of its own", quoted(held), quoted(got));
                Fault::new(field, Code::Validation, message)
            })
        };
        other("service", held.service.as_str(), &request.service).or_else(|| other("instance", held.instance.as_str(), &instance))
    }

    /// Drains, deregisters, ends; the registry does it to the end when the client does not wait for that.
    async fn farewell(&mut self, seconds: Option<u32>) -> Result<Next, Status> {
        let Some(held) = &mut self.held else { return Err(before_registering("farewell").into()) };
        let request = v1::DrainRequest {
            service: held.service.to_string(),
            instance: held.instance.to_string(),
            registration_id: held.registration_id.clone(),
            seconds,
            undo: false,
        };
        // Whoever has said farewell may go.
        held.lost_by = None;
        match self.registry.drain(&self.peer, request).await {
            Ok(drained) => Ok(Next::SayLast(Said::Drained(drained))),
            Err(refusal) => {
                // It stays registered, though it said it would go.
                self.lost_by(&format!("its farewell was refused: {}", refusal.code()));
                Err(refusal.into())
            }
        }
    }

    /// The state, when it is news to the client.
    fn look(&mut self) -> Result<Option<v1::session_response::State>, Status> {
        self.looked = Some(Instant::now());
        let state = self.standing()?;
        let now = Told { status: state.status.clone(), drained: state.drained };
        Ok((std::mem::replace(&mut self.told, now) != self.told).then_some(state))
    }

    fn standing(&mut self) -> Result<v1::session_response::State, Status> {
        let Some(held) = &self.held else { return Err(before_registering("keep_alive").into()) };
        match self.registry.standing(&held.service, &held.instance, &held.registration_id) {
            Some(state) => Ok(state),
            None => {
                let message = format!(
                    "the registration {} of {}/{} is no more: it was taken out, or another one has taken its place",
                    held.registration_id, held.service, held.instance
                );
                Err(self.refused(Refusal::one(Code::StaleRegistration, message)))
            }
        }
    }

    /// Ends the session by furt's own word, which speaks against nobody's health.
    fn refused(&mut self, refusal: Refusal) -> Status {
        if let Some(held) = &mut self.held {
            held.lost_by = None;
        }
        refusal.into()
    }

    /// What became of the stream, as the client reads it if it still does.
    fn broken(&mut self, status: Status) -> Status {
        // To tonic it is a fault of the server's, but the client sent it.
        match status.message().strip_prefix("failed to decode Protobuf message: ") {
            Some(fault) => self.refused(Refusal::one(Code::Malformed, format!("the message does not decode: {fault}"))),
            None => {
                self.lost_by(CONNECTION_LOST);
                status
            }
        }
    }

    fn lost_by(&mut self, cause: &str) {
        if let Some(held) = &mut self.held {
            held.lost_by = Some(cause.to_owned());
        }
    }
}

/// Something changed, and it is time to look.
async fn changed(changed: &mut watch::Receiver<Stamp>, not_before: Option<Instant>) {
    if let Some(at) = not_before {
        sleep_until(at).await;
    }
    if changed.changed().await.is_err() {
        // The registry is gone; what closes it is heard elsewhere.
        std::future::pending().await
    }
}

fn before_registering(what: &str) -> Refusal {
    Refusal::one(Code::Validation, format!("the first message of a session is register, got {what}"))
}

fn shutting_down() -> Status {
    Status::unavailable("furt shuts down")
}

/// A registration that a session holds. When it is dropped the session is over, and the registry learns how.
struct Held {
    registry: Registry,
    shutdown: CancellationToken,
    service: ServiceName,
    instance: InstanceId,
    registration_id: String,
    /// Why the instance is lost if the session ended now; `None`: it is not.
    lost_by: Option<String>,
}

impl Held {
    fn new(registry: &Registry, shutdown: &CancellationToken, answer: &v1::RegisterResponse) -> Result<Self, Refusal> {
        let fault = |_| Refusal::one(Code::Internal, "furt registered what it cannot name");
        let held = Self {
            registry: registry.clone(),
            shutdown: shutdown.clone(),
            service: answer.service.parse().map_err(fault)?,
            instance: answer.instance.parse().map_err(fault)?,
            registration_id: answer.registration_id.clone(),
            lost_by: Some(CONNECTION_LOST.into()),
        };
        registry.session_opened(&held.service, &held.instance, &held.registration_id);
        Ok(held)
    }

    fn close(mut self) {
        self.lost_by = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Self { registry, shutdown, service, instance, registration_id, lost_by } = self;
        match lost_by {
            // Every session ends with furt, which says nothing about the services.
            Some(cause) if !shutdown.is_cancelled() => registry.session_lost(service, instance, registration_id, cause),
            _ => registry.session_closed(service, instance, registration_id),
        }
    }
}

#[cfg(test)]
mod tests;
