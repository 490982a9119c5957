//! The guard over what a client sends over HTTP/2: floods of frames that are cheap to send and dear to take (RFC 9113
//! §10.5).
//!
//! Here: the heads of the frames, a few bytes of some payloads, and what a connection may spend of each kind. Not here:
//! whether a frame is right, which h2 knows, and what h2 bounds by itself. That is, as of 0.4:
//! - empty DATA frames: 100 in the life of a connection, then GOAWAY; small ones that nobody has read yet: half the
//!   connection's window, each counted as 256 bytes;
//! - CONTINUATION (CVE-2024-27316): a quarter more frames than the largest header list fills, 5 at the least; what is
//!   over that list is decoded and not kept, four times as much ends the connection;
//! - streams that furt has to reset or refuse because of what the client sends on them (CVE-2025-8671):
//!   `max_local_error_reset_streams`, so many in the life of a connection. A WINDOW_UPDATE of zero, HEADERS on a closed
//!   stream or a PRIORITY of the wrong length end it at once, so they are no way to have streams reset;
//! - streams reset before they were accepted: `max_pending_accept_reset_streams`. Those reset after that it takes
//!   without a limit (CVE-2023-44487), and so it does everything else that has a budget here.

/// What flooded, or what h2 should not get to see: for the log, and as the GOAWAY's debug data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood(pub &'static str);

/// The preface before the first frame (RFC 9113 §3.4); what it says is h2's business.
const PREFACE: usize = 24;
/// The head of a frame (RFC 9113 §4.1).
const HEAD: usize = 9;
/// The most that is looked at of a payload: padding length, dependency and weight of a HEADERS frame.
const LOOK: usize = 6;
/// One token of a budget, so that a refill of some per second is exact to the nanosecond.
const TOKEN: u64 = 1_000_000_000;

/// The types of frames that have a budget (RFC 9113 §6).
mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// END_STREAM on DATA and HEADERS, ACK on SETTINGS and PING.
const END_STREAM_OR_ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY_FLAG: u8 = 0x20;

/// PROTOCOL_ERROR and ENHANCE_YOUR_CALM (RFC 9113 §7).
const PROTOCOL: u32 = 0x1;
const CALM: u32 = 0xB;

/// The preface goes on with a SETTINGS frame (RFC 9113 §3.4), which h2 does not insist on.
const NO_SETTINGS: Flood = Flood("the first frame is no SETTINGS frame");
/// h2 resets the stream and leaves the block undecoded, whatever it told the table that later blocks refer to: the
/// requests that come next would be read as others than were sent.
const SELF_DEPENDENT: Flood = Flood("a HEADERS frame that depends on its own stream");

/// What a header list may be when nobody says: [`Frames::with_header_size`].
const HEADER_SIZE: usize = 64 * 1024;
/// A header block is at most twice as long as its list may be: what is over the list is answered 431 by h2, as long as
/// it ends. In how many frames it comes is h2's to judge, up to one for each of these bytes.
const BLOCK_BYTES_A_FRAME: usize = 4 * 1024;

/// Less than this a frame of DATA, or what a WINDOW_UPDATE adds, is hardly worth its head. A client that reads in
/// pieces this small on purpose has furt write each of them in a frame of its own (CVE-2019-9511).
const SMALL: u32 = 64;

/// What a PING's answer takes: it earns nothing, or pings would pay for pings.
const PONG: u64 = 17;

/// What a connection may spend of something: `most` at once, `each_second` again.
#[derive(Debug, Clone, Copy)]
struct Rate {
    what: &'static str,
    most: u64,
    each_second: u64,
}

/// A browser that leaves a page cancels all it has open: `h2_max_streams`, 128; a page that cancels what was asked for
/// as its user types on does so a few times a second. Each may have cost a connection to a service.
const RESETS: Rate = Rate { what: "too many RST_STREAM frames", most: 400, each_second: 100 };
/// One or two at the beginning, and gRPC in C++ one for each new estimate of the bandwidth, ten a second at the most.
const SETTINGS: Rate = Rate { what: "too many SETTINGS frames", most: 100, each_second: 10 };
/// A keep-alive of a few seconds; what gRPC sends to measure the bandwidth comes with data, which earns it.
const PINGS: Rate = Rate { what: "too many PING frames", most: 200, each_second: 10 };
/// furt asks once in 75 seconds, and when it stops. Each answer that it did not ask for is a line of h2's in the log.
const PONGS: Rate = Rate { what: "too many PING answers that nobody asked for", most: 10, each_second: 1 };
/// PRIORITY, its successors (RFC 9218), and whatever a client greases with: some for each request of a page.
const ASIDE: Rate = Rate { what: "too many frames that ask for nothing", most: 1_000, each_second: 200 };
/// A window that is opened before anything came through it; the others are earned.
const UPDATES: Rate = Rate { what: "too many WINDOW_UPDATE frames", most: 2_000, each_second: 100 };
/// Updates of a few bytes. Clients that read have a window of 64 KiB or more and give it back in large pieces; one that
/// does so for each event of a stream gets that many events a second.
const DRIBBLES: Rate = Rate { what: "too many WINDOW_UPDATE frames of a few bytes", most: 10_000, each_second: 2_000 };
/// A gRPC stream has a frame for each message, and its smallest messages are few bytes; this is as fast as the
/// implementations send them.
const MORSELS: Rate = Rate { what: "too many DATA frames of a few bytes", most: 50_000, each_second: 50_000 };

/// A WINDOW_UPDATE for each of these bytes that were written: the smallest DATA frame that says something has ten, and a
/// client may give its byte back to the stream and to the connection.
const BYTES_AN_UPDATE: u64 = 8;
/// What can be earned ahead: the largest windows of browsers (15 MiB) full of the events of a stream.
const EARNED_UPDATES: u64 = 1_000_000;
/// A PING for each of these bytes: gRPC measures once in a round trip in which data came, and the shortest answer, head
/// and trailers, is longer.
const BYTES_A_PING: u64 = 64;
const EARNED_PINGS: u64 = 10_000;

/// What is left of a rate.
#[derive(Debug)]
struct Budget {
    rate: Rate,
    left: u64,
    at: u64,
}

impl Budget {
    fn new(rate: Rate, now: u64) -> Self {
        Self { rate, left: rate.most * TOKEN, at: now }
    }

    fn spend(&mut self, now: u64) -> Result<(), Flood> {
        let came = now.saturating_sub(self.at).saturating_mul(self.rate.each_second);
        self.at = self.at.max(now);
        self.left = self.left.saturating_add(came).min(self.rate.most * TOKEN);
        self.left = self.left.checked_sub(TOKEN).ok_or(Flood(self.rate.what))?;
        Ok(())
    }
}

/// What bytes that were written pay for, before the budget of time is touched.
#[derive(Debug)]
struct Earned {
    bytes: u64,
    each: u64,
    most: u64,
}

impl Earned {
    fn new(each: u64, most: u64) -> Self {
        Self { bytes: 0, each, most }
    }

    fn earn(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes).min(self.each * self.most);
    }

    /// Whether one was paid for.
    fn pay(&mut self) -> bool {
        let left = self.bytes.checked_sub(self.each);
        self.bytes = left.unwrap_or(self.bytes);
        left.is_some()
    }
}

/// The frame that is being read.
#[derive(Debug, Clone, Copy, Default)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    length: u32,
}

impl Frame {
    fn new(head: [u8; HEAD]) -> Self {
        let [high, middle, low, kind, flags, stream @ ..] = head;
        Self { kind, flags, stream: u32::from_be_bytes(stream) & 0x7FFF_FFFF, length: u32::from_be_bytes([0, high, middle, low]) }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// How many bytes of its payload are looked at.
    fn look(&self) -> usize {
        let wanted = match self.kind {
            kind::DATA => usize::from(self.has(PADDED)),
            kind::HEADERS if self.has(PRIORITY_FLAG) => usize::from(self.has(PADDED)) + 4,
            kind::WINDOW_UPDATE => 4,
            _ => 0,
        };
        wanted.min(usize::try_from(self.length).unwrap_or(usize::MAX))
    }
}

/// Where in the client's bytes the next one belongs.
#[derive(Debug)]
enum Place {
    Preface(usize),
    Head { bytes: [u8; HEAD], have: usize },
    Look { bytes: [u8; LOOK], have: usize },
    Skip(usize),
}

const NEXT: Place = Place::Head { bytes: [0; HEAD], have: 0 };

/// The frames of one client's connection.
#[derive(Debug)]
pub struct Frames {
    place: Place,
    frame: Frame,
    /// The first frame was there.
    begun: bool,
    /// Frames and bytes of the header block that has not ended, and how many bytes it may have.
    block: (usize, usize),
    block_most: usize,
    /// The highest stream that the client opened.
    last: u32,
    /// What it has been refused for.
    flood: Option<Flood>,
    resets: Budget,
    settings: Budget,
    pings: Budget,
    pongs: Budget,
    aside: Budget,
    updates: Budget,
    dribbles: Budget,
    morsels: Budget,
    earned_updates: Earned,
    earned_pings: Earned,
    /// Bytes still to be written that earn no ping.
    owed_pongs: u64,
}

impl Frames {
    /// A connection that begins `now`, in nanoseconds of a clock that need not be exact.
    pub fn new(now: u64) -> Self {
        let budget = |rate| Budget::new(rate, now);
        Self {
            place: Place::Preface(PREFACE),
            frame: Frame::default(),
            begun: false,
            block: (0, 0),
            block_most: 2 * HEADER_SIZE,
            last: 0,
            flood: None,
            resets: budget(RESETS),
            settings: budget(SETTINGS),
            pings: budget(PINGS),
            pongs: budget(PONGS),
            aside: budget(ASIDE),
            updates: budget(UPDATES),
            dribbles: budget(DRIBBLES),
            morsels: budget(MORSELS),
            earned_updates: Earned::new(BYTES_AN_UPDATE, EARNED_UPDATES),
            earned_pings: Earned::new(BYTES_A_PING, EARNED_PINGS),
            owed_pongs: 0,
        }
    }

    /// For header lists of up to so many bytes.
    #[must_use]
    pub fn with_header_size(self, most: usize) -> Self {
        Self { block_most: most.saturating_mul(2), ..self }
    }

    /// The next bytes of the client, the preface included, however they are cut.
    ///
    /// # Errors
    /// The client spends more than it may; nothing of these bytes is to go on. What was refused once stays refused.
    pub fn read(&mut self, bytes: &[u8], now: u64) -> Result<(), Flood> {
        if let Some(flood) = self.flood {
            return Err(flood);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.step(rest, now).inspect_err(|flood| self.flood = Some(*flood))?;
        }
        Ok(())
    }

    /// So many bytes went to the client: they may be given back in updates, and measured by pings.
    pub fn wrote(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.earned_updates.earn(bytes);
        let pongs = bytes.min(self.owed_pongs);
        self.owed_pongs -= pongs;
        self.earned_pings.earn(bytes - pongs);
    }

    /// A whole GOAWAY frame that says why (RFC 9113 §6.8), with the last stream that the client opened.
    pub fn goaway(&self, why: &Flood) -> Vec<u8> {
        let length = u32::try_from(8 + why.0.len()).unwrap_or(8);
        let mut frame = Vec::with_capacity(HEAD + 8 + why.0.len());
        frame.extend(length.to_be_bytes().iter().skip(1));
        frame.extend([kind::GOAWAY, 0, 0, 0, 0, 0]);
        frame.extend(self.last.to_be_bytes());
        let code = if [NO_SETTINGS, SELF_DEPENDENT].contains(why) { PROTOCOL } else { CALM };
        frame.extend(code.to_be_bytes());
        frame.extend(why.0.as_bytes());
        frame
    }

    /// Reads up to the end of a piece of a frame; what is left.
    fn step<'b>(&mut self, bytes: &'b [u8], now: u64) -> Result<&'b [u8], Flood> {
        match &mut self.place {
            Place::Preface(left) | Place::Skip(left) => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                if *left == 0 {
                    self.place = NEXT;
                }
                Ok(bytes.get(taken..).unwrap_or_default())
            }
            Place::Head { bytes: head, have } => {
                let rest = fill(head, have, HEAD, bytes);
                if *have == HEAD {
                    self.frame = Frame::new(*head);
                    self.began(now)?;
                    self.place = Place::Look { bytes: [0; LOOK], have: 0 };
                    self.looked(now)?;
                }
                Ok(rest)
            }
            Place::Look { bytes: looked, have } => {
                let rest = fill(looked, have, self.frame.look(), bytes);
                self.looked(now)?;
                Ok(rest)
            }
        }
    }

    /// The head of a frame was read.
    fn began(&mut self, now: u64) -> Result<(), Flood> {
        let Frame { kind, stream, length, .. } = self.frame;
        if !self.begun && (kind != kind::SETTINGS || self.frame.has(END_STREAM_OR_ACK)) {
            return Err(NO_SETTINGS);
        }
        self.begun = true;
        match kind {
            kind::DATA => Ok(()),
            kind::HEADERS => {
                if stream > self.last {
                    self.last = stream;
                    // What it may say about a stream before anything was written on it.
                    self.earned_updates.earn(2 * BYTES_AN_UPDATE);
                }
                self.block = (0, 0);
                self.block_grows(length)
            }
            kind::CONTINUATION => self.block_grows(length),
            kind::RST_STREAM => self.resets.spend(now),
            // h2 ends the connection at the first answer to settings that it did not send.
            kind::SETTINGS if self.frame.has(END_STREAM_OR_ACK) => Ok(()),
            kind::SETTINGS => self.settings.spend(now),
            kind::PING if self.frame.has(END_STREAM_OR_ACK) => self.pongs.spend(now),
            kind::PING => {
                self.owed_pongs += PONG;
                if self.earned_pings.pay() { Ok(()) } else { self.pings.spend(now) }
            }
            kind::WINDOW_UPDATE => {
                if self.earned_updates.pay() {
                    Ok(())
                } else {
                    self.updates.spend(now)
                }
            }
            _ => self.aside.spend(now),
        }
    }

    /// So much of a frame's payload as is looked at may have been read.
    fn looked(&mut self, now: u64) -> Result<(), Flood> {
        let Place::Look { bytes, have } = self.place else { return Ok(()) };
        let frame = self.frame;
        if have < frame.look() {
            return Ok(());
        }
        let left = usize::try_from(frame.length).unwrap_or(usize::MAX).saturating_sub(have);
        self.place = if left == 0 { NEXT } else { Place::Skip(left) };
        let [first, second, third, fourth, fifth, _] = bytes;
        let padded = frame.has(PADDED);
        match frame.kind {
            kind::DATA if !frame.has(END_STREAM_OR_ACK) => {
                let padding = if padded { 1 + u32::from(first) } else { 0 };
                if frame.length.saturating_sub(padding) < SMALL { self.morsels.spend(now) } else { Ok(()) }
            }
            kind::HEADERS if frame.has(PRIORITY_FLAG) => {
                let dependency = if padded { [second, third, fourth, fifth] } else { [first, second, third, fourth] };
                if u32::from_be_bytes(dependency) & 0x7FFF_FFFF == frame.stream { Err(SELF_DEPENDENT) } else { Ok(()) }
            }
            kind::WINDOW_UPDATE => {
                let increment = u32::from_be_bytes([first, second, third, fourth]) & 0x7FFF_FFFF;
                if increment < SMALL { self.dribbles.spend(now) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn block_grows(&mut self, length: u32) -> Result<(), Flood> {
        let (frames, bytes) = &mut self.block;
        *frames += 1;
        *bytes = bytes.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        if *bytes > self.block_most || *frames > self.block_most / BLOCK_BYTES_A_FRAME {
            return Err(Flood("a header block without an end"));
        }
        if self.frame.has(END_HEADERS) {
            self.block = (0, 0);
        }
        Ok(())
    }
}

/// Moves bytes into `into` until it has `want`; what is left of them.
fn fill<'b, const N: usize>(into: &mut [u8; N], have: &mut usize, want: usize, bytes: &'b [u8]) -> &'b [u8] {
    let taken = bytes.len().min(want.saturating_sub(*have));
    let (now, rest) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
    if let Some(place) = into.get_mut(*have..*have + taken) {
        place.copy_from_slice(now);
        *have += taken;
    }
    rest
}

#[cfg(test)]
mod tests;
