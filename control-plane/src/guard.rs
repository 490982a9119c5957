//! What may speak to the internal listener at all: the check in front of every path and every RPC (DESIGN §2).
//!
//! Here: the peer's network, forwarding headers, the Host, cross-site requests from browsers; pure.
//! Not here: who may do what (`identity`), sockets, how the refusal looks.

use std::net::IpAddr;

use furt_proto::{names::quoted, network::FORWARDING_FIELDS};
use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Version, request::Parts};

use crate::config::Config;
use crate::identity::listed;
use crate::refusal::{Code, Refusal};

/// Set by browsers on every request, and by nobody else (Fetch Metadata, §2.4).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets a request in, or says why not.
///
/// Errors: REGISTRATION_REFUSED for the peer and for forwarding headers, MALFORMED_REQUEST for a Host that is missing
/// or cannot be read, FORBIDDEN for an unknown Host and a cross-site request.
pub fn check(config: &Config, peer: IpAddr, head: &Parts) -> Result<(), Refusal> {
    listed(config, Some(peer))?;
    if let Some(name) = FORWARDING_FIELDS.into_iter().find(|name| head.headers.contains_key(*name)) {
        let message = format!("the request carries {name}, so it came through a proxy; the internal listener is asked directly");
        return Err(Refusal::one(Code::RegistrationRefused, message));
    }
    let host = host(config, head)?;
    same_site(&head.headers, host.as_ref())
}

/// The one host the request names, when it is known. `None` only for HTTP/1.0 without Host.
fn host(config: &Config, head: &Parts) -> Result<Option<Authority>, Refusal> {
    let malformed = |message: &str| Refusal::one(Code::Malformed, message);
    let mut named = head.uri.authority().cloned();
    let mut fields = head.headers.get_all(HOST).iter();
    if let Some(field) = fields.next() {
        let field = Authority::try_from(field.as_bytes()).map_err(|_| malformed("the Host cannot be read"))?;
        // The request line outranks the field (RFC 9112 §3.2.2); a request that names two hosts is nobody's honest one.
        if named.as_ref().is_some_and(|named| !named.as_str().eq_ignore_ascii_case(field.as_str())) {
            return Err(malformed("the request line and Host name different hosts"));
        }
        named = Some(field);
    }
    if fields.next().is_some() {
        return Err(malformed("Host is given more than once"));
    }
    match named {
        None if head.version == Version::HTTP_10 => Ok(None),
        None => Err(malformed("Host is missing")),
        Some(authority) if is_known(config, &authority) => Ok(Some(authority)),
        Some(authority) => {
            let host = quoted(authority.host());
            Err(Refusal::one(Code::Forbidden, format!("unknown Host {host}: use an address, localhost or one of [gateway] hosts")))
        }
    }
}

/// An address cannot be rebound by a foreign DNS; names have to be furt's own.
fn is_known(config: &Config, authority: &Authority) -> bool {
    if authority.as_str().contains('@') || port(authority, 80).is_none() {
        return false;
    }
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    name.eq_ignore_ascii_case("localhost") || config.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Refuses what a page of another origin makes a browser send.
fn same_site(headers: &HeaderMap, host: Option<&Authority>) -> Result<(), Refusal> {
    let cross = |what: String| Refusal::one(Code::Forbidden, format!("cross-site request: {what}"));
    for site in headers.get_all(SEC_FETCH_SITE) {
        // Unknown values are those of later browsers; what is not plainly furt's own page stays outside.
        if !matches!(site.as_bytes(), b"same-origin" | b"none") {
            return Err(cross(format!("Sec-Fetch-Site is {}", quoted(&String::from_utf8_lossy(site.as_bytes())))));
        }
    }
    for origin in headers.get_all(ORIGIN) {
        let own = host.is_some_and(|host| origin.to_str().is_ok_and(|origin| is_origin_of(origin, host)));
        if !own {
            return Err(cross(format!("Origin is {}", quoted(&String::from_utf8_lossy(origin.as_bytes())))));
        }
    }
    Ok(())
}

/// Whether `scheme://host[:port]` names the host and port that the request names.
fn is_origin_of(origin: &str, host: &Authority) -> bool {
    let (rest, default_port) = match origin.split_once("://") {
        Some(("http", rest)) => (rest, 80),
        Some(("https", rest)) => (rest, 443),
        _ => return false,
    };
    let Ok(origin) = rest.parse::<Authority>() else { return false };
    let same_host = origin.host().eq_ignore_ascii_case(host.host());
    same_host && port(&origin, default_port).is_some_and(|own| port(host, default_port) == Some(own))
}

/// The port, or the scheme's own when none is written; `None` when what is written is no port.
fn port(authority: &Authority, default: u16) -> Option<u16> {
    let written = authority.as_str().rsplit_once(authority.host()).map_or("", |(_, rest)| rest);
    if matches!(written, "" | ":") { Some(default) } else { authority.port_u16() }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::identity::tests::config;

    /// The code of the refusal of `GET uri` from `peer` with these header lines.
    fn outcome(peer: &str, uri: &str, version: Version, headers: &[(&str, &str)]) -> Result<(), Code> {
        let mut request = Request::get(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let config = Config { hosts: vec!["furt.example.org".into()], ..config() };
        check(&config, peer.parse().unwrap(), &request.body(()).unwrap().into_parts().0).map_err(|refusal| refusal.code())
    }

    fn local(headers: &[(&str, &str)]) -> Result<(), Code> {
        outcome("127.0.0.1", "/health", Version::HTTP_11, headers)
    }

    #[test]
    fn only_peers_of_the_allow_list_get_in() {
        let from = |peer: &str| outcome(peer, "/health", Version::HTTP_11, &[("host", "localhost")]);
        for good in ["127.0.0.1", "::ffff:127.0.0.1", "10.9.8.7"] {
            assert_eq!(from(good), Ok(()), "{good}");
        }
        for bad in ["192.0.2.1", "::1", "127.0.0.2", "::ffff:192.0.2.1"] {
            assert_eq!(from(bad), Err(Code::RegistrationRefused), "{bad}");
        }
    }

    #[test]
    fn what_came_through_a_proxy_is_refused() {
        for name in ["Forwarded", "X-Forwarded-For", "X-Real-IP"] {
            assert_eq!(local(&[("host", "localhost"), (name, "127.0.0.1")]), Err(Code::RegistrationRefused), "{name}");
            assert_eq!(local(&[("host", "localhost"), (name, "")]), Err(Code::RegistrationRefused), "{name}");
        }
    }

    #[test]
    fn a_host_is_an_address_localhost_or_configured() {
        for good in ["127.0.0.1", "127.0.0.1:7810", "[::1]:7810", "[::1]", "localhost:80", "LOCALHOST", "localhost.", "furt.example.org:1"]
        {
            assert_eq!(local(&[("host", good)]), Ok(()), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@localhost", "127.1.x", "localhost:99999"] {
            assert!(local(&[("host", bad)]).is_err(), "{bad}");
        }
        for malformed in [&[][..], &[("host", "")], &[("host", "a b")], &[("host", "localhost"), ("host", "localhost")]] {
            assert_eq!(local(malformed), Err(Code::Malformed), "{malformed:?}");
        }
        assert_eq!(outcome("127.0.0.1", "/", Version::HTTP_10, &[]), Ok(()));
        assert_eq!(outcome("127.0.0.1", "http://127.0.0.1:7810/", Version::HTTP_2, &[]), Ok(()));
        assert_eq!(outcome("127.0.0.1", "http://evil.example/", Version::HTTP_2, &[]), Err(Code::Forbidden));
        let split = outcome("127.0.0.1", "http://evil.example/", Version::HTTP_11, &[("host", "localhost")]);
        assert_eq!(split, Err(Code::Malformed));
    }

    #[test]
    fn pages_of_other_origins_are_kept_out() {
        let with = |headers: &[(&str, &str)]| local(&[&[("host", "localhost:7810")], headers].concat());
        assert_eq!(with(&[("origin", "http://localhost:7810"), ("sec-fetch-site", "same-origin")]), Ok(()));
        assert_eq!(with(&[("sec-fetch-site", "none")]), Ok(()));
        for origin in ["null", "http://evil.example", "http://localhost:3000", "https://localhost", "localhost:7810", "http://", ""] {
            assert_eq!(with(&[("origin", origin)]), Err(Code::Forbidden), "{origin}");
        }
        for site in ["cross-site", "same-site", "", "later"] {
            assert_eq!(with(&[("sec-fetch-site", site)]), Err(Code::Forbidden), "{site}");
        }
        assert_eq!(local(&[("host", "localhost"), ("origin", "http://localhost:80")]), Ok(()));
    }
}
