//! Capabilities that not every backend has.

/// A capability that a backend may lack. Every backend provides everything else in the backend traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Confirmed messages and recorded data survive the end of the process.
    Durability,
    /// Several processes use the same data at a time: each sees the changes and gets the notifications
    /// of the others, and the deliveries of a process that died are redelivered to another.
    SeveralProcesses,
    /// Queues have types: a quorum queue is distinct from a classic one.
    QueueTypes,
    /// Workers receive the control messages that Celery's clients broadcast.
    RemoteControl,
}

impl Capability {
    /// Returns the name that is shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Durability => "durability",
            Self::SeveralProcesses => "several processes",
            Self::QueueTypes => "queue types",
            Self::RemoteControl => "Celery's remote control",
        }
    }
}
