//! Questions of readers and their answers as messages of `everwire.internal.v1`, both ways.

use std::sync::Arc;

use everwire_core::event::SuspendReason;
use everwire_core::row::{Frozen, RunState};
use everwire_core::{
    Event, NodeId, Offset, Refusal, RunEpoch, RunId, Seq, SessionEpoch, SessionName, ShardId,
    Timestamp,
};
use everwire_proto::internal_v1 as wire;
use everwire_proto::internal_v1::read_request::Question;
use everwire_proto::{control, field, storage};
use everwire_rules::resolve::Answer;

use super::strange;
use crate::handle::AttachRequest;
use crate::reads::{Listed, Page, RunInfo, SessionInfo};

/// What cannot be read is our mistake, whatever field it stands in.
fn read<T>(read: Result<T, Refusal>) -> Result<T, Refusal> {
    read.map_err(|refusal| {
        tracing::error!(%refusal.message, "another node's answer cannot be read");
        strange()
    })
}

pub(super) fn offset(number: u64) -> Result<Offset, Refusal> {
    read(field::offset("offset", number))
}

fn epoch(text: &str) -> Result<SessionEpoch, Refusal> {
    read(field::name("session_epoch", text))
}

fn text<T: ToString>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

pub(super) fn follow(request: &AttachRequest) -> Question {
    let cursor = request.cursor;
    Question::Follow(wire::FollowQuestion {
        session: request.session.to_string(),
        offset: cursor.map(|cursor| cursor.offset.get()),
        session_epoch: text(cursor.and_then(|cursor| cursor.session_epoch).as_ref()),
        at_least: request.at_least.unwrap_or(Offset::ZERO).get(),
    })
}

pub(super) fn page(
    session: &SessionName,
    epoch: Option<SessionEpoch>,
    from: Offset,
    limit: usize,
) -> Question {
    Question::Page(wire::PageQuestion {
        session: session.to_string(),
        session_epoch: text(epoch.as_ref()),
        from: from.get(),
        limit: wide(limit),
    })
}

pub(super) fn list(prefix: &str, after: Option<&SessionName>, limit: usize) -> Question {
    Question::List(wire::ListQuestion {
        prefix: prefix.to_owned(),
        after: text(after),
        limit: wide(limit),
    })
}

pub(super) fn run(session: &SessionName, run: &RunId) -> wire::RunQuestion {
    wire::RunQuestion {
        session: session.to_string(),
        run: run.to_string(),
    }
}

pub(super) fn place_to(answer: Answer) -> wire::FollowAnswer {
    let mut followed = wire::FollowAnswer::default();
    match answer {
        Answer::NotFound | Answer::Wait => followed.not_found = true,
        Answer::Gone {
            session_epoch,
            earliest,
            tail,
            ahead,
        } => {
            followed.gone = Some(wire::ReadPlace {
                session_epoch: session_epoch.to_string(),
                from: earliest.get(),
                tail: tail.get(),
                ahead,
            });
        },
        Answer::Resumed {
            session_epoch,
            from,
            tail,
        } => {
            followed.resumed = Some(wire::ReadPlace {
                session_epoch: session_epoch.to_string(),
                from: from.get(),
                tail: tail.get(),
                ahead: false,
            });
        },
    }
    followed
}

pub(super) fn place_from(answer: wire::FollowAnswer) -> Result<Answer, Refusal> {
    match (answer.not_found, answer.gone, answer.resumed) {
        (true, None, None) => Ok(Answer::NotFound),
        (false, Some(place), None) => Ok(Answer::Gone {
            session_epoch: epoch(&place.session_epoch)?,
            earliest: offset(place.from)?,
            tail: offset(place.tail)?,
            ahead: place.ahead,
        }),
        (false, None, Some(place)) => Ok(Answer::Resumed {
            session_epoch: epoch(&place.session_epoch)?,
            from: offset(place.from)?,
            tail: offset(place.tail)?,
        }),
        _ => Err(strange()),
    }
}

pub(super) fn stretch_to(events: &[Arc<Event>], tail: Offset) -> wire::Stretch {
    let encoded = events.iter().map(|event| storage::encode_event(event));
    wire::Stretch {
        tail: tail.get(),
        events: encoded.map(Into::into).collect(),
    }
}

pub(super) fn stretch_from(stretch: wire::Stretch) -> Result<(Vec<Arc<Event>>, Offset), Refusal> {
    let decoded = stretch.events.iter().map(|bytes| {
        storage::decode_event(bytes).map(Arc::new).map_err(|error| {
            tracing::error!(%error, "another node's event cannot be read");
            strange()
        })
    });
    Ok((decoded.collect::<Result<_, _>>()?, offset(stretch.tail)?))
}

pub(super) fn page_to(page: &Page) -> wire::PageAnswer {
    wire::PageAnswer {
        session_epoch: page.session_epoch.to_string(),
        events: Some(stretch_to(&page.events, page.tail)),
    }
}

pub(super) fn page_from(answer: wire::PageAnswer) -> Result<Page, Refusal> {
    let (events, tail) = stretch_from(answer.events.unwrap_or_default())?;
    Ok(Page {
        session_epoch: epoch(&answer.session_epoch)?,
        events,
        tail,
    })
}

pub(super) fn session_to(info: SessionInfo) -> wire::SessionStand {
    let (frozen_by, frozen_ms) = info
        .frozen
        .map_or_else(Default::default, |frozen| (frozen.command, frozen.time.0));
    wire::SessionStand {
        leader: info.leader.map_or(0, |leader| leader.0),
        session_epoch: info.session_epoch.to_string(),
        tail: info.tail.get(),
        trimmed: info.trimmed.get(),
        bytes: info.bytes,
        created_ms: info.created.0,
        last_ms: info.last_time.0,
        attachments: info.attachments,
        open_runs: info.open_runs.iter().map(ToString::to_string).collect(),
        frozen_by,
        frozen_ms,
    }
}

pub(super) fn session_from(
    shard: ShardId,
    stand: wire::SessionStand,
) -> Result<SessionInfo, Refusal> {
    let runs = stand.open_runs.iter();
    let open_runs = runs.map(|run| read(field::name("run", run)));
    Ok(SessionInfo {
        shard,
        leader: (stand.leader != 0).then_some(NodeId(stand.leader)),
        session_epoch: epoch(&stand.session_epoch)?,
        tail: offset(stand.tail)?,
        trimmed: offset(stand.trimmed)?,
        bytes: stand.bytes,
        created: Timestamp(stand.created_ms),
        last_time: Timestamp(stand.last_ms),
        attachments: stand.attachments,
        open_runs: open_runs.collect::<Result<_, _>>()?,
        frozen: (!stand.frozen_by.is_empty()).then_some(Frozen {
            time: Timestamp(stand.frozen_ms),
            command: stand.frozen_by,
        }),
    })
}

pub(super) fn sessions_to(listed: Vec<Listed>) -> wire::SessionsAnswer {
    let sessions = listed.into_iter().map(|listed| wire::ListedSession {
        session: listed.session.to_string(),
        tail: listed.tail.get(),
        last_ms: listed.last_time.0,
    });
    wire::SessionsAnswer {
        sessions: sessions.collect(),
    }
}

pub(super) fn sessions_from(
    shard: ShardId,
    answer: wire::SessionsAnswer,
) -> Result<Vec<Listed>, Refusal> {
    let listed = answer.sessions.into_iter().map(|listed| {
        Ok(Listed {
            session: read(field::name("session", &listed.session))?,
            shard,
            tail: offset(listed.tail)?,
            last_time: Timestamp(listed.last_ms),
        })
    });
    listed.collect()
}

pub(super) fn run_to(info: &RunInfo) -> wire::RunStand {
    let author = info.input.as_ref().and_then(|input| input.author.as_ref());
    wire::RunStand {
        session_epoch: info.session_epoch.to_string(),
        state: info.state.as_str().to_owned(),
        run_epoch: info.run_epoch.0,
        writer: info.writer.to_string(),
        input: text(info.input.as_ref().map(|input| &input.input)),
        input_by: text(author),
        parent: text(info.parent.as_ref()),
        lease_ms: info.lease_ms,
        epilogue: info.epilogue.map_or(0, |epoch| epoch.0),
        started: info.started.get(),
        ended: info.ended.map(Offset::get),
        last_seq: info.last_seq.0,
        last_offset: info.last_offset.get(),
        suspended: info
            .suspended
            .map_or_else(String::new, |reason| reason.as_str().to_owned()),
        step: text(info.step.as_ref()),
    }
}

pub(super) fn run_from(run: &RunId, stand: wire::RunStand) -> Result<RunInfo, Refusal> {
    Ok(RunInfo {
        session_epoch: epoch(&stand.session_epoch)?,
        run: run.clone(),
        state: RunState::parse(&stand.state).ok_or_else(strange)?,
        run_epoch: RunEpoch(stand.run_epoch),
        writer: read(field::name("writer", &stand.writer))?,
        input: read(control::input_ref(&stand.input, &stand.input_by))?,
        parent: read(field::optional_name("parent", &stand.parent))?,
        lease_ms: stand.lease_ms,
        epilogue: (stand.epilogue != 0).then_some(RunEpoch(stand.epilogue)),
        started: offset(stand.started)?,
        ended: stand.ended.map(offset).transpose()?,
        last_seq: Seq(stand.last_seq),
        last_offset: offset(stand.last_offset)?,
        suspended: match stand.suspended.as_str() {
            "" => None,
            word => Some(SuspendReason::parse(word).ok_or_else(strange)?),
        },
        step: read(field::optional_name("step", &stand.step))?,
    })
}
