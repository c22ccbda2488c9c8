//! Whatever is written is read back the same, and whatever is read never panics.

mod strategies;

use everwire_core::event::{Draft, Event};
use everwire_core::position::Cursor;
use everwire_proto::event::{events_from_wire, events_to_wire};
use everwire_proto::frame::{self, ServerFrame, Subprotocol};
use everwire_proto::hash::body_hash;
use everwire_proto::{internal, internal_v1, json, refusal, storage, storage_v1, v1};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use strategies::commands::{batch, command, outcome, row};
use strategies::frames::{client_frame, server_frame};
use strategies::topology::{change, topology};
use strategies::{cursor, draft, event};

proptest! {
    #[test]
    fn events_come_back_from_every_form(event in event()) {
        prop_assert_eq!(Event::try_from(v1::Event::from(&event)), Ok(event.clone()));
        let text = json::event_to_json(&event);
        prop_assert_eq!(json::event_from_json(text.as_bytes()), Ok(event.clone()));
        let stored = storage::encode_event(&event);
        prop_assert_eq!(storage::decode_event(&stored), Ok(event.clone()));
        prop_assert_eq!(storage::encode_event(&event), stored);
    }

    #[test]
    fn drafts_come_back_from_every_form(draft in draft()) {
        prop_assert_eq!(Draft::try_from(v1::Draft::from(&draft)), Ok(draft.clone()));
        let text = json::draft_to_json(&draft);
        let read = json::draft_from_json(text.as_bytes());
        prop_assert_eq!(read.as_ref().map(body_hash), Ok(body_hash(&draft)));
        prop_assert_eq!(read, Ok(draft));
    }

    #[test]
    fn cursors_come_back(cursor in cursor()) {
        prop_assert_eq!(Cursor::try_from(v1::Cursor::from(cursor)), Ok(cursor));
    }

    #[test]
    fn batches_come_back(batch in batch()) {
        let stored = storage::encode_batch(&batch);
        let read = storage::decode_batch(&stored);
        prop_assert_eq!(read.as_ref().map(storage::encode_batch), Ok(stored));
        prop_assert_eq!(read, Ok(batch));
    }

    #[test]
    fn rows_come_back(row in row()) {
        let stored = storage::encode_row(&row);
        let read = storage::decode_row(&stored);
        prop_assert_eq!(read.as_ref().map(storage::encode_row), Ok(stored));
        prop_assert_eq!(read, Ok(row));
    }

    #[test]
    fn topologies_and_their_changes_come_back(topology in topology(), change in change()) {
        let stored = storage::encode_topology(&topology);
        let read = storage::decode_topology(&stored);
        prop_assert_eq!(read.as_ref().map(storage::encode_topology), Ok(stored));
        prop_assert_eq!(read, Ok(topology));
        let stored = storage::encode_change(&change);
        let read = storage::decode_change(&stored);
        prop_assert_eq!(read.as_ref().map(storage::encode_change), Ok(stored));
        prop_assert_eq!(read, Ok(change));
    }

    #[test]
    fn forwarded_commands_and_their_outcomes_come_back(command in command(), outcome in outcome()) {
        let sent = internal::command_to(&command).encode_to_vec();
        let sent = storage_v1::Command::decode(&sent[..]).unwrap();
        prop_assert_eq!(internal::command_from(sent), Ok(command));
        let sent = internal::outcome_to(&outcome).encode_to_vec();
        let sent = internal_v1::Outcome::decode(&sent[..]).unwrap();
        prop_assert_eq!(internal::outcome_from(sent), Ok(outcome));
    }

    #[test]
    fn refusals_come_back_from_every_form(refused in strategies::refusal()) {
        let wire = v1::Error::from(&refused);
        prop_assert_eq!(&refusal::from_error(wire), &refused);
        let status = refusal::to_status(&refused);
        prop_assert_eq!(&refusal::from_status(&status), &refused);
        let text = json::refusal_to_json(&refused);
        prop_assert_eq!(json::refusal_from_json(text.as_bytes()), Ok(refused));
    }

    #[test]
    fn client_frames_come_back(id in ".{0,40}", asked in client_frame()) {
        for subprotocol in Subprotocol::ALL {
            let bytes = frame::encode_client(subprotocol, &id, &asked);
            let read = frame::decode_client(subprotocol, &bytes);
            prop_assert_eq!(read, Ok((id.clone(), asked.clone())));
        }
    }

    #[test]
    fn server_frames_come_back(id in ".{0,40}", told in server_frame()) {
        for subprotocol in Subprotocol::ALL {
            let bytes = frame::encode_server(subprotocol, &id, &told);
            let read = frame::decode_server(subprotocol, &bytes);
            prop_assert_eq!(read, Ok(Some((id.clone(), told.clone()))));
            if let ServerFrame::Events { session, range, events } = &told {
                let shared = frame::encode_events(subprotocol, session, *range, events);
                prop_assert_eq!(shared, frame::encode_server(subprotocol, "", &told));
                let wire = events_to_wire(*range, events);
                prop_assert_eq!(events_from_wire(wire), Ok((*range, events.clone())));
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
        read_all(&[&[storage::FORMAT], &bytes[..]].concat());
    }

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        read_all(text.as_bytes());
    }

    #[test]
    fn damaged_values_are_read_or_refused(
        told in server_frame(),
        asked in client_frame(),
        batch in batch(),
        row in row(),
        event in event(),
        at in any::<prop::sample::Index>(),
        damage in any::<u8>(),
    ) {
        let mut values: Vec<Vec<u8>> = vec![
            storage::encode_batch(&batch).into(),
            storage::encode_row(&row),
            storage::encode_event(&event),
            json::event_to_json(&event).into_bytes(),
        ];
        for subprotocol in Subprotocol::ALL {
            values.push(frame::encode_server(subprotocol, "1", &told).into());
            values.push(frame::encode_client(subprotocol, "1", &asked).into());
        }
        for value in values {
            read_damaged(value, at, damage);
        }
    }

    #[test]
    fn damaged_messages_of_nodes_are_read_or_refused(
        topology in topology(),
        change in change(),
        outcome in outcome(),
        at in any::<prop::sample::Index>(),
        damage in any::<u8>(),
    ) {
        let values: [Vec<u8>; 3] = [
            storage::encode_topology(&topology).into(),
            storage::encode_change(&change).into(),
            internal::outcome_to(&outcome).encode_to_vec(),
        ];
        for value in values {
            read_damaged(value, at, damage);
        }
    }
}

fn read_damaged(mut value: Vec<u8>, at: prop::sample::Index, damage: u8) {
    let place = at.index(value.len());
    read_all(value.split_at(place).0);
    if let Some(byte) = value.get_mut(place) {
        *byte ^= damage;
    }
    read_all(&value);
}

/// Every decoder; only a panic is wrong. Whatever one of them takes, its encoder can write.
fn read_all(bytes: &[u8]) {
    for subprotocol in Subprotocol::ALL {
        if let Ok((id, asked)) = frame::decode_client(subprotocol, bytes) {
            frame::encode_client(subprotocol, &id, &asked);
        }
        if let Ok(Some((id, told))) = frame::decode_server(subprotocol, bytes) {
            frame::encode_server(subprotocol, &id, &told);
        }
    }
    if let Ok(event) = json::event_from_json(bytes) {
        json::event_to_json(&event);
    }
    let _unread = json::draft_from_json(bytes);
    let _unread = json::refusal_from_json(bytes);
    if let Ok(event) = storage::decode_event(bytes) {
        json::event_to_json(&event);
        storage::encode_event(&event);
    }
    if let Ok(batch) = storage::decode_batch(bytes) {
        storage::encode_batch(&batch);
    }
    if let Ok(row) = storage::decode_row(bytes) {
        storage::encode_row(&row);
    }
    if let Ok(topology) = storage::decode_topology(bytes) {
        storage::encode_topology(&topology);
    }
    if let Ok(change) = storage::decode_change(bytes) {
        storage::encode_change(&change);
    }
    if let Ok(sent) = internal_v1::Outcome::decode(bytes)
        && let Ok(outcome) = internal::outcome_from(sent)
    {
        internal::outcome_to(&outcome);
    }
    if let Ok(sent) = storage_v1::Command::decode(bytes)
        && let Ok(command) = internal::command_from(sent)
    {
        internal::command_to(&command);
    }
    let _unread = storage::decode_log_entry(bytes);
    let _unread = storage::decode_applied(bytes);
    let _unread = storage::decode_membership(bytes);
    let _unread = storage::decode_log_position(bytes);
    let _unread = storage::decode_vote(bytes);
    let _unread = storage::decode_identity(bytes);
    let _unread = storage::decode_watermark(bytes);
    let _unread = storage::decode_snapshot_head(bytes);
    let _unread = storage::decode_snapshot_chunk(bytes);
    let status = tonic::Status::with_details(
        tonic::Code::Unknown,
        "",
        bytes::Bytes::copy_from_slice(bytes),
    );
    let _refusal = refusal::from_status(&status);
}
