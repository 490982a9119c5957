//! Keeps a service registered with furt.
//!
//! A [`Keeper`] holds one gRPC session (`RegistryService.Session`) for one instance of a service. It registers,
//! stays, registers again when furt was away, and says farewell at the end: furt then sends nothing new, waits
//! for what is in flight and deregisters the instance.
//!
//! ```no_run
//! use furt_client::{RegisterRequest, Registrar, Route};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), furt_client::Error> {
//! let route = Route { method: "GET".into(), path: "/api/comments/*".into(), permission: "comments:read".into(), ..Default::default() };
//! let request = RegisterRequest {
//!     service: "comments".into(),
//!     url: "http://127.0.0.1:7812".into(),
//!     routes: vec![route],
//!     ..Default::default()
//! };
//! let shutdown = CancellationToken::new();
//! let keeper = Registrar::new("127.0.0.1:7810")?.keep(request);
//! let mut state = keeper.state();
//! let keeping = tokio::spawn(keeper.run(shutdown.clone()));
//!
//! // The receiver fails only when the keeper has ended.
//! let _ = state.wait_for(|state| state.is_registered()).await;
//! // … serve, until it is time to go …
//! shutdown.cancel();
//! // When this is done no request of furt's is in flight: stop listening.
//! let _ = keeping.await;
//! # Ok(())
//! # }
//! ```
//!
//! Why a session and not renewals by the clock: the end of the stream tells either side at once that the other
//! is gone. A renewal would leave a service unregistered until its next turn after furt lost its state, and furt
//! without a word of a crash until the next probe. Services that cannot hold a stream renew by
//! `POST /internal/register-service` and look at the probes: [`must_register`] reads those.
//!
//! In reading order: `registrar` (where furt is), `state` (how it stands), `keeper` (the task), `session` (one
//! stream), `backoff` (when to try again), `probe`.

mod backoff;
mod keeper;
mod probe;
mod registrar;
mod session;
mod state;

pub use furt_proto::v1::{DrainResponse, RegisterRequest, Route, Warning};

pub use keeper::Keeper;
pub use probe::must_register;
pub use registrar::{Error, Registrar};
pub use state::{Reason, Refusal, Registration, State};
