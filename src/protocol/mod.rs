//! Celery's protocol as types: message protocol 2 in both directions, result documents, Python's `repr`. No
//! I/O, no clock: the current time is a parameter.

mod arguments;
mod body;
mod canvas;
mod compression;
pub mod control;
mod dead_letter;
mod decode;
mod digest;
mod document;
mod encode;
mod envelope;
mod failures;
mod headers;
mod history;
mod keyword;
mod message;
mod message_headers;
mod repr;
mod signature;
mod suspend_header;
pub(crate) mod table;
mod tagged_json;

pub use arguments::{Arguments, Kwargs};
pub use canvas::{Canvas, Child, FollowUp, FollowUps};
pub use dead_letter::{
    DIED_AT, DeadLetterHeaders, RAW_HEADERS, REASON, SOURCE, UNKNOWN_SINCE, UNREADABLE,
};
pub use digest::TaskDigest;
pub use document::{Document, SUSPENDED, State};
pub(crate) use encode::date;
pub use envelope::{DecodeError, Envelope, EnvelopeForm, Limits, Lineage};
pub use history::{Attempt, History};
pub use message::{HEADER_LIMIT, Message, Properties};
pub use message_headers::MessageHeaders;
pub use suspend_header::{SuspendHeader, SuspendKind};
pub use table::Headers;
