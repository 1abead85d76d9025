//! A queue: its name, how it is declared, and the queues that belong to it.

use crate::config::{Config, QueueSettings, QueueType};

/// A queue as it is declared and consumed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Its name, and the routing key that leads to it.
    pub name: String,
    /// How it keeps its messages, if it does not exist yet.
    pub kind: QueueType,
    /// The highest priority that it tells apart, if it does not exist yet.
    pub max_priority: Option<u8>,
    /// After how many deliveries the broker drops a message, if the queue does not exist yet.
    pub delivery_limit: Option<u32>,
    /// The topic exchange that Celery clients publish its tasks to, where it is not the default one.
    pub exchange: Option<String>,
    /// The routing key that they use, where it is not the queue's name.
    pub routing_key: Option<String>,
}

/// Behind the name of a queue whose suspended tasks it carries.
const RESUME_SUFFIX: &str = ".countersign-resume";
/// The longest name of a queue that a worker can serve, in bytes: a routing key has 255, of which delayed
/// delivery takes 56 and the suffix of the queue for resume messages 19.
const LONGEST_NAME: usize = 180;

impl Queue {
    /// A classic queue with an empty argument table, as Celery clients declare it.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: QueueType::Classic,
            max_priority: None,
            delivery_limit: None,
            exchange: None,
            routing_key: None,
        }
    }

    /// The queue of this name, as `config` says that it is to be.
    pub fn configured(name: impl Into<String>, config: &Config) -> Self {
        let name = name.into();
        match config.queues.get(&name) {
            Some(settings) => {
                let QueueSettings { kind, max_priority, delivery_limit, exchange, routing_key } =
                    settings.clone();
                Self { name, kind, max_priority, delivery_limit, exchange, routing_key }
            }
            None => Self::new(name),
        }
    }

    /// A queue of this one's kind, for what belongs to it.
    fn companion(&self, name: String) -> Self {
        Self { kind: self.kind, ..Self::new(name) }
    }

    /// Whether a worker can serve a queue of this name with all of its features.
    ///
    /// # Errors
    /// A line for people, with the limit.
    pub fn check_name(&self) -> Result<(), String> {
        let (name, size) = (&self.name, self.name.len());
        if name.is_empty() {
            return Err("a queue needs a name".to_owned());
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

    /// From how many deliveries on a message is replaced by a fresh copy: half of the limit, or of the 20
    /// that RabbitMQ 4 has by default.
    #[must_use]
    pub fn worn_at(&self) -> u64 {
        self.delivery_limit.map_or(10, |limit| u64::from(limit / 2).max(1))
    }

    /// Where messages of this queue's parked tasks come. Celery's workers know nothing of it.
    #[must_use]
    pub fn resume(&self) -> Self {
        self.companion(format!("{}{RESUME_SUFFIX}", self.name))
    }

    /// Where tasks of this queue wait that were running during crashes of workers: a process of their
    /// own runs them.
    #[must_use]
    pub fn quarantine(&self) -> Self {
        self.companion(format!("{}.countersign-quarantine", self.name))
    }

    /// Where messages of this queue go that no worker can run.
    #[must_use]
    pub fn dead(&self) -> Self {
        self.companion(format!("{}.dead", self.name))
    }

    /// Where delayed messages of this queue go that are due after it was deleted: the dead letters of
    /// the queue that people know.
    #[must_use]
    pub fn undelivered(&self) -> Self {
        let known = self.name.strip_suffix(RESUME_SUFFIX).unwrap_or(&self.name);
        self.companion(format!("{known}.dead"))
    }
}
