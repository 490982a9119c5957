//! TLS on the public listener: certificates, keys and authorities into what rustls serves with (RFC 8446, RFC 5246).
//!
//! Here: PEM, what fits together, how furt sets rustls up, what is odd about a certificate. In `names`: which
//! certificate a client is shown. Not here: files and furt.conf (`config::tls`), sockets and handshakes (the data
//! plane), TLS towards services (`furt_proto::tls`).

use std::{sync::Arc, time::Duration};

use furt_proto::tls::provider;
use rustls::{
    Error, InconsistentKeys, RootCertStore, ServerConfig,
    crypto::ring::Ticketer,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use webpki::{EndEntityCert, KeyUsage};

mod names;
#[cfg(test)]
mod tests;

use names::ByName;

/// What is wrong with a file; which one, says whoever read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No certificate, or one that is cut off.
    #[error("expected a certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// Text around something that is no certificate.
    #[error("expected a certificate that can be read: it is damaged, or no X.509 version 3")]
    UnreadableCertificate,
    /// No key, or one that is cut off.
    #[error("expected a private key in PEM (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// A key that wants a passphrase.
    #[error("expected a private key without a passphrase: furt has nobody to ask (openssl pkey -in FILE -out FILE)")]
    EncryptedKey,
    /// A key that ring does not sign with.
    #[error("expected an RSA key of 2048 bits or more, or one on P-256, P-384 or Ed25519")]
    UnusableKey,
    /// The key of another certificate.
    #[error("expected the private key of the first certificate in its file, it is that of another")]
    OtherKey,
}

/// The certificates of a PEM file, in its order; at least one.
///
/// # Errors
/// [`Fault::NoCertificate`].
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.ok().filter(|read| !read.is_empty()).ok_or(Fault::NoCertificate)
}

/// The first private key of a PEM file.
///
/// # Errors
/// [`Fault::NoKey`], [`Fault::EncryptedKey`].
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Fault> {
    // PKCS #8 with a passphrase, and the older form of OpenSSL.
    let encrypted = pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || pem.contains("Proc-Type: 4,ENCRYPTED");
    let fault = if encrypted { Fault::EncryptedKey } else { Fault::NoKey };
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| fault)
}

/// Adds certificate authorities to those that are trusted.
///
/// # Errors
/// [`Fault::UnreadableCertificate`].
pub fn trust(roots: &mut RootCertStore, authorities: &[CertificateDer<'_>]) -> Result<(), Fault> {
    let mut added = authorities.iter().map(|authority| roots.add(authority.clone()));
    added.try_for_each(|added| added.map_err(|_| Fault::UnreadableCertificate))
}

/// A certificate with its chain and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
}

impl Identity {
    /// Puts a chain, the server's own certificate first, and a key together.
    ///
    /// # Errors
    /// When they do not belong together, or furt cannot use one of them.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, Fault> {
        let own = chain.first().ok_or(Fault::NoCertificate)?;
        let parsed = EndEntityCert::try_from(own).map_err(|_| Fault::UnreadableCertificate)?;
        let names = parsed.valid_dns_names().map(str::to_ascii_lowercase).collect();
        let key = provider().key_provider.load_private_key(key).map_err(|_| Fault::UnusableKey)?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) => Ok(Self { key: Arc::new(key), names }),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(Fault::OtherKey),
            Err(_) => Err(Fault::UnreadableCertificate),
        }
    }

    /// The host names of the certificate, in lower case; `*.` stands for one label.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether `now`, since 1970, is outside of the time that the certificate is for.
    pub fn untimely(&self, now: Duration) -> Option<Untimely> {
        let parsed = EndEntityCert::try_from(self.key.cert.first()?).ok()?;
        // The time is looked at before any issuer is, so that none is needed.
        let judged = parsed.verify_for_usage(&[], &[], &[], UnixTime::since_unix_epoch(now), KeyUsage::server_auth(), None, None);
        match judged.err()? {
            webpki::Error::CertExpired { not_after, .. } => Some(Untimely::Since(not_after.as_secs())),
            webpki::Error::CertNotValidYet { not_before, .. } => Some(Untimely::Until(not_before.as_secs())),
            _ => None,
        }
    }
}

/// Why a certificate is none at the moment, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untimely {
    /// It has ended.
    Since(u64),
    /// It has not begun.
    Until(u64),
}

/// Whom clients have to show a certificate of.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Who signed it.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Whether one that shows none is sent away; one that shows a wrong one always is.
    pub required: bool,
}

/// What the public listener is set up with.
#[derive(Debug, Clone)]
pub struct Listener {
    /// For the handshakes.
    pub config: Arc<ServerConfig>,
    /// The host names of its certificates.
    pub names: Vec<String>,
    material: [u8; 32],
}

impl Listener {
    /// With at least one identity; the first is shown to clients that name no host, or none that another one is for.
    ///
    /// # Errors
    /// [`Fault::NoCertificate`] without an identity, [`Fault::UnreadableCertificate`] when an authority is no certificate.
    pub fn new(identities: &[Identity], clients: Option<&Clients>) -> Result<Self, Fault> {
        let material = material(identities, clients);
        let names = identities.iter().flat_map(|identity| identity.names.iter().cloned()).collect();
        let shown = ByName::new(identities).ok_or(Fault::NoCertificate)?;
        let verifier = clients.map_or(Ok(WebPkiClientVerifier::no_client_auth()), verifier)?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        // It has suites for both versions, and nothing else could fail.
        let builder = builder.expect("ring speaks TLS 1.2 and 1.3");
        let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // The suites are in the order of their strength; a client's own order may be that of an old phone's speed.
        config.ignore_client_order = true;
        // Without randomness there is no TLS at all; without tickets only their saving.
        if let Ok(ticketer) = Ticketer::new() {
            config.ticketer = ticketer;
        }
        Ok(Self { config: Arc::new(config), names, material })
    }

    /// Whether both were made of the same certificates: then the older can stay, and with it the keys of its session
    /// tickets.
    pub fn is_as(&self, other: &Self) -> bool {
        self.material == other.material
    }
}

fn verifier(clients: &Clients) -> Result<Arc<dyn ClientCertVerifier>, Fault> {
    let mut roots = RootCertStore::empty();
    trust(&mut roots, &clients.authorities)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if clients.required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|_| Fault::NoCertificate)
}

/// What a [`Listener`] is made of, as a digest. A key belongs to its certificate, so it adds nothing.
fn material(identities: &[Identity], clients: Option<&Clients>) -> [u8; 32] {
    let mut all = Sha256::new();
    let mut add = |certificate: &CertificateDer<'_>| all.update(Sha256::digest(certificate));
    for identity in identities {
        identity.key.cert.iter().for_each(&mut add);
        // Where a chain ends.
        add(&CertificateDer::from_slice(&[]));
    }
    clients.iter().flat_map(|clients| &clients.authorities).for_each(add);
    all.update([clients.map_or(0, |clients| 1 + u8::from(clients.required))]);
    all.finalize().into()
}
