//! AMQP frames built byte by byte: messages that no client library would publish.

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
const FRAME_MAX: u32 = 131_072;

/// The flag of the content type, which is written before the other properties.
pub const CONTENT_TYPE: u16 = 1 << 15;
/// The flag of the header table.
pub const HEADERS: u16 = 1 << 13;
/// The flag of the correlation id.
pub const CORRELATION_ID: u16 = 1 << 10;

/// A channel in confirm mode, on a connection of its own.
#[derive(Debug)]
pub struct RawChannel {
    stream: TcpStream,
}

impl RawChannel {
    /// Logs in to the broker of this URL.
    pub async fn open(url: &str) -> Self {
        let url = Url::parse(url).expect("a URL");
        let address = (url.host_str().expect("a host"), url.port().expect("a port"));
        let stream = TcpStream::connect(address).await.expect("a broker");
        let mut channel = Self { stream };
        channel.write(b"AMQP\0\0\x09\x01").await;
        channel.answer(10, 10).await;
        let plain = format!("\0{}\0{}", url.username(), url.password().expect("a password"));
        let start_ok = [long(b""), short(b"PLAIN"), long(plain.as_bytes()), short(b"en_US")];
        channel.method(0, 10, 11, &start_ok.concat()).await;
        channel.answer(10, 30).await;
        let tune = [&[7, 0xff][..], &FRAME_MAX.to_be_bytes(), &[0, 0]].concat();
        channel.method(0, 10, 31, &tune).await;
        let vhost = percent_decode_str(url.path().trim_start_matches('/')).collect::<Vec<u8>>();
        let vhost = if vhost.is_empty() { b"/".to_vec() } else { vhost };
        channel.method(0, 10, 40, &[short(&vhost), vec![0, 0]].concat()).await;
        channel.answer(10, 41).await;
        channel.method(1, 20, 10, &[0]).await;
        channel.answer(20, 11).await;
        channel.method(1, 85, 10, &[0]).await;
        channel.answer(85, 11).await;
        channel
    }

    /// Declares a durable classic queue.
    pub async fn declare(&mut self, queue: &str) {
        self.declare_with(queue, b"").await;
    }

    /// Declares the queue with these encoded arguments.
    pub async fn declare_with(&mut self, queue: &str, arguments: &[u8]) {
        let declare = [vec![0, 0], short(queue.as_bytes()), vec![0b10], long(arguments)].concat();
        self.method(1, 50, 10, &declare).await;
        self.answer(50, 11).await;
    }

    /// Publishes a message with these property flags and this property list, and waits until the broker
    /// has confirmed it.
    pub async fn publish(&mut self, to: (&str, &str), flags: u16, list: &[u8], body: &[u8]) {
        self.send(to, flags, list, body).await;
        self.answer(60, 80).await;
    }

    /// Publishes a message without waiting for the confirm.
    pub async fn send(&mut self, to: (&str, &str), flags: u16, list: &[u8], body: &[u8]) {
        let (exchange, key) = to;
        let place = [short(exchange.as_bytes()), short(key.as_bytes())].concat();
        let publish = [&[0, 60, 0, 40, 0, 0][..], &place, &[0]].concat();
        let size = u64::try_from(body.len()).expect("a size").to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), list].concat();
        let frames = [frame(METHOD, 1, &publish), frame(HEADER, 1, &header), frame(BODY, 1, body)];
        self.write(&frames.concat()).await;
    }

    /// Waits until the broker has confirmed `count` messages on this channel.
    pub async fn confirmed(&mut self, count: u64) {
        loop {
            let ack = self.answer(60, 80).await;
            let tag = ack.first_chunk().expect("a delivery tag");
            if u64::from_be_bytes(*tag) >= count {
                return;
            }
        }
    }

    async fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.write(&frame(METHOD, channel, &payload)).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("a broker that reads");
    }

    /// Waits for this method, and returns its arguments.
    ///
    /// # Panics
    /// Panics when the broker closes the connection or the channel.
    pub async fn answer(&mut self, class: u16, method: u16) -> Vec<u8> {
        loop {
            let (kind, payload) =
                read_frame(&mut self.stream).await.expect("a broker that answers");
            if kind != METHOD {
                continue;
            }
            let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
            match (number(0), number(2)) {
                found if found == (class, method) => return payload[4..].to_vec(),
                (10, 50) | (20, 40) => {
                    panic!("the broker closes: {}", String::from_utf8_lossy(&payload[7..]))
                }
                _ => {}
            }
        }
    }
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("a size").to_be_bytes();
    [&[kind][..], &channel.to_be_bytes(), &size, payload, &[FRAME_END]].concat()
}

/// Reads a frame; returns its type and payload without the prefix.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let mut prefix = [0; 7];
    stream.read_exact(&mut prefix).await?;
    let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
    let mut payload = vec![0; usize::try_from(size).expect("a size") + 1];
    stream.read_exact(&mut payload).await?;
    payload.pop();
    Ok((prefix[0], payload))
}

/// Encodes a short string.
#[must_use]
pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("255 bytes at most")][..], text].concat()
}

/// Encodes a long string, or a table or array with these bytes.
#[must_use]
pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("a size").to_be_bytes()[..], bytes].concat()
}

/// Encodes a table entry with a string.
#[must_use]
pub fn text(name: &str, value: &[u8]) -> Vec<u8> {
    [&short(name.as_bytes())[..], b"S", &long(value)].concat()
}

/// Encodes a table entry with arrays nested this deep.
#[must_use]
pub fn nested(name: &str, depth: usize) -> Vec<u8> {
    let mut value = vec![b'V'];
    for _ in 0..depth {
        value = [&b"A"[..], &long(&value)].concat();
    }
    [short(name.as_bytes()), value].concat()
}
