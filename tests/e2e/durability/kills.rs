//! kill -9 at random moments while clients register without pause: after each restart everything that
//! was acknowledged is there in its last acknowledged form, or in the one that was in flight; nothing
//! is half there, nothing is there that nobody registered.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use super::{from_environment, unlimited};
use crate::{
    client::{Answer, Client, Request},
    upstream::Upstream,
    world::{ADMIN_KEY, World, eventually},
};

const CLIENTS: usize = 20;
/// Services of one client.
const SERVICES: usize = 3;

/// What a service's registration said last: its number, from which all of it follows.
type Generation = u64;

/// One service as its client knows it.
#[derive(Debug, Clone)]
struct Slot {
    service: String,
    /// What furt has acknowledged: a registration, or that there is none.
    acknowledged: Option<Generation>,
    /// What was asked for and not answered.
    in_flight: Option<Option<Generation>>,
}

/// A registration: everything in it depends on its generation, so that a mixture of two is seen.
fn body(service: &str, generation: Generation, upstream: &str) -> Value {
    let routes: Vec<_> = (0..1 + generation % 5).map(|at| json!({"method": "GET", "path": path(service, generation, at)})).collect();
    json!({
        "service": service,
        "url": format!("{upstream}/base-{}", generation % 3),
        "version": generation.to_string(),
        "weight": 1 + generation % 1000,
        "metadata": {"padding": "x".repeat((generation % 7 * 150) as usize)},
        "routes": routes,
    })
}

fn path(service: &str, generation: Generation, at: u64) -> String {
    format!("/kept/{service}/{generation}/{at}")
}

/// The generation that a service is shown in, which must be all of it.
#[track_caller]
fn generation(shown: &Value, upstream: &str) -> Generation {
    let instances = shown["instances"].as_array().expect("instances");
    assert_eq!(instances.len(), 1, "{shown}");
    let generation = instances[0]["version"].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{shown}"));
    let service = shown["service"].as_str().expect("a name");
    let asked = body(service, generation, upstream);
    for field in ["url", "version", "weight", "metadata"] {
        assert_eq!(instances[0][field], asked[field], "half of generation {generation}: {shown}");
    }
    let paths = |routes: &Value| {
        let mut paths: Vec<_> = routes.as_array().expect("routes").iter().map(|route| route["path"].to_string()).collect();
        paths.sort();
        paths
    };
    assert_eq!(paths(&shown["routes"]), paths(&asked["routes"]), "half of generation {generation}: {shown}");
    generation
}

/// Registers, changes, renews and deregisters until furt is gone, and counts the answers.
fn work(slots: &mut [Slot], next: &mut Generation, internal: SocketAddr, upstream: &str, answers: &AtomicUsize) {
    let Ok(mut client) = Client::connect(internal) else { return };
    loop {
        let slot = &mut slots[fastrand::usize(..SERVICES)];
        let wanted = match (slot.acknowledged, fastrand::u8(..10)) {
            (Some(_), 0) => None,
            (Some(same), 1) => Some(same),
            _ => {
                *next += 1;
                Some(*next)
            }
        };
        slot.in_flight = Some(wanted);
        let asked = match wanted {
            Some(generation) => Request::post("/internal/register-service", body(&slot.service, generation, upstream).to_string()),
            None => Request::new("DELETE", &format!("/internal/services/{}/instances/default", slot.service)),
        };
        let Ok(answer) = exchange(&mut client, &asked, internal) else { return };
        assert_eq!(answer.status, 200, "{answer:?}");
        slot.acknowledged = wanted;
        slot.in_flight = None;
        answers.fetch_add(1, Ordering::SeqCst);
    }
}

fn exchange(client: &mut Client, request: &Request, address: SocketAddr) -> io::Result<Answer> {
    client.write(request.to_bytes(address))?;
    client.read("POST")
}

/// Holds what a restarted furt knows against what its clients know, who learn from it what became of
/// what was in flight.
fn check(furt: &World, slots: &mut [Slot], upstream: &str, round: usize) {
    let health = furt.health();
    assert_eq!(health["status"], "healthy", "round {round}: {health}");
    let shown = Request::get("/internal/services").send(furt.internal).json()["data"]["services"].clone();
    let shown = shown.as_array().expect("services").iter();
    let mut there: BTreeMap<_, _> = shown.map(|shown| (shown["service"].as_str().expect("a name"), generation(shown, upstream))).collect();
    for slot in slots {
        let found = there.remove(&slot.service[..]);
        let allowed = found == slot.acknowledged || slot.in_flight == Some(found);
        assert!(allowed, "round {round}: {slot:?}, and there is {found:?}");
        (slot.acknowledged, slot.in_flight) = (found, None);
    }
    assert!(there.is_empty(), "round {round}: nobody registered {there:?}");
}

/// What is there is routed, and what was replaced is not.
fn check_routes(furt: &World, slots: &[Slot]) {
    let slot = &slots[fastrand::usize(..slots.len())];
    let get = |generation| furt.send(&Request::get(&path(&slot.service, generation, 0)).key(ADMIN_KEY));
    if let Some(generation) = slot.acknowledged {
        let answer = get(generation);
        assert_eq!((answer.status, answer.field("x-upstream")), (200, Some("kept")), "{slot:?}: {answer:?}");
        get(generation + 1).refused(404, "NOT_FOUND");
    }
}

/// A furt that is killed before it may have begun to serve.
fn kill_in_the_start(furt: &World) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_furt"));
    command.args(["run", "--config"]).arg(furt.dir.join("furt.conf")).current_dir(&furt.dir).env_clear();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("furt starts");
    std::thread::sleep(Duration::from_millis(fastrand::u64(..100)));
    child.kill().expect("a child of ours");
    child.wait().expect("a child of ours");
}

#[test]
fn after_kill_9_at_random_moments_every_acknowledged_registration_is_there_and_nothing_else() {
    let kills = from_environment("FURT_KILLS", 8);
    let upstream = Upstream::start("kept");
    let url = upstream.url();
    let mut furt = unlimited().start();
    let slot = |at: usize| Slot { service: format!("s{}-{}", at / SERVICES, at % SERVICES), acknowledged: None, in_flight: None };
    let mut slots: Vec<_> = (0..CLIENTS * SERVICES).map(slot).collect();
    let mut generations = [0; CLIENTS];
    let answers = AtomicUsize::new(0);
    for round in 0..kills {
        let (internal, url, answers) = (furt.internal, &url, &answers);
        let enough = answers.load(Ordering::SeqCst) + fastrand::usize(..150);
        std::thread::scope(|scope| {
            for (slots, next) in slots.chunks_mut(SERVICES).zip(&mut generations) {
                scope.spawn(move || work(slots, next, internal, url, answers));
            }
            eventually("the clients get answers", || (answers.load(Ordering::SeqCst) >= enough).then_some(()));
            std::thread::sleep(Duration::from_micros(fastrand::u64(..5_000)));
            furt.kill();
        });
        if fastrand::u8(..3) == 0 {
            kill_in_the_start(&furt);
        }
        // Those of the furt that is gone; a test may not have thousands open.
        upstream.drop_connections();
        furt.start_again();
        check(&furt, &mut slots, url, round);
        check_routes(&furt, &slots);
    }
    let answers = answers.into_inner();
    println!("{kills} kills, {answers} registrations and deregistrations were acknowledged");
    assert!(answers > kills * 10, "only {answers} answers: the clients hardly worked");
}
