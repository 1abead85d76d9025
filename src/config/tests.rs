use std::collections::BTreeMap;
use std::time::Duration;

use super::sources::Sources;
use super::{Config, QueueType};
use crate::approval::{PolicyAction, Risk};

/// Checks a settings file with this text in this environment; the error is its text.
fn checked(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let file = std::env::temp_dir().join(format!("countersign-{}.toml", uuid::Uuid::new_v4()));
    std::fs::write(&file, text).unwrap();
    let env = env.iter().copied().chain([("COUNTERSIGN_CONFIG", file.to_str().unwrap())]);
    let env: BTreeMap<_, _> = env.map(|(name, value)| (name.into(), value.into())).collect();
    let checked = Config::check(Sources::collect(&[], &env));
    std::fs::remove_file(&file).unwrap();
    checked.map_err(|error| error.to_string())
}

#[test]
fn the_defaults_are_valid() {
    let config = Config::new("amqp://localhost", "redis://localhost").unwrap();
    assert_eq!(config.max_result, 8 << 20);
    assert_eq!(config.consumer_timeout, Duration::from_secs(1800));
    assert_eq!((config.worker.concurrency, config.worker.prefetch), (16, None));
}

#[test]
fn an_optional_duration_is_read_where_it_is_set() {
    let set = checked("", &[("COUNTERSIGN_DRAIN_KILL_AFTER", "45s")]).unwrap();
    assert_eq!(set.kill_after, Some(Duration::from_secs(45)));
    assert_eq!(checked("", &[]).unwrap().kill_after, None);
    let error = checked("", &[("COUNTERSIGN_DRAIN_KILL_AFTER", "soon")]).unwrap_err();
    assert!(
        error.contains("drain.kill_after (from COUNTERSIGN_DRAIN_KILL_AFTER): \"soon\""),
        "{error}"
    );
}

#[test]
fn every_fault_is_reported_with_its_location() {
    let text = "[broker]\nheartbeet = \"5s\"\nconsumer_timeout = \"soon\"\n\n[limits]\nresult = 7.5\n\
                [queues.a]\ntype = \"quorum\"\nmax_priority = 300\nmax_prio = 3\n";
    let error = checked(text, &[("COUNTERSIGN_STORE_ULR", "x")]).unwrap_err();
    for part in [
        ":2: no setting is called broker.heartbeet; did you mean broker.heartbeat?",
        ":3): \"soon\" is not a duration",
        ":6: limits.result is float",
        ":9: queues.a.max_priority is 300",
        ":10: no setting of a queue is called max_prio; did you mean max_priority?",
        "COUNTERSIGN_STORE_ULR: no setting has this environment variable; did you mean COUNTERSIGN_STORE_URL?",
    ] {
        assert!(error.contains(part), "{part} is not in:\n{error}");
    }
}

#[test]
fn every_syntax_error_of_a_file_is_reported() {
    let error = checked("a = \n[broker]\nurl = 1 2\n", &[]).unwrap_err();
    assert!(error.contains(":1: ") && error.contains(":3: "), "{error}");
}

#[test]
fn the_environment_overrides_the_file_and_the_file_overrides_other_tools() {
    let text =
        "[store]\nurl = \"redis://file\"\n[worker]\nqueues = [\"a\", \"b\"]\nconcurrency = 3\n";
    let env = [("REDIS_URL", "redis://other"), ("COUNTERSIGN_WORKER_CONCURRENCY", "5")];
    let config = checked(text, &env).unwrap();
    assert_eq!(config.store_url.reveal(), "redis://file");
    assert_eq!(config.worker.queues, ["a", "b"]);
    assert_eq!(config.worker.concurrency, 5);
}

#[test]
fn variables_of_kubernetes_services_are_ignored() {
    for name in ["COUNTERSIGN_BROKER_SERVICE_HOST", "COUNTERSIGN_BROKER_PORT_5672_TCP_ADDR"] {
        checked("", &[(name, "10.0.0.1")]).unwrap();
    }
    assert!(checked("", &[("COUNTERSIGN_BROKER_HOST", "10.0.0.1")]).is_err());
}

#[test]
fn a_queue_may_have_dots_in_its_name() {
    let text = "[queues.eu.billing]\nmax_priority = 9\n[queues.\"a.b\"]\ntype = \"quorum\"\n";
    let config = checked(text, &[]).unwrap();
    assert_eq!(config.queues["eu.billing"].max_priority, Some(9));
    assert_eq!(config.queues["a.b"].kind, QueueType::Quorum);
}

#[test]
fn policies_are_read_in_their_order() {
    let text = "[approvals]\nhold = \"0s\"\n\
                [[approvals.policy]]\nname = \"small\"\ntask = \"billing.*\"\naction = \"bank.pay\"\n\
                requester = \"rita\"\nmax_risk = \"high\"\nin_quorum = true\nthen = \"approve\"\n\
                max = { \"/cents\" = 5000, \"/a.b\" = 1.5 }\nmin = { \"/cents\" = -1 }\n\
                [[approvals.policy]]\nname = \"rest\"\nthen = \"reject\"\nreason = \"no\"\n";
    let policies = checked(text, &[]).unwrap().policies;
    assert_eq!((policies[0].name.as_str(), policies[0].then), ("small", PolicyAction::Approve));
    assert_eq!(policies[0].max_risk, Some(Risk::High));
    assert!(policies[0].in_quorum && !policies[1].in_quorum);
    assert_eq!(
        (policies[0].max["/cents"].as_i64(), policies[0].min["/cents"].as_i64()),
        (Some(5000), Some(-1))
    );
    assert_eq!(policies[0].max["/a.b"].as_f64(), Some(1.5));
    assert_eq!((policies[1].name.as_str(), policies[1].reason.as_deref()), ("rest", Some("no")));
}

#[test]
fn every_fault_of_a_policy_is_reported() {
    let text = "[[approvals.policy]]\nnmae = \"a\"\nthen = \"aprove\"\nmax_risk = \"none\"\n\
                max = { \"cents\" = 1, \"/a\" = \"x\", \"/b\" = nan }\nmin = 3\n\
                [[approvals.policy]]\nname = \"b\"\nthen = \"reject\"\n\
                [[approvals.policy]]\nname = \"b\"\nthen = \"approve\"\n\
                [[approval.policy]]\nname = \"c\"\n";
    let error = checked(text, &[]).unwrap_err();
    for part in [
        ":2: no key of a policy is called nmae; did you mean name?",
        ":1: a policy needs a name",
        ":3: then is \"aprove\": it is one of approve, reject, ask; did you mean approve?",
        ":4: max_risk is \"none\": it is one of low, medium, high, irreversible",
        ":5: \"cents\" is not a JSON pointer",
        ":5: \"x\" is not a number",
        ":5: \"nan\" is not a number",
        ":6: min is a table, such as { \"/cents\" = 5000 }",
        ":8: a policy that rejects needs a reason",
        ":10: there is another approvals.policy called \"b\"",
        ":11: a policy that approves needs a task or an action",
        ":13: no setting is called approval.policy; did you mean approvals.policy?",
    ] {
        assert!(error.contains(part), "{part} is not in:\n{error}");
    }
    let error = checked("[approvals.policy]\nname = \"a\"\n", &[]).unwrap_err();
    assert!(error.contains("write [[approvals.policy]] above each policy"), "{error}");
    let error = checked("[approvals]\nseal_key_file = \"/no/such\"\n", &[]).unwrap_err();
    assert!(error.contains(":2): cannot read /no/such"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_seal_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("countersign-key-{}", uuid::Uuid::new_v4()));
    std::fs::write(&path, "0123456789abcdef0123456789abcdef").unwrap();
    let settings = format!("[approvals]\nseal_key_file = {path:?}\n");
    let read = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        checked(&settings, &[])
    };
    for mode in [0o644, 0o640, 0o602] {
        let error = read(mode).unwrap_err();
        assert!(
            error.contains(&format!("(mode {mode:04o})")) && error.contains("chmod 600"),
            "{error}"
        );
    }
    assert!(read(0o600).is_ok());
    std::fs::remove_file(&path).unwrap();
}
