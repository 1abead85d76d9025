//! The store's clock, read about once a second: the time in a wake message decides only whether it is
//! days old.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Store;
use crate::error::Error;

/// For this long the time since a read is measured here.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The latest read of the store's clock: its milliseconds since the epoch, and when it was read.
#[derive(Debug, Default)]
pub(super) struct StoreClock(Mutex<Option<(i64, Instant)>>);

impl StoreClock {
    /// Returns the store's time in milliseconds since the epoch. Waits while the store is unreachable.
    pub(super) async fn now(&self, store: &dyn Store) -> Result<i64, Error> {
        let read = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((time, at)) = read
            && let age = at.elapsed()
            && age < MAX_AGE
        {
            return Ok(time.saturating_add(i64::try_from(age.as_millis()).unwrap_or(0)));
        }
        let time = store.clock().await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((time, Instant::now()));
        Ok(time)
    }
}
