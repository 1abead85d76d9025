//! The outcome of a request, as a handler gets it.

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ObservedOutcome {
    By(usize),
    Expired,
    Withdrawn,
}
