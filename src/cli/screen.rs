//! What an output can show: colour or not, and how wide it is.
//!
//! Here: the few ANSI codes furt uses. Not here: what is green.

use std::{
    env,
    ffi::OsStr,
    io::{self, IsTerminal},
};

use rustix::termios::tcgetwinsize;

/// Where something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    colour: bool,
    /// Columns; `None`: as wide as need be, because no person looks.
    pub width: Option<usize>,
}

/// How a word is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// As any other.
    #[default]
    Plain,
    /// All is well: green.
    Good,
    /// Worth a look: yellow.
    Odd,
    /// Something is down or refused: red.
    Bad,
}

impl Screen {
    /// No colour, any width: a file, a pipe.
    pub const PLAIN: Self = Self { colour: false, width: None };

    /// Standard output as it is.
    pub fn stdout() -> Self {
        if !io::stdout().is_terminal() {
            return Self::PLAIN;
        }
        // A terminal that does not know its size says 0.
        let width = tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        Self { colour: is_coloured(true, env::var_os("NO_COLOR").as_deref(), env::var_os("TERM").as_deref()), width }
    }

    /// The text in the colour of its tone, where there is colour.
    pub fn paint(&self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Odd => "33",
            Tone::Bad => "31",
            Tone::Plain => return text.to_owned(),
        };
        if self.colour && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether colour may go to standard error.
pub fn stderr_is_coloured() -> bool {
    is_coloured(io::stderr().is_terminal(), env::var_os("NO_COLOR").as_deref(), env::var_os("TERM").as_deref())
}

/// Only a terminal that knows more than letters, and only where nobody objects (<https://no-color.org>).
fn is_coloured(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty) && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

#[cfg(test)]
impl Screen {
    /// A terminal with colour.
    pub fn terminal(width: usize) -> Self {
        Self { colour: true, width: Some(width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_where_nobody_objects() {
        let check = |terminal, no_color: Option<&str>, term: Option<&str>, expected| {
            assert_eq!(is_coloured(terminal, no_color.map(OsStr::new), term.map(OsStr::new)), expected, "{no_color:?} {term:?}");
        };
        check(true, None, Some("xterm"), true);
        check(true, Some(""), Some("xterm"), true);
        check(true, Some("1"), Some("xterm"), false);
        check(true, None, Some("dumb"), false);
        check(true, None, None, false);
        check(false, None, Some("xterm"), false);
    }

    #[test]
    fn words_are_painted_where_there_is_colour() {
        assert_eq!(Screen::terminal(80).paint("UP", Tone::Good), "\x1b[32mUP\x1b[0m");
        assert_eq!(Screen::terminal(80).paint("x", Tone::Plain), "x");
        assert_eq!(Screen::terminal(80).paint("", Tone::Bad), "");
        assert_eq!(Screen::PLAIN.paint("DOWN", Tone::Bad), "DOWN");
    }
}
