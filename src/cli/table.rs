//! Tables for people.

/// Columns padded to their widest cell, two blanks apart. What services wrote may hold anything, so
/// control characters are shown, not sent to the terminal.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(&head).chain(rows).map(|row: &Vec<String>| row.iter().map(|cell| shown(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Text from outside, safe for a terminal.
pub fn shown(text: &str) -> String {
    let safe = |character: char| match character.is_control() {
        true => character.escape_debug().to_string(),
        false => character.to_string(),
    };
    text.chars().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_reaches_the_terminal_raw() {
        let rows = [vec!["sagjan".to_owned(), "UP".to_owned()], vec!["a\u{1b}[2J".to_owned(), String::new()]];
        assert_eq!(table(&["SERVICE", "STATUS"], &rows), "SERVICE     STATUS\nsagjan      UP\na\\u{1b}[2J");
    }
}
