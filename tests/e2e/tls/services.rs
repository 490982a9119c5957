//! TLS towards services: whom furt trusts, and by which protocol it asks.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use furt_proto::tls::provider;
use http::{Request as Asked, Response, Version};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::json;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_rustls::TlsAcceptor;

use super::party::{Files, Pair};
use crate::{
    client::Request,
    world::{Conf, WEBSITE_KEY, World, eventually, registration},
};

const ROUTES: &[&str] = &["GET /api/* comments:read"];

type Seen = Arc<Mutex<Vec<(Version, String)>>>;

/// A service that speaks TLS and what ALPN agrees on; gone when dropped.
struct Service {
    address: SocketAddr,
    seen: Seen,
    _runtime: Runtime,
}

impl Service {
    fn start(own: &Pair, protocols: &[&str]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect("versions");
        let key = PrivateKeyDer::try_from(own.key.serialize_der()).expect("a key");
        let mut config = builder.with_no_client_auth().with_single_cert(vec![own.certificate.clone()], key).expect("a pair");
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let (address, seen) = (listener.local_addr().expect("bound"), Seen::default());
        let all = seen.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), all.clone());
                tokio::spawn(async move {
                    // Whoever does not trust it goes away.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let service = service_fn(move |asked| answer(seen.clone(), asked));
                    let _ = match h2 {
                        true => http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await,
                        false => http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
                    };
                });
            }
        });
        Self { address, seen, _runtime: runtime }
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.address.port())
    }

    /// The requests so far, probes aside.
    fn seen(&self) -> Vec<(Version, String)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(seen: Seen, asked: Asked<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if !asked.headers().contains_key("x-furt-epoch") {
        seen.lock().unwrap_or_else(PoisonError::into_inner).push((asked.version(), asked.uri().path().to_owned()));
    }
    Ok(Response::new(Full::from("over TLS")))
}

/// Trusts the authorities in these files and nobody else.
fn trusting(files: &Files, names: &[&str]) -> Conf {
    let list: Vec<_> = names.iter().map(|name| files.path(name).display().to_string()).collect();
    Conf::new().gateway(&format!("upstream_ca = {}", list.join(", ")))
}

/// A certificate for this machine, and a furt that trusts who signed it.
fn trusted() -> (Pair, Conf, Files) {
    let files = Files::new();
    let (authority, own) = Pair::below_an_authority(&["localhost", "127.0.0.1"]);
    files.write("ca.pem", &authority.pem);
    let conf = trusting(&files, &["ca.pem"]);
    (own, conf, files)
}

#[track_caller]
fn served(furt: &World) {
    let answer = furt.get("/api/a");
    assert_eq!((answer.status, answer.text().as_str()), (200, "over TLS"), "{answer:?}");
}

#[test]
fn a_service_is_probed_and_asked_by_https_and_connections_are_used_again() {
    let (own, conf, _files) = trusted();
    let service = Service::start(&own, &["http/1.1"]);
    let furt = conf.start();
    furt.register("sagjan", &service.url("127.0.0.1"), ROUTES);
    furt.until("sagjan", "UP");
    (0..3).for_each(|_| served(&furt));
    assert_eq!(service.seen(), [(); 3].map(|()| (Version::HTTP_11, "/api/a".to_owned())));
}

#[test]
fn a_service_is_asked_by_http2_over_tls_when_it_registered_so() {
    let (own, conf, _files) = trusted();
    let service = Service::start(&own, &["h2", "http/1.1"]);
    let furt = conf.start();
    let mut body = registration("sagjan", &service.url("localhost"), ROUTES);
    body["protocol"] = json!("h2");
    furt.post(&body).status(200);
    furt.until("sagjan", "UP");
    (0..3).for_each(|_| served(&furt));
    assert_eq!(service.seen(), [(); 3].map(|()| (Version::HTTP_2, "/api/a".to_owned())));
}

fn route(url: &str, more: &str) -> String {
    format!("[route \"secure\"]\nmethods = GET\npath = /api/*\npermission = comments:read\nurl = {url}\n{more}\n")
}

#[test]
fn who_is_not_trusted_gets_no_request_and_a_reload_can_trust_it() {
    let (own, _, files) = trusted();
    let (stranger, _) = Pair::below_an_authority(&["127.0.0.1"]);
    files.write("stranger.pem", &stranger.pem);
    let service = Service::start(&own, &["http/1.1"]);
    let section = route(&service.url("127.0.0.1"), "");
    let mut furt = trusting(&files, &["stranger.pem"]).more(&section).start();
    furt.get("/api/a").refused(502, "BAD_GATEWAY");
    furt.rewrite(trusting(&files, &["stranger.pem", "ca.pem"]).more(&section));
    let changes = furt.reload().json()["data"]["changes"].clone();
    assert_eq!(changes, json!(["[gateway] upstream_ca is other certificates"]));
    // The instance may be set aside for a second after it failed, but it is the only one.
    eventually("it is trusted", || (furt.get("/api/a").status == 200).then_some(()));
    // And no longer, once each worker has let go of its connections.
    furt.rewrite(trusting(&files, &["stranger.pem"]).more(&section));
    furt.reload().status(200);
    let refused = || {
        let answers = [(); 10].map(|()| furt.get("/api/a").status);
        assert!(answers.iter().all(|status| [200, 502].contains(status)), "{answers:?}");
        answers.iter().all(|status| *status == 502)
    };
    eventually("it is trusted no longer", || (refused() && refused() && refused()).then_some(()));
    let seen = service.seen().len();
    (0..10).for_each(|_| {
        furt.get("/api/a").refused(502, "BAD_GATEWAY");
    });
    assert_eq!(service.seen().len(), seen, "no request reached it");
}

#[test]
fn a_certificate_of_another_host_and_a_protocol_that_is_not_spoken_are_refused() {
    let files = Files::new();
    let (authority, other) = Pair::below_an_authority(&["other.test"]);
    files.write("other-ca.pem", &authority.pem);
    let (local, own) = Pair::below_an_authority(&["127.0.0.1"]);
    files.write("ca.pem", &local.pem);
    let conf = || trusting(&files, &["other-ca.pem", "ca.pem"]);
    let elsewhere = Service::start(&other, &["http/1.1"]);
    let furt = conf().more(&route(&elsewhere.url("127.0.0.1"), "")).start();
    furt.get("/api/a").refused(502, "BAD_GATEWAY");
    let old = Service::start(&own, &["http/1.1"]);
    let furt_h2 = conf().more(&route(&old.url("127.0.0.1"), "protocol = h2")).start();
    furt_h2.get("/api/a").refused(502, "BAD_GATEWAY");
    assert_eq!((elsewhere.seen(), old.seen()), (vec![], vec![]));
    // The same service is good for what it speaks.
    let furt = conf().more(&route(&old.url("127.0.0.1"), "")).start();
    assert_eq!(furt.send(&Request::get("/api/a").key(WEBSITE_KEY)).status, 200);
}

#[test]
fn probes_hold_who_is_not_trusted_for_down_and_the_timeline_names_the_certificate_until_a_reload_trusts_it() {
    let (own, _, files) = trusted();
    let (stranger, _) = Pair::below_an_authority(&["127.0.0.1"]);
    files.write("stranger.pem", &stranger.pem);
    let service = Service::start(&own, &["http/1.1"]);
    let mut furt = trusting(&files, &["stranger.pem"]).quick().start();
    furt.register("sagjan", &service.url("127.0.0.1"), ROUTES);
    furt.until("sagjan", "DOWN");
    let timeline = |furt: &World| {
        let answer = Request::get("/internal/services/sagjan").send(furt.internal).json();
        answer["data"]["service"]["instances"][0]["timeline"].clone()
    };
    let told = timeline(&furt);
    let cause = told[0]["cause"].as_str().unwrap_or_default();
    assert_eq!((&told[0]["from"], &told[0]["to"]), (&json!("UNKNOWN"), &json!("DOWN")));
    assert!(cause.starts_with("TLS: invalid peer certificate"), "{cause}");
    furt.rewrite(trusting(&files, &["stranger.pem", "ca.pem"]).quick());
    furt.reload().status(200);
    furt.until("sagjan", "UP");
    served(&furt);
    assert_eq!(timeline(&furt)[1]["cause"], "answered");
}
