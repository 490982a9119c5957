//! `furt_proto::pattern`: two patterns and a path, one a line. Parsing is a fixed point, and match,
//! cover, meet and specificity agree with each other and with paths made from the patterns.
#![no_main]

use std::cmp::Ordering;

use furt_proto::{
    path::canonical,
    pattern::{MAX_BYTES, MAX_SEGMENTS, MAX_WILDCARDS, RoutePattern, Segment},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut pattern = || lines.next().and_then(|line| line.parse::<RoutePattern>().ok());
    let (Some(one), Some(two)) = (pattern(), pattern()) else { return };
    for pattern in [&one, &two] {
        is_a_fixed_point(pattern);
    }
    for (a, b) in [(&one, &two), (&two, &one)] {
        covers_what_it_says(a, b);
        assert_eq!(a.meets(b), b.meets(a), "{a} meets {b}");
        assert!(!a.covers(b) || a.meets(b), "{a} covers {b}");
        assert_eq!(a.specificity(b), b.specificity(a).reverse(), "{a} against {b}");
    }
    meets_where_it_says(&one, &two);
    let Some(Ok(path)) = lines.next().map(canonical) else { return };
    let (first, second) = (one.matches(&path), two.matches(&path));
    assert_eq!((first, second), (naive(&one, &path), naive(&two, &path)), "{one} and {two} on {path}");
    assert!(!(first && second) || one.meets(&two), "{one} and {two} both match {path}");
    assert!(!(second && one.covers(&two)) || first, "{one} covers {two}, but not on {path}");
});

fn is_a_fixed_point(pattern: &RoutePattern) {
    let text = pattern.as_str();
    assert_eq!(text.parse::<RoutePattern>().as_ref().ok(), Some(pattern));
    assert!(text.len() <= MAX_BYTES && pattern.segments().count() <= MAX_SEGMENTS);
    assert!(pattern.segments().filter(|segment| !matches!(segment, Segment::Literal(_))).count() <= MAX_WILDCARDS);
    assert_eq!(pattern.specificity(pattern), Ordering::Equal);
    assert!(pattern.covers(pattern) && pattern.meets(pattern), "{text}");
    assert!(paths(pattern).iter().all(|path| pattern.matches(path)), "{text} does not match its own paths");
}

/// A segment that no pattern here has: three unreserved bytes would do, but a fuzzer finds those.
fn fresh(taken: &RoutePattern) -> String {
    let mut name = String::from("x");
    while taken.as_str().contains(&name) {
        name.push('x');
    }
    name
}

/// Paths that stand for all that a pattern matches: `*` is a name that occurs in neither pattern, and
/// the last one is also followed by a slash, and by more.
fn paths_with(pattern: &RoutePattern, name: &str) -> Vec<String> {
    let head: String = pattern
        .segments()
        .map(|segment| match segment {
            Segment::Literal(literal) => format!("/{literal}"),
            Segment::One | Segment::Rest => format!("/{name}"),
        })
        .collect();
    match pattern.segments().last() {
        Some(Segment::Rest) => vec![head.clone(), format!("{head}/"), format!("{head}/{name}"), format!("{head}{}", "/x".repeat(40))],
        _ => vec![head],
    }
}

fn paths(pattern: &RoutePattern) -> Vec<String> {
    paths_with(pattern, &fresh(pattern))
}

fn covers_what_it_says(wide: &RoutePattern, narrow: &RoutePattern) {
    let all = paths_with(narrow, &fresh(wide)).iter().all(|path| wide.matches(path));
    assert_eq!(wide.covers(narrow), all, "{wide} covers {narrow}");
    if wide.covers(narrow) && narrow.covers(wide) {
        assert_eq!(wide, narrow);
    }
}

fn meets_where_it_says(one: &RoutePattern, two: &RoutePattern) {
    let (mut ours, mut theirs) = (one.segments(), two.segments());
    let mut path = String::new();
    loop {
        let next = match (ours.next(), theirs.next()) {
            (None, None) => break,
            (Some(Segment::Literal(literal)), Some(_)) | (Some(_), Some(Segment::Literal(literal))) => literal,
            (Some(_), Some(_)) => "x",
            // Past the end of one of them: the longer one decides.
            (Some(Segment::Literal(literal)), None) | (None, Some(Segment::Literal(literal))) => literal,
            (Some(_), None) | (None, Some(_)) => "x",
        };
        path.push('/');
        path.push_str(next);
    }
    // If any path is matched by both, then so is this one, made of the narrower segment at each place.
    assert_eq!(one.meets(two), one.matches(&path) && two.matches(&path), "{one} meets {two}, as {path} says");
}

/// DESIGN §8, word by word.
fn naive(pattern: &RoutePattern, path: &str) -> bool {
    let segments: Vec<_> = pattern.as_str()[1..].split('/').collect();
    let parts: Vec<_> = path[1..].split('/').collect();
    let (last, head) = segments.split_last().expect("split gives one part at least");
    let fits = |(segment, part): (&&str, &&str)| if *segment == "*" { !part.is_empty() } else { segment == part };
    if *last == "*" {
        parts.len() >= segments.len() && head.iter().zip(&parts).all(fits) && !parts[head.len()].is_empty()
    } else {
        parts.len() == segments.len() && segments.iter().zip(&parts).all(fits)
    }
}
