//! Where Redis is: the hosts of a URL list, with their secrets kept out of every log line.

use std::sync::Once;
use std::time::Duration;

use rand::seq::IndexedRandom;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError, TlsCertificates,
};

use crate::error::{Error, Kind};

/// One host, ready to be connected to.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) client: Client,
    /// The URL without user, password and query: for people.
    pub(super) shown: String,
}

/// All hosts of a URL list; any of them may be asked.
#[derive(Clone, Debug)]
pub(super) struct Addresses(Vec<Address>);

impl Addresses {
    /// Reads URLs separated by `;`. All faults are reported at once.
    pub(super) fn parse(urls: &str, ca_pem: Option<&[u8]>) -> Result<Self, Error> {
        install_crypto();
        let mut faults = Vec::new();
        let mut addresses = Vec::new();
        for (index, url) in urls.split(';').map(str::trim).enumerate() {
            match Address::parse(url, ca_pem) {
                Ok(address) => addresses.push(address),
                Err(error) => faults.push(format!("Redis URL no. {}: {error}", index + 1)),
            }
        }
        if faults.is_empty() { Ok(Self(addresses)) } else { Err(Kind::Config(faults).into()) }
    }

    /// One of the hosts, at random.
    pub(super) fn pick(&self) -> Option<&Address> {
        self.0.choose(&mut rand::rng())
    }

    /// All hosts: for people.
    pub(super) fn shown(&self) -> String {
        let shown: Vec<&str> = self.0.iter().map(|address| address.shown.as_str()).collect();
        shown.join(";")
    }
}

impl Address {
    fn parse(url: &str, ca_pem: Option<&[u8]>) -> Result<Self, RedisError> {
        let info = kombu_socket(url).as_str().into_connection_info()?;
        let scheme = url.split(':').next().unwrap_or("redis");
        let shown = format!("{scheme}://{}", info.addr());
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_tcp_settings(tcp_settings()).set_redis_settings(redis);
        Ok(Self { client: client(info, scheme, ca_pem)?, shown })
    }
}

fn client(info: ConnectionInfo, scheme: &str, ca: Option<&[u8]>) -> Result<Client, RedisError> {
    match ca {
        Some(pem) if matches!(scheme, "rediss" | "valkeys") => {
            let root_cert = Some(pem.to_vec());
            Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
        }
        _ => Client::open(info),
    }
}

/// Kombu's spelling of a Unix socket in the terms of this client.
fn kombu_socket(url: &str) -> String {
    match url.strip_prefix("redis+socket://").or_else(|| url.strip_prefix("socket://")) {
        Some(rest) => format!("unix://{}", rest.replace("virtual_host=", "db=")),
        None => url.to_owned(),
    }
}

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(10));
    settings
}

/// Makes ring the process's provider of cryptography, unless the program has chosen one.
fn install_crypto() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // An error says that there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
