//! `furt check`: everything that is wrong or odd in furt.conf.

use furt::config::{self, Config, Finding, LoadError, Report};
use serde_json::{Value, json};

use super::{Arguments, Failure, process::say};

/// Prints every finding; fails when one of them is an error.
pub fn check(arguments: &Arguments) -> Result<(), Failure> {
    // Which of the places it was found in is half of the answer.
    let file = config::find(arguments.config.as_deref()).map(|file| file.display().to_string()).unwrap_or_default();
    let (report, config) = match config::load(arguments.config.as_deref()) {
        Ok(config) => {
            let mut report = Report::default();
            report.warnings.clone_from(&config.warnings);
            (report, Some(config))
        }
        Err(LoadError::Faulty(report)) => (report, None),
        Err(error) => return Err(error.into()),
    };
    if arguments.json {
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
        None if arguments.json => Err(Failure::told()),
        None => Err(Failure::new(format!("{file} is not valid: {}", count(report.errors.len(), "error")))),
    }
}

fn finding(finding: &Finding) -> Value {
    json!({"file": finding.file, "line": finding.line, "key": finding.key, "message": finding.message})
}

fn summary(config: &Config) -> String {
    let (control, published) = (&config.control, &config.control.published);
    let internal = if config.enabled { format!("internal {}", control.listen) } else { "no internal listener".into() };
    let counts = [
        count(control.grants.len(), "grant"),
        count(published.static_routes.len(), "static route"),
        count(published.keys.len(), "API key"),
        count(control.tokens.len(), "token"),
    ];
    format!("public {}, {internal}; {}", config.data.listen, counts.join(", "))
}

fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
