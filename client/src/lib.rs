//! Keeps a service registered with furt.
