//! Answers that end with their head, trailers from one version of HTTP to the other, and the heads before the head.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request as Asked, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::codegen::tokio_stream;

use crate::{
    client::{Client, Request},
    h2,
    upstream::{Reply, Upstream, ok},
    wire,
    world::{Conf, World},
};

fn start(conf: Conf, url: &str, more: &str) -> World {
    conf.more(&format!("[route \"r\"]\nmethods = *\npath = /r/*\nurl = {url}\npublic = true\n{more}\n")).start()
}

/// A method, and what the service answers to it, byte for byte.
const WITHOUT_BODY: [(&str, u16, &str); 10] = [
    ("HEAD", 200, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ("HEAD", 200, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("HEAD", 200, "HTTP/1.1 200 OK\r\n\r\n"),
    ("HEAD", 404, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    ("GET", 204, "HTTP/1.1 204 No Content\r\n\r\n"),
    ("DELETE", 204, "HTTP/1.1 204 No Content\r\n\r\n"),
    ("GET", 304, "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
    ("GET", 304, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ("HEAD", 304, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ("GET", 200, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
];

#[test]
fn an_answer_without_a_body_leaves_both_connections_usable() {
    let upstream = Upstream::with(|seen| {
        let number = seen.target.rsplit('/').next().and_then(|last| last.parse::<usize>().ok());
        Reply::Bytes(number.map_or_else(|| ok("next"), |number| WITHOUT_BODY[number].2.as_bytes().to_vec()))
    });
    let furt = start(Conf::new().server("workers = 1"), &upstream.url(), "");
    let mut client = Client::new(furt.public);
    for (number, (method, status, reply)) in WITHOUT_BODY.iter().enumerate() {
        let answer = client.ask(&Request::new(method, &format!("/r/{number}")));
        assert_eq!((answer.status, answer.body.len()), (*status, 0), "{method} {reply:?}: {answer:?}");
        let told = answer.field("content-length");
        match (*method, *status) {
            ("HEAD", 200) if reply.contains(": 5") => assert_eq!(told, Some("5"), "{method} {reply:?}: {answer:?}"),
            // It may be told and need not be (RFC 9110 §8.6).
            (_, 304) => assert!([None, Some("5")].contains(&told), "{method} {reply:?}: {answer:?}"),
            (_, 204) => assert_eq!((told, answer.field("transfer-encoding")), (None, None), "{method} {reply:?}: {answer:?}"),
            _ => assert!([None, Some("0")].contains(&told), "{method} {reply:?}: {answer:?}"),
        }
        // What follows on the same connection is the next answer and nothing else.
        assert_eq!(client.ask(&Request::get("/r/next")).text(), "next", "after {method} {reply:?}");
        let asked = http::Request::builder().method(*method).uri(format!("http://h/r/{number}")).body(()).expect("a request");
        let over_h2 = h2::send(furt.public, asked, &[], None).expect("an answer");
        assert_eq!((over_h2.head.status().as_u16(), over_h2.body.len()), (*status, 0), "{method} {reply:?}: {over_h2:?}");
    }
    let connections: Vec<usize> = upstream.requests().iter().map(|seen| seen.connection).collect();
    // HEAD with chunked and without a length end with the head as well: no connection is thrown away for one.
    assert!(connections.iter().all(|connection| *connection == connections[0]), "{connections:?}");
    assert_eq!(upstream.faults(), [""; 0]);
}

#[test]
fn heads_before_the_head_are_no_answer() {
    let upstream = Upstream::with(|seen| {
        let before = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
        Reply::Bytes([if seen.method == "GET" { before } else { "HTTP/1.1 100 Continue\r\n\r\n" }.as_bytes(), &ok("all")].concat())
    });
    let furt = start(Conf::new(), &upstream.url(), "");
    let mut client = Client::new(furt.public);
    for request in [Request::get("/r/x"), Request::post("/r/x", "body"), Request::get("/r/x")] {
        let answer = client.ask(&request);
        assert_eq!((answer.status, answer.text().as_str(), answer.field("link")), (200, "all", None), "{answer:?}");
        assert!(answer.interim.iter().all(|status| [100, 102, 103].contains(status)), "{:?}", answer.interim);
    }
    let over_h2 = h2::send(furt.public, http::Request::get("http://h/r/x").body(()).expect("a request"), &[], None).expect("an answer");
    assert_eq!((over_h2.head.status().as_u16(), &*over_h2.body), (200, &b"all"[..]));
}

type Trailers = Arc<Mutex<Vec<(Bytes, HeaderMap)>>>;

/// A service over HTTP/2 that answers each request with its body, its trailers and one more.
struct Echo {
    address: SocketAddr,
    seen: Trailers,
    _runtime: Runtime,
}

type Frames = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn echo(request: Asked<Incoming>, seen: Trailers) -> Result<Response<Frames>, Infallible> {
    let body = request.into_body().collect().await.map(|body| (body.trailers().cloned().unwrap_or_default(), body.to_bytes()));
    // A broken body is the test's failure, seen by what is missing.
    let (mut trailers, data) = body.unwrap_or_default();
    seen.lock().unwrap_or_else(PoisonError::into_inner).push((data.clone(), trailers.clone()));
    trailers.insert("x-answer", HeaderValue::from_static("yes"));
    let frames = vec![Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
    let mut answer = Response::new(StreamBody::new(tokio_stream::iter(frames)));
    // In HTTP/1.1 only those are sent that were announced.
    answer.headers_mut().insert("trailer", HeaderValue::from_static("x-answer, x-sum"));
    Ok(answer)
}

impl Echo {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let (address, seen) = (listener.local_addr().expect("bound"), Trailers::default());
        let all = seen.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = all.clone();
                let service = service_fn(move |request| echo(request, seen.clone()));
                tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, seen, _runtime: runtime }
    }

    #[track_caller]
    fn request(&self) -> (Bytes, HeaderMap) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).pop().expect("a request")
    }
}

#[test]
fn trailers_go_between_http1_and_http2_in_both_directions() {
    let service = Echo::start();
    let furt = start(Conf::new(), &format!("http://{}", service.address), "protocol = h2");
    let mut client = Client::new(furt.public);
    let head = "POST /r/x HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTrailer: X-Sum, X-API-Key-Name\r\nTransfer-Encoding: chunked";
    for _ in 0..2 {
        client.write(format!("{head}\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nX-API-Key-Name: Root\r\n\r\n")).expect("sent");
        let answer = client.read("POST").expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, "abc"), "{answer:?}");
        let (body, trailers) = service.request();
        assert_eq!((&*body, trailers.get("x-sum").map(HeaderValue::as_bytes)), (&b"abc"[..], Some(&b"7"[..])));
        assert!(!trailers.contains_key("x-api-key-name"), "{trailers:?}");
        assert_eq!(wire::value(&answer.trailers, "x-answer"), Some("yes"), "{:?}", answer.trailers);
        assert_eq!(wire::value(&answer.trailers, "x-sum"), Some("7"), "{:?}", answer.trailers);
    }
    let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("8"))]);
    let request = http::Request::post("http://h/r/x").header("te", "trailers").body(()).expect("a request");
    let answer = h2::send(furt.public, request, &["de", "f"], Some(trailers)).expect("an answer");
    assert_eq!((answer.head.status().as_u16(), &*answer.body), (200, &b"def"[..]));
    let told = answer.trailers.expect("trailers");
    assert_eq!((told.get("x-answer"), told.get("x-sum")), (Some(&HeaderValue::from_static("yes")), Some(&HeaderValue::from_static("8"))));
    assert_eq!(service.request().1.get("x-sum"), Some(&HeaderValue::from_static("8")));
}
