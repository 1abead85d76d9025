//! What not every backend can do.

/// What a backend may lack. Whatever else the seams promise, every backend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// What was confirmed and recorded outlives the process.
    Durability,
    /// Several processes use the same data at a time: what one does the others see and hear, and
    /// what one that died had in its hands is delivered to another.
    SeveralProcesses,
    /// Queues have types: a quorum queue is another one than a classic one.
    QueueTypes,
    /// What Celery's clients broadcast to its workers is heard.
    RemoteControl,
}

impl Capability {
    /// As it is told to people.
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
