//! furt.conf: any text gives a configuration or errors, each with a place in the text; no finding
//! repeats what came from the environment or a file; relations between keys hold of what is let through.
#![no_main]

use std::{path::Path, time::Duration};

use furt::config::{Config, Finding, Surroundings, parse};
use libfuzzer_sys::fuzz_target;

/// Long enough for a key in clear, and in no text by chance.
const FROM_ENVIRONMENT: &str = "3nv-0123456789abcdef0123456789abcdef";
const FROM_FILE: &str = "f1le-0123456789abcdef0123456789abcdef";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = |name: &str| (name.len() % 2 == 0).then(|| FROM_ENVIRONMENT.to_owned());
    let read_file = |_: &Path| Ok(format!("{FROM_FILE}\n"));
    let around = Surroundings {
        environment: &environment,
        read_file: &read_file,
        open_to_all: &|_| true,
        system_authorities: &Vec::new,
        now: Duration::ZERO,
        descriptors: Some(1024),
        cores: 2,
        process_id: 1,
    };
    let lines = text.split('\n').count();
    let secrets = [FROM_ENVIRONMENT, FROM_FILE].map(|secret| !text.contains(secret));
    let check = |findings: &[Finding]| {
        for finding in findings {
            is_sound(finding, lines);
            let said = finding.to_string();
            assert!(!(secrets[0] && said.contains(FROM_ENVIRONMENT)) && !(secrets[1] && said.contains(FROM_FILE)), "{said}");
        }
    };
    match parse(text, "furt.conf", &around) {
        Ok(config) => {
            check(&config.warnings);
            relations_hold(&config);
        }
        Err(report) => {
            assert!(!report.errors.is_empty());
            check(&report.errors);
            check(&report.warnings);
        }
    }
});

fn is_sound(finding: &Finding, lines: usize) {
    assert!(finding.line.is_none_or(|line| (1..=lines).contains(&(line as usize))), "{finding:?} of {lines} lines");
    let said = finding.to_string();
    assert!(!said.chars().any(char::is_control), "{said:?}");
}

fn relations_hold(config: &Config) {
    let probing = &config.control.probing;
    assert!(probing.timeout <= probing.interval && probing.park_after > probing.down_after && probing.down_after > 0);
    assert!(config.data.workers > 0);
    for route in &config.control.published.static_routes {
        assert!(route.permission.is_some() != route.public && !route.methods.is_empty(), "{route:?}");
    }
    let keys = &config.control.published.keys;
    for (index, key) in keys.iter().enumerate() {
        assert!(!key.digests.is_empty(), "a key without a secret");
        for other in &keys[..index] {
            assert!(other.name != key.name && !other.digests.iter().any(|digest| key.digests.contains(digest)), "two keys in one");
        }
    }
}
