//! Reads the server properties that a broker sends before login: lapin does not expose them.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::address::Address;
use super::frame::PREFIX;
use super::transport::{self, Tls};
use crate::protocol::table::Table;

const DEADLINE: Duration = Duration::from_secs(5);
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
const MAX_SIZE: usize = 64 * 1024;
/// `connection.start` and its protocol version, which precede the server properties.
const START: &[u8] = &[0, 10, 0, 10, 0, 9];

/// Returns the broker's version, for example `3.10.8`. The error is a text for users.
pub(super) async fn version(address: &Address, tls: Option<&Tls>) -> Result<String, String> {
    let greeting = async {
        let (mut stream, _hangup) = transport::open(address, tls).await?;
        stream.write_all(PROTOCOL_HEADER).await?;
        stream.flush().await?;
        let mut prefix = [0; PREFIX];
        stream.read_exact(&mut prefix).await?;
        let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
        let mut payload = vec![0; usize::try_from(size).unwrap_or(MAX_SIZE).min(MAX_SIZE)];
        stream.read_exact(&mut payload).await?;
        Ok::<_, std::io::Error>(payload)
    };
    match timeout(DEADLINE, greeting).await {
        Ok(Ok(payload)) => read(&payload).ok_or("the server did not send its version".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no reply within {} s", DEADLINE.as_secs())),
    }
}

/// Reads the version from the server properties.
fn read(payload: &[u8]) -> Option<String> {
    let table = payload.strip_prefix(START)?;
    let size = u32::from_be_bytes(table.get(..4)?.try_into().ok()?);
    let end = usize::try_from(size).ok()?.checked_add(4)?;
    let properties = Table::decode(table.get(4..end)?).headers;
    properties.get("version").and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_and_a_cut_off_one_is_none() {
        let table = b"\x07productS\x00\x00\x00\x02ab\x07versionS\x00\x00\x00\x063.10.8";
        let size = u32::try_from(table.len()).unwrap().to_be_bytes();
        let payload = [START, &size, table].concat();
        assert_eq!(read(&payload).as_deref(), Some("3.10.8"));
        assert_eq!(read(&payload[..payload.len() - 1]), None);
        assert_eq!(read(&[START, &[0; 4]].concat()), None);
    }
}
