//! HTTP/2 in, HTTP/1.1 out, over real sockets: whatever the fields, pieces and trailers of a request, the service gets
//! none or exactly one well-formed request that says what was said.
#![no_main]

use std::{net::SocketAddr, sync::OnceLock};

use furt::{Furt, config};
use libfuzzer_sys::fuzz_target;
use tokio_util::sync::CancellationToken;

#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../../tests/e2e/h2_recorder.rs"]
mod h2_recorder;
#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../../tests/e2e/h2_wire.rs"]
mod h2_wire;

use h2_recorder::Recorder;
use h2_wire::{DATA, END_HEADERS, END_STREAM, HEADERS, Http2, Outcome, block, frame, literal};

/// Names that mean something to someone; the others are the input's own.
const NAMES: [&str; 24] = [
    ":method",
    ":scheme",
    ":path",
    ":authority",
    ":status",
    ":protocol",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "cookie",
    "upgrade",
    "expect",
    "via",
    "x-api-key",
    "x-api-key-name",
    "x_api_key_name",
    "x-forwarded-for",
    "x-request-id",
    "keep-alive",
    "traceparent",
    "content-type",
];

/// A furt with one route for everyone, before a service that keeps what it gets.
struct Front {
    furt: SocketAddr,
    service: Recorder,
}

fn front() -> &'static Front {
    static FRONT: OnceLock<Front> = OnceLock::new();
    FRONT.get_or_init(|| {
        let service = Recorder::start();
        let text = format!(
            "[server]\nhost = 127.0.0.1\nport = 0\nstate_dir = /nonexistent\nlog_requests = false\nworkers = 1\nbody_idle_timeout = 500ms\n\
             [gateway]\nenabled = false\n[route \"w\"]\nmethods = *\npath = /w/*\nurl = http://{}\npublic = true\n",
            service.address
        );
        let (told, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let config = config::parse_here(&text, "furt.conf").expect("a good furt.conf");
                let furt = Furt::bind(config).await.expect("free ports");
                told.send(furt.public_addr()).expect("somebody waits");
                furt.run(CancellationToken::new()).await.expect("it runs until the end");
            });
        });
        Front { furt: address.recv().expect("it starts"), service }
    })
}

/// Takes a piece whose length comes first.
fn piece<'d>(data: &mut &'d [u8]) -> Option<&'d [u8]> {
    let (length, rest) = data.split_first()?;
    let (piece, rest) = rest.split_at(usize::from(*length).min(rest.len()));
    *data = rest;
    Some(piece)
}

/// Takes fields: an index into the names or, beyond them, a name, then a value. The last of them says that it is.
fn fields(data: &mut &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    while let Some((which, rest)) = data.split_first() {
        *data = rest;
        let name = match NAMES.get(usize::from(*which & 0x3F)) {
            Some(name) => name.as_bytes(),
            None => piece(data).unwrap_or_default(),
        };
        block.extend(literal(name, piece(data).unwrap_or_default()));
        if which & 0x80 != 0 {
            break;
        }
    }
    block
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, mut rest)) = data.split_first() else { return };
    let front = front();
    let mut head = Vec::new();
    // Most inputs begin as good requests do, or hardly one would get anywhere.
    for (bit, field) in [(1, (":method", "POST")), (2, (":scheme", "http")), (4, (":path", "/w/x")), (8, (":authority", "h"))] {
        if how & bit == 0 {
            head.extend(block(&[field]));
        }
    }
    head.extend(fields(&mut rest));
    let (with_body, with_trailers) = (how & 16 == 0, how & 32 != 0);
    let end = |last: bool| if last { END_STREAM } else { 0 };
    let mut bytes = frame(HEADERS, END_HEADERS | end(!with_body && !with_trailers), 1, &head);
    let mut body = Vec::<u8>::new();
    if with_body {
        for last in [false, true] {
            let piece = piece(&mut rest).unwrap_or_default();
            body.extend(piece);
            bytes.extend(frame(DATA, end(last && !with_trailers), 1, piece));
        }
    }
    if with_trailers {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&mut rest)));
    }
    let mut client = Http2::new(front.furt);
    client.write(&bytes);
    let outcome = client.outcome(1);
    drop(client);

    assert_eq!(front.service.faults(), [""; 0], "{outcome:?}");
    let seen = front.service.take();
    assert!(seen.len() <= 1, "one request became {}: {seen:?}", seen.len());
    for seen in seen {
        assert!(seen.target.starts_with(b"/w/"), "{seen:?}");
        assert_eq!(seen.body, body, "{seen:?}");
        for name in ["x-api-key", "x-api-key-name", "x_api_key_name", "transfer-encoding", "connection"] {
            assert!(seen.trailers.iter().all(|(trailer, _)| trailer != name.as_bytes()), "{seen:?}");
        }
        assert!(seen.values("x-api-key-name").is_empty() && seen.values("x-api-key").is_empty(), "{seen:?}");
    }
    // 508: `via` says that it has been here.
    let right = !matches!(outcome, Outcome::Answer(status) if ![200, 400, 404, 414, 431, 508].contains(&status));
    assert!(right, "{outcome:?}");
});
