//! Tables for people, as wide as their screen allows, with nothing left out.
//!
//! Here: columns, and what becomes of them where they do not fit; text from outside made safe for a
//! terminal. Not here: what is in a table.

use super::screen::{Screen, Tone};

/// Between two columns.
const GAP: &str = "  ";
/// The least room in which the last column is broken into lines; with less, each row becomes a block of lines.
const LEAST_LAST: usize = 24;

/// One cell.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Text with a tone. What services wrote may hold anything, so it is made [`shown`].
    pub fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: shown(text.as_ref()), tone }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    /// Padded to `width`; the padding has no colour.
    fn padded(&self, screen: &Screen, width: usize) -> String {
        let padding = " ".repeat(width.saturating_sub(self.width()));
        format!("{}{padding}", screen.paint(&self.text, self.tone))
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A head and rows of as many cells.
#[derive(Debug, Clone)]
pub struct Table {
    head: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new<T: Into<Cell>>(head: impl IntoIterator<Item = T>) -> Self {
        Self { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// A table with these rows.
    pub fn of<T: Into<Cell>>(head: impl IntoIterator<Item = T>, rows: impl IntoIterator<Item = Vec<Cell>>) -> Self {
        Self { rows: rows.into_iter().collect(), ..Self::new(head) }
    }

    /// As text: columns padded to their widest cell. On a screen that is too narrow for it, columns with
    /// nothing in them go first; then the last column is broken into lines; then each row is a block of lines.
    pub fn shown(&self, screen: &Screen) -> String {
        let Some(room) = screen.width else { return self.columns(screen, None) };
        if self.total(self.widths()) <= room {
            return self.columns(screen, None);
        }
        let table = self.without_empty_columns();
        let widths = table.widths();
        if table.total(widths.clone()) <= room {
            return table.columns(screen, None);
        }
        let last = widths.last().copied().unwrap_or(0);
        let left = room.saturating_sub(table.total(widths) - last);
        let longest_word =
            table.rows.iter().filter_map(|row| row.last()).flat_map(|cell| cell.text.split(' ')).map(|word| word.chars().count());
        if left >= LEAST_LAST && longest_word.max().unwrap_or(0) <= left {
            return table.columns(screen, Some(left));
        }
        table.blocks(screen)
    }

    fn widths(&self) -> Vec<usize> {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        (0..self.head.len()).map(|column| all().filter_map(|row| row.get(column)).map(Cell::width).max().unwrap_or(0)).collect()
    }

    fn total(&self, widths: Vec<usize>) -> usize {
        widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
    }

    fn without_empty_columns(&self) -> Self {
        let kept = |column: &usize| self.rows.iter().any(|row| row.get(*column).is_some_and(|cell| !cell.text.is_empty()));
        let columns: Vec<usize> = (0..self.head.len()).filter(kept).collect();
        let keep = |row: &Vec<Cell>| columns.iter().filter_map(|column| row.get(*column).cloned()).collect();
        Self { head: keep(&self.head), rows: self.rows.iter().map(keep).collect() }
    }

    /// A line for each row; with `last`, the last column has lines of that many characters below each other.
    fn columns(&self, screen: &Screen, last: Option<usize>) -> String {
        let widths = self.widths();
        let mut lines = Vec::new();
        for row in std::iter::once(&self.head).chain(&self.rows) {
            let mut cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| cell.padded(screen, *width)).collect();
            let mut rest = Vec::new();
            if let (Some(room), Some(cell)) = (last, row.last()) {
                let mut pieces = wrapped(&cell.text, room).into_iter().map(|text| screen.paint(&text, cell.tone));
                cells.pop();
                cells.push(pieces.next().unwrap_or_default());
                rest.extend(pieces);
            }
            lines.push(cells.join(GAP).trim_end().to_owned());
            let indent = self.total(widths.clone()) - widths.last().copied().unwrap_or(0);
            lines.extend(rest.into_iter().map(|text| format!("{}{text}", " ".repeat(indent))));
        }
        lines.join("\n")
    }

    /// A block for each row: a line for each cell that is not empty, after its head.
    fn blocks(&self, screen: &Screen) -> String {
        let width = self.head.iter().map(Cell::width).max().unwrap_or(0);
        let block = |row: &Vec<Cell>| {
            let filled = self.head.iter().zip(row).filter(|(_, cell)| !cell.text.is_empty());
            let lines = filled.map(|(head, cell)| format!("{}{GAP}{}", head.padded(screen, width), screen.paint(&cell.text, cell.tone)));
            lines.collect::<Vec<_>>().join("\n")
        };
        self.rows.iter().map(block).collect::<Vec<_>>().join("\n\n")
    }
}

/// Lines of up to `width` characters, broken at blanks; a longer word has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        let (have, more) = (line.chars().count(), word.chars().count());
        if have == 0 {
            line.push_str(word);
        } else if have + 1 + more <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Text from outside, safe for a terminal: control characters, and those that turn the direction of
/// writing, are spelled out.
pub fn shown(text: &str) -> String {
    let unsafe_one = |character: char| {
        character.is_control() || matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let safe = |character: char| match unsafe_one(character) {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row =
            |service: &str, status: &str, tone, note: &str| vec![service.into(), Cell::new(status, tone), Cell::default(), note.into()];
        let rows = [
            row("sagjan", "UP", Tone::Good, ""),
            row("obr", "DOWN", Tone::Bad, "connection refused by the upstream, three times in a row"),
        ];
        Table::of(["SERVICE", "STATUS", "HOST", "NOTE"], rows)
    }

    #[test]
    fn columns_line_up_and_nothing_reaches_the_terminal_raw() {
        let rows = [vec!["sagjan".into(), "UP".into()], vec!["a\u{1b}[2J\u{202e}".into(), Cell::default()]];
        let said = Table::of(["SERVICE", "STATUS"], rows).shown(&Screen::PLAIN);
        assert_eq!(said, "SERVICE             STATUS\nsagjan              UP\na\\u{1b}[2J\\u{202e}");
    }

    #[test]
    fn colour_is_not_counted_as_width() {
        let expected = "SERVICE  STATUS  HOST  NOTE\n\
                        sagjan   \x1b[32mUP\x1b[0m\n\
                        obr      \x1b[31mDOWN\x1b[0m          connection refused by the upstream, three times in a row";
        let said = table().shown(&Screen::terminal(200));
        assert_eq!(said.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"), expected);
    }

    /// The lines without colour, none of them wider than the screen.
    fn narrow(width: usize) -> String {
        let said = table().shown(&Screen::terminal(width));
        let plain = ["\x1b[32m", "\x1b[31m", "\x1b[0m"].iter().fold(said, |said, code| said.replace(code, ""));
        plain.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_narrow_screen_loses_nothing() {
        let one_line = "SERVICE  STATUS  NOTE\nsagjan   UP\nobr      DOWN    connection refused by the upstream, three times in a row";
        assert_eq!(narrow(76), one_line, "the empty column goes first");
        let wrapped = "SERVICE  STATUS  NOTE\nsagjan   UP\nobr      DOWN    connection refused by the\n                 upstream, three times in a\n                 row";
        assert_eq!(narrow(43), wrapped, "then the last one is broken");
        let blocks = "SERVICE  sagjan\nSTATUS   UP\n\nSERVICE  obr\nSTATUS   DOWN\nNOTE     connection refused by the upstream, three times in a row";
        assert_eq!(narrow(30), blocks, "then each row is a block");
        assert_eq!(narrow(1), blocks);
    }

    #[test]
    fn a_long_word_is_not_broken() {
        let table = Table::of(["ID", "URL"], [vec!["default".into(), "http://a-rather-long-name-of-a-host.example.org:7812".into()]]);
        assert_eq!(table.shown(&Screen::terminal(50)), "ID   default\nURL  http://a-rather-long-name-of-a-host.example.org:7812");
    }
}
