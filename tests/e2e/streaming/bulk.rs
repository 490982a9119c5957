//! A service for bodies of any length, which keeps none of them, and the bytes they are made of.

use std::{
    convert::Infallible,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};

/// Every body is this many bytes, again and again, and perhaps a part of them.
pub const BLOCK: u64 = 64 * 1024;

/// The bytes of a block, so often that any piece of a body can be held against them.
pub struct Pattern(Vec<u8>);

impl Default for Pattern {
    fn default() -> Self {
        // No period that divides a buffer's size: a piece in the wrong place is seen.
        let block: Vec<u8> = (0..BLOCK).map(|at| u8::try_from(at % 251).expect("less than 251")).collect();
        Self(block.repeat(8))
    }
}

impl Pattern {
    pub fn block(&self) -> &[u8] {
        &self.0[..BLOCK as usize]
    }

    /// Whether a body has these bytes at this place.
    pub fn is_at(&self, offset: u64, mut piece: &[u8]) -> bool {
        let start = (offset % BLOCK) as usize;
        let most = self.0.len() - start;
        let first = &piece[..piece.len().min(most)];
        if self.0[start..start + first.len()] != *first {
            return false;
        }
        piece = &piece[first.len()..];
        piece.is_empty() || self.is_at(offset + first.len() as u64, piece)
    }
}

/// A body made of blocks, as somebody asks for them.
pub struct Blocks {
    block: Bytes,
    left: u64,
}

impl Blocks {
    pub fn new(size: u64) -> Self {
        Self { block: Bytes::copy_from_slice(Pattern::default().block()), left: size }
    }
}

impl Body for Blocks {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.block.slice(..self.left.min(BLOCK) as usize);
        self.left -= piece.len() as u64;
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }
}

/// A head, byte by byte, so that nothing of the body is taken.
pub fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.extend(byte);
    }
    String::from_utf8(head).expect("text")
}

/// `GET /b/N`: N bytes. `POST /b/up`: how many came. `POST /b/stuck`: never reads the body.
pub struct Bulk {
    pub address: SocketAddr,
    /// Bytes of bodies that its sockets took.
    pub sent: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Bulk {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, sent) = (listener.local_addr().expect("bound"), Arc::new(AtomicU64::new(0)));
        let (stopped, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let bulk = Self { address, sent: sent.clone(), stopped: stopped.clone(), open: open.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let sent = sent.clone();
                open.lock().unwrap_or_else(PoisonError::into_inner).push(stream.try_clone().expect("a descriptor"));
                // However the connection ends, the client is who tells of it.
                std::thread::spawn(move || serve(stream, &sent));
            }
        });
        bulk
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accept call, which then sees the flag.
        let _ = TcpStream::connect(self.address);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // furt may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(stream: TcpStream, sent: &AtomicU64) -> io::Result<()> {
    let (mut reader, mut stream, pattern) = (BufReader::with_capacity(256 * 1024, stream.try_clone()?), stream, Pattern::default());
    loop {
        let (mut head, mut line) = (String::new(), String::new());
        while reader.read_line(&mut line)? > 2 {
            head += &std::mem::take(&mut line);
        }
        let Some(target) = head.split(' ').nth(1) else { return Ok(()) };
        let last = target.rsplit('/').next().unwrap_or_default();
        if last == "stuck" {
            std::thread::park();
        }
        if let Ok(mut left) = last.parse::<u64>() {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n").as_bytes())?;
            while left > 0 {
                let count = stream.write(&pattern.block()[..left.min(BLOCK) as usize])?;
                sent.fetch_add(count as u64, Ordering::SeqCst);
                left -= count as u64;
            }
            continue;
        }
        let length = head.to_lowercase().split_once("content-length: ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
        let got = match length {
            Some(length) => swallow(&mut reader, &pattern, 0, length)?,
            None => swallow_chunks(&mut reader, &pattern)?,
        };
        let answer = got.to_string();
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).as_bytes())?;
    }
}

/// Reads `length` bytes that begin at `offset` of a body; where they end.
fn swallow(reader: &mut impl BufRead, pattern: &Pattern, mut offset: u64, length: u64) -> io::Result<u64> {
    let end = offset + length;
    while offset < end {
        let buffer = reader.fill_buf()?;
        let count = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        if count == 0 || !pattern.is_at(offset, &buffer[..count]) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        reader.consume(count);
        offset += count as u64;
    }
    Ok(end)
}

fn swallow_chunks(reader: &mut impl BufRead, pattern: &Pattern) -> io::Result<u64> {
    let mut offset = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        offset = swallow(reader, pattern, offset, size)?;
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(offset);
        }
    }
}
