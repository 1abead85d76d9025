//! An entry of the outbox.

/// An entry of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) about: usize,
}
