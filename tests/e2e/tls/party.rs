//! Certificates made for a test, and a TLS client that sends what it is told and keeps what it was shown.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use furt_proto::tls::provider;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, StreamOwned, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};

use crate::client::Request;

/// Longer than anything a test waits for; a test that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate and its key.
pub struct Pair {
    pub certificate: CertificateDer<'static>,
    pub pem: String,
    pub key: KeyPair,
}

impl Pair {
    /// Signed by itself.
    pub fn new(names: &[&str]) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = params(names).self_signed(&key).expect("a certificate");
        Self { certificate: certificate.der().clone(), pem: certificate.pem(), key }
    }

    /// An authority, and a certificate that leads to it.
    pub fn below_an_authority(names: &[&str]) -> (Self, Self) {
        let mut of_authority = params(&[]);
        of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Of the same name as what leads to it, it would make that look signed by itself.
        of_authority.distinguished_name.push(DnType::CommonName, "an authority");
        let above = KeyPair::generate().expect("a key");
        let authority = of_authority.self_signed(&above).expect("a certificate");
        let issuer = Issuer::new(of_authority, above);
        let key = KeyPair::generate().expect("a key");
        let certificate = params(names).signed_by(&key, &issuer).expect("a certificate");
        let authority = Self {
            certificate: authority.der().clone(),
            pem: authority.pem(),
            key: KeyPair::generate().expect("nobody signs with it again"),
        };
        (authority, Self { certificate: certificate.der().clone(), pem: certificate.pem(), key })
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key")
    }
}

fn params(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names")
}

/// A directory for certificates; gone when dropped.
pub struct Files(PathBuf);

impl Files {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("furt-e2e-tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for the test");
        Self(dir)
    }

    /// Writes `NAME.pem` and `NAME.key`.
    pub fn put(&self, name: &str, pair: &Pair) {
        self.write(&format!("{name}.pem"), &pair.pem);
        self.write(&format!("{name}.key"), &pair.key.serialize_pem());
    }

    /// Writes a file, which is at no moment half of one.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.0.join(format!("{name}.new"));
        fs::write(&new, text).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("ours");
        fs::rename(new, self.path(name)).expect("renamed");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// `PATH.pem, PATH.pem` and `PATH.key, PATH.key` for furt.conf.
    pub fn lines(&self, names: &[&str]) -> [String; 2] {
        let list = |kind: &str| names.iter().map(|name| self.path(&format!("{name}.{kind}")).display().to_string()).collect::<Vec<_>>();
        [format!("tls_cert = {}", list("pem").join(", ")), format!("tls_key = {}", list("key").join(", "))]
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}

/// What a client brings into the handshake.
#[derive(Clone, Copy)]
pub struct Hello<'a> {
    /// The host it asks for; `None`: it names none.
    pub name: Option<&'a str>,
    pub protocols: &'a [&'a str],
    pub version: &'static SupportedProtocolVersion,
    /// What it shows of itself.
    pub own: Option<&'a Pair>,
}

impl Default for Hello<'_> {
    fn default() -> Self {
        Self { name: Some("a.test"), protocols: &["http/1.1"], version: &rustls::version::TLS13, own: None }
    }
}

/// One connection.
pub struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    unread: Vec<u8>,
}

impl Client {
    /// Connects and shakes hands with whoever listens, whatever it shows.
    pub fn connect(address: SocketAddr, hello: Hello<'_>) -> io::Result<Self> {
        let tcp = TcpStream::connect_timeout(&address, PATIENCE)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[hello.version]).expect("a version");
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone));
        let mut config = match hello.own {
            Some(own) => builder.with_client_auth_cert(vec![own.certificate.clone()], own.private()).expect("a pair"),
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = hello.name.is_some();
        config.alpn_protocols = hello.protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(hello.name.unwrap_or("nobody.test").to_owned()).expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream, unread: Vec::new() })
    }

    /// The certificate it was shown.
    pub fn shown(&self) -> CertificateDer<'static> {
        let chain = self.stream.conn.peer_certificates().expect("it was shown one");
        chain.first().expect("it was shown one").clone().into_owned()
    }

    pub fn protocol(&self) -> Option<String> {
        self.stream.conn.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
    }

    /// Sends a request and reads status and body of its answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<(u16, String)> {
        self.stream.write_all(&request.to_bytes(self.stream.sock.peer_addr()?))?;
        self.answer()
    }

    /// Says nothing until furt ends it, and gives what it said.
    pub fn silence(&mut self) -> io::Result<Vec<u8>> {
        let mut said = Vec::new();
        match self.stream.read_to_end(&mut said) {
            // Without a word of TLS that it ends: what was said counts.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(said),
        }
    }

    fn answer(&mut self) -> io::Result<(u16, String)> {
        let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let end = loop {
            match self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.fill()?,
            }
        };
        let head = String::from_utf8_lossy(&self.unread[..end]).to_lowercase();
        let status = head.get(9..12).and_then(|digits| digits.parse().ok()).ok_or_else(|| odd("no status"))?;
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|length| length.parse().ok()).ok_or_else(|| odd("no length"))?;
        while self.unread.len() < end + length {
            self.fill()?;
        }
        let body = String::from_utf8_lossy(&self.unread[end..end + length]).into_owned();
        self.unread.drain(..end + length);
        Ok((status, body))
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer")),
            count => {
                self.unread.extend_from_slice(&piece[..count]);
                Ok(())
            }
        }
    }
}

/// Takes whatever certificate is shown, but only from somebody who has its key.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Trusts these and nobody else.
pub fn roots(pairs: &[&Pair]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    pairs.iter().for_each(|pair| roots.add(pair.certificate.clone()).expect("a certificate"));
    roots
}
