//! How the backends are started.

use super::backends::Backends;
#[cfg(feature = "embedded")]
use super::embedded;
#[cfg(feature = "rabbitmq")]
use super::{PoolSettings, rabbitmq, redis};
use crate::config::Config;
use crate::error::{Error, Kind};

/// Starts the backends that the URLs of `config` name. No other function names concrete backends.
///
/// Opens a database before it returns. Connections to servers are made in the background, with retries
/// and without a time limit.
///
/// # Errors
/// A configuration error when a URL cannot be parsed or this build does not have the backend; a storage
/// error when a database cannot be opened.
pub fn connect(config: &Config) -> Result<Backends, Error> {
    if config.is_embedded() {
        return open_database(config);
    }
    connect_servers(config)
}

#[cfg(feature = "embedded")]
fn open_database(config: &Config) -> Result<Backends, Error> {
    embedded::open(config.broker_url.reveal(), config)
}

#[cfg(not(feature = "embedded"))]
fn open_database(_: &Config) -> Result<Backends, Error> {
    let fault = "this build has no embedded backend: build countersign with feature `embedded`";
    Err(Kind::Config(vec![fault.into()]).into())
}

#[cfg(feature = "rabbitmq")]
fn connect_servers(config: &Config) -> Result<Backends, Error> {
    let faults = |fault| Error::new(Kind::Config(vec![fault]));
    let name = format!("countersign {}", env!("CARGO_PKG_VERSION"));
    let rabbit = rabbitmq::RabbitSettings::new(
        config.broker_url.reveal(),
        config.tls_ca_pem.as_deref(),
        config.connect_timeout,
        config.heartbeat,
        &name,
    )
    .map_err(faults)?;
    let store = redis::RedisStore::connect(redis::RedisSettings {
        ca_pem: config.tls_ca_pem.clone().map(String::into_bytes),
        result_expires: config.result_expires,
        key_prefix: config.key_prefix.clone(),
        connect_timeout: config.connect_timeout,
        command_timeout: config.command_timeout,
        pool: PoolSettings::of(config),
        ..redis::RedisSettings::new(config.store_url.reveal())
    })?;
    Ok(Backends { broker: rabbitmq::Rabbit::start(rabbit), store, missing: &[] })
}

#[cfg(not(feature = "rabbitmq"))]
fn connect_servers(_: &Config) -> Result<Backends, Error> {
    let fault =
        "this build has no RabbitMQ and Redis backend: build countersign with feature `rabbitmq`";
    Err(Kind::Config(vec![fault.into()]).into())
}
