//! Every path of the internal listener that is not gRPC, in one table: the router and the API's description are both
//! made from it.
//!
//! Here: paths, who may ask, what is taken, what is answered. Not here: carrying it out (`http`), how it is described
//! (`openapi`).

use axum::routing::MethodFilter;

use super::Handler;
use super::query::{Kind, Parameter, Place};
use crate::identity::Action;
use crate::refusal::Code;
use crate::registry::{DRAIN_SECONDS, MOST_DRAIN_SECONDS};

/// The methods there are; HEAD goes with GET.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Shows.
    Get,
    /// Does.
    Post,
    /// Takes out.
    Delete,
}

impl Verb {
    /// As the description has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Delete => "delete",
        }
    }

    /// As the router has it.
    pub fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

/// One method of one path.
#[derive(Clone, Copy)]
pub struct Endpoint {
    /// The method.
    pub verb: Verb,
    /// The path, its names in braces.
    pub path: &'static str,
    /// Its name among all, for the description.
    pub name: &'static str,
    /// The sentence for people.
    pub summary: &'static str,
    /// What one has to be allowed. `None`: nothing, whoever may talk to the listener at all.
    pub needs: Option<Action>,
    /// The parameters it takes. `None`: a query is ignored, as monitors add their own.
    pub parameters: Option<&'static [Parameter]>,
    /// The message of `furt.v1` that its body is.
    pub takes: Option<&'static str>,
    /// What it answers when all is well.
    pub answers: Answers,
    /// What else it may refuse with, besides what every path may ([`Endpoint::codes`]).
    pub refusals: &'static [Code],
    /// What carries it out.
    pub(super) handler: Handler,
}

/// What an endpoint answers, by the name of its schema: a message of `furt.v1`, or one that `openapi` writes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The envelope with this as `data`.
    Data(&'static str),
    /// This as it is.
    Json(&'static str),
    /// `{"status": yes}`, or `{"status": no}` with 503.
    Word(&'static str, &'static str),
    /// Server-sent events whose data are these.
    Events(&'static str),
    /// Text for Prometheus.
    Metrics,
}

impl Endpoint {
    /// Every code it may refuse with, each once.
    pub fn codes(&self) -> Vec<Code> {
        // What the guard says to anyone, and what may happen anywhere.
        let mut codes = vec![Code::Malformed, Code::RegistrationRefused, Code::Forbidden, Code::Internal];
        if self.parameters.is_some() {
            codes.push(Code::Validation);
        }
        // A registration is open to all of the allow list: what its grant says of the peer is told as its own code.
        if self.needs.is_some_and(|action| action != Action::Register) {
            codes.push(Code::Unauthorized);
        }
        codes.extend(self.refusals);
        codes
    }

    /// The names in its path.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
    }
}

/// A parameter of the query: text that may be left out.
const fn query(name: &'static str, about: &'static str) -> Parameter {
    Parameter { name, place: Place::Query, kind: Kind::Text, required: false, about }
}

const SECONDS: Parameter = Parameter {
    kind: Kind::Whole { least: 0, most: MOST_DRAIN_SECONDS, otherwise: DRAIN_SECONDS },
    ..query("seconds", "How long to wait for requests in flight, in seconds.")
};
const REGISTRATION_ID: Parameter =
    query("registration_id", "If given, only that registration is meant: a newer one refuses with STALE_REGISTRATION.");

/// What a change to a service may be refused with.
const CHANGE: &[Code] = &[Code::NotFound, Code::StaleRegistration, Code::Unavailable, Code::StoreUnavailable];

/// Every endpoint, in the order of the description.
pub static ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        verb: Verb::Post,
        path: "/internal/register-service",
        name: "register",
        summary: "Registers one instance of a service, or renews, changes or dry-runs it. Answered when the registration is durable and \
                  its routes can be used. The body is read as JSON whatever its content type.",
        needs: Some(Action::Register),
        parameters: Some(&[Parameter {
            kind: Kind::Truth,
            ..query("dry_run", "true: decide and answer, change nothing. The field of the body says the same.")
        }]),
        takes: Some("RegisterRequest"),
        answers: Answers::Data("RegisterResponse"),
        refusals: &[
            Code::PermissionNotGranted,
            Code::RequestTimeout,
            Code::RouteConflict,
            Code::PayloadTooLarge,
            Code::RateLimited,
            Code::Unavailable,
            Code::StoreUnavailable,
        ],
        handler: |call, body| Box::pin(call.register(body)),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/internal/services",
        name: "listServices",
        summary: "Every registered service, in the order of names. Timelines and uptimes are left out.",
        needs: Some(Action::Read),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Data("ListServicesResponse"),
        refusals: &[Code::StoreUnavailable],
        handler: |call, _| Box::pin(async move { call.list_services() }),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/internal/services/{service}",
        name: "getService",
        summary: "One service with its instances, their health, timeline and uptime, and its routes.",
        needs: Some(Action::Read),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Data("GetServiceResponse"),
        refusals: &[Code::NotFound, Code::StoreUnavailable],
        handler: |call, _| Box::pin(async move { call.get_service() }),
    },
    Endpoint {
        verb: Verb::Delete,
        path: "/internal/services/{service}",
        name: "deregisterService",
        summary: "Takes a whole service out.",
        needs: Some(Action::DeregisterService),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Data("DeregisterResponse"),
        refusals: CHANGE,
        handler: |call, _| Box::pin(call.deregister()),
    },
    Endpoint {
        verb: Verb::Post,
        path: "/internal/services/{service}/probe",
        name: "probeService",
        summary: "Wakes the probes of a service now, also those of parked instances.",
        needs: Some(Action::Probe),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Data("ProbeResponse"),
        refusals: CHANGE,
        handler: |call, _| Box::pin(async move { call.probe() }),
    },
    Endpoint {
        verb: Verb::Post,
        path: "/internal/services/{service}/drain",
        name: "drainService",
        summary: "Sends the instances of a service no new requests, and waits for those in flight. They stay registered and drained, \
                  over renewals and restarts, until they are undrained.",
        needs: Some(Action::DrainService),
        parameters: Some(&[SECONDS]),
        takes: None,
        answers: Answers::Data("DrainResponse"),
        refusals: CHANGE,
        handler: |call, _| Box::pin(call.drain()),
    },
    Endpoint {
        verb: Verb::Post,
        path: "/internal/services/{service}/undrain",
        name: "undrainService",
        summary: "Takes an operator's drain back: the instances of a service take requests again.",
        needs: Some(Action::Undrain),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Data("DrainResponse"),
        refusals: CHANGE,
        handler: |call, _| Box::pin(call.undrain()),
    },
    Endpoint {
        verb: Verb::Delete,
        path: "/internal/services/{service}/instances/{instance}",
        name: "deregister",
        summary: "Takes one instance out.",
        needs: Some(Action::Deregister),
        parameters: Some(&[REGISTRATION_ID]),
        takes: None,
        answers: Answers::Data("DeregisterResponse"),
        refusals: CHANGE,
        handler: |call, _| Box::pin(call.deregister()),
    },
    Endpoint {
        verb: Verb::Post,
        path: "/internal/services/{service}/instances/{instance}/probe",
        name: "probe",
        summary: "Wakes the probe of an instance now, also when it is parked.",
        needs: Some(Action::Probe),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Data("ProbeResponse"),
        refusals: CHANGE,
        handler: |call, _| Box::pin(async move { call.probe() }),
    },
    Endpoint {
        verb: Verb::Post,
        path: "/internal/services/{service}/instances/{instance}/drain",
        name: "drain",
        summary: "Sends an instance no new requests, and waits for those in flight. Asked for by the service itself (its \
                  registration_id, or its registrar), the instance is deregistered then; asked for by an operator, it stays registered \
                  and drained, over renewals and restarts, until it is undrained.",
        needs: Some(Action::Drain),
        parameters: Some(&[SECONDS, REGISTRATION_ID]),
        takes: None,
        answers: Answers::Data("DrainResponse"),
        refusals: CHANGE,
        handler: |call, _| Box::pin(call.drain()),
    },
    Endpoint {
        verb: Verb::Post,
        path: "/internal/services/{service}/instances/{instance}/undrain",
        name: "undrain",
        summary: "Takes an operator's drain back: the instance takes requests again.",
        needs: Some(Action::Undrain),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Data("DrainResponse"),
        refusals: CHANGE,
        handler: |call, _| Box::pin(call.undrain()),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/internal/routes",
        name: "listRoutes",
        summary: "Every route, static ones first, then by service, pattern, host and method.",
        needs: Some(Action::Read),
        parameters: Some(&[query("service", "Only those of this service. Left out or empty: all.")]),
        takes: None,
        answers: Answers::Data("ListRoutesResponse"),
        refusals: &[Code::StoreUnavailable],
        handler: |call, _| Box::pin(async move { call.list_routes() }),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/internal/explain",
        name: "explain",
        summary: "Why a request would go where it goes: every candidate route and instance, and the reason it won or lost.",
        needs: Some(Action::Read),
        parameters: Some(&[
            Parameter { required: true, ..query("method", "The method of the request.") },
            Parameter { required: true, ..query("path", "Its path, as a client would send it, with or without a query.") },
            query("host", "The Host a client would send. Left out or empty: none that a route names."),
            query("key_name", "The name of the caller's key. Left out or empty: no key is sent."),
        ]),
        takes: None,
        answers: Answers::Data("ExplainResponse"),
        refusals: &[],
        handler: |call, _| Box::pin(async move { call.explain() }),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/internal/events",
        name: "watchEvents",
        summary: "What happens, as server-sent events: `id` is the cursor, `event` the kind, `data` the event as JSON. A comment is sent \
                  when nothing has happened for 15 seconds. The stream does not end by itself.",
        needs: Some(Action::Read),
        parameters: Some(&[
            query("since", "The cursor of the last event seen: those after it come first. Left out or empty: from now on. 0: all kept."),
            query("service", "Only those of this service. Left out or empty: all."),
            Parameter {
                place: Place::Header,
                ..query("Last-Event-ID", "Like `since`, and outranks it: event sources send it by themselves.")
            },
        ]),
        takes: None,
        answers: Answers::Events("Event"),
        refusals: &[Code::Unavailable],
        handler: |call, _| Box::pin(async move { call.events() }),
    },
    Endpoint {
        verb: Verb::Post,
        path: "/internal/reload",
        name: "reload",
        summary: "Reads furt.conf anew: all of it applies, or nothing.",
        needs: Some(Action::Reload),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Data("ReloadDone"),
        refusals: &[Code::Unavailable, Code::StoreUnavailable],
        handler: |call, _| Box::pin(call.reload()),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/internal/openapi.json",
        name: "openapi",
        summary: "This description.",
        needs: Some(Action::Read),
        parameters: Some(&[]),
        takes: None,
        answers: Answers::Json("OpenApi"),
        refusals: &[],
        handler: |call, _| Box::pin(async move { call.openapi() }),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/health",
        name: "health",
        summary: "How furt and every service are. 200 while furt serves.",
        needs: None,
        parameters: None,
        takes: None,
        answers: Answers::Json("Health"),
        refusals: &[],
        handler: |call, _| Box::pin(async move { call.health() }),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/health/live",
        name: "live",
        summary: "Whether furt runs.",
        needs: None,
        parameters: None,
        takes: None,
        answers: Answers::Word("live", "not live"),
        refusals: &[],
        handler: |call, _| Box::pin(async move { call.live() }),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/health/ready",
        name: "ready",
        summary: "Whether furt should be sent requests.",
        needs: None,
        parameters: None,
        takes: None,
        answers: Answers::Word("ready", "not ready"),
        refusals: &[],
        handler: |call, _| Box::pin(async move { call.ready() }),
    },
    Endpoint {
        verb: Verb::Get,
        path: "/metrics",
        name: "metrics",
        summary: "Metrics of both planes, for Prometheus.",
        needs: Some(Action::Read),
        parameters: None,
        takes: None,
        answers: Answers::Metrics,
        refusals: &[],
        handler: |call, _| Box::pin(async move { call.metrics() }),
    },
];
