//! Decides what is routable: registrations, health, publication.
//!
//! In reading order: [`config`]; the pure parts: [`health`] and [`uptime`] of one instance, [`registration`] and
//! [`refusal`], the [`records`] and the [`services`] that hold them, who may what in [`claims`], [`limits`] and
//! [`admission`], and [`publication`] with [`published`]; what carries them out: [`registry`] with its [`store`],
//! [`machine`], [`resolve`], [`monitor`] with its [`probe`], [`snapshots`]; the edges: [`listener`], [`guard`],
//! [`identity`], [`http`] with [`body`], [`json`], [`answers`] and [`openapi`], [`grpc`] with [`session`]; and what is
//! told: [`telemetry`] with [`events`].

pub mod admission;
pub mod answers;
pub mod body;
pub mod claims;
pub mod config;
pub mod events;
pub mod grpc;
pub mod guard;
pub mod health;
pub mod http;
pub mod identity;
pub mod json;
pub mod limits;
pub mod listener;
pub mod machine;
pub mod monitor;
pub mod openapi;
pub mod probe;
pub mod publication;
pub mod published;
pub mod records;
pub mod refusal;
pub mod registration;
pub mod registry;
pub mod resolve;
pub mod services;
pub mod session;
pub mod snapshots;
pub mod store;
pub mod telemetry;
pub mod uptime;
