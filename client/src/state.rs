//! How the registration stands, for whoever watches.
//!
//! Here: the states, and what a refusal says. Not here: what is done about them (`keeper`).

use std::fmt;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// How the registration stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// furt has not answered yet.
    Registering,
    /// furt holds the registration, and the session with it.
    Registered(Registration),
    /// The session is over and another one will be tried. Why, for people.
    Lost(String),
    /// furt said no. It is asked again, slowly.
    Refused(Refusal),
    /// The keeper has ended.
    Left,
}

impl State {
    /// Whether furt holds the registration as far as is known here.
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered(_))
    }
}

/// A registration as furt holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// Names it; a changed url, health endpoint or protocol makes a new one.
    pub registration_id: String,
    /// UP, UNKNOWN or DOWN.
    pub status: String,
    /// True: an operator has drained the instance, and it takes no new requests.
    pub drained: bool,
    /// This life of the control plane.
    pub epoch: String,
    /// The snapshot that shows it.
    pub version: u64,
}

/// What furt has against the registration.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// What kind: `PermissionDenied`, `InvalidArgument`, …
    pub code: Code,
    /// The sentence for people.
    pub message: String,
    /// Every fault with its field, when there are several.
    pub reasons: Vec<Reason>,
}

/// One fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Reason {
    /// The field, such as `routes[3].path`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl From<&Status> for Refusal {
    fn from(status: &Status) -> Self {
        let violations = status.get_details_bad_request().map(|found| found.field_violations).unwrap_or_default();
        let reasons = violations.into_iter().map(|found| Reason { field: found.field, description: found.description });
        Self { code: status.code(), message: status.message().to_owned(), reasons: reasons.collect() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)?;
        self.reasons.iter().try_for_each(|reason| write!(f, "; {}: {}", reason.field, reason.description))
    }
}
