//! A step: one command line of a scenario, understood.

use std::collections::BTreeMap;
use std::time::Duration;

use everwire_core::event::Verdict;
use everwire_core::row::RunState;
use everwire_core::{
    Answer, Author, Cancel, Cursor, Draft, Guard, InputId, InputRef, Key, Offset, ParticipantKind,
    RunEpoch, RunId, Seq, SessionEpoch, SessionName, SessionNo, Signal, Target,
};

use crate::draft::draft;
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
    /// `start RUN [parent=R] [input=I] [input_by=P] [lease=20s] [meta=JSON] [key=K]`.
    Start {
        /// The run.
        run: RunId,
        /// The run that it works for.
        parent: Option<RunId>,
        /// The input that it answers.
        input: Option<InputRef>,
        /// The lease that is asked for, inside its bounds or not.
        lease: Option<Duration>,
        /// What the application says about it, as JSON.
        meta: Option<String>,
        /// The client key.
        key: Option<Key>,
    },
    /// `claim RUN [lease=20s] [key=K]`.
    Claim {
        /// The run.
        run: RunId,
        /// As for a start.
        lease: Option<Duration>,
        /// The client key.
        key: Option<Key>,
    },
    /// `heartbeat RUN [epoch=E] [seen=N]`.
    Heartbeat {
        /// The run.
        run: RunId,
        /// The writer's epoch; 1 unless said.
        run_epoch: RunEpoch,
        /// How far the writer has read, if it says so.
        seen: Option<Offset>,
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
    /// `cancel (RUN | subtree=R | input=I [input_by=P] | all) key=K [graceful=5s] [expect=STATE]
    /// [as_of=N]`.
    Cancel {
        /// What, and how; inside its bounds or not.
        cancel: Cancel,
        /// The client key.
        key: Key,
    },
    /// `pause|resume (RUN | subtree=R | all) key=K`, `approve|deny APPROVAL HASH [NOTE] key=K`.
    Signal {
        /// Which; inside its bounds or not.
        signal: Signal,
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
    /// `expire RUN [epoch=E] [last=N]`: what a leader asks that has seen no sign of life of this
    /// epoch behind offset N; needs the function.
    Expire {
        /// The run.
        run: RunId,
        /// The epoch that was silent.
        run_epoch: RunEpoch,
        /// The last offset that the leader saw of it.
        last: Offset,
    },
    /// `rules VERSION`: the rules that the shard speaks from here on; needs the function.
    Rules(u32),
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
            | Self::Heartbeat { .. }
            | Self::Publish { .. }
            | Self::Post { .. }
            | Self::Cancel { .. }
            | Self::Signal { .. } => true,
            Self::Attach { .. }
            | Self::Read { .. }
            | Self::Drop { .. }
            | Self::Log { .. }
            | Self::Advance(_)
            | Self::Expire { .. }
            | Self::Rules(_)
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

pub(crate) fn offset_of(text: &str) -> Result<Offset, String> {
    let number = text.parse().ok().and_then(Offset::new);
    number.ok_or_else(|| format!("{text} is no offset"))
}

/// Understands a command line.
pub fn parse(text: &str, context: &Context) -> Result<Step, String> {
    let mut line = Line::parse(text)?;
    let command = line.take("a command")?;
    let agent = matches!(
        command.as_str(),
        "start" | "claim" | "heartbeat" | "publish"
    );
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

pub(crate) fn said(error: impl std::fmt::Display) -> String {
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
            parent: line.read("parent")?,
            input: input(line)?,
            lease: time(line, "lease")?,
            meta: line.option("meta"),
            key: line.read("key")?,
        },
        "claim" => Action::Claim {
            run: name(line, "a run")?,
            lease: time(line, "lease")?,
            key: line.read("key")?,
        },
        "heartbeat" => Action::Heartbeat {
            run: name(line, "a run")?,
            run_epoch: run_epoch(line)?,
            seen: offset_if_any(line, "seen")?,
        },
        "publish" => publish(line)?,
        "post" => {
            let key = line.read("key")?;
            let source = format!("{line:?}");
            let draft = draft(line)?;
            Action::Post { draft, key, source }
        },
        "cancel" => Action::Cancel {
            cancel: cancel(line)?,
            key: line.read("key")?.ok_or("key= is missing")?,
        },
        "pause" | "resume" | "approve" | "deny" => Action::Signal {
            key: line.read("key")?.ok_or("key= is missing")?,
            signal: signal(command, line)?,
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
        "expire" => Action::Expire {
            run: name(line, "a run")?,
            run_epoch: run_epoch(line)?,
            last: offset(line, "last", 0)?,
        },
        "rules" => Action::Rules(name(line, "a version")?),
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
    let run_epoch = run_epoch(line)?;
    let first_seq = line.read("seq")?.ok_or("seq= is missing")?;
    let groups = line.take_groups();
    let drafts = groups.into_iter().map(|mut group| {
        let draft = draft(&mut group)?;
        group.end()?;
        Ok(draft)
    });
    Ok(Action::Publish {
        run,
        run_epoch,
        first_seq: Seq(first_seq),
        drafts: drafts.collect::<Result<_, String>>()?,
    })
}

/// What is to be stopped: a run by its name, `all`, or what an option names.
fn target(line: &mut Line) -> Result<Target, String> {
    let subtree = line.read("subtree")?.map(Target::Subtree);
    let input = input(line)?.map(Target::Input);
    let named = match line.take_if_any() {
        None => None,
        Some(word) if word == "all" => Some(Target::Session),
        Some(word) => Some(Target::Run(word.parse().map_err(said)?)),
    };
    let mut targets = [subtree, input, named].into_iter().flatten();
    match (targets.next(), targets.next()) {
        (Some(target), None) => Ok(target),
        (None, _) => Err("a target is missing".to_owned()),
        (Some(_), Some(_)) => Err("a cancel has one target".to_owned()),
    }
}

fn signal(command: &str, line: &mut Line) -> Result<Signal, String> {
    let verdict = match command {
        "pause" => return Ok(Signal::Pause(target(line)?)),
        "resume" => return Ok(Signal::Resume(target(line)?)),
        word => Verdict::parse(word).ok_or_else(|| format!("{word} is no answer"))?,
    };
    Ok(Signal::Answer(Answer {
        approval: name(line, "an approval")?,
        verdict,
        action_hash: name(line, "a hash")?,
        note: line.take_if_any(),
    }))
}

fn cancel(line: &mut Line) -> Result<Cancel, String> {
    let target = target(line)?;
    let grace = time(line, "graceful")?.map(|time| time.as_millis());
    let state = line.option("expect").map(|word| {
        let state = RunState::parse(&word);
        state.ok_or_else(|| format!("{word} is no state"))
    });
    Ok(Cancel {
        target,
        grace_ms: grace.map(u32::try_from).transpose().map_err(said)?,
        guard: Guard {
            state: state.transpose()?,
            as_of: offset_if_any(line, "as_of")?,
        },
    })
}

/// `input=I`, and whose it is if `input_by=P` says so.
fn input(line: &mut Line) -> Result<Option<InputRef>, String> {
    let input: Option<InputId> = line.read("input")?;
    let author = line.read("input_by")?;
    match (input, author) {
        (Some(input), author) => Ok(Some(InputRef { input, author })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err("input_by= of which input?".to_owned()),
    }
}

fn run_epoch(line: &mut Line) -> Result<RunEpoch, String> {
    let epoch = line.number("epoch", 1)?;
    Ok(RunEpoch(u32::try_from(epoch).map_err(said)?))
}

pub(crate) fn name<T>(line: &mut Line, what: &str) -> Result<T, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    line.take(what)?.parse().map_err(said)
}

fn offset(line: &mut Line, option: &str, default: u64) -> Result<Offset, String> {
    let number = line.number(option, default)?;
    Offset::new(number).ok_or_else(|| format!("{option}={number} is no offset"))
}

fn offset_if_any(line: &mut Line, option: &str) -> Result<Option<Offset>, String> {
    let text = line.option(option);
    text.map(|text| offset_of(&text)).transpose()
}

fn time(line: &mut Line, option: &str) -> Result<Option<Duration>, String> {
    let text = line.option(option);
    text.map(|text| duration(&text)).transpose()
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
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
