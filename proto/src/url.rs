//! The url of an upstream: http or https, host, optional port, optional base path, nothing else
//! (DESIGN §4, rule 5).

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use crate::{
    names::{NameError, quoted},
    path::canonical,
};

/// Longest url, in bytes.
pub const MAX_BYTES: usize = 2048;

/// Where an upstream listens, taken apart; the text it was parsed from is kept byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamUrl {
    text: String,
    tls: bool,
    host: String,
    port: u16,
    base: String,
}

impl UpstreamUrl {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// Whether it is https.
    pub fn tls(&self) -> bool {
        self.tls
    }
    /// The host: a lower-case name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// The port, by default 80 or 443.
    pub fn port(&self) -> u16 {
        self.port
    }
    /// What goes before every path: empty, or `/base` without a trailing slash.
    pub fn base(&self) -> &str {
        &self.base
    }
    /// The host as an address, when it is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
    /// Host and, unless it is the scheme's own, port: what a request's Host would be.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default_port(self.tls) { host } else { format!("{host}:{}", self.port) }
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

impl FromStr for UpstreamUrl {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = |why: &str| NameError(format!("{why}, got {}", quoted(text)));
        if text.len() > MAX_BYTES {
            return Err(refuse("a url may have up to 2048 bytes"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refuse("a url must be visible ASCII"));
        }
        let scheme = |name: &str| text.get(..name.len()).filter(|start| start.eq_ignore_ascii_case(name)).map(|_| &text[name.len()..]);
        let (tls, rest) = match (scheme("http://"), scheme("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(refuse("a url must start with http:// or https://")),
        };
        if rest.contains(['?', '#']) {
            return Err(refuse("a url must not have a query or fragment"));
        }
        let (authority, base) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains('@') {
            return Err(refuse("a url must not have a user or password"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or_else(|| refuse("a url has an unclosed \"[\""))?;
                host.parse::<Ipv6Addr>().map_err(|_| refuse("a url has an invalid IPv6 address"))?;
                (host, after.strip_prefix(':').or(after.is_empty().then_some("")).ok_or_else(|| refuse("a url has an invalid port"))?)
            }
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        if authority.ends_with(':') {
            return Err(refuse("a url has an empty port"));
        }
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if host.is_empty() || host.len() > 253 || !(authority.starts_with('[') || host.bytes().all(name)) {
            return Err(refuse("a url must name a host"));
        }
        let port = match port {
            "" => default_port(tls),
            digits if digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0).ok_or_else(|| refuse("a url's port must be 1 to 65535"))?
            }
            _ => return Err(refuse("a url's port must be 1 to 65535")),
        };
        let base = match base {
            "" => String::new(),
            base => canonical(base).map_err(|fault| refuse(&fault.to_string()))?.trim_end_matches('/').to_owned(),
        };
        Ok(Self { text: text.to_owned(), tls, host: host.to_ascii_lowercase(), port, base })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_kept_as_written() {
        let check = |text: &str, tls: bool, host: &str, port: u16, base: &str| {
            let url: UpstreamUrl = text.parse().unwrap();
            assert_eq!((url.tls(), url.host(), url.port(), url.base(), url.as_str()), (tls, host, port, base, text));
        };
        check("http://127.0.0.1:7812", false, "127.0.0.1", 7812, "");
        check("HTTP://Sagjan.internal/", false, "sagjan.internal", 80, "");
        check("https://[::1]:8443/base/", true, "::1", 8443, "/base");
        check("https://a.b/x%7e", true, "a.b", 443, "/x~");
        assert_eq!("http://[::1]:80".parse::<UpstreamUrl>().unwrap().authority(), "[::1]");
        assert_eq!("http://a:81".parse::<UpstreamUrl>().unwrap().authority(), "a:81");
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("http://a/{}", "b".repeat(2048));
        for bad in [
            "",
            "a:80",
            "ftp://a",
            "http://",
            "http:///a",
            "http://a:0",
            "http://a:65536",
            "http://a:",
            "http://a:+1",
            "http://u@a",
            "http://u:p@a",
            "http://a?x",
            "http://a/?x",
            "http://a#x",
            "http://a/../b",
            "http://a//b",
            "http://a b",
            "http://ä",
            "http://[::1",
            "http://[x]",
            "http://[::1]x",
            "http://a\n",
            "http://a%41",
            &long,
        ] {
            assert!(bad.parse::<UpstreamUrl>().is_err(), "{bad}");
        }
    }
}
