//! A broker and a store that are used together.

use std::sync::Arc;

use super::{Broker, Capability, Store};

/// A broker and a store that are used together.
#[derive(Clone, Debug)]
pub struct Backends {
    /// Moves messages.
    pub broker: Arc<dyn Broker>,
    /// Keeps results, journals, approvals and all other task data.
    pub store: Arc<dyn Store>,
    /// The capabilities that they do not have. They provide everything else that the traits specify.
    pub missing: &'static [Capability],
}
