//! furt from outside: the real program, real sockets, real upstream processes.
//!
//! The module list is the acceptance list; `docs/acceptance.md` maps each requirement to its test.
//! The harness: [`world`] runs furt, [`upstream`] is a recording upstream inside the test,
//! [`raw_service`] one by hand, [`process`] one in a process of its own that can be killed, [`port`] a port that stays one's own,
//! [`peer`] an implementation of somebody else, [`client`] sends exact bytes and reads exact answers.

mod client;
mod h2;
mod h2_recorder;
mod h2_wire;
mod peer;
mod port;
mod process;
mod raw_service;
mod upstream;
mod wire;
mod world;

mod acceptance;
mod balancing;
mod cli;
mod demo;
mod dry_run;
mod durability;
mod events;
mod examples;
mod explain;
mod faults;
mod grpc;
mod grpc_proxy;
mod h2_conformance;
mod h2_floods;
mod h2_translation;
mod health;
mod http1_vectors;
mod limits;
mod lying_upstreams;
mod openapi;
mod proxy;
mod real_clients;
mod registration;
mod reload;
mod restart;
mod session;
mod smuggling;
mod streaming;
mod tls;
mod websocket;
