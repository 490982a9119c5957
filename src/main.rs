//! The `furt` program.
fn main() {}
