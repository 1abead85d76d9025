//! Entry points for fuzzing and its corpus: the guard, and the decoding of frames that it passes.

use lapin::BasicProperties;

use super::codec;
use super::guard::Frames;
use crate::protocol::Message;

/// Passes `bytes` through the guard in chunks of `chunk` bytes. Returns the bytes that lapin would
/// read, and the error that would end its reading.
#[must_use]
pub fn guard_frames(bytes: &[u8], chunk: usize) -> (Vec<u8>, Option<String>) {
    let mut frames = Frames::new();
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 4096]);
    for mut rest in bytes.chunks(chunk.max(1)) {
        while !rest.is_empty() {
            let space = frames.spare_capacity();
            let size = rest.len().min(space.len());
            space[..size].copy_from_slice(&rest[..size]);
            frames.filled(size);
            rest = &rest[size..];
            loop {
                match frames.take(&mut buffer) {
                    Ok(0) => break,
                    Ok(size) => seen.extend_from_slice(&buffer[..size]),
                    Err(error) => return (seen, Some(error.to_string())),
                }
            }
        }
    }
    (seen, None)
}

/// Decodes the message of a delivery with these properties.
#[must_use]
pub fn read_message(properties: &BasicProperties, body: Vec<u8>) -> Message {
    codec::decode(properties, body)
}
