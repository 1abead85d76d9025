//! The broker over RabbitMQ. Only this folder names lapin.
//!
//! Each process has two connections, each with its own supervisor, because a blocked publisher must not
//! stop acks. lapin's own recovery stays off (`DESIGN.md` explains why).

mod address;
mod broker;
mod channel_pool;
mod codec;
mod connection;
mod consume;
mod control;
mod delayed_delivery;
mod fetch;
mod frame;
#[cfg(feature = "faults")]
mod fuzz;
mod guard;
mod publish;
mod publish_job;
mod refusals;
mod server_version;
mod settings;
mod topology;
mod transport;

pub(crate) use broker::Rabbit;
#[cfg(feature = "faults")]
pub use fuzz::{guard_frames, read_message};
pub(crate) use settings::RabbitSettings;
