//! Routes: matching, authorisation and proxying over the snapshot it was given.
pub mod config;
