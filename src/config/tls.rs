//! The certificates, keys and authorities that furt.conf names, read and put together.
//!
//! Here: which key names what, what fits together across keys, what is told. Not here: PEM and rustls ([`crate::tls`]).

use std::{convert::Infallible, sync::Arc};

use furt_proto::{names::NameError, time::rfc3339, tls::UpstreamTls};
use rustls::{RootCertStore, pki_types::CertificateDer};
use sha2::{Digest as _, Sha256};

use super::{
    Surroundings,
    reader::{Reader, expected},
};
use crate::tls::{self, Clients, Fault, Identity, Listener, Untimely};

/// Whom services reached by https have to show a certificate of.
pub struct Upstream {
    pub tls: Arc<UpstreamTls>,
    /// A digest of the authorities.
    pub material: [u8; 32],
    /// Whether there is no authority at all.
    pub trusts_nobody: bool,
}

/// Reads what `[server]` says of TLS; `Some(None)`: the public listener speaks plain HTTP.
pub fn listener(reader: &mut Reader<'_>, around: &Surroundings<'_>) -> Option<Option<Listener>> {
    let certificates = reader.list("tls_cert", file);
    let keys = reader.list("tls_key", file);
    let authorities = reader.list("tls_client_ca", file);
    let required = reader.optional("tls_client_auth", required);
    let (certificates, keys, authorities, required) = (certificates?, keys?, authorities?, required?);
    let lone = match (certificates.is_empty(), keys.is_empty(), authorities.is_empty()) {
        (false, true, _) => Some(("tls_cert", "expected tls_key too: the file with the private key of the certificate")),
        (true, false, _) => Some(("tls_key", "expected tls_cert too: the file with the certificate of the key, and its chain")),
        (true, true, false) => Some(("tls_client_ca", "expected tls_cert and tls_key too: without TLS no client shows a certificate")),
        (.., true) if required.is_some() => {
            Some(("tls_client_auth", "expected tls_client_ca too: whom the certificates of clients have to lead to"))
        }
        _ => None,
    };
    if let Some((key, message)) = lone {
        reader.error(key, message);
        return None;
    }
    if certificates.len() != keys.len() {
        let counts = format!("tls_cert has {}, tls_key {}", certificates.len(), keys.len());
        reader.error("tls_key", format!("expected a key for each certificate, in the same order: {counts}"));
        return None;
    }
    let identities: Vec<_> = certificates.iter().zip(&keys).map(|(certificate, key)| identity(reader, around, certificate, key)).collect();
    let authorities = authorities_of(reader, "tls_client_ca", &authorities);
    let (identities, authorities) = (identities.into_iter().collect::<Option<Vec<_>>>()?, authorities?);
    if identities.is_empty() {
        return Some(None);
    }
    for (identity, certificate) in identities.iter().zip(&certificates).skip(1) {
        if identity.names().is_empty() {
            let shown = reader.shown("tls_cert", certificate);
            reader.warn("tls_cert", format!("no client will be shown the certificate in {shown}: it names no host (subjectAltName)"));
        }
    }
    let clients = (!authorities.is_empty()).then(|| Clients { authorities, required: required.unwrap_or(true) });
    let listener = Listener::new(&identities, clients.as_ref()).map_err(|fault| reader.error("tls_client_ca", fault.to_string()));
    listener.ok().map(Some)
}

/// Reads `upstream_ca`.
pub fn upstream(reader: &mut Reader<'_>, around: &Surroundings<'_>) -> Option<Upstream> {
    let (system, files): (Vec<_>, Vec<_>) = reader.list("upstream_ca", file)?.into_iter().partition(|source| source == "system");
    let authorities = authorities_of(reader, "upstream_ca", &files)?;
    let mut roots = RootCertStore::empty();
    let mut material = Sha256::new();
    let mut add = |authority: &CertificateDer<'_>| material.update(Sha256::digest(authority));
    // Checked already.
    let _ = tls::trust(&mut roots, &authorities);
    authorities.iter().for_each(&mut add);
    if !system.is_empty() {
        let of_system = (around.system_authorities)();
        of_system.iter().for_each(&mut add);
        // What of them cannot be read is nothing that an operator of furt put there.
        roots.add_parsable_certificates(of_system);
    }
    Some(Upstream { trusts_nobody: roots.is_empty(), tls: Arc::new(UpstreamTls::new(roots)), material: material.finalize().into() })
}

/// A certificate and its key.
fn identity(reader: &mut Reader<'_>, around: &Surroundings<'_>, certificate: &str, key: &str) -> Option<Identity> {
    let chain = read(reader, "tls_cert", certificate, tls::certificates);
    let secret = read(reader, "tls_key", key, tls::private_key);
    let (chain, secret) = (chain?, secret?);
    if (around.open_to_all)(&reader.beside(key)) {
        let shown = reader.shown("tls_key", key);
        reader.warn("tls_key", format!("everyone on this machine can read the private key in {shown} (chmod o-r)"));
    }
    let identity = match Identity::new(chain, secret) {
        Ok(identity) => identity,
        Err(fault) => {
            let (name, file) = match fault {
                Fault::UnreadableCertificate | Fault::NoCertificate => ("tls_cert", certificate),
                _ => ("tls_key", key),
            };
            tell(reader, name, file, fault);
            return None;
        }
    };
    if let Some(untimely) = identity.untimely(around.now) {
        let shown = reader.shown("tls_cert", certificate);
        let at = |seconds: u64| rfc3339(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000));
        let message = match untimely {
            Untimely::Since(end) => format!("the certificate in {shown} ended at {}: clients refuse it", at(end)),
            Untimely::Until(begin) => format!("the certificate in {shown} begins at {}: clients refuse it until then", at(begin)),
        };
        reader.warn("tls_cert", message);
    }
    Some(identity)
}

/// The certificate authorities of all `files`, each of which rustls can read.
fn authorities_of(reader: &mut Reader<'_>, key: &'static str, files: &[String]) -> Option<Vec<CertificateDer<'static>>> {
    let readable = |pem: &str| {
        let authorities = tls::certificates(pem)?;
        tls::trust(&mut RootCertStore::empty(), &authorities).map(|()| authorities)
    };
    let read: Vec<_> = files.iter().map(|file| read(reader, key, file, readable)).collect();
    read.into_iter().collect::<Option<Vec<_>>>().map(|all| all.into_iter().flatten().collect())
}

/// What a file that a key names holds; `None`: the fault is told.
fn read<T>(reader: &mut Reader<'_>, key: &'static str, file: &str, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
    match reader.content(file) {
        Ok(text) => parse(&text).map_err(|fault| tell(reader, key, file, fault)).ok(),
        Err(error) => {
            let shown = reader.shown(key, file);
            reader.error(key, format!("expected a readable file at {shown}: {error}"));
            None
        }
    }
}

fn tell(reader: &mut Reader<'_>, key: &'static str, file: &str, fault: Fault) {
    let shown = reader.shown(key, file);
    reader.error(key, format!("{fault}, in {shown}"));
}

fn file(text: &str) -> Result<String, Infallible> {
    Ok(text.to_owned())
}

fn required(text: &str) -> Result<bool, NameError> {
    match text {
        "required" => Ok(true),
        "optional" => Ok(false),
        _ => Err(expected("required or optional", text)),
    }
}

#[cfg(test)]
mod tests;
