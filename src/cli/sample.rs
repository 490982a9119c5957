//! The sample service of `furt demo`: a small HTTP server that registers itself, as any service would.
//!
//! It answers `GET /health` and everything under `/api/comments/`, where it says what reached it.

use std::{
    convert::Infallible,
    io::Read,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::Notify,
    time::{sleep, timeout},
};

use super::{
    Failure,
    client::{Question, send},
    process::say,
};

/// Between two attempts to register while furt does not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// Serves on a free port of this machine and keeps itself registered, until standard input ends: when
/// whoever started it is gone, so is it.
pub async fn serve(gateway: &str) -> Result<(), Failure> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let failed = |error| Failure::new(format!("sample service: cannot listen: {error}"));
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    let furt = Arc::new(KnownFurt::default());
    tokio::join!(accept(socket, furt.clone()), stay_registered(gateway, address, &furt));
    Ok(())
}

/// What the service knows of the furt that it registered with.
#[derive(Default)]
struct KnownFurt {
    /// The life of furt that holds the registration; empty before the first.
    epoch: Mutex<String>,
    /// A probe told that the registration is lost or not renewed since furt started.
    lost: Notify,
}

impl KnownFurt {
    fn registered_in(&self, epoch: &str) {
        epoch.clone_into(&mut self.epoch.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Reads the headers of a probe (DESIGN §7): another epoch, or `false`, means to register again.
    fn read_probe(&self, headers: &HeaderMap) {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let known = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        let other = header("x-furt-epoch").is_some_and(|epoch| epoch != *known);
        if !known.is_empty() && (other || header("x-furt-registered") == Some("false")) {
            self.lost.notify_one();
        }
    }
}

async fn accept(socket: TcpListener, furt: Arc<KnownFurt>) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let furt = furt.clone();
                let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&furt, &request))));
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // A connection that breaks is the other side's affair.
                tokio::spawn(async move { drop(serving.await) });
            }
            Err(_) => sleep(AGAIN).await,
        }
    }
}

fn answer(furt: &KnownFurt, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let (status, body) = match path {
        "/health" => {
            furt.read_probe(request.headers());
            (StatusCode::OK, json!({"status": "ok"}))
        }
        _ if path.starts_with("/api/comments/") => (StatusCode::OK, seen(request)),
        _ => (StatusCode::NOT_FOUND, json!({"error": "no such page"})),
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// What reached the service: the path as it was sent, and who furt says the caller is.
fn seen(request: &Request<Incoming>) -> Value {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    json!({
        "from": "the sample service",
        "method": request.method().as_str(),
        "path": request.uri().to_string(),
        "caller": header("x-api-key-name"),
        "key_seen": header("x-api-key").is_some(),
    })
}

/// Registers, says so, and repeats it as often as furt asks for, at once when a probe tells that it is lost.
async fn stay_registered(gateway: &str, address: SocketAddr, furt: &KnownFurt) {
    let body = registration(address);
    loop {
        let question = Question::new(Method::POST, "/internal/register-service").body(body.clone());
        let pause = match send(gateway, question).await {
            Ok(answer) => {
                // Whether somebody reads it is no concern of a service.
                let _ = say(String::from_utf8_lossy(&answer.body));
                furt.registered_in(answer.json().pointer("/data/epoch").and_then(Value::as_str).unwrap_or_default());
                let seconds = answer.json().pointer("/data/renew_after_seconds").and_then(Value::as_u64);
                seconds.map_or(AGAIN, |seconds| Duration::from_secs(seconds.max(1)))
            }
            Err(_) => AGAIN,
        };
        // Either way it is time to register again.
        let _ = timeout(pause, furt.lost.notified()).await;
    }
}

/// The seed's registration, with the url of this copy.
pub fn registration(address: SocketAddr) -> String {
    let route =
        |method: &str, action: &str| json!({"method": method, "path": "/api/comments/*", "permission": format!("comments:{action}")});
    let routes = [route("POST", "write"), route("GET", "read"), route("PUT", "moderate"), route("DELETE", "delete")];
    json!({"service": "sagjan", "url": format!("http://{address}"), "health_endpoint": "/health", "routes": routes}).to_string()
}
