//! Tools of the integration tests: servers to stop, workers to kill, proxies that cut connections, and the
//! child processes of tests.
//!
//! Everything here panics on an error, so that the test fails.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

pub mod amqp;
mod approval;
mod cluster;
mod effects;
mod producer;
mod proxy;
mod rewriter;
pub mod roles;
mod running;
mod servers;
mod skip;
mod worker;

pub use approval::{approve, wait_for_request, wait_until_suspended};
pub use cluster::Cluster;
pub use effects::Effects;
pub use producer::{IN_FLIGHT, produce_marks};
pub use proxy::Proxy;
pub use rewriter::Rewriter;
pub use running::Running;
pub use servers::{Server, Servers, servers};
pub use skip::skip;
pub use worker::{DemoWorker, binary};

/// How long a test waits for something before it fails: long enough for a busy machine, and for the first
/// suspension on a new broker, which creates 31 queues, each of them on disk.
pub const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(300);

/// Returns a queue name that no other test uses.
#[must_use]
pub fn queue_name() -> String {
    format!("test-{}", uuid::Uuid::new_v4().simple())
}

/// Creates an empty folder; returns its path. It is deleted with the servers.
#[must_use]
pub fn scratch() -> std::path::PathBuf {
    let folder = servers::variable("COUNTERSIGN_TEST_FOLDER");
    let folder = std::path::PathBuf::from(folder).join(uuid::Uuid::new_v4().simple().to_string());
    std::fs::create_dir_all(&folder).expect("a writable test folder");
    folder
}

/// Writes a new file with this text, which only its user can read; returns its path. It is deleted with the
/// servers.
#[must_use]
pub fn file(name: &str, text: &str) -> String {
    let folder = servers::variable("COUNTERSIGN_TEST_FOLDER");
    let path = format!("{folder}/{}-{name}", uuid::Uuid::new_v4().simple());
    std::fs::write(&path, text).expect("a writable test folder");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, private).expect("our own file");
    path
}
