//! One probe: a connection of its own to a checked address, one GET, no redirect (DESIGN §5, §7); over HTTP/1.1 or
//! HTTP/2, plain or TLS, as the instance is registered.
//!
//! Here: the request, what counts as an answer, whose fault a failure is. Not here: when, and what follows.

use std::{
    error::Error,
    fmt,
    future::pending,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use furt_proto::{network::is_local_fault, tls::UpstreamTls};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
    time::{Instant, sleep},
};

use crate::{
    monitor::Probe,
    registration::Protocol,
    services::{Seen, Ticket},
};

/// A `health_endpoint` of this name, over HTTP/2, is asked as the method of gRPC's health service that it is.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";
const USER_AGENT: &str = concat!("furt/", env!("CARGO_PKG_VERSION"));
/// Bytes of an answer's head: what a health endpoint says fits well.
const MOST_HEAD: usize = 16 * 1024;
/// Bytes of an answer's body that are read and thrown away before the connection is closed under it.
const MOST_BODY: usize = 64 * 1024;
/// And for how long: an endpoint that streams without end has answered all the same.
const LONGEST_BODY: Duration = Duration::from_millis(250);

/// Probes over the network.
pub struct HttpProbe {
    tls: Box<dyn Fn() -> Arc<UpstreamTls> + Send + Sync>,
}

impl HttpProbe {
    /// `tls` tells whom https instances have to show a certificate of, as furt.conf has it at the moment.
    pub fn new(tls: impl Fn() -> Arc<UpstreamTls> + Send + Sync + 'static) -> Self {
        Self { tls: Box::new(tls) }
    }
}

impl fmt::Debug for HttpProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpProbe")
    }
}

impl Probe for HttpProbe {
    async fn check(&self, ticket: &Ticket, epoch: &str, timeout: Duration) -> Seen {
        match ask(ticket, epoch, timeout, (self.tls)()).await {
            Ok(took) => Seen::Answered(took),
            Err(Failure::Theirs(why)) => Seen::Missed(why),
            Err(Failure::Ours(why)) => Seen::Unable(why),
        }
    }
}

enum Failure {
    Theirs(String),
    Ours(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if is_local_fault(&error) { Self::Ours(error.to_string()) } else { Self::Theirs(error.to_string()) }
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        match (cause, error.source()) {
            (Some(io), _) if is_local_fault(io) => Self::Ours(io.to_string()),
            (_, Some(source)) => Self::Theirs(format!("{error}: {source}")),
            (_, None) => Self::Theirs(error.to_string()),
        }
    }
}

/// How long the head of a 2xx took.
async fn ask(ticket: &Ticket, epoch: &str, timeout: Duration, tls: Arc<UpstreamTls>) -> Result<Duration, Failure> {
    let began = Instant::now();
    let stream = connect(&ticket.addresses, timeout).await?;
    let (url, h2) = (&ticket.registration.url, ticket.registration.protocol == Protocol::H2);
    let request = request(ticket, epoch, h2)?;
    if !url.tls() {
        return converse(stream, h2, request, began).await;
    }
    let stream = tls.connect(url.host(), h2, stream).await.map_err(|error| match error.into() {
        // Whatever is wrong with the other side's certificate is the other side's fault.
        Failure::Theirs(why) => Failure::Theirs(format!("TLS: {why}")),
        ours => ours,
    })?;
    converse(stream, h2, request, began).await
}

async fn converse<S>(stream: S, h2: bool, request: Request<Full<Bytes>>, began: Instant) -> Result<Duration, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let io = TokioIo::new(stream);
    if h2 {
        let tasks = Ending::default();
        let (mut sender, connection) = http2::Builder::new(tasks.0.clone()).handshake(io).await.map_err(no_http2)?;
        return exchange(connection, sender.send_request(request), began).await.map_err(no_http2_either);
    }
    let (mut sender, connection) = http1::Builder::new().max_buf_size(MOST_HEAD).handshake(io).await?;
    exchange(connection, sender.send_request(request), began).await
}

fn no_http2(error: hyper::Error) -> Failure {
    no_http2_either(error.into())
}

/// What a service that speaks only HTTP/1.1 says is no frame, or it hangs up: the words of the codec alone would puzzle.
/// One that says goodbye by the rules ("received") does speak HTTP/2.
fn no_http2_either(failure: Failure) -> Failure {
    match failure {
        Failure::Theirs(why) if why.contains("connection error detected") => Failure::Theirs(format!("it does not speak HTTP/2: {why}")),
        Failure::Theirs(why) if why.starts_with("connection error") => Failure::Theirs(format!("it may not speak HTTP/2: {why}")),
        other => other,
    }
}

/// The connection is driven here and closed with this future, so that no probe outlives its check.
async fn exchange<C, A>(connection: C, answer: A, began: Instant) -> Result<Duration, Failure>
where
    C: Future<Output = hyper::Result<()>>,
    A: Future<Output = hyper::Result<Response<Incoming>>>,
{
    let mut connection = pin!(connection.fuse());
    let mut answer = pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer?,
        ended = &mut connection => {
            ended?;
            // All was read; the answer is on its way through the channel.
            answer.await?
        }
    };
    let (took, status) = (began.elapsed(), answer.status());
    if !status.is_success() {
        return Err(Failure::Theirs(format!("answered {status}")));
    }
    if answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        let (head, body) = answer.into_parts();
        let mut connection = connection;
        tokio::select! {
            biased;
            serving = is_serving(&head.headers, body) => serving?,
            _ = async { let _ = (&mut connection).await; pending::<()>().await } => {}
        }
        return Ok(began.elapsed());
    }
    tokio::select! {
        () = drain(answer.into_body()) => {}
        () = async { let _ = connection.await; pending().await } => {}
        () = sleep(LONGEST_BODY) => {}
    }
    Ok(took)
}

/// What hyper spawns for a connection over HTTP/2.
#[derive(Debug, Clone, Default)]
struct Tasks(Arc<Mutex<Vec<AbortHandle>>>);

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, Vec<AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends them with the probe, also with one that is given up.
#[derive(Debug, Default)]
struct Ending(Tasks);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().drain(..).for_each(|task| task.abort());
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let task = tokio::spawn(future).abort_handle();
        self.lock().push(task);
    }
}

/// The first of the checked addresses that takes a connection. Each gets its share of the time.
async fn connect(addresses: &[SocketAddr], timeout: Duration) -> Result<TcpStream, Failure> {
    let share = timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = Failure::Theirs("the url has no checked address".into());
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // One small segment each way: there is nothing to collect.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = error.into(),
            Err(_) => last = Failure::Theirs(format!("no connection to {address} in time")),
        }
    }
    Err(last)
}

fn request(ticket: &Ticket, epoch: &str, h2: bool) -> Result<Request<Full<Bytes>>, Failure> {
    let registration = &ticket.registration;
    let (url, path) = (&registration.url, format!("{}{}", registration.url.base(), registration.health_endpoint));
    // Host is the url's, whatever address was connected to.
    let absolute = || format!("{}://{}{path}", if url.tls() { "https" } else { "http" }, url.authority());
    let grpc = h2 && registration.health_endpoint == GRPC_HEALTH;
    let request = if grpc {
        Request::post(absolute()).header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers")
    } else if h2 {
        Request::get(absolute())
    } else {
        Request::get(path).header(header::HOST, url.authority()).header(header::CONNECTION, HeaderValue::from_static("close"))
    };
    let request = request
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header("X-Furt-Epoch", epoch)
        .header("X-Furt-Registered", HeaderValue::from_static(if ticket.registered { "true" } else { "false" }))
        // One message of no bytes: the health of the whole server (grpc.health.v1, HealthCheckRequest).
        .body(if grpc { Full::from(&[0; 5][..]) } else { Full::default() });
    request.map_err(|error| Failure::Ours(error.to_string()))
}

/// Whether a gRPC server says that it serves: its status is 0 and its message says SERVING (grpc.health.v1).
async fn is_serving(head: &HeaderMap, mut body: Incoming) -> Result<(), Failure> {
    let mut status = head.get("grpc-status").cloned();
    let mut message = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) if message.len() + data.len() <= MOST_HEAD => message.extend_from_slice(&data),
            Ok(_) => return Err(Failure::Theirs("answered more than a status of health".into())),
            Err(frame) => status = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status").cloned()).or(status),
        }
    }
    match (status.as_ref().map(HeaderValue::as_bytes), &*message) {
        // Five bytes of gRPC's own, then field 1 as a varint: 1 is SERVING.
        (Some(b"0"), [0, 0, 0, 0, 2, 8, 1]) => Ok(()),
        (Some(b"0"), _) => Err(Failure::Theirs("answered that it does not serve (grpc.health.v1)".into())),
        (Some(status), _) => Err(Failure::Theirs(format!("answered grpc-status {}", String::from_utf8_lossy(status)))),
        (None, _) => Err(Failure::Theirs("answered without a grpc-status".into())),
    }
}

/// Reads a body to its end or its bound. What it says, and whether it ends well, is nothing to a probe: the status
/// has been given. Reading it spares the service an error on its side.
async fn drain(mut body: Incoming) {
    let mut left = MOST_BODY;
    while let Some(Ok(frame)) = body.frame().await {
        let size = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(size) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod spoken;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use furt_proto::v1;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;
    use crate::registration::Registration;

    const TIMEOUT: Duration = Duration::from_secs(5);

    pub(super) fn probe() -> HttpProbe {
        let tls = Arc::new(UpstreamTls::new(rustls::RootCertStore::empty()));
        HttpProbe::new(move || tls.clone())
    }

    /// A service that takes one connection, reads a head, says something and waits for the other side to close.
    async fn service(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            let closed = stream.read_u8().await;
            assert!(closed.is_err(), "one request a connection");
            String::from_utf8(head).unwrap()
        });
        (address, task)
    }

    fn ticket(addresses: Vec<SocketAddr>, url: &str, health_endpoint: &str) -> Ticket {
        let route = v1::Route { method: "GET".into(), path: "/a".into(), ..Default::default() };
        let request = v1::RegisterRequest {
            service: "sagjan".into(),
            url: url.into(),
            health_endpoint: health_endpoint.into(),
            routes: vec![route],
            ..Default::default()
        };
        Ticket::for_test(Arc::new(Registration::parse(&request).unwrap()), addresses)
    }

    async fn seen(answer: &'static str) -> Seen {
        let (address, task) = service(answer).await;
        let seen = probe().check(&ticket(vec![address], "http://sagjan:1", ""), "e", TIMEOUT).await;
        task.await.unwrap();
        seen
    }

    #[tokio::test]
    async fn the_request_is_what_the_contract_says() {
        let (address, task) = service("HTTP/1.1 204 No Content\r\n\r\n").await;
        let ticket = ticket(vec![address], "http://Sagjan.internal:7812/base/", "/health?full=1");
        let seen = probe().check(&ticket, "3f9c", TIMEOUT).await;
        assert!(matches!(seen, Seen::Answered(_)), "{seen:?}");
        let head = task.await.unwrap().to_ascii_lowercase();
        let lines: Vec<_> = head.lines().collect();
        assert_eq!(lines[0], "get /base/health?full=1 http/1.1");
        for line in ["host: sagjan.internal:7812", "x-furt-epoch: 3f9c", "x-furt-registered: true", "connection: close"] {
            assert!(lines.contains(&line), "{line} in {head}");
        }
        assert!(head.contains(&format!("user-agent: furt/{}", env!("CARGO_PKG_VERSION"))));
    }

    #[tokio::test]
    async fn a_2xx_is_an_answer_and_anything_else_is_a_miss() {
        for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n"] {
            assert!(matches!(seen(answer).await, Seen::Answered(_)), "{answer}");
        }
        // A body that never ends has been answered all the same.
        let endless = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
        assert!(matches!(seen(endless).await, Seen::Answered(_)));
        for answer in [
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "not http at all\r\n\r\n",
        ] {
            assert!(matches!(seen(answer).await, Seen::Missed(_)), "{answer}");
        }
        let Seen::Missed(why) = seen("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await else { panic!("no miss") };
        assert_eq!(why, "answered 503 Service Unavailable");
    }

    #[tokio::test]
    async fn a_head_without_end_is_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            while stream.write_all(b"X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").await.is_ok() {}
        });
        let seen = probe().check(&ticket(vec![address], "http://sagjan:1", ""), "e", TIMEOUT).await;
        assert!(matches!(seen, Seen::Missed(_)), "{seen:?}");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_there_is_a_miss_and_the_next_address_is_tried() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let missed = probe().check(&ticket(vec![gone], "http://sagjan:1", ""), "e", TIMEOUT).await;
        let Seen::Missed(why) = missed else { panic!("{missed:?}") };
        assert!(why.to_lowercase().contains("refused"), "{why}");
        let (address, task) = service("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let seen = probe().check(&ticket(vec![gone, address], "http://sagjan:1", ""), "e", TIMEOUT).await;
        assert!(matches!(seen, Seen::Answered(_)), "{seen:?}");
        task.await.unwrap();
        let none = probe().check(&ticket(Vec::new(), "http://sagjan:1", ""), "e", TIMEOUT).await;
        assert!(matches!(none, Seen::Missed(_)), "{none:?}");
    }

    #[test]
    fn only_what_this_machine_lacks_is_furts_own() {
        for errno in [12, 23, 24, 99, 105] {
            assert!(is_local_fault(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
        for errno in [104, 110, 111, 113] {
            assert!(!is_local_fault(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
    }
}
