//! What of this machine no upstream may be: furt's own listeners.
//!
//! Here: the question, and the answer of the machine that furt runs on. Not here: what follows (`admission`).

use std::net::{IpAddr, UdpSocket};

use crate::config::Config;

/// What furt listens on, and which addresses are this machine's.
pub trait Machine {
    /// Whether furt has a listener on this port.
    fn listens_on(&self, port: u16) -> bool;
    /// Whether the address is one of this machine's own.
    fn owns(&self, address: IpAddr) -> bool;
}

/// The machine that furt runs on.
pub struct ThisMachine<'a>(&'a Config);

impl<'a> ThisMachine<'a> {
    /// With the listeners of a configuration.
    pub fn of(config: &'a Config) -> Self {
        Self(config)
    }
}

impl Machine for ThisMachine<'_> {
    fn listens_on(&self, port: u16) -> bool {
        port != 0 && (self.0.listen.port() == port || self.0.public.is_some_and(|public| public.port() == port))
    }
    fn owns(&self, address: IpAddr) -> bool {
        // One can bind to none but one's own.
        UdpSocket::bind((address, 0)).is_ok()
    }
}
