//! The JSON of `docs/protocol/edge.md`: events, drafts, refusals.
//!
//! Comes in: words of `core`, or text that nobody has checked. Goes out: the other. Absent
//! fields are left out, never null; unknown fields are ignored; a field of the wrong type is
//! MALFORMED by its name. Never: a value in a message.

use everwire_core::clock::Timestamp;
use everwire_core::event::{Draft, Event};
use everwire_core::{Cancel, Key, Refusal, RunId};

use crate::control::CancelFields;
use crate::signal::{Pressed, pressed};

pub(crate) mod read;
pub(crate) mod write;

/// The event as JSON text. Application data stand as they were written, line breaks included:
/// SSE must write one `data:` line for each line.
pub fn event_to_json(event: &Event) -> String {
    write::text(&write::EventJson::new(event))
}

/// Reads what [`event_to_json`] wrote; unknown fields are ignored.
pub fn event_from_json(text: &[u8]) -> Result<Event, Refusal> {
    read::event(&read::Fields::parse("event", text)?)
}

/// The draft as JSON text: `{"kind", "body", …}`.
pub fn draft_to_json(draft: &Draft) -> String {
    write::text(&write::DraftJson::new(draft))
}

/// A draft from JSON text, with its shape checked ([`Draft::check_shape`]).
pub fn draft_from_json(text: &[u8]) -> Result<Draft, Refusal> {
    read::draft(&read::Fields::parse("event", text)?)
}

/// What an HTTP request to cancel `run` says besides: `{"subtree", "graceful_ms", "expect",
/// "as_of"}`, each of them optional, or nothing at all.
pub fn cancel_from_json(run: RunId, text: &[u8]) -> Result<Cancel, Refusal> {
    if text.is_empty() {
        return Ok(Cancel::run(run));
    }
    let fields = read::Fields::parse("cancel", text)?;
    let (run, subtree) = match fields.flag("subtree")? {
        true => (String::new(), run.to_string()),
        false => (run.to_string(), String::new()),
    };
    let cancel = CancelFields {
        run,
        subtree,
        graceful_ms: fields.small("graceful_ms")?.unwrap_or(0),
        expect: fields.text("expect")?.unwrap_or_default(),
        as_of: fields.number("as_of")?,
        ..CancelFields::default()
    };
    cancel.read()
}

/// What an HTTP request for any signal says: the fields of a `signal` frame, and its key.
pub fn signal_from_json(text: &[u8]) -> Result<(Pressed, Option<Key>), Refusal> {
    let fields = read::Fields::parse("signal", text)?;
    let key = fields.name("key")?;
    Ok((pressed(&read::signal_fields(&fields)?)?, key))
}

/// What an HTTP request to cancel anything in a session says: the fields of a `signal` frame.
pub fn any_cancel_from_json(text: &[u8]) -> Result<Cancel, Refusal> {
    read::cancel(&read::Fields::parse("cancel", text)?)
}

/// `{"code","message","advice","details"}`.
pub fn refusal_to_json(refusal: &Refusal) -> String {
    write::text(&write::RefusalJson::new(refusal))
}

/// Reads what [`refusal_to_json`] wrote, as [`crate::refusal::from_error`] does.
pub fn refusal_from_json(text: &[u8]) -> Result<Refusal, Refusal> {
    read::refusal(&read::Fields::parse("error", text)?)
}

/// RFC 3339 in UTC with milliseconds; what lies after the year 9999 is cut to its end.
pub fn time_to_json(time: Timestamp) -> String {
    write::Rfc3339(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::event::{
        Author, Body, Codec, Data, PartKind, ParticipantKind, RunStamp, Visibility,
    };
    use everwire_core::position::{Offset, RunEpoch, Seq};
    use everwire_core::{Code, Details};

    fn event(body: Body) -> Event {
        Event {
            offset: Offset::new(7).unwrap(),
            time: Timestamp(1_700_000_000_042),
            run: Some(RunStamp {
                run: "r1".parse().unwrap(),
                run_epoch: RunEpoch(2),
                seq: Some(Seq(3)),
            }),
            author: Author {
                participant: "bot".parse().unwrap(),
                kind: ParticipantKind::Agent,
            },
            parent: Some("m0".parse().unwrap()),
            visibility: Visibility::Operators,
            format: "my/1".into(),
            codec: Codec::Sealed,
            body,
            raw: None,
        }
    }

    fn code(text: &str) -> (Code, String) {
        let refusal = draft_from_json(text.as_bytes()).unwrap_err();
        let (field, _) = refusal.message.split_once(": ").unwrap_or_default();
        (refusal.code, field.to_owned())
    }

    #[test]
    fn events_look_as_documented() {
        let delta = event(Body::PartDelta {
            message: "m1".parse().unwrap(),
            part: "p1".parse().unwrap(),
            position: 5,
            text: "hé\"".into(),
        });
        let text = concat!(
            r#"{"offset":7,"time":"2023-11-14T22:13:20.042Z","kind":"part.delta","run":"r1","#,
            r#""run_epoch":2,"seq":3,"author":{"participant":"bot","kind":"agent"},"#,
            r#""parent":"m0","visibility":"operators","format":"my/1","codec":"sealed","#,
            r#""body":{"message":"m1","part":"p1","position":5,"text":"hé\""}}"#
        );
        assert_eq!(event_to_json(&delta), text);
        assert_eq!(event_from_json(text.as_bytes()), Ok(delta));
    }

    #[test]
    fn data_and_raw_stand_in_the_body() {
        let mut start = event(Body::PartStart {
            message: "m1".parse().unwrap(),
            part: "p1".parse().unwrap(),
            kind: PartKind::ToolCall,
            name: Some("search".into()),
            data: Some(Data::Json("{\"a\": [1,\n2]}".into())),
        });
        start.raw = Some(everwire_core::event::Raw {
            format: "openai-chat".into(),
            bytes: bytes::Bytes::from_static(b"\xff\x00"),
        });
        let json = event_to_json(&start);
        let body = concat!(
            r#""body":{"message":"m1","part":"p1","part_kind":"tool_call","name":"search","#,
            "\"data\":{\"a\": [1,\n2]},",
            r#""raw":{"format":"openai-chat","bytes":"/wA="}}}"#
        );
        assert!(json.ends_with(body), "{json}");
        assert_eq!(event_from_json(json.as_bytes()), Ok(start));
    }

    #[test]
    fn null_is_data_but_no_value_of_any_other_field() {
        let app = |data: Option<Data>| {
            let name = "x".into();
            Draft::new(Body::App { name, data })
        };
        let draft = draft_from_json(br#"{"kind":"app","body":{"name":"x","data":null}}"#).unwrap();
        assert_eq!(draft, app(Some(Data::Json("null".into()))));
        assert_eq!(
            draft_to_json(&draft),
            r#"{"kind":"app","visibility":"all","codec":"plain","body":{"name":"x","data":null}}"#
        );
        let bytes = br#"{"kind":"app","body":{"name":"x","data_base64":"/wA="}}"#;
        let binary = Data::Binary(bytes::Bytes::from_static(b"\xff\x00"));
        assert_eq!(draft_from_json(bytes), Ok(app(Some(binary))));
        let null = r#"{"kind":"app","parent":null,"body":{"name":"x"}}"#;
        assert_eq!(code(null), (Code::Malformed, "parent".into()));
    }

    #[test]
    fn unknown_fields_are_ignored_and_wrong_ones_named() {
        let good = r#"{"kind":"app","new":{"x":[]},"body":{"name":"x","newer":1}}"#;
        assert!(draft_from_json(good.as_bytes()).is_ok());
        for (field, text) in [
            ("event", ""),
            ("event", "[]"),
            ("event", "{\"kind\":\"app\"} x"),
            ("kind", "{}"),
            ("kind", r#"{"kind":"secret"}"#),
            ("kind", r#"{"kind":7}"#),
            ("body", r#"{"kind":"app","body":[]}"#),
            ("body.name", r#"{"kind":"app"}"#),
            ("body.name", r#"{"kind":"app","body":{"name":7}}"#),
            (
                "body.data",
                r#"{"kind":"app","body":{"name":"x","data":1,"data_base64":""}}"#,
            ),
            (
                "body.data_base64",
                r#"{"kind":"app","body":{"name":"x","data_base64":"/w"}}"#,
            ),
            (
                "body.raw",
                r#"{"kind":"app","body":{"name":"x","raw":"secret"}}"#,
            ),
            (
                "body.raw.bytes",
                r#"{"kind":"app","body":{"name":"x","raw":{"format":"f"}}}"#,
            ),
            (
                "visibility",
                r#"{"kind":"app","visibility":"secret","body":{"name":"x"}}"#,
            ),
            (
                "body.input",
                r#"{"kind":"input","body":{"input":"a secret","text":""}}"#,
            ),
            (
                "body.text",
                r#"{"kind":"input","body":{"input":"i","text":"\ud800"}}"#,
            ),
        ] {
            assert_eq!(code(text), (Code::Malformed, field.to_owned()), "{text}");
            let refusal = draft_from_json(text.as_bytes()).unwrap_err();
            assert!(!refusal.message.contains("secret"), "{refusal}");
        }
    }

    #[test]
    fn nesting_is_bounded_everywhere() {
        let nest = |depth| "[".repeat(depth) + &"]".repeat(depth);
        let app = |field: &str, depth| {
            let deep = nest(depth);
            format!(r#"{{"kind":"app","body":{{"name":"x","{field}":{deep}}}}}"#)
        };
        assert!(draft_from_json(app("data", 100).as_bytes()).is_ok());
        assert_eq!(
            code(&app("data", 101)),
            (Code::Malformed, "body.data".into())
        );
        // An ignored field is skipped without recursion.
        assert!(draft_from_json(app("other", 50_000).as_bytes()).is_ok());
        assert!(draft_from_json(nest(50_000).as_bytes()).is_err());
    }

    #[test]
    fn a_draft_is_checked_for_its_size() {
        let text = "x".repeat(65 << 10);
        let json = format!(r#"{{"kind":"input","body":{{"input":"i","text":"{text}"}}}}"#);
        assert_eq!(
            draft_from_json(json.as_bytes()).unwrap_err().code,
            Code::TooLarge
        );
    }

    #[test]
    fn refusals_look_as_documented() {
        let refusal = Refusal::new(Code::Denied, "no");
        let text = r#"{"code":"DENIED","message":"no","advice":"stop","details":{}}"#;
        assert_eq!(refusal_to_json(&refusal), text);
        assert_eq!(refusal_from_json(text.as_bytes()), Ok(refusal));
        let details = Details {
            state: Some("failed"),
            offset: Offset::new(9),
            by: Some("ann".parse().unwrap()),
            session_epoch: Some("1-17".parse().unwrap()),
            ..Details::default()
        };
        let refusal = Refusal::with(Code::RunEnded, "over", details);
        let json = refusal_to_json(&refusal);
        let details = r#"{"state":"failed","offset":9,"by":"ann","session_epoch":"1-17"}}"#;
        assert!(json.ends_with(details), "{json}");
        assert_eq!(refusal_from_json(json.as_bytes()), Ok(refusal));
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(time_to_json(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        let end = "9999-12-31T23:59:59.999Z";
        assert_eq!(time_to_json(Timestamp(crate::field::TIME_MS_MAX)), end);
        assert_eq!(time_to_json(Timestamp(u64::MAX)), end);
    }

    #[test]
    fn text_that_is_no_json_after_all_does_not_break_its_frame() {
        let body = Body::App {
            name: "x".into(),
            data: Some(Data::Json("}{".into())),
        };
        assert!(event_to_json(&event(body)).ends_with(r#""data":"}{"}}"#));
    }
}
