//! Which certificate a client is shown: by the host name it asks for (SNI, RFC 6066 §3) and by what it can verify.
//!
//! A name stands before a `*.suffix`, which is one label before the suffix (RFC 9525 §6.3). Of several certificates for
//! one name, such as one of RSA and one of ECDSA, it is the first that the client can verify.

use std::{collections::HashMap, sync::Arc};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::Identity;

/// Certificates for one name, in the order of furt.conf.
type Shown = Vec<Arc<CertifiedKey>>;

/// The certificates by name.
#[derive(Debug)]
pub(super) struct ByName {
    exact: HashMap<String, Shown>,
    /// By what follows the `*.`.
    under: HashMap<String, Shown>,
    /// For a client that names nothing, or nothing known.
    others: Shown,
}

impl ByName {
    /// `None` without any identity.
    pub(super) fn new(identities: &[Identity]) -> Option<Self> {
        let first = identities.first()?;
        let mut by_name = Self { exact: HashMap::new(), under: HashMap::new(), others: vec![first.key.clone()] };
        for identity in identities {
            for name in &identity.names {
                let shown = match name.strip_prefix("*.") {
                    Some(suffix) => by_name.under.entry(suffix.to_owned()).or_default(),
                    None => by_name.exact.entry(name.clone()).or_default(),
                };
                shown.push(identity.key.clone());
            }
        }
        // Those that share its names stand in where a client cannot verify the first.
        let twins = identities.iter().skip(1).filter(|identity| identity.names == first.names);
        by_name.others.extend(twins.map(|identity| identity.key.clone()));
        Some(by_name)
    }

    /// The certificates for a name in lower case.
    pub(super) fn of(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let known = |name: &str| self.exact.get(name).or_else(|| self.under.get(name.split_once('.')?.1));
        name.and_then(known).unwrap_or(&self.others)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.of(hello.server_name());
        let verifiable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        shown.iter().find(verifiable).or(shown.first()).cloned()
    }
}
