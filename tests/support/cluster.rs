use std::env;
use std::time::Duration;

use crate::TIMEOUT;
use tokio::process::Command;
use tokio::time::{interval, timeout};

const NODES: usize = 3;
const USER: &str = "countersign";
const PASSWORD: &str = "not-to-be-printed";
const CONF: &str = "\
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = rabbit@rabbit0
cluster_formation.classic_config.nodes.2 = rabbit@rabbit1
cluster_formation.classic_config.nodes.3 = rabbit@rabbit2
";

/// Three RabbitMQ nodes in containers. Clients reach them through published ports; the nodes communicate
/// over a network of their own, from which a node can be disconnected. `ops/servers` removes them.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    ports: [u16; NODES],
}

impl Cluster {
    /// Returns whether a container engine answers.
    pub async fn is_possible() -> bool {
        Command::new("docker")
            .arg("info")
            .output()
            .await
            .is_ok_and(|output| output.status.success())
    }

    /// Starts a cluster of three nodes; all are up when this returns.
    pub async fn start() -> Self {
        let name = format!("countersign-{}", uuid::Uuid::new_v4().simple());
        let cluster = Self { name, ports: [(); NODES].map(|()| free_port()) };
        let label = cluster.label();
        docker(&["network", "create", "--label", &label, &cluster.inner()]).await;
        for node in 0..NODES {
            cluster.create(node, &label).await;
        }
        for node in 0..NODES {
            docker(&["start", &cluster.node(node)]).await;
        }
        cluster.await_all().await;
        docker(&["exec", &cluster.node(0), "rabbitmqctl", "-q", "await_online_nodes", "3"]).await;
        cluster
    }

    /// Returns the URLs of all nodes as one setting.
    #[must_use]
    pub fn url(&self) -> String {
        let url = |port| format!("amqp://{USER}:{PASSWORD}@127.0.0.1:{port}/%2f");
        self.ports.map(url).join(";")
    }

    /// Kills a node as `kill -9` does.
    pub async fn kill(&self, node: usize) {
        docker(&["kill", &self.node(node)]).await;
    }

    /// Starts a stopped node, and waits until it accepts clients again.
    pub async fn revive(&self, node: usize) {
        docker(&["start", &self.node(node)]).await;
        self.await_ready(node).await;
    }

    /// Disconnects a node from the network of the cluster. Its clients still reach it.
    pub async fn cut_off(&self, node: usize) {
        docker(&["network", "disconnect", &self.inner(), &self.node(node)]).await;
    }

    /// Reconnects a node to the network of the cluster.
    pub async fn rejoin(&self, node: usize) {
        self.connect(node).await;
    }

    /// Stops a node gracefully, starts it again, and waits until it accepts clients.
    pub async fn restart(&self, node: usize) {
        docker(&["exec", &self.node(node), "rabbitmqctl", "-q", "stop_app"]).await;
        docker(&["exec", &self.node(node), "rabbitmqctl", "-q", "start_app"]).await;
        self.await_ready(node).await;
    }

    async fn create(&self, node: usize, label: &str) {
        let conf = format!("{CONF}default_user = {USER}\ndefault_pass = {PASSWORD}\n");
        let conf = crate::file("cluster.conf", &conf);
        // The server in the container runs as another user.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&conf, readable).expect("our own file");
        let mount = format!("{conf}:/etc/rabbitmq/conf.d/20-cluster.conf:ro");
        let hostname = format!("rabbit{node}");
        docker(&[
            "create",
            "--name",
            &self.node(node),
            "--hostname",
            &hostname,
            "--label",
            label,
            "--publish",
            &format!("127.0.0.1:{}:5672", self.ports[node]),
            "--volume",
            &mount,
            "--env",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-setcookie countersign",
            "--env",
            "RABBITMQ_CTL_ERL_ARGS=-setcookie countersign",
            "rabbitmq:4-management",
        ])
        .await;
        self.connect(node).await;
    }

    async fn connect(&self, node: usize) {
        let alias = format!("rabbit{node}");
        docker(&["network", "connect", "--alias", &alias, &self.inner(), &self.node(node)]).await;
    }

    async fn await_all(&self) {
        for node in 0..NODES {
            self.await_ready(node).await;
        }
    }

    async fn await_ready(&self, node: usize) {
        let container = self.node(node);
        let check = ["exec", &container, "rabbitmq-diagnostics", "-q", "check_port_connectivity"];
        let ready = async {
            let mut ticks = interval(Duration::from_secs(1));
            loop {
                ticks.tick().await;
                let checked = Command::new("docker").args(check).output().await;
                if checked.expect("docker").status.success() {
                    return;
                }
            }
        };
        if timeout(TIMEOUT, ready).await.is_err() {
            let logs = docker(&["logs", "--tail", "40", &container]).await;
            panic!("node {node} is not ready within {TIMEOUT:?}; its log ends with\n{logs}");
        }
    }

    fn node(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    fn inner(&self) -> String {
        format!("{}-inner", self.name)
    }

    fn label(&self) -> String {
        let run = env::var("COUNTERSIGN_TEST_LABEL").expect("ops/test sets it");
        format!("countersign-ops={run}")
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound listener").port()
}

async fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().await.expect("docker");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {}: {stderr}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
