//! Floods over HTTP/2: while a few connections send what is cheap to send and dear to take, other clients are served in
//! time, furt's memory stays where it was, and afterwards all is as quick as before.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::Instant,
};

use crate::{
    client::{Client, Request},
    h2_wire::{
        ACK, CANCEL, CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADER_TABLE_SIZE, HEADERS, Http2, INITIAL_WINDOW_SIZE,
        NO_ERROR, PADDED, PING, PRIORITY, SETTINGS, WHOLE, block, frame, headers, integer, literal, reset, settings, window_update,
    },
    upstream::ok,
    world::{Conf, World, block_on},
};

/// How long a flood lasts, and over how many connections at once it comes.
const FLOOD: Duration = Duration::from_millis(1_500);
const FLOODERS: usize = 3;
/// What must hold of the other clients, and of furt.
const WORST: Duration = Duration::from_millis(1_500);
const GROWTH: usize = 64 << 20;

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/w/x"), (":authority", "h")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":path", "/w/x"), (":authority", "h")];
const HANG: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/w/hang"), (":authority", "h")];
const BIG: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/w/big"), (":authority", "h")];

/// A service that keeps nothing of what it was asked: `/w/big` has 200,000 bytes, `/w/hang` and whatever has a body are
/// read to their end and not answered.
struct Service {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Service {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("a socket takes it");
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let serve = async {
                    loop {
                        if let Ok((stream, _)) = listener.accept().await {
                            tokio::spawn(Self::serve(stream));
                        }
                    }
                };
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, _stop: stop }
    }

    async fn serve(mut stream: TcpStream) -> Option<()> {
        let (good, big) = (ok("good"), ok([b'b'; 200_000]));
        let mut bytes = Vec::new();
        while stream.read_buf(&mut bytes).await.ok()? > 0 {
            let answer = match bytes.get(..9) {
                Some(b"GET /w/x ") => &good,
                Some(b"GET /w/bi") => &big,
                None => continue,
                Some(_) => {
                    bytes.clear();
                    continue;
                }
            };
            // One after the other they come, and without a body.
            if bytes.ends_with(b"\r\n\r\n") {
                bytes.clear();
                stream.write_all(answer).await.ok()?;
            }
        }
        None
    }
}

/// A way to flood.
struct Flood {
    /// What is said once on each connection.
    begin: Vec<u8>,
    /// What is said again and again: the `n`th piece.
    piece: Box<dyn Fn(u32) -> Vec<u8> + Sync>,
    ends: Ends,
}

/// What becomes of each connection of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// furt ends it with ENHANCE_YOUR_CALM.
    Calmed,
    /// It is held as long as its client wants: what it sends is no flood, and costs no more than it may.
    Held,
    /// Either, by how fast it comes.
    Either,
}
use Ends::{Calmed, Either, Held};

/// The same bytes again and again, until furt has had enough.
fn calmed(begin: Vec<u8>, again: Vec<u8>) -> Flood {
    Flood { begin, piece: Box::new(move |_| again.clone()), ends: Calmed }
}

/// Fifty streams a piece.
fn streams(of: impl Fn(u32) -> Vec<u8> + Sync + 'static) -> Box<dyn Fn(u32) -> Vec<u8> + Sync> {
    Box::new(move |round| (0..50).flat_map(|at| of(2 * (50 * round + at) + 1)).collect())
}

#[derive(Debug, Default)]
struct Endings {
    calmed: usize,
    /// Ended without the last words, which a reset may take along.
    closed: usize,
    held: usize,
    other: Vec<u32>,
}

struct Arena {
    furt: World,
    _service: Service,
    /// One flood at a time: what two of them cost together is not the question.
    _alone: MutexGuard<'static, ()>,
}

impl Arena {
    fn start() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let service = Service::start();
        let route = format!("[route \"w\"]\nmethods = *\npath = /w/*\nurl = http://{}\npublic = true\n", service.address);
        // One line for each request of a flood would measure the log.
        Self { furt: Conf::new().server("log_requests = false").more(&route).start(), _service: service, _alone: alone }
    }

    /// What furt holds of the machine's memory.
    fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.furt.id())).expect("furt runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line for it");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    /// How long good requests take, one after the other, until there is a reason to stop.
    fn good_requests(&self, until: impl Fn(usize) -> bool) -> Vec<Duration> {
        let request = Request::get("/w/x");
        let mut client = Client::new(self.furt.public);
        let mut took = Vec::new();
        while !until(took.len()) {
            let began = Instant::now();
            assert_eq!(client.ask(&request).text(), "good");
            took.push(began.elapsed());
        }
        took.sort_unstable();
        took
    }

    fn endure(&self, what: &str, flood: &Flood) {
        let quiet = self.good_requests(|count| count == 100);
        let before = self.memory();
        let (over, most, endings) = (AtomicBool::new(false), Mutex::new(before), Mutex::new(Endings::default()));
        let during = std::thread::scope(|scope| {
            let flooders: Vec<_> = (0..FLOODERS).map(|_| scope.spawn(|| flood.run(self.furt.public, &endings))).collect();
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let now = self.memory();
                    let mut most = most.lock().expect("nobody panics with it");
                    *most = now.max(*most);
                    drop(most);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let during = self.good_requests(|_| flooders.iter().all(std::thread::ScopedJoinHandle::is_finished));
            over.store(true, Ordering::Relaxed);
            during
        });
        let after = self.good_requests(|count| count == 100);
        let endings = endings.into_inner().expect("nobody panicked");
        let grown = most.into_inner().expect("nobody panicked").saturating_sub(before);
        let p99 = during[during.len() * 99 / 100];
        let told = format!(
            "{what}: {} good requests beside it, p99 {p99:?}, median {:?}, before {:?}, after {:?}; {} KiB grown; {endings:?}",
            during.len(),
            during[during.len() / 2],
            quiet[50],
            after[50],
            grown >> 10,
        );
        eprintln!("{told}");
        assert!(p99 < WORST, "{told}");
        assert!(grown < GROWTH, "{told}");
        // Ten times, and what a busy machine adds: a flood that went on would take far more.
        assert!(after[50] < quiet[50] * 10 + Duration::from_millis(20), "{told}");
        assert!(endings.other.is_empty(), "{told}");
        match flood.ends {
            Calmed => assert!(endings.calmed > 0 && endings.held == 0, "{told}"),
            Held => assert!(endings.held == FLOODERS && endings.calmed + endings.closed == 0, "{told}"),
            Either => {}
        }
        let panicked: Vec<_> = self.furt.log().into_iter().filter(|line| line.contains("panic")).collect();
        assert_eq!(panicked, [""; 0], "{what}");
    }
}

impl Flood {
    /// Floods on one connection after the other until it is time to stop.
    fn run(&self, furt: SocketAddr, endings: &Mutex<Endings>) {
        let end = Instant::now() + FLOOD;
        while Instant::now() < end {
            let code = self.connection(furt, end);
            let mut endings = endings.lock().expect("nobody panics with it");
            match code {
                Some(Some(ENHANCE_YOUR_CALM)) => endings.calmed += 1,
                Some(Some(code)) => endings.other.push(code),
                Some(None) => endings.closed += 1,
                None => endings.held += 1,
            }
        }
    }

    /// How furt ended it: with this code, without one; `None`: it did not.
    fn connection(&self, furt: SocketAddr, end: Instant) -> Option<Option<u32>> {
        let mut client = Http2::with(furt, &[]);
        client.patience(Duration::from_millis(1));
        let mut open = client.try_write(&self.begin).is_ok();
        for round in 0.. {
            let piece = (self.piece)(round);
            // What does not fit in now goes with the next piece: a flood is in no hurry to be understood.
            open = open && (client.try_write(&piece).is_ok() || Instant::now() > end);
            loop {
                match client.try_frame() {
                    Ok(Some(frame)) if frame.kind == GOAWAY && frame.code() != NO_ERROR => return Some(Some(frame.code())),
                    Ok(Some(_)) => {}
                    Ok(None) => return Some(None),
                    Err(_) => break,
                }
            }
            // A connection that furt is about to end is waited for.
            let more = if self.ends == Calmed { WORST } else { Duration::ZERO };
            if !open || Instant::now() > end + more {
                break;
            }
        }
        None
    }
}

#[test]
fn streams_opened_and_reset() {
    let arena = Arena::start();
    let rapid = streams(|stream| [headers(WHOLE, stream, &GET), reset(stream, CANCEL)].concat());
    arena.endure("rapid reset", &Flood { begin: Vec::new(), piece: rapid, ends: Calmed });
    // CVE-2025-8671: the client has furt reset them.
    let overflow = streams(|stream| [headers(WHOLE, stream, &HANG), window_update(stream, 0x7FFF_FFFF)].concat());
    arena.endure("made you reset, by a window", &Flood { begin: Vec::new(), piece: overflow, ends: Calmed });
    let length = streams(|stream| {
        let head = [&POST[..], &[("content-length", "1")]].concat();
        [headers(0, stream, &head), frame(DATA, 0, stream, b"xx")].concat()
    });
    arena.endure("made you reset, by a length", &Flood { begin: Vec::new(), piece: length, ends: Calmed });
    let refused = streams(|stream| headers(WHOLE, stream, &HANG));
    arena.endure("more streams than allowed", &Flood { begin: Vec::new(), piece: refused, ends: Calmed });
}

#[test]
fn frames_that_ask_for_an_answer_or_for_nothing() {
    let arena = Arena::start();
    let ping = |flags| frame(PING, flags, 0, &[7; 8]).repeat(500);
    arena.endure("pings", &calmed(Vec::new(), ping(0)));
    arena.endure("answers to pings", &calmed(Vec::new(), ping(ACK)));
    let change = [settings(&[(INITIAL_WINDOW_SIZE, 1)]), settings(&[(INITIAL_WINDOW_SIZE, 1 << 20)])].concat();
    let held: Vec<u8> = (0..100).flat_map(|at| headers(WHOLE, 2 * at + 1, &HANG)).collect();
    arena.endure("settings over 100 streams", &calmed(held, change.repeat(100)));
    arena.endure("settings of many values", &calmed(Vec::new(), frame(SETTINGS, 0, 0, &[0, 0xBA].repeat(8_190))));
    arena.endure("priorities", &calmed(Vec::new(), frame(PRIORITY, 0, 3, &[0, 0, 0, 5, 1]).repeat(500)));
    arena.endure("frames of an unknown type", &calmed(Vec::new(), frame(0xBA, 0, 0, &[0; 100]).repeat(100)));
    arena.endure("goaways", &calmed(headers(WHOLE, 1, &HANG), frame(GOAWAY, 0, 0, &[0; 8]).repeat(500)));
}

#[test]
fn windows() {
    let arena = Arena::start();
    arena.endure("updates of the connection", &calmed(Vec::new(), window_update(0, 100).repeat(500)));
    arena.endure("updates of a stream", &calmed(headers(WHOLE, 1, &HANG), window_update(1, 100).repeat(500)));
    // CVE-2019-9511: an answer read byte by byte.
    let begin = [settings(&[(INITIAL_WINDOW_SIZE, 0)]), headers(WHOLE, 1, &BIG)].concat();
    arena.endure("an answer in bytes", &calmed(begin, window_update(1, 1).repeat(500)));
    // CVE-2019-9517: as many answers as there may be, and room for none.
    let begin: Vec<u8> = (0..128).flat_map(|at| headers(WHOLE, 2 * at + 1, &BIG)).collect();
    let begin = [settings(&[(INITIAL_WINDOW_SIZE, 0)]), begin].concat();
    arena.endure("128 answers and no window", &Flood { begin, piece: Box::new(|_| Vec::new()), ends: Held });
    let begin: Vec<u8> = (0..128).flat_map(|at| headers(WHOLE, 2 * at + 1, &BIG)).collect();
    let begin = [settings(&[(INITIAL_WINDOW_SIZE, 1)]), begin].concat();
    arena.endure("128 answers and a window of one byte", &Flood { begin, piece: Box::new(|_| Vec::new()), ends: Held });
}

#[test]
fn bodies_in_no_pieces() {
    let arena = Arena::start();
    let begin = headers(0, 1, &POST);
    arena.endure("empty DATA", &calmed(begin.clone(), frame(DATA, 0, 1, &[]).repeat(500)));
    let padding = frame(DATA, PADDED, 1, &[&[255][..], &[0; 255]].concat());
    arena.endure("padding", &calmed(begin.clone(), padding.repeat(50)));
    let byte = frame(DATA, 0, 1, b"x").repeat(500);
    arena.endure("DATA of a byte", &Flood { begin, piece: Box::new(move |_| byte.clone()), ends: Either });
}

#[test]
fn header_blocks() {
    let arena = Arena::start();
    let begin = frame(HEADERS, END_STREAM, 1, &block(&GET));
    arena.endure("empty CONTINUATION", &calmed(begin.clone(), frame(CONTINUATION, 0, 1, &[]).repeat(500)));
    let more: Vec<u8> = literal(b"x", &[b'y'; 100]).repeat(150);
    arena.endure("large CONTINUATION", &calmed(begin, frame(CONTINUATION, 0, 1, &more)));
    // Three thousand bytes in the table; a byte of a block for each time they are meant.
    let add = [&[0x40, 1, b'z'][..], &integer(0, 7, 3_000), &[b'z'; 3_000]].concat();
    let begin = [settings(&[(HEADER_TABLE_SIZE, 0)]), frame(HEADERS, WHOLE, 1, &[block(&GET), add].concat())].concat();
    let bomb = move |times: usize, head: &'static [(&str, &str)]| {
        streams(move |stream| frame(HEADERS, WHOLE, stream + 2, &[block(head), vec![0x80 | 62; times]].concat()))
    };
    arena.endure("a header bomb far beyond the limit", &Flood { begin: begin.clone(), piece: bomb(8_000, &GET), ends: Calmed });
    let flood = |times, head, ends| Flood { begin: begin.clone(), piece: bomb(times, head), ends };
    // More of them at once than there may be streams are refused, which may be too often.
    arena.endure("a header bomb beyond the limit", &flood(60, &GET, Either));
    arena.endure("a header bomb up to the limit", &flood(20, &GET, Either));
    let waiting = flood(20, &HANG, Held);
    let begin = [begin.clone(), (waiting.piece)(0), (waiting.piece)(1)].concat();
    arena.endure("header bombs that wait for their answer", &Flood { begin, piece: Box::new(|_| Vec::new()), ends: Held });
}
