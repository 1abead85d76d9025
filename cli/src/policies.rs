//! The checks of `countersign doctor` on the broker's policies and on blocked delays.

use countersign::backend::Queue;

use crate::doctor::{Finding, Level};
use crate::management::{Management, QueueInfo};

/// The keys of policies and queue arguments that make messages disappear.
const LOSSES: [(&str, &str); 4] = [
    ("message-ttl", "lets its messages expire"),
    ("max-length", "drops its oldest messages when it is full"),
    ("max-length-bytes", "drops its oldest messages when it is full"),
    ("expires", "deletes it with its messages when nothing uses it"),
];

/// Those of queues of wake messages, whose messages move to another queue when they expire.
const BACKSTOP_LOSSES: &[(&str, &str)] = LOSSES.split_at(1).1;

/// Checks the queues of these tasks, and the queues of delayed delivery.
pub(crate) async fn check(management: &Management, queues: &[Queue], findings: &mut Vec<Finding>) {
    let levels = match management.levels().await {
        Ok(levels) => levels,
        Err(why) => return findings.push(unchecked(&why)),
    };
    for level in levels.iter().filter(|level| level.messages_dlx > 0) {
        findings.push(Finding::new(
            Level::Error,
            format!(
                "{} delayed messages in {} cannot be forwarded",
                level.messages_dlx, level.name
            ),
            "no queue accepts them, and 32 of them block all delays of that length",
            "start a worker of this version on their queue: it binds the queue; or declare and bind the \
             queue yourself",
        ));
    }
    for queue in queues {
        for name in
            [&queue.name, &queue.resume().name, &queue.dead().name, &queue.quarantine().name]
        {
            match management.queue(name).await {
                Ok(Some(info)) => findings.extend(loss(&info, &LOSSES)),
                Ok(None) => {}
                Err(why) => return findings.push(unchecked(&why)),
            }
        }
        for backstop in queue.backstops() {
            match management.queue(&backstop.name).await {
                Ok(Some(info)) => findings.extend(loss(&info, BACKSTOP_LOSSES)),
                Ok(None) => {}
                Err(why) => return findings.push(unchecked(&why)),
            }
        }
    }
    findings.push(Finding::ok("the broker's policies were checked"));
}

/// Returns the setting that makes messages of a queue disappear silently, if there is one.
fn loss(info: &QueueInfo, losses: &[(&str, &str)]) -> Option<Finding> {
    let of_policy = &info.effective_policy_definition;
    let argument = |key: &str| info.arguments.get(&format!("x-{key}"));
    let rejects = |value: Option<&serde_json::Value>| {
        value.and_then(serde_json::Value::as_str).is_some_and(|text| text.starts_with("reject"))
    };
    let is_refused = rejects(of_policy.get("overflow")) || rejects(argument("overflow"));
    let found = losses.iter().copied().find(|(key, _)| {
        let is_set = of_policy.contains_key(*key) || argument(key).is_some();
        is_set && !(is_refused && key.starts_with("max-length"))
    });
    let (key, what) = found?;
    let name = &info.name;
    let source = match (&info.policy, of_policy.contains_key(key)) {
        (Some(policy), true) => format!("policy `{policy}`"),
        (None, true) => "an operator policy".to_owned(),
        (_, false) => format!("its argument x-{key}"),
    };
    let remedy = match &info.policy {
        Some(policy) if of_policy.contains_key(key) => {
            format!("rabbitmqctl clear_policy {policy}    # or exclude {name} from its pattern")
        }
        _ => format!(
            "rabbitmqctl delete_queue {name} --if-empty    # then start a worker, which declares it"
        ),
    };
    Some(Finding::new(
        Level::Error,
        format!("queue {name}: {source} {what} ({key})"),
        "tasks disappear without a result, so clients wait for it in vain",
        remedy,
    ))
}

fn unchecked(why: &str) -> Finding {
    Finding::new(
        Level::Ok,
        format!("policies and blocked delays could not be checked: {why}"),
        "a policy with message-ttl or max-length silently drops tasks",
        "rabbitmq-plugins enable rabbitmq_management, or set broker.management_url",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(policy: &serde_json::Value, arguments: &serde_json::Value) -> QueueInfo {
        let described = json!({
            "name": "billing", "policy": "short", "arguments": arguments,
            "effective_policy_definition": policy,
        });
        serde_json::from_value(described).unwrap()
    }

    #[test]
    fn a_setting_that_silently_drops_messages_is_an_error() {
        for policy in
            [json!({"message-ttl": 3000}), json!({"max-length": 10}), json!({"expires": 5})]
        {
            let finding = loss(&info(&policy, &json!({})), &LOSSES).unwrap();
            assert_eq!(finding.level, Level::Error, "{policy}");
            assert!(finding.what.contains("policy `short`"), "{}", finding.what);
        }
        assert!(loss(&info(&json!({}), &json!({"x-max-length": 10})), &LOSSES).is_some());
        assert!(
            loss(
                &info(&json!({"max-length": 10, "overflow": "reject-publish"}), &json!({})),
                &LOSSES
            )
            .is_none()
        );
        assert!(loss(&info(&json!({"ha-mode": "all"}), &json!({})), &LOSSES).is_none());
    }
}
