//! Reading and verifying the audit.

use super::Client;
use crate::approval::{AuditEntry, MAX_AUDIT_ENTRIES, Seal, SealKey, Verified, Verifier};
use crate::error::{Error, Kind};

const READ_AT_ONCE: usize = 1000;

impl Client {
    /// Returns the newest entries of the audit, at most `limit`, newest first: decisions, notes and refused
    /// attempts to decide. The order of entries of different kinds with the same millisecond is unspecified.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn audit_entries(&self, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        self.backends().store.audit_entries(limit).await
    }

    /// Returns the newest seal on the audit. Stored elsewhere, it can later prove a truncation of the audit.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn newest_seal(&self) -> Result<Option<Seal>, Error> {
        self.backends().store.newest_seal().await
    }

    /// Finds decisions that were altered, removed or reordered after they were sealed; and, given a seal that
    /// was stored elsewhere, a truncation since that seal. Notes and refused attempts are neither sealed nor
    /// counted.
    ///
    /// # Errors
    /// If this process has no key (`approvals.seal_key_file`), or the store does not answer.
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
        let mut verifier = Verifier::new(key, seals, MAX_AUDIT_ENTRIES);
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
