//! A furt that cannot read its store: what served before serves on, from the last good snapshot on disk.

use std::{fs, path::PathBuf};

use crate::{
    client::Request,
    upstream::{Health, Upstream},
    world::{ADMIN_KEY, Conf, WEBSITE_KEY, World, eventually},
};

const ROUTES: &[&str] = &["GET /api/comments/* comments:read"];
const GONE_KEY: &str = "gone-key-0123456789-0123456789-01";

fn conf() -> Conf {
    Conf::new().quick().gateway("registration_rate = 1000/s").gateway("stop_ping_after_failures = 1000")
}

/// Both files, the newest last.
fn generations(furt: &World) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        ["snapshot.1", "snapshot.2"].map(|name| furt.dir.join("state").join(name)).into_iter().filter(|path| path.exists()).collect();
    // The number of the generation, behind magic and format.
    files.sort_by_key(|path| fs::read(path).expect("a file")[12..20].iter().rev().copied().collect::<Vec<u8>>());
    files
}

/// Waits until the newest generation has these words.
#[track_caller]
fn until_kept(furt: &World, words: &[&str]) {
    eventually("the snapshot is on disk", || {
        let newest = fs::read(generations(furt).pop()?).ok()?;
        let newest = String::from_utf8_lossy(&newest);
        words.iter().all(|word| newest.contains(word)).then_some(())
    });
}

/// A furt whose store is damaged from its next start on. `sagjan` and `obr` served, `down` was DOWN.
fn damaged() -> (World, [Upstream; 3]) {
    let gone = format!("[api_key \"{GONE_KEY}\"]\nname = Gone\npermissions = *\n");
    let mut furt = conf().more(&gone).start();
    let upstreams = ["sagjan", "obr", "down"].map(Upstream::start);
    let [sagjan, obr, down] = &upstreams;
    down.set_health(Health::Status(500));
    furt.register("down", &down.url(), &["GET /down comments:read"]);
    furt.until("down", "DOWN");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    furt.until("sagjan", "UP");
    furt.get("/api/comments/a").status(200);
    furt.send(&Request::get("/api/comments/a").key(GONE_KEY)).status(200);
    until_kept(&furt, &["sagjan", "DOWN"]);
    furt.register("obr", &obr.url(), &["GET /obr comments:read"]);
    until_kept(&furt, &["sagjan", "obr", "DOWN"]);
    furt.kill();
    let store = furt.dir.join("state/registry.redb");
    let mut bytes = fs::read(&store).expect("the store");
    bytes.iter_mut().skip(4096).filter(|byte| **byte != 0).for_each(|byte| *byte ^= 0x55);
    fs::write(&store, bytes).expect("the store");
    (furt, upstreams)
}

#[test]
fn a_furt_without_its_store_serves_what_served_and_furt_conf_says_to_whom() {
    let (mut furt, [sagjan, _obr, down]) = damaged();
    let before = down.requests().len();
    // The key Gone is revoked meanwhile.
    furt.rewrite(conf());
    furt.start_again();
    let answer = furt.get("/api/comments/a");
    assert_eq!((answer.status, answer.field("x-upstream")), (200, Some("sagjan")));
    assert_eq!(furt.get("/obr").field("x-upstream"), Some("obr"));
    furt.send(&Request::get("/api/comments/a").key(GONE_KEY)).refused(401, "UNAUTHORIZED");
    furt.send(&Request::get("/api/comments/a")).refused(401, "UNAUTHORIZED");
    furt.get("/down").refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!(down.requests().len(), before, "what was DOWN sees no request");
    let health = furt.health();
    assert_eq!((&health["status"], &health["services"]["sagjan"]["status"]), (&"degraded".into(), &"UNKNOWN".into()), "{health}");
    assert!(health["issues"].as_array().is_some_and(|issues| !issues.is_empty()), "{health}");
    assert!(health["snapshot_age"].is_u64(), "{health}");
    // With a store again it knows what there is: nothing yet.
    fs::rename(furt.dir.join("state/registry.redb"), furt.dir.join("aside")).expect("the store");
    eventually("furt is healthy again", || (furt.health()["status"] == "healthy").then_some(()));
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    furt.get("/api/comments/a").status(200);
    assert!(furt.health()["issues"].is_null());
}

#[test]
fn a_damaged_generation_leaves_the_one_before_and_with_both_damaged_furt_runs_without() {
    let (mut furt, _upstreams) = damaged();
    let files = generations(&furt);
    let [_, newest] = &files[..] else { panic!("two generations: {files:?}") };
    let torn = fs::read(newest).expect("a file");
    fs::write(newest, &torn[..torn.len() / 2]).expect("a file");
    furt.start_again();
    furt.get("/api/comments/a").status(200);
    furt.get("/obr").refused(404, "NOT_FOUND");
    assert!(furt.logged(&["a snapshot on disk is skipped", "not whole"]));
    furt.kill();
    for file in generations(&furt) {
        let mut bytes = fs::read(&file).expect("a file");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&file, bytes).expect("a file");
    }
    furt.start_again();
    furt.get("/api/comments/a").refused(404, "NOT_FOUND");
    assert_eq!(furt.health()["status"], "degraded");
}

#[test]
fn no_secret_is_written_to_disk() {
    let route = "[route \"mail\"]\nmethods = POST\npath = /mail\nurl = http://127.0.0.1:9\npermission = mail:send\nset_headers = X-Relay: secret-of-the-relay\n";
    let furt = Conf::new().more(route).start();
    let sagjan = Upstream::start("sagjan");
    furt.register("sagjan", &sagjan.url(), ROUTES);
    until_kept(&furt, &["sagjan", &sagjan.url()]);
    for file in generations(&furt) {
        let bytes = fs::read(&file).expect("a file");
        let text = String::from_utf8_lossy(&bytes);
        for secret in ["secret-of-the-relay", WEBSITE_KEY, ADMIN_KEY, "Website", "mail"] {
            assert!(!text.contains(secret), "{secret} in {}", file.display());
        }
        let digest = sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(WEBSITE_KEY));
        assert!(!bytes.windows(digest.len()).any(|window| window == digest.as_slice()), "a digest in {}", file.display());
    }
}
