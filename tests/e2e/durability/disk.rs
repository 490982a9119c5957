//! A disk that is full: nothing is acknowledged that is not kept, what is registered goes on, and with
//! the first free space furt does too.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{store_unavailable, unlimited};
use crate::{
    client::Request,
    upstream::Upstream,
    world::{ADMIN_KEY, World, eventually, registration},
};

/// A small filesystem of its own, in memory.
struct Mount(PathBuf);

impl Mount {
    /// `None` when this machine does not let us.
    fn on(path: &Path) -> Option<Self> {
        fs::create_dir_all(path).expect("a directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m,mode=700", "furt-e2e"]).arg(path).output().ok()?;
        mounted.status.success().then(|| Self(path.to_path_buf()))
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).expect("a file");
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).expect("the filler");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: furt may have a file open there until its World is dropped.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A registration of about 60 kB.
fn large(at: usize, upstream: &Upstream) -> Value {
    let long = "x".repeat(900);
    let routes: Vec<_> = (0..60).map(|route| json!({"method": "GET", "path": format!("/large/{at}/{route}/{long}")})).collect();
    let mut body = registration(&format!("large-{at}"), &upstream.url(), &[]);
    body["routes"] = routes.into_iter().chain([json!({"method": "GET", "path": format!("/large/{at}")})]).collect();
    body
}

/// The names of what is registered, in order.
fn registered(furt: &World) -> Vec<String> {
    let answer = Request::get("/internal/services").send(furt.internal).json();
    let services = answer["data"]["services"].as_array().expect("services");
    services.iter().map(|service| service["service"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_full_disk_acknowledges_nothing_and_with_free_space_registering_works_within_two_seconds() {
    let upstream = Upstream::start("large");
    let mut furt = unlimited().start();
    furt.kill();
    let state = furt.dir.join("state");
    let Some(mount) = Mount::on(&state) else {
        eprintln!("SKIPPED: no tmpfs can be mounted here, so no disk was full");
        return;
    };
    furt.start_again();
    let mut acknowledged: Vec<_> = (0..2)
        .map(|at| {
            furt.post(&large(at, &upstream)).status(200);
            format!("large-{at}")
        })
        .collect();

    mount.fill();
    let mut at = 2;
    // What the file has room for inside it is still taken.
    let refused = loop {
        let answer = furt.post(&large(at, &upstream));
        if answer.status != 200 {
            break answer;
        }
        acknowledged.push(format!("large-{at}"));
        at += 1;
        assert!(at < 500, "a full disk takes no end of registrations");
    };
    store_unavailable(&refused, &["no room", "registry.redb", "free some space"]);
    store_unavailable(&furt.post(&large(at + 1, &upstream)), &["no room"]);
    assert_eq!(registered(&furt), acknowledged, "what was refused is not there, and what was acknowledged is");
    furt.send(&Request::get("/large/0").key(ADMIN_KEY)).status(200);
    let health = furt.health();
    assert_eq!(health["status"], "degraded", "{health}");
    assert!(health["issues"][0].as_str().is_some_and(|issue| issue.contains("no room")), "{health}");
    // What is registered already is durable, so it is renewed all the same.
    furt.post(&large(0, &upstream)).status(200);

    mount.free();
    let freed = Instant::now();
    let took = eventually("registering works again", || (furt.post(&large(at, &upstream)).status == 200).then(|| freed.elapsed()));
    assert!(took < Duration::from_secs(2), "{took:?}");
    acknowledged.push(format!("large-{at}"));
    eventually("furt is healthy again", || (furt.health()["status"] == "healthy").then_some(()));

    furt.kill();
    furt.start_again();
    acknowledged.sort();
    assert_eq!(registered(&furt), acknowledged);
    furt.kill();
}
