//! The text of furt.conf: sections, labels, keys, values, comments, each with its line.
//!
//! Here: the INI that the original furt reads. Not here: which sections and keys there are, what a
//! value means, the environment. No message repeats what a line says: it could be a secret.

/// A section with its keys, in the order of the file.
pub struct Section {
    /// The word in the brackets.
    pub name: String,
    /// The quoted text after it. For an API key this can be the key itself.
    pub label: Option<String>,
    /// The line of its header, from 1.
    pub line: u32,
    /// Its keys.
    pub entries: Vec<Entry>,
}

/// One `key = value`.
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its line, from 1.
    pub line: u32,
    /// What follows the `=`.
    pub value: Value,
}

/// What follows the `=`, without its comment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Value {
    /// All of it; without its quotes when it is one quoted text.
    pub whole: String,
    /// Split at the commas outside of quotes.
    pub items: Vec<Item>,
}

/// One item of a comma list.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    /// The text, without quotes and the blanks around it.
    pub text: String,
    /// Whether it stood in quotes.
    pub quoted: bool,
}

/// A line that is not furt.conf, and what was expected there.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1.
    pub line: u32,
    /// The key, when it got that far.
    pub key: String,
    /// What was expected.
    pub message: &'static str,
    /// The section it is in; `None` before the first.
    pub section: Option<usize>,
}

/// Takes a text apart; goes on after each fault, so that all are told.
pub fn read(text: &str) -> (Vec<Section>, Vec<Fault>) {
    let mut sections: Vec<Section> = Vec::new();
    let mut faults = Vec::new();
    let mut lost = false;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, content) in (1u32..).zip(text.lines()) {
        let content = content.trim();
        if content.is_empty() || content.starts_with(['#', ';']) {
            continue;
        }
        let section = sections.len().checked_sub(1);
        if content.starts_with('[') {
            let read = header(content);
            lost = read.is_err();
            match read {
                Ok((name, label)) => sections.push(Section { name, label, line, entries: Vec::new() }),
                Err(message) => faults.push(Fault { line, key: String::new(), message, section: None }),
            }
            continue;
        }
        match (entry(content, line), sections.last_mut()) {
            // It is of the section whose header could not be read, not of the one before.
            (Ok(_), _) if lost => {}
            (Ok(entry), Some(section)) => section.entries.push(entry),
            (Ok(entry), None) => {
                faults.push(Fault { line, key: entry.key, message: "expected a [section] before the first key", section });
            }
            (Err((key, message)), _) => faults.push(Fault { line, key, message, section }),
        }
    }
    (sections, faults)
}

fn header(content: &str) -> Result<(String, Option<String>), &'static str> {
    const EXPECTED: &str = "expected [section] or [section \"label\"]";
    let inner = content.strip_prefix('[').ok_or(EXPECTED)?.trim_start();
    let end = inner.find(|character: char| !word(character)).ok_or(EXPECTED)?;
    let (name, rest) = inner.split_at(end);
    let rest = rest.trim_start();
    let (label, rest) = match rest.strip_prefix('"') {
        Some(rest) => rest.split_once('"').map(|(label, rest)| (Some(label.to_owned()), rest)).ok_or("expected a closing quote")?,
        None if rest.starts_with(word) => return Err("expected quotes around the label: [section \"label\"]"),
        None => (None, rest),
    };
    let rest = rest.trim_start().strip_prefix(']').ok_or(EXPECTED)?.trim_start();
    if name.is_empty() || !(rest.is_empty() || rest.starts_with(['#', ';'])) {
        return Err(EXPECTED);
    }
    if label.as_ref().is_some_and(|label| label.is_empty() || label.chars().any(char::is_control)) {
        return Err("expected a label that is not empty and has no control characters");
    }
    Ok((name.to_owned(), label))
}

fn word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || character == '-'
}

fn entry(content: &str, line: u32) -> Result<Entry, (String, &'static str)> {
    let nameless = |message| (String::new(), message);
    let (key, value) = content.split_once('=').ok_or(nameless("expected key = value"))?;
    let key = key.trim();
    if key.is_empty() || key.len() > 64 || !key.chars().all(word) {
        return Err(nameless("expected a key of letters, digits and \"_\" before the \"=\""));
    }
    let value = value_of(value).map_err(|message| (key.to_owned(), message))?;
    Ok(Entry { key: key.to_owned(), line, value })
}

/// Reads a value up to its comment: `;` or `#` after a blank.
fn value_of(text: &str) -> Result<Value, &'static str> {
    if text.chars().any(|character| character.is_control() && character != '\t') {
        return Err("expected a value without control characters");
    }
    let mut items = Vec::new();
    let mut rest = text;
    loop {
        let (item, after) = item(rest)?;
        items.push(item);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => {
                rest = after;
                break;
            }
        }
    }
    let whole = match &*items {
        [only] => only.text.clone(),
        _ => text[..text.len() - rest.len()].trim().to_owned(),
    };
    Ok(Value { whole, items })
}

/// One item and what follows it: `,…`, a comment, or nothing.
fn item(text: &str) -> Result<(Item, &str), &'static str> {
    if let Some(quoted) = text.trim_start().strip_prefix('"') {
        let (inner, after) = quoted.split_once('"').ok_or("expected a closing quote")?;
        let rest = after.trim_start();
        let comment = rest.len() < after.len() && rest.starts_with([';', '#']);
        if !(rest.is_empty() || rest.starts_with(',') || comment) {
            return Err("expected nothing but a comma or a comment after the closing quote");
        }
        return Ok((Item { text: inner.to_owned(), quoted: true }, rest));
    }
    let mut blank = false;
    let end = text.find(|character: char| {
        let ends = character == ',' || (blank && matches!(character, ';' | '#'));
        blank = character.is_whitespace();
        ends
    });
    let (inner, rest) = text.split_at(end.unwrap_or(text.len()));
    Ok((Item { text: inner.trim().to_owned(), quoted: false }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> (String, Vec<String>) {
        let value = value_of(text).unwrap();
        (value.whole, value.items.into_iter().map(|item| item.text).collect())
    }

    #[test]
    fn values_end_at_comments_and_split_at_commas_outside_of_quotes() {
        let check = |text: &str, whole: &str, items: &[&str]| {
            assert_eq!(value(text), (whole.to_owned(), items.iter().map(|item| (*item).to_owned()).collect()), "{text}");
        };
        check(" 30", "30", &["30"]);
        check(" info ; error warn", "info", &["info"]);
        check(" \t; nothing", "", &[""]);
        check("", "", &[""]);
        check(" a, b ,c # d, e", "a, b ,c", &["a", "b", "c"]);
        check(" \"a ; b, c\" ; d", "a ; b, c", &["a ; b, c"]);
        check(" \"a, b\", c", "\"a, b\", c", &["a, b", "c"]);
        check(" http://h/#x;y", "http://h/#x;y", &["http://h/#x;y"]);
        check(" a\"b", "a\"b", &["a\"b"]);
        assert!(value_of(" \"a").is_err());
        assert!(value_of(" \"a\"b").is_err());
        assert!(value_of(" \"a\";b").is_err());
        assert!(value_of(" a\u{7}").is_err());
    }

    #[test]
    fn sections_keep_labels_and_lines_and_faults_do_not_stop_the_reading() {
        let text = "\u{feff}# furt\r\nearly = 1\r\n[server] ; c\r\nport = 1\r\nno value\r\n[service \"a b\"]\n[bad\nx = \"y\n=z\n";
        let (sections, faults) = read(text);
        let names: Vec<_> = sections.iter().map(|section| (&*section.name, section.label.as_deref(), section.line)).collect();
        assert_eq!(names, [("server", None, 3), ("service", Some("a b"), 6)]);
        assert_eq!(sections[0].entries[0].line, 4);
        assert_eq!(faults.iter().map(|fault| fault.line).collect::<Vec<_>>(), [2, 5, 7, 8, 9]);
        assert_eq!(faults[3].key, "x");
    }

    #[test]
    fn headers_are_a_word_and_perhaps_a_label() {
        for bad in ["[]", "[a b]", "[a \"\"]", "[a \"b]", "[a] b", "[a\"b\"c]", "[ä]", "[a \"b\" \"c\"]"] {
            assert!(header(bad).is_err(), "{bad}");
        }
        assert_eq!(header("[ a \"b]\" ] # c"), Ok(("a".to_owned(), Some("b]".to_owned()))));
    }
}
