//! What both planes of furt speak.
//!
//! Here: the generated gRPC API, the codec of the snapshot stream, and the vocabulary that both
//! planes must read the same way: names, permissions, paths, patterns, urls, rates, networks.
//! Not here: decisions, I/O.
//!
//! In reading order: [`names`], [`permission`], [`path`], [`pattern`], [`url`], [`network`],
//! [`rate`], [`time`], [`envelope`], [`codec`].

pub mod codec;
pub mod envelope;
pub mod names;
pub mod network;
pub mod path;
pub mod pattern;
pub mod permission;
pub mod rate;
pub mod time;
pub mod tls;
pub mod url;

/// Package `furt.v1`, generated from `proto/furt/v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("furt.v1");
    pub use self::snapshots::{snapshot_service_client, snapshot_service_server};

    mod snapshots {
        tonic::include_proto!("furt.v1.SnapshotService");
    }
}

/// What the control plane keeps in its store.
pub mod store {
    /// Package `furt.store.v1`, generated from `proto/furt/store/v1`.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("furt.store.v1");
    }
}

/// The descriptors of all of `proto/furt/v1`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("furt_descriptor");
