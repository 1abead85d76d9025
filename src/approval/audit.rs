//! Audit entries and the seals on them. Seals form a chain that only the holder of the key can extend. Pure.

use std::cmp::Reverse;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::digest;

/// About this many decisions are kept, the newest ones; the same limit holds for seals and for notes. Each
/// kind has its own limit: entries of one kind never evict entries of another kind.
pub(crate) const MAX_AUDIT_ENTRIES: u64 = 100_000;
/// About this many refused attempts are kept.
pub(crate) const MAX_REFUSED_ENTRIES: u64 = 10_000;
/// Names in the entry of a refused attempt are cut after this many bytes.
#[cfg(feature = "embedded")]
pub(crate) const REFUSED_NAME: usize = 256;

/// The kind of an audit entry. Each kind is stored apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditKind {
    /// A decision, vote, withdrawal or extension. Only deciders may write these entries, and only these are
    /// sealed. All entries written by version 0.1 have this kind, whatever they record.
    Decision,
    /// Anything else, such as a warning or a replayed dead letter. Workers may write notes too.
    Note,
    /// An attempt to decide or extend that was refused.
    Refused,
}

impl AuditKind {
    /// Returns the name of the kind as it is displayed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Note => "note",
            Self::Refused => "refused",
        }
    }
}

/// One recorded action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Identifies the entry; later entries of the same kind have greater ids.
    pub id: String,
    /// The kind of the entry. A note is never a decision, whatever its fields claim.
    pub kind: AuditKind,
    /// When the entry was written, by the store's clock.
    pub at: Timestamp,
    /// The action, the person, and the task or approval concerned.
    pub fields: Vec<(String, String)>,
}

/// The key that makes seals. It is never displayed and never stored in the store.
#[derive(Clone)]
pub struct SealKey(Hmac<Sha256>);

impl SealKey {
    /// The minimum length in bytes; shorter keys are too easy to guess.
    pub const MIN: usize = 32;

    /// Creates a key from these bytes; `None` if there are fewer than [`SealKey::MIN`].
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let is_long = bytes.len() >= Self::MIN;
        Hmac::new_from_slice(bytes).ok().filter(|_| is_long).map(Self)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(***)")
    }
}

/// One link of the chain: covers the entries that follow those of the previous link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The number of the link, from 1.
    pub number: u64,
    /// The id of the last entry that the link covers.
    pub upto: String,
    /// The number of entries covered by this link and all links before it.
    pub count: u64,
    /// HMAC-SHA256 over the previous link and the entries, in hexadecimal digits.
    pub mac: String,
}

impl Seal {
    /// Returns the link that follows `last` and covers these entries; `None` if there are no entries.
    #[must_use]
    pub fn over(key: &SealKey, last: Option<&Self>, entries: &[AuditEntry]) -> Option<Self> {
        let upto = entries.last()?.id.clone();
        let mut link = Link::after(key, last);
        entries.iter().for_each(|entry| link.add(entry));
        let number = last.map_or(0, |last| last.number) + 1;
        let count = last.map_or(0, |last| last.count) + entries.len() as u64;
        let mac = link.mac(number, &upto, count);
        Some(Self { number, upto, count, mac })
    }
}

/// A link under construction.
struct Link {
    mac: Hmac<Sha256>,
    entries: u64,
}

impl Link {
    fn after(key: &SealKey, last: Option<&Seal>) -> Self {
        let mut link = Self { mac: key.0.clone(), entries: 0 };
        link.text(last.map_or("", |last| &last.mac));
        link
    }

    /// Hashes the length first, so that two different lists of texts never produce the same bytes.
    fn text(&mut self, text: &str) {
        self.mac.update(&(text.len() as u64).to_be_bytes());
        self.mac.update(text.as_bytes());
    }

    fn add(&mut self, entry: &AuditEntry) {
        self.entries += 1;
        self.text(&entry.id);
        self.mac.update(&(entry.fields.len() as u64).to_be_bytes());
        for (name, value) in &entry.fields {
            self.text(name);
            self.text(value);
        }
    }

    fn mac(mut self, number: u64, upto: &str, count: u64) -> String {
        self.text(upto);
        self.mac.update(&number.to_be_bytes());
        self.mac.update(&count.to_be_bytes());
        digest::hexadecimal(&self.mac.finalize().into_bytes())
    }
}

/// The result of verifying the audit against its seals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The number of sealed entries found.
    pub sealed: u64,
    /// The number of entries newer than the newest seal.
    pub unsealed: u64,
    /// The number of links found.
    pub seals: u64,
    /// Each alteration, removal, reordering or truncation that was found; empty if there is none.
    pub faults: Vec<String>,
}

/// Verifies an audit from its oldest entry on. Entries missing at the beginning are not a fault, because only
/// about [`MAX_AUDIT_ENTRIES`] entries are kept.
pub(crate) struct Verifier<'k> {
    key: &'k SealKey,
    seals: Vec<Seal>,
    /// The index in `seals` of the link that covers the next entry.
    at: usize,
    link: Link,
    /// An older entry was found, so all entries after it must be present.
    has_entries: bool,
    limit: u64,
    verified: Verified,
}

impl<'k> Verifier<'k> {
    /// Takes all stored links, oldest first.
    pub(crate) fn new(key: &'k SealKey, seals: Vec<Seal>, limit: u64) -> Self {
        let verified = Verified { seals: seals.len() as u64, ..Verified::default() };
        let link = Link::after(key, None);
        let mut this = Self { key, seals, at: 0, link, has_entries: false, limit, verified };
        this.check_numbers();
        this
    }

    fn fault(&mut self, fault: String) {
        self.verified.faults.push(fault);
    }

    fn check_numbers(&mut self) {
        let Some(newest) = self.seals.last().map(|seal| seal.number) else { return };
        let gap = self.seals.windows(2).find(|pair| pair[1].number != pair[0].number + 1);
        if let Some(pair) = gap {
            let fault = format!("after seal {} comes seal {}", pair[0].number, pair[1].number);
            self.fault(fault);
        }
        let (present, wanted) = (self.seals.len() as u64, newest.min(self.limit));
        if present < wanted {
            self.fault(format!("of the newest {wanted} seals, {} are missing", wanted - present));
        }
    }

    pub(crate) fn read(&mut self, entry: &AuditEntry) {
        while self.seals.get(self.at).is_some_and(|seal| order(&entry.id) > order(&seal.upto)) {
            self.close();
        }
        if self.at < self.seals.len() {
            self.verified.sealed += 1;
            self.link.add(entry);
        } else {
            self.verified.unsealed += 1;
        }
    }

    /// Checks a link after all of its entries have been read.
    fn close(&mut self) {
        let Some(seal) = self.seals.get(self.at).cloned() else { return };
        let next = Link::after(self.key, Some(&seal));
        let link = std::mem::replace(&mut self.link, next);
        let last = self.at.checked_sub(1).and_then(|at| self.seals.get(at)).cloned();
        self.at += 1;
        if last.is_none() && seal.number != 1 {
            // The previous link has been evicted: verification of the chain starts here.
            self.has_entries |= link.entries > 0;
            return;
        }
        let covered = seal.count.saturating_sub(last.as_ref().map_or(0, |last| last.count));
        let found = link.entries;
        let had_entries = self.has_entries;
        self.has_entries |= found > 0;
        if found < covered && !had_entries {
            return;
        }
        if link.mac(seal.number, &seal.upto, seal.count) != seal.mac {
            let from = last.map_or_else(|| "the first".to_owned(), |last| last.upto);
            let what =
                format!("the {covered} entries of seal {} ({from} to {})", seal.number, seal.upto);
            self.fault(match covered.checked_sub(found) {
                Some(gone @ 1..) => format!("of {what}, {gone} are missing"),
                _ => format!("{what} were changed after sealing"),
            });
        }
    }

    /// Finishes after the last entry. `exported` is a seal that was stored elsewhere.
    pub(crate) fn finish(mut self, exported: Option<&Seal>) -> Verified {
        while self.at < self.seals.len() {
            self.close();
        }
        let count = self.seals.last().map_or(0, |seal| seal.count);
        let wanted = count.min(self.limit.saturating_sub(self.verified.unsealed));
        if self.verified.sealed < wanted {
            let gone = wanted - self.verified.sealed;
            self.fault(format!("{gone} sealed entries are missing"));
        }
        if let Some(exported) = exported {
            self.compare(exported);
        }
        self.verified
    }

    fn compare(&mut self, exported: &Seal) {
        let number = exported.number;
        let newest = self.seals.last().map_or(0, |seal| seal.number);
        let same = self.seals.iter().find(|seal| seal.number == number);
        if newest < number {
            self.fault(format!(
                "the audit was truncated: seal {number} was exported, but the last seal is {newest}"
            ));
        } else if same.is_some_and(|seal| seal != exported) {
            self.fault(format!("seal {number} is not the one that was exported"));
        }
    }
}

/// Merges entries of several kinds into one list, newest first, of at most `limit`.
pub(crate) fn merged(mut entries: Vec<AuditEntry>, limit: usize) -> Vec<AuditEntry> {
    entries.sort_by_cached_key(|entry| Reverse(order(&entry.id)));
    entries.truncate(limit);
    entries
}

/// Parses an entry id into its sort key.
fn order(id: &str) -> (u64, u64) {
    let (time, number) = id.split_once('-').unwrap_or((id, ""));
    (time.parse().unwrap_or(0), number.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests;
