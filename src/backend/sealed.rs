//! Keeps the backend traits from being implemented elsewhere.

/// Implemented only by the backends of this crate.
pub trait Sealed {}
