//! Ports that nobody else is given.
//!
//! A port that was merely found free is anybody's until a program listens on it, and again while that program is
//! killed and started: the kernel may give it to another test's port 0. One of these is bound all the time, without
//! listening: the kernel gives it to nobody who does not name it, whoever names it can listen on it, for here as there
//! `SO_REUSEADDR` is set, and as long as nobody does, it refuses connections.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use tokio::net::TcpSocket;

/// A port of 127.0.0.1, one's own until it is dropped.
pub struct Port {
    pub address: SocketAddr,
    _bound: TcpSocket,
}

impl Port {
    pub fn take() -> Self {
        let bound = TcpSocket::new_v4().expect("a socket");
        bound.set_reuseaddr(true).expect("a socket takes it");
        bound.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("some port is free");
        Self { address: bound.local_addr().expect("a bound socket"), _bound: bound }
    }

    pub fn number(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

#[test]
fn a_port_refuses_until_one_listens_who_names_it_and_is_still_ours_afterwards() {
    let port = Port::take();
    for _ in 0..2 {
        let refused = TcpStream::connect(port.address).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let listener = TcpListener::bind(port.address).expect("it can be named");
        let client = TcpStream::connect(port.address).expect("somebody listens");
        // Closed here first, so that what is left of it waits on this port.
        drop(listener.accept().expect("a connection"));
        drop((listener, client));
    }
}
