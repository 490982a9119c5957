//! Route patterns: parse, match, which of two is more specific, does one cover or meet another.
//!
//! `/`-separated segments; a segment is literal or `*`. `*` in the middle is exactly one non-empty
//! segment; `*` at the end is one or more. A trailing slash is significant (DESIGN §8; the seed:
//! "`/api/comments/*` matches `/api/comments/test-post`").

use std::{cmp::Ordering, fmt, str::FromStr, sync::Arc};

use crate::{
    names::{NameError, quoted},
    path::canonical,
};

/// Longest pattern, in bytes.
pub const MAX_BYTES: usize = 1024;
/// Most segments of a pattern; a bound for the work of one match.
pub const MAX_SEGMENTS: usize = 32;
/// Most `*` of a pattern; a bound for the work of one match.
pub const MAX_WILDCARDS: usize = 8;

/// What furt answers itself on the public listener, by first segment and on every host: no route begins so (DESIGN §4, rule 4).
pub const RESERVED: [&str; 3] = ["health", "auth", "internal"];

/// One segment of a pattern. The order is the order of specificity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment<'a> {
    /// Exactly this text; empty only as the last segment of a pattern that ends in `/`.
    Literal(&'a str),
    /// `*` before the end: one non-empty segment.
    One,
    /// `*` at the end: one or more segments, the first of them non-empty.
    Rest,
}

/// A path pattern in canonical form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoutePattern(Arc<str>);

impl RoutePattern {
    /// The pattern as text, canonical.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its segments from the left.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let mut parts = self.0[1..].split('/').peekable();
        std::iter::from_fn(move || {
            let part = parts.next()?;
            Some(match (part, parts.peek()) {
                ("*", None) => Segment::Rest,
                ("*", Some(_)) => Segment::One,
                (literal, _) => Segment::Literal(literal),
            })
        })
    }

    /// Its first segment, when that is one of [`RESERVED`].
    pub fn reserved(&self) -> Option<&'static str> {
        let first = self.segments().next()?;
        RESERVED.into_iter().find(|reserved| first == Segment::Literal(reserved))
    }

    /// Whether it matches a canonical path.
    pub fn matches(&self, path: &str) -> bool {
        let mut parts = path[1..].split('/');
        for segment in self.segments() {
            let Some(part) = parts.next() else { return false };
            match segment {
                Segment::Literal(literal) if literal != part => return false,
                Segment::One | Segment::Rest if part.is_empty() => return false,
                Segment::Rest => return true,
                _ => {}
            }
        }
        parts.next().is_none()
    }

    /// `Less` when this one is more specific: segment by segment from the left, literal before
    /// one-segment `*` before rest `*`. `Equal` means equally specific, not equal.
    pub fn specificity(&self, other: &Self) -> Ordering {
        let rank = |segment| match segment {
            Segment::Literal(_) => 0,
            Segment::One => 1,
            Segment::Rest => 2,
        };
        self.segments().map(rank).cmp(other.segments().map(rank))
    }

    /// Whether every path that `other` matches is matched by this one too.
    pub fn covers(&self, other: &Self) -> bool {
        let mut theirs = other.segments();
        for own in self.segments() {
            let Some(their) = theirs.next() else { return false };
            match (own, their) {
                (Segment::Rest | Segment::One, Segment::Literal("")) => return false,
                (Segment::Rest, _) => return true,
                (Segment::One, Segment::Literal(_) | Segment::One) => {}
                (Segment::Literal(own), Segment::Literal(their)) if own == their => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }

    /// Whether some path is matched by both.
    pub fn meets(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.segments(), other.segments());
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(Segment::Rest), Some(their)) => return their != Segment::Literal(""),
                (Some(own), Some(Segment::Rest)) => return own != Segment::Literal(""),
                (Some(Segment::Literal(own)), Some(Segment::Literal(their))) if own == their => {}
                (Some(Segment::One), Some(Segment::Literal(literal))) | (Some(Segment::Literal(literal)), Some(Segment::One))
                    if !literal.is_empty() => {}
                (Some(Segment::One), Some(Segment::One)) => {}
                _ => return false,
            }
        }
    }
}

impl FromStr for RoutePattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = |why: String| Err(NameError(format!("{why}, got {}", quoted(text))));
        if text.len() > MAX_BYTES {
            return refuse(format!("a pattern may have up to {MAX_BYTES} bytes"));
        }
        if text.contains('?') {
            return refuse("a pattern must not have a query".into());
        }
        let path = match canonical(text) {
            Ok(path) => path,
            Err(fault) => return refuse(fault.to_string()),
        };
        if let Some(odd) = path.bytes().find(|byte| *byte == b' ' || *byte == b'"') {
            return refuse(format!("a pattern must not have {:?}", char::from(odd)));
        }
        let (mut segments, mut wildcards) = (0, 0);
        for part in path[1..].split('/') {
            segments += 1;
            if part == "*" {
                wildcards += 1;
            } else if part.contains('*') {
                return refuse("\"*\" must be a whole segment".into());
            }
        }
        if segments > MAX_SEGMENTS || wildcards > MAX_WILDCARDS {
            return refuse(format!("a pattern may have up to {MAX_SEGMENTS} segments and {MAX_WILDCARDS} \"*\""));
        }
        Ok(Self(path.into()))
    }
}

impl fmt::Display for RoutePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoutePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> RoutePattern {
        text.parse().unwrap()
    }

    #[test]
    fn wildcards_match_as_the_seed_says() {
        let check = |pattern_text: &str, path: &str, expected: bool| {
            assert_eq!(pattern(pattern_text).matches(path), expected, "{pattern_text} on {path}");
        };
        check("/api/comments/*", "/api/comments/test-post", true);
        check("/api/comments/*/reply", "/api/comments/abc123/reply", true);
        check("/api/comments/*", "/api/comments/a/", true);
        check("/api/comments/*", "/api/comments/a/b", true);
        check("/api/comments/*", "/api/comments", false);
        check("/api/comments/*", "/api/comments/", false);
        check("/api/comments/*/reply", "/api/comments/a/b/reply", false);
        check("/api/comments/*/reply", "/api/comments//reply", false);
        check("/a", "/a/", false);
        check("/a/", "/a", false);
        check("/a/*/", "/a/b/", true);
        check("/a/*/", "/a/b", false);
        check("/", "/", true);
        check("/*", "/", false);
        check("/*", "/a", true);
        check("/A", "/a", false);
    }

    #[test]
    fn patterns_are_canonical_and_bounded() {
        assert_eq!(pattern("/%61/%7e").as_str(), "/a/~");
        let deep = "/a".repeat(33);
        let starry = "/*".repeat(9);
        let long = format!("/{}", "a".repeat(1024));
        for bad in ["", "a", "/a//b", "/../a", "/a*", "/**", "/a?b", "/a b", "/%2f", "/ä", &deep, &starry, &long] {
            assert!(bad.parse::<RoutePattern>().is_err(), "{bad}");
        }
        assert!("/*".repeat(8).parse::<RoutePattern>().is_ok());
        assert!("/a".repeat(32).parse::<RoutePattern>().is_ok());
    }

    #[test]
    fn the_literal_from_the_left_is_more_specific() {
        let check = |more: &str, less: &str| {
            assert_eq!(pattern(more).specificity(&pattern(less)), Ordering::Less, "{more} before {less}");
        };
        check("/a/b", "/a/*");
        check("/a/*/c", "/a/*");
        check("/a/b/*", "/a/*/c");
        check("/a/*", "/*");
        assert_eq!(pattern("/a/*").specificity(&pattern("/b/*")), Ordering::Equal);
    }

    fn any_pattern() -> impl Strategy<Value = RoutePattern> {
        "(/(a|b|\\*)){1,4}/?".prop_map(|text| pattern(&text))
    }

    /// Every path of up to five segments over the alphabet of [`any_pattern`] and one letter more.
    fn paths() -> Vec<String> {
        let mut all = vec![String::new()];
        let mut last = all.clone();
        for _ in 0..5 {
            last = last.iter().flat_map(|path| ["a", "b", "c"].map(|part| format!("{path}/{part}"))).collect();
            all.extend(last.iter().cloned());
        }
        all.iter().flat_map(|path| [path.clone(), format!("{path}/")]).filter(|path| !path.is_empty()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn covers_and_meets_agree_with_all_short_paths(one in any_pattern(), two in any_pattern()) {
            let paths = paths();
            let covers = paths.iter().all(|path| !two.matches(path) || one.matches(path));
            let meets = paths.iter().any(|path| two.matches(path) && one.matches(path));
            prop_assert_eq!(one.covers(&two), covers, "{} covers {}", one, two);
            prop_assert_eq!(one.meets(&two), meets, "{} meets {}", one, two);
        }
    }
}
