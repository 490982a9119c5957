//! Generations torn at every length, with every byte flipped, both bad; and the keeper, which writes them in turn.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::view::{
    Status, apply,
    model::{Model, config, empty, fixed, instance, route},
};

/// A directory of a test's own, gone with it.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("furt-disk-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name).join("state"))
    }

    fn services(&self) -> Vec<String> {
        let current = Current::new(View::empty(config()));
        resume(&self.0, &current);
        let view = current.load();
        view.services().iter().map(|service| service.name.to_string()).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn view(services: &[&str]) -> View {
    let mut model = Model::new("e");
    for name in services {
        model.service(name, &[&format!("GET /{name}/*")]);
    }
    model.delta();
    apply(&empty(), model.whole()).unwrap()
}

#[test]
fn a_generation_torn_at_any_length_or_with_any_byte_flipped_leaves_the_one_before() {
    let dir = Dir::new();
    write(&dir.0, 1, &view(&["old"])).unwrap();
    write(&dir.0, 2, &view(&["old", "new"])).unwrap();
    assert_eq!(dir.services(), ["new", "old"]);
    let newest = file(&dir.0, 2);
    let whole = fs::read(&newest).unwrap();
    for length in 0..whole.len() {
        fs::write(&newest, &whole[..length]).unwrap();
        assert_eq!(dir.services(), ["old"], "torn at {length} of {}", whole.len());
    }
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&newest, &flipped).unwrap();
        assert_eq!(dir.services(), ["old"], "byte {at} flipped");
    }
    fs::write(&newest, [&whole[..], b"more"].concat()).unwrap();
    assert_eq!(dir.services(), ["old"]);
    fs::write(&newest, &whole).unwrap();
    assert_eq!(dir.services(), ["new", "old"]);
}

#[test]
fn both_bad_or_none_there_is_a_start_without_services() {
    let dir = Dir::new();
    assert!(dir.services().is_empty());
    write(&dir.0, 1, &view(&["old"])).unwrap();
    write(&dir.0, 2, &view(&["new"])).unwrap();
    for number in [1, 2] {
        let path = file(&dir.0, number);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    }
    assert!(dir.services().is_empty());
    let current = Current::new(View::empty(config()));
    resume(&dir.0, &current);
    assert!(!current.load().is_ready() && current.heard_unix_ms().is_none());
}

#[test]
fn another_format_and_other_files_are_told_apart() {
    let mut bytes = encode(1, 1, &v1::WatchResponse::default());
    let refused = |bytes: &[u8]| decode(bytes).err().map(|reason| reason.to_string()).unwrap_or_default();
    assert_eq!(refused(&bytes), "");
    bytes[MAGIC.len()] = 9;
    assert_eq!(refused(&bytes), "it has format 9, and this furt reads format 1");
    assert_eq!(refused(b"{}"), "it is no snapshot of furt");
}

#[test]
fn a_restored_view_serves_what_was_served_and_knows_no_secret() {
    let mut model = Model::new("e");
    let routes = ["GET /a/* permission=a:b host=*.x.org by=0,2", "POST /a public by=2 timeout=500", "* /any", "GET /odd permission=*"];
    model.routes("a", routes.iter().map(|text| route(text)).collect());
    let drained = v1::SnapshotInstance { drained: true, ..instance(1, "UP") };
    let gone =
        v1::SnapshotInstance { withdrawn: true, parked: true, suspect: true, protocol: "h2".into(), weight: 7, ..instance(2, "DOWN") };
    model.instances("a", vec![instance(0, "UP"), drained, gone]);
    model.fixed(vec![fixed("mail", "GET /mail public")]);
    model.keys(vec![v1::Key { name: "site".into(), ..Default::default() }]);
    model.delta();
    let before = apply(&empty(), model.whole()).unwrap();
    let mut stored = before.stored();
    let after = View::restored(config(), stored.clone()).unwrap();
    assert!(!after.is_ready() && after.partial && after.table.len() == 4);
    // All of it comes back, but for what is not known any more.
    for instance in stored.services.iter_mut().filter_map(|service| service.instances.as_mut()).flat_map(|set| &mut set.instances) {
        instance.status = instance.status.replace("UP", "UNKNOWN");
    }
    let again = v1::WatchResponse { epoch: String::new(), version: 0, ..stored.clone() };
    assert_eq!(after.stored(), again);
    assert_eq!(
        after.services()[0].instances.iter().map(|one| one.status).collect::<Vec<_>>(),
        [Status::Unknown, Status::Unknown, Status::Down]
    );
    assert!(stored.keys.is_none() && stored.static_routes.is_none() && stored.cors.is_none());
    assert_eq!(stored.services.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_keeper_writes_what_is_installed_at_most_once_a_second_and_the_rest_at_the_end() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    let current = Current::new(empty());
    let shutdown = CancellationToken::new();
    let keeper = tokio::spawn(Keeper::new(dir.0.clone(), current.clone()).run(shutdown.clone()));
    let mut follow = current.follow();
    let mut model = Model::new("e");
    model.service("s0", &["GET /s0"]);
    model.delta();
    current.install(apply(&current.load(), model.whole()).unwrap());
    follow.changed().await.unwrap();
    wait_for(&dir, 1).await;
    let began = Instant::now();
    for at in 1..=5 {
        model.service(&format!("s{at}"), &[&format!("GET /s{at}")]);
        current.install(apply(&current.load(), model.delta()).unwrap());
        tokio::task::yield_now().await;
    }
    wait_for(&dir, 2).await;
    assert!(began.elapsed() >= WRITE_EVERY, "{:?}", began.elapsed());
    assert_eq!(dir.services().len(), 6);
    // A configuration, and a control plane that does not know every service, are no news.
    current.reconfigure(config());
    let partial = v1::WatchResponse { partial: true, issues: vec!["the store is locked".into()], ..model.delta() };
    current.install(apply(&current.load(), partial).unwrap());
    tokio::time::sleep(WRITE_EVERY * 3).await;
    assert_eq!(numbers(&dir), [1, 2]);
    model.service("last", &["GET /last"]);
    current.install(apply(&current.load(), model.delta()).unwrap());
    shutdown.cancel();
    keeper.await.unwrap();
    assert_eq!((numbers(&dir), dir.services().len()), (vec![3, 2], 7));
    assert_eq!(fs::metadata(file(&dir.0, 3)).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!dir.0.join("snapshot.tmp").exists());
    // The next furt goes on counting.
    let shutdown = CancellationToken::new();
    let keeper = tokio::spawn(Keeper::new(dir.0.clone(), current.clone()).run(shutdown.clone()));
    wait_for(&dir, 4).await;
    shutdown.cancel();
    keeper.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_is_tried_again() {
    let dir = Dir::new();
    // A file in the place of the directory above.
    fs::write(dir.0.parent().unwrap(), "").unwrap();
    let current = Current::new(view(&["a"]));
    let shutdown = CancellationToken::new();
    let keeper = tokio::spawn(Keeper::new(dir.0.clone(), current.clone()).run(shutdown.clone()));
    tokio::time::sleep(RETRY * 2).await;
    fs::remove_file(dir.0.parent().unwrap()).unwrap();
    wait_for(&dir, 1).await;
    assert_eq!(dir.services(), ["a"]);
    shutdown.cancel();
    keeper.await.unwrap();
}

fn numbers(dir: &Dir) -> Vec<u64> {
    generations(&dir.0).into_iter().map(|(_, read)| read.unwrap().number).collect()
}

async fn wait_for(dir: &Dir, number: u64) {
    let deadline = Instant::now() + Duration::from_secs(3600);
    while !generations(&dir.0).iter().any(|(_, read)| read.as_ref().is_ok_and(|read| read.number == number)) {
        assert!(Instant::now() < deadline, "generation {number} was never written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
