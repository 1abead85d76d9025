//! Tests of the test tools.

use std::time::Duration;

use support::{Proxy, Server, servers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

async fn echo_server() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = peer.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    (address, serving)
}

async fn exchange(peer: &mut TcpStream, word: &[u8]) -> std::io::Result<Vec<u8>> {
    peer.write_all(word).await?;
    let mut received = vec![0; word.len()];
    peer.read_exact(&mut received).await?;
    Ok(received)
}

#[tokio::test]
async fn a_proxy_cuts_open_connections_and_accepts_new_ones() {
    let (address, _serving) = echo_server().await;
    let proxy = Proxy::start(address).await;
    let mut first = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(exchange(&mut first, b"one").await.unwrap(), b"one");
    proxy.cut();
    assert!(matches!(first.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    let mut second = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(exchange(&mut second, b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn a_blackhole_holds_bytes_back_until_it_is_healed() {
    let (address, _serving) = echo_server().await;
    let proxy = Proxy::start(address).await;
    let mut peer = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(exchange(&mut peer, b"one").await.unwrap(), b"one");
    proxy.blackhole();
    peer.write_all(b"two").await.unwrap();
    let mut received = [0; 3];
    let early = timeout(Duration::from_millis(50), peer.read(&mut received)).await;
    assert!(early.is_err(), "a blackhole let bytes through");
    proxy.heal();
    peer.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"two");
}

#[tokio::test]
async fn a_server_comes_back_on_its_port_with_its_data() {
    assert!(servers().ca_file.exists());
    let mut redis = Server::redis().await;
    send_command(&redis.address(), "SET key kept").await;
    redis.stop().await;
    assert!(TcpStream::connect(redis.address()).await.is_err());
    redis.start().await;
    assert!(send_command(&redis.address(), "GET key").await.contains("kept"));
    redis.kill().await;
    assert!(TcpStream::connect(redis.address()).await.is_err());
}

async fn send_command(address: &str, command: &str) -> String {
    let mut peer = TcpStream::connect(address).await.unwrap();
    let request = format!("AUTH not-to-be-printed\r\n{command}\r\nQUIT\r\n");
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    peer.read_to_string(&mut reply).await.unwrap();
    reply
}
