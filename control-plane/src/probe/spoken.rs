//! Probes of services that speak HTTP/2, or should.

use std::convert::Infallible;

use furt_proto::v1;
use http::{HeaderMap, Version};
use http_body_util::{Either, StreamBody};
use hyper::{body::Frame, server, service::service_fn};
use hyper_util::rt::TokioExecutor;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
};

use super::{tests::probe, *};
use crate::registration::Registration;

const TIMEOUT: Duration = Duration::from_secs(5);

type Body = Either<Full<Bytes>, StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>>;

fn ticket(address: SocketAddr, health_endpoint: &str) -> Ticket {
    let route = v1::Route { method: "GET".into(), path: "/a".into(), ..Default::default() };
    let request = v1::RegisterRequest {
        service: "sagjan".into(),
        url: "http://Sagjan.internal:7812/base".into(),
        health_endpoint: health_endpoint.into(),
        protocol: "h2".into(),
        routes: vec![route],
        ..Default::default()
    };
    Ticket::for_test(Arc::new(Registration::parse(&request).unwrap()), vec![address])
}

/// A service that speaks HTTP/2 with prior knowledge; what it was asked comes out.
async fn service(answer: impl Fn() -> Response<Body> + Clone + Send + 'static) -> (SocketAddr, mpsc::Receiver<Request<Bytes>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, questions) = mpsc::channel(1);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let answers = service_fn(move |request: Request<Incoming>| {
            let (asked, answer) = (asked.clone(), answer());
            async move {
                let (head, body) = request.into_parts();
                asked.send(Request::from_parts(head, body.collect().await?.to_bytes())).await.unwrap();
                Ok::<_, hyper::Error>(answer)
            }
        });
        // It ends when the probe has closed the connection.
        let _ = server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answers).await;
    });
    (address, questions)
}

/// Accepts one connection, says this once the client has said something, and waits for the other side to close.
async fn says(answer: &'static [u8], closes: bool) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        stream.write_all(answer).await.unwrap();
        if closes {
            return;
        }
        let mut rest = Vec::new();
        // However it is closed.
        let _ = stream.read_to_end(&mut rest).await;
    });
    (address, task)
}

async fn missed(address: SocketAddr, health_endpoint: &str) -> String {
    let (probe, ticket) = (probe(), ticket(address, health_endpoint));
    match tokio::time::timeout(TIMEOUT, probe.check(&ticket, "e", TIMEOUT)).await.expect("it ends") {
        Seen::Missed(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_request_over_http2_is_the_same() {
    let (address, mut questions) = service(|| Response::new(Either::Left(Full::from("ok")))).await;
    let seen = probe().check(&ticket(address, "/health?full=1"), "3f9c", TIMEOUT).await;
    assert!(matches!(seen, Seen::Answered(_)), "{seen:?}");
    let asked = questions.recv().await.unwrap();
    assert_eq!((asked.method().as_str(), asked.version()), ("GET", Version::HTTP_2));
    assert_eq!(asked.uri().to_string(), "http://sagjan.internal:7812/base/health?full=1");
    let field = |name: &str| asked.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!((field("x-furt-epoch"), field("x-furt-registered")), (Some("3f9c"), Some("true")));
    assert_eq!((field("host"), field("connection")), (None, None));
}

#[tokio::test]
async fn an_answer_other_than_2xx_over_http2_is_a_miss() {
    let busy = || {
        let mut answer = Response::new(Either::Left(Full::default()));
        *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        answer
    };
    assert_eq!(missed(service(busy).await.0, "").await, "answered 503 Service Unavailable");
}

#[tokio::test]
async fn a_service_that_speaks_only_http1_is_told_so() {
    let answers: [(&[u8], bool, &str); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", true, "not speak HTTP/2: "),
        (b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\n\r\n", false, "it does not speak HTTP/2: "),
        (b"HTTP/1.1 200 OK\r\n\r\n", true, "not speak HTTP/2: "),
        (b"", true, "may not speak HTTP/2: "),
    ];
    for (answer, closes, expected) in answers {
        let (address, task) = says(answer, closes).await;
        let why = missed(address, "").await;
        // Who hangs up on what it has not read may take its answer back with it.
        assert!(why.contains(expected), "{why}");
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_service_that_speaks_http2_and_turns_the_probe_away_is_not_told_that_it_does_not() {
    // SETTINGS; then GOAWAY ENHANCE_YOUR_CALM, or RST_STREAM REFUSED_STREAM of stream 1.
    let goaway = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";
    let reset = b"\0\0\0\x04\0\0\0\0\0\0\0\x04\x03\0\0\0\0\x01\0\0\0\x07";
    for (answer, expected) in [(&goaway[..], "detected excessive load"), (reset, "refused stream")] {
        let (address, task) = says(answer, false).await;
        let why = missed(address, "").await;
        assert!(why.contains(expected) && !why.contains("not speak"), "{why}");
        task.await.unwrap();
    }
}

#[tokio::test]
async fn grpc_s_own_health_service_is_asked_as_it_is() {
    let answer = |message: &'static [u8], status: &'static str| {
        move || {
            let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))]);
            let frames = vec![Ok(Frame::data(Bytes::from_static(message))), Ok(Frame::trailers(trailers))];
            let mut answer = Response::new(Either::Right(StreamBody::new(futures_util::stream::iter(frames))));
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
            answer
        }
    };
    let (address, mut questions) = service(answer(b"\0\0\0\0\x02\x08\x01", "0")).await;
    let seen = probe().check(&ticket(address, GRPC_HEALTH), "3f9c", TIMEOUT).await;
    assert!(matches!(seen, Seen::Answered(_)), "{seen:?}");
    let asked = questions.recv().await.unwrap();
    assert_eq!((asked.method().as_str(), asked.body().as_ref()), ("POST", &[0; 5][..]));
    assert_eq!(asked.uri().path(), "/base/grpc.health.v1.Health/Check");
    assert_eq!(asked.headers()["content-type"], "application/grpc");
    let (not_serving, none) = (b"\0\0\0\0\x02\x08\x02", b"");
    let told = "answered that it does not serve (grpc.health.v1)";
    assert_eq!(missed(service(answer(not_serving, "0")).await.0, GRPC_HEALTH).await, told);
    assert_eq!(missed(service(answer(none, "0")).await.0, GRPC_HEALTH).await, told);
    assert_eq!(missed(service(answer(none, "12")).await.0, GRPC_HEALTH).await, "answered grpc-status 12");
}

#[tokio::test]
async fn a_probe_that_is_given_up_leaves_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ticket = ticket(listener.local_addr().unwrap(), "");
    let probe = probe();
    let check = probe.check(&ticket, "e", TIMEOUT);
    let mut stream = tokio::select! {
        seen = check => panic!("{seen:?}"),
        stream = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // SETTINGS of its own, so that the request comes; then nothing more.
            stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
            let mut said = Vec::new();
            while !said.windows(5).any(|header| header == b"\x01\x05\0\0\0") {
                said.push(stream.read_u8().await.unwrap());
            }
            stream
        } => stream,
    };
    let closed = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut Vec::new())).await;
    assert!(closed.is_ok(), "the connection ends with the probe");
}
