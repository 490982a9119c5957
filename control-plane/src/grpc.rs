//! The RPCs of the internal listener: decode, call, encode (DESIGN §10).
//!
//! Here: `RegistryService` over the registry, the way to `SnapshotService`, health and reflection.
//! Not here: the guard and sockets (`listener`), decisions (`registry`), the refusals' shape (`refusal`).

use std::sync::Arc;

use axum::Router;
use furt_proto::{FILE_DESCRIPTOR_SET, v1};
use futures_util::stream::{BoxStream, StreamExt};
use tonic::service::{Routes, interceptor::InterceptedService};
use tonic::{Request, Response, Status, Streaming, async_trait};
use tonic_reflection::server::Builder as Reflection;
use v1::registry_service_server::{RegistryService, RegistryServiceServer};
use v1::snapshot_service_server::SnapshotServiceServer;

use crate::body::MAX_BODY;
use crate::identity::{Action, Peer, authorize};
use crate::listener::Edge;
use crate::refusal::Refusal;
use crate::session;

/// What a data plane says at once: where it stands, and the instances it could not reach.
const MAX_WATCH_REQUEST: usize = 4 << 20;
/// What is asked about the API and its health: a name.
const MAX_QUESTION: usize = 4 << 10;

/// Every service of the internal listener, and the switch of its health.
///
/// Errors: the descriptors that were compiled in cannot be read.
pub fn router(edge: Arc<Edge>) -> Result<(Router, tonic_health::server::HealthReporter), tonic_reflection::server::Error> {
    let reflection = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that grpcurl shows the details of a refusal in words.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            // Each tells of the other too: a client lists what there is, whichever it asks.
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1()?.max_decoding_message_size(MAX_QUESTION);
    let v1alpha = reflection().build_v1alpha()?.max_decoding_message_size(MAX_QUESTION);
    let (reporter, health) = tonic_health::server::health_reporter();
    let health = health.max_decoding_message_size(MAX_QUESTION);

    let snapshots = SnapshotServiceServer::new(edge.registry.snapshots()).max_decoding_message_size(MAX_WATCH_REQUEST);
    // The service takes a request without a peer for one of this process, so what comes over a socket always has one.
    let snapshots = InterceptedService::new(snapshots, |mut request: Request<()>| {
        let peer = peer(&request);
        request.extensions_mut().insert(peer);
        Ok(request)
    });
    let registry = RegistryServiceServer::new(Rpc { edge }).max_decoding_message_size(MAX_BODY);
    let routes = Routes::new(registry).add_service(snapshots).add_service(health).add_service(v1).add_service(v1alpha);
    Ok((routes.prepare().into_axum_router(), reporter))
}

/// `RegistryService`.
pub struct Rpc {
    edge: Arc<Edge>,
}

impl Rpc {
    fn may_read<T>(&self, request: &Request<T>) -> Result<(), Status> {
        authorize(&self.edge.registry.config(), &peer(request), Action::Read, None)?;
        Ok(())
    }
}

/// The peer that the listener noted; nobody, who may do nothing, when the request came from elsewhere.
fn peer<T>(request: &Request<T>) -> Peer {
    request.extensions().get().cloned().unwrap_or_default()
}

#[async_trait]
impl RegistryService for Rpc {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterResponse>, Status> {
        let peer = peer(&request);
        Ok(Response::new(self.edge.registry.register(&peer, request.into_inner(), Vec::new()).await?))
    }

    async fn deregister(&self, request: Request<v1::DeregisterRequest>) -> Result<Response<v1::DeregisterResponse>, Status> {
        let peer = peer(&request);
        Ok(Response::new(self.edge.registry.deregister(&peer, request.into_inner()).await?))
    }

    async fn probe(&self, request: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        let peer = peer(&request);
        Ok(Response::new(self.edge.registry.probe(&peer, request.into_inner())?))
    }

    async fn get_service(&self, request: Request<v1::GetServiceRequest>) -> Result<Response<v1::GetServiceResponse>, Status> {
        self.may_read(&request)?;
        self.edge.registry.readable()?;
        let service = self.edge.registry.get_service(&request.get_ref().service)?;
        Ok(Response::new(v1::GetServiceResponse { service: Some(service) }))
    }

    async fn list_services(&self, request: Request<v1::ListServicesRequest>) -> Result<Response<v1::ListServicesResponse>, Status> {
        self.may_read(&request)?;
        self.edge.registry.readable()?;
        Ok(Response::new(self.edge.registry.list_services()))
    }

    async fn list_routes(&self, request: Request<v1::ListRoutesRequest>) -> Result<Response<v1::ListRoutesResponse>, Status> {
        self.may_read(&request)?;
        self.edge.registry.readable()?;
        Ok(Response::new(self.edge.registry.list_routes(request.get_ref())))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        self.may_read(&request)?;
        Ok(Response::new(self.edge.explain(request.get_ref())?))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let peer = peer(&request);
        Ok(Response::new(self.edge.registry.drain(&peer, request.into_inner()).await?))
    }

    type WatchEventsStream = BoxStream<'static, Result<v1::WatchEventsResponse, Status>>;

    async fn watch_events(&self, request: Request<v1::WatchEventsRequest>) -> Result<Response<Self::WatchEventsStream>, Status> {
        let events = self.edge.watch_events(&peer(&request), request.get_ref())?;
        let told = |event: Result<v1::Event, Refusal>| Ok(v1::WatchEventsResponse { event: Some(event?) });
        Ok(Response::new(events.map(told).boxed()))
    }

    type SessionStream = BoxStream<'static, Result<v1::SessionResponse, Status>>;

    async fn session(&self, request: Request<Streaming<v1::SessionRequest>>) -> Result<Response<Self::SessionStream>, Status> {
        let peer = peer(&request);
        Ok(Response::new(session::open(self.edge.registry.clone(), peer, request.into_inner(), self.edge.closing.clone())?.boxed()))
    }
}
