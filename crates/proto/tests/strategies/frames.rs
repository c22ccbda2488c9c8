//! Any frame of the edge.

use everwire_core::command::SignalOutcome;
use everwire_proto::frame::{AttachAnswer, ClientFrame, Covered, ServerFrame};
use everwire_proto::token::Bearer;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::signals::pressed;
use super::{
    cursor, event, name, offset, participant, posted, refusal, run_state, session_epoch, time,
};

fn bearer() -> impl Strategy<Value = Bearer> {
    any::<String>().prop_map(Bearer::new)
}

pub(crate) fn client_frame() -> impl Strategy<Value = ClientFrame> {
    let publish = (name(), posted(), name());
    prop_oneof![
        bearer().prop_map(|token| ClientFrame::Auth { token }),
        (name(), option::of(cursor()), any::<bool>()).prop_map(|(session, cursor, create)| {
            ClientFrame::Attach {
                session,
                cursor,
                create,
            }
        }),
        name().prop_map(|session| ClientFrame::Detach { session }),
        publish.prop_map(|(session, draft, key)| ClientFrame::Publish {
            session,
            draft,
            key: Some(key)
        }),
        (name(), pressed(), name()).prop_map(|(session, pressed, key)| ClientFrame::Signal {
            session,
            pressed,
            key
        }),
        bearer().prop_map(|token| ClientFrame::Refresh { token }),
        Just(ClientFrame::Ping),
    ]
}

fn answer() -> impl Strategy<Value = AttachAnswer> {
    let place = || (session_epoch(), offset(), offset());
    prop_oneof![
        place().prop_map(|(session_epoch, from, tail)| AttachAnswer::Resumed {
            session_epoch,
            from,
            tail
        }),
        place().prop_map(|(session_epoch, from, tail)| AttachAnswer::Gone {
            session_epoch,
            from,
            tail
        }),
        Just(AttachAnswer::NotFound),
    ]
}

fn outcome() -> impl Strategy<Value = SignalOutcome> {
    prop_oneof![
        offset().prop_map(|offset| SignalOutcome::Applied { offset }),
        (run_state(), offset())
            .prop_map(|(state, offset)| SignalOutcome::AlreadyTerminal { state, offset }),
        Just(SignalOutcome::Denied),
        Just(SignalOutcome::UnknownRun),
    ]
}

fn covered() -> impl Strategy<Value = Covered> {
    let range = (offset(), offset(), offset(), any::<u32>());
    range.prop_map(|(from, to, tail, leader_seen_ms)| Covered {
        from,
        to,
        tail,
        leader_seen_ms,
    })
}

pub(crate) fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let welcome = (participant(), any::<(String, u32, u32)>(), time());
    let ack = (name(), session_epoch(), offset(), any::<bool>());
    let cancelled = (
        name(),
        option::of(session_epoch()),
        outcome(),
        any::<bool>(),
    );
    prop_oneof![
        welcome.prop_map(|(participant, (edge, heartbeat_ms, lost_after_ms), end)| {
            ServerFrame::Welcome {
                participant,
                edge,
                heartbeat_ms,
                lost_after_ms,
                token_expires: end,
            }
        }),
        (name(), answer()).prop_map(|(session, answer)| ServerFrame::Attached { session, answer }),
        (name(), covered(), vec(event(), 0..4)).prop_map(|(session, range, events)| {
            ServerFrame::Events {
                session,
                range,
                events,
            }
        }),
        ack.prop_map(
            |(session, session_epoch, offset, duplicate)| ServerFrame::Ack {
                session,
                session_epoch,
                offset,
                duplicate
            }
        ),
        cancelled.prop_map(|(session, session_epoch, outcome, duplicate)| {
            ServerFrame::Outcome {
                session,
                session_epoch,
                outcome,
                duplicate,
            }
        }),
        time().prop_map(|token_expires| ServerFrame::Expiring { token_expires }),
        any::<u32>().prop_map(|within_ms| ServerFrame::Moving { within_ms }),
        Just(ServerFrame::Pong),
        (option::of(name()), refusal())
            .prop_map(|(session, refusal)| ServerFrame::Error { session, refusal }),
        refusal().prop_map(|refusal| ServerFrame::Bye { refusal }),
    ]
}
