//! A request through the public listener: which service it reaches, what that sees, what comes back.

mod bodies;
mod cors;
mod headers;
mod http2;
mod instances;
mod keys;
mod last_good;
mod lifecycle;
mod matching;
mod reconfigured;
mod rolling;
mod trouble;
