//! `furt init`: a first furt.conf, small and working, with one caller's key.
//!
//! Not here: every key there is (furt.conf.example), where the file is looked for later (`config`).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use furt::config::SEARCHED;
use serde_json::json;

use super::{Failure, key, named, process::say};

/// The caller whose key is made.
const CALLER: &str = "first";

/// Writes the file that was named, else ./furt.conf, and tells what to do next.
pub fn init(config: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let file = config.unwrap_or(Path::new(SEARCHED[0]));
    let (key, digest) = key::random()?;
    write(file, &configuration(&digest)).map_err(|error| Failure::new(refusal(file, &error)))?;
    if as_json {
        return say(json!({"file": file.to_string_lossy(), "key_name": CALLER, "key": key, "key_sha256": digest}));
    }
    say(next_steps(file, config, &key))
}

/// Never over a file that is there; readable by its owner only.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let written = open.write_all(text.as_bytes()).and_then(|()| open.sync_all());
    if written.is_err() {
        // Half a file would be in the way of the next attempt.
        let _ = fs::remove_file(file);
    }
    written
}

fn refusal(file: &Path, error: &io::Error) -> String {
    let shown = file.display();
    match error.kind() {
        io::ErrorKind::AlreadyExists => format!(
            "furt: {shown} is there already and is left as it is. `furt check --config {shown}` tells whether it is right; \
             `furt init --config FILE` writes another one"
        ),
        io::ErrorKind::NotFound => {
            let parent = file.parent().unwrap_or(file).display();
            format!("furt: cannot write {shown}: there is no directory {parent}; mkdir -p {parent} makes it")
        }
        _ => format!("furt: cannot write {shown}: {error}; --config names another place"),
    }
}

fn next_steps(file: &Path, config: Option<&Path>, key: &str) -> String {
    let (shown, named) = (file.display(), named(config));
    let route = json!({"method": "GET", "path": "/hello/*", "permission": "hello:read"});
    let registration = json!({"service": "hello", "url": "http://127.0.0.1:8080", "health_endpoint": "/", "routes": [route]});
    format!(
        "{shown} is written: a grant for a service \"hello\", and a caller \"{CALLER}\" whose key is shown this once:

    KEY={key}

Next:
    furt check{named}
    furt run{named}

Then, in another terminal, with a service that listens on 127.0.0.1:8080:
    curl http://127.0.0.1:7810/internal/register-service -d '{registration}'
    furt services{named}
    curl -i -H \"X-API-Key: $KEY\" http://127.0.0.1:7811/hello/world"
    )
}

fn configuration(digest: &str) -> String {
    format!(
        r#"# furt.conf, begun by `furt init`. What is not set has its default; furt.conf.example, which comes with furt,
# explains every key. After a change: furt check, then furt reload.

[server]
# Where callers come in.
host = 127.0.0.1
port = 7811
# What must survive a restart: ./furt-state unless it is set.
# state_dir = /var/lib/furt

[gateway]
# Where services register and operators ask. Not for the world.
listen = 127.0.0.1:7810
# From where that may be done at all.
allow_registration_from = 127.0.0.1

# A grant: what the service "hello" may register. Every service needs one.
[service "hello"]
# What its routes may ask of callers.
permissions = hello:*
# Where its routes may lie.
paths = /hello/*
# From where it may register.
from = 127.0.0.1

# A caller: it sends its key as X-API-Key, and the file has only the key's SHA-256. `furt key new NAME` makes another.
[api_key "{CALLER}"]
key_sha256 = {digest}
permissions = hello:read
# rate_limit = 600/min
"#
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_furt_conf_is_clean() {
        let config = furt::config::parse_here(&configuration(&"ab".repeat(32)), "furt.conf").unwrap();
        assert_eq!(config.warnings, []);
        assert_eq!((config.control.grants.len(), config.control.published.keys.len()), (1, 1));
    }

    #[test]
    fn it_is_for_its_owner_and_never_over_another() {
        let dir = std::env::temp_dir().join(format!("furt-init-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("furt.conf");
        write(&file, "one").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let error = write(&file, "two").unwrap_err();
        assert!(refusal(&file, &error).contains("is there already"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        let nowhere = dir.join("a/furt.conf");
        let error = write(&nowhere, "").unwrap_err();
        assert!(refusal(&nowhere, &error).contains("mkdir -p"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
