//! What messages of parked tasks say about themselves, in headers of our own.

use serde_json::{Value, json};

use super::{Headers, Message, Properties, Unreadable};
use crate::task::TaskId;

const TICKET: &str = "x-countersign-ticket";
/// When a wake message was sent, in milliseconds by the store's clock. Version 0.1 does not write it.
const SENT: &str = "x-countersign-sent";
/// Numbers are exact in a script's doubles.
const HIGHEST: u64 = 1 << 53;

/// Why a message was sent, and which park of its task it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// Why it was sent.
    pub kind: TicketKind,
    /// The park's number; 0 for a message from before the first.
    pub number: u64,
}

/// Why a message was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TicketKind {
    /// By the producer, or for another attempt.
    Original,
    /// By a decision.
    Resume,
    /// Before the park, to come when it is due.
    Wake,
}

impl Ticket {
    /// What `message` says; a message of a task that was never parked says nothing.
    ///
    /// # Errors
    /// Its header is no ticket.
    pub fn read(message: &Message) -> Result<Option<Self>, Unreadable> {
        let Some(value) = message.headers.get(TICKET) else { return Ok(None) };
        let ticket = value.as_str().and_then(|text| {
            let (kind, number) = text.split_once(' ')?;
            let kind = match kind {
                "original" => TicketKind::Original,
                "resume" => TicketKind::Resume,
                "wake" => TicketKind::Wake,
                _ => return None,
            };
            let number = number.parse().ok().filter(|number| *number < HIGHEST)?;
            Some(Self { kind, number })
        });
        let unreadable = || Unreadable::new(format!("header `{TICKET}` is no ticket"));
        ticket.map(Some).ok_or_else(unreadable)
    }

    /// Writes it on a message.
    #[must_use]
    pub fn on(self, mut message: Message) -> Message {
        let kind = match self.kind {
            TicketKind::Original => "original",
            TicketKind::Resume => "resume",
            TicketKind::Wake => "wake",
        };
        let text = format!("{kind} {}", self.number);
        message.headers.insert(TICKET.into(), Value::String(text));
        message
    }

    /// Takes what is written there off.
    pub fn remove(headers: &mut Headers) {
        headers.remove(TICKET);
        headers.remove(SENT);
    }

    /// Writes on a wake message when it is sent.
    #[must_use]
    pub fn sent(mut message: Message, at: i64) -> Message {
        message.headers.insert(SENT.into(), Value::from(at));
        message
    }

    /// When a wake message was sent, if it says so.
    #[must_use]
    pub fn sent_at(message: &Message) -> Option<i64> {
        message.headers.get(SENT).and_then(Value::as_i64)
    }

    /// The message by which a task is resumed. It has no arguments: they are in the store.
    #[must_use]
    pub fn resume(id: &TaskId, number: u64) -> Message {
        let headers =
            [("lang", json!("rust")), ("task", json!("countersign.resume")), ("id", json!(id))];
        let message = Message {
            id: id.clone(),
            headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            body: "[[], {}, {}]".into(),
            properties: Properties {
                content_type: Some("application/json".into()),
                content_encoding: Some("utf-8".into()),
                correlation_id: Some(id.to_string()),
                ..Properties::default()
            },
        };
        Self { kind: TicketKind::Resume, number }.on(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_comes_back_and_a_forged_one_is_refused() {
        let id = TaskId::from("x");
        let message = Ticket::resume(&id, 7);
        let ticket = Ticket { kind: TicketKind::Resume, number: 7 };
        assert_eq!(Ticket::read(&message).unwrap(), Some(ticket));
        for forged in [
            json!(7),
            json!("wake"),
            json!("wake -1"),
            json!("wake 99999999999999999999"),
            json!("x 1"),
        ] {
            let mut message = message.clone();
            message.headers.insert(TICKET.into(), forged);
            assert!(Ticket::read(&message).is_err());
        }
        let mut message = Ticket::sent(message, 5);
        assert_eq!(Ticket::sent_at(&message), Some(5));
        Ticket::remove(&mut message.headers);
        assert_eq!(Ticket::read(&message).unwrap(), None);
        assert_eq!(Ticket::sent_at(&message), None);
    }
}
