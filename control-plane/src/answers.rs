//! The `data` of answers in JSON: the field names of the `.proto`, every field shown, whatever its value.
//!
//! Here: one function per message, and a test that none of them lags behind the `.proto`.
//! Not here: the envelope (`proto`), statuses, what is asked.

use std::collections::BTreeMap;

use furt_proto::v1;
use serde_json::{Value, json};

use crate::listener::ReloadDone;

/// `RegisterResponse`.
pub fn registered(answer: &v1::RegisterResponse) -> Value {
    json!({
        "service": answer.service,
        "instance": answer.instance,
        "registration_id": answer.registration_id,
        "status": answer.status,
        "routes": answer.routes,
        "warnings": list(&answer.warnings, warning),
        "epoch": answer.epoch,
        "version": answer.version,
        "renew_after_seconds": answer.renew_after_seconds,
    })
}

/// `DeregisterResponse`.
pub fn deregistered(answer: &v1::DeregisterResponse) -> Value {
    json!({"service": answer.service, "instances": answer.instances, "version": answer.version})
}

/// `DrainResponse`.
pub fn drained(answer: &v1::DrainResponse) -> Value {
    json!({
        "service": answer.service,
        "instances": answer.instances,
        "version": answer.version,
        "in_flight": answer.in_flight,
        "deregistered": answer.deregistered,
    })
}

/// What a reload did.
pub fn reloaded(answer: &ReloadDone) -> Value {
    json!({"changes": answer.changes, "warnings": answer.warnings, "version": answer.version})
}

/// `Event`.
pub fn event(event: &v1::Event) -> Value {
    json!({
        "cursor": event.cursor,
        "time": event.time,
        "kind": event.kind,
        "service": event.service,
        "instance": event.instance,
        "from": event.from,
        "to": event.to,
        "message": event.message,
        "version": event.version,
    })
}

/// `ProbeResponse`.
pub fn probed(answer: &v1::ProbeResponse) -> Value {
    json!({"service": answer.service, "instances": answer.instances})
}

/// `GetServiceResponse`.
pub fn one_service(found: &v1::Service) -> Value {
    json!({"service": service(found)})
}

/// `ListServicesResponse`.
pub fn services(answer: &v1::ListServicesResponse) -> Value {
    json!({"services": list(&answer.services, service), "epoch": answer.epoch, "version": answer.version})
}

/// `ListRoutesResponse`.
pub fn routes(answer: &v1::ListRoutesResponse) -> Value {
    json!({"routes": list(&answer.routes, route), "version": answer.version})
}

/// `ExplainResponse`; its route is null when none won.
pub fn explained(answer: &v1::ExplainResponse) -> Value {
    json!({
        "canonical_path": answer.canonical_path,
        "outcome": answer.outcome.as_ref().map(|outcome| json!({"status": outcome.status, "code": outcome.code})),
        "route": answer.route.as_ref().map(winner),
        "candidates": list(&answer.candidates, candidate),
        "key": answer.key.as_ref().map(key_verdict),
        "instances": list(&answer.instances, instance_verdict),
        "snapshot": answer.snapshot.as_ref().map(|id| json!({"epoch": id.epoch, "version": id.version})),
    })
}

fn list<T>(items: &[T], show: fn(&T) -> Value) -> Value {
    items.iter().map(show).collect()
}

fn warning(warning: &v1::Warning) -> Value {
    json!({"code": warning.code, "route": warning.route, "with": warning.with, "message": warning.message})
}

fn service(service: &v1::Service) -> Value {
    json!({
        "service": service.service,
        "status": service.status,
        "instances": list(&service.instances, instance),
        "routes": list(&service.routes, route),
    })
}

fn instance(instance: &v1::Instance) -> Value {
    json!({
        "id": instance.id,
        "url": instance.url,
        "health_endpoint": instance.health_endpoint,
        "status": instance.status,
        "parked": instance.parked,
        "consecutive_failures": instance.consecutive_failures,
        "last_ping": instance.last_ping,
        "response_time_ms": instance.response_time_ms,
        "last_error": instance.last_error,
        "registration_id": instance.registration_id,
        "registered_at": instance.registered_at,
        "version": instance.version,
        "weight": instance.weight,
        "protocol": instance.protocol,
        // In one order, so that two answers compare.
        "metadata": instance.metadata.iter().collect::<BTreeMap<_, _>>(),
        "addresses": instance.addresses,
        "suspect": instance.suspect,
        "drained": instance.drained,
        "withdrawn": instance.withdrawn,
        "restored": instance.restored,
        "session": instance.session,
        "uptime": list(&instance.uptime, uptime),
        "timeline": list(&instance.timeline, transition),
    })
}

fn uptime(uptime: &v1::Uptime) -> Value {
    json!({"window": uptime.window, "up_seconds": uptime.up_seconds, "down_seconds": uptime.down_seconds, "ratio": uptime.ratio})
}

fn transition(transition: &v1::Transition) -> Value {
    json!({"time": transition.time, "from": transition.from, "to": transition.to, "cause": transition.cause})
}

fn route(route: &v1::ServiceRoute) -> Value {
    json!({
        "service": route.service,
        "host": route.host,
        "method": route.method,
        "path": route.path,
        "permission": route.permission,
        "public": route.public,
        "static": route.r#static,
        "active": route.active,
        "instances": route.instances,
        "timeout": route.timeout,
        "deadline": route.deadline,
    })
}

fn winner(route: &v1::explain_response::Winner) -> Value {
    json!({
        "service": route.service,
        "host": route.host,
        "method": route.method,
        "pattern": route.pattern,
        "permission": route.permission,
        "static": route.r#static,
    })
}

fn candidate(candidate: &v1::explain_response::Candidate) -> Value {
    json!({
        "service": candidate.service,
        "host": candidate.host,
        "method": candidate.method,
        "pattern": candidate.pattern,
        "permission": candidate.permission,
        "static": candidate.r#static,
        "won": candidate.won,
        "reason": candidate.reason,
    })
}

fn key_verdict(key: &v1::explain_response::KeyVerdict) -> Value {
    json!({"name": key.name, "allowed": key.allowed, "reason": key.reason, "rate": key.rate.as_ref().map(rate)})
}

fn rate(rate: &v1::explain_response::RateState) -> Value {
    json!({"limit": rate.limit, "remaining": rate.remaining, "retry_after_seconds": rate.retry_after_seconds})
}

fn instance_verdict(verdict: &v1::explain_response::InstanceVerdict) -> Value {
    json!({"id": verdict.id, "url": verdict.url, "status": verdict.status, "eligible": verdict.eligible, "reason": verdict.reason})
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// The field names of a message of `furt.v1`, as the `.proto` has them.
    fn fields(message: &str) -> Vec<String> {
        let files = prost_types::FileDescriptorSet::decode(furt_proto::FILE_DESCRIPTOR_SET).unwrap();
        let (outer, inner) = message.split_once('.').map_or((message, None), |(outer, inner)| (outer, Some(inner)));
        let mut found = files.file.iter().flat_map(|file| &file.message_type).find(|found| found.name() == outer).expect(message);
        if let Some(inner) = inner {
            found = found.nested_type.iter().find(|found| found.name() == inner).expect(message);
        }
        found.field.iter().map(|field| field.name().to_owned()).collect()
    }

    fn check(message: &str, shown: &Value) {
        let shown: Vec<String> = shown.as_object().unwrap().keys().cloned().collect();
        assert_eq!(shown, fields(message), "{message}");
    }

    #[test]
    fn every_field_of_the_proto_is_shown_under_its_name() {
        use v1::explain_response as explain;
        check("RegisterResponse", &registered(&v1::RegisterResponse::default()));
        check("Warning", &warning(&v1::Warning::default()));
        check("DeregisterResponse", &deregistered(&v1::DeregisterResponse::default()));
        check("DrainResponse", &drained(&v1::DrainResponse::default()));
        check("Event", &event(&v1::Event::default()));
        check("Uptime", &uptime(&v1::Uptime::default()));
        check("Transition", &transition(&v1::Transition::default()));
        check("ProbeResponse", &probed(&v1::ProbeResponse::default()));
        check("GetServiceResponse", &one_service(&v1::Service::default()));
        check("Service", &service(&v1::Service::default()));
        check("Instance", &instance(&v1::Instance::default()));
        check("ListServicesResponse", &services(&v1::ListServicesResponse::default()));
        check("ListRoutesResponse", &routes(&v1::ListRoutesResponse::default()));
        check("ServiceRoute", &route(&v1::ServiceRoute::default()));
        check("ExplainResponse", &explained(&v1::ExplainResponse::default()));
        check("ExplainResponse.Candidate", &candidate(&explain::Candidate::default()));
        check("ExplainResponse.InstanceVerdict", &instance_verdict(&explain::InstanceVerdict::default()));
        let answer = explained(&v1::ExplainResponse {
            outcome: Some(explain::Outcome::default()),
            route: Some(explain::Winner::default()),
            key: Some(explain::KeyVerdict::default()),
            snapshot: Some(explain::SnapshotId::default()),
            ..v1::ExplainResponse::default()
        });
        check("ExplainResponse.Outcome", &answer["outcome"]);
        check("ExplainResponse.Winner", &answer["route"]);
        check("ExplainResponse.KeyVerdict", &answer["key"]);
        check("ExplainResponse.RateState", &rate(&explain::RateState::default()));
        check("ExplainResponse.SnapshotId", &answer["snapshot"]);
        assert_eq!(explained(&v1::ExplainResponse::default())["route"], Value::Null);
    }

    #[test]
    fn the_registrations_answer_is_the_contracts() {
        let answer = registered(&v1::RegisterResponse {
            service: "sagjan".into(),
            instance: "default".into(),
            registration_id: "01J".into(),
            status: "UNKNOWN".into(),
            routes: 4,
            epoch: "3f9c".into(),
            version: 17,
            renew_after_seconds: 60,
            warnings: Vec::new(),
        });
        assert_eq!(
            answer.to_string(),
            r#"{"service":"sagjan","instance":"default","registration_id":"01J","status":"UNKNOWN","routes":4,"warnings":[],"epoch":"3f9c","version":17,"renew_after_seconds":60}"#
        );
    }
}
