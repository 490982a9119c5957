//! Who speaks on the internal listener, and the one guard that says what they may do (DESIGN §2).
//!
//! Here: the peer, the identities its address and token give it, the table identity × action.
//! Not here: what a grant says of routes and urls (`admission`), sockets, what a refused caller reads.

use std::{fmt, net::IpAddr};

use furt_proto::names::ServiceName;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::config::{Config, Digest, Grant, Role};
use crate::refusal::{Code, Refusal};

/// Who sent a request: the address of the socket and what the bearer token hashes to.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// The socket's peer, IPv4-mapped addresses as IPv4. `None` is nobody, and refused.
    pub address: Option<IpAddr>,
    /// SHA-256 of the token in `Authorization: Bearer`; the token itself is not kept.
    pub bearer: Option<Digest>,
}

impl Peer {
    /// A peer as the edge sees it: the socket's address and the value of `Authorization`, if any.
    ///
    /// A value of another scheme is no token.
    pub fn new(address: Option<IpAddr>, authorization: Option<&[u8]>) -> Self {
        let address = address.map(|address| address.to_canonical());
        Self { address, bearer: authorization.and_then(bearer_token).map(|token| Sha256::digest(token).into()) }
    }

    /// Whether the peer is this machine.
    pub fn is_loopback(&self) -> bool {
        self.address.is_some_and(|address| address.is_loopback())
    }

    /// Whether the token is one of these. All are compared, each in constant time.
    pub fn bears(&self, digests: &[Digest]) -> bool {
        let Some(bearer) = &self.bearer else { return false };
        let any = digests.iter().fold(Choice::from(0), |found, digest| found | digest.ct_eq(bearer));
        any.into()
    }

    /// Whether the token is an operator's. Being on this machine does not count.
    pub fn bears_operator_token(&self, config: &Config) -> bool {
        self.token_roles(config).contains(Identity::Operator)
    }

    /// Every identity that address and token give this peer.
    pub fn identities(&self, config: &Config) -> Identities {
        let mut identities = self.token_roles(config);
        if config.loopback_is_operator && self.is_loopback() {
            identities.add(Identity::Operator);
        }
        identities
    }

    /// Whether its token is one of furt.conf, whatever it opens. Every one is compared, so that the time taken tells
    /// nothing about them.
    fn bears_a_known_token(&self, config: &Config) -> bool {
        let tokens = config.tokens.iter().map(|token| &token.digests).chain(config.grants.iter().map(|grant| &grant.tokens));
        tokens.fold(false, |known, digests| known | self.bears(digests))
    }

    fn token_roles(&self, config: &Config) -> Identities {
        let mut identities = Identities::default();
        for token in &config.tokens {
            if self.bears(&token.digests) {
                identities.add(token.role.into());
            }
        }
        identities
    }
}

/// Not a byte of the token, not even hashed.
impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bearer = if self.bearer.is_some() { "present" } else { "none" };
        f.debug_struct("Peer").field("address", &self.address).field("bearer", &bearer).finish()
    }
}

/// The credentials of `Bearer`, whose name has no case (RFC 9110 §11.1).
fn bearer_token(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = authorization.split_at_checked(7)?;
    let token = rest.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// What someone wants on the internal listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Register or renew an instance.
    Register,
    /// Take one instance out.
    Deregister,
    /// Take a whole service out.
    DeregisterService,
    /// Drain one instance.
    Drain,
    /// Drain a whole service.
    DrainService,
    /// Take a drain back.
    Undrain,
    /// Wake probes.
    Probe,
    /// Look at services, routes, explanations, events, metrics.
    Read,
    /// Follow snapshots.
    Snapshots,
    /// Read furt.conf again.
    Reload,
}

impl Action {
    /// Every action, for tests that walk the table.
    pub const ALL: [Self; 10] = [
        Self::Register,
        Self::Deregister,
        Self::DeregisterService,
        Self::Drain,
        Self::DrainService,
        Self::Undrain,
        Self::Probe,
        Self::Read,
        Self::Snapshots,
        Self::Reload,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::Register => "registering",
            Self::Deregister => "deregistering",
            Self::DeregisterService => "deregistering a whole service",
            Self::Drain => "draining",
            Self::DrainService => "draining a whole service",
            Self::Undrain => "taking a drain back",
            Self::Probe => "waking probes",
            Self::Read => "reading",
            Self::Snapshots => "following snapshots",
            Self::Reload => "reloading furt.conf",
        }
    }

    /// The identities that may do it: for the words of a refusal, and of the API's description.
    pub fn who(self) -> &'static str {
        match self {
            Self::Register | Self::Deregister | Self::Drain => "the service's registrar or an operator",
            Self::DeregisterService | Self::DrainService | Self::Undrain | Self::Probe | Self::Reload => "an operator",
            Self::Read => "a reader or an operator",
            Self::Snapshots => "a data plane or an operator",
        }
    }
}

/// What a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// May register, drain and deregister its own service.
    Registrar,
    /// May look.
    Reader,
    /// May do everything.
    Operator,
    /// May follow snapshots.
    DataPlane,
}

impl Identity {
    /// Every identity, the strongest first.
    pub const ALL: [Self; 4] = [Self::Operator, Self::Reader, Self::DataPlane, Self::Registrar];

    /// The table: may this identity do that?
    pub fn may(self, action: Action) -> bool {
        match self {
            Self::Operator => true,
            Self::Registrar => matches!(action, Action::Register | Action::Deregister | Action::Drain),
            Self::Reader => action == Action::Read,
            Self::DataPlane => action == Action::Snapshots,
        }
    }
}

impl From<Role> for Identity {
    fn from(role: Role) -> Self {
        match role {
            Role::Registrar => Self::Registrar,
            Role::Reader => Self::Reader,
            Role::Operator => Self::Operator,
            Role::DataPlane => Self::DataPlane,
        }
    }
}

/// A set of identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identities([bool; 4]);

impl Identities {
    /// Whether this one is in it.
    pub fn contains(self, identity: Identity) -> bool {
        Identity::ALL.iter().zip(self.0).any(|(known, present)| present && *known == identity)
    }

    fn add(&mut self, identity: Identity) {
        for (known, present) in Identity::ALL.iter().zip(&mut self.0) {
            *present |= *known == identity;
        }
    }

    /// The strongest of them that may do it.
    fn that_may(self, action: Action) -> Option<Identity> {
        Identity::ALL.into_iter().find(|identity| self.contains(*identity) && identity.may(action))
    }
}

/// Whom [`authorize`] let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authorized {
    /// As whom.
    pub identity: Identity,
    /// From where; an IPv4-mapped address as IPv4.
    pub address: IpAddr,
}

/// The address of a peer that may talk to the internal listener at all. Errors: REGISTRATION_REFUSED.
pub fn listed(config: &Config, address: Option<IpAddr>) -> Result<IpAddr, Refusal> {
    let refused = |message: String| Err(Refusal::one(Code::RegistrationRefused, message));
    let Some(address) = address.map(|address| address.to_canonical()) else { return refused("the peer has no address".into()) };
    if !config.allow_registration_from.contains(address) {
        return refused(format!("{address} is not in allow_registration_from"));
    }
    Ok(address)
}

/// May this peer do that to this service? As whom it may.
///
/// Registering is open to every peer of the allow list here: what its grant says of the peer is asked by
/// `admission` ([`not_registrar`]), so that its faults are told together with all others. Errors:
/// REGISTRATION_REFUSED for a peer without address or outside the allow list, UNAUTHORIZED when a token is
/// missing or unknown, FORBIDDEN when the identity does not reach.
pub fn authorize(config: &Config, peer: &Peer, action: Action, service: Option<&ServiceName>) -> Result<Authorized, Refusal> {
    let address = listed(config, peer.address)?;
    // A registrar's token speaks for what its bearer could register, no further.
    let named = peer.identities(config).that_may(action).filter(|identity| *identity != Identity::Registrar);
    if let Some(identity) = named {
        return Ok(Authorized { identity, address });
    }
    let grant = || config.grants.of(service?);
    let is_registrar =
        || service.zip(grant()).is_some_and(|(service, grant)| not_registrar(config, grant, peer, address, service).is_none());
    if action == Action::Register || (matches!(action, Action::Deregister | Action::Drain) && is_registrar()) {
        return Ok(Authorized { identity: Identity::Registrar, address });
    }
    let needs = format!("{} needs the token of {}", action.words(), action.who());
    Err(match peer.bearer {
        None => Refusal::one(Code::Unauthorized, format!("{needs}, sent as Authorization: Bearer TOKEN")),
        Some(_) if !peer.bears_a_known_token(config) => {
            Refusal::one(Code::Unauthorized, format!("{needs}; the one sent is not known here"))
        }
        Some(_) => Refusal::one(Code::Forbidden, needs),
    })
}

/// Why a grant's `from` keeps an address out.
pub fn outside_from(grant: &Grant, address: IpAddr, service: &ServiceName) -> Option<String> {
    let from = grant.from.as_ref().filter(|from| !from.contains(address))?;
    Some(format!("{address} may not register {service}; its grant says from = {from}"))
}

/// Why a grant does not make this peer the registrar of its service: outside its `from`, or without its token.
/// An operator's token stands for both; being on this machine does not.
pub fn not_registrar(config: &Config, grant: &Grant, peer: &Peer, address: IpAddr, service: &ServiceName) -> Option<String> {
    if peer.bears_operator_token(config) {
        return None;
    }
    if let Some(outside) = outside_from(grant, address, service) {
        return Some(outside);
    }
    if grant.tokens.is_empty() || peer.bears(&grant.tokens) {
        return None;
    }
    Some(match peer.bearer {
        None => format!("{service} registers with its token, sent as Authorization: Bearer TOKEN"),
        Some(_) => format!("the token sent is not the one of {service}"),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Published, Token};
    use crate::health::Policy;

    const TOKENS: [(&str, Role); 4] =
        [("r-token", Role::Registrar), ("l-token", Role::Reader), ("o-token", Role::Operator), ("d-token", Role::DataPlane)];

    fn digest(token: &str) -> Digest {
        Sha256::digest(token).into()
    }

    fn grant(service: &str, from: Option<&str>, tokens: &[&str]) -> Grant {
        Grant {
            service: Some(service.parse().unwrap()),
            permissions: Vec::new(),
            paths: None,
            hosts: Vec::new(),
            from: from.map(|from| from.parse().unwrap()),
            upstreams: None,
            tokens: tokens.iter().map(|token| digest(token)).collect(),
            max_instances: 16,
            allow_public: false,
            max_in_flight: 0,
            keep_alive: true,
        }
    }

    /// Three grants and a token of each role; loopback and 10/8 may talk.
    pub(crate) fn config() -> Config {
        let token = |(name, role): (&str, Role)| Token { name: name.into(), role, digests: vec![digest("old"), digest(name)] };
        Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            public: None,
            hosts: Vec::new(),
            probing: Policy {
                interval: Duration::from_secs(30),
                timeout: Duration::from_secs(5),
                down_interval: Duration::from_secs(120),
                down_after: 3,
                park_after: 10,
                forget_parked_after: None,
            },
            allow_registration_from: "127.0.0.1, 10.0.0.0/8".parse().unwrap(),
            registration_rate: "60/min".parse().unwrap(),
            loopback_is_operator: true,
            grants: [grant("open", None, &[]), grant("sealed", None, &["grant-token"]), grant("near", Some("10.1.0.0/16"), &[])].into(),
            tokens: TOKENS.into_iter().map(token).collect(),
            published: Published::default(),
            upstream_tls: std::sync::Arc::new(furt_proto::tls::UpstreamTls::new(rustls::RootCertStore::empty())),
        }
    }

    fn peer(address: &str, token: Option<&str>) -> Peer {
        let header = token.map(|token| format!("Bearer {token}"));
        Peer::new(Some(address.parse().unwrap()), header.as_deref().map(str::as_bytes))
    }

    fn outcome(config: &Config, peer: &Peer, action: Action, service: &str) -> Result<Identity, Code> {
        let authorized = authorize(config, peer, action, Some(&service.parse().unwrap()));
        authorized.map(|authorized| authorized.identity).map_err(|refusal| refusal.code())
    }

    #[test]
    fn the_table_of_identities_and_actions() {
        let rows = Identity::ALL.map(|identity| (identity, Action::ALL.map(|action| u8::from(identity.may(action)))));
        assert_eq!(
            rows,
            [
                // register, deregister, a service; drain, a service, undrain; probe, read, snapshots, reload
                (Identity::Operator, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
                (Identity::Reader, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]),
                (Identity::DataPlane, [0, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
                (Identity::Registrar, [1, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
            ]
        );
    }

    #[test]
    fn loopback_is_operator_unless_switched_off() {
        let mut config = config();
        for address in ["127.0.0.1", "::ffff:127.0.0.1"] {
            for action in Action::ALL {
                assert_eq!(outcome(&config, &peer(address, None), action, "sealed"), Ok(Identity::Operator), "{address} {action:?}");
            }
        }
        config.loopback_is_operator = false;
        for action in Action::ALL {
            let expected = if action == Action::Register { Ok(Identity::Registrar) } else { Err(Code::Unauthorized) };
            assert_eq!(outcome(&config, &peer("127.0.0.1", None), action, "sealed"), expected, "{action:?}");
        }
    }

    #[test]
    fn a_token_makes_its_bearer_what_it_says_and_no_more() {
        let config = config();
        for (token, role) in TOKENS {
            for action in Action::ALL {
                let expected = match action {
                    _ if Identity::from(role).may(action) && role != Role::Registrar => Ok(Identity::from(role)),
                    // What a registrar does to a service without a token of its own needs no role.
                    Action::Register | Action::Deregister | Action::Drain => Ok(Identity::Registrar),
                    _ => Err(Code::Forbidden),
                };
                assert_eq!(outcome(&config, &peer("10.0.0.1", Some(token)), action, "open"), expected, "{token} {action:?}");
            }
        }
        assert_eq!(outcome(&config, &peer("10.0.0.1", Some("old")), Action::Probe, "open"), Ok(Identity::Operator));
    }

    #[test]
    fn draining_and_deregistering_ones_own_service_need_what_registering_it_needs() {
        let config = config();
        let check = |service: &str, address: &str, token: Option<&str>, expected: Result<Identity, Code>| {
            for action in [Action::Drain, Action::Deregister] {
                let found = outcome(&config, &peer(address, token), action, service);
                assert_eq!(found, expected, "{action:?} {service} {address} {token:?}");
            }
        };
        check("open", "10.0.0.1", None, Ok(Identity::Registrar));
        check("sealed", "10.0.0.1", None, Err(Code::Unauthorized));
        check("sealed", "10.0.0.1", Some("wrong"), Err(Code::Unauthorized));
        check("sealed", "10.0.0.1", Some("r-token"), Err(Code::Forbidden));
        check("sealed", "10.0.0.1", Some("grant-token"), Ok(Identity::Registrar));
        check("sealed", "10.0.0.1", Some("o-token"), Ok(Identity::Operator));
        check("near", "10.0.0.1", None, Err(Code::Unauthorized));
        check("near", "10.1.0.1", None, Ok(Identity::Registrar));
        check("unknown", "10.0.0.1", None, Err(Code::Unauthorized));
        check("unknown", "127.0.0.1", None, Ok(Identity::Operator));
    }

    #[test]
    fn nobody_and_strangers_are_refused_whatever_they_carry() {
        let config = config();
        let nobody = Peer::new(None, Some(b"Bearer o-token"));
        for peer in [nobody, peer("192.0.2.1", Some("o-token")), peer("::1", None), peer("127.0.0.2", None)] {
            for action in Action::ALL {
                assert_eq!(outcome(&config, &peer, action, "open"), Err(Code::RegistrationRefused), "{peer:?} {action:?}");
            }
        }
    }

    #[test]
    fn a_token_is_hashed_at_once_and_never_shown() {
        let peer = |value: &str| Peer::new(None, Some(value.as_bytes()));
        assert_eq!(peer("bearer  secret ").bearer, Some(digest("secret")));
        for none in ["", "Bearer", "Bearer ", "Basic c2VjcmV0", "secret"] {
            assert_eq!(peer(none).bearer, None, "{none:?}");
        }
        assert_eq!(format!("{:?}", peer("Bearer secret")), "Peer { address: None, bearer: \"present\" }");
    }
}
