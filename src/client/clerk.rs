//! The service beside the people who decide: whatever is to be done for them without them.

use super::Client;
use super::sealer::Sealer;

impl Client {
    /// Seals the audit at least once a second, until `stop` completes. Any number of processes may
    /// do so: one at a time seals, of those that have the key (`approvals.seal_key_file`).
    pub async fn clerk(&self, stop: impl Future<Output = ()>) {
        let sealing = async {
            match &self.config().seal_key {
                Some(key) => {
                    Sealer::new(self.backends().store.clone(), key.clone()).run().await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop => {}
            () = sealing => {}
        }
    }
}
