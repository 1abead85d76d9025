//! Wakes the waiters of one key: an event about one task or approval request wakes only its own waiters.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The waiters of this process, by key. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct KeyedNotify<K>(Arc<Mutex<HashMap<K, Vec<Arc<Notify>>>>>);

impl<K> Default for KeyedNotify<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Debug + Eq + Hash> KeyedNotify<K> {
    /// Watches these keys, from now until the watch is dropped.
    pub(crate) fn watch(&self, keys: Vec<K>) -> KeyedWatch<K> {
        let notify = Arc::new(Notify::new());
        let mut waiters = self.waiters();
        for key in &keys {
            waiters.entry(key.clone()).or_default().push(Arc::clone(&notify));
        }
        drop(waiters);
        KeyedWatch { notify, keys, waiters: self.clone() }
    }

    /// Wakes the watches of this key.
    pub(crate) fn notify(&self, key: &K) {
        self.waiters().get(key).into_iter().flatten().for_each(|notify| notify.notify_one());
    }

    /// Wakes every watch: an event may have been missed.
    pub(crate) fn notify_all(&self) {
        self.waiters().values().flatten().for_each(|notify| notify.notify_one());
    }

    fn waiters(&self) -> MutexGuard<'_, HashMap<K, Vec<Arc<Notify>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch of some keys.
#[derive(Debug)]
pub struct KeyedWatch<K: Clone + Debug + Eq + Hash> {
    notify: Arc<Notify>,
    keys: Vec<K>,
    waiters: KeyedNotify<K>,
}

impl<K: Clone + Debug + Eq + Hash> KeyedWatch<K> {
    /// Completes when one of the keys may have changed since the watch was created, or since the last
    /// completion. It may also complete without a change: read the state again. Cancel safe.
    pub async fn changed(&mut self) {
        self.notify.notified().await;
    }
}

impl<K: Clone + Debug + Eq + Hash> Drop for KeyedWatch<K> {
    fn drop(&mut self) {
        let mut waiters = self.waiters.waiters();
        for key in &self.keys {
            if let Some(notifies) = waiters.get_mut(key) {
                notifies.retain(|notify| !Arc::ptr_eq(notify, &self.notify));
                if notifies.is_empty() {
                    waiters.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn only_the_watches_of_a_key_wake() {
        let notify = KeyedNotify::default();
        let (mut one, mut both) = (notify.watch(vec![1]), notify.watch(vec![1, 2]));
        notify.notify(&2);
        both.changed().await;
        assert!(poll!(pin!(one.changed())).is_pending(), "its key has not changed");
        notify.notify(&1);
        one.changed().await;
        both.changed().await;
        notify.notify_all();
        one.changed().await;
        both.changed().await;
    }

    #[tokio::test]
    async fn a_change_before_the_wait_completes_it() {
        let notify = KeyedNotify::default();
        let mut watch = notify.watch(vec![1]);
        notify.notify(&1);
        watch.changed().await;
        assert!(poll!(pin!(watch.changed())).is_pending(), "once");
    }

    #[test]
    fn a_dropped_watch_leaves_nothing() {
        let notify = KeyedNotify::default();
        let (one, two) = (notify.watch(vec![1, 2]), notify.watch(vec![2]));
        drop(one);
        assert_eq!(notify.waiters().len(), 1);
        drop(two);
        assert_eq!(notify.waiters().len(), 0);
    }
}
