//! What is wrong or odd in furt.conf: where, which key, what was expected.
//!
//! Here: the findings, how they print, the nearest known name. Not here: what is right.
//! No finding ever holds the text of a secret.

use std::fmt;

use furt_proto::names::distance;

/// One finding, printed as `file:line: key: what was expected`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file as it was named to furt.
    pub file: String,
    /// The line, from 1; `None` when it is about something that is not there.
    pub line: Option<u32>,
    /// The key or `[section]`; empty when it is about neither.
    pub key: String,
    /// What was expected, or what is odd.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that was found in one reading of a file, in the order of lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    file: String,
    /// With one of these furt does not start.
    pub errors: Vec<Finding>,
    /// Worth a look; furt starts.
    pub warnings: Vec<Finding>,
}

impl Report {
    /// An empty report on a file.
    pub fn new(file: &str) -> Self {
        Self { file: file.to_owned(), ..Self::default() }
    }

    pub(super) fn error(&mut self, line: impl Into<Option<u32>>, key: &str, message: impl Into<String>) {
        let finding = self.finding(line.into(), key, message.into());
        self.errors.push(finding);
    }

    pub(super) fn warn(&mut self, line: impl Into<Option<u32>>, key: &str, message: impl Into<String>) {
        let finding = self.finding(line.into(), key, message.into());
        self.warnings.push(finding);
    }

    fn finding(&self, line: Option<u32>, key: &str, message: String) -> Finding {
        // Line 0 is that of a section which is not in the file.
        Finding { file: self.file.clone(), line: line.filter(|line| *line > 0), key: key.to_owned(), message }
    }

    pub(super) fn sort(&mut self) {
        self.errors.sort_by_key(|finding| finding.line);
        self.warnings.sort_by_key(|finding| finding.line);
    }
}

impl fmt::Display for Report {
    /// A line for each finding, errors last, so that they are what a terminal shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let warnings = self.warnings.iter().map(|finding| ("warning", finding));
        let errors = self.errors.iter().map(|finding| ("error", finding));
        for (index, (kind, finding)) in warnings.chain(errors).enumerate() {
            write!(f, "{}{kind}: {finding}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// ` (did you mean "name"?)` for the known name that is nearest to `name`, or nothing when none is near.
pub fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    // Known names are short; what is much longer is near to none of them.
    if name.len() > 64 {
        return String::new();
    }
    let near = known.map(|candidate| (distance(name, candidate), candidate)).min();
    // A third of the letters wrong is still the same word; more is another word.
    let limit = (name.len() / 3).max(2);
    match near {
        Some((distance, candidate)) if distance <= limit => format!(" (did you mean \"{candidate}\"?)"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_hinted_and_far_ones_are_not() {
        let known = || ["health_check_interval", "health_check_timeout", "listen"].into_iter();
        assert_eq!(hint("healthcheck_interval", known()), " (did you mean \"health_check_interval\"?)");
        assert_eq!(hint("lisen", known()), " (did you mean \"listen\"?)");
        assert_eq!(hint("smtp_host", known()), "");
        assert_eq!(hint(&"a".repeat(100_000), known()), "");
    }
}
