//! What people did, and the seals on it: links of a chain that only who has the key can make.
//! Pure.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::digest;

/// About so many entries are kept, the newest; and so many seals.
pub(crate) const KEPT: u64 = 100_000;

/// One thing that somebody did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Which entry: later ones have greater ids.
    pub id: String,
    /// When, in milliseconds by the store's clock.
    pub at: i64,
    /// What, who, on which task or approval.
    pub fields: Vec<(String, String)>,
}

/// What seals are made with. It is never shown, and never in the store.
#[derive(Clone)]
pub struct SealKey(Hmac<Sha256>);

impl SealKey {
    /// The fewest bytes that are hard enough to guess.
    pub const MIN: usize = 32;

    /// A key of these bytes; `None` when they are too few.
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

/// One link: it covers the entries after those of the link before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Which link, from 1.
    pub number: u64,
    /// The last entry that it covers.
    pub upto: String,
    /// So many entries are covered by it and all links before it.
    pub count: u64,
    /// HMAC-SHA256 over the link before it and the entries, in hexadecimal digits.
    pub mac: String,
}

impl Seal {
    /// The link after `last` over these entries; `None` when there are none.
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

/// A link in the making.
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

    /// Its length goes before it, so that no two lists of texts are the same bytes.
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

/// What became of an audit since it was sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Sealed entries that are there.
    pub sealed: u64,
    /// Entries that came after the newest seal.
    pub unsealed: u64,
    /// Links of the chain that are there.
    pub seals: u64,
    /// What was altered, removed, reordered or cut: nothing, if all is well.
    pub faults: Vec<String>,
}

/// Reads an audit from its oldest entry on. What has gone from its beginning because only about
/// [`KEPT`] entries are kept is no fault.
pub(crate) struct Verifier<'k> {
    key: &'k SealKey,
    seals: Vec<Seal>,
    /// The link that covers the next entry, by its place in `seals`.
    at: usize,
    link: Link,
    /// An older entry is there, and so all after it must be.
    has_begun: bool,
    kept: u64,
    verified: Verified,
}

impl<'k> Verifier<'k> {
    /// Takes all links that are there, the oldest first.
    pub(crate) fn new(key: &'k SealKey, seals: Vec<Seal>, kept: u64) -> Self {
        let verified = Verified { seals: seals.len() as u64, ..Verified::default() };
        let link = Link::after(key, None);
        let mut this = Self { key, seals, at: 0, link, has_begun: false, kept, verified };
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
        let (there, wanted) = (self.seals.len() as u64, newest.min(self.kept));
        if there < wanted {
            self.fault(format!("of the newest {wanted} seals, {} are gone", wanted - there));
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

    /// All entries of a link have been read.
    fn close(&mut self) {
        let Some(seal) = self.seals.get(self.at).cloned() else { return };
        let next = Link::after(self.key, Some(&seal));
        let link = std::mem::replace(&mut self.link, next);
        let last = self.at.checked_sub(1).and_then(|at| self.seals.get(at)).cloned();
        self.at += 1;
        if last.is_none() && seal.number != 1 {
            // The link before it is not kept any more: the chain is followed from here.
            self.has_begun |= link.entries > 0;
            return;
        }
        let covered = seal.count.saturating_sub(last.as_ref().map_or(0, |last| last.count));
        let found = link.entries;
        let is_begun = self.has_begun;
        self.has_begun |= found > 0;
        if found < covered && !is_begun {
            return;
        }
        if link.mac(seal.number, &seal.upto, seal.count) != seal.mac {
            let from = last.map_or_else(|| "the first".to_owned(), |last| last.upto);
            let what =
                format!("the {covered} entries of seal {} ({from} to {})", seal.number, seal.upto);
            self.fault(match covered.checked_sub(found) {
                Some(gone @ 1..) => format!("of {what}, {gone} are gone"),
                _ => format!("{what} are not as they were sealed"),
            });
        }
    }

    /// Everything has been read. `exported` is a seal that was kept elsewhere.
    pub(crate) fn finish(mut self, exported: Option<&Seal>) -> Verified {
        while self.at < self.seals.len() {
            self.close();
        }
        let count = self.seals.last().map_or(0, |seal| seal.count);
        let wanted = count.min(self.kept.saturating_sub(self.verified.unsealed));
        if self.verified.sealed < wanted {
            let gone = wanted - self.verified.sealed;
            self.fault(format!("{gone} sealed entries are gone, which were to be kept"));
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
                "its tail is cut: seal {number} was exported, and it ends at {newest}"
            ));
        } else if same.is_some_and(|seal| seal != exported) {
            self.fault(format!("seal {number} is not the one that was exported"));
        }
    }
}

/// The order of entries' ids.
fn order(id: &str) -> (u64, u64) {
    let (time, number) = id.split_once('-').unwrap_or((id, ""));
    (time.parse().unwrap_or(0), number.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests;
