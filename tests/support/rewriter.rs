use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::amqp::HEADER;

type Rewrite = Arc<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// A proxy in front of a broker, which changes the content headers on their way to the client. It closes
/// its connections when it is dropped.
#[derive(Debug)]
pub struct Rewriter {
    accepting: JoinHandle<()>,
}

impl Rewriter {
    /// Forwards to the broker of this URL; the second value is the URL through the proxy. `rewrite` is called
    /// with the payload of each content header.
    pub async fn before(
        url: &str,
        rewrite: impl Fn(&mut Vec<u8>) + Send + Sync + 'static,
    ) -> (Self, String) {
        let mut url = url::Url::parse(url).expect("a URL");
        let upstream = (url.host_str().expect("a host"), url.port().expect("a port"));
        let upstream = format!("{}:{}", upstream.0, upstream.1);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address: SocketAddr = listener.local_addr().expect("a bound listener");
        url.set_host(Some("127.0.0.1")).expect("a URL that has a host");
        url.set_port(Some(address.port())).expect("a URL that has a port");
        let rewrite: Rewrite = Arc::new(rewrite);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, upstream.clone(), Arc::clone(&rewrite)));
            }
        });
        (Self { accepting }, url.into())
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(client: TcpStream, upstream: String, rewrite: Rewrite) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        _ = change(from_server, to_client, rewrite) => {}
    }
}

async fn change(from: OwnedReadHalf, to: OwnedWriteHalf, rewrite: Rewrite) -> io::Result<()> {
    let (mut from, mut to) = (BufReader::new(from), BufWriter::new(to));
    loop {
        if from.buffer().is_empty() {
            to.flush().await?;
        }
        let mut prefix = [0; 7];
        from.read_exact(&mut prefix).await?;
        let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
        let mut payload = vec![0; usize::try_from(size).expect("a size")];
        from.read_exact(&mut payload).await?;
        let end = from.read_u8().await?;
        if prefix[0] == HEADER {
            rewrite(&mut payload);
        }
        let size = u32::try_from(payload.len()).expect("a size").to_be_bytes();
        prefix[3..].copy_from_slice(&size);
        to.write_all(&prefix).await?;
        to.write_all(&payload).await?;
        to.write_u8(end).await?;
    }
}
