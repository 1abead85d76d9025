//! Opens broker connections: TCP or TLS below lapin, under one deadline.
//!
//! lapin runs a thread for each connection, which ends with its socket. Dropping the future of a
//! connection attempt does not end the thread, so [`Hangup`] shuts the socket down.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use lapin::uri::AMQPScheme;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::address::Address;
use super::guard::Guard;

/// How to verify servers over TLS.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Trusts the system's certificate authorities, and those in `ca_pem`.
    ///
    /// # Errors
    /// One line for users: `ca_pem` holds no certificate, or there are no certificates at all.
    pub(super) fn new(ca_pem: Option<&str>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            debug!("a certificate of the system cannot be read: {error}");
        }
        roots.add_parsable_certificates(system.certs);
        for certificate in CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default().as_bytes()) {
            let certificate = certificate.map_err(|error| format!("tls.ca_file: {error}"))?;
            roots.add(certificate).map_err(|error| format!("tls.ca_file: {error}"))?;
        }
        if roots.is_empty() {
            return Err("amqps:// without a certificate authority: set tls.ca_file".into());
        }
        let provider = rustls::crypto::CryptoProvider::get_default().cloned();
        let provider =
            provider.unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

/// Shuts down the socket of a connection on drop, even if the connection has other owners.
#[derive(Debug)]
pub(super) struct Hangup(Socket);

impl Drop for Hangup {
    fn drop(&mut self) {
        // An error means that the socket is already shut down.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// Opens a connection and logs in. If the future is dropped before it completes, no thread and no file
/// descriptor remains.
///
/// # Errors
/// The broker cannot be reached, is not trusted, or refuses the login.
pub(super) async fn connect(
    address: &Address,
    tls: Option<&Tls>,
    properties: ConnectionProperties,
) -> Result<(Connection, Hangup), lapin::Error> {
    let (socket, hangup) = open(address, tls).await?;
    let stream = Mutex::new(Some(Guard::new(socket)));
    let runtime = RuntimeParts::new(Tokio::current(), Sockets(Tokio::current()));
    let connection = Connection::connector(
        address.uri.clone(),
        Runtime::new(runtime),
        async move |_, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            // A second call means that lapin wants to reconnect: the supervisor does that.
            let stream = stream.ok_or(io::Error::from(io::ErrorKind::ConnectionAborted))?;
            Ok(AsyncTcpStream::Plain(stream))
        },
        properties,
    );
    Ok((connection.await?, hangup))
}

/// Opens the stream to a broker, with TLS if its URL requires it. Sends no AMQP frames.
///
/// # Errors
/// The host cannot be reached or is not trusted.
pub(super) async fn open(
    address: &Address,
    tls: Option<&Tls>,
) -> Result<(BrokerStream, Hangup), io::Error> {
    let authority = &address.uri.authority;
    let stream = TcpStream::connect((authority.host.as_str(), authority.port)).await?;
    let heartbeat = address.uri.query.heartbeat.unwrap_or_default();
    tune(&stream, Duration::from_secs(heartbeat.into()))?;
    let hangup = Hangup(SockRef::from(&stream).try_clone()?);
    let stream = match (&address.uri.scheme, tls) {
        (AMQPScheme::AMQP, _) => BrokerStream::Plain(stream),
        (AMQPScheme::AMQPS, None) => return Err(io::Error::other("TLS is not configured")),
        (AMQPScheme::AMQPS, Some(tls)) => {
            let name = ServerName::try_from(authority.host.clone()).map_err(io::Error::other)?;
            let stream = TlsConnector::from(Arc::clone(&tls.0)).connect(name, stream).await?;
            BrokerStream::Tls(Box::new(stream))
        }
    };
    Ok((stream, hangup))
}

/// Detects a dead peer below AMQP, too: with keepalive while nothing is sent, and with a timeout on
/// unacknowledged bytes otherwise, each within twice the heartbeat.
fn tune(stream: &TcpStream, heartbeat: Duration) -> io::Result<()> {
    let heartbeat = heartbeat.max(Duration::from_secs(1));
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let interval = (heartbeat / 4).max(Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(heartbeat).with_interval(interval);
    #[cfg(not(any(target_os = "openbsd", target_os = "redox", target_os = "solaris")))]
    let keepalive = keepalive.with_retries(4);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(heartbeat * 2))?;
    Ok(())
}

/// The decrypted bytes of one connection.
#[derive(Debug)]
pub(super) enum BrokerStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for BrokerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for BrokerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// tokio's timers, with streams that are already connected.
#[derive(Clone, Debug)]
struct Sockets(Tokio);

fn already_connected<T>() -> io::Result<T> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

impl Reactor for Sockets {
    type TcpStream = Guard<BrokerStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<
        impl futures_util::io::AsyncRead + futures_util::io::AsyncWrite + Send + Unpin + 'static,
    > {
        already_connected::<Guard<BrokerStream>>()
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(already_connected())
    }
}
