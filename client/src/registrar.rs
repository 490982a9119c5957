//! Where furt is and who we are to it.
//!
//! Here: the gateway's address, the token, connecting. Not here: what is said (`session`), when (`keeper`).

use std::{error, fmt, sync::Arc, time::Duration};

use furt_proto::v1::{RegisterRequest, registry_service_client::RegistryServiceClient};
use futures_util::future::BoxFuture;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{self, Channel, Endpoint},
};

use crate::keeper::Keeper;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 pings: a furt whose machine is gone says nothing, and is noticed after both.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a channel of an endpoint; over TCP but in tests.
pub(crate) type Connect = Arc<dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, transport::Error>> + Send + Sync>;

/// Registers services with one furt. Clones are the same.
#[derive(Clone)]
pub struct Registrar {
    gateway: String,
    endpoint: Endpoint,
    token: Option<MetadataValue<Ascii>>,
    connect: Connect,
}

/// What cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of the gateway.
    #[error("{0:?} is not the address of furt's internal listener; it is host:port, such as 127.0.0.1:7810")]
    Gateway(String),
    /// The token. It is not shown.
    #[error("the token has characters other than visible ASCII")]
    Token,
}

impl Registrar {
    /// `gateway`: furt's internal listener as `host:port`, also with `http://` before it.
    pub fn new(gateway: &str) -> Result<Self, Error> {
        Self::with(gateway, Arc::new(|endpoint: Endpoint| Box::pin(async move { endpoint.connect().await })))
    }

    pub(crate) fn with(gateway: &str, connect: Connect) -> Result<Self, Error> {
        let address = gateway.strip_prefix("http://").unwrap_or(gateway).trim_end_matches('/');
        let refused = || Error::Gateway(gateway.to_owned());
        let whole: http::uri::Authority = address.parse().map_err(|_| refused())?;
        if whole.port_u16().is_none_or(|port| port == 0) || address.contains('@') {
            return Err(refused());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| refused())?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(Self { gateway: address.to_owned(), endpoint, token: None, connect })
    }

    /// The token of the service's grant, or another that may register it.
    pub fn token(mut self, token: &str) -> Result<Self, Error> {
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Token);
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| Error::Token)?;
        value.set_sensitive(true);
        self.token = Some(value);
        Ok(self)
    }

    /// What keeps an instance registered once it [runs](Keeper::run).
    pub fn keep(&self, request: RegisterRequest) -> Keeper {
        Keeper::new(self.clone(), request)
    }

    /// A client on a connection of its own.
    pub(crate) async fn client(&self) -> Result<RegistryServiceClient<Channel>, Status> {
        let connected = (self.connect)(self.endpoint.clone()).await;
        Ok(RegistryServiceClient::new(connected.map_err(|error| {
            let mut status = Status::unavailable(format!("no connection to {}", self.gateway));
            status.set_source(Arc::new(error));
            status
        })?))
    }

    /// The request with the token.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }
}

/// Not a byte of the token.
impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = if self.token.is_some() { "present" } else { "none" };
        f.debug_struct("Registrar").field("gateway", &self.gateway).field("token", &token).finish()
    }
}

/// The innermost cause, which says more than "transport error".
pub(crate) fn root<'a>(error: &'a (dyn error::Error + 'static)) -> &'a (dyn error::Error + 'static) {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_a_host_and_a_port() {
        let check = |gateway: &str, expected: Option<&str>| {
            let found = Registrar::new(gateway).ok().map(|registrar| registrar.gateway);
            assert_eq!(found.as_deref(), expected, "{gateway}");
        };
        check("127.0.0.1:7810", Some("127.0.0.1:7810"));
        check("http://furt.example.org:7810/", Some("furt.example.org:7810"));
        check("[::1]:7810", Some("[::1]:7810"));
        for wrong in ["", "furt", "127.0.0.1:0", "https://furt:7810", "http://furt:7810/path", "user@furt:7810", "a b:1", "furt:99999"] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_token_is_sent_and_never_shown() {
        let registrar = Registrar::new("127.0.0.1:7810").unwrap();
        assert!(registrar.request(()).metadata().is_empty());
        for wrong in ["", "two words", "tok\nen", "tök"] {
            assert!(matches!(registrar.clone().token(wrong), Err(Error::Token)), "{wrong:?}");
        }
        let registrar = registrar.token("s3cret").unwrap();
        assert_eq!(registrar.request(()).metadata().get("authorization").unwrap(), "Bearer s3cret");
        let keeper = registrar.keep(RegisterRequest::default());
        for shown in [format!("{registrar:?}"), format!("{keeper:?}"), format!("{:?}", registrar.request(()))] {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }
}
