//! Names that travel: services, instances, methods and route hosts, each a type that parses or refuses.

use std::{fmt, str::FromStr, sync::Arc};

/// Why a name was refused, as a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(pub String);

fn name_ok(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=63) && bytes[0] != b'-' && bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if name_ok(text) {
                    return Ok(Self(text.into()));
                }
                Err(NameError(format!(concat!($what, " must match [a-z0-9]([a-z0-9-]{{0,62}}), got {}"), quoted(text))))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of a service: `[a-z0-9]([a-z0-9-]{0,62})` (DESIGN §4, rule 6).
    ServiceName,
    "a service name"
);
name!(
    /// The id of one running copy of a service; the same shape as a service's name.
    InstanceId,
    "an instance id"
);

impl Default for InstanceId {
    /// `default`: the id of a registration that names no instance.
    fn default() -> Self {
        Self("default".into())
    }
}

/// The method of a route: an upper-case token of up to 32 bytes, or `*` for any; never CONNECT.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteMethod(Arc<str>);

impl RouteMethod {
    /// The method as text, `*` for any.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether this is `*`.
    pub fn is_any(&self) -> bool {
        &*self.0 == "*"
    }
    /// Whether a request could meet both: equal, or one of them `*`.
    pub fn meets(&self, other: &Self) -> bool {
        self.is_any() || other.is_any() || self == other
    }
}

impl FromStr for RouteMethod {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let token = |byte: &u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9') || b"!#$%&'+-.^_`|~".contains(byte);
        if text == "CONNECT" {
            return Err(NameError("CONNECT cannot be routed".into()));
        }
        if text == "*" || (matches!(text.len(), 1..=32) && text.bytes().all(|byte| token(&byte))) {
            return Ok(Self(text.into()));
        }
        Err(NameError(format!("a method must be an upper-case token of up to 32 bytes or \"*\", got {}", quoted(text))))
    }
}

impl fmt::Display for RouteMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RouteMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host a route names: any, exactly one, or all hosts below a suffix (`*.example.org`).
///
/// Lower case, without port. `*.example.org` is `a.example.org` and `a.b.example.org`, not `example.org`.
/// The order is that of DESIGN §8: exact, then suffix (the longer first), then any.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum RouteHost {
    /// This host and no other.
    Exact(Arc<str>),
    /// Every host that ends in `.suffix`; the text is the suffix with its leading dot.
    Suffix(Arc<str>),
    /// Any host.
    #[default]
    Any,
}

impl RouteHost {
    /// Whether a request for `host` (lower case, no port) fits.
    pub fn fits(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(own) => **own == *host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }

    /// How close a fitting host is; the greater wins.
    pub fn closeness(&self) -> usize {
        match self {
            Self::Any => 0,
            Self::Suffix(suffix) => suffix.len(),
            Self::Exact(_) => usize::MAX,
        }
    }

    /// Whether every host that `other` fits is fitted by this one too.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Exact(own), Self::Exact(other)) => own == other,
            (Self::Suffix(_), Self::Exact(host)) => self.fits(host),
            (Self::Suffix(own), Self::Suffix(other)) => other.ends_with(&**own),
            _ => false,
        }
    }

    /// Whether some host fits both.
    pub fn meets(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl FromStr for RouteHost {
    type Err = NameError;
    /// Empty is any host. Letters are folded to lower case: hosts have no case (RFC 3986 §3.2.2).
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Ok(Self::Any);
        }
        let lower = text.to_ascii_lowercase();
        let bare = lower.strip_prefix("*.").unwrap_or(&lower);
        let label = |label: &str| {
            matches!(label.len(), 1..=63) && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        };
        let literal = bare.starts_with('[') && bare.len() == lower.len() && host_literal(bare);
        if bare.len() > 253 || !(literal || bare.split('.').all(label)) {
            return Err(NameError(format!("a host must be a name without port, or \"*.\" and a name, got {}", quoted(text))));
        }
        Ok(if bare.len() < lower.len() { Self::Suffix(lower[1..].into()) } else { Self::Exact(lower.into()) })
    }
}

fn host_literal(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

impl fmt::Display for RouteHost {
    /// As it is written: empty for any, `*.suffix`, or the host.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// Text from outside for a message: quoted, control characters escaped, cut at 80 characters.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for (index, character) in text.chars().enumerate() {
        if index == 80 {
            out.push('…');
            break;
        }
        out.extend(character.escape_debug());
    }
    out.push('"');
    out
}

/// Edits that make one text the other: insert, delete, replace (Levenshtein), one row at a time. For hints on a
/// name that is not known; whoever asks bounds the lengths, since it costs their product.
pub fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, own) in one.bytes().enumerate() {
        let mut left = index + 1;
        let mut diagonal = index;
        for (cell, their) in row.iter_mut().skip(1).zip(other.bytes()) {
            let next = (*cell + 1).min(left + 1).min(diagonal + usize::from(own != their));
            diagonal = std::mem::replace(cell, next);
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_letters_digits_and_inner_dashes() {
        let long = "a".repeat(63);
        for good in ["sagjan", "a", "0", "a-b", "a-", &long] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "A", "a_b", "a.b", "ä", "a b", &long] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_distance_of_two_names_is_the_edits_between_them() {
        for (one, other, expected) in [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("same", "same", 0)] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn methods_are_upper_case_tokens_or_any_and_never_connect() {
        for good in ["GET", "*", "M-SEARCH", "X1"] {
            assert!(good.parse::<RouteMethod>().is_ok(), "{good}");
        }
        for bad in ["", "get", "CONNECT", "GE T", "G*", &"A".repeat(33)] {
            assert!(bad.parse::<RouteMethod>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_fit_exactly_or_below_a_suffix() {
        let host = |text: &str| text.parse::<RouteHost>().unwrap();
        assert!(host("Example.org").fits("example.org"));
        assert!(!host("example.org").fits("a.example.org"));
        assert!(host("*.example.org").fits("a.b.example.org"));
        assert!(!host("*.example.org").fits("example.org"));
        assert!(!host("*.example.org").fits("evilexample.org"));
        assert!(host("").fits("anything"));
        assert!(host("*.org").covers(&host("*.example.org")));
        assert!(!host("*.example.org").covers(&host("*.org")));
        assert_eq!(host("*.example.org").to_string(), "*.example.org");
        for bad in ["*", "*.", "a:80", "a..b", "a/b", "*.*.org", "*.[::1]"] {
            assert!(bad.parse::<RouteHost>().is_err(), "{bad}");
        }
    }
}
