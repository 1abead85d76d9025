//! Celery's protocol as types: message v2 in and out, result documents, Python's `repr`.
//! No I/O, no clock: what needs the time is given it.

mod arguments;
mod body;
mod canvas;
mod compression;
pub mod control;
mod decode;
mod digest;
mod document;
mod encode;
mod envelope;
mod epitaph;
mod failures;
mod headers;
mod history;
mod keyword;
mod kombu;
mod message;
mod repr;
mod signature;
pub(crate) mod table;
mod ticket;

pub use arguments::{Arguments, Kwargs};
pub use canvas::{Canvas, Child, FollowUp, FollowUps};
pub use digest::TaskDigest;
pub use document::{Document, PARKED, State};
pub(crate) use encode::date;
pub use envelope::{Envelope, Limits, Lineage, Unreadable};
pub use epitaph::{DIED_AT, Epitaph, RAW_HEADERS, REASON, SOURCE, UNKNOWN_SINCE, UNREADABLE};
pub use history::{Attempt, History};
pub use message::{HEADER_LIMIT, Headers, Message, Properties};
pub use ticket::{Ticket, TicketKind};
