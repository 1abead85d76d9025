//! Queues that differ from Celery's declaration: `[queues.NAME]` in `countersign.toml`.

use std::collections::BTreeMap;

use super::settings::nearest;
use super::sources::SourcedValue;

const KEYS: [&str; 5] = ["type", "max_priority", "delivery_limit", "exchange", "routing_key"];

/// Where a queue stores its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueType {
    /// On one node.
    #[default]
    Classic,
    /// On a majority of the nodes of a cluster.
    Quorum,
}

/// How to declare a queue that does not exist yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueSettings {
    /// `type`: `"classic"` or `"quorum"`.
    pub kind: QueueType,
    /// `max_priority`: from 1 to 255; each level costs the broker memory, and 10 are plenty.
    pub max_priority: Option<u8>,
    /// `delivery_limit` of a quorum queue: after that many deliveries the broker drops a message. From
    /// half of the limit on, workers replace a message by a fresh copy; if it is not set here, from 10
    /// deliveries on.
    pub delivery_limit: Option<u32>,
    /// `exchange`: the topic exchange that Celery clients publish to; workers declare it and bind the
    /// queue to it. Requires `routing_key`.
    pub exchange: Option<String>,
    /// `routing_key`: the routing key of Celery clients, if it is not the queue's name. Their delayed
    /// tasks also use it.
    pub routing_key: Option<String>,
}

/// Reads the tables of all queues; adds their errors to `faults`.
pub(super) fn read(
    given: &BTreeMap<String, BTreeMap<String, SourcedValue>>,
    faults: &mut Vec<String>,
) -> BTreeMap<String, QueueSettings> {
    let mut read = |(name, keys): (&String, _)| (name.clone(), queue(name, keys, faults));
    given.iter().map(&mut read).collect()
}

fn queue(
    name: &str,
    keys: &BTreeMap<String, SourcedValue>,
    faults: &mut Vec<String>,
) -> QueueSettings {
    let mut settings = QueueSettings::default();
    for (key, SourcedValue { value, origin }) in keys {
        match (key.as_str(), value.as_str()) {
            ("type", "classic") => settings.kind = QueueType::Classic,
            ("type", "quorum") => settings.kind = QueueType::Quorum,
            ("type", other) => {
                faults.push(format!(
                    "{origin}: queues.{name}.type is {other:?}: it is \"classic\" or \"quorum\""
                ));
            }
            ("max_priority", number) => match number.parse() {
                Ok(levels @ 1..) => settings.max_priority = Some(levels),
                _ => faults.push(format!(
                    "{origin}: queues.{name}.max_priority is {number}: it is from 1 to 255"
                )),
            },
            ("delivery_limit", number) => match number.parse() {
                Ok(limit @ 2..) => settings.delivery_limit = Some(limit),
                _ => faults.push(format!(
                    "{origin}: queues.{name}.delivery_limit is {number}: it is 2 or more"
                )),
            },
            ("exchange", name) => settings.exchange = Some(name.to_owned()),
            ("routing_key", key) => settings.routing_key = Some(key.to_owned()),
            (other, _) => {
                let near = nearest(other, KEYS);
                faults.push(format!("{origin}: no setting of a queue is called {other}{near}"));
            }
        }
    }
    if settings.kind == QueueType::Classic && settings.delivery_limit.is_some() {
        faults.push(format!(
            "queues.{name}: a classic queue does not support delivery_limit: remove it, or set type = \"quorum\""
        ));
    }
    if settings.exchange.is_some() && settings.routing_key.is_none() {
        faults.push(format!("queues.{name}: exchange needs a routing_key"));
    }
    if settings.kind == QueueType::Quorum && settings.max_priority.is_some() {
        faults.push(format!(
            "queues.{name}: a quorum queue does not support max_priority: remove it, or set type = \"classic\""
        ));
    }
    settings
}
