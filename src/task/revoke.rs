//! How a task is revoked.

/// Which tasks a revocation affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Revoke {
    /// A task that has not started does not start; a running one continues.
    IfQueued,
    /// A running task is cancelled too, and dropped if it does not end.
    Terminate,
}
