//! Routes: matching, authorisation and proxying over the snapshot it was given.
//!
//! In reading order, the request's way: [`worker`] with [`peers`], [`connection`] with [`client_io`] and its guards
//! [`strict`] and [`frames`], [`clock`], [`watch`] and [`deadline`]; [`gateway`] with [`framing`], [`local`] and [`cors`];
//! [`table`], [`auth`], [`address_limit`]; [`forward`] with [`balance`], [`upstream`], [`headers`], [`outbound`] and
//! [`body`]; [`respond`], [`exchange`], [`tunnel`]. What it works on: [`view`], [`map`], [`subscribe`], [`disk`]. What is
//! told about it: [`health`], [`explain`], [`metrics`], [`access_log`]. And [`config`].

pub mod access_log;
pub mod address_limit;
pub mod auth;
pub mod balance;
pub mod body;
pub mod client_io;
pub mod clock;
pub mod config;
pub mod connection;
pub mod cors;
pub mod deadline;
pub mod disk;
pub mod exchange;
pub mod explain;
pub mod forward;
pub mod frames;
pub mod framing;
pub mod gateway;
pub mod headers;
pub mod health;
pub mod local;
pub mod map;
pub mod metrics;
pub mod outbound;
pub mod peers;
pub mod respond;
pub mod strict;
pub mod subscribe;
pub mod table;
pub mod tunnel;
pub mod upstream;
pub mod view;
pub mod watch;
pub mod worker;
