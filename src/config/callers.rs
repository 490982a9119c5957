//! `[api_key "label"]` and `[token "name"]`: who callers and operators are.
//!
//! Secrets become digests here and are dropped. A label of `[api_key]` may be one, so no message
//! repeats it.

use furt_control_plane::config::{Digest, Key, Role, Token};
use furt_proto::{names::NameError, time::parse_rfc3339};
use sha2::{Digest as _, Sha256};

use super::{
    reader::{Reader, expected, sha256, visible},
    server::networks,
};

/// The least length of a key that is written as the label itself (DESIGN §3).
const LEAST_KEY: usize = 32;

/// Reads one caller.
pub fn api_key(reader: &mut Reader<'_>) -> Option<Key> {
    let given = reader.optional("name", visible);
    let hashed = reader.has("key_sha256");
    let digests = if hashed { digests(reader, "key_sha256") } else { label_as_key(reader) };
    let name = match given? {
        Some(name) => Some(name),
        None if hashed => match visible(reader.label()) {
            Ok(label) => Some(label),
            Err(_) => {
                reader.error("[api_key]", "expected a label in visible ASCII of up to 256 bytes, or a name");
                None
            }
        },
        // Whoever forgot key_sha256 is told that, not to name a key that is none.
        None if digests.is_none() => None,
        None => {
            reader.error("name", "expected a name: without key_sha256 the label is the key itself, which is no name");
            None
        }
    };
    let permissions = reader.list("permissions", str::parse);
    if permissions.as_ref().is_some_and(Vec::is_empty) {
        reader.warn("permissions", "a key without permissions opens only routes that ask for none; e.g. comments:read, comments:write");
    }
    let allowed_ips = networks(reader, "allowed_ips");
    let rate_limit = reader.optional("rate_limit", str::parse);
    let expires_unix = reader.optional("expires", parse_rfc3339);
    Some(Key {
        name: name?,
        digests: digests?,
        permissions: permissions?,
        allowed_ips: allowed_ips?,
        rate_limit: rate_limit?,
        expires_unix: expires_unix?,
    })
}

/// The original's form: the label is the key.
fn label_as_key(reader: &mut Reader<'_>) -> Option<Vec<Digest>> {
    let label = reader.label();
    if label.len() < LEAST_KEY || !label.bytes().all(|byte| byte.is_ascii_graphic()) {
        reader.error(
            "[api_key]",
            format!(
                "expected key_sha256, or as label a key of at least {LEAST_KEY} characters of visible ASCII (furt key new NAME makes one)"
            ),
        );
        return None;
    }
    Some(vec![Sha256::digest(label).into()])
}

/// A list of SHA-256 that must not be empty once it is written.
fn digests(reader: &mut Reader<'_>, key: &'static str) -> Option<Vec<Digest>> {
    let digests = reader.list(key, sha256)?;
    if digests.is_empty() {
        reader.error(key, "expected a SHA-256 as 64 hex digits, or two during rotation");
        return None;
    }
    Some(digests)
}

/// Reads one token.
pub fn token(reader: &mut Reader<'_>) -> Option<Token> {
    let name = visible(reader.label());
    if let Err(error) = &name {
        reader.error("[token]", error.to_string());
    }
    let role = reader.read("role", role);
    let digests = digests(reader, "sha256");
    Some(Token { name: name.ok()?, role: role?, digests: digests? })
}

fn role(text: &str) -> Result<Role, NameError> {
    match text {
        "registrar" => Ok(Role::Registrar),
        "reader" => Ok(Role::Reader),
        "operator" => Ok(Role::Operator),
        "data-plane" | "data_plane" => Ok(Role::DataPlane),
        _ => Err(expected("registrar, reader, operator or data-plane", text)),
    }
}
