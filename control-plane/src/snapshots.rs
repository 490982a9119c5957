//! What the data planes are told: `SnapshotService` over the registry.

/// `SnapshotService`; clones share the registry.
#[derive(Clone)]
pub struct Snapshots {}
