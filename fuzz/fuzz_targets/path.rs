//! `furt_proto::path::canonical`: what comes out is its own canonical form, and no program that
//! decodes it, drops `;` parameters and resolves dots ends up anywhere else.
#![no_main]

use furt_proto::path::canonical;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(path) = canonical(text) else { return };
    assert_eq!(canonical(&path).as_deref(), Ok(&*path), "not its own canonical form");
    assert!(path.starts_with('/') && !path.contains("//"), "{path:?}");
    assert!(path.bytes().all(|byte| (0x20..0x7F).contains(&byte) && byte != b'\\' && byte != b'#'), "{path:?}");
    assert_eq!(resolved(&decoded(path.as_bytes())), decoded(path.as_bytes()), "{path:?} means another path to someone");
    assert_eq!(decoded(text.as_bytes()), decoded(path.as_bytes()), "{text:?} was made into another path");
});

/// Percent-decoded once, all of it: what an upstream application sees.
fn decoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(&after[..2]).expect("canonical left a broken escape");
            let value = u8::from_str_radix(digits, 16).expect("canonical left a broken escape");
            assert!(!b"/\\\0".contains(&value) && value != 0x7F, "canonical left an escape that moves segments");
            out.push(value);
            rest = &after[2..];
        } else {
            out.push(byte);
            rest = after;
        }
    }
    out
}

/// RFC 3986 §5.2.4 by an application that also drops path parameters before it looks at dots.
fn resolved(path: &[u8]) -> Vec<u8> {
    let segments: Vec<_> = path[1..].split(|byte| *byte == b'/').collect();
    let mut kept: Vec<&[u8]> = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        match segment.split(|byte| *byte == b';').next().unwrap_or_default() {
            b"." => {}
            b".." => drop(kept.pop()),
            b"" if segment.is_empty() && index + 1 < segments.len() => {}
            _ => kept.push(segment),
        }
    }
    kept.iter().flat_map(|segment| [b"/", *segment].concat()).collect()
}
