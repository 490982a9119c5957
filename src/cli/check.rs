//! `furt check`: everything that is wrong or odd in furt.conf.

use std::path::Path;

use furt::config::{self, Config, Finding, LoadError, Report};
use serde_json::{Value, json};

use super::{Failure, fields::counted, process::say};

/// Prints every finding; fails when one of them is an error.
pub fn check(named: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    // Which of the places it was found in is half of the answer.
    let file = config::find(named).map(|file| file.display().to_string()).unwrap_or_default();
    let (report, config) = match config::load(named) {
        Ok(config) => {
            let mut report = Report::default();
            report.warnings.clone_from(&config.warnings);
            (report, Some(config))
        }
        Err(LoadError::Faulty(report)) => (report, None),
        Err(error) => return Err(error.into()),
    };
    if as_json {
        let list = |findings: &[Finding]| findings.iter().map(finding).collect::<Value>();
        say(json!({"valid": config.is_some(), "errors": list(&report.errors), "warnings": list(&report.warnings)}))?;
    } else {
        if !(report.errors.is_empty() && report.warnings.is_empty()) {
            say(&report)?;
        }
        if let Some(config) = &config {
            say(format!("{file} is valid: {}", summary(config)))?;
        }
    }
    match config {
        Some(_) => Ok(()),
        None if as_json => Err(Failure::told()),
        None => Err(Failure::new(format!("{file} is not valid: {}", counted(report.errors.len(), "error")))),
    }
}

fn finding(finding: &Finding) -> Value {
    json!({"file": finding.file, "line": finding.line, "key": finding.key, "message": finding.message})
}

fn summary(config: &Config) -> String {
    let (control, published) = (&config.control, &config.control.published);
    let internal = if config.enabled { format!("internal {}", control.listen) } else { "no internal listener".into() };
    let counts = [
        counted(control.grants.len(), "grant"),
        counted(published.static_routes.len(), "static route"),
        counted(published.keys.len(), "API key"),
        counted(control.tokens.len(), "token"),
    ];
    format!("public {}, {internal}; {}", config.data.listen, counts.join(", "))
}
