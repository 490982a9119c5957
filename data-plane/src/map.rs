//! A persistent hash map: `clone` is a pointer, and a clone that is changed shares with the old one
//! all but the path to the change.
//!
//! Here: a hash array mapped trie (Bagwell 2001) of 32-way branches over buckets of a few entries,
//! so that a small map is one allocation that is scanned, and a node nobody shares is changed in
//! place. Not here: what is kept in it.

use std::{
    borrow::Borrow,
    fmt,
    hash::{BuildHasher, Hash},
    sync::{Arc, LazyLock},
};

/// Seeded once per process, so that keys chosen by others cannot be made to collide.
static HASHER: LazyLock<foldhash::fast::RandomState> = LazyLock::new(foldhash::fast::RandomState::default);

/// Hash bits that one level of branches uses.
const BITS: u32 = 5;
/// The last level that has bits of the hash left.
const LAST_SHIFT: u32 = 60;
/// Entries that a bucket may hold before it is split; a scan of eight hashes is one or two cache lines.
const BUCKET: usize = 8;

/// A map from `K` to `V`.
pub struct Map<K, V> {
    root: Option<Node<K, V>>,
    len: usize,
}

/// A node is held by value and its content behind one pointer, so that a level costs a search one
/// cache miss.
enum Node<K, V> {
    Bucket(Arc<[Entry<K, V>]>),
    Branch { bitmap: u32, children: Arc<[Node<K, V>]> },
}

#[derive(Clone)]
struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
}

impl<K, V> Map<K, V> {
    /// A map without entries; allocates nothing.
    pub const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its entries, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut pending: Vec<&Node<K, V>> = self.root.iter().collect();
        let mut bucket = [].iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(Entry { key, value, .. }) = bucket.next() {
                    return Some((key, value));
                }
                match pending.pop()? {
                    Node::Bucket(entries) => bucket = entries.iter(),
                    Node::Branch { children, .. } => pending.extend(children.iter()),
                }
            }
        })
    }

    /// Its values, in no order that means anything.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Hash + Eq, V> Map<K, V> {
    /// The value of a key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut node = self.root.as_ref()?;
        let hash = HASHER.hash_one(key);
        let mut shift = 0;
        loop {
            match node {
                Node::Bucket(entries) => {
                    return entries.iter().find(|entry| entry.hash == hash && entry.key.borrow() == key).map(|entry| &entry.value);
                }
                Node::Branch { bitmap, children } => {
                    node = children.get(position(*bitmap, bit(hash, shift))?)?;
                    shift += BITS;
                }
            }
        }
    }

    /// Whether it has a key.
    pub fn contains<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Map<K, V> {
    /// The value of a key, to change. What clones share with this map is copied first.
    pub fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        // An absent key must not copy anything.
        self.get(key)?;
        let hash = HASHER.hash_one(key);
        let mut node = self.root.as_mut()?;
        let mut shift = 0;
        loop {
            match node {
                Node::Bucket(entries) => {
                    let mut own = Arc::make_mut(entries).iter_mut();
                    return own.find(|entry| entry.hash == hash && entry.key.borrow() == key).map(|entry| &mut entry.value);
                }
                Node::Branch { bitmap, children } => {
                    node = Arc::make_mut(children).get_mut(position(*bitmap, bit(hash, shift))?)?;
                    shift += BITS;
                }
            }
        }
    }

    /// Sets the value of a key; the value it had, if any.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let entry = Entry { hash: HASHER.hash_one(&key), key, value };
        let old = match &mut self.root {
            Some(root) => put(root, 0, entry),
            None => {
                self.root = Some(Node::Bucket([entry].into()));
                None
            }
        };
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes a key out; the value it had, if any.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        let removed = take(self.root.as_mut()?, 0, HASHER.hash_one(key), key);
        self.len -= usize::from(removed.is_some());
        if self.len == 0 {
            self.root = None;
        }
        removed
    }
}

fn bit(hash: u64, shift: u32) -> u32 {
    1 << ((hash >> shift) & 31)
}

/// Where the child of a bit is, if there is one.
fn position(bitmap: u32, bit: u32) -> Option<usize> {
    (bitmap & bit != 0).then(|| rank(bitmap, bit))
}

/// How many children come before the one of a bit.
fn rank(bitmap: u32, bit: u32) -> usize {
    (bitmap & (bit - 1)).count_ones() as usize
}

/// The items with one more at a place.
fn with<T: Clone>(items: &[T], at: usize, item: T) -> Arc<[T]> {
    let (before, after) = items.split_at(at);
    before.iter().cloned().chain([item]).chain(after.iter().cloned()).collect()
}

/// The items without the one at a place.
fn without<T: Clone>(items: &[T], at: usize) -> Arc<[T]> {
    items.iter().take(at).chain(items.iter().skip(at + 1)).cloned().collect()
}

fn put<K: Eq + Clone, V: Clone>(node: &mut Node<K, V>, shift: u32, entry: Entry<K, V>) -> Option<V> {
    match node {
        Node::Bucket(entries) => {
            if let Some(at) = entries.iter().position(|own| own.hash == entry.hash && own.key == entry.key) {
                return Some(std::mem::replace(&mut Arc::make_mut(entries)[at].value, entry.value));
            }
            *entries = with(entries, entries.len(), entry);
            if entries.len() > BUCKET && shift <= LAST_SHIFT {
                *node = split(entries, shift);
            }
            None
        }
        Node::Branch { bitmap, children } => {
            let bit = bit(entry.hash, shift);
            let at = rank(*bitmap, bit);
            if *bitmap & bit != 0 {
                return put(&mut Arc::make_mut(children)[at], shift + BITS, entry);
            }
            *bitmap |= bit;
            *children = with(children, at, Node::Bucket([entry].into()));
            None
        }
    }
}

/// A branch over the entries of a bucket that grew too large. Children may be too large still: the
/// next entry that falls into one splits it.
fn split<K: Clone, V: Clone>(entries: &[Entry<K, V>], shift: u32) -> Node<K, V> {
    let mut buckets: [Vec<Entry<K, V>>; 32] = std::array::from_fn(|_| Vec::new());
    let mut bitmap = 0;
    for entry in entries {
        let bit = bit(entry.hash, shift);
        bitmap |= bit;
        buckets[bit.trailing_zeros() as usize].push(entry.clone());
    }
    let children = buckets.into_iter().filter(|bucket| !bucket.is_empty()).map(|bucket| Node::Bucket(bucket.into())).collect();
    Node::Branch { bitmap, children }
}

fn take<K, V, Q>(node: &mut Node<K, V>, shift: u32, hash: u64, key: &Q) -> Option<V>
where
    K: Borrow<Q> + Clone,
    V: Clone,
    Q: Eq + ?Sized,
{
    match node {
        Node::Bucket(entries) => {
            let at = entries.iter().position(|entry| entry.hash == hash && entry.key.borrow() == key)?;
            let removed = entries[at].value.clone();
            *entries = without(entries, at);
            Some(removed)
        }
        Node::Branch { bitmap, children } => {
            let bit = bit(hash, shift);
            let at = position(*bitmap, bit)?;
            let own = Arc::make_mut(children);
            let removed = take(&mut own[at], shift + BITS, hash, key);
            if own[at].entries() == Some(0) {
                *children = without(children, at);
                *bitmap &= !bit;
            }
            if let Some(merged) = merge(children) {
                *node = Node::Bucket(merged);
            }
            removed
        }
    }
}

/// One bucket instead of children that hold half a bucket together, so that a map that shrank is small.
fn merge<K: Clone, V: Clone>(children: &[Node<K, V>]) -> Option<Arc<[Entry<K, V>]>> {
    if children.len() > BUCKET / 2 {
        return None;
    }
    let mut entries = Vec::new();
    for child in children {
        match child {
            Node::Bucket(own) if entries.len() + own.len() <= BUCKET / 2 => entries.extend(own.iter().cloned()),
            _ => return None,
        }
    }
    Some(entries.into())
}

impl<K, V> Node<K, V> {
    /// The entries of a bucket; `None` of a branch.
    fn entries(&self) -> Option<usize> {
        match self {
            Self::Bucket(entries) => Some(entries.len()),
            Self::Branch { .. } => None,
        }
    }
}

impl<K, V> Clone for Node<K, V> {
    fn clone(&self) -> Self {
        match self {
            Self::Bucket(entries) => Self::Bucket(entries.clone()),
            Self::Branch { bitmap, children } => Self::Branch { bitmap: *bitmap, children: children.clone() },
        }
    }
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let mut map = Self::new();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// A key whose hash has few bits, so that whole hashes collide.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Coarse(u16);

    impl Hash for Coarse {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            (self.0 % 3).hash(state);
        }
    }

    fn agrees<K: Hash + Eq + Clone + fmt::Debug>(map: &Map<K, u32>, model: &HashMap<K, u32>) {
        assert_eq!(map.len(), model.len());
        assert_eq!(map.is_empty(), model.is_empty());
        for (key, value) in model {
            assert_eq!(map.get(key), Some(value));
        }
        let all: HashMap<K, u32> = map.iter().map(|(key, value)| (key.clone(), *value)).collect();
        assert_eq!(&all, model);
    }

    fn behaves_as_a_map<K: Hash + Eq + Clone + fmt::Debug>(steps: Vec<(K, u32, u8)>) {
        let (mut map, mut model) = (Map::new(), HashMap::new());
        let mut kept = Vec::new();
        for (at, (key, value, action)) in steps.into_iter().enumerate() {
            match action {
                0..=3 => assert_eq!(map.insert(key.clone(), value), model.insert(key, value)),
                4..=6 => assert_eq!(map.remove(&key), model.remove(&key)),
                _ => {
                    let (own, theirs) = (map.get_mut(&key), model.get_mut(&key));
                    assert_eq!(own, theirs);
                    if let (Some(own), Some(theirs)) = (own, theirs) {
                        (*own, *theirs) = (value, value);
                    }
                }
            }
            if at % 16 == 0 {
                kept.push((map.clone(), model.clone()));
            }
        }
        agrees(&map, &model);
        for (map, model) in &kept {
            agrees(map, model);
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_clones_stay_as_they_were(steps in prop::collection::vec((0u16..200, any::<u32>(), 0u8..8), 0..600)) {
            behaves_as_a_map(steps);
        }

        #[test]
        fn colliding_hashes_are_kept_apart(steps in prop::collection::vec((0u16..60, any::<u32>(), 0u8..8), 0..300)) {
            behaves_as_a_map(steps.into_iter().map(|(key, value, action)| (Coarse(key), value, action)).collect());
        }
    }

    #[test]
    fn a_large_map_empties_to_nothing() {
        let mut map: Map<u32, u32> = (0..10_000).map(|key| (key, key)).collect();
        assert_eq!((map.len(), map.get(&9_999), map.get(&10_000)), (10_000, Some(&9_999), None));
        for key in 0..10_000 {
            assert_eq!(map.remove(&key), Some(key));
        }
        assert!(map.root.is_none());
    }
}
