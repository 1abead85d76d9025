use std::env;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use url::Url;

const PATIENCE: Duration = Duration::from_secs(120);

/// The RabbitMQ and Redis that all tests of a run share. Never to be stopped; see [`Server`].
#[derive(Clone, Debug)]
pub struct Servers {
    pub broker_url: String,
    pub store_url: String,
    /// By the name `localhost`, the only one that the certificate has.
    pub broker_tls_url: String,
    /// By the name `localhost`, the only one that the certificate has.
    pub store_tls_url: String,
    /// The CA that signed the servers' certificate.
    pub ca_file: PathBuf,
    /// A CA that signed nothing.
    pub other_ca_file: PathBuf,
}

/// The servers that `ops/test` and `ops/servers run` have started.
///
/// # Panics
/// Outside of such a run.
#[must_use]
pub fn servers() -> Servers {
    let certificates = PathBuf::from(variable("COUNTERSIGN_TEST_CERTIFICATES"));
    Servers {
        broker_url: variable("COUNTERSIGN_BROKER_URL"),
        store_url: variable("COUNTERSIGN_STORE_URL"),
        broker_tls_url: variable("COUNTERSIGN_TEST_BROKER_TLS_URL"),
        store_tls_url: variable("COUNTERSIGN_TEST_STORE_TLS_URL"),
        ca_file: certificates.join("ca.pem"),
        other_ca_file: certificates.join("other-ca.pem"),
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run ops/test, or ops/servers run -- cargo test")
    })
}

/// A server of one test's own, to be stopped, killed and started again: same port, same data.
/// Killed when dropped.
#[derive(Debug)]
pub struct Server {
    kind: &'static str,
    folder: PathBuf,
    url: Url,
    tls_url: Url,
    process: Option<Child>,
}

impl Server {
    /// A RabbitMQ, ready.
    pub async fn rabbit() -> Self {
        Self::first("rabbit").await
    }

    /// A RabbitMQ with its management API, and the URL of that.
    pub async fn rabbit_with_management() -> (Self, String) {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = probe.local_addr().expect("a bound listener").port();
        drop(probe);
        let server = Self::first_with("rabbit", &["--management-port", &port.to_string()]).await;
        (server, format!("http://127.0.0.1:{port}"))
    }

    /// A Redis with its append-only file on, ready.
    pub async fn redis() -> Self {
        Self::first("redis").await
    }

    async fn first(kind: &'static str) -> Self {
        Self::first_with(kind, &[]).await
    }

    async fn first_with(kind: &'static str, options: &[&str]) -> Self {
        let name = format!("{kind}-{}", uuid::Uuid::new_v4().simple());
        let folder = PathBuf::from(variable("COUNTERSIGN_TEST_FOLDER")).join(name);
        let (process, url, tls_url) = launch(kind, &folder, None, options).await;
        Self { kind, folder, url, tls_url, process: Some(process) }
    }

    /// Where it answers, with its password.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Its TCP address, to put a [`crate::Proxy`] before it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", port(&self.url))
    }

    /// Its URL with the address of a proxy instead of its own.
    #[must_use]
    pub fn url_by(&self, proxy: &crate::Proxy) -> String {
        let mut url = self.url.clone();
        url.set_port(Some(proxy.address().port())).expect("a URL with a host");
        url.into()
    }

    /// Stops it in order, and waits for its end.
    pub async fn stop(&mut self) {
        self.end("TERM").await;
    }

    /// Kills it as `kill -9` does, and waits for its end.
    pub async fn kill(&mut self) {
        self.end("QUIT").await;
    }

    /// Starts it again where it was, with what it had; ready when this returns.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "{} is running", self.kind);
        let ports = [port(&self.url), port(&self.tls_url)];
        let (process, ..) = launch(self.kind, &self.folder, Some(ports), &[]).await;
        self.process = Some(process);
    }

    /// Runs `rabbitmqctl` for it.
    pub async fn control(&self, arguments: &[&str]) {
        let mut command = Command::new(script());
        command.arg("control").arg("--dir").arg(&self.folder).arg("--").args(arguments);
        let output = timeout(PATIENCE, command.output()).await.expect("an answer in time");
        let output = output.expect("ops/servers is there and Python 3 is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {said}");
    }

    async fn end(&mut self, signal: &str) {
        let mut process = self.process.take().expect("a server that is running");
        crate::worker::send(signal, &process);
        timeout(PATIENCE, process.wait())
            .await
            .expect("the server ends in time")
            .expect("a child to wait for");
    }
}

fn port(url: &Url) -> u16 {
    url.port().expect("a URL with a port")
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../ops/servers")
}

async fn launch(
    kind: &str,
    folder: &PathBuf,
    ports: Option<[u16; 2]>,
    options: &[&str],
) -> (Child, Url, Url) {
    let mut command = Command::new(script());
    command.arg(kind).arg("--dir").arg(folder).args(options);
    if let Some([plain, tls]) = ports {
        command.args(["--port", &plain.to_string(), "--tls-port", &tls.to_string()]);
    }
    // Its standard input is held open: should this process die, the server goes with it.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().expect("ops/servers is there and Python 3 is installed");
    let mut said = String::new();
    let mut output = BufReader::new(process.stdout.take().expect("a piped stdout"));
    timeout(PATIENCE, output.read_line(&mut said))
        .await
        .expect("the server is ready in time")
        .expect("readable output");
    let mut urls = said.strip_prefix("ready ").expect("a server that starts").split_whitespace();
    let mut next = || Url::parse(urls.next().expect("two URLs")).expect("a URL");
    (process, next(), next())
}
