//! `everwire tail`: reads a session, one event a line.

use clap::{Args, ValueEnum};
use everwire_client::{SubscribeOptions, Subscriber, SubscriberEvent};
use everwire_core::{Code, Cursor, Details, Event, Offset, Refusal, Target};
use everwire_proto::json::event_to_json;
use tokio::time::{Instant, timeout_at};

use super::{Connection, DEADLINE, session_name};
use crate::output::{Failure, line, note, parsed};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Every event as it was committed
    Raw,
}

/// `everwire tail`.
#[derive(Args, Clone, Debug)]
pub(crate) struct TailArgs {
    /// The session
    session: String,
    /// The last event already seen: an offset, or SESSION_EPOCH.OFFSET; the next one comes
    #[arg(long, value_name = "OFFSET", default_value = "0")]
    from: String,
    /// Go on with what is published from now on
    #[arg(long)]
    follow: bool,
    /// Which form
    #[arg(long, value_enum, default_value = "raw")]
    form: Form,
    #[command(flatten)]
    connection: Connection,
    /// JSON as on the wire instead of a line for people
    #[arg(long)]
    json: bool,
}

/// Runs it until the tail, or for ever with `--follow`.
pub(crate) async fn run(args: &TailArgs) -> Result<(), Failure> {
    let session = session_name(&args.session)?;
    let cursor: Cursor = parsed("--from", &args.from, args.from.parse())?;
    let Form::Raw = args.form;
    let client = args.connection.client()?;
    let options = SubscribeOptions {
        cursor: Some(cursor),
        ..SubscribeOptions::default()
    };
    let mut subscriber = client.subscribe(&session, options);
    let (mut until, mut lost) = (None, None);
    loop {
        let event = if args.follow {
            subscriber.next().await
        } else {
            within_deadline(&mut subscriber, &mut lost).await?
        };
        let reached = match event {
            SubscriberEvent::Attached { from, tail, .. } => {
                // Without --follow the end is the tail at the moment of attaching.
                until.get_or_insert(tail);
                from.previous()
            },
            SubscriberEvent::Events { to, events, .. } => {
                for event in &events {
                    if !args.follow && until.is_some_and(|until| event.offset > until) {
                        return Ok(());
                    }
                    show(args, event)?;
                }
                to
            },
            SubscriberEvent::Alive { .. } => continue,
            SubscriberEvent::Disconnected { refusal } => {
                if args.follow {
                    let Refusal { code, message, .. } = refusal;
                    note(&format!("{code}: {message}; reattaching"));
                }
                continue;
            },
            SubscriberEvent::Gone {
                session_epoch,
                earliest,
                tail,
            } => {
                return Err(gone(session_epoch, earliest, tail).into());
            },
            SubscriberEvent::NotFound => {
                let message = format!("there is no session {session}");
                return Err(Refusal::new(Code::UnknownSession, message).into());
            },
            SubscriberEvent::Ended(refusal) => return Err(refusal.into()),
        };
        if !args.follow && until.is_some_and(|until| reached >= until) {
            return Ok(());
        }
    }
}

/// Since when nothing was heard, and why.
type Lost = Option<(Instant, Refusal)>;

/// What comes next; a node that is lost is looked for elsewhere as long as by any other command.
async fn within_deadline(
    subscriber: &mut Subscriber,
    lost: &mut Lost,
) -> Result<SubscriberEvent, Refusal> {
    let event = match lost {
        Some((since, refusal)) => {
            let next = timeout_at(*since + DEADLINE, subscriber.next()).await;
            next.map_err(|_elapsed| refusal.clone())?
        },
        None => subscriber.next().await,
    };
    *lost = match (&event, lost.take()) {
        (SubscriberEvent::Disconnected { refusal }, before) => {
            let since = before.map_or_else(Instant::now, |(since, _)| since);
            Some((since, refusal.clone()))
        },
        (SubscriberEvent::Attached { .. }, before) => before,
        _ => None,
    };
    Ok(event)
}

fn gone(
    session_epoch: Option<everwire_core::SessionEpoch>,
    earliest: Offset,
    tail: Offset,
) -> Refusal {
    let message = format!("the cursor cannot be resumed; what is kept is {earliest} to {tail}");
    let (earliest, tail) = (Some(earliest), Some(tail));
    Refusal::with(
        Code::Gone,
        message,
        Details {
            session_epoch,
            earliest,
            tail,
            ..Details::default()
        },
    )
}

fn show(args: &TailArgs, event: &Event) -> Result<(), Failure> {
    if args.json {
        return line(&event_to_json(event));
    }
    let run = event.run.as_ref().map_or("-", |stamp| stamp.run.as_str());
    let author = event.author.participant.as_str();
    let text = summary(event);
    line(&format!(
        "{:>8}  {:<14} {run}  {author}  {text}",
        event.offset.get(),
        event.kind().as_str()
    ))
}

/// What a person wants to see of an event on one line.
fn summary(event: &Event) -> String {
    use everwire_core::Body;
    match &event.body {
        Body::PartDelta { text, .. } | Body::Input { text, .. } => format!("{text:?}"),
        Body::RunFailed { reason } => reason.clone(),
        Body::RunCancelled { cancel_offset } => format!("at {cancel_offset}"),
        Body::StepStart {
            step,
            attempt,
            name,
        } => {
            let name = name.as_ref().map(|name| format!(" {name}"));
            format!("{step} attempt {attempt}{}", name.unwrap_or_default())
        },
        Body::StepEnd {
            step,
            status,
            reason,
        } => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}"));
            format!("{step} {}{}", status.as_str(), reason.unwrap_or_default())
        },
        Body::MessageStart { message, role } => format!("{message} {}", role.as_str()),
        Body::MessageEnd { message, status } => format!("{message} {}", status.as_str()),
        Body::PartStart {
            message,
            part,
            kind,
            ..
        } => {
            format!("{message}/{part} {}", kind.as_str())
        },
        Body::PartEnd { message, part, .. } => format!("{message}/{part}"),
        Body::SignalCancel { target, grace_ms } => match grace_ms {
            None => aimed_at(target),
            Some(grace) => format!("{} within {grace} ms", aimed_at(target)),
        },
        Body::SignalObserved { signal_offset } => format!("at {signal_offset}"),
        Body::App { name, .. } => name.clone(),
        Body::RunStarted { input, parent, .. } => {
            let input = input
                .as_ref()
                .map(|input| format!("answers {}", input.input));
            let parent = parent.as_ref().map(|parent| format!("works for {parent}"));
            let said = [input, parent].into_iter().flatten();
            said.collect::<Vec<_>>().join(", ")
        },
        Body::RunSuspended { reason, note } => {
            let note = note.as_ref().map(|note| format!(": {note}"));
            format!("{}{}", reason.as_str(), note.unwrap_or_default())
        },
        Body::SignalPause { target } | Body::SignalResume { target } => aimed_at(target),
        Body::ApprovalRequested(request) => {
            format!("{} {}", request.approval, request.action)
        },
        Body::ApprovalResolved {
            approval,
            outcome,
            note,
            ..
        } => {
            let note = note.as_ref().map(|note| format!(": {note}"));
            let outcome = outcome.as_str();
            format!("{approval} {outcome}{}", note.unwrap_or_default())
        },
        Body::RunClaimed
        | Body::RunOrphaned
        | Body::RunResumed
        | Body::RunCompleted
        | Body::RunEpilogue { .. } => String::new(),
    }
}

/// What a signal is aimed at, for people.
fn aimed_at(target: &Target) -> String {
    match target {
        Target::Run(run) => run.to_string(),
        Target::Subtree(root) => format!("{root} and its subtree"),
        Target::Input(input) => match &input.author {
            Some(author) => format!("input {} of {author}", input.input),
            None => format!("input {}", input.input),
        },
        Target::Session => "all runs".to_owned(),
    }
}
