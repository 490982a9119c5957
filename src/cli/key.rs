//! `furt key new`: a fresh API key, shown once, and what furt.conf keeps of it.

use std::{fmt::Write, path::Path};

use furt::config;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Failure, process::say};

/// Prints a key and the lines to paste; those of a rotation when furt.conf knows the caller already.
pub fn new(config: Option<&Path>, name: &str, as_json: bool) -> Result<(), Failure> {
    let (key, digest) = random()?;
    if as_json {
        return say(json!({"name": name, "key": key, "key_sha256": digest}));
    }
    say(format!("The key, shown this once; the caller sends it as X-API-Key:\n\n    {key}\n"))?;
    match known(config, name) {
        old if old.is_empty() => say(first(name, &digest)),
        old => say(rotation(name, &digest, &old)),
    }
}

fn first(name: &str, digest: &str) -> String {
    format!(
        "For furt.conf, which needs no more than its digest:\n\n[api_key \"{name}\"]\nkey_sha256 = {digest}\n\
         permissions = ; e.g. comments:read, comments:write\n\nThen `furt check`, and `furt reload` if furt is running."
    )
}

fn rotation(name: &str, digest: &str, old: &[String]) -> String {
    // Two are enough: with more at a time nobody knows which are still in use.
    let kept = old.first().map(String::as_str).unwrap_or_default();
    format!(
        "furt.conf has a key of {name} already. With both, the old one works until it is taken out:\n\nkey_sha256 = {digest}, {kept}\n\n\
         Then `furt reload`; when the caller sends the new key, take the old digest out and reload again."
    )
}

/// The digests of a caller that furt.conf has; none when there is no furt.conf that can be read.
fn known(config: Option<&Path>, name: &str) -> Vec<String> {
    let Ok(config) = config::load(config) else { return Vec::new() };
    let keys = config.control.published.keys.iter().filter(|key| key.name == name);
    keys.flat_map(|key| &key.digests).map(|digest| hex(digest)).collect()
}

/// A key of 256 random bits from the system, and its SHA-256 in hex. The prefix lets scanners for leaked
/// secrets know it.
pub fn random() -> Result<(String, String), Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Failure::new(format!("furt: the system gives no random bytes: {error}")))?;
    let key = format!("furt_{}", hex(&bytes));
    let digest = hex(&Sha256::digest(&key));
    Ok((key, digest))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_are_long_enough_to_be_a_label() {
        let ((one, digest), (other, _)) = (random().unwrap(), random().unwrap());
        assert!(one != other && one.len() == 69 && digest.len() == 64);
        let text = format!("[api_key \"a\"]\nkey_sha256 = {digest}\n[api_key \"{one}\"]\nname = b\n");
        let report = furt::config::parse_here(&text, "f").unwrap_err();
        assert!(report.to_string().contains("expected a key of its own"), "{report}");
    }

    #[test]
    fn the_lines_are_what_furt_conf_takes() {
        let digests = ["ab".repeat(32), "cd".repeat(32)];
        let lines = |text: String| {
            text.lines().filter(|line| line.starts_with('[') || line.contains(" = ")).map(|line| format!("{line}\n")).collect::<String>()
        };
        let config = config::parse_here(&lines(first("website", &digests[0])), "f").unwrap();
        assert_eq!(config.control.published.keys[0].name, "website");
        let rotated = format!("[api_key \"website\"]\n{}", lines(rotation("website", &digests[1], &digests[..1])));
        let config = config::parse_here(&rotated, "f").unwrap();
        assert_eq!(config.control.published.keys[0].digests.len(), 2);
    }
}
