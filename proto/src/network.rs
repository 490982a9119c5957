//! Lists of networks: who may register, whom to believe, where a key may be used from.

use std::{fmt, io, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use crate::names::{NameError, quoted};

/// Networks as written in furt.conf: `127.0.0.1, 10.0.0.0/8`. An address alone is a network of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether an address lies in one of them. An IPv4-mapped IPv6 address counts as IPv4 (RFC 4291 §2.5.5.2).
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The networks.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<T: IntoIterator<Item = IpNet>>(networks: T) -> Self {
        Self(networks.into_iter().collect())
    }
}

/// Fields that a proxy adds to a request: behind one the socket's peer says nothing about who asks.
pub const FORWARDING_FIELDS: [&str; 3] = ["forwarded", "x-forwarded-for", "x-real-ip"];

/// Whether an error of a connect says something about this machine and nothing about the other side: no descriptor, no
/// memory, no local address.
pub fn is_local_fault(error: &io::Error) -> bool {
    // ENOMEM 12, ENFILE 23, EMFILE 24, ENOBUFS 105 on Linux.
    error.kind() == io::ErrorKind::AddrNotAvailable || matches!(error.raw_os_error(), Some(12 | 23 | 24 | 105))
}

/// One network, or an address as a network of one.
pub fn parse_network(text: &str) -> Result<IpNet, NameError> {
    let network: Result<IpNet, _> = text.parse().or_else(|_| text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical())));
    network
        .map(|network| network.trunc())
        .map_err(|_| NameError(format!("expected an address or network such as 10.0.0.0/8, got {}", quoted(text))))
}

impl FromStr for Networks {
    type Err = NameError;
    /// A comma list; empty is no network.
    fn from_str(text: &str) -> Result<Self, NameError> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse_network).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, network) in self.0.iter().enumerate() {
            write!(f, "{}{network}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_contain_what_they_say() {
        let networks: Networks = "127.0.0.1, 10.0.0.0/8, ::1".parse().unwrap();
        let check = |address: &str, expected: bool| assert_eq!(networks.contains(address.parse().unwrap()), expected, "{address}");
        check("127.0.0.1", true);
        check("127.0.0.2", false);
        check("10.255.0.1", true);
        check("::1", true);
        check("::ffff:10.0.0.1", true);
        check("::ffff:11.0.0.1", false);
        assert!("10.0.0.0/33".parse::<Networks>().is_err());
        assert!("localhost".parse::<Networks>().is_err());
        assert!("".parse::<Networks>().unwrap().is_empty());
    }
}
