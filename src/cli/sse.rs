//! Server-sent events, read piece by piece (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! Here: bytes into messages. Not here: what they mean, connections.

/// The longest line that is read; furt's events have a few hundred bytes.
const MOST_LINE: usize = 1 << 20;

/// What a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A message with its data.
    Message(String),
    /// A comment: a sign of life, or that what was kept has been told.
    Comment,
}

/// A line that is longer than any event of furt.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

/// What has been read and is not a whole message yet.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    id: Option<String>,
    data: Option<String>,
    /// The `id` of the newest whole message, to go on from; empty before the first.
    pub last_id: String,
    after_return: bool,
}

impl Reader {
    /// On a new connection: what was cut off is told again there.
    pub fn begin_again(&mut self) {
        *self = Self { last_id: std::mem::take(&mut self.last_id), ..Self::default() };
    }

    /// Takes a piece of the stream and gives what it completes.
    pub fn feed(&mut self, piece: &[u8]) -> Result<Vec<Said>, TooLong> {
        let mut said = Vec::new();
        for byte in piece {
            let after_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                // The second half of a CRLF.
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    said.extend(self.line(&String::from_utf8_lossy(&line)));
                }
                _ if self.line.len() >= MOST_LINE => return Err(TooLong),
                _ => self.line.push(*byte),
            }
        }
        Ok(said)
    }

    fn line(&mut self, line: &str) -> Option<Said> {
        if line.is_empty() {
            if let Some(id) = self.id.take() {
                self.last_id = id;
            }
            return self.data.take().map(Said::Message);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => return Some(Said::Comment),
            "id" => self.id = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                none => *none = Some(value.to_owned()),
            },
            // The data says what kind it is; how long to wait is ours to choose.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(data: &str) -> Said {
        Said::Message(data.into())
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let text = "id: e.1\nevent: STARTED\ndata: {\"a\":1}\n\n: kept\nid: e.2\r\ndata:x\r\ndata: y\r\n\r\nretry: 5\nid: e.3\n\ndata: z\n";
        let expected = [message("{\"a\":1}"), Said::Comment, message("x\ny")];
        for size in 1..text.len() {
            let mut reader = Reader::default();
            let said: Vec<Said> = text.as_bytes().chunks(size).flat_map(|piece| reader.feed(piece).unwrap()).collect();
            assert_eq!(said, expected, "in pieces of {size}");
            assert_eq!(reader.last_id, "e.3", "an id without data counts");
        }
    }

    #[test]
    fn what_was_cut_off_is_forgotten_and_the_cursor_is_not() {
        let mut reader = Reader::default();
        reader.feed(b"id: e.1\ndata: whole\n\nid: e.2\ndata: ha").unwrap();
        assert_eq!(reader.last_id, "e.1", "an event that was not told is told again");
        reader.begin_again();
        assert_eq!(reader.feed(b"data: next\n\n"), Ok(vec![message("next")]));
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut reader = Reader::default();
        let piece = vec![b'x'; MOST_LINE];
        assert_eq!(reader.feed(&piece), Ok(Vec::new()));
        assert_eq!(reader.feed(b"x"), Err(TooLong));
    }
}
