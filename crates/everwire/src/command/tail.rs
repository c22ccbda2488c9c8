//! `everwire tail`: reads a session, one event a line.

use clap::{Args, ValueEnum};
use everwire_client::{SubscribeOptions, SubscriberEvent};
use everwire_core::{Code, Cursor, Details, Event, Offset, Refusal};
use everwire_proto::json::event_to_json;

use super::{Connection, session_name};
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
    let mut until = None;
    loop {
        let reached = match subscriber.next().await {
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
                if !args.follow {
                    return Err(refusal.into());
                }
                note(&format!(
                    "{}: {}; reattaching",
                    refusal.code, refusal.message
                ));
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
        Body::SignalCancel { run } => run.to_string(),
        Body::App { name, .. } => name.clone(),
        Body::RunStarted { input } => input
            .as_ref()
            .map(|input| format!("answers {input}"))
            .unwrap_or_default(),
        Body::RunClaimed | Body::RunCompleted => String::new(),
    }
}
