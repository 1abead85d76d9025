use amq_protocol::frame::{AMQPFrame, parse_frame};
use lapin::BasicProperties;
use serde_json::{Value, json};

use super::super::codec;
use super::*;
use crate::protocol::{Message, RAW_HEADERS, UNREADABLE};

const LIMIT: usize = 131_072;
const CHANNEL: [u8; 2] = [0, 1];

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn short(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

fn entry(name: &str, kind: u8, value: &[u8]) -> Vec<u8> {
    [&short(name.as_bytes())[..], &[kind], value].concat()
}

fn text(name: &str, value: &[u8]) -> Vec<u8> {
    entry(name, b'S', &long(value))
}

/// A content header's payload: class, weight, body size, flags, property list.
fn payload(flags: u16, list: &[&[u8]]) -> Vec<u8> {
    let fixed = [&BASIC[..], &[0, 0], &5_u64.to_be_bytes(), &flags.to_be_bytes()].concat();
    [&fixed[..], &list.concat()].concat()
}

fn task_headers() -> Vec<u8> {
    [text("id", b"t-1"), text("task", b"demo.add")].concat()
}

fn rewrite(payload: &[u8], limit: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    rewrite_header(CHANNEL, &mut payload.to_vec(), limit, &mut frame).unwrap();
    frame
}

fn properties(frame: &[u8]) -> BasicProperties {
    let (rest, parsed) = parse_frame(frame).expect("lapin's parser takes it");
    assert!(rest.is_empty(), "one frame and no more");
    let AMQPFrame::Header(1, header) = parsed else { panic!("{parsed:?}") };
    assert_eq!(header.body_size, 5, "the body's size is kept");
    header.properties
}

fn message(payload: &[u8]) -> Message {
    codec::decode(&properties(&rewrite(payload, LIMIT)), b"hello".to_vec())
}

fn reason(message: &Message) -> &str {
    message.headers.get(UNREADABLE).and_then(Value::as_str).expect("it is unreadable")
}

#[test]
fn a_readable_message_retains_all_its_properties() {
    let table = long(&task_headers());
    let list: &[&[u8]] = &[
        &short(b"application/json"),
        &short(b"utf-8"),
        &table,
        b"\x02",
        b"\x07",
        &short(b"t-1"),
        &short("r\u{e9}ply".as_bytes()),
        &short(b"60000"),
        &short(b"m-1"),
        &99_u64.to_be_bytes(),
        &short(b"kind"),
        &short(b"user"),
        &short(b"app"),
        &short(b"cluster"),
    ];
    let message = message(&payload(0xfffc, list));
    assert_eq!(Value::Object(message.headers.into()), json!({"id": "t-1", "task": "demo.add"}));
    assert_eq!(message.id.as_str(), "t-1");
    let properties = message.properties;
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(properties.reply_to.as_deref(), Some("r\u{e9}ply"));
    assert_eq!((properties.priority, properties.timestamp), (Some(7), Some(99)));
    assert_eq!(properties.app_id.as_deref(), Some("app"));
}

#[test]
fn a_header_without_a_table_is_unchanged() {
    let payload = payload(0x0400, &[&short(b"t-1")]);
    let frame = rewrite(&payload, LIMIT);
    assert_eq!(&frame[PREFIX..frame.len() - 1], payload);
    assert_eq!(codec::decode(&properties(&frame), Vec::new()).id.as_str(), "t-1");
}

#[test]
fn nested_values_reach_lapin_as_one_value() {
    let mut nested = vec![b'V'];
    for _ in 0..5_000 {
        nested = [&b"A"[..], &long(&nested)].concat();
    }
    let table = [task_headers(), [&short(b"deep")[..], &nested].concat()].concat();
    let frame = rewrite(&payload(HAS_TABLE, &[&long(&table)]), LIMIT);
    let properties = properties(&frame);
    assert_eq!(properties.headers().as_ref().unwrap().inner().len(), 1);
    let message = codec::decode(&properties, Vec::new());
    assert_eq!(reason(&message), "header `deep` is nested deeper than 32 levels");
    assert_eq!(message.headers["task"], "demo.add");
    assert_eq!(message.id.as_str(), "t-1", "waiting callers can be notified");
    assert_eq!(from_base64(message.headers[RAW_HEADERS].as_str().unwrap()), table);
}

#[test]
fn each_property_that_is_not_utf8_is_repaired_and_named() {
    for (index, (name, kind)) in PROPERTIES.into_iter().enumerate() {
        if kind != Field::ShortString {
            continue;
        }
        let message = message(&payload(0x8000 >> index, &[&short(b"ab\xffc\xe2\x82")]));
        let expected = format!(r#"property {name} is not UTF-8: "ab\xffc\xe2\x82""#);
        assert_eq!(reason(&message), expected);
    }
    let both = message(&payload(0x8400, &[&short(b"\xff"), &short(b"\xfe")]));
    assert!(reason(&both).contains("content_type") && reason(&both).contains("correlation_id"));
}

#[test]
fn a_repaired_text_keeps_its_length() {
    for bad in [&b"\xff\xff"[..], b"a\x80b", b"\xe2\x82", b"ok\xf0\x90\x80", b"\xc3\x28"] {
        let mut text = bad.to_vec();
        assert!(repair(&mut text));
        assert_eq!(text.len(), bad.len());
        assert!(std::str::from_utf8(&text).is_ok(), "{text:?}");
    }
    assert!(!repair(&mut "h\u{e9}llo".as_bytes().to_vec()));
}

#[test]
fn a_malformed_property_list_is_replaced_and_its_bytes_are_stored() {
    let table = long(&task_headers());
    for (flags, list) in [
        (0x8000, &b"\x09short"[..]),
        (HAS_TABLE, &b"\0\0\0\x09id"[..]),
        (HAS_TABLE, &[&table[..], b"more"].concat()),
        (0x0040, &b"\0\0"[..]),
        (0x0001, &b""[..]),
    ] {
        let message = message(&payload(flags, &[list]));
        assert_eq!(reason(&message), "its property list is malformed", "{flags:x}");
        let retained = from_base64(message.headers[RAW_HEADERS].as_str().unwrap());
        assert_eq!(retained, [&flags.to_be_bytes()[..], list].concat());
        assert!(!message.names_its_task());
    }
    let none = message(&payload(0, &[])[..FIXED + 1]);
    assert_eq!(reason(&none), "its property list is malformed");
}

fn from_base64(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn a_malformed_table_is_unreadable_and_earlier_headers_remain() {
    let table = long(&[&task_headers()[..], b"\x05wrong"].concat());
    let message = message(&payload(HAS_TABLE, &[&table]));
    assert!(reason(&message).contains("malformed at byte"), "{}", reason(&message));
    assert_eq!(message.id.as_str(), "t-1");
}

#[test]
fn a_producer_cannot_mark_its_message() {
    let forged = [
        task_headers(),
        text(UNREADABLE, b"no"),
        text(REASON, b"no"),
        text(RAW_TABLE, b"\x02idS\0\0\0\x01x"),
    ];
    let message = message(&payload(HAS_TABLE, &[&long(&forged.concat())]));
    assert_eq!(message.headers.get(UNREADABLE), None);
    assert_eq!(message.id.as_str(), "t-1");
}

#[test]
fn a_table_over_the_frame_size_loses_its_largest_headers() {
    let grown = [text("x-death", &[b'd'; 120_000]), text("note", &[b'n'; 20_000]), task_headers()];
    let payload = payload(HAS_TABLE | 0x0400, &[&long(&grown.concat()), &short(b"t-1")]);
    let frame = rewrite(&payload, LIMIT);
    assert!(frame.len() <= LIMIT, "{}", frame.len());
    let message = codec::decode(&properties(&frame), Vec::new());
    let size = grown.concat().len();
    let expected =
        format!("its header table of {size} bytes does not fit into a frame; dropped: x-death");
    assert_eq!(reason(&message), expected);
    assert_eq!(message.headers["note"].as_str().unwrap().len(), 20_000);
    assert_eq!(message.id.as_str(), "t-1");

    for size in 60_000..60_100 {
        let almost = long(&text("note", &vec![b'n'; size]));
        let frame = rewrite(&self::payload(HAS_TABLE, &[&almost]), 60_100);
        assert!(frame.len() <= 60_100, "{size}: {}", frame.len());
        properties(&frame);
    }
}

#[test]
fn a_header_without_a_body_size_is_an_error() {
    for size in 0..FIXED {
        let mut out = Vec::new();
        let refused = rewrite_header(CHANNEL, &mut vec![0; size], LIMIT, &mut out);
        assert_eq!(refused.unwrap_err(), format!("a content header of {size} bytes"));
        assert!(out.is_empty());
    }
}

#[test]
fn a_method_keeps_its_length_and_its_numbers() {
    let text = short(b"q\xff");
    let deliver =
        [&[0, 60, 0, 60][..], &short(b"tag"), &7_u64.to_be_bytes(), &[0], &text, &text].concat();
    let mut repaired = deliver.clone();
    assert_eq!(check_method(&mut repaired).unwrap(), Method::Other);
    let fixed: Vec<_> = deliver.iter().map(|b| if *b == 0xff { b'?' } else { *b }).collect();
    assert_eq!(repaired, fixed);
    assert!(check_method(&mut [&deliver[..], &[0]].concat()).is_err(), "a byte too many");
    for end in 4..deliver.len() {
        assert!(check_method(&mut deliver[..end].to_vec()).is_err(), "{end}");
    }
    let close = [&[0, 20, 0, 40, 1, 0x94][..], &text, &[0, 50, 0, 10]].concat();
    let mut repaired = close.clone();
    check_method(&mut repaired).unwrap();
    assert_ne!(repaired, close);
}

#[test]
fn a_server_whose_properties_nest_too_deep_is_refused() {
    let mut nested = vec![b'V'];
    for _ in 0..5_000 {
        nested = [&b"A"[..], &long(&nested)].concat();
    }
    let table = long(&[&short(b"deep")[..], &nested].concat());
    let mut start = [&[0, 10, 0, 10, 0, 9][..], &table, &long(b"PLAIN"), &long(b"en_US")].concat();
    assert!(check_method(&mut start).unwrap_err().contains("nested deeper"));
    let declare = [&[0, 50, 0, 10, 0, 0][..], &short(b"q"), &[0], &table].concat();
    let refused = check_method(&mut declare.clone()).unwrap_err();
    assert_eq!(refused, "method 50.10 is none that a broker sends");
    let mut tune = [&[0, 10, 0, 30, 0, 0][..], &4096_u32.to_be_bytes(), &[0, 60]].concat();
    assert_eq!(check_method(&mut tune).unwrap(), Method::Tune(4096));
}
