//! Pure state transitions: events in, actions out. No I/O, no clock, no tokio.

pub mod decision_rules;
mod ledger;
#[cfg(test)]
mod model;
pub mod suspension;
pub mod warning;

pub use ledger::{AckLedger, Frame, Settlement};
