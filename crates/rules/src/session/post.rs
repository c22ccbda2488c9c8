//! Inputs of people and application events outside runs.

use everwire_core::event::{Body, Draft};
use everwire_core::limits::PEOPLE_PER_DAY_MAX;
use everwire_core::row::{InputRow, Row, RowKey};
use everwire_core::{Code, Details, Key, Outcome, Refusal, Timestamp};

use super::Stop;
use super::keys::{Purpose, reused};
use super::lookup::{Caller, Session};
use super::overlay::Step;

/// Appends one input or `app` event.
pub(super) fn post(
    step: &mut Step<'_>,
    caller: Caller,
    draft: Draft,
    key: Option<Key>,
    body_hash: u128,
) -> Result<Outcome, Stop> {
    let input = match &draft.body {
        Body::Input { input, .. } if key.is_some() => Some(input.clone()),
        Body::Input { .. } => {
            return Err(Refusal::new(Code::Malformed, "an input needs a key").into());
        },
        Body::App { .. } => None,
        _ => {
            let message = format!("{} belongs into a run", draft.body.kind().as_str());
            return Err(Refusal::new(Code::Malformed, message).into());
        },
    };
    let (mut session, _) = Session::ensured(step, caller)?;
    let session_epoch = session.epoch();
    let purpose = Purpose::Post(body_hash);
    if let Some(key) = &key
        && let Some(row) = session.recall(key, &purpose)?
    {
        return Ok(Outcome::Posted {
            session_epoch,
            offset: row.offset,
            duplicate: true,
        });
    }
    if let Some(input) = input {
        let author = session.actor.participant.clone();
        let input_key = RowKey::Input(session.key, author, input);
        if let Some(row) = session.step.input(&input_key)? {
            let message = "this input id was used before, under another key";
            return Err(reused(row.offset, message).into());
        }
        session.count_people()?;
        let offset = session.head.tail.next();
        let row = InputRow { offset, run: None };
        session.step.put(input_key, Row::Input(row));
    }
    let offset = session.append(None, draft);
    if let Some(key) = key {
        session.remember(key, &purpose, offset, None)?;
    }
    session.save();
    Ok(Outcome::Posted {
        session_epoch,
        offset,
        duplicate: false,
    })
}

impl Session<'_, '_> {
    /// Counts an input or signal against the day of command time.
    pub(super) fn count_people(&mut self) -> Result<(), Refusal> {
        let today = day(self.step.time);
        if self.head.day != today {
            self.head.day = today;
            self.head.people_today = 0;
        }
        if self.head.people_today >= PEOPLE_PER_DAY_MAX {
            let details = Details {
                limit: Some(u64::from(PEOPLE_PER_DAY_MAX)),
                ..Details::default()
            };
            let message = "the session has taken all inputs and signals of this day";
            return Err(Refusal::with(Code::Quota, message, details));
        }
        self.head.people_today += 1;
        Ok(())
    }
}

/// Days since 1970. Saturates in the year 11,000,000.
fn day(time: Timestamp) -> u32 {
    u32::try_from(time.0 / (24 * 3_600 * 1_000)).unwrap_or(u32::MAX)
}
