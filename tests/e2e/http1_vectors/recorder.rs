//! A service that keeps every request it gets, reads them with a reader of its own, and answers each with its target.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::reference::{End, Most, Request, read_all};

/// What furt adds to a request is no fault.
const MOST: Most = Most { head: 1 << 20, fields: 1000, target: 1 << 16 };
/// Furt has given a request up long before.
const PATIENCE: Duration = Duration::from_secs(20);

/// Listens until it is dropped.
pub struct Recorder {
    pub address: SocketAddr,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    /// Whole requests, in the order of their ends.
    requests: Vec<Request>,
    /// Connections with a part of one.
    begun: usize,
    /// What was no request, or came too early.
    faults: Vec<String>,
    is_over: bool,
}

impl Recorder {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let log = Arc::<Log>::default();
        let shared = log.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.seen().is_over {
                    return;
                }
                let log = shared.clone();
                thread::spawn(move || serve(stream, &log));
            }
        });
        Self { address, log }
    }

    /// The requests since the last call, once none is left half sent.
    #[track_caller]
    pub fn taken(&self) -> Vec<Request> {
        let waited = self.log.changed.wait_timeout_while(self.log.seen(), PATIENCE, |seen| seen.begun > 0);
        let (mut seen, late) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!late.timed_out(), "a request to the service was left half sent");
        assert_eq!(seen.faults, [""; 0]);
        std::mem::take(&mut seen.requests)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.log.seen().is_over = true;
        // Wakes the accept call, which then sees that.
        let _ = TcpStream::connect(self.address);
    }
}

impl Log {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection.
fn serve(mut stream: TcpStream, log: &Log) {
    let (mut bytes, mut piece, mut was_begun) = (Vec::new(), [0; 16_384], false);
    loop {
        // However a connection ends, what was not whole by then is none.
        let length = stream.read(&mut piece).unwrap_or(0);
        bytes.extend_from_slice(&piece[..length]);
        let (requests, end) = read_all(&bytes, &MOST);
        let is_begun = end == End::Inside && length > 0;
        let answers: Vec<_> = requests.iter().map(answer).collect();
        let mut seen = log.seen();
        // One at a time: furt sends none before it has the answer to the last.
        let is_fault = matches!(end, End::Refused(_)) || requests.len() + usize::from(is_begun) > 1;
        if is_fault {
            seen.faults.push(format!("{end:?}: {:?}", String::from_utf8_lossy(&bytes)));
        }
        seen.begun = seen.begun + usize::from(is_begun) - usize::from(was_begun);
        was_begun = is_begun;
        seen.requests.extend(requests);
        drop(seen);
        log.changed.notify_all();
        if length == 0 || is_fault {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
        if !answers.is_empty() {
            bytes.clear();
            if stream.write_all(&answers.concat()).is_err() {
                return;
            }
        }
    }
}

fn answer(request: &Request) -> Vec<u8> {
    let body = if request.method == "HEAD" { "" } else { &request.target };
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", request.target.len()).into_bytes()
}
