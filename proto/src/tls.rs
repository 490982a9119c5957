//! TLS towards upstreams, for probes and for requests alike: whom a service has to show a certificate of, and the
//! handshake (RFC 8446; RFC 9113 §3.2 for HTTP/2).
//!
//! Here: rustls as furt sets it up on the side that connects. Not here: files, the listeners' own certificates.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::ServerName,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The one provider of cryptography, named wherever rustls is set up.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What furt needs to know for TLS to any upstream.
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    id: u64,
    http1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
}

impl UpstreamTls {
    /// Trusts certificates that lead to one of `roots`; some 100 KiB when these are those of a system.
    pub fn new(roots: RootCertStore) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let roots = Arc::new(roots);
        let config = |protocol: &[u8]| {
            let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            // It has suites for both versions, and nothing else could fail.
            let mut config = builder.expect("ring speaks TLS 1.2 and 1.3").with_root_certificates(roots.clone()).with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Self { id: MADE.fetch_add(1, Ordering::Relaxed), http1: config(b"http/1.1"), h2: config(b"h2") }
    }

    /// Tells it from every other of this process: a connection that was made under one trust is none under another.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Shakes hands over `stream` with the upstream called `host`, a name or an address.
    ///
    /// # Errors
    /// When the certificate is not one of `host` that leads to a root, and when an upstream that has to speak HTTP/2
    /// does not agree to it.
    pub async fn connect(&self, host: &str, h2: bool, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "no name for TLS"))?;
        let config = if h2 { &self.h2 } else { &self.http1 };
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
        if h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it does not speak HTTP/2 over TLS (ALPN)"));
        }
        Ok(stream)
    }
}
