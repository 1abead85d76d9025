//! Seals the audit. Of the processes that have the key, one at a time holds the lease to do this.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, warn};

use crate::approval::{Seal, SealKey};
use crate::backend::{SealLease, Store};
use crate::error::Error;

/// Twice a second, so that no entry stays unsealed for more than a second.
const PACE: Duration = Duration::from_millis(500);
/// After this time another process takes over from one that has died.
const LEASE: Duration = Duration::from_secs(3);
/// The maximum number of entries under one seal.
const SEALED_AT_ONCE: usize = 1000;

pub(super) struct Sealer {
    store: Arc<dyn Store>,
    key: SealKey,
    holder: String,
    /// The newest seal known to this process.
    last: Option<Seal>,
}

impl Sealer {
    pub(super) fn new(store: Arc<dyn Store>, key: SealKey) -> Self {
        Self { store, key, holder: uuid::Uuid::new_v4().simple().to_string(), last: None }
    }

    /// Seals new entries until it is dropped.
    pub(super) async fn run(mut self) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            if let Err(cause) = self.seal_new().await {
                warn!("cannot seal the audit: {cause}; trying again");
            }
        }
    }

    async fn seal_new(&mut self) -> Result<(), Error> {
        let mut next = None;
        loop {
            let sealing = self.store.seal(&self.holder, LEASE, next.clone()).await?;
            let SealLease::Acquired(newest) = sealing else { return Ok(()) };
            if next.is_some() && newest != next {
                // Another process has added a seal: the next run reads it.
                return Ok(());
            }
            self.remember(newest);
            let upto = self.last.as_ref().map(|seal| seal.upto.as_str());
            let entries = self.store.audit_after(upto, SEALED_AT_ONCE).await?;
            next = Seal::over(&self.key, self.last.as_ref(), &entries);
            if next.is_none() {
                return Ok(());
            }
        }
    }

    /// Remembers the newest seal. A chain only grows, so a smaller number proves a truncation, which is
    /// logged.
    fn remember(&mut self, newest: Option<Seal>) {
        let number = |seal: &Option<Seal>| seal.as_ref().map_or(0, |seal| seal.number);
        let (before, now) = (number(&self.last), number(&newest));
        if now < before {
            error!("the audit was truncated: its newest seal was {before}, and is now {now}");
        }
        self.last = newest;
    }
}
