//! Pure transitions: given what happened, what is to be done. No I/O, no clock, no tokio.

mod ledger;
#[cfg(test)]
mod model;
mod outcome;
pub mod park;
pub mod vote;
pub mod warning;

pub use ledger::{AckLedger, Frame, Settlement};
pub use outcome::Outcome;
