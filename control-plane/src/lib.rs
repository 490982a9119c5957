//! Decides what is routable: registrations, health, publication.
pub mod config;
pub mod health;
