//! What must hold in the end, whatever befell the world.

use std::sync::Arc;

use everwire_core::command::SignalOutcome;
use everwire_core::row::{Row, RowKey, SessionKey};
use everwire_core::{Body, Event, Namespace, Offset, SessionName, Slot};
use everwire_node::Store;
use everwire_promises::{History, Reader, Written};
use everwire_proto::storage::encode_event;

use crate::agent::STOPPED;
use crate::person::Seen;

/// Events of a session as a disk has them; nothing if it does not know the session.
pub fn log_of(store: &Arc<dyn Store>, session: &SessionName) -> Result<Vec<Event>, String> {
    let namespace = Namespace::parse("dev").expect("a good name");
    let slot = Slot::of(&namespace, session);
    let key = RowKey::Name(slot, namespace, session.clone());
    let row = store.row(&key).map_err(|error| error.to_string())?;
    let Some(Row::Name(row)) = row else {
        return Ok(Vec::new());
    };
    let key = SessionKey {
        slot,
        session_no: row.session_no,
    };
    let first = Offset::ZERO.next();
    let events = store.events(key, first, usize::MAX, usize::MAX);
    events.map_err(|error| error.to_string())
}

/// Every way in which the end contradicts what somebody was told.
pub fn violations(logs: &[(String, Vec<Event>)], written: &[Written], seen: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    let Some((first, log)) = logs.first() else {
        return vec!["there is no log".to_owned()];
    };
    let bytes = |log: &[Event]| -> Vec<Vec<u8>> { log.iter().map(encode_event).collect() };
    let expected = bytes(log);
    for (machine, other) in logs.iter().skip(1) {
        if bytes(other) != expected {
            let (mine, others) = (log.len(), other.len());
            found.push(format!(
                "{first} has {mine} events, {machine} {others}, and not the same"
            ));
        }
    }
    let acked: Vec<_> = written.iter().flat_map(|one| one.acked.clone()).collect();
    let readers: &[Reader] = std::slice::from_ref(&seen.reader);
    let history = History {
        log,
        acked: &acked,
        readers,
    };
    found.extend(history.violations().iter().map(ToString::to_string));
    for (input, offset) in &seen.inputs {
        let at: Vec<_> = log.iter().filter(|event| says(event, input)).collect();
        let at: Vec<_> = at.iter().map(|event| event.offset).collect();
        if at != [*offset] {
            found.push(format!(
                "{input} was acked at {offset}, and stands at {at:?}"
            ));
        }
    }
    found.extend(stop(log, seen));
    found
}

fn says(event: &Event, said: &everwire_core::InputId) -> bool {
    matches!(&event.body, Body::Input { input, .. } if input == said)
}

/// A stop that was told to be applied stands in the log; what comes behind it is checked with
/// the history.
fn stop(log: &[Event], seen: &Seen) -> Option<String> {
    let signal = |event: &&Event| {
        let of_run = matches!(&event.body, Body::SignalCancel { .. });
        of_run.then_some(event.offset)
    };
    let stands: Vec<Offset> = log.iter().filter_map(|event| signal(&event)).collect();
    match &seen.stop {
        Some(SignalOutcome::Applied { offset }) if stands == [*offset] => None,
        other => Some(format!(
            "the stop of {STOPPED} is {other:?}, and stands at {stands:?}"
        )),
    }
}
