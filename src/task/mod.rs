//! Tasks: name, typed arguments, id and policy.

mod id;
mod policy;
mod revoke;

pub use id::TaskId;
pub use policy::{Policy, Rate, Task};
pub use revoke::Revoke;
