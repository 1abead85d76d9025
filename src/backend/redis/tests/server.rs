//! A Redis server for one test, on a free port; it ends with the test.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{FromRedisValue, RedisResult};
use tokio::time::{interval, timeout};

pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
    dir: PathBuf,
    arguments: Vec<String>,
}

impl Server {
    /// Starts a server. Prints a line and returns `None` where there is no `redis-server`.
    pub(super) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    pub(super) async fn start_with(arguments: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "redis-server is not installed");
            println!("skipped: redis-server is not installed");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = std::env::temp_dir().join(format!("countersign-redis-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).unwrap();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let child = spawn(port, &dir, &arguments);
        let server = Self { child, port, dir, arguments };
        server.ready().await;
        Some(server)
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again without data.
    pub(super) async fn start_again(&mut self) {
        self.child = spawn(self.port, &self.dir, &self.arguments);
        self.ready().await;
    }

    pub(super) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(super) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Runs one command on a new connection.
    pub(super) async fn command<T: FromRedisValue>(&self, command: &[&str]) -> T {
        self.try_command(command).await.unwrap()
    }

    async fn try_command<T: FromRedisValue>(&self, command: &[&str]) -> RedisResult<T> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await
    }

    async fn ready(&self) {
        eventually("the server answers", async || {
            self.try_command::<String>(&["PING"]).await.is_ok()
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(port: u16, dir: &PathBuf, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no", "--dir"])
        .arg(dir)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until the condition holds. Fails after 20 s.
pub(super) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let mut pace = interval(Duration::from_millis(10));
    let waiting = async {
        while !is_so().await {
            pace.tick().await;
        }
    };
    assert!(timeout(Duration::from_secs(20), waiting).await.is_ok(), "never: {what}");
}
