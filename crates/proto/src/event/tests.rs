//! What comes in is checked, named when it is refused, and costs what it weighs.

use super::*;
use everwire_core::Code;

fn app(data: Option<v1::Data>) -> v1::Draft {
    let name = "x".to_owned();
    v1::Draft {
        body: Some(Wire::App(v1::App { name, data })),
        ..v1::Draft::default()
    }
}

fn refused(draft: v1::Draft) -> (Code, String) {
    let refusal = Draft::try_from(draft).unwrap_err();
    let (name, _) = refusal.message.split_once(": ").unwrap();
    (refusal.code, name.to_owned())
}

#[test]
fn unspecified_words_mean_their_default() {
    let draft = Draft::try_from(app(None)).unwrap();
    assert_eq!(
        draft,
        Draft::new(Body::App {
            name: "x".into(),
            data: None
        })
    );
}

#[test]
fn refused_fields_are_named() {
    let malformed = |field: &str| (Code::Malformed, field.to_owned());
    assert_eq!(refused(v1::Draft::default()), malformed("body"));
    let neither = v1::Data { data: None };
    assert_eq!(refused(app(Some(neither))), malformed("body.data"));
    let json = v1::data::Data::Json("{".to_owned());
    let data = v1::Data { data: Some(json) };
    assert_eq!(refused(app(Some(data))), malformed("body.data"));
    let draft = v1::Draft {
        visibility: 7,
        ..app(None)
    };
    assert_eq!(refused(draft), malformed("visibility"));
    let start = v1::MessageStart {
        message: "m".into(),
        role: 0,
    };
    let draft = v1::Draft {
        body: Some(Wire::MessageStart(start)),
        ..v1::Draft::default()
    };
    assert_eq!(refused(draft), malformed("body.role"));
}

#[test]
fn a_drafts_position_is_dropped_and_its_size_is_checked() {
    let delta = |position, text: String| v1::Draft {
        body: Some(Wire::PartDelta(v1::PartDelta {
            message: "m".into(),
            part: "p".into(),
            position,
            text,
        })),
        ..v1::Draft::default()
    };
    let draft = Draft::try_from(delta(7, "x".into())).unwrap();
    assert!(matches!(draft.body, Body::PartDelta { position: 0, .. }));
    let refusal = Draft::try_from(delta(0, "x".repeat(300 << 10))).unwrap_err();
    assert_eq!(refusal.code, Code::TooLarge);
}

#[test]
fn only_inputs_with_a_key_and_app_events_are_posted() {
    let key = Key::parse("k").unwrap();
    let input = Draft::new(Body::Input {
        input: "i".parse().unwrap(),
        text: String::new(),
        data: None,
    });
    assert_eq!(check_posted(&input, Some(&key)), Ok(()));
    assert!(check_posted(&input, None).is_err());
    let app = Draft::try_from(app(None)).unwrap();
    assert_eq!(check_posted(&app, None), Ok(()));
    assert!(check_posted(&Draft::new(Body::RunCompleted), Some(&key)).is_err());
}

#[test]
fn a_draft_costs_the_same_before_and_after_it_is_read() {
    let data = || Some(Data::Json("[1]".into()));
    let (message, part) = ("m".parse().unwrap(), "p".parse().unwrap());
    let bodies = [
        Body::RunFailed { reason: "r".into() },
        Body::PartEnd {
            message,
            part,
            data: data(),
        },
        Body::Input {
            input: "i".parse().unwrap(),
            text: "four".into(),
            data: data(),
        },
        Body::App {
            name: "x".into(),
            data: Some(Data::Binary(vec![0; 9].into())),
        },
        Body::RunCompleted,
    ];
    for body in bodies {
        let draft = Draft::new(body).with_raw("f", vec![0; 5]);
        assert_eq!(payload_bytes(&(&draft).into()), draft.payload_bytes());
    }
}
