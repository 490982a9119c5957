//! What follows a 101: bytes both ways until both sides have said all (RFC 9110 §7.8).
//!
//! Here: the pump. It holds no memory while both sides are silent, which they may be for as long as they like. Not
//! here: who may switch, and to what.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use std::future::poll_fn;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use crate::{
    client_io::ClientIo,
    exchange::Exchange,
    upstream::{Lease, Switched},
    watch::{Phase, Watch},
};

/// Bytes that are moved at once.
const PIECE: usize = 16 * 1024;
/// Pieces that are moved before others have a turn.
const TURN: usize = 16;

/// A client and a service that have switched protocols, before both connections are free of HTTP.
pub struct Tunnel {
    /// Where the service's connection comes out.
    pub upstream: oneshot::Receiver<Switched>,
    /// Keeps it from being closed before it does.
    pub lease: Lease,
    /// The exchange; it ends with the tunnel.
    pub exchange: Box<Exchange>,
}

impl Tunnel {
    /// Moves bytes until both sides are done or one of them fails. `read`: bytes of the client's that hyper read.
    pub async fn run(self, mut client: ClientIo, read: Bytes, watch: Rc<Watch>) {
        let Self { upstream, lease, mut exchange } = self;
        let Ok((mut service, said)) = upstream.await else { return };
        drop(lease);
        client.switched(read);
        service.keep_alive();
        let mut up = Pump::default();
        let mut down = Pump { left: said.into(), ..Pump::default() };
        let both = poll_fn(|context| {
            let up = up.poll(context, &mut client, &mut service);
            let down = down.poll(context, &mut service, &mut client);
            if up.is_ready() != down.is_ready() && watch.phase() != Phase::Answer {
                // One side is done. The other may go on, but no longer in silence.
                watch.enter(Phase::Answer, exchange.worker().coarse.now());
            }
            match (up, down) {
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
                _ => Poll::Pending,
            }
        });
        // Whoever broke off, the other learns it by the end of its connection.
        let ended = both.await;
        exchange.sent(usize::try_from(down.moved).unwrap_or(usize::MAX));
        match ended {
            Ok(()) => exchange.complete(),
            Err(_) => exchange.broke_off("tunnel-broke-off"),
        }
    }
}

/// One direction.
#[derive(Default)]
struct Pump {
    /// Read and not written yet.
    left: BytesMut,
    moved: u64,
    ended: bool,
    closed: bool,
    /// Something was written that the other side may still hold back.
    unflushed: bool,
}

impl Pump {
    fn poll<F, T>(&mut self, context: &mut Context<'_>, from: &mut F, to: &mut T) -> Poll<io::Result<()>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        for _ in 0..TURN {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            while !self.left.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(context, &self.left))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.left.advance(written);
                self.moved += written as u64;
                self.unflushed = true;
            }
            // Nothing is kept of a buffer that is empty.
            self.left = BytesMut::new();
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(context))?;
                self.closed = true;
                continue;
            }
            let mut piece = [0; PIECE];
            let mut buffer = ReadBuf::new(&mut piece);
            match Pin::new(&mut *from).poll_read(context, &mut buffer) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    if self.unflushed {
                        self.unflushed = Pin::new(&mut *to).poll_flush(context)?.is_pending();
                    }
                    return Poll::Pending;
                }
            }
            match buffer.filled() {
                [] => self.ended = true,
                bytes => self.left.extend_from_slice(bytes),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn one_side_may_end_before_the_other_and_all_arrives() {
        let (mut near, mut from) = tokio::io::duplex(64);
        let (mut to, mut far) = tokio::io::duplex(64);
        let sent: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
        let mut pump = Pump::default();
        let (moved, (), received) = tokio::join!(
            async { poll_fn(|context| pump.poll(context, &mut from, &mut to)).await },
            async {
                near.write_all(&sent).await.unwrap();
                near.shutdown().await.unwrap();
            },
            async {
                let mut received = Vec::new();
                far.read_to_end(&mut received).await.unwrap();
                received
            }
        );
        assert!(moved.is_ok() && received == sent);
        assert_eq!((pump.moved, pump.left.capacity()), (100_000, 0));
    }
}
