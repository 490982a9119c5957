//! The one canonical path: computed once, used to match, authorise, log and forward (DESIGN §8).
//!
//! Only unreserved characters are percent-decoded (RFC 3986 §6.2.2.2) and hex digits are made upper
//! case. What two programs could read in two ways is refused, never resolved.

use std::borrow::Cow;

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// Not starting with `/`.
    #[error("a path must start with \"/\"")]
    NotAbsolute,
    /// `.` or `..`, plain, encoded or with `;` parameters.
    #[error("a path must not have \".\" or \"..\" segments")]
    DotSegment,
    /// `//`.
    #[error("a path must not have empty segments (\"//\")")]
    EmptySegment,
    /// `%2F` or `%5C`.
    #[error("a path must not have an encoded slash or backslash")]
    EncodedSlash,
    /// `\`.
    #[error("a path must not have a backslash")]
    Backslash,
    /// `#`.
    #[error("a path must not have a \"#\"")]
    Fragment,
    /// A control character, raw or encoded.
    #[error("a path must not have control characters")]
    Control,
    /// A raw byte from 0x80.
    #[error("a path must be ASCII; encode other characters as %XX")]
    NonAscii,
    /// `%` without two hex digits.
    #[error("a path has an invalid percent-encoding")]
    BadEscape,
    /// A percent-encoded UTF-8 sequence that is longer than it need be (RFC 3629 §3).
    #[error("a path has an overlong UTF-8 sequence")]
    Overlong,
}

/// The canonical form of `path`, which has no query. Borrowed when it is canonical already.
pub fn canonical(path: &str) -> Result<Cow<'_, str>, PathFault> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathFault::NotAbsolute);
    }
    let mut escapes = false;
    let mut odd = false;
    let mut previous = 0;
    for &byte in bytes {
        match byte {
            b'%' => escapes = true,
            b'\\' => return Err(PathFault::Backslash),
            b'#' => return Err(PathFault::Fragment),
            0..=0x1F | 0x7F => return Err(PathFault::Control),
            0x80.. => return Err(PathFault::NonAscii),
            // Only a segment that starts with a dot, or an empty one, wants a second look.
            b'.' | b'/' if previous == b'/' => odd = true,
            _ => {}
        }
        previous = byte;
    }
    let canonical = if escapes { Cow::Owned(decode(bytes)?) } else { Cow::Borrowed(path) };
    if escapes || odd {
        check_segments(&canonical)?;
    }
    Ok(canonical)
}

fn decode(bytes: &[u8]) -> Result<String, PathFault> {
    let mut out = String::with_capacity(bytes.len());
    let mut encoded = Encoded::default();
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            encoded = Encoded::default();
            out.push(char::from(byte));
            rest = after;
            continue;
        }
        let [high, low, after @ ..] = after else { return Err(PathFault::BadEscape) };
        let value = hex(*high)? << 4 | hex(*low)?;
        match value {
            b'/' | b'\\' => return Err(PathFault::EncodedSlash),
            0..=0x1F | 0x7F => return Err(PathFault::Control),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(value)),
            _ => {
                out.push('%');
                out.push(char::from(high.to_ascii_uppercase()));
                out.push(char::from(low.to_ascii_uppercase()));
            }
        }
        encoded.take(value)?;
        rest = after;
    }
    Ok(out)
}

fn hex(digit: u8) -> Result<u8, PathFault> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok()).ok_or(PathFault::BadEscape)
}

/// The lead byte that an encoded continuation byte would follow.
#[derive(Default)]
struct Encoded {
    lead: u8,
}

impl Encoded {
    fn take(&mut self, value: u8) -> Result<(), PathFault> {
        let overlong = matches!(
            (self.lead, value),
            (_, 0xC0 | 0xC1) | (0xE0, 0x80..=0x9F) | (0xF0, 0x80..=0x8F) | (0xF8, 0x80..=0x87) | (0xFC, 0x80..=0x83)
        );
        self.lead = value;
        if overlong { Err(PathFault::Overlong) } else { Ok(()) }
    }
}

fn check_segments(canonical: &str) -> Result<(), PathFault> {
    let mut segments = canonical[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err(PathFault::EmptySegment);
        }
        let name = segment.split(';').next().unwrap_or_default();
        let name = name.split_once("%3B").map_or(name, |(name, _)| name);
        if name == "." || name == ".." {
            return Err(PathFault::DotSegment);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unreserved_characters_are_decoded_and_hex_is_upper_case() {
        let check = |path: &str, expected: &str| assert_eq!(canonical(path).as_deref(), Ok(expected), "{path}");
        check("/", "/");
        check("/api/comments/test-post", "/api/comments/test-post");
        check("/api/%63omments/%7euser/", "/api/comments/~user/");
        check("/a%3ab%20c", "/a%3Ab%20c");
        check("/%C3%a4", "/%C3%A4");
        check("/a;v=1/b", "/a;v=1/b");
        check("/a.b/..c/...", "/a.b/..c/...");
        check("/*", "/*");
        check("/%2A", "/%2A");
    }

    #[test]
    fn what_two_programs_could_read_in_two_ways_is_refused() {
        use PathFault::*;
        let check = |path: &str, expected: PathFault| assert_eq!(canonical(path), Err(expected), "{path}");
        check("", NotAbsolute);
        check("*", NotAbsolute);
        check("a/b", NotAbsolute);
        for path in ["/.", "/..", "/a/../b", "/a/.", "/%2e%2e/b", "/%2E./b", "/a/..;x=1/b", "/a/.;/b", "/a/..%3bx", "/a/%2e%2e%3B"] {
            check(path, DotSegment);
        }
        for path in ["//", "//a", "/a//b", "/a//"] {
            check(path, EmptySegment);
        }
        check("/a%2fb", EncodedSlash);
        check("/a%5Cb", EncodedSlash);
        check("/a\\b", Backslash);
        check("/a#b", Fragment);
        check("/a\tb", Control);
        check("/a%00", Control);
        check("/a%1f", Control);
        check("/a%7F", Control);
        check("/ä", NonAscii);
        for path in ["/%", "/%4", "/%zz", "/%4g", "/a%"] {
            check(path, BadEscape);
        }
        for path in ["/%C0%AE", "/%c1%81", "/%E0%80%AE", "/%F0%80%80%AE", "/%f8%80%80%80%AE"] {
            check(path, Overlong);
        }
    }

    /// The rules one by one over a list of decoded units, with no thought for speed.
    fn naive(path: &str) -> Option<String> {
        let bytes = path.as_bytes();
        let mut units: Vec<(u8, bool)> = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] == b'%' {
                let digits = path.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
                units.push((u8::from_str_radix(digits, 16).ok()?, true));
                at += 3;
            } else {
                units.push((bytes[at], false));
                at += 1;
            }
        }
        let bad = |&(byte, encoded): &(u8, bool)| {
            byte < 0x20 || byte == 0x7F || byte == b'\\' || (encoded && byte == b'/') || (!encoded && (byte == b'#' || byte >= 0x80))
        };
        if units.iter().any(bad) || units.first() != Some(&(b'/', false)) {
            return None;
        }
        for pair in units.windows(2) {
            let [(a, true), (b, true)] = pair else { continue };
            if matches!((a, b), (0xE0, 0x80..=0x9F) | (0xF0, 0x80..=0x8F) | (0xF8, 0x80..=0x87) | (0xFC, 0x80..=0x83)) {
                return None;
            }
        }
        if units.iter().any(|unit| matches!(unit, (0xC0 | 0xC1, true))) {
            return None;
        }
        let segments: Vec<_> = units[1..].split(|unit| *unit == (b'/', false)).collect();
        for (index, segment) in segments.iter().enumerate() {
            if segment.is_empty() && index + 1 < segments.len() {
                return None;
            }
            let name: Vec<u8> = segment.iter().map(|unit| unit.0).take_while(|byte| *byte != b';').collect();
            if name == b"." || name == b".." {
                return None;
            }
        }
        let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        Some(units.iter().fold(String::new(), |text, &(byte, encoded)| match encoded && !unreserved(byte) {
            true => format!("{text}%{byte:02X}"),
            false => format!("{text}{}", char::from(byte)),
        }))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn agrees_with_a_naive_reference(path in "/?([a-c./;~%*]|%2[eEfF]|%3[bB]|%5[cC]|%[0-9a-fA-F]{2}|%[cCeEfF][0-9]%[89abAB][0-9a-f]|\\\\|#|\t|ä){0,12}") {
            prop_assert_eq!(canonical(&path).ok().map(Cow::into_owned), naive(&path));
        }

        #[test]
        fn a_canonical_path_is_its_own_canonical_path(path in "/([a-c./;~]|%[0-9a-fA-F]{2}){0,12}") {
            if let Ok(once) = canonical(&path) {
                prop_assert_eq!(canonical(&once).unwrap(), once.clone());
            }
        }
    }
}
