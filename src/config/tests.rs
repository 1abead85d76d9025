use std::collections::BTreeMap;
use std::time::Duration;

use super::sources::Sources;
use super::{Config, QueueType};

/// Checks what a settings file of this text says, in this environment; the error is its text.
fn checked(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let file = std::env::temp_dir().join(format!("countersign-{}.toml", uuid::Uuid::new_v4()));
    std::fs::write(&file, text).unwrap();
    let env = env.iter().copied().chain([("COUNTERSIGN_CONFIG", file.to_str().unwrap())]);
    let env: BTreeMap<_, _> = env.map(|(name, value)| (name.into(), value.into())).collect();
    let checked = Config::check(Sources::gather(&[], &env));
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
fn every_fault_is_told_at_once_with_its_place() {
    let text = "[broker]\nheartbeet = \"5s\"\nconsumer_timeout = \"soon\"\n\n[limits]\nresult = 7.5\n\
                [queues.a]\ntype = \"quorum\"\nmax_priority = 300\nmax_prio = 3\n";
    let told = checked(text, &[("COUNTERSIGN_STORE_ULR", "x")]).unwrap_err();
    for part in [
        ":2: no setting is called broker.heartbeet; did you mean broker.heartbeat?",
        ":3): \"soon\" is no duration",
        ":6: limits.result is float",
        ":9: queues.a.max_priority is 300",
        ":10: no setting of a queue is called max_prio; did you mean max_priority?",
        "COUNTERSIGN_STORE_ULR: no setting has this environment variable; did you mean COUNTERSIGN_STORE_URL?",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
}

#[test]
fn a_file_that_is_no_toml_is_told_with_all_its_lines() {
    let told = checked("a = \n[broker]\nurl = 1 2\n", &[]).unwrap_err();
    assert!(told.contains(":1: ") && told.contains(":3: "), "{told}");
}

#[test]
fn the_environment_comes_before_the_file_and_other_tools_after_it() {
    let text =
        "[store]\nurl = \"redis://file\"\n[worker]\nqueues = [\"a\", \"b\"]\nconcurrency = 3\n";
    let env = [("REDIS_URL", "redis://other"), ("COUNTERSIGN_WORKER_CONCURRENCY", "5")];
    let config = checked(text, &env).unwrap();
    assert_eq!(config.store_url.reveal(), "redis://file");
    assert_eq!(config.worker.queues, ["a", "b"]);
    assert_eq!(config.worker.concurrency, 5);
}

#[test]
fn what_kubernetes_says_about_its_services_is_no_misspelling() {
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
