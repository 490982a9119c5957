//! `furt key new`: a fresh API key, shown once, and what furt.conf keeps of it.

use std::fmt::Write;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Failure, process::say};

/// Prints a key and the lines to paste.
pub fn new(name: &str, as_json: bool) -> Result<(), Failure> {
    if name.is_empty() || name.contains('"') || !name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(Failure::new("furt: a caller's name must be visible ASCII without quotes, e.g. furt key new website"));
    }
    let (key, digest) = random()?;
    if as_json {
        say(json!({"name": name, "key": key, "key_sha256": digest}))?;
        return Ok(());
    }
    say(format!("The key, shown this once; the caller sends it as X-API-Key:\n\n    {key}\n"))?;
    say("For furt.conf, which needs no more than its digest:\n")?;
    say(format!("[api_key \"{name}\"]\nkey_sha256 = {digest}\npermissions = ; e.g. comments:read, comments:write"))?;
    Ok(())
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
}
