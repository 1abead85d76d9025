//! What people did, and whether that is still as it was sealed.

use super::Client;
use crate::approval::{AuditEntry, KEPT, Seal, SealKey, Verified, Verifier};
use crate::error::{Error, Kind};

const READ_AT_ONCE: usize = 1000;

impl Client {
    /// What people did lately, newest first, at most so many entries.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn audit_entries(&self, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        self.backends().store.audit_entries(limit).await
    }

    /// The newest seal on the audit. Kept elsewhere, it shows later whether the audit was cut.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn newest_seal(&self) -> Result<Option<Seal>, Error> {
        self.backends().store.newest_seal().await
    }

    /// Looks for entries that were altered, removed or reordered since they were sealed; and, with
    /// a seal that was kept elsewhere, for a tail that was cut since then.
    ///
    /// # Errors
    /// This process has no key (`approvals.seal_key_file`); the store does not answer.
    pub async fn verify_audit(&self, exported: Option<&Seal>) -> Result<Verified, Error> {
        let key = self.seal_key()?;
        let store = &self.backends().store;
        let mut seals: Vec<Seal> = Vec::new();
        loop {
            let newest = seals.last().map_or(0, |seal| seal.number);
            let more = store.seals_after(newest, READ_AT_ONCE).await?;
            if more.is_empty() {
                break;
            }
            seals.extend(more);
        }
        let mut verifier = Verifier::new(key, seals, KEPT);
        let mut last: Option<String> = None;
        loop {
            let entries = store.audit_after(last.as_deref(), READ_AT_ONCE).await?;
            let Some(entry) = entries.last() else { break };
            last = Some(entry.id.clone());
            entries.iter().for_each(|entry| verifier.read(entry));
        }
        Ok(verifier.finish(exported))
    }

    fn seal_key(&self) -> Result<&SealKey, Error> {
        let missing = "approvals.seal_key_file is not set: it names the file of the key that the \
                       audit is sealed with";
        self.config().seal_key.as_ref().ok_or_else(|| Kind::Config(vec![missing.into()]).into())
    }
}
