use std::env;
use std::path::PathBuf;
use std::process::Stdio;

use crate::{TIMEOUT, skip};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use url::Url;

/// The RabbitMQ and Redis that all tests of a run share. No test may stop them; see [`Server`].
#[derive(Clone, Debug)]
pub struct Servers {
    pub broker_url: String,
    pub store_url: String,
    /// Uses the name `localhost`, the only one in the certificate.
    pub broker_tls_url: String,
    /// Uses the name `localhost`, the only one in the certificate.
    pub store_tls_url: String,
    /// The CA that signed the servers' certificate.
    pub ca_file: PathBuf,
    /// A CA that signed no certificate.
    pub other_ca_file: PathBuf,
}

/// Returns the servers that `ops/test` and `ops/servers run` have started. Outside of such a run, ends this
/// process as [`skip`] ends a test: all further tests of it are skipped.
///
/// # Panics
/// Panics in CI if there are no servers.
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

/// Returns a variable that `ops/test` and `ops/servers run` set, or skips the tests of this process.
pub(crate) fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        skip(&format!("{name} is not set: run ops/test, or ops/servers run -- cargo test"));
        eprintln!("SKIPPED: all further tests of this program");
        std::process::exit(0)
    })
}

/// A server for a single test, to be stopped, killed and started again on the same port with the same
/// data. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    kind: &'static str,
    folder: PathBuf,
    url: Url,
    tls_url: Url,
    process: Option<Child>,
}

impl Server {
    /// Starts a RabbitMQ; it is ready when this returns.
    pub async fn rabbit() -> Self {
        Self::first("rabbit").await
    }

    /// Starts a RabbitMQ with its management API; the second value is the URL of the API.
    pub async fn rabbit_with_management() -> (Self, String) {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = probe.local_addr().expect("a bound listener").port();
        drop(probe);
        let server = Self::first_with("rabbit", &["--management-port", &port.to_string()]).await;
        (server, format!("http://127.0.0.1:{port}"))
    }

    /// Starts a Redis with its append-only file; it is ready when this returns.
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

    /// Returns its URL, with its password.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Returns its TCP address, as the upstream of a [`crate::Proxy`].
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", port(&self.url))
    }

    /// Returns its URL with the address of a proxy instead of its own.
    #[must_use]
    pub fn url_through(&self, proxy: &crate::Proxy) -> String {
        let mut url = self.url.clone();
        url.set_port(Some(proxy.address().port())).expect("a URL with a host");
        url.into()
    }

    /// Stops it gracefully, and waits for its end.
    pub async fn stop(&mut self) {
        self.end("TERM").await;
    }

    /// Kills it as `kill -9` does, and waits for its end.
    pub async fn kill(&mut self) {
        self.end("QUIT").await;
    }

    /// Starts it again on the same port with the same data; it is ready when this returns.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "{} is running", self.kind);
        let ports = [port(&self.url), port(&self.tls_url)];
        let (process, ..) = launch(self.kind, &self.folder, Some(ports), &[]).await;
        self.process = Some(process);
    }

    /// Runs `rabbitmqctl` for this server.
    pub async fn control(&self, arguments: &[&str]) {
        let mut command = Command::new(script());
        command.arg("control").arg("--dir").arg(&self.folder).arg("--").args(arguments);
        let output = timeout(TIMEOUT, command.output()).await.expect("an answer in time");
        let output = output.expect("ops/servers is there and Python 3 is installed");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {stderr}");
    }

    async fn end(&mut self, signal: &str) {
        let mut process = self.process.take().expect("a server that is running");
        crate::worker::send(signal, &process);
        timeout(TIMEOUT, process.wait())
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
    // The script's standard input stays open: if this process dies, the script stops the server.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().expect("ops/servers is there and Python 3 is installed");
    let mut line = String::new();
    let mut output = BufReader::new(process.stdout.take().expect("a piped stdout"));
    timeout(TIMEOUT, output.read_line(&mut line))
        .await
        .expect("the server is ready in time")
        .expect("readable output");
    let mut urls = line.strip_prefix("ready ").expect("a server that starts").split_whitespace();
    let mut next = || Url::parse(urls.next().expect("two URLs")).expect("a URL");
    (process, next(), next())
}
