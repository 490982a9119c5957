//! API keys: which caller a secret belongs to, and whether that caller may use a route.
//!
//! Here: keys by digest, and the one decision `admit` that a request and `explain` share.
//! Not here: headers, clocks, rate decisions (the limiter is only kept here), logs.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use furt_proto::{names::quoted, network::Networks, permission::Allowed, rate::Limiter, v1};
use http::HeaderValue;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::table::Access;

/// Who a key belongs to and what it may do.
#[derive(Debug)]
pub struct Caller {
    /// The caller's name, for logs.
    pub name: Arc<str>,
    /// The name as the service receives it.
    pub name_header: HeaderValue,
    /// What it may do.
    pub permissions: Vec<Allowed>,
    /// Where it may be used from; empty: anywhere.
    pub allowed_ips: Networks,
    /// Its rate; the same limiter for as long as name and rate stay.
    pub limiter: Option<Arc<Limiter>>,
    /// Seconds since 1970 from which it is worth nothing.
    pub expires_unix: Option<i64>,
    /// What this program does not understand about the key: it opens nothing.
    pub unusable: Option<Arc<str>>,
}

/// A key's digest and whose it is.
type Known = ([u8; 32], Arc<Caller>);

/// Every caller, by key and by name. Only digests of keys are held.
#[derive(Debug, Default)]
pub struct Keys {
    callers: Vec<Arc<Caller>>,
    names: HashMap<Arc<str>, Arc<Caller>>,
    /// By the first eight bytes of the digest; what is found is compared in constant time.
    digests: HashMap<u64, Vec<Known>, foldhash::fast::RandomState>,
}

impl Keys {
    /// Compiles the keys of a snapshot; limiters of callers whose name and rate stay are taken over.
    pub fn compile(set: &v1::KeySet, old: &Self) -> Self {
        let mut keys = Self::default();
        for key in &set.keys {
            let caller = Arc::new(compile(key, old));
            for digest in key.sha256.iter().filter_map(|digest| <[u8; 32]>::try_from(digest.as_slice()).ok()) {
                keys.digests.entry(prefix(&digest)).or_default().push((digest, caller.clone()));
            }
            keys.names.insert(caller.name.clone(), caller.clone());
            keys.callers.push(caller);
        }
        keys
    }

    /// The caller whose secret this is.
    pub fn identify(&self, secret: &[u8]) -> Option<&Arc<Caller>> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let same = self.digests.get(&prefix(&digest))?;
        same.iter().find(|(own, _)| bool::from(own.ct_eq(&digest))).map(|(_, caller)| caller)
    }

    /// The caller of this name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Caller>> {
        self.names.get(name)
    }

    /// Every caller, in the order of furt.conf.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Caller>> {
        self.callers.iter()
    }

    fn present(&self, presented: Presented<'_>) -> Result<&Arc<Caller>, Denied> {
        match presented {
            Presented::Nothing => Err(Denied::NoKey),
            Presented::Secret(secret) => self.identify(secret).ok_or(Denied::UnknownKey),
            Presented::Named(name) => self.by_name(name).ok_or(Denied::UnknownKey),
        }
    }
}

fn prefix(digest: &[u8; 32]) -> u64 {
    digest.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

fn compile(key: &v1::Key, old: &Keys) -> Caller {
    let mut faults = Vec::new();
    let mut list = |field: &str, error: String| faults.push(format!("{field}: {error}"));
    let permissions = key.permissions.iter().filter_map(|text| match text.parse() {
        Ok(allowed) => Some(allowed),
        Err(error) => {
            list("permissions", format!("{error}"));
            None
        }
    });
    let permissions = permissions.collect();
    // A network that is not understood must not turn "from there only" into "from anywhere".
    let allowed_ips = key.allowed_ips.iter().filter_map(|text| match furt_proto::network::parse_network(text) {
        Ok(network) => Some(network),
        Err(error) => {
            list("allowed_ips", format!("{error}"));
            None
        }
    });
    let allowed_ips = allowed_ips.collect();
    let rate = match key.rate_limit.as_str() {
        "" => None,
        text => text.parse().map_err(|error| list("rate_limit", format!("{error}"))).ok(),
    };
    if key.sha256.iter().any(|digest| digest.len() != 32) {
        list("sha256", "a digest has 32 bytes".into());
    }
    let name_header = HeaderValue::from_str(&key.name).unwrap_or_else(|_| {
        list("name", format!("cannot travel in a header, got {}", quoted(&key.name)));
        HeaderValue::from_static("")
    });
    let kept = old.by_name(&key.name).and_then(|caller| caller.limiter.clone());
    let limiter = rate.map(|rate| kept.filter(|limiter| limiter.rate() == rate).unwrap_or_else(|| Arc::new(Limiter::new(rate))));
    Caller {
        name: key.name.as_str().into(),
        name_header,
        permissions,
        allowed_ips,
        limiter,
        expires_unix: (key.expires_unix != 0).then_some(key.expires_unix),
        unusable: (!faults.is_empty()).then(|| faults.join("; ").into()),
    }
}

/// What a caller shows.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// No key.
    Nothing,
    /// A key, as sent.
    Secret(&'a [u8]),
    /// A key by the name of its caller: only `explain` asks so.
    Named(&'a str),
}

/// Why a caller does not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// 401: the route needs a key.
    NoKey,
    /// 401: no caller has this key.
    UnknownKey,
    /// 401: the key has expired.
    Expired,
    /// 403: not from this address.
    IpNotAllowed,
    /// 403: the key lacks the permission.
    Forbidden,
    /// 503: the route or the key is not understood.
    Unusable,
}

/// Whether the caller may use a route, and who it is. A public route names a valid key and ignores
/// any other. `client`: the caller's address, `None` when it is not known.
pub fn admit<'k>(
    access: &Access,
    keys: &'k Keys,
    presented: Presented<'_>,
    client: Option<IpAddr>,
    now_unix: i64,
) -> Result<Option<&'k Arc<Caller>>, Denied> {
    let valid = || verify(keys.present(presented)?, client, now_unix);
    match access {
        Access::Unusable(_) => Err(Denied::Unusable),
        Access::Public => Ok(valid().ok()),
        Access::AnyKey => valid().map(Some),
        Access::Permission(permission) => {
            let caller = valid()?;
            let covers = caller.permissions.iter().any(|allowed| allowed.covers(permission));
            if covers { Ok(Some(caller)) } else { Err(Denied::Forbidden) }
        }
    }
}

/// Whether the key is good for anything here and now.
fn verify(caller: &Arc<Caller>, client: Option<IpAddr>, now_unix: i64) -> Result<&Arc<Caller>, Denied> {
    if caller.unusable.is_some() {
        return Err(Denied::Unusable);
    }
    if caller.expires_unix.is_some_and(|expires| now_unix >= expires) {
        return Err(Denied::Expired);
    }
    let from_here = caller.allowed_ips.is_empty() || client.is_some_and(|client| caller.allowed_ips.contains(client));
    if from_here { Ok(caller) } else { Err(Denied::IpNotAllowed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn key(name: &str, change: impl FnOnce(&mut v1::Key)) -> v1::Key {
        let mut key = v1::Key {
            name: name.into(),
            sha256: vec![Sha256::digest(format!("secret of {name}")).to_vec()],
            permissions: vec!["comments:*".into()],
            ..Default::default()
        };
        change(&mut key);
        key
    }

    fn keys(keys: Vec<v1::Key>) -> Keys {
        Keys::compile(&v1::KeySet { keys, digest: 0 }, &Keys::default())
    }

    fn write() -> Access {
        Access::Permission("comments:write".parse().unwrap())
    }

    fn check(keys: &Keys, access: &Access, secret: &str, client: &str, expected: Result<Option<&str>, Denied>) {
        let presented = if secret.is_empty() { Presented::Nothing } else { Presented::Secret(secret.as_bytes()) };
        let said = admit(access, keys, presented, client.parse().ok(), NOW).map(|caller| caller.map(|caller| &*caller.name));
        assert_eq!(said, expected, "{access:?} {secret:?} {client:?}");
    }

    #[test]
    fn the_key_then_the_address_then_the_permission_decide() {
        let keys = keys(vec![
            key("site", |_| {}),
            key("inside", |key| key.allowed_ips = vec!["10.0.0.0/8".into()]),
            key("reader", |key| key.permissions = vec!["comments:read".into()]),
            key("old", |key| key.expires_unix = NOW),
            key("soon", |key| key.expires_unix = NOW + 1),
        ]);
        check(&keys, &write(), "", "", Err(Denied::NoKey));
        check(&keys, &write(), "secret of nobody", "", Err(Denied::UnknownKey));
        check(&keys, &write(), "secret of old", "", Err(Denied::Expired));
        check(&keys, &write(), "secret of soon", "", Ok(Some("soon")));
        check(&keys, &write(), "secret of inside", "10.1.2.3", Ok(Some("inside")));
        check(&keys, &write(), "secret of inside", "::ffff:10.1.2.3", Ok(Some("inside")));
        check(&keys, &write(), "secret of inside", "11.1.2.3", Err(Denied::IpNotAllowed));
        check(&keys, &write(), "secret of inside", "", Err(Denied::IpNotAllowed));
        check(&keys, &write(), "secret of reader", "", Err(Denied::Forbidden));
        check(&keys, &Access::AnyKey, "secret of reader", "", Ok(Some("reader")));
        check(&keys, &Access::AnyKey, "", "", Err(Denied::NoKey));
    }

    #[test]
    fn a_public_route_names_a_valid_key_and_ignores_any_other() {
        let keys = keys(vec![
            key("site", |_| {}),
            key("inside", |key| key.allowed_ips = vec!["10.0.0.0/8".into()]),
            key("old", |key| key.expires_unix = 1),
        ]);
        for (secret, expected) in
            [("", None), ("secret of site", Some("site")), ("wrong", None), ("secret of old", None), ("secret of inside", None)]
        {
            check(&keys, &Access::Public, secret, "192.0.2.1", Ok(expected));
        }
    }

    #[test]
    fn what_is_not_understood_is_never_open() {
        let odd: [fn(&mut v1::Key); 5] = [
            |key| key.permissions.push("comments:*:odd".into()),
            |key| key.allowed_ips = vec!["everywhere".into()],
            |key| key.rate_limit = "some".into(),
            |key| key.sha256.push(vec![1, 2, 3]),
            |key| key.allowed_ips = vec!["10.0.0.0/8".into(), "odd".into()],
        ];
        for change in odd {
            let keys = keys(vec![key("odd", change)]);
            check(&keys, &Access::AnyKey, "secret of odd", "10.0.0.1", Err(Denied::Unusable));
            check(&keys, &Access::Public, "secret of odd", "10.0.0.1", Ok(None));
        }
        let keys = keys(vec![key("site", |_| {})]);
        let access = Access::Unusable("odd".into());
        check(&keys, &access, "secret of site", "10.0.0.1", Err(Denied::Unusable));
        check(&keys, &access, "", "", Err(Denied::Unusable));
    }

    #[test]
    fn two_secrets_of_a_rotation_are_one_caller_and_names_find_it() {
        let keys = keys(vec![key("site", |key| key.sha256.push(Sha256::digest("new").to_vec()))]);
        let by = |secret: &[u8]| keys.identify(secret).map(|caller| caller.name.to_string());
        assert_eq!((by(b"new"), by(b"secret of site"), by(b"")), (Some("site".into()), Some("site".into()), None));
        let named = admit(&write(), &keys, Presented::Named("site"), None, NOW).unwrap();
        assert!(Arc::ptr_eq(named.unwrap(), keys.by_name("site").unwrap()));
        assert_eq!(admit(&write(), &keys, Presented::Named("other"), None, NOW).map(drop), Err(Denied::UnknownKey));
    }

    #[test]
    fn a_limiter_lives_as_long_as_name_and_rate() {
        let with = |rate: &str| v1::KeySet { keys: vec![key("site", |key| key.rate_limit = rate.into())], digest: 0 };
        let limiter = |keys: &Keys| keys.by_name("site").unwrap().limiter.clone();
        let first = Keys::compile(&with("10/min"), &Keys::default());
        let same = Keys::compile(&with("10/min"), &first);
        assert!(Arc::ptr_eq(&limiter(&first).unwrap(), &limiter(&same).unwrap()));
        let faster = Keys::compile(&with("20/min"), &same);
        assert!(!Arc::ptr_eq(&limiter(&same).unwrap(), &limiter(&faster).unwrap()));
        assert!(limiter(&Keys::compile(&with(""), &faster)).is_none());
    }
}
