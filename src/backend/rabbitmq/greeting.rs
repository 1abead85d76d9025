//! What a broker says about itself before anybody logs in: lapin keeps it to itself.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::Address;

const DEADLINE: Duration = Duration::from_secs(5);
const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// A frame: a byte for its type, two for its channel, four for its length; then that many.
const FRAME_HEADER: usize = 7;
const LONGEST: usize = 64 * 1024;

/// The broker's version, for example `3.10.8`. The error is for people.
pub(super) async fn version(address: &Address) -> Result<String, String> {
    let authority = &address.uri.authority;
    let greeting = async {
        let mut stream = TcpStream::connect((authority.host.as_str(), authority.port)).await?;
        stream.write_all(HEADER).await?;
        let mut header = [0; FRAME_HEADER];
        stream.read_exact(&mut header).await?;
        let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
        let mut frame = vec![0; usize::try_from(size).unwrap_or(LONGEST).min(LONGEST)];
        stream.read_exact(&mut frame).await?;
        Ok::<_, std::io::Error>(frame)
    };
    match timeout(DEADLINE, greeting).await {
        Ok(Ok(frame)) => text_field(&frame, "version").ok_or("it tells no version".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

/// A long string of a field table, by its name: length, name, `S`, four bytes of length, text.
fn text_field(frame: &[u8], name: &str) -> Option<String> {
    let mut mark = vec![u8::try_from(name.len()).ok()?];
    mark.extend_from_slice(name.as_bytes());
    mark.push(b'S');
    let at = frame.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let size = frame.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)?;
    let text = frame.get(at + 4..at + 4 + usize::try_from(size).ok()?)?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_and_a_cut_off_one_is_none() {
        let frame = b"\x00\x0a\x07productS\x00\x00\x00\x02ab\x07versionS\x00\x00\x00\x063.10.8";
        assert_eq!(text_field(frame, "version").as_deref(), Some("3.10.8"));
        assert_eq!(text_field(&frame[..frame.len() - 1], "version"), None);
        assert_eq!(text_field(frame, "nothing"), None);
    }
}
