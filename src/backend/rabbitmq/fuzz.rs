//! What fuzzing and its corpus call: the guard on bytes, and the reading of what it lets through.

use lapin::BasicProperties;

use super::codec;
use super::guard::Frames;
use crate::protocol::Message;

/// Passes `bytes` through the guard in chunks of `chunk` bytes. Returns what lapin would read, and why
/// it would read no more.
#[must_use]
pub fn guard_frames(bytes: &[u8], chunk: usize) -> (Vec<u8>, Option<String>) {
    let mut frames = Frames::new();
    let (mut seen, mut room) = (Vec::new(), vec![0; 4096]);
    for mut rest in bytes.chunks(chunk.max(1)) {
        while !rest.is_empty() {
            let space = frames.room();
            let size = rest.len().min(space.len());
            space[..size].copy_from_slice(&rest[..size]);
            frames.filled(size);
            rest = &rest[size..];
            loop {
                match frames.take(&mut room) {
                    Ok(0) => break,
                    Ok(size) => seen.extend_from_slice(&room[..size]),
                    Err(error) => return (seen, Some(error.to_string())),
                }
            }
        }
    }
    (seen, None)
}

/// The message of a delivery with these properties.
#[must_use]
pub fn read_message(properties: &BasicProperties, body: Vec<u8>) -> Message {
    codec::decode(properties, body)
}
