//! What the integration tests need: servers to break, workers to kill, a proxy to cut.
//!
//! Everything here panics when it cannot do its work, for that is how a test fails.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

pub mod amqp;
mod cluster;
mod effects;
mod producer;
mod proxy;
mod question;
mod rewriter;
mod running;
mod servers;
mod worker;

pub use cluster::Cluster;
pub use effects::Effects;
pub use producer::{IN_FLIGHT, produce_marks};
pub use proxy::Proxy;
pub use question::{approve, parked, shown};
pub use rewriter::Rewriter;
pub use running::Running;
pub use servers::{Server, Servers, servers};
pub use worker::{DemoWorker, binary};

/// A queue name that no other test has.
#[must_use]
pub fn queue_name() -> String {
    format!("test-{}", uuid::Uuid::new_v4().simple())
}

/// A new empty folder. It goes with the servers.
#[must_use]
pub fn scratch() -> std::path::PathBuf {
    let folder = std::env::var("COUNTERSIGN_TEST_FOLDER").expect("ops/test sets it");
    let folder = std::path::PathBuf::from(folder).join(uuid::Uuid::new_v4().simple().to_string());
    std::fs::create_dir_all(&folder).expect("a writable test folder");
    folder
}

/// The path of a new file with this text, which only its user can read. It goes with the servers.
#[must_use]
pub fn file(name: &str, text: &str) -> String {
    let folder = std::env::var("COUNTERSIGN_TEST_FOLDER").expect("ops/test sets it");
    let path = format!("{folder}/{}-{name}", uuid::Uuid::new_v4().simple());
    std::fs::write(&path, text).expect("a writable test folder");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, private).expect("our own file");
    path
}
