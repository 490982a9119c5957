//! A checksum around each record, over its key too: what was read is what was written there.
//!
//! Here: bytes in, bytes out. Not here: what a record says, files.

use sha2::{Digest, Sha256};

use super::Key;

/// Bytes of the checksum in front of a record: the first half of a SHA-256.
const SEAL: usize = 16;

/// `value` as it is kept under `key`.
pub fn seal(key: &Key, value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(SEAL + value.len());
    sealed.extend_from_slice(&checksum(&key.service, &key.instance, value));
    sealed.extend_from_slice(value);
    sealed
}

/// What was sealed under these names; `None` when it is not what was sealed, or not under them.
pub fn unseal<'a>(service: &str, instance: &str, sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (seal, value) = sealed.split_at_checked(SEAL)?;
    (seal == checksum(service, instance, value)).then_some(value)
}

/// Names of one length each could be split in two ways, so their lengths count too.
fn checksum(service: &str, instance: &str, value: &[u8]) -> [u8; SEAL] {
    let mut digest = Sha256::new();
    for part in [service, instance] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.update(value);
    let mut first = [0; SEAL];
    first.iter_mut().zip(digest.finalize()).for_each(|(to, from)| *to = from);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(service: &str, instance: &str) -> Key {
        Key { service: service.into(), instance: instance.into() }
    }

    #[test]
    fn only_what_was_sealed_under_a_key_opens_under_it() {
        let sealed = seal(&key("sagjan", "default"), b"record");
        assert_eq!(unseal("sagjan", "default", &sealed), Some(&b"record"[..]));
        for (service, instance) in [("sagjan", "other"), ("sagja", "ndefault"), ("sagjandefault", ""), ("", "")] {
            assert_eq!(unseal(service, instance, &sealed), None, "{service} {instance}");
        }
        assert_eq!(unseal("a", "b", &seal(&key("a", "b"), b"")), Some(&b""[..]));
    }

    #[test]
    fn a_changed_bit_or_a_missing_byte_is_seen() {
        let sealed = seal(&key("sagjan", "default"), b"record");
        for at in 0..sealed.len() {
            assert_eq!(unseal("sagjan", "default", &sealed[..at]), None, "cut at {at}");
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(unseal("sagjan", "default", &changed), None, "byte {at} bit {bit}");
            }
        }
    }
}
