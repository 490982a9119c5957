//! The query of a request: which parameters a path knows, and what they may be.
//!
//! Here: the kinds of parameters, and reading a query by them, every fault told at once. Not here: which path takes
//! what (`endpoints`), how that is described (`openapi`).

use axum::extract::Query;
use furt_proto::names::quoted;
use http::Uri;

use crate::json::MAX_FAULTS;
use crate::refusal::{Code, Fault};

/// Where a parameter is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// After the path, each at most once.
    Query,
    /// As a header field: read by the path itself.
    Header,
}

/// What a parameter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text; what it may say is asked where it is used. Left out, it is empty.
    Text,
    /// `true` or `false`. Left out, it is false.
    Truth,
    /// A decimal integer within bounds, both included.
    Whole {
        /// The least.
        least: u32,
        /// The most.
        most: u32,
        /// What holds when it is left out.
        otherwise: u32,
    },
}

/// One parameter that a path takes.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Where it is sent.
    pub place: Place,
    /// What it may be.
    pub kind: Kind,
    /// Whether it must be given.
    pub required: bool,
    /// The sentence for people.
    pub about: &'static str,
}

/// The parameters of one request, as read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parameters(Vec<(&'static str, Read)>);

#[derive(Debug, PartialEq, Eq)]
enum Read {
    Text(String),
    Truth(bool),
    Whole(u32),
}

impl Parameters {
    /// Empty when it was not given.
    pub fn text(&self, name: &str) -> String {
        match self.get(name) {
            Some(Read::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }

    /// False when it was not given.
    pub fn truth(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Read::Truth(true)))
    }

    /// `None` when it was not given.
    pub fn whole(&self, name: &str) -> Option<u32> {
        match self.get(name) {
            Some(Read::Whole(number)) => Some(*number),
            _ => None,
        }
    }

    fn get(&self, name: &str) -> Option<&Read> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, read)| read)
    }
}

/// Reads the query of a request. What has a fault is as if it were not given; there are at most [`MAX_FAULTS`] of them.
pub fn read(uri: &Uri, known: &[Parameter]) -> (Parameters, Vec<Fault>) {
    let mut parameters = Parameters::default();
    let mut faults = Vec::new();
    let pairs = match Query::<Vec<(String, String)>>::try_from_uri(uri) {
        Ok(Query(pairs)) => pairs,
        Err(error) => {
            faults.push(Fault::new("", Code::Malformed, format!("the query cannot be read: {error}")));
            return (parameters, faults);
        }
    };
    let known = || known.iter().filter(|parameter| parameter.place == Place::Query);
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in &pairs {
        if faults.len() == MAX_FAULTS {
            return (parameters, faults);
        }
        let Some(parameter) = known().find(|parameter| parameter.name == name) else {
            faults.push(unknown(name, &known().map(|parameter| parameter.name).collect::<Vec<_>>()));
            continue;
        };
        if seen.contains(&parameter.name) {
            faults.push(Fault::new(parameter.name, Code::Validation, "query parameter given more than once"));
            continue;
        }
        seen.push(parameter.name);
        match parameter.kind.read(value) {
            Ok(read) => parameters.0.push((parameter.name, read)),
            Err(message) => faults.push(Fault::new(parameter.name, Code::Validation, message)),
        }
    }
    let missing = known().filter(|parameter| parameter.required && !seen.contains(&parameter.name));
    faults.extend(missing.map(|parameter| Fault::new(parameter.name, Code::Validation, "is missing")));
    (parameters, faults)
}

impl Kind {
    fn read(self, value: &str) -> Result<Read, String> {
        match self {
            Self::Text => Ok(Read::Text(value.to_owned())),
            Self::Truth => match value {
                "true" => Ok(Read::Truth(true)),
                "false" => Ok(Read::Truth(false)),
                other => Err(format!("must be true or false, got {}", quoted(other))),
            },
            Self::Whole { least, most, .. } => {
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let number = value.parse().ok().filter(|number| digits && (least..=most).contains(number));
                number.map(Read::Whole).ok_or_else(|| format!("must be an integer from {least} to {most}, got {}", quoted(value)))
            }
        }
    }
}

fn unknown(name: &str, known: &[&str]) -> Fault {
    let field = if name.len() <= 64 { name.to_owned() } else { quoted(name) };
    let known = if known.is_empty() { "none is known here".to_owned() } else { format!("known are {}", known.join(", ")) };
    Fault::new(field, Code::Validation, format!("unknown query parameter; {known}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn parameter(name: &'static str, kind: Kind, required: bool) -> Parameter {
        Parameter { name, place: Place::Query, kind, required, about: "" }
    }

    const KNOWN: &[Parameter] = &[
        parameter("service", Kind::Text, false),
        parameter("dry_run", Kind::Truth, false),
        parameter("seconds", Kind::Whole { least: 0, most: 300, otherwise: 30 }, false),
        Parameter { place: Place::Header, ..parameter("Last-Event-ID", Kind::Text, false) },
    ];

    fn of(query: &str, known: &[Parameter]) -> Result<Parameters, Vec<String>> {
        let uri = Uri::builder().path_and_query(format!("/a?{query}")).build().unwrap();
        let (parameters, faults) = read(&uri, known);
        if faults.is_empty() {
            Ok(parameters)
        } else {
            Err(faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect())
        }
    }

    #[test]
    fn parameters_are_known_and_given_once_or_told_all_at_once() {
        let given = of("seconds=7&dry_run=true&service=a%20b", KNOWN).unwrap();
        assert_eq!((given.whole("seconds"), given.truth("dry_run"), given.text("service")), (Some(7), true, "a b".into()));
        let none = of("", KNOWN).unwrap();
        assert_eq!((none.whole("seconds"), none.truth("dry_run"), none.text("service")), (None, false, String::new()));
        let faults = of("second=7&dry_run=1&dry_run=true&seconds=x&Last-Event-ID=a", KNOWN).unwrap_err();
        let expected = [
            "second: unknown query parameter; known are service, dry_run, seconds",
            "dry_run: must be true or false, got \"1\"",
            "dry_run: query parameter given more than once",
            "seconds: must be an integer from 0 to 300, got \"x\"",
            "Last-Event-ID: unknown query parameter; known are service, dry_run, seconds",
        ];
        assert_eq!(faults, expected);
        assert_eq!(of("a", &[]).unwrap_err(), ["a: unknown query parameter; none is known here"]);
        assert_eq!(of("", &[parameter("path", Kind::Text, true)]).unwrap_err(), ["path: is missing"]);
        assert_eq!(of("path=", &[parameter("path", Kind::Text, true)]).unwrap().text("path"), "");
    }

    #[test]
    fn an_integer_is_digits_within_its_bounds() {
        let check = |value: &str, expected: Option<u32>| {
            assert_eq!(of(&format!("seconds={value}"), KNOWN).ok().and_then(|given| given.whole("seconds")), expected, "{value:?}");
        };
        for (good, number) in [("0", 0), ("300", 300), ("007", 7)] {
            check(good, Some(number));
        }
        for bad in ["", "301", "-1", "+1", "%2B1", "1.0", "1e1", "0x1", " 1", "1%20", "99999999999999999999", "\u{661}", "NaN"] {
            let bad: String = bad.chars().map(|char| if char.is_ascii() { char.to_string() } else { "%D9%A1".into() }).collect();
            check(&bad.replace(' ', "%20"), None);
        }
    }

    #[test]
    fn a_flood_of_parameters_is_told_in_bounds() {
        let query: String = (0..5_000).map(|index| format!("p{index}&")).collect();
        assert_eq!(of(&query, KNOWN).unwrap_err().len(), MAX_FAULTS);
    }

    proptest! {
        #[test]
        fn whatever_the_query_what_is_read_is_within_its_bounds(query in "[a-z_=&%+0-9;?/.-]{0,200}") {
            if let Ok(uri) = Uri::builder().path_and_query(format!("/a?{query}")).build() {
                let (parameters, faults) = read(&uri, KNOWN);
                prop_assert!(faults.len() <= MAX_FAULTS + 1);
                prop_assert!(parameters.whole("seconds").is_none_or(|seconds| seconds <= 300));
                // Each pair is read or is a fault, nothing is passed over.
                let pairs = query.split('&').filter(|pair| !pair.is_empty()).count();
                prop_assert_eq!(parameters.0.len() + faults.len(), pairs, "{:?} {:?}", parameters, faults);
            }
        }

        #[test]
        fn what_is_written_is_read(seconds in 0u32..=300, dry_run: bool, service in "[a-z0-9 %&=+#é-]{0,40}") {
            let mut query = format!("dry_run={dry_run}&seconds={seconds}&service=");
            for byte in service.bytes() {
                query.push_str(&format!("%{byte:02X}"));
            }
            let given = of(&query, KNOWN).unwrap();
            prop_assert_eq!((given.whole("seconds"), given.truth("dry_run"), given.text("service")), (Some(seconds), dry_run, service));
        }
    }
}
