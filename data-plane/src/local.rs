//! The paths that furt answers itself on the public listener (DESIGN §2).
//!
//! Here: which they are, for the gateway and for `explain`. Not here: the answers.

use furt_proto::pattern::RESERVED;

/// A path that no route can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// `/health`.
    Health,
    /// `/health/live`: the process runs.
    Live,
    /// `/health/ready`: it can serve.
    Ready,
    /// `/auth/status`: who the key belongs to.
    AuthStatus,
    /// At or under `/internal`: 404 here, whoever asks; it lives on the internal listener.
    Internal,
    /// Else at or under `/health` and `/auth`: kept for furt, 404.
    Reserved,
}

/// What a canonical path is to furt itself; `None`: the table decides.
pub fn local(path: &str) -> Option<Local> {
    match path {
        "/health" => return Some(Local::Health),
        "/health/live" => return Some(Local::Live),
        "/health/ready" => return Some(Local::Ready),
        "/auth/status" => return Some(Local::AuthStatus),
        _ => {}
    }
    let first = path.strip_prefix('/')?.split('/').next()?;
    match first {
        "internal" => Some(Local::Internal),
        _ => RESERVED.contains(&first).then_some(Local::Reserved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_whole_segments() {
        for (path, expected) in [
            ("/health", Some(Local::Health)),
            ("/health/", Some(Local::Reserved)),
            ("/health/ready", Some(Local::Ready)),
            ("/healthy", None),
            ("/auth/status", Some(Local::AuthStatus)),
            ("/auth", Some(Local::Reserved)),
            ("/authors/1", None),
            ("/internal", Some(Local::Internal)),
            ("/internal/services", Some(Local::Internal)),
            ("/internals", None),
            ("/api/health", None),
            ("/", None),
        ] {
            assert_eq!(local(path), expected, "{path}");
        }
    }
}
