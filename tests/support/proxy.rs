use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A TCP proxy that injects faults on request. It closes its connections when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    cuts: u64,
    freezes: u64,
    silent: bool,
}

impl Proxy {
    /// Forwards connections from a free port to `upstream`.
    pub async fn start(upstream: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let (state, watched) = watch::channel(State::default());
        let accepting = tokio::spawn(accept(listener, upstream.into(), watched));
        Self { address, state, accepting }
    }

    /// Forwards to the server of this URL; the second value is the URL through the proxy.
    pub async fn before(url: &str) -> (Self, String) {
        let mut url = url::Url::parse(url).expect("a URL");
        let host = url.host_str().expect("a URL with a host");
        let proxy = Self::start(format!("{host}:{}", url.port().expect("and a port"))).await;
        url.set_host(Some("127.0.0.1")).expect("a URL that has a host");
        url.set_port(Some(proxy.address.port())).expect("a URL that has a port");
        (proxy, url.into())
    }

    /// Returns the address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection. New ones are served.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Leaves every connection half open: its bytes are never forwarded, without an error on either side. New
    /// connections are served.
    pub fn freeze(&self) {
        self.state.send_modify(|state| state.freezes += 1);
    }

    /// Stops forwarding in both directions and closes nothing, like an unplugged cable.
    pub fn blackhole(&self) {
        self.state.send_modify(|state| state.silent = true);
    }

    /// Forwards again, the withheld bytes first.
    pub fn heal(&self) {
        self.state.send_modify(|state| state.silent = false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, upstream: String, state: watch::Receiver<State>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(forward(client, upstream.clone(), state.clone()));
    }
}

/// Serves one connection until either side closes it, it is cut, or the proxy is dropped.
async fn forward(client: TcpStream, upstream: String, state: watch::Receiver<State>) {
    let Ok(server) = TcpStream::connect(upstream).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cuts = state.clone();
    let seen = *cuts.borrow();
    tokio::select! {
        _ = cuts.wait_for(|state| state.cuts != seen.cuts) => {}
        _ = pump(from_client, to_server, seen.freezes, state.clone()) => {}
        _ = pump(from_server, to_client, seen.freezes, state) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    freezes: u64,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let size = from.read(&mut chunk).await?;
        let passes = |state: &State| !state.silent && state.freezes == freezes;
        if state.wait_for(passes).await.is_err() || size == 0 {
            return Ok(());
        }
        to.write_all(&chunk[..size]).await?;
    }
}
