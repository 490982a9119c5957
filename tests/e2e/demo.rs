//! `furt demo`: the main job in one command.

use std::process::{Command, Stdio};

#[test]
fn the_demo_shows_the_main_job_and_ends() {
    let dir = std::env::temp_dir().join(format!("furt-demo-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for the test");
    let output = Command::new(env!("CARGO_BIN_EXE_furt"))
        .args(["demo", "--once"])
        .current_dir(&dir)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .expect("furt runs");
    let _ = std::fs::remove_dir_all(&dir);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    // A registration, a request that was forwarded, one that was refused.
    for word in ["register", "200", "401", "GET", "/api/"] {
        assert!(out.contains(word), "{word:?} is not printed:\n{out}\n{err}");
    }
}
