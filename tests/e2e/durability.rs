//! What furt has acknowledged it keeps: through kills, full disks, damaged files, and over time.
//!
//! [`kills`] and [`load`] kill furt while it works, [`disk`] and [`start`] take its store away,
//! [`trace`] looks at the order of its system calls, [`churn`] at what it costs over time. How long
//! `kills` and `churn` go on is told by the environment; `tests/crash.sh` runs them at full length.

mod churn;
mod disk;
mod kills;
mod load;
mod start;
mod trace;

use std::path::PathBuf;

use crate::{
    client::Answer,
    world::{Conf, World, from_environment},
};

/// As often as a test likes.
const UNLIMITED: &str = "registration_rate = 1000000/s";

/// A furt that takes any number of registrations.
fn unlimited() -> Conf {
    Conf::new().gateway(UNLIMITED)
}

/// Where furt keeps its registrations.
fn store_of(furt: &World) -> PathBuf {
    furt.dir.join("state/registry.redb")
}

/// The refusal of a furt whose store does not work, which says why.
#[track_caller]
fn store_unavailable(answer: &Answer, words: &[&str]) {
    answer.refused(503, "STORE_UNAVAILABLE");
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
    for word in words {
        assert!(answer.text().contains(word), "no {word:?} in {answer:?}");
    }
}
