//! The hosts of a Redis URL list. Passwords never appear in log lines.

use std::sync::Once;
use std::time::Duration;

use rand::seq::IndexedRandom;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError, TlsCertificates,
};

use crate::address;
use crate::address::redis::{Certificates, Endpoint, RedisAddress};
use crate::error::{Error, Kind};

/// One host and its client.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) client: Client,
    /// The URL without user, password and query, for logs and errors.
    pub(super) shown: String,
}

/// All hosts of a URL list. Each connection attempt uses one of them.
#[derive(Clone, Debug)]
pub(super) struct Addresses(Vec<Address>);

impl Addresses {
    /// Parses URLs separated by `;`. Returns all faults in one error.
    pub(super) fn parse(urls: &str, ca_pem: Option<&[u8]>) -> Result<Self, Error> {
        install_crypto();
        let mut faults = Vec::new();
        let mut addresses = Vec::new();
        for (index, url) in address::each(urls).into_iter().enumerate() {
            match Address::parse(url, ca_pem) {
                Ok(address) => addresses.push(address),
                Err(error) => faults.push(format!("Redis URL no. {}: {error}", index + 1)),
            }
        }
        if faults.is_empty() { Ok(Self(addresses)) } else { Err(Kind::Config(faults).into()) }
    }

    /// Returns a random host.
    pub(super) fn pick(&self) -> Option<&Address> {
        self.0.choose(&mut rand::rng())
    }

    /// Returns all hosts, for logs and errors.
    pub(super) fn shown(&self) -> String {
        let shown: Vec<&str> = self.0.iter().map(|address| address.shown.as_str()).collect();
        shown.join(";")
    }
}

impl Address {
    fn parse(url: &str, ca_pem: Option<&[u8]>) -> Result<Self, String> {
        let RedisAddress { endpoint, database, user, password } = address::redis::parse(url)?;
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        login = login.set_db(database.into());
        if let Some(user) = user {
            login = login.set_username(user);
        }
        if let Some(password) = password {
            login = login.set_password(password);
        }
        let (address, certificates) = match endpoint {
            Endpoint::Tcp { host, port } => (ConnectionAddr::Tcp(host, port), None),
            Endpoint::Unix(path) => (ConnectionAddr::Unix(path), None),
            Endpoint::Tls { host, port, tls } => {
                let insecure = tls.is_insecure;
                let address = ConnectionAddr::TcpTls { host, port, insecure, tls_params: None };
                (address, Some(tls.certificates()?))
            }
        };
        let shown = format!("{}://{address}", address::scheme(url));
        let info = address.into_connection_info().map_err(|error| error.to_string())?;
        let info = info.set_tcp_settings(tcp_settings()).set_redis_settings(login);
        let client = client(info, certificates, ca_pem).map_err(|error| error.to_string())?;
        Ok(Self { client, shown })
    }
}

/// Builds a client. It trusts `ca_pem` unless the URL names other certificate authorities.
fn client(
    info: ConnectionInfo,
    certificates: Option<Certificates>,
    ca_pem: Option<&[u8]>,
) -> Result<Client, RedisError> {
    let Some(Certificates { authorities, client }) = certificates else {
        return Client::open(info);
    };
    let client_tls =
        client.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    let root_cert = authorities.or_else(|| ca_pem.map(<[u8]>::to_vec));
    Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
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

/// Installs ring as the process's default crypto provider, unless the program has installed one.
fn install_crypto() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // An error means that a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
