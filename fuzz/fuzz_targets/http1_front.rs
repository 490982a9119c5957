//! The whole data plane over HTTP/1, with a client that sends any bytes: what the service gets is well-formed requests,
//! each a request of the client's stream with the same method and body, in the same order, and none twice; the
//! connection always ends, and a stream that is refused is told so.
#![no_main]

#[path = "../../data-plane/src/strict/reference.rs"]
mod reference;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use furt_data_plane::{
    subscribe::Suspicions,
    view::{Current, View, apply},
    worker::DataPlane,
};
use furt_proto::v1;
use libfuzzer_sys::fuzz_target;
use reference::{End, Most, Request, read_all};
use tokio_util::sync::CancellationToken;

/// The limits on the client are those of this configuration.
const CONFIG: &str =
    "[server]\nlisten = 127.0.0.1:0\nworkers = 1\nmax_header_size = 4 KiB\nmax_headers = 16\nmax_uri_length = 256\nlog_requests = false\n";
const CLIENT: Most = Most { head: 4096, fields: 16, target: 256 };
/// What furt adds to a request is no fault.
const SERVICE: Most = Most { head: 65_536, fields: 64, target: 4096 };
/// Nothing here takes long, and no limit on time is that short.
const PATIENCE: Duration = Duration::from_secs(4);
/// HTTP/2, and what may become it, is another matter.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|data: &[u8]| {
    if data.starts_with(PREFACE) || PREFACE.starts_with(data) {
        return;
    }
    let answers = send(data);
    let (sent, end) = read_all(data, &CLIENT);
    let got = SERVICE_LOG.taken();
    let mut candidates = sent.iter();
    for request in &got {
        let same = |sent: &&Request| sent.method == request.method && sent.body == request.body;
        assert!(candidates.any(|sent| same(&sent)), "nobody sent, or not in this order: {request:?}");
        assert!(request.target.starts_with('/') && !request.target.contains('#'), "{request:?}");
        assert_eq!(request.fields.iter().filter(|(name, _)| name == "via").count(), 1, "{request:?}");
        assert!(
            request.trailers.iter().all(|(name, _)| !matches!(&**name, "content-length" | "transfer-encoding" | "host")),
            "{request:?}"
        );
    }
    if sent.is_empty() && matches!(end, End::Refused(_)) {
        assert!(answers.starts_with(b"HTTP/1.1 4"), "{end:?} was answered {:?}", String::from_utf8_lossy(&answers));
    }
});

/// Sends all, says that this is all, and reads until furt closes.
fn send(data: &[u8]) -> Vec<u8> {
    let mut client = TcpStream::connect(*FURT).expect("furt listens");
    client.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    // Furt may have closed before all is sent.
    let _ = client.write_all(data).and_then(|()| client.shutdown(Shutdown::Write));
    let mut answers = Vec::new();
    if let Err(error) = client.read_to_end(&mut answers) {
        panic!("{error} after {:?}", String::from_utf8_lossy(&answers));
    }
    answers
}

/// A data plane with one public route, which runs as long as the process.
static FURT: LazyLock<SocketAddr> = LazyLock::new(|| {
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = service.local_addr().expect("bound");
    thread::spawn(move || service.incoming().flatten().for_each(|stream| drop(thread::spawn(move || serve(stream)))));
    let route = v1::StaticRoute {
        name: "any".into(),
        methods: vec!["*".into()],
        path: "/*".into(),
        public: true,
        url: format!("http://{address}"),
        addresses: vec![address.to_string()],
        ..Default::default()
    };
    // The digest of a part is what its sender says it is.
    let routes = v1::StaticRouteSet { routes: vec![route], digest: 1 };
    let update =
        v1::WatchResponse { epoch: "e".into(), version: 1, whole: true, static_routes: Some(routes), digest: 1, ..Default::default() };
    let view = apply(&View::empty(configuration()), update).expect("a sound snapshot");
    assert_eq!(view.notes.len(), 0, "{:?}", view.notes);
    let furt = DataPlane::bind(Current::new(view), Suspicions::default()).expect("a port");
    let address = furt.local_addr();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        panic!("furt ended: {:?}", runtime.block_on(furt.run(CancellationToken::new())));
    });
    address
});

fn configuration() -> furt_data_plane::config::Config {
    let around = furt::config::Surroundings {
        environment: &|_| None,
        read_file: &|_: &Path| Ok(String::new()),
        open_to_all: &|_| false,
        system_authorities: &Vec::new,
        now: Duration::ZERO,
        descriptors: Some(1024),
        cores: 1,
        process_id: 1,
    };
    furt::config::parse(CONFIG, "furt.conf", &around).unwrap_or_else(|report| panic!("{:?}", report.errors)).data
}

static SERVICE_LOG: Log = Log { seen: Mutex::new(Seen { requests: Vec::new(), begun: 0 }), changed: Condvar::new() };

/// What the service has got.
struct Log {
    seen: Mutex<Seen>,
    changed: Condvar,
}

struct Seen {
    /// Whole requests, in the order of their ends.
    requests: Vec<Request>,
    /// Connections with a part of one.
    begun: usize,
}

impl Log {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came since the last call, once no request is left half sent.
    fn taken(&self) -> Vec<Request> {
        let (mut seen, late) =
            self.changed.wait_timeout_while(self.seen(), PATIENCE, |seen| seen.begun > 0).unwrap_or_else(PoisonError::into_inner);
        assert!(!late.timed_out(), "furt left a request to the service half sent");
        std::mem::take(&mut seen.requests)
    }
}

/// One connection of the service: answers each whole request, and is sure that nothing else comes.
fn serve(mut stream: TcpStream) {
    let (mut bytes, mut piece, mut was_begun) = (Vec::new(), [0; 16_384], false);
    loop {
        // However a connection ends, what was not whole by then is none.
        let length = stream.read(&mut piece).unwrap_or(0);
        bytes.extend(&piece[..length]);
        let (requests, end) = read_all(&bytes, &SERVICE);
        assert!(!matches!(end, End::Refused(_)), "{end:?} of what furt sent: {:?}", String::from_utf8_lossy(&bytes));
        let is_begun = end == End::Inside && length > 0;
        // One at a time: furt sends none before it has the answer to the last.
        assert!(requests.is_empty() || (requests.len() == 1 && !is_begun), "{:?}", String::from_utf8_lossy(&bytes));
        let mut seen = SERVICE_LOG.seen();
        seen.begun = seen.begun + usize::from(is_begun) - usize::from(was_begun);
        was_begun = is_begun;
        let is_head = requests.first().is_some_and(|request| request.method == "HEAD");
        let is_whole = !requests.is_empty();
        seen.requests.extend(requests);
        drop(seen);
        SERVICE_LOG.changed.notify_all();
        if length == 0 {
            return;
        }
        if is_whole {
            bytes.clear();
            let answer =
                if is_head { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" } else { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" };
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}
