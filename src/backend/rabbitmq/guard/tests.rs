use amq_protocol::frame::{AMQPFrame, parse_frame};

use super::*;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 0, 1][..], &size, payload, &[FRAME_END]].concat()
}

fn short(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

fn deliver() -> Vec<u8> {
    let numbers = [&7_u64.to_be_bytes()[..], &[0]].concat();
    let texts = [short(b"ex\xff"), short(b"key")].concat();
    frame(METHOD, &[&[0, 60, 0, 60][..], &short(b"tag"), &numbers, &texts].concat())
}

/// A header with a table of one entry, `id`.
fn header(body: u64) -> Vec<u8> {
    let table = b"\0\0\0\x0b\x02idS\0\0\0\x03t-1";
    frame(HEADER, &[&[0, 60, 0, 0][..], &body.to_be_bytes(), &[0x20, 0], table].concat())
}

/// A message in four frames, and a heartbeat.
fn conversation() -> Vec<u8> {
    let body = vec![b'b'; 300];
    let heartbeat = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];
    [deliver(), header(600), frame(BODY, &body), heartbeat.to_vec(), frame(BODY, &body)].concat()
}

/// Returns the bytes that lapin gets when the input arrives in `chunks`, and the error that ends it.
fn pass<'b>(chunks: impl IntoIterator<Item = &'b [u8]>, out: usize) -> (Vec<u8>, Option<String>) {
    let mut frames = Frames::new();
    let (mut seen, mut buffer) = (Vec::new(), vec![0; out]);
    for mut chunk in chunks {
        while !chunk.is_empty() {
            let size = copy(chunk, frames.spare_capacity());
            frames.filled(size);
            chunk = &chunk[size..];
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

fn parse(mut bytes: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (rest, frame) = parse_frame(bytes).expect("lapin's parser takes it");
        bytes = rest;
        frames.push(frame);
    }
    frames
}

#[test]
fn frames_may_be_split_at_any_byte() {
    let bytes = conversation();
    let (whole, error) = pass([&bytes[..]], 1 << 20);
    assert_eq!(error, None);
    assert_eq!(parse(&whole).len(), 5);
    for at in 0..=bytes.len() {
        let (first, second) = bytes.split_at(at);
        assert_eq!(pass([first, second], 1 << 20), (whole.clone(), None), "{at}");
    }
    for size in 1..20 {
        let (read, error) = pass(bytes.chunks(size), 3);
        assert_eq!((&read, error), (&whole, None), "chunks of {size}");
    }
}

#[test]
fn bodies_and_heartbeats_are_not_changed() {
    let bytes = [deliver(), frame(BODY, &[0xff; 100_000]), frame(BODY, b"")].concat();
    let (read, error) = pass([&bytes[..]], 1000);
    assert_eq!(error, None);
    assert_eq!(read[deliver().len()..], bytes[deliver().len()..]);
}

#[test]
fn a_content_header_larger_than_a_frame_is_made_to_fit() {
    let value = vec![b'x'; 200_000];
    let size = u32::try_from(value.len()).unwrap();
    let entry = [&b"\x01kS"[..], &size.to_be_bytes(), &value].concat();
    let table = [&(size + 7).to_be_bytes()[..], &entry].concat();
    let payload = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0][..], &table].concat();
    let bytes = [deliver(), frame(HEADER, &payload), deliver()].concat();
    let (read, error) = pass(bytes.chunks(10_000), 4096);
    assert_eq!(error, None);
    assert_eq!(parse(&read).len(), 3);
    assert!(read.len() < 131_072);
}

#[test]
fn an_unsafe_frame_is_an_error_after_the_frames_before_it() {
    let before = deliver().len();
    let huge = u32::try_from(MAX_INSPECTED + 1).unwrap().to_be_bytes();
    let mut unended = header(1);
    *unended.last_mut().unwrap() = 0;
    let body = frame(BODY, &vec![0; 131_065]);
    for (bad, why) in [
        (&[&[HEADER, 0, 1][..], &huge].concat()[..], "too large"),
        (&[&[METHOD, 0, 1][..], &huge].concat(), "too large"),
        (&body, "too large"),
        (b"\x09\0\0\0\0\0\0", "unknown type 9"),
        (&unended, "does not end where it should"),
        (&frame(HEADER, b"\0\x3c\0\0"), "a content header of 4 bytes"),
        (&frame(METHOD, b"\0\x3c"), "a method frame of 2 bytes"),
        (&frame(METHOD, b"\0\x3c\0\x3c\x09tag"), "method 60.60 of 8 bytes is malformed"),
    ] {
        let bytes = [deliver(), bad.to_vec()].concat();
        let (read, error) = pass([&bytes[..]], 1 << 20);
        let error = error.expect(why);
        assert!(error.contains(why), "{error}");
        assert_eq!(read.len(), before, "{why}");
    }
}

#[test]
fn a_peer_that_does_not_speak_amqp_is_named() {
    let (read, error) = pass([&b"HTTP/1.1 400 Bad Request"[..]], 100);
    assert!(read.is_empty());
    assert!(error.unwrap().contains("does not speak AMQP"));
    let version = b"AMQP\0\0\x09\x01";
    assert_eq!(pass([&version[..]], 100), (version.to_vec(), None));
}

#[test]
fn frames_do_not_exceed_the_brokers_frame_size() {
    let tune = [&[0, 10, 0, 30, 0, 0][..], &8192_u32.to_be_bytes(), &[0, 60]].concat();
    let small = frame(BODY, &[0; 8192 - OVERHEAD]);
    let large = frame(BODY, &[0; 8193 - OVERHEAD]);
    let bytes = [frame(METHOD, &tune), small].concat();
    assert_eq!(pass([&bytes[..]], 1 << 20), (bytes.clone(), None));
    let bytes = [frame(METHOD, &tune), large].concat();
    assert!(pass([&bytes[..]], 1 << 20).1.is_some());
}
