//! Child processes of tests, for processes that are killed, stopped or abort: each runs one role of the
//! binary `role`.

pub mod charge;
pub mod clock;
pub mod hold;
pub mod lock;
pub mod note;
pub mod pay;
pub mod produce;
pub mod work;

use std::ffi::OsStr;
use std::process::Stdio;

use countersign::{Client, Config};
use tokio::process::Command;

use crate::{binary, servers};

/// Returns the command of a process with this role. Its output is discarded unless the caller pipes it; it
/// is killed when the child is dropped.
#[must_use]
pub fn command(role: &str, arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(binary("role"));
    command.arg(role).args(arguments).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs the role that the arguments of this process name.
pub async fn play() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["charge", queue] => charge::run(queue).await,
        ["pay", queue, store] => pay::run(queue, store).await,
        ["approve", approval, store] => pay::approve(approval, store).await,
        ["clock", queue] => clock::run(queue).await,
        ["abort", queue] => work::run_aborting(queue).await,
        ["block", queue] => work::run_blocking(queue).await,
        ["note", file] => note::run(file.as_ref()).await,
        ["produce", file] => produce::run(file.as_ref()).await,
        ["lock", file] => lock::run(file),
        ["hold", broker, store, queue] => hold::run(broker, store, queue).await,
        other => panic!("there is no role {other:?}"),
    }
}

/// Connects to the servers that all tests share.
async fn client() -> Client {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    Client::connect(&config).await.unwrap()
}
