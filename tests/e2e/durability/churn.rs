//! The same again and again costs nothing that stays.

use std::fs;

use serde_json::Value;

use super::{from_environment, store_of, unlimited};
use crate::{
    client::{Client, Request},
    upstream::Upstream,
    world::{World, registration},
};

/// More than an allocator moves by, less than a few hundred bytes for each registration come to.
const ROOM: u64 = 6 << 20;
/// By how much the store's file may differ from one moment to another: less than a byte for each registration.
const PAGES: u64 = 16 << 10;

/// Bytes of a process in memory.
fn memory_of(furt: &World) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", furt.id())).expect("furt runs");
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.expect("a size") * 1024
}

fn length_of_store(furt: &World) -> u64 {
    fs::metadata(store_of(furt)).expect("the store").len()
}

/// Registers `count` times over one connection, whatever `body` makes.
fn register(furt: &World, count: usize, body: impl Fn(usize) -> Value) {
    let mut client = Client::new(furt.internal);
    for at in 0..count {
        client.ask(&Request::post("/internal/register-service", body(at).to_string())).status(200);
    }
}

/// Memory and store are as large after `count` registrations as after the first half of them: then what is kept of
/// what happened last is full too.
#[track_caller]
fn does_not_grow(furt: &World, count: usize, body: impl Fn(usize) -> Value) {
    register(furt, count / 2, &body);
    let (memory, store) = (memory_of(furt), length_of_store(furt));
    register(furt, count - count / 2, &body);
    let (memory_after, store_after) = (memory_of(furt), length_of_store(furt));
    println!("{count} registrations: memory {memory} to {memory_after}, store {store} to {store_after} bytes");
    assert!(memory_after <= memory + ROOM, "memory grew from {memory} to {memory_after}");
    assert!(store_after <= store + PAGES, "the store grew from {store} to {store_after}");
}

#[test]
fn registering_the_same_thing_again_and_again_grows_neither_memory_nor_the_store() {
    let upstream = Upstream::start("same");
    let furt = unlimited().server("log_requests = false").start();
    let same = registration("same", &upstream.url(), &["GET /same/* comments:read", "POST /same comments:write"]);
    does_not_grow(&furt, from_environment("FURT_RENEWALS", 20_000), |_| same.clone());
}

#[test]
fn changing_the_same_registration_again_and_again_grows_neither_memory_nor_the_store() {
    let upstream = Upstream::start("changing");
    let furt = unlimited().server("log_requests = false").start();
    let changing = |at: usize| {
        let mut body = registration("changing", &upstream.url(), &[&format!("GET /changing/{} comments:read", at % 7)]);
        body["version"] = at.to_string().into();
        body
    };
    does_not_grow(&furt, from_environment("FURT_CHANGES", 1_500), changing);
}
