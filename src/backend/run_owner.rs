//! The owner of the data that runs of a task store.

use crate::protocol::TaskDigest;

/// Identifies the run that writes to a journal or a stream.
#[derive(Clone, Debug)]
pub struct RunOwner {
    /// The task's digest.
    pub digest: TaskDigest,
    /// Whether it is the first run of a message that was not delivered before.
    pub is_fresh: bool,
}

impl RunOwner {
    /// Returns whether the stored data stay unchanged. `owner` is a digest, followed by [`ENDED`] once
    /// its task has ended, or `None` in data that an older version wrote.
    #[must_use]
    pub(in crate::backend) fn continues(&self, owner: Option<&str>) -> bool {
        match owner {
            None => true,
            Some(owner) if owner == self.digest.as_str() => true,
            Some(owner) => is_ended(owner, &self.digest) && !self.is_fresh,
        }
    }
}

/// The suffix of the digest of a task that has ended: a first run of the same message starts anew.
pub(in crate::backend) const ENDED: &str = " ended";

/// Returns whether `owner` says that the task with this digest has ended.
pub(in crate::backend) fn is_ended(owner: &str, digest: &TaskDigest) -> bool {
    owner.strip_suffix(ENDED) == Some(digest.as_str())
}

/// Returns whether the stored data belong to the task with this digest; true if either is not known.
pub(in crate::backend) fn is_of(owner: Option<&str>, digest: Option<&TaskDigest>) -> bool {
    owner
        .zip(digest)
        .is_none_or(|(owner, digest)| owner == digest.as_str() || is_ended(owner, digest))
}
