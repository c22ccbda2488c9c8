//! What a step was answered, and how that is written down: alike for every subject.

use std::fmt::Write as _;
use std::time::Duration;

use everwire_core::command::SignalOutcome;
use everwire_core::event::{Body, Data};
use everwire_core::limits::LEASE_DEFAULT;
use everwire_core::row::RunState;
use everwire_core::{
    Details, Event, InputRef, Lease, Offset, Outcome, Refusal, Request, RunEpoch, Seq,
    SessionEpoch, Target,
};

/// A stretch of a run's output and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The first seq.
    pub first_seq: Seq,
    /// The last seq.
    pub last_seq: Seq,
    /// The offset of the first; the others follow densely.
    pub first_offset: Offset,
}

/// What a step was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is nothing to say.
    Done,
    /// The session is there.
    Session {
        /// Whether it was made now.
        created: bool,
        /// Its history.
        session_epoch: SessionEpoch,
        /// Its last offset.
        tail: Offset,
    },
    /// The session is gone, or was not there.
    Deleted {
        /// Whether there was one.
        existed: bool,
    },
    /// The session takes commands.
    Unfrozen {
        /// Whether it had been frozen.
        frozen: bool,
    },
    /// A start or claim was granted.
    Granted {
        /// The epoch to write under.
        run_epoch: RunEpoch,
        /// Where the grant stands.
        offset: Offset,
        /// The lease; `None` where the rules know none.
        lease: Option<Duration>,
        /// Whether it was granted before.
        duplicate: bool,
    },
    /// A sign of life was taken.
    Renewed {
        /// The run's state.
        state: RunState,
        /// Where it stands that a stop was seen, if this told it.
        observed: Option<Offset>,
    },
    /// Output was taken.
    Published {
        /// What had been committed before, with its exact place.
        duplicate: Option<Placed>,
        /// What had been committed before, with only an upper bound of its place.
        through: Option<(Seq, Offset)>,
        /// What was committed now.
        committed: Option<Placed>,
    },
    /// An input or `app` event was taken.
    Posted {
        /// Its place.
        offset: Offset,
        /// Whether it was taken before.
        duplicate: bool,
    },
    /// A signal was decided.
    Signalled {
        /// How.
        outcome: SignalOutcome,
        /// Whether it was decided before.
        duplicate: bool,
    },
    /// The attach answer `resumed`.
    Resumed {
        /// The session's history.
        session_epoch: SessionEpoch,
        /// The first offset that follows.
        from: Offset,
        /// The last offset.
        tail: Offset,
    },
    /// The attach answer `gone`.
    Gone {
        /// The history that the session has now.
        session_epoch: SessionEpoch,
        /// The first offset that can be read.
        earliest: Offset,
        /// The last offset.
        tail: Offset,
    },
    /// The attach answer `not_found`.
    NotFound,
    /// The replica has not applied that far.
    Wait,
    /// Events, by `log` or `read`.
    Events(Vec<Event>),
    /// A refusal.
    Refused(Refusal),
}

impl Answer {
    /// The answer of an outcome; `first_seq` is that of the batch, for a publish.
    pub fn of(outcome: Outcome, first_seq: Seq) -> Self {
        match outcome {
            Outcome::SessionReady {
                session_epoch,
                tail,
                created,
            } => Self::Session {
                created,
                session_epoch,
                tail,
            },
            Outcome::SessionDeleted { existed } => Self::Deleted { existed },
            Outcome::SessionUnfrozen { frozen, .. } => Self::Unfrozen { frozen },
            Outcome::RunGranted {
                run_epoch,
                offset,
                lease,
                duplicate,
                ..
            } => Self::Granted {
                run_epoch,
                offset,
                lease: lease.map(Lease::length),
                duplicate,
            },
            Outcome::Renewed {
                state, observed, ..
            } => Self::Renewed { state, observed },
            Outcome::Published(published) => {
                let exact = published.duplicate.filter(|known| known.exact);
                let inexact = published.duplicate.filter(|known| !known.exact);
                Self::Published {
                    duplicate: exact.map(|known| Placed {
                        first_seq,
                        last_seq: known.through_seq,
                        first_offset: back(known.through_offset, first_seq, known.through_seq),
                    }),
                    through: inexact.map(|known| (known.through_seq, known.through_offset)),
                    committed: published.appended.map(|appended| Placed {
                        first_seq: appended.first_seq,
                        last_seq: appended.last_seq,
                        first_offset: appended.first_offset,
                    }),
                }
            },
            Outcome::Posted {
                offset, duplicate, ..
            } => Self::Posted { offset, duplicate },
            Outcome::Signalled {
                outcome, duplicate, ..
            } => Self::Signalled { outcome, duplicate },
            Outcome::Refused(refusal) => Self::Refused(refusal),
        }
    }

    /// The epoch that the answer names.
    pub fn session_epoch(&self) -> Option<SessionEpoch> {
        match self {
            Self::Session { session_epoch, .. }
            | Self::Resumed { session_epoch, .. }
            | Self::Gone { session_epoch, .. } => Some(*session_epoch),
            Self::Refused(refusal) => refusal.details.session_epoch,
            _ => None,
        }
    }

    /// Writes it down: no line, one, or one per event. `epochs` gives their names.
    pub fn lines(&self, epochs: &[SessionEpoch]) -> Vec<String> {
        let epoch = |epoch: &SessionEpoch| {
            let place = epochs.iter().position(|known| known == epoch);
            place.map_or_else(|| epoch.to_string(), |place| format!("E{}", place + 1))
        };
        vec![match self {
            Self::Done => return Vec::new(),
            Self::Events(events) if events.is_empty() => "nothing".to_owned(),
            Self::Events(events) => return events.iter().map(event).collect(),
            Self::Session {
                created,
                session_epoch,
                tail,
            } => {
                let word = if *created { "created" } else { "exists" };
                format!("{word} epoch={} tail={tail}", epoch(session_epoch))
            },
            Self::Deleted { existed } => if *existed { "deleted" } else { "absent" }.to_owned(),
            Self::Unfrozen { frozen } => if *frozen { "unfrozen" } else { "not_frozen" }.to_owned(),
            Self::Granted {
                run_epoch,
                offset,
                lease,
                duplicate,
            } => format!(
                "granted run_epoch={run_epoch} at={offset}{}{}",
                leased(*lease),
                again(*duplicate)
            ),
            Self::Renewed { state, observed } => match observed {
                Some(at) => format!("observed at={at}"),
                None => format!("renewed {}", state.as_str()),
            },
            Self::Published {
                duplicate,
                through,
                committed,
            } => published(*duplicate, *through, *committed),
            Self::Posted { offset, duplicate } => {
                format!("posted at={offset}{}", again(*duplicate))
            },
            Self::Signalled { outcome, duplicate } => {
                format!("{}{}", signalled(outcome), again(*duplicate))
            },
            Self::Resumed {
                session_epoch,
                from,
                tail,
            } => format!(
                "resumed epoch={} from={from} tail={tail}",
                epoch(session_epoch)
            ),
            Self::Gone {
                session_epoch,
                earliest,
                tail,
            } => format!(
                "GONE epoch={} earliest={earliest} tail={tail}",
                epoch(session_epoch)
            ),
            Self::NotFound => "not_found".to_owned(),
            Self::Wait => "wait".to_owned(),
            Self::Refused(refusal) => {
                let details = details(
                    &refusal.details,
                    refusal.details.session_epoch.as_ref().map(epoch),
                );
                format!("{}{details}", refusal.code)
            },
        }]
    }
}

fn back(through: Offset, first: Seq, last: Seq) -> Offset {
    let steps = last.0.saturating_sub(first.0);
    Offset::new(through.get().saturating_sub(steps)).unwrap_or(Offset::ZERO)
}

fn published(
    duplicate: Option<Placed>,
    through: Option<(Seq, Offset)>,
    committed: Option<Placed>,
) -> String {
    let known = duplicate.map(|known| format!("duplicate {}", placed(&known)));
    let bound = through.map(|(seq, at)| format!("duplicate through seq={seq} by at={at}"));
    let new = committed.map(|new| format!("committed {}", placed(&new)));
    let all: Vec<_> = known.into_iter().chain(bound).chain(new).collect();
    all.join("; ")
}

/// A lease, unless it is the one of whoever asks for none.
fn leased(lease: Option<Duration>) -> String {
    match lease {
        None => " lease=none".to_owned(),
        Some(LEASE_DEFAULT) => String::new(),
        Some(lease) if lease.subsec_millis() == 0 => format!(" lease={}s", lease.as_secs()),
        Some(lease) => format!(" lease={}ms", lease.as_millis()),
    }
}

fn again(duplicate: bool) -> &'static str {
    if duplicate { " duplicate" } else { "" }
}

fn placed(placed: &Placed) -> String {
    let Placed {
        first_seq,
        last_seq,
        first_offset,
    } = placed;
    let last_offset = first_offset.plus(last_seq.0.saturating_sub(first_seq.0));
    if first_seq == last_seq {
        return format!("seq={first_seq} at={first_offset}");
    }
    format!("seq={first_seq}..{last_seq} at={first_offset}..{last_offset}")
}

fn signalled(outcome: &SignalOutcome) -> String {
    let word = outcome.as_str();
    match outcome {
        SignalOutcome::Applied { offset } => format!("{word} at={offset}"),
        SignalOutcome::AlreadyTerminal { state, offset } => {
            format!("{word} {} at={offset}", RunState::as_str(*state))
        },
        SignalOutcome::Denied | SignalOutcome::UnknownRun => word.to_owned(),
    }
}

/// The facts that are set, in the order of the struct.
fn details(details: &Details, session_epoch: Option<String>) -> String {
    let facts = [
        (
            "cancel_offset",
            details.cancel_offset.map(|it| it.to_string()),
        ),
        ("next_epoch", details.next_epoch.map(|it| it.to_string())),
        ("run_epoch", details.run_epoch.map(|it| it.to_string())),
        (
            "expected_seq",
            details.expected_seq.map(|it| it.to_string()),
        ),
        ("last_seq", details.last_seq.map(|it| it.to_string())),
        ("last_offset", details.last_offset.map(|it| it.to_string())),
        ("state", details.state.map(str::to_owned)),
        ("offset", details.offset.map(|it| it.to_string())),
        ("by", details.by.as_ref().map(ToString::to_string)),
        ("earliest", details.earliest.map(|it| it.to_string())),
        ("tail", details.tail.map(|it| it.to_string())),
        ("epoch", session_epoch),
        ("limit", details.limit.map(|it| it.to_string())),
    ];
    let mut text = String::new();
    for (name, fact) in facts {
        if let Some(fact) = fact {
            let _ = write!(text, " {name}={fact}");
        }
    }
    text
}

/// One event: `offset kind body  run/epoch#seq by author`.
pub fn event(event: &Event) -> String {
    let mut text = format!("{} {}", event.offset, event.kind().as_str());
    let said = body(&event.body);
    if !said.is_empty() {
        let _ = write!(text, " {said}");
    }
    if let Some(stamp) = &event.run {
        let _ = write!(text, "  {}/{}", stamp.run, stamp.run_epoch);
        if let Some(seq) = stamp.seq {
            let _ = write!(text, "#{seq}");
        }
    }
    let _ = write!(text, "  by {}", event.author.participant);
    text
}

fn body(body: &Body) -> String {
    match body {
        Body::RunClaimed | Body::RunOrphaned | Body::RunResumed | Body::RunCompleted => {
            String::new()
        },
        Body::RunSuspended { reason, note } => {
            joined([Some(reason.as_str().to_owned()), quoted(note.as_ref())])
        },
        Body::SignalPause { target } | Body::SignalResume { target } => aimed(target),
        Body::ApprovalRequested(request) => requested(request),
        Body::ApprovalResolved { .. } => resolved(body),
        Body::RunStarted {
            input: of,
            parent,
            meta,
        } => {
            let parent = parent.as_ref().map(|parent| format!("parent={parent}"));
            let meta = meta.as_ref().map(|meta| format!("meta={}", data(meta)));
            joined([parent, of.as_ref().map(input), meta])
        },
        Body::RunEpilogue { data: said } => said.as_ref().map(data).unwrap_or_default(),
        Body::RunFailed { reason } => format!("{reason:?}"),
        Body::RunCancelled { cancel_offset } => format!("cancel_offset={cancel_offset}"),
        Body::StepStart {
            step,
            attempt,
            name,
        } => joined([
            Some(step.to_string()),
            Some(format!("attempt={attempt}")),
            quoted(name.as_ref()),
        ]),
        Body::StepEnd {
            step,
            status,
            reason,
        } => joined([
            Some(step.to_string()),
            Some(status.as_str().to_owned()),
            quoted(reason.as_ref()),
        ]),
        Body::MessageStart { message, role } => format!("{message} {}", role.as_str()),
        Body::MessageEnd { message, status } => format!("{message} {}", status.as_str()),
        Body::PartStart {
            message,
            part,
            kind,
            ..
        } => format!("{message}/{part} {}", kind.as_str()),
        Body::PartDelta {
            message,
            part,
            position,
            text,
        } => format!("{message}/{part} @{position} {text:?}"),
        Body::PartEnd { message, part, .. } => format!("{message}/{part}"),
        Body::Input { input, text, .. } => format!("{input} {text:?}"),
        Body::SignalCancel { target, grace_ms } => {
            let grace = grace_ms.map(|grace| format!("graceful_ms={grace}"));
            joined([Some(aimed(target)), grace])
        },
        Body::SignalObserved { signal_offset } => format!("signal_offset={signal_offset}"),
        Body::App { name, .. } => name.clone(),
    }
}

fn resolved(body: &Body) -> String {
    let Body::ApprovalResolved {
        approval,
        outcome,
        note,
        on_expiry,
    } = body
    else {
        return String::new();
    };
    joined([
        Some(approval.to_string()),
        Some(outcome.as_str().to_owned()),
        quoted(note.as_ref()),
        on_expiry.map(|verdict| format!("on_expiry={}", verdict.as_str())),
    ])
}

fn quoted(text: Option<&String>) -> Option<String> {
    text.map(|text| format!("{text:?}"))
}

/// When it expires is a time of the server's, and left out.
fn requested(request: &Request) -> String {
    let approvers = request.approvers.iter().map(ToString::to_string);
    let approvers = approvers.collect::<Vec<_>>().join(",");
    joined([
        Some(request.approval.to_string()),
        Some(request.action_hash.to_string()),
        Some(format!("{:?}", request.action)),
        Some(format!("within_ms={}", request.within_ms)),
        Some(format!("on_expiry={}", request.on_expiry.as_str())),
        (!approvers.is_empty()).then(|| format!("approvers={approvers}")),
    ])
}

/// A target as a command says it.
fn aimed(target: &Target) -> String {
    match target {
        Target::Run(run) => run.to_string(),
        Target::Subtree(run) => format!("subtree={run}"),
        Target::Input(of) => input(of),
        Target::Session => "all".to_owned(),
    }
}

fn input(input: &InputRef) -> String {
    let author = input.author.as_ref();
    let author = author.map(|author| format!("input_by={author}"));
    joined([Some(format!("input={}", input.input)), author])
}

fn data(data: &Data) -> String {
    match data {
        Data::Json(text) => text.clone(),
        Data::Binary(bytes) => format!("{} bytes", bytes.len()),
    }
}

fn joined<const N: usize>(words: [Option<String>; N]) -> String {
    let words: Vec<_> = words.into_iter().flatten().collect();
    words.join(" ")
}
