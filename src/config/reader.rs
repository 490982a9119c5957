//! Reads the keys of one section into types, and tells every fault with its line.
//!
//! Here: where a value comes from (the file, `${NAME}`, `key_file`, the default), and the small
//! types that several sections use. Not here: which keys there are, relations between keys.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use furt_proto::{names::NameError, time::parse_duration};
use http::{HeaderName, HeaderValue};

use super::{
    Surroundings,
    keys::Kind,
    report::{Report, hint},
    text::{Entry, Item, Section, Value},
};

/// One section being read.
pub struct Reader<'a> {
    section: &'a Section,
    kind: &'static Kind,
    around: &'a Surroundings<'a>,
    file: &'a str,
    report: &'a mut Report,
}

/// Text for a value, and whether a message may repeat it.
struct Text {
    items: Vec<Item>,
    whole: String,
    tellable: bool,
}

/// Values that a message never repeats, wherever they come from: a slip could put the secret itself there.
const UNTOLD: [&str; 4] = ["key_sha256", "token_sha256", "sha256", "set_headers"];

impl<'a> Reader<'a> {
    /// Begins with what can be said of the keys alone: unknown, repeated, given in two ways.
    pub fn new(section: &'a Section, kind: &'static Kind, around: &'a Surroundings<'a>, file: &'a str, report: &'a mut Report) -> Self {
        let mut reader = Self { section, kind, around, file, report };
        reader.check_keys();
        reader
    }

    fn check_keys(&mut self) {
        for (index, entry) in self.section.entries.iter().enumerate() {
            let name = self.known_name(&entry.key);
            let earlier = self.section.entries.iter().take(index).find(|other| self.known_name(&other.key) == name);
            if super::keys::is_mail_key(self.kind, &entry.key) {
                continue;
            }
            if let Some(earlier) = earlier {
                self.report.error(entry.line, &entry.key, format!("expected once, it is set in line {} already", earlier.line));
            }
            if self.kind.key(name).is_none() {
                let hint = hint(&entry.key, self.kind.keys.iter().map(|key| key.name));
                let message = format!("[{}] has no such key{hint}", self.kind.name);
                match self.kind.strict {
                    true => self.report.error(entry.line, &entry.key, message),
                    false => self.report.warn(entry.line, &entry.key, format!("{message}; it is ignored")),
                }
            }
        }
    }

    /// `key` for `key_file`.
    fn known_name<'n>(&self, name: &'n str) -> &'n str {
        match name.strip_suffix("_file") {
            Some(base) if self.kind.key(base).is_some() => base,
            _ => name,
        }
    }

    /// The label; empty when the section takes none. May be a secret in `[api_key]`.
    pub fn label(&self) -> &'a str {
        self.section.label.as_deref().unwrap_or_default()
    }

    /// The line of a key, or of the section's header when the key is not set.
    pub fn line(&self, key: &str) -> u32 {
        self.entry(key).map_or(self.section.line, |entry| entry.line)
    }

    /// Whether a key is written at all, be it empty.
    pub fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.section.entries.iter().find(|entry| self.known_name(&entry.key) == key)
    }

    /// A path that furt.conf names: relative ones begin at its own directory.
    pub fn beside(&self, path: &str) -> PathBuf {
        Path::new(self.file).parent().unwrap_or(Path::new("")).join(path)
    }

    /// The text of a file that furt.conf names.
    pub fn content(&self, path: &str) -> io::Result<String> {
        (self.around.read_file)(&self.beside(path))
    }

    /// What a message may say of a file that a key names.
    pub fn shown(&self, key: &str, path: &str) -> String {
        let told = self.entry(key).is_none_or(|entry| entry.key == key && !entry.value.whole.contains("${"));
        if told { format!("{path:?}") } else { "the file named there".into() }
    }

    /// Tells a fault of a key.
    pub fn error(&mut self, key: &str, message: impl Into<String>) {
        let line = self.line(key);
        self.report.error(line, key, message);
    }

    /// Tells an oddity of a key.
    pub fn warn(&mut self, key: &str, message: impl Into<String>) {
        let line = self.line(key);
        self.report.warn(line, key, message);
    }

    /// A value that must be there, be it by default. `None`: the fault is told.
    pub fn read<T, E: ToString>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        match self.text(key)? {
            Some(text) => self.parse(key, text.tellable, parse(&text.whole)),
            None => {
                self.error(key, "expected a value");
                None
            }
        }
    }

    /// A value that may be absent. `None`: the fault is told.
    pub fn optional<T, E: ToString>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<Option<T>> {
        match self.text(key)? {
            Some(text) => self.parse(key, text.tellable, parse(&text.whole)).map(Some),
            None => Some(None),
        }
    }

    /// A comma list; absent is its default, written without anything it is empty. Every item that is wrong is told.
    pub fn list<T, E: ToString>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, E>) -> Option<Vec<T>> {
        if self.entry(key).is_some_and(|entry| blank(&entry.value)) {
            return Some(Vec::new());
        }
        let Some(text) = self.text(key)? else { return Some(Vec::new()) };
        // An item from the environment may itself be a list.
        let split = |item: &Item| -> Vec<String> {
            match item.quoted {
                true => vec![item.text.clone()],
                false => item.text.split(',').map(|part| part.trim().to_owned()).collect(),
            }
        };
        let parts: Vec<String> = text.items.iter().flat_map(split).filter(|part| !part.is_empty()).collect();
        self.items(key, text.tellable, &parts, parse)
    }

    fn items<T, E: ToString>(
        &mut self,
        key: &'static str,
        tellable: bool,
        parts: &[String],
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        if parts.is_empty() {
            self.error(key, "expected a list with something in it");
            return None;
        }
        let parsed: Vec<_> = parts.iter().map(|part| self.parse(key, tellable, parse(part))).collect();
        parsed.into_iter().collect()
    }

    /// `Name: value` items. A value from the environment may have commas.
    pub fn headers(&mut self, key: &'static str) -> Option<Vec<(HeaderName, HeaderValue)>> {
        let Some(text) = self.text(key)? else { return Some(Vec::new()) };
        let parts: Vec<String> = text.items.into_iter().map(|item| item.text).filter(|part| !part.is_empty()).collect();
        let headers = self.items(key, false, &parts, header)?;
        let repeated = |(index, (name, _)): (usize, &(HeaderName, _))| headers.iter().take(index).any(|(other, _)| other == name);
        if headers.iter().enumerate().any(repeated) {
            self.error(key, "expected each header once, one is there twice");
            return None;
        }
        Some(headers)
    }

    fn parse<T, E: ToString>(&mut self, key: &'static str, tellable: bool, parsed: Result<T, E>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(error) => {
                let message = error.to_string();
                let told = match message.split_once(", got ") {
                    Some((expected, got)) if !tellable || got.contains('@') => expected,
                    _ => &message,
                };
                self.error(key, told);
                None
            }
        }
    }

    /// The text of a key, from wherever it comes. `None`: a fault is told; `Some(None)`: absent or
    /// empty, and no default.
    fn text(&mut self, key: &'static str) -> Option<Option<Text>> {
        let Some(entry) = self.entry(key).filter(|entry| !blank(&entry.value)) else {
            let default = self.kind.key(key).map_or("", |key| key.default);
            let item = |text: &str| Item { text: text.trim().to_owned(), quoted: false };
            let items = default.split(',').map(item).collect();
            return Some((!default.is_empty()).then(|| Text { items, whole: default.to_owned(), tellable: true }));
        };
        let tellable = !UNTOLD.contains(&key) && !entry.value.whole.contains("${") && entry.key == key;
        let found = if entry.key == key {
            let items = entry.value.items.iter().map(|item| Ok(Item { text: self.expand(&item.text)?, quoted: item.quoted }));
            items.collect::<Result<Vec<_>, _>>().and_then(|items| Ok((items, self.expand(&entry.value.whole)?)))
        } else {
            self.expand(&entry.value.whole).and_then(|path| self.read_file(&path)).map(|text| {
                let item = Item { text: text.clone(), quoted: false };
                (vec![item], text)
            })
        };
        match found {
            Ok((items, whole)) => Some(Some(Text { items, whole, tellable })),
            Err(message) => {
                self.report.error(entry.line, &entry.key, message);
                None
            }
        }
    }

    /// Puts the environment's values in the place of every `${NAME}`.
    fn expand(&self, text: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            out.push_str(before);
            let name = after.split_once('}').map(|(name, _)| name);
            let word = |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let name = name.filter(word).ok_or("expected ${NAME} with a name of letters, digits and \"_\"")?;
            let value = (self.around.environment)(name).ok_or_else(|| format!("expected ${{{name}}} in the environment, it is not set"))?;
            if value.is_empty() {
                return Err(format!("expected a value in ${{{name}}}, it is set but empty"));
            }
            if value.chars().any(char::is_control) {
                return Err(format!("expected ${{{name}}} without control characters"));
            }
            out.push_str(&value);
            rest = after.split_once('}').map_or("", |(_, rest)| rest);
        }
        out.push_str(rest);
        Ok(out)
    }

    /// The one line of a file, relative to the directory of furt.conf.
    fn read_file(&self, path: &str) -> Result<String, String> {
        let path = self.beside(path);
        let text = (self.around.read_file)(&path).map_err(|error| format!("expected a readable file at {path:?}: {error}"))?;
        let text = text.trim();
        match text.is_empty() || text.chars().any(char::is_control) {
            true => Err(format!("expected one line of text in {path:?}")),
            false => Ok(text.to_owned()),
        }
    }
}

/// Whether nothing is written after the `=`.
fn blank(value: &Value) -> bool {
    matches!(&*value.items, [only] if only.text.is_empty() && !only.quoted)
}

/// `true` or `false`.
pub fn boolean(text: &str) -> Result<bool, NameError> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(expected("true or false", text)),
    }
}

/// A whole number from `least` to `most`.
pub fn number(least: u64, most: u64) -> impl Fn(&str) -> Result<u64, NameError> {
    move |text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number.filter(|number| (least..=most).contains(number)).ok_or_else(|| expected(&format!("a number from {least} to {most}"), text))
    }
}

/// A duration above zero.
pub fn duration(text: &str) -> Result<Duration, NameError> {
    parse_duration(text).and_then(|duration| match duration.is_zero() {
        true => Err(expected("a duration above 0", text)),
        false => Ok(duration),
    })
}

/// Bytes: a number, alone or with KiB or MiB.
pub fn size(text: &str) -> Result<u64, NameError> {
    let (digits, unit) = match (text.strip_suffix("KiB"), text.strip_suffix("MiB")) {
        (Some(digits), _) => (digits.trim_end(), 1 << 10),
        (_, Some(digits)) => (digits.trim_end(), 1 << 20),
        _ => (text, 1u64),
    };
    let number = number(0, u64::MAX)(digits).ok().and_then(|number| number.checked_mul(unit));
    number.filter(|_| !digits.is_empty()).ok_or_else(|| expected("a size such as 65536, 64 KiB or 10 MiB", text))
}

/// [`size`] within bounds, which are themselves written as sizes.
pub fn size_within(least: &'static str, most: &'static str) -> impl Fn(&str) -> Result<usize, NameError> {
    let bound = |text| size(text).unwrap_or(0);
    move |text| {
        let within = size(text)?;
        let within = (bound(least)..=bound(most)).contains(&within).then_some(within);
        within.and_then(|within| usize::try_from(within).ok()).ok_or_else(|| expected(&format!("a size from {least} to {most}"), text))
    }
}

/// A name that travels in a header or is shown: visible ASCII, blanks only inside.
pub fn visible(text: &str) -> Result<String, NameError> {
    let fits = text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') && text.trim() == text;
    if fits && !text.is_empty() { Ok(text.to_owned()) } else { Err(expected("a name in visible ASCII of up to 256 bytes", text)) }
}

/// A SHA-256 in hex.
pub fn sha256(text: &str) -> Result<[u8; 32], NameError> {
    let mut digest = [0; 32];
    let digits: Option<Vec<u32>> = text.chars().map(|character| character.to_digit(16)).collect();
    match digits.filter(|digits| digits.len() == 64) {
        Some(digits) => {
            for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
                *byte = pair.iter().fold(0, |byte, digit| byte << 4 | u8::try_from(*digit).unwrap_or(0));
            }
            Ok(digest)
        }
        None => Err(NameError("expected a SHA-256 as 64 hex digits (printf %s KEY | sha256sum)".into())),
    }
}

/// What frames a message or belongs to one connection; only furt itself sets these.
const FRAMING: [&str; 9] =
    ["connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

fn header(text: &str) -> Result<(HeaderName, HeaderValue), NameError> {
    let expected = || NameError("expected headers such as \"Name: value\" with a value in visible ASCII".into());
    let (name, value) = text.split_once(':').ok_or_else(expected)?;
    let name: HeaderName = name.trim_end().parse().map_err(|_| expected())?;
    if FRAMING.contains(&name.as_str()) {
        return Err(NameError(format!("expected a header that does not frame the message, {name} does")));
    }
    let value = value.trim();
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(expected());
    }
    let mut value = HeaderValue::from_str(value).map_err(|_| expected())?;
    // Neither Debug nor HPACK's tables show or keep it.
    value.set_sensitive(true);
    Ok((name, value))
}

/// `expected …, got "…"`, the shape that [`Reader`] can take the text out of.
pub fn expected(what: &str, text: &str) -> NameError {
    NameError(format!("expected {what}, got {}", furt_proto::names::quoted(text)))
}
