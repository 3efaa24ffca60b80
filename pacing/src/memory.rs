//! What is remembered of the paths to peers, for their next connections.

use std::collections::BTreeMap;

use crate::controller::Remembered;

/// Peers remembered at once; the one not heard of for longest makes place.
const PEERS_MAX: usize = 256;

/// After this time the path is not taken for the same.
const REMEMBERED_US: u64 = 600 * 1_000_000;

/// The paths to peers, which are told apart by a `Key`.
#[derive(Debug, Clone)]
pub struct Memory<Key: Ord + Clone> {
    paths: BTreeMap<Key, (u64, Remembered)>,
}

impl<Key: Ord + Clone> Default for Memory<Key> {
    fn default() -> Self {
        Memory { paths: BTreeMap::new() }
    }
}

impl<Key: Ord + Clone> Memory<Key> {
    /// Remembers a path as it was at `now_us`.
    pub fn remember(&mut self, now_us: u64, key: &Key, path: Remembered) {
        if self.paths.len() >= PEERS_MAX && !self.paths.contains_key(key) {
            let oldest = self.paths.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
            oldest.map(|key| self.paths.remove(&key));
        }
        self.paths.insert(key.clone(), (now_us, path));
    }

    /// What is known of a path, unless it was too long ago.
    #[must_use]
    pub fn recall(&self, now_us: u64, key: &Key) -> Option<Remembered> {
        let (at, path) = self.paths.get(key)?;
        (now_us.saturating_sub(*at) <= REMEMBERED_US).then_some(*path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_what_is_old_and_is_bounded() {
        let path = Remembered { bandwidth: 1, propagation_us: 1 };
        let mut memory = Memory::default();
        for peer in 0..2 * PEERS_MAX {
            memory.remember(peer as u64, &peer, path);
        }
        assert_eq!(memory.paths.len(), PEERS_MAX);
        assert_eq!(memory.recall(600, &0), None);
        assert_eq!(memory.recall(600, &(2 * PEERS_MAX - 1)), Some(path));
        assert_eq!(memory.recall(REMEMBERED_US + 10_000, &(2 * PEERS_MAX - 1)), None);
    }
}
