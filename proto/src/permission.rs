//! Permissions: what a route asks for and what a grant or a key allows.
//!
//! `area:action`; `*` alone is all; `area:*` is all of the area; several colons nest. The same rule
//! for grants and for keys (DESIGN §4).

use std::{fmt, str::FromStr, sync::Arc};

use crate::names::{NameError, quoted};

/// Longest permission, in bytes (DESIGN §4, rule 6).
pub const MAX_BYTES: usize = 128;

fn part_ok(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic() && !b"*,\"'".contains(&byte))
}

/// A concrete permission, such as `comments:write`: no `*`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Permission(Arc<str>);

impl Permission {
    /// The permission as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Permission {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains('*') {
            return Err(NameError(format!("a permission must be concrete, without \"*\", got {}", quoted(text))));
        }
        if text.len() > MAX_BYTES || !text.split(':').all(part_ok) {
            return Err(NameError(format!(
                "a permission must be area:action in visible ASCII, up to {MAX_BYTES} bytes, got {}",
                quoted(text)
            )));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is allowed: `*`, everything below an area (`comments:*`), or one permission.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// Everything.
    All,
    /// Everything that starts with this text, which ends in a colon.
    Below(Arc<str>),
    /// This one.
    One(Permission),
}

impl Allowed {
    /// Whether it covers a permission.
    pub fn covers(&self, permission: &Permission) -> bool {
        match self {
            Self::All => true,
            Self::Below(area) => permission.0.starts_with(&**area),
            Self::One(own) => own == permission,
        }
    }
}

impl FromStr for Allowed {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "*" {
            return Ok(Self::All);
        }
        match text.strip_suffix(":*") {
            Some(area) => area.parse::<Permission>().map(|area| Self::Below(format!("{area}:").into())),
            None => text.parse().map(Self::One),
        }
        .map_err(|_| NameError(format!("expected \"*\", \"area:*\" or \"area:action\", got {}", quoted(text))))
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Below(area) => write!(f, "{area}*"),
            Self::One(one) => one.fmt(f),
        }
    }
}

/// Whether any of `allowed` covers `permission`.
pub fn covered(allowed: &[Allowed], permission: &Permission) -> bool {
    allowed.iter().any(|one| one.covers(permission))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_area_and_exact_cover_what_they_say() {
        let check = |allowed: &str, permission: &str, expected: bool| {
            let covers = allowed.parse::<Allowed>().unwrap().covers(&permission.parse().unwrap());
            assert_eq!(covers, expected, "{allowed} over {permission}");
        };
        check("*", "comments:write", true);
        check("comments:*", "comments:write", true);
        check("comments:*", "comments:write:own", true);
        check("comments:*", "comments", false);
        check("comments:*", "commentsx:write", false);
        check("comments:read", "comments:write", false);
        check("a:b:*", "a:b:c", true);
        check("a:b:*", "a:c", false);
    }

    #[test]
    fn odd_permissions_are_refused() {
        for bad in ["", "a:", ":a", "a b", "a:*", "*", "ä:b", "a,b", &"a".repeat(129)] {
            assert!(bad.parse::<Permission>().is_err(), "{bad}");
        }
        for bad in ["", "**", "a:*:b", "*:a", ":*"] {
            assert!(bad.parse::<Allowed>().is_err(), "{bad}");
        }
    }
}
