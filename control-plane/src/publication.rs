//! What is published, part by part: versions, digests, and what changed since a version (DESIGN §11).
//!
//! Here: the index by version, encoded parts, tombstones. Pure. Not here: what a part says, streams, reports.
//!
//! A part is kept as the bytes it travels in. The digest of a part is the first eight bytes of SHA-256 over its
//! kind, the service's name, a zero byte and its encoding without digest; the digest of all is their wrapping sum.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use furt_proto::{names::ServiceName, v1};
use prost::Message;
use sha2::{Digest, Sha256};

/// What is versioned apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The callers' keys.
    Keys,
    /// The routes of furt.conf.
    StaticRoutes,
    /// Who may read answers from a browser.
    Cors,
    /// The routes of a service.
    Routes(ServiceName),
    /// The instances of a service.
    Instances(ServiceName),
    /// A service that is no more.
    Gone(ServiceName),
}

impl Part {
    fn kind(&self) -> u8 {
        match self {
            Self::Routes(_) => 1,
            Self::Instances(_) => 2,
            Self::Keys => 3,
            Self::StaticRoutes => 4,
            Self::Cors => 5,
            Self::Gone(_) => 6,
        }
    }

    fn service(&self) -> &str {
        match self {
            Self::Routes(name) | Self::Instances(name) | Self::Gone(name) => name.as_str(),
            _ => "",
        }
    }
}

/// A message that is a part: it carries its own digest.
pub trait Digested: Message {
    /// Where the digest goes; 0 while it is computed.
    fn digest_mut(&mut self) -> &mut u64;
}

macro_rules! digested {
    ($($message:ty),*) => {$(impl Digested for $message {
        fn digest_mut(&mut self) -> &mut u64 {
            &mut self.digest
        }
    })*};
}
digested!(v1::RouteSet, v1::InstanceSet, v1::KeySet, v1::StaticRouteSet, v1::Cors);

/// A part ready to be published.
#[derive(Debug, Clone)]
pub struct Encoded {
    part: Part,
    digest: u64,
    bytes: Bytes,
}

impl Encoded {
    /// Computes the digest, sets it, encodes.
    pub fn new(part: Part, mut message: impl Digested) -> Self {
        *message.digest_mut() = 0;
        let mut hash = Sha256::new();
        hash.update([part.kind()]);
        hash.update(part.service());
        hash.update([0]);
        hash.update(message.encode_to_vec());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        let digest = u64::from_le_bytes(first);
        *message.digest_mut() = digest;
        Self { part, digest, bytes: message.encode_to_vec().into() }
    }
}

#[derive(Debug)]
struct Held {
    version: u64,
    digest: u64,
}

/// Tombstones kept; a subscriber that is further behind is told the whole.
const MOST_TOMBSTONES: usize = 10_000;

/// Every published part by the version at which it last changed.
#[derive(Debug)]
pub struct Publication {
    version: u64,
    digest: u64,
    held: HashMap<Part, Held>,
    by_version: BTreeMap<(u64, Part), Bytes>,
    tombstones: BTreeMap<u64, Vec<ServiceName>>,
    tombstone_count: usize,
    /// Whoever holds less than this may have missed a removal that is forgotten.
    oldest: u64,
}

impl Default for Publication {
    /// Empty, at version 1: 0 is "nothing yet" in a subscriber's mouth.
    fn default() -> Self {
        Self {
            version: 1,
            digest: 0,
            held: HashMap::new(),
            by_version: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            tombstone_count: 0,
            oldest: 0,
        }
    }
}

/// What is told with every message and is no part of any version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notice {
    /// Counts the notices.
    pub number: u64,
    /// How often services repeat their registration.
    pub renew_after_seconds: u32,
    /// Not every service is known.
    pub partial: bool,
    /// What furt lacks.
    pub issues: Vec<String>,
}

/// What a subscriber has to be told; the bytes are shared, so taking it is cheap.
#[derive(Debug, Clone)]
pub struct Delta {
    /// What the subscriber holds after it.
    pub version: u64,
    /// Of all parts held after it.
    pub digest: u64,
    /// Replaces everything.
    pub whole: bool,
    /// The changed parts with their encoding; empty for [`Part::Gone`].
    pub parts: Vec<(Part, Bytes)>,
}

impl Publication {
    /// The version of the serving set.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The version at which a service last changed, in routes or instances.
    pub fn version_of(&self, service: &ServiceName) -> u64 {
        let at = |part| self.held.get(&part).map_or(0, |held| held.version);
        at(Part::Routes(service.clone())).max(at(Part::Instances(service.clone())))
    }

    /// Publishes changed parts as one version. Parts that say what they said before change nothing; when all do,
    /// the version stays. A service that is new, or new again, is published with both its parts, since a part that
    /// is not told stays with a subscriber as it was.
    pub fn publish(&mut self, parts: impl IntoIterator<Item = Encoded>) -> u64 {
        let changed: Vec<_> =
            parts.into_iter().filter(|new| self.held.get(&new.part).is_none_or(|held| held.digest != new.digest)).collect();
        if changed.is_empty() {
            return self.version;
        }
        self.version += 1;
        for Encoded { part, digest, bytes } in changed {
            self.forget(&part);
            if let Part::Routes(name) | Part::Instances(name) = &part {
                self.unbury(name.clone());
            }
            self.digest = self.digest.wrapping_add(digest);
            self.by_version.insert((self.version, part.clone()), bytes);
            self.held.insert(part, Held { version: self.version, digest });
        }
        self.version
    }

    /// Publishes that a service is no more.
    pub fn remove(&mut self, service: &ServiceName) -> u64 {
        let had = self.forget(&Part::Routes(service.clone())) | self.forget(&Part::Instances(service.clone()));
        if had {
            self.version += 1;
            let gone = Part::Gone(service.clone());
            self.by_version.insert((self.version, gone.clone()), Bytes::new());
            self.held.insert(gone, Held { version: self.version, digest: 0 });
            self.tombstones.entry(self.version).or_default().push(service.clone());
            self.tombstone_count += 1;
            self.bury_old_ones();
        }
        self.version
    }

    /// What changed since `version`, or the whole when that is unknown, from the future or too long ago.
    pub fn since(&self, version: Option<u64>) -> Delta {
        let known = version.filter(|version| (self.oldest.max(1)..=self.version).contains(version));
        let parts = match known {
            // A tuple with the least part of the next version.
            Some(version) => self.by_version.range((version + 1, Part::Keys)..).map(take).collect(),
            None => self.by_version.iter().filter(|((_, part), _)| !matches!(part, Part::Gone(_))).map(take).collect(),
        };
        Delta { version: self.version, digest: self.digest, whole: known.is_none(), parts }
    }

    fn forget(&mut self, part: &Part) -> bool {
        let Some(held) = self.held.remove(part) else { return false };
        self.digest = self.digest.wrapping_sub(held.digest);
        self.by_version.remove(&(held.version, part.clone()));
        true
    }

    fn unbury(&mut self, service: ServiceName) {
        let gone = Part::Gone(service);
        let Some(version) = self.held.get(&gone).map(|held| held.version) else { return };
        self.forget(&gone);
        self.tombstones.remove(&version);
        self.tombstone_count -= 1;
    }

    fn bury_old_ones(&mut self) {
        while self.tombstone_count > MOST_TOMBSTONES {
            let Some((version, services)) = self.tombstones.pop_first() else { return };
            self.tombstone_count -= services.len();
            self.oldest = version;
            for service in services {
                self.forget(&Part::Gone(service));
            }
        }
    }
}

fn take(((_, part), bytes): (&(u64, Part), &Bytes)) -> (Part, Bytes) {
    (part.clone(), bytes.clone())
}

impl Delta {
    /// A `WatchResponse` without reports; those may be appended, since concatenated messages merge (protobuf
    /// encoding, "Last One Wins").
    pub fn encode(&self, epoch: &str, notice: &Notice) -> Vec<u8> {
        let head = v1::WatchResponse {
            epoch: epoch.to_owned(),
            version: self.version,
            whole: self.whole,
            digest: self.digest,
            renew_after_seconds: notice.renew_after_seconds,
            partial: notice.partial,
            issues: notice.issues.clone(),
            ..Default::default()
        };
        let size: usize = self.parts.iter().map(|(part, bytes)| bytes.len() + part.service().len() + 24).sum();
        let mut out = Vec::with_capacity(size + 128);
        // A Vec grows as needed, so encoding into it cannot run out of room.
        let _ = head.encode(&mut out);
        let mut services: BTreeMap<&ServiceName, [Option<&Bytes>; 2]> = BTreeMap::new();
        for (part, bytes) in &self.parts {
            match part {
                Part::Routes(name) => services.entry(name).or_default()[0] = Some(bytes),
                Part::Instances(name) => services.entry(name).or_default()[1] = Some(bytes),
                Part::Gone(name) => field(&mut out, 5, &[name.as_str().as_bytes()]),
                Part::Keys => field(&mut out, 6, &[bytes]),
                Part::StaticRoutes => field(&mut out, 7, &[bytes]),
                Part::Cors => field(&mut out, 8, &[bytes]),
            }
        }
        let mut inner = Vec::new();
        for (name, parts) in services {
            inner.clear();
            field(&mut inner, 1, &[name.as_str().as_bytes()]);
            for (number, bytes) in [2, 3].into_iter().zip(parts) {
                if let Some(bytes) = bytes {
                    field(&mut inner, number, &[bytes]);
                }
            }
            field(&mut out, 4, &[&inner]);
        }
        out
    }
}

/// Appends a length-delimited field, whose content is given in pieces.
pub(crate) fn field(out: &mut Vec<u8>, number: u32, pieces: &[&[u8]]) {
    varint(out, u64::from(number << 3 | 2));
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    varint(out, length as u64);
    for piece in pieces {
        out.extend_from_slice(piece);
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(index: u32) -> ServiceName {
        format!("s{index}").parse().unwrap()
    }

    fn routes(service: u32, value: u32) -> Encoded {
        let route = v1::SnapshotRoute { path: format!("/{value}"), ..Default::default() };
        Encoded::new(Part::Routes(name(service)), v1::RouteSet { routes: vec![route], digest: 7 })
    }

    fn instances(service: u32, value: u32) -> Encoded {
        let instance = v1::SnapshotInstance { number: value, ..Default::default() };
        Encoded::new(Part::Instances(name(service)), v1::InstanceSet { instances: vec![instance], digest: 0 })
    }

    #[test]
    fn the_digest_of_a_part_is_what_the_protocol_says() {
        let encoded = routes(1, 5);
        let plain = v1::RouteSet { routes: vec![v1::SnapshotRoute { path: "/5".into(), ..Default::default() }], digest: 0 };
        let hash = Sha256::digest([&[1u8][..], b"s1", &[0], &plain.encode_to_vec()].concat());
        let expected = u64::from_le_bytes(hash[..8].try_into().unwrap());
        assert_eq!(encoded.digest, expected);
        assert_eq!(v1::RouteSet::decode(encoded.bytes).unwrap().digest, expected);
    }

    #[test]
    fn what_changes_nothing_is_no_version() {
        let mut publication = Publication::default();
        let version = publication.publish([routes(1, 1), instances(1, 1)]);
        assert_eq!(publication.publish([routes(1, 1)]), version);
        assert_eq!(publication.publish([routes(1, 1), instances(1, 2)]), version + 1);
        assert_eq!(publication.since(Some(version)).parts.len(), 1);
        assert_eq!(publication.remove(&name(2)), version + 1);
    }

    #[test]
    fn one_change_among_many_services_is_one_service() {
        let mut publication = Publication::default();
        for service in 0..1000 {
            publication.publish([routes(service, 0), instances(service, 0)]);
        }
        let version = publication.version();
        publication.publish([instances(500, 1)]);
        let delta = publication.since(Some(version));
        assert_eq!(delta.parts.len(), 1);
        let message = v1::WatchResponse::decode(&*delta.encode("e", &Notice::default())).unwrap();
        assert_eq!(message.services.len(), 1);
        assert!(message.services[0].routes.is_none() && message.services[0].instances.is_some());
    }

    #[test]
    fn the_future_and_the_forgotten_past_get_the_whole() {
        let mut publication = Publication::default();
        for service in 0..12_000 {
            publication.publish([routes(service, 0)]);
            publication.remove(&name(service));
        }
        publication.publish([routes(1, 1)]);
        let version = publication.version();
        assert!(publication.by_version.len() <= MOST_TOMBSTONES + 1);
        for (since, whole) in [(None, true), (Some(0), true), (Some(10), true), (Some(version + 1), true), (Some(version - 10), false)] {
            assert_eq!(publication.since(since).whole, whole, "{since:?}");
        }
        assert_eq!(publication.since(None).parts.len(), 1);
    }

    /// A data plane that does nothing but hold.
    #[derive(Default)]
    struct Holder {
        version: Option<u64>,
        routes: BTreeMap<String, u64>,
        instances: BTreeMap<String, u64>,
    }

    impl Holder {
        fn take(&mut self, publication: &Publication) {
            let message = v1::WatchResponse::decode(&*publication.since(self.version).encode("e", &Notice::default())).unwrap();
            if message.whole {
                self.routes.clear();
                self.instances.clear();
            }
            for service in message.services {
                if let Some(routes) = service.routes {
                    self.routes.insert(service.name.clone(), routes.digest);
                }
                if let Some(instances) = service.instances {
                    self.instances.insert(service.name, instances.digest);
                }
            }
            for gone in message.removed {
                self.routes.remove(&gone);
                self.instances.remove(&gone);
            }
            let sum = self.routes.values().chain(self.instances.values()).fold(0u64, |sum, digest| sum.wrapping_add(*digest));
            assert_eq!(sum, message.digest);
            self.version = Some(message.version);
        }
    }

    proptest! {
        #[test]
        fn whoever_follows_at_any_pace_holds_the_same(changes in proptest::collection::vec((0..4u32, 0..3u32, 0..4u8, 0..4u8), 0..80)) {
            let mut publication = Publication::default();
            let (mut eager, mut lazy) = (Holder::default(), Holder::default());
            for (service, value, what, pace) in changes {
                let known = publication.version_of(&name(service)) > 0;
                match what {
                    0 if known => publication.publish([routes(service, value)]),
                    1 if known => publication.publish([instances(service, value)]),
                    0 | 1 => publication.publish([routes(service, value), instances(service, value)]),
                    2 => publication.publish([routes(service, value), instances(service, value)]),
                    _ => publication.remove(&name(service)),
                };
                eager.take(&publication);
                if pace == 0 {
                    lazy.take(&publication);
                }
            }
            lazy.take(&publication);
            let mut fresh = Holder::default();
            fresh.take(&publication);
            prop_assert_eq!(&eager.routes, &lazy.routes);
            prop_assert_eq!(&eager.routes, &fresh.routes);
            prop_assert_eq!(&eager.instances, &lazy.instances);
            prop_assert_eq!(&eager.instances, &fresh.instances);
        }
    }
}
