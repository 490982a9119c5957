//! `furt events`: what happens, a line for each.
//!
//! Here: following over a lost connection, where to end, how an event reads. Not here: the stream's
//! syntax (`sse`), what events there are (`registry.proto`).

use std::{
    collections::VecDeque,
    io::{self, Write},
    time::Duration,
};

use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{
    Failure,
    arguments::{Asked, EventChoice},
    ask::{explain_refusal, with_query},
    client::{Answer, Question},
    fields::text,
    gateway::Gateway,
    process::say,
    screen::{Screen, Tone},
    services::tone,
    sse::{Reader, Said},
};

/// Between two attempts to connect again: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// furt gives a sign of life every 15 s; after three without one the connection is as good as lost.
const SILENCE: Duration = Duration::from_secs(45);

/// Where events are asked for; `after` is the cursor of the last one seen.
pub fn question(choice: &EventChoice, after: Option<&str>) -> Question {
    let all_kept = (choice.once || choice.limit.is_some()).then_some("0");
    let since = after.or(choice.since.as_deref()).or(all_kept);
    Question::new(Method::GET, with_query("/internal/events", &[("since", since), ("service", choice.service.as_deref())]))
}

/// Prints events until interrupted, or until all that are kept are printed.
pub async fn events(furt: &Gateway, asked: &Asked, choice: &EventChoice) -> Result<(), Failure> {
    let mut printer = Printer { json: asked.talk().json, screen: Screen::stdout(), limit: choice.limit, held: VecDeque::new() };
    let follows = !choice.once && choice.limit.is_none();
    let mut reader = Reader::default();
    let mut body = connect(furt, asked, choice).await?;
    loop {
        let ended = read(&mut body, &mut reader, &mut printer, follows).await?;
        match ended {
            Ended::AllTold => return printer.end(),
            Ended::Lost if !follows => {
                return Err(Failure::new(format!("furt: the events of {} ended before all were told", furt.address)));
            }
            Ended::Lost => {}
        }
        reader.begin_again();
        body = connect_again(furt, asked, choice, &reader.last_id).await?;
    }
}

/// Why no more is read from a connection.
enum Ended {
    /// All that were kept are told, and no more was wanted.
    AllTold,
    /// It closed, broke or fell silent.
    Lost,
}

async fn read(body: &mut Incoming, reader: &mut Reader, printer: &mut Printer, follows: bool) -> Result<Ended, Failure> {
    while let Ok(Some(Ok(frame))) = timeout(SILENCE, body.frame()).await {
        let Some(piece) = frame.data_ref() else { continue };
        let said =
            reader.feed(piece).map_err(|_| Failure::new("furt: this is no stream of furt's events; --gateway names another address"))?;
        for said in said {
            match said {
                Said::Message(data) => printer.event(data)?,
                // The first comment comes when there is nothing more to tell for now.
                Said::Comment if !follows => return Ok(Ended::AllTold),
                Said::Comment => {}
            }
        }
    }
    Ok(Ended::Lost)
}

async fn connect(furt: &Gateway, asked: &Asked, choice: &EventChoice) -> Result<Incoming, Failure> {
    let response = furt.open(question(choice, None)).await?;
    accepted(furt, asked, response).await
}

/// After a connection was lost: waits for furt to be back, and says so on standard error.
async fn connect_again(furt: &Gateway, asked: &Asked, choice: &EventChoice, after: &str) -> Result<Incoming, Failure> {
    note(&format!("furt: the connection to {} was lost; waiting for it to be back", furt.address));
    let (mut pause, most) = AGAIN;
    loop {
        sleep(pause).await;
        pause = (pause * 2).min(most);
        let question = question(choice, Some(after).filter(|after| !after.is_empty()));
        match furt.open(question).await {
            // Whoever is not there yet is waited for; whoever refuses is not asked again.
            Err(_) => {}
            Ok(response) if response.status().is_server_error() => {}
            Ok(response) => {
                let body = accepted(furt, asked, response).await?;
                note("furt: connected again");
                return Ok(body);
            }
        }
    }
}

/// The stream, or the refusal.
async fn accepted(furt: &Gateway, asked: &Asked, response: Response<Incoming>) -> Result<Incoming, Failure> {
    let (head, body) = response.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let body = timeout(SILENCE, body.collect()).await.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    Err(explain_refusal(furt, asked, &Answer { status: head.status, headers: head.headers, body }).await)
}

fn note(line: &str) {
    // Whether somebody reads it makes no difference to the events.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Where events go.
struct Printer {
    json: bool,
    screen: Screen,
    /// Only that many, the newest: then they are held back to the end.
    limit: Option<usize>,
    held: VecDeque<String>,
}

impl Printer {
    fn event(&mut self, data: String) -> Result<(), Failure> {
        let Some(limit) = self.limit else { return self.print(&data) };
        self.held.push_back(data);
        if self.held.len() > limit {
            self.held.pop_front();
        }
        Ok(())
    }

    fn end(mut self) -> Result<(), Failure> {
        while let Some(data) = self.held.pop_front() {
            self.print(&data)?;
        }
        Ok(())
    }

    fn print(&self, data: &str) -> Result<(), Failure> {
        if self.json {
            // One object a line: within JSON a line's end is a blank.
            return say(data.replace('\n', " "));
        }
        say(line(&serde_json::from_str(data).unwrap_or_default(), &self.screen))
    }
}

/// An event for people: when, what kind, of whom, what.
fn line(event: &Value, screen: &Screen) -> String {
    let (kind, to) = (text(event, "kind"), text(event, "to"));
    let place: Vec<String> = ["service", "instance"].into_iter().map(|key| text(event, key)).filter(|name| !name.is_empty()).collect();
    let change = if to.is_empty() { String::new() } else { format!("{} -> {}", text(event, "from"), screen.paint(&to, tone(&to))) };
    let message = text(event, "message");
    let what = [change, message].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
    // The longest kind has 15 characters; padding has no colour.
    let padding = " ".repeat(15_usize.saturating_sub(kind.chars().count()));
    let kind = format!("{}{padding}", screen.paint(&kind, kind_tone(&kind)));
    [text(event, "time"), kind, place.join("/"), what]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("  ")
        .trim_end()
        .to_owned()
}

fn kind_tone(kind: &str) -> Tone {
    match kind {
        "REGISTERED" | "UNDRAINED" | "READMITTED" | "SESSION_OPENED" | "STORE_RECOVERED" => Tone::Good,
        "SUSPECTED" | "DRAINED" | "LOOSENED" | "WITHDRAWN" | "SESSION_LOST" | "GAP" => Tone::Odd,
        "REFUSED" | "RELOAD_REFUSED" | "STORE_FAILED" => Tone::Bad,
        // The states of a TRANSITION speak for themselves.
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, service: &str, instance: &str, change: (&str, &str), message: &str) -> Value {
        json!({"cursor": "3f9c.7", "time": "2027-01-31T20:30:00.123Z", "kind": kind, "service": service, "instance": instance,
            "from": change.0, "to": change.1, "message": message, "version": 0})
    }

    #[test]
    fn an_event_is_one_line() {
        let check =
            |event: Value, expected: &str| assert_eq!(line(&event, &Screen::PLAIN), format!("2027-01-31T20:30:00.123Z  {expected}"));
        check(
            event("TRANSITION", "sagjan", "default", ("UP", "DOWN"), "3 misses"),
            "TRANSITION       sagjan/default  UP -> DOWN: 3 misses",
        );
        check(event("REFUSED", "obr", "", ("", ""), "no grant\u{1b}[2J\nx"), "REFUSED          obr  no grant\\u{1b}[2J\\nx");
        check(event("STORE_RECOVERED", "", "", ("", ""), ""), "STORE_RECOVERED");
        let painted = line(&event("TRANSITION", "sagjan", "a", ("DOWN", "UP"), ""), &Screen::terminal(80));
        assert!(painted.ends_with("DOWN -> \x1b[32mUP\x1b[0m"), "{painted}");
        let painted = line(&event("SUSPECTED", "sagjan", "a", ("", ""), "x"), &Screen::terminal(80));
        assert!(painted.contains("\x1b[33mSUSPECTED\x1b[0m        sagjan/a  x"), "{painted}");
    }

    #[test]
    fn where_to_begin_is_the_last_cursor_then_what_was_asked() {
        let choice = |since: Option<&str>, once, limit| EventChoice { since: since.map(str::to_owned), service: None, once, limit };
        let check = |choice: EventChoice, after, expected: &str| assert_eq!(question(&choice, after).target, expected);
        check(choice(None, false, None), None, "/internal/events");
        check(choice(None, true, None), None, "/internal/events?since=0");
        check(choice(None, false, Some(3)), None, "/internal/events?since=0");
        check(choice(Some("e.1"), true, None), None, "/internal/events?since=e.1");
        check(choice(Some("e.1"), false, None), Some("e.9"), "/internal/events?since=e.9");
        let of_one = EventChoice { service: Some("sagjan".into()), ..choice(None, false, None) };
        check(of_one, Some("e.9"), "/internal/events?since=e.9&service=sagjan");
    }

    #[test]
    fn a_limit_keeps_the_newest() {
        let mut printer = Printer { json: true, screen: Screen::PLAIN, limit: Some(2), held: VecDeque::new() };
        ["1", "2", "3"].into_iter().for_each(|data| printer.event(data.into()).unwrap());
        assert_eq!(printer.held, ["2", "3"]);
        let mut none = Printer { limit: Some(0), held: VecDeque::new(), ..printer };
        none.event("1".into()).unwrap();
        assert_eq!(none.held.len(), 0);
    }
}
