//! The registry: the one lock around the services; admit, apply and publish in one critical section.
//!
//! Here: what gRPC and JSON both call. Not here: decisions, wire shapes of HTTP, sockets.

use furt_proto::v1;

use crate::{
    config::Config,
    identity::Peer,
    refusal::{Code, Fault, Refusal},
    snapshots::Snapshots,
};

/// The registry; clones share it.
#[derive(Clone)]
pub struct Registry {}

impl Registry {
    /// Empty, with a new epoch.
    pub fn new(config: Config) -> Self {
        unimplemented!("{config:?}")
    }
    /// What furt.conf says.
    pub fn config(&self) -> &Config {
        unimplemented!()
    }
    /// This life of the control plane.
    pub fn epoch(&self) -> &str {
        unimplemented!()
    }
    /// Registers, renews, changes or dry-runs. `faults` is what decoding found already.
    pub async fn register(&self, _peer: &Peer, _request: v1::RegisterRequest, _faults: Vec<Fault>) -> Result<v1::RegisterResponse, Refusal> {
        Err(Refusal::one(Code::Unavailable, ""))
    }
    /// Takes one instance out, or a whole service.
    pub async fn deregister(&self, _peer: &Peer, _request: v1::DeregisterRequest) -> Result<v1::DeregisterResponse, Refusal> {
        Err(Refusal::one(Code::Unavailable, ""))
    }
    /// Makes probes due now.
    pub fn probe(&self, _peer: &Peer, _request: v1::ProbeRequest) -> Result<v1::ProbeResponse, Refusal> {
        Err(Refusal::one(Code::Unavailable, ""))
    }
    /// One service.
    pub fn get_service(&self, _name: &str) -> Result<v1::Service, Refusal> {
        Err(Refusal::one(Code::Unavailable, ""))
    }
    /// All services.
    pub fn list_services(&self) -> v1::ListServicesResponse {
        unimplemented!()
    }
    /// Routes, static ones first.
    pub fn list_routes(&self, _request: &v1::ListRoutesRequest) -> v1::ListRoutesResponse {
        unimplemented!()
    }
    /// The `SnapshotService` over this registry. A request that carries no [`Peer`] extension was made
    /// in process: it needs no authorization, and `register` waits for it.
    pub fn snapshots(&self) -> Snapshots {
        unimplemented!()
    }
    /// The control plane's metrics in text form, without an end mark.
    pub fn metrics(&self, _out: &mut String) {}
    /// Ends every Watch stream: for shutdown.
    pub fn close(&self) {}
}
