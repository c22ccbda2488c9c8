//! From wire messages to the words of `core` and the answers of this crate.
//!
//! Comes in: what a server said. Goes out: checked values; whatever does not fit is MALFORMED,
//! for a server is not trusted blindly either.

use std::time::Duration;

use everwire_core::command::SignalOutcome;
use everwire_core::event::SuspendReason;
use everwire_core::row::{Frozen, RunState};
use everwire_core::{Event, NodeId, Offset, Refusal, Seq, SessionEpoch, ShardId, Timestamp};
use everwire_proto::{control, field, v1};

use crate::answers::{
    AckRange, ClusterStatus, Created, ListedSession, NodeInfo, NodeMeters, Page, Posted, RunGrant,
    RunInfo, SessionInfo, SessionPage, ShardInfo, Signalled,
};

/// A session epoch that must be there.
pub(crate) fn session_epoch(text: &str) -> Result<SessionEpoch, Refusal> {
    field::name("session_epoch", text)
}

pub(crate) fn created(answer: &v1::CreateResponse) -> Result<Created, Refusal> {
    Ok(Created {
        session_epoch: session_epoch(&answer.session_epoch)?,
        tail: field::offset("tail", answer.tail)?,
        created: answer.created,
    })
}

pub(crate) fn session_info(answer: v1::ShowResponse) -> Result<SessionInfo, Refusal> {
    let run = |text: &String| field::name("open_runs", text);
    Ok(SessionInfo {
        session: field::name("session", &answer.session)?,
        session_epoch: session_epoch(&answer.session_epoch)?,
        shard: ShardId(answer.shard),
        tail: field::offset("tail", answer.tail)?,
        trimmed: field::offset("trimmed", answer.trimmed)?,
        bytes: answer.bytes,
        created: Timestamp(answer.created_ms),
        last: Timestamp(answer.last_ms),
        attachments: answer.attachments,
        open_runs: answer.open_runs.iter().map(run).collect::<Result<_, _>>()?,
        leader: some(answer.leader),
        frozen: some(answer.frozen_by).map(|command| Frozen {
            time: Timestamp(answer.frozen_ms),
            command,
        }),
    })
}

pub(crate) fn session_page(answer: v1::ListResponse) -> Result<SessionPage, Refusal> {
    let listed = |session: v1::ListedSession| {
        Ok(ListedSession {
            session: field::name("session", &session.session)?,
            shard: ShardId(session.shard),
            tail: field::offset("tail", session.tail)?,
            last: Timestamp(session.last_ms),
        })
    };
    let sessions: Result<_, Refusal> = answer.sessions.into_iter().map(listed).collect();
    Ok(SessionPage {
        sessions: sessions?,
        next_page: some(answer.next_page_token),
    })
}

pub(crate) fn cluster_status(answer: v1::StatusResponse) -> ClusterStatus {
    let rules = |rules: u32| (rules != 0).then_some(rules);
    let node = |node: v1::NodeStatus| NodeInfo {
        id: NodeId(node.id),
        addr: node.addr,
        alive: node.alive,
        name: node.name,
        leaving: node.leaving,
        leads: node.leads,
        holds: node.holds,
        metadata_leader: node.metadata_leader,
        metadata_voter: node.metadata_voter,
        meters: node.meters.map(|meters| NodeMeters {
            disk_total: meters.disk_total,
            disk_available: meters.disk_available,
            elections: meters.elections,
            queued_bytes: meters.queued_bytes,
            syncs: meters.syncs,
            sync_p50: Duration::from_micros(meters.sync_p50_us),
            sync_p99: Duration::from_micros(meters.sync_p99_us),
        }),
        rules: rules(node.rules),
    };
    let follower = |follower: v1::FollowerStatus| (NodeId(follower.node), follower.lag);
    let shard = |shard: v1::ShardStatus| ShardInfo {
        id: ShardId(shard.id),
        leader: (shard.leader != 0).then_some(NodeId(shard.leader)),
        replicas: shard.replicas.into_iter().map(NodeId).collect(),
        term: shard.term,
        applied: shard.applied,
        committed: shard.committed,
        followers: shard.followers.into_iter().map(follower).collect(),
        rules: rules(shard.rules),
    };
    ClusterStatus {
        cluster: answer.cluster,
        version: answer.version,
        nodes: answer.nodes.into_iter().map(node).collect(),
        shards: answer.shards.into_iter().map(shard).collect(),
        metadata_rules: rules(answer.metadata_rules),
    }
}

pub(crate) fn run_info(answer: &v1::GetResponse) -> Result<RunInfo, Refusal> {
    let ended = answer.ended.map(|ended| field::offset("ended", ended));
    Ok(RunInfo {
        run: field::name("run", &answer.run)?,
        state: run_state(&answer.state)?,
        run_epoch: field::run_epoch("run_epoch", answer.run_epoch)?,
        writer: field::name("writer", &answer.writer)?,
        input: control::input_ref(&answer.input, &answer.input_by)?,
        parent: field::optional_name("parent", &answer.parent)?,
        suspended: suspend_reason(&answer.suspended)?,
        step: field::optional_name("step", &answer.step)?,
        lease: lease(answer.lease_ms),
        started: field::offset("started", answer.started)?,
        ended: ended.transpose()?,
        last_seq: Seq(answer.last_seq),
        last_offset: field::offset("last_offset", answer.last_offset)?,
    })
}

fn suspend_reason(word: &str) -> Result<Option<SuspendReason>, Refusal> {
    if word.is_empty() {
        return Ok(None);
    }
    let reason = SuspendReason::parse(word);
    let reason = reason.ok_or_else(|| field::malformed("suspended", "is not known here"));
    reason.map(Some)
}

/// A start's and a claim's answer have the same fields.
pub(crate) fn run_grant(
    epoch: &str,
    run_epoch: u32,
    offset: u64,
    lease_ms: u32,
    duplicate: bool,
) -> Result<RunGrant, Refusal> {
    Ok(RunGrant {
        session_epoch: session_epoch(epoch)?,
        run_epoch: field::run_epoch("run_epoch", run_epoch)?,
        offset: field::offset("offset", offset)?,
        lease: lease(lease_ms),
        duplicate,
    })
}

fn lease(ms: u32) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms.into()))
}

pub(crate) fn posted(answer: &v1::PostResponse) -> Result<Posted, Refusal> {
    Ok(Posted {
        session_epoch: session_epoch(&answer.session_epoch)?,
        offset: field::offset("offset", answer.offset)?,
        duplicate: answer.duplicate,
    })
}

pub(crate) fn signalled(answer: &v1::SignalResponse) -> Result<Signalled, Refusal> {
    let offset = || field::offset("offset", answer.offset.unwrap_or(0));
    let outcome = match answer.outcome.as_str() {
        "applied" => SignalOutcome::Applied { offset: offset()? },
        "already_terminal" => SignalOutcome::AlreadyTerminal {
            state: run_state(answer.state.as_deref().unwrap_or_default())?,
            offset: offset()?,
        },
        "denied" => SignalOutcome::Denied,
        "unknown_run" => SignalOutcome::UnknownRun,
        _ => return Err(field::malformed("outcome", "not one of the four")),
    };
    Ok(Signalled {
        outcome,
        session_epoch: field::session_epoch("session_epoch", &answer.session_epoch)?,
        duplicate: answer.duplicate,
    })
}

pub(crate) fn page(answer: v1::ReadResponse) -> Result<Page, Refusal> {
    let epoch = session_epoch(&answer.session_epoch)?;
    let stretch = Stretch::from_wire(answer.events.unwrap_or_default())?;
    Ok(Page {
        session_epoch: epoch,
        from: stretch.from,
        to: stretch.to,
        tail: stretch.tail,
        events: stretch.events,
    })
}

pub(crate) fn ack_range(range: v1::AckRange) -> Result<AckRange, Refusal> {
    let (first, last) = (range.first_seq, range.last_seq);
    if last < first {
        return Err(field::malformed("ranges", "a range ends before it begins"));
    }
    let last_offset = range.first_offset.saturating_add(last - first);
    field::offset("first_offset", last_offset)?;
    Ok(AckRange {
        first_seq: field::seq("first_seq", first)?,
        last_seq: field::seq("last_seq", last)?,
        first_offset: field::offset("first_offset", range.first_offset)?,
        duplicate: range.duplicate,
    })
}

/// A stretch of a session that a server delivered.
pub(crate) struct Stretch {
    pub(crate) from: Offset,
    /// Before `from` for a sign of life.
    pub(crate) to: Offset,
    pub(crate) tail: Offset,
    pub(crate) events: Vec<Event>,
    pub(crate) leader_seen: Duration,
}

impl Stretch {
    /// Refuses a stretch whose events do not rise inside its range.
    pub(crate) fn from_wire(events: v1::Events) -> Result<Self, Refusal> {
        let from = field::offset("from", events.from)?;
        let to = field::offset("to", events.to)?;
        let tail = field::offset("tail", events.tail)?;
        if events.from == 0 || events.from > events.to + 1 {
            return Err(field::malformed("events", "the range is turned round"));
        }
        let converted: Result<Vec<Event>, Refusal> =
            events.events.into_iter().map(Event::try_from).collect();
        let converted = converted?;
        let mut last = from.previous();
        for event in &converted {
            if event.offset <= last || event.offset > to {
                return Err(field::malformed(
                    "events",
                    "an event stands outside its range",
                ));
            }
            last = event.offset;
        }
        Ok(Self {
            from,
            to,
            tail,
            events: converted,
            leader_seen: Duration::from_millis(u64::from(events.leader_seen_ms)),
        })
    }
}

fn run_state(text: &str) -> Result<RunState, Refusal> {
    RunState::parse(text).ok_or_else(|| field::malformed("state", "not a state of a run"))
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
