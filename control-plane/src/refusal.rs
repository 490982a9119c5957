//! Why not: the codes of the control plane's refusals, in one table, and the refusal that carries every fault at once.
//!
//! Here: codes, faults, refusals, and their two shapes on the wire. Not here: who decides.

use std::{collections::HashMap, fmt, time::Duration};

use furt_proto::envelope::Detail;
use http::StatusCode;
use tonic_types::{ErrorDetails, StatusExt};

/// What a refusal is; [`Code::table`] says how it looks to JSON, gRPC and HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A field is missing, of the wrong type, or not what it may be.
    Validation,
    /// The body or head cannot be read at all.
    Malformed,
    /// A token is needed and none that is known was sent.
    Unauthorized,
    /// The identity may not do this.
    Forbidden,
    /// The peer, its token or a forwarding header speaks against the registration.
    RegistrationRefused,
    /// The grant (or its lack) speaks against it: path, host, permission, public, count, upstream.
    PermissionNotGranted,
    /// Somebody else holds a route.
    RouteConflict,
    /// The registration named is no longer the current one.
    StaleRegistration,
    /// There is no such thing.
    NotFound,
    /// There is such a thing, under another method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The body is too large.
    PayloadTooLarge,
    /// Too many registrations.
    RateLimited,
    /// For now it cannot be done.
    Unavailable,
    /// It cannot be made durable for now.
    StoreUnavailable,
    /// A fault of furt's own.
    Internal,
}

impl Code {
    /// The one table: slug, gRPC code, HTTP status.
    pub fn table(self) -> (&'static str, tonic::Code, StatusCode) {
        use tonic::Code as Grpc;
        match self {
            Self::Validation => ("VALIDATION_ERROR", Grpc::InvalidArgument, StatusCode::BAD_REQUEST),
            Self::Malformed => ("MALFORMED_REQUEST", Grpc::InvalidArgument, StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("UNAUTHORIZED", Grpc::Unauthenticated, StatusCode::UNAUTHORIZED),
            Self::Forbidden => ("FORBIDDEN", Grpc::PermissionDenied, StatusCode::FORBIDDEN),
            Self::RegistrationRefused => ("REGISTRATION_REFUSED", Grpc::PermissionDenied, StatusCode::FORBIDDEN),
            Self::PermissionNotGranted => ("PERMISSION_NOT_GRANTED", Grpc::PermissionDenied, StatusCode::FORBIDDEN),
            Self::RouteConflict => ("ROUTE_CONFLICT", Grpc::AlreadyExists, StatusCode::CONFLICT),
            Self::StaleRegistration => ("STALE_REGISTRATION", Grpc::FailedPrecondition, StatusCode::CONFLICT),
            Self::NotFound => ("NOT_FOUND", Grpc::NotFound, StatusCode::NOT_FOUND),
            Self::MethodNotAllowed => ("METHOD_NOT_ALLOWED", Grpc::Unimplemented, StatusCode::METHOD_NOT_ALLOWED),
            Self::RequestTimeout => ("REQUEST_TIMEOUT", Grpc::DeadlineExceeded, StatusCode::REQUEST_TIMEOUT),
            Self::PayloadTooLarge => ("PAYLOAD_TOO_LARGE", Grpc::ResourceExhausted, StatusCode::PAYLOAD_TOO_LARGE),
            Self::RateLimited => ("RATE_LIMIT_EXCEEDED", Grpc::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS),
            Self::Unavailable => ("SERVICE_UNAVAILABLE", Grpc::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
            Self::StoreUnavailable => ("STORE_UNAVAILABLE", Grpc::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
            Self::Internal => ("INTERNAL", Grpc::Internal, StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// The code as clients read it.
    pub fn slug(self) -> &'static str {
        self.table().0
    }
    /// The gRPC status code.
    pub fn grpc(self) -> tonic::Code {
        self.table().1
    }
    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        self.table().2
    }

    /// Among several faults the least rank gives its code to the refusal: 400 before 403 before 409 (DESIGN §9).
    fn rank(self) -> u8 {
        match self.status().as_u16() {
            400 => 0,
            403 => 1,
            409 => 2,
            _ => 3,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.slug())
    }
}

/// One thing that is wrong, named by the field it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The field, such as `routes[3].method`; empty when it is none.
    pub field: String,
    /// What kind of fault.
    pub code: Code,
    /// The sentence for people.
    pub message: String,
}

impl Fault {
    /// A fault of one field.
    pub fn new(field: impl Into<String>, code: Code, message: impl Into<String>) -> Self {
        Self { field: field.into(), code, message: message.into() }
    }

    /// The message for a line among others: without further lines, and without the words that only announce them.
    pub fn headline(&self) -> &str {
        let Some((first, _)) = self.message.split_once('\n') else { return &self.message };
        first.rsplit_once("; ").filter(|_| first.ends_with(':')).map_or(first, |(said, _)| said)
    }
}

/// No, with every reason at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Everything that is wrong; never empty for a refusal that was built from faults.
    pub faults: Vec<Fault>,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
}

/// What of the details goes into a gRPC status: it travels in a header, and clients accept 8 KiB of those.
const GRPC_DETAIL_BYTES: usize = 3 * 1024;

impl Refusal {
    /// A refusal for one reason that is no field's.
    pub fn one(code: Code, message: impl Into<String>) -> Self {
        Self { faults: vec![Fault::new("", code, message)], retry_after: None }
    }

    /// The code of the whole: that of the first fault of the first class, 400 before 403 before 409.
    pub fn code(&self) -> Code {
        self.first().map_or(Code::Internal, |fault| fault.code)
    }

    /// The sentence of the whole: the first fault of the first class, and how many more there are.
    pub fn message(&self) -> String {
        let Some(first) = self.first() else { return "refused for no reason given".into() };
        let field = if first.field.is_empty() { String::new() } else { format!("{}: ", first.field) };
        match self.faults.len() - 1 {
            0 => format!("{field}{}", first.message),
            1 => format!("{field}{} (and 1 more fault, see details)", first.message),
            more => format!("{field}{} (and {more} more faults, see details)", first.message),
        }
    }

    /// Every fault in one line, the first class first: for logs and events, which have no details beside them.
    pub fn line(&self) -> String {
        let mut faults: Vec<&Fault> = self.faults.iter().collect();
        faults.sort_by_key(|fault| fault.code.rank());
        let told = faults.into_iter().map(|fault| match fault.field.as_str() {
            "" => fault.headline().to_owned(),
            field => format!("{field}: {}", fault.headline()),
        });
        told.collect::<Vec<_>>().join("; ")
    }

    /// Whole seconds for `Retry-After`, rounded up, at least 1.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
    }

    /// What `details` of the envelope holds: every fault, or nothing when the one fault is no field's.
    pub fn details(&self) -> Vec<Detail> {
        match self.faults.as_slice() {
            [only] if only.field.is_empty() => Vec::new(),
            faults => faults.iter().map(Detail::from).collect(),
        }
    }

    fn first(&self) -> Option<&Fault> {
        self.faults.iter().min_by_key(|fault| fault.code.rank())
    }
}

impl From<Vec<Fault>> for Refusal {
    fn from(faults: Vec<Fault>) -> Self {
        Self { faults, retry_after: None }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        vec![fault].into()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Refusal {}

impl From<&Fault> for Detail {
    fn from(fault: &Fault) -> Self {
        Self { field: fault.field.clone(), code: fault.code.slug(), message: fault.message.clone() }
    }
}

impl From<Refusal> for tonic::Status {
    /// With `google.rpc.ErrorInfo` (reason: the slug, domain: `furt`), `BadRequest` (a violation for each
    /// fault of a field, as many as fit a header) and `RetryInfo`.
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code();
        let mut details = ErrorDetails::new();
        details.set_error_info(code.slug(), "furt", HashMap::new());
        if refusal.retry_after.is_some() {
            details.set_retry_info(refusal.retry_after);
        }
        let mut room = GRPC_DETAIL_BYTES;
        for (index, fault) in refusal.faults.iter().filter(|fault| !fault.field.is_empty()).enumerate() {
            let description = format!("{}: {}", fault.code, fault.message);
            let size = fault.field.len() + description.len();
            if size > room {
                let left = refusal.faults.len() - index;
                details.add_bad_request_violation("", format!("{left} more; the JSON endpoint and a dry run there show all"));
                break;
            }
            room -= size;
            details.add_bad_request_violation(fault.field.clone(), description);
        }
        // The message is a header too.
        let message: String = refusal.message().chars().take(1024).collect();
        tonic::Status::with_error_details(code.grpc(), message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_gives_the_code_and_details_hold_all() {
        let refusal = Refusal::from(vec![
            Fault::new("routes[0].path", Code::RouteConflict, "held by obr"),
            Fault::new("routes[1].permission", Code::PermissionNotGranted, "not granted"),
            Fault::new("url", Code::Validation, "no url"),
        ]);
        assert_eq!(refusal.code(), Code::Validation);
        assert_eq!(refusal.message(), "url: no url (and 2 more faults, see details)");
        assert_eq!(refusal.details().len(), 3);
        assert_eq!(refusal.details()[0].code, "ROUTE_CONFLICT");
        assert_eq!(refusal.line(), "url: no url; routes[1].permission: not granted; routes[0].path: held by obr");
        assert_eq!(Refusal::one(Code::NotFound, "gone").details(), []);
    }

    #[test]
    fn a_headline_has_no_further_lines_and_does_not_announce_them() {
        let check = |message: &str, expected: &str| assert_eq!(Fault::new("", Code::Forbidden, message).headline(), expected);
        check("no grant; to allow it, add:\n[service \"x\"]\npaths = /x", "no grant");
        check("no grant\n[service \"x\"]", "no grant");
        check("no grant; add:", "no grant; add:");
        check("to allow it, add:\n[service \"x\"]", "to allow it, add:");
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let check = |wait: Duration, expected: u64| {
            let refusal = Refusal { retry_after: Some(wait), ..Refusal::one(Code::RateLimited, "slow down") };
            assert_eq!(refusal.retry_after_seconds(), Some(expected));
        };
        check(Duration::ZERO, 1);
        check(Duration::from_millis(1001), 2);
        check(Duration::from_secs(7), 7);
    }

    #[test]
    fn a_grpc_status_has_the_details_and_fits_a_header() {
        let faults =
            (0..1000).map(|index| Fault::new(format!("routes[{index}].path"), Code::Validation, "a path must start with \"/\"")).collect();
        let refusal = Refusal { faults, retry_after: Some(Duration::from_secs(2)) };
        let status = tonic::Status::from(refusal);
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.details().len() + status.message().len() < 6 * 1024, "{}", status.details().len());
        let details = status.get_error_details();
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("VALIDATION_ERROR"));
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(Duration::from_secs(2)));
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "routes[0].path");
        assert!(violations.last().unwrap().description.contains("more"));
    }
}
