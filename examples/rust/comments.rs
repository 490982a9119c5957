//! A service of comments that furt-client keeps registered with furt.
//!
//! ```sh
//! cargo run -p furt-client --example comments
//! ```
//!
//! It is told by its environment: FURT_GATEWAY (furt's internal listener), FURT_TOKEN (the token of its grant, if
//! that has one), SERVICE, INSTANCE (one name for each copy that runs) and PORT (0: any that is free).

use std::{
    collections::VecDeque,
    env,
    error::Error,
    io::{self, IsTerminal},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode},
    routing::get,
};
use furt_client::{RegisterRequest, Registrar, Route};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
};
use tokio_util::sync::CancellationToken;

/// How many comments are kept, the newest ones.
const KEPT: usize = 1_000;
/// Bytes of a comment.
const LONGEST: usize = 64 * 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).init();
    let (gateway, token) = (setting("FURT_GATEWAY", "127.0.0.1:7810"), setting("FURT_TOKEN", ""));
    let (service, instance) = (setting("SERVICE", "comments"), setting("INSTANCE", "default"));
    let port: u16 = setting("PORT", "7812").parse()?;

    // Listen first: furt probes as soon as it knows the service.
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let mut registrar = Registrar::new(&gateway)?;
    if !token.is_empty() {
        registrar = registrar.token(&token)?;
    }
    let routes = [("GET", "comments:read"), ("POST", "comments:write")].map(|(method, permission)| Route {
        method: method.into(),
        path: format!("/api/{service}/*"),
        permission: permission.into(),
        ..Default::default()
    });
    let request = RegisterRequest { service: service.clone(), instance, url, routes: routes.into(), ..Default::default() };

    let shutdown = CancellationToken::new();
    let keeping = tokio::spawn(registrar.keep(request).run(shutdown.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let farewell = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = ctrl_c() => {}
        }
        shutdown.cancel();
        // Until this is done furt may send requests, so until then the listener stays.
        let _ = keeping.await;
    };

    let app = Router::new()
        .route("/health", get(|| async { "well\n" }))
        .route(&format!("/api/{service}/{{*page}}"), get(read).post(write))
        .layer(DefaultBodyLimit::max(LONGEST))
        .with_state(Comments::default());
    axum::serve(listener, app).with_graceful_shutdown(farewell).await?;
    Ok(())
}

fn setting(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Comments in memory: the page and what was said on it.
#[derive(Clone, Default)]
struct Comments(Arc<Mutex<VecDeque<(String, Value)>>>);

async fn read(State(comments): State<Comments>, Path(page): Path<String>) -> Json<Value> {
    let kept = comments.0.lock().unwrap_or_else(PoisonError::into_inner);
    Json(kept.iter().filter(|(of, _)| *of == page).map(|(_, comment)| comment.clone()).collect())
}

/// furt has looked at the caller's key; who it is comes in X-API-Key-Name.
async fn write(State(comments): State<Comments>, Path(page): Path<String>, headers: HeaderMap, text: String) -> (StatusCode, Json<Value>) {
    let author = headers.get("x-api-key-name").and_then(|name| name.to_str().ok());
    let comment = json!({"author": author, "text": text});
    let mut kept = comments.0.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back((page, comment.clone()));
    (StatusCode::CREATED, Json(comment))
}
