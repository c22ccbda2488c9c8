//! A step: one command line of a scenario, understood.

use std::collections::BTreeMap;
use std::time::Duration;

use everwire_core::event::{Body, Data, Draft, MessageStatus, PartKind, Role};
use everwire_core::{
    Author, Cursor, InputId, Key, Offset, ParticipantKind, RunEpoch, RunId, Seq, SessionEpoch,
    SessionName, SessionNo,
};

use crate::words::Line;

/// One command of a scenario, ready to be performed.
#[derive(Clone, Debug)]
pub struct Step {
    /// Who does it.
    pub by: Author,
    /// The session as the file calls it; a live subject may map it to a name of its own.
    pub session: SessionName,
    /// Whether the token allows `create` for this session.
    pub may_create: bool,
    /// The history that it means, if it says so: `history=E1`.
    pub session_epoch: Option<SessionEpoch>,
    /// What to do.
    pub action: Action,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum Action {
    /// `create`.
    Create,
    /// `delete`.
    Delete,
    /// `unfreeze`.
    Unfreeze,
    /// `start RUN [input=ID] [key=K]`.
    Start {
        /// The run.
        run: RunId,
        /// The input that it answers.
        input: Option<InputId>,
        /// The client key.
        key: Option<Key>,
    },
    /// `claim RUN [key=K]`.
    Claim {
        /// The run.
        run: RunId,
        /// The client key.
        key: Option<Key>,
    },
    /// `publish RUN seq=N [epoch=E] DRAFT | DRAFT …`.
    Publish {
        /// The run.
        run: RunId,
        /// The writer's epoch; 1 unless said.
        run_epoch: RunEpoch,
        /// The seq of the first draft.
        first_seq: Seq,
        /// The drafts.
        drafts: Vec<Draft>,
    },
    /// `post DRAFT [key=K]`.
    Post {
        /// The input or `app` event.
        draft: Draft,
        /// The client key.
        key: Option<Key>,
        /// The draft as it was written: subjects without an encoding hash this.
        source: String,
    },
    /// `cancel RUN key=K`.
    Cancel {
        /// The run.
        run: RunId,
        /// The client key.
        key: Key,
    },
    /// `attach TAB [cursor=C]`: binds a reader. `None` is a reader without a cursor.
    Attach {
        /// The reader.
        tab: String,
        /// Where it was.
        cursor: Option<Cursor>,
    },
    /// `read TAB`: everything committed that the tab has not had yet.
    Read {
        /// The reader.
        tab: String,
    },
    /// `drop TAB`: the reader's connection is gone.
    Drop {
        /// The reader.
        tab: String,
    },
    /// `log [from=N]`: the session's events.
    Log {
        /// The first offset.
        from: Offset,
    },
    /// `advance 15s`: needs a clock.
    Advance(Duration),
    /// `resolve trimmed=… applied=… leader=… [cursor=C]`: the attach function by itself, on the
    /// session as it is but for these numbers; needs the function.
    Resolve {
        /// The trim point.
        trimmed: Offset,
        /// What the replica has applied.
        applied: Offset,
        /// What the leader has.
        leader: Offset,
        /// Where the reader was.
        cursor: Option<Cursor>,
    },
}

impl Action {
    /// Whether it asks for a change; only such steps are sent again by `resend`.
    pub fn is_command(&self) -> bool {
        match self {
            Self::Create
            | Self::Delete
            | Self::Unfreeze
            | Self::Start { .. }
            | Self::Claim { .. }
            | Self::Publish { .. }
            | Self::Post { .. }
            | Self::Cancel { .. } => true,
            Self::Attach { .. }
            | Self::Read { .. }
            | Self::Drop { .. }
            | Self::Log { .. }
            | Self::Advance(_)
            | Self::Resolve { .. } => false,
        }
    }
}

/// What a line may refer to: epochs by the names that the file gave them, and where tabs were.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// `E1`, `E2`, … in the order in which answers named them.
    pub epochs: Vec<SessionEpoch>,
    /// What each tab has seen.
    pub tabs: BTreeMap<String, Cursor>,
}

impl Context {
    /// `E1.4`, `other.4` (an epoch that never was) or `4` (the session as it is).
    fn cursor(&self, text: &str) -> Result<Cursor, String> {
        let (epoch, offset) = match text.split_once('.') {
            None => (None, text),
            Some((epoch, offset)) => (Some(self.epoch(epoch)?), offset),
        };
        Ok(Cursor {
            session_epoch: epoch,
            offset: offset_of(offset)?,
        })
    }

    /// `E1`, or `other`: one that never was.
    fn epoch(&self, text: &str) -> Result<SessionEpoch, String> {
        if text == "other" {
            return Ok(SessionEpoch {
                timeline: 9,
                session_no: SessionNo(999_999),
            });
        }
        let number = text
            .strip_prefix('E')
            .and_then(|text| text.parse::<usize>().ok());
        let known = number.and_then(|number| self.epochs.get(number.checked_sub(1)?));
        known
            .copied()
            .ok_or_else(|| format!("no answer has named {text} yet"))
    }
}

fn offset_of(text: &str) -> Result<Offset, String> {
    let number = text.parse().ok().and_then(Offset::new);
    number.ok_or_else(|| format!("{text} is no offset"))
}

/// Understands a command line.
pub fn parse(text: &str, context: &Context) -> Result<Step, String> {
    let mut line = Line::parse(text)?;
    let command = line.take("a command")?;
    let agent = matches!(command.as_str(), "start" | "claim" | "publish");
    let by = line.option("by");
    let by = by.unwrap_or_else(|| if agent { "bot" } else { "ann" }.to_owned());
    let session = line.read("session")?;
    let session = session
        .map_or_else(|| SessionName::parse("s"), Ok)
        .map_err(said)?;
    let may_create = line.option("create").is_none_or(|word| word != "no");
    let session_epoch = line.option("history").map(|text| context.epoch(&text));
    let action = action(&command, &mut line, context)?;
    line.end()?;
    Ok(Step {
        by: author(&by)?,
        session,
        may_create,
        session_epoch: session_epoch.transpose()?,
        action,
    })
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// `bot…` is an agent, `op…` an operator, anybody else a user.
fn author(name: &str) -> Result<Author, String> {
    let kind = if name.starts_with("bot") {
        ParticipantKind::Agent
    } else if name.starts_with("op") {
        ParticipantKind::Operator
    } else {
        ParticipantKind::User
    };
    Ok(Author {
        participant: name.parse().map_err(said)?,
        kind,
    })
}

fn action(command: &str, line: &mut Line, context: &Context) -> Result<Action, String> {
    let cursor = |line: &mut Line| match line.option("cursor") {
        Some(text) => Ok::<_, String>(Some(context.cursor(&text)?)),
        None => Ok(None),
    };
    Ok(match command {
        "create" => Action::Create,
        "delete" => Action::Delete,
        "unfreeze" => Action::Unfreeze,
        "start" => Action::Start {
            run: name(line, "a run")?,
            input: line.read("input")?,
            key: line.read("key")?,
        },
        "claim" => Action::Claim {
            run: name(line, "a run")?,
            key: line.read("key")?,
        },
        "publish" => publish(line)?,
        "post" => {
            let key = line.read("key")?;
            let source = format!("{line:?}");
            let draft = draft(line)?;
            Action::Post { draft, key, source }
        },
        "cancel" => Action::Cancel {
            run: name(line, "a run")?,
            key: line.read("key")?.ok_or("key= is missing")?,
        },
        "attach" => {
            let tab = line.take("a tab")?;
            let cursor = cursor(line)?.or_else(|| context.tabs.get(&tab).copied());
            Action::Attach { tab, cursor }
        },
        "read" => Action::Read {
            tab: line.take("a tab")?,
        },
        "drop" => Action::Drop {
            tab: line.take("a tab")?,
        },
        "log" => Action::Log {
            from: offset(line, "from", 1)?,
        },
        "advance" => Action::Advance(duration(&line.take("a time")?)?),
        "resolve" => Action::Resolve {
            trimmed: offset(line, "trimmed", 0)?,
            applied: offset(line, "applied", 0)?,
            leader: offset(line, "leader", 0)?,
            cursor: cursor(line)?,
        },
        other => return Err(format!("{other} is no command")),
    })
}

fn publish(line: &mut Line) -> Result<Action, String> {
    let run = name(line, "a run")?;
    let epoch = line.number("epoch", 1)?;
    let first_seq = line.read("seq")?.ok_or("seq= is missing")?;
    let groups = line.take_groups();
    let drafts = groups.into_iter().map(|mut group| {
        let draft = draft(&mut group)?;
        group.end()?;
        Ok(draft)
    });
    Ok(Action::Publish {
        run,
        run_epoch: RunEpoch(u32::try_from(epoch).map_err(said)?),
        first_seq: Seq(first_seq),
        drafts: drafts.collect::<Result<_, String>>()?,
    })
}

fn name<T>(line: &mut Line, what: &str) -> Result<T, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    line.take(what)?.parse().map_err(said)
}

fn offset(line: &mut Line, option: &str, default: u64) -> Result<Offset, String> {
    let number = line.number(option, default)?;
    Offset::new(number).ok_or_else(|| format!("{option}={number} is no offset"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = text.strip_suffix(unit).unwrap_or(text);
    let number: u64 = number.parse().map_err(|error| format!("{text}: {error}"))?;
    Ok(match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(60 * number),
        "h" => Duration::from_secs(3_600 * number),
        _ => return Err(format!("{text}: say ms, s, m or h")),
    })
}

/// One draft: its kind, then what the kind needs.
fn draft(line: &mut Line) -> Result<Draft, String> {
    let kind = line.take("a kind")?;
    let body = match kind.as_str() {
        "message.start" => Body::MessageStart {
            message: name(line, "a message")?,
            role: word(line, Role::parse, Role::Assistant)?,
        },
        "message.end" => Body::MessageEnd {
            message: name(line, "a message")?,
            status: word(line, MessageStatus::parse, MessageStatus::Complete)?,
        },
        "part.start" => Body::PartStart {
            message: name(line, "a message")?,
            part: name(line, "a part")?,
            kind: word(line, PartKind::parse, PartKind::Text)?,
            name: None,
            data: None,
        },
        "part.delta" => Body::PartDelta {
            message: name(line, "a message")?,
            part: name(line, "a part")?,
            position: 0,
            text: line.take("a text")?,
        },
        "part.end" => Body::PartEnd {
            message: name(line, "a message")?,
            part: name(line, "a part")?,
            data: None,
        },
        "app" => Body::App {
            name: line.take("a name")?,
            data: line.take_if_any().map(Data::Json),
        },
        "input" => Body::Input {
            input: name(line, "an input")?,
            text: line.take("a text")?,
            data: None,
        },
        "run.completed" => Body::RunCompleted,
        "run.failed" => Body::RunFailed {
            reason: line.take_if_any().unwrap_or_default(),
        },
        "run.started" => Body::RunStarted { input: None },
        "run.claimed" => Body::RunClaimed,
        "run.cancelled" => Body::RunCancelled {
            cancel_offset: Offset::ZERO,
        },
        "signal.cancel" => Body::SignalCancel {
            run: name(line, "a run")?,
        },
        other => return Err(format!("{other} is no kind")),
    };
    Ok(Draft::new(body))
}

fn word<T>(line: &mut Line, parse: fn(&str) -> Option<T>, default: T) -> Result<T, String> {
    match line.take_if_any() {
        None => Ok(default),
        Some(text) => parse(&text).ok_or_else(|| format!("{text} is not known here")),
    }
}
