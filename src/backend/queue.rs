//! A queue: its name, its arguments, and its companion queues.

use std::time::Duration;

use crate::config::{Config, QueueSettings, QueueType};

/// A queue as it is declared and consumed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Its name, which is also its routing key.
    pub name: String,
    /// Its type, if it does not exist yet.
    pub kind: QueueType,
    /// Its highest priority (`x-max-priority`), if it does not exist yet.
    pub max_priority: Option<u8>,
    /// The number of deliveries after which the broker drops a message, if the queue does not exist yet.
    pub delivery_limit: Option<u32>,
    /// The topic exchange that Celery clients publish its tasks to, if not the default exchange.
    pub exchange: Option<String>,
    /// The routing key that they use, if not the queue's name.
    pub routing_key: Option<String>,
    /// Where its messages go when they have waited for a fixed time; for a queue without a consumer.
    pub expiry: Option<Expiry>,
}

/// The time after which the messages of a queue move to another queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expiry {
    /// The time that a message waits.
    pub after: Duration,
    /// The queue that then gets it.
    pub to: Box<Queue>,
}

/// The suffix of the queue for resume and wake messages.
const RESUME_SUFFIX: &str = ".countersign-resume";
/// The times that wake messages wait, each with the suffix of its queue.
const BACKSTOPS: [(Duration, &str); 3] = [
    (Duration::from_secs(60), ".countersign-wake-1m"),
    (Duration::from_secs(600), ".countersign-wake-10m"),
    (Duration::from_secs(3600), ".countersign-wake-1h"),
];
/// The longest name of a queue that a worker can serve, in bytes: a routing key has 255, of which
/// delayed delivery takes 56 and the suffix of the queue for resume messages 19.
const LONGEST_NAME: usize = 180;

impl Queue {
    /// Creates a classic queue with an empty argument table, as Celery clients declare it.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: QueueType::Classic,
            max_priority: None,
            delivery_limit: None,
            exchange: None,
            routing_key: None,
            expiry: None,
        }
    }

    /// Creates the queue of this name with its settings in `config`.
    pub fn configured(name: impl Into<String>, config: &Config) -> Self {
        let name = name.into();
        match config.queues.get(&name) {
            Some(settings) => {
                let QueueSettings { kind, max_priority, delivery_limit, exchange, routing_key } =
                    settings.clone();
                let new = Self::new(name);
                Self { kind, max_priority, delivery_limit, exchange, routing_key, ..new }
            }
            None => Self::new(name),
        }
    }

    /// Creates a companion queue of the same type.
    fn companion(&self, name: String) -> Self {
        Self { kind: self.kind, ..Self::new(name) }
    }

    /// Checks whether a worker can serve a queue of this name with all of its features.
    ///
    /// # Errors
    /// A line of text for users, with the limit.
    pub fn check_name(&self) -> Result<(), String> {
        let (name, size) = (&self.name, self.name.len());
        if name.is_empty() {
            return Err("a queue name must not be empty".to_owned());
        }
        if size > LONGEST_NAME {
            return Err(format!(
                "queue name `{name:.40}...` has {size} bytes: at most {LONGEST_NAME}, so that delays, \
                 approvals and dead letters fit into RabbitMQ's 255"
            ));
        }
        if name.split('.').any(|word| word == "*" || word == "#") {
            return Err(format!(
                "queue name `{name}` has a word that is `*` or `#`: delayed tasks of other queues would \
                 match it as a pattern"
            ));
        }
        if name.chars().any(char::is_control) {
            return Err(format!("queue name {name:?} has a control character"));
        }
        Ok(())
    }

    /// Returns the number of deliveries after which a message is replaced by a fresh copy: half of the
    /// limit, or of the 20 that RabbitMQ 4 has by default.
    #[must_use]
    pub fn worn_at(&self) -> u64 {
        self.delivery_limit.map_or(10, |limit| u64::from(limit / 2).max(1))
    }

    /// Returns the queue for messages of this queue's suspended tasks. Celery's workers do not use it.
    #[must_use]
    pub fn resume(&self) -> Self {
        self.companion(format!("{}{RESUME_SUFFIX}", self.name))
    }

    /// Returns the queues in which the wake messages of this queue's suspended tasks wait, the shortest wait
    /// first. They are quorum queues: dead-lettering from a classic queue may lose a message.
    pub fn backstops(&self) -> impl Iterator<Item = Self> {
        BACKSTOPS.into_iter().map(|(after, suffix)| Self {
            kind: QueueType::Quorum,
            expiry: Some(Expiry { after, to: Box::new(self.resume()) }),
            ..Self::new(format!("{}{suffix}", self.name))
        })
    }

    /// Returns the queue in which the wake message of a task waits that is due after `wait`: the one with
    /// the shortest time that is not shorter, or else the longest one. `None` if the wait is shorter than
    /// that of every queue.
    #[must_use]
    pub fn backstop(&self, wait: Duration) -> Option<Self> {
        let (shortest, _) = BACKSTOPS[0];
        let is_long =
            |queue: &Self| queue.expiry.as_ref().is_some_and(|expiry| expiry.after >= wait);
        let chosen = self.backstops().find(is_long).or_else(|| self.backstops().last());
        chosen.filter(|_| wait >= shortest)
    }

    /// Returns the queue for tasks of this queue that were running during worker crashes: a separate
    /// process runs them.
    #[must_use]
    pub fn quarantine(&self) -> Self {
        self.companion(format!("{}.countersign-quarantine", self.name))
    }

    /// Returns the dead-letter queue, for messages that no worker can run.
    #[must_use]
    pub fn dead(&self) -> Self {
        self.companion(format!("{}.dead", self.name))
    }

    /// Returns the queue for delayed messages that are due after this queue was deleted: the
    /// dead-letter queue of the queue that users know.
    #[must_use]
    pub fn undelivered(&self) -> Self {
        let known = self.name.strip_suffix(RESUME_SUFFIX).unwrap_or(&self.name);
        self.companion(format!("{known}.dead"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_message_waits_in_the_queue_of_the_next_longer_time() {
        let queue = Queue::new("q");
        let suffix = |seconds| {
            let backstop = queue.backstop(Duration::from_secs(seconds))?;
            Some(backstop.name.strip_prefix("q.countersign-wake-").unwrap_or_default().to_owned())
        };
        let expected = [
            (59, None),
            (60, Some("1m")),
            (61, Some("10m")),
            (601, Some("1h")),
            (7200, Some("1h")),
        ];
        for (seconds, wanted) in expected {
            assert_eq!(suffix(seconds).as_deref(), wanted, "{seconds} s");
        }
    }
}
