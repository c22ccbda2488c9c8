//! What a frame is refused for, and what the refusal can still name.
#![expect(clippy::unwrap_used, reason = "a helper's panic fails its test")]

use everwire_core::limits::EDGE_FRAME_IN_BYTES_MAX;
use everwire_core::{Code, Refusal};
use everwire_proto::edge_v1;
use everwire_proto::frame::{
    BadFrame, ClientFrame, ServerFrame, Subprotocol, decode_client, decode_server,
};
use prost::Message;

fn refused(text: &str) -> BadFrame {
    decode_client(Subprotocol::Json, text.as_bytes()).unwrap_err()
}

#[test]
fn a_refused_json_frame_names_its_id_and_its_field() {
    let input = r#""event":{"kind":"input","body":{"input":"i","text":"secret"}}"#;
    for (field, rest) in [
        ("t", r#""session":"s""#.to_owned()),
        ("t", r#""t":"dance""#.to_owned()),
        ("t", r#""t":1"#.to_owned()),
        ("token", r#""t":"auth""#.to_owned()),
        ("session", r#""t":"attach""#.to_owned()),
        ("session", r#""t":"attach","session":"a b""#.to_owned()),
        (
            "form",
            r#""t":"attach","session":"s","form":"assembled""#.to_owned(),
        ),
        (
            "create",
            r#""t":"attach","session":"s","create":"yes""#.to_owned(),
        ),
        (
            "cursor",
            r#""t":"attach","session":"s","cursor":"1-2.3""#.to_owned(),
        ),
        (
            "cursor.offset",
            r#""t":"attach","session":"s","cursor":{}"#.to_owned(),
        ),
        (
            "cursor.offset",
            r#""t":"attach","session":"s","cursor":{"offset":9007199254740992}"#.to_owned(),
        ),
        (
            "cursor.session_epoch",
            r#""t":"attach","session":"s","cursor":{"session_epoch":"x","offset":1}"#.to_owned(),
        ),
        (
            "event",
            r#""t":"publish","session":"s","key":"k""#.to_owned(),
        ),
        ("key", format!(r#""t":"publish","session":"s",{input}"#)),
        (
            "key",
            format!(r#""t":"publish","session":"s","key":"",{input}"#),
        ),
        (
            "kind",
            r#""t":"publish","session":"s","event":{"kind":"run.completed","body":{}}"#.to_owned(),
        ),
        (
            "signal",
            r#""t":"signal","session":"s","run":"r","key":"k""#.to_owned(),
        ),
        (
            "signal",
            r#""t":"signal","session":"s","signal":"wave","run":"r","key":"k""#.to_owned(),
        ),
        (
            "key",
            r#""t":"signal","session":"s","signal":"cancel","run":"r""#.to_owned(),
        ),
    ] {
        let text = format!("{{\"id\":\"7\",{rest}}}");
        let BadFrame { id, refusal } = refused(&text);
        assert_eq!(id, "7", "{text}");
        assert_eq!(refusal.code, Code::Malformed, "{text}");
        let (named, _) = refusal.message.split_once(": ").unwrap();
        assert_eq!(named, field, "{text}");
        assert!(!refusal.message.contains("secret"), "{refusal}");
    }
}

#[test]
fn a_frame_whose_id_cannot_be_read_is_refused_without_one() {
    let long = format!(r#"{{"t":"ping","id":"{}"}}"#, "x".repeat(257));
    for text in ["", "[]", "{", r#"{"t":"ping","id":7}"#, &long] {
        assert_eq!(refused(text).id, "");
        assert_eq!(Refusal::from(refused(text)).code, Code::Malformed);
    }
}

#[test]
fn a_large_frame_is_refused_before_it_is_read() {
    for subprotocol in Subprotocol::ALL {
        let bytes = vec![b' '; EDGE_FRAME_IN_BYTES_MAX + 1];
        let bad = decode_client(subprotocol, &bytes).unwrap_err();
        assert_eq!(bad.refusal.code, Code::TooLarge);
        assert_eq!(
            bad.refusal.details.limit,
            Some(EDGE_FRAME_IN_BYTES_MAX as u64)
        );
    }
}

#[test]
fn defaults_of_an_attach_and_an_app_event_may_be_left_out() {
    let attach = br#"{"t":"attach","session":"s","later":[1]}"#;
    let (id, frame) = decode_client(Subprotocol::Json, attach).unwrap();
    assert_eq!(id, "");
    let session = "s".parse().unwrap();
    let expected = ClientFrame::Attach {
        session,
        cursor: None,
        create: false,
    };
    assert_eq!(frame, expected);
    let app = br#"{"t":"publish","session":"s","event":{"kind":"app","body":{"name":"x"}}}"#;
    assert!(decode_client(Subprotocol::Json, app).is_ok());
}

#[test]
fn a_binary_frame_that_is_empty_or_wrong_is_refused_by_its_id() {
    let frame = |frame| edge_v1::ClientFrame {
        id: "7".to_owned(),
        frame,
    };
    let refused = |frame: edge_v1::ClientFrame| {
        decode_client(Subprotocol::Proto, &frame.encode_to_vec()).unwrap_err()
    };
    let bad = refused(frame(None));
    assert_eq!((bad.id.as_str(), bad.refusal.code), ("7", Code::Malformed));
    let publish = edge_v1::Publish {
        session: "s".to_owned(),
        ..edge_v1::Publish::default()
    };
    let publish = edge_v1::client_frame::Frame::Publish(publish);
    let bad = refused(frame(Some(publish)));
    assert!(bad.refusal.message.starts_with("event: "), "{bad}");
}

#[test]
fn a_client_ignores_frames_and_fields_that_it_does_not_know() {
    let newer = br#"{"t":"presence","session":"s","who":[]}"#;
    assert_eq!(decode_server(Subprotocol::Json, newer), Ok(None));
    let empty = edge_v1::ServerFrame::default().encode_to_vec();
    assert_eq!(decode_server(Subprotocol::Proto, &empty), Ok(None));
    let pong = br#"{"t":"pong","mood":"good"}"#;
    let read = decode_server(Subprotocol::Json, pong);
    assert_eq!(read, Ok(Some((String::new(), ServerFrame::Pong))));
}

#[test]
fn a_session_that_is_not_there_has_no_place() {
    let text = br#"{"t":"attached","session":"s","answer":"not_found"}"#;
    let (id, frame) = decode_server(Subprotocol::Json, text).unwrap().unwrap();
    let written = everwire_proto::frame::encode_server(Subprotocol::Json, &id, &frame);
    assert_eq!(&written[..], text);
    let text = br#"{"t":"attached","session":"s","answer":"resumed"}"#;
    assert!(decode_server(Subprotocol::Json, text).is_err());
}

#[test]
fn a_token_is_not_printed_with_its_frame() {
    let text = br#"{"t":"auth","token":"secret"}"#;
    let (_, frame) = decode_client(Subprotocol::Json, text).unwrap();
    assert!(!format!("{frame:?}").contains("secret"));
}
