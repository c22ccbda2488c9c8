//! `everwire pause`, `resume`, `approve`, `deny`: signals that end no run.

use std::process::ExitCode;

use clap::{ArgGroup, Args};
use everwire_client::Signalled;
use everwire_core::command::SignalOutcome;
use everwire_core::event::Verdict;
use everwire_core::{ActionHash, Answer, ApprovalId, Code, Key, RunId, Signal, Target};
use serde_json::{Map, Value, json};

use super::{Connection, session_name};
use crate::output::{Failure, exit_for, line, parsed};

/// `everwire pause`, `everwire resume`.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("target").required(true).args(["run", "subtree", "all"])))]
pub(crate) struct AimArgs {
    /// The session
    session: String,
    /// The run; never its children
    #[arg(long)]
    run: Option<String>,
    /// The run with all that work for it
    #[arg(long, value_name = "RUN")]
    subtree: Option<String>,
    /// Every live run of the session
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: Common,
}

/// `everwire approve`, `everwire deny`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AnswerArgs {
    /// The session
    session: String,
    /// The request for an approval
    approval: String,
    /// The action_hash of what you have seen, as approval.requested has it
    #[arg(long, value_name = "HASH")]
    action_hash: String,
    /// What else is to be said, at most 256 bytes
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Clone, Debug)]
struct Common {
    /// Makes a repeated command answer like the first, for 24 h
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl AimArgs {
    fn target(&self) -> Result<Target, Failure> {
        Ok(match (&self.run, &self.subtree) {
            (Some(run), _) => Target::Run(parsed("--run", run, RunId::parse(run))?),
            (None, Some(root)) => Target::Subtree(parsed("--subtree", root, RunId::parse(root))?),
            (None, None) => Target::Session,
        })
    }
}

/// Runs `pause`.
pub(crate) async fn pause(args: &AimArgs) -> Result<ExitCode, Failure> {
    let signal = Signal::Pause(args.target()?);
    args.common.send(&args.session, &signal).await
}

/// Runs `resume`.
pub(crate) async fn resume(args: &AimArgs) -> Result<ExitCode, Failure> {
    let signal = Signal::Resume(args.target()?);
    args.common.send(&args.session, &signal).await
}

/// Runs `approve` and `deny`.
pub(crate) async fn answer(args: &AnswerArgs, verdict: Verdict) -> Result<ExitCode, Failure> {
    let (approval, hash) = (&args.approval, &args.action_hash);
    let signal = Signal::Answer(Answer {
        approval: parsed("APPROVAL", approval, ApprovalId::parse(approval))?,
        verdict,
        action_hash: parsed("--action-hash", hash, ActionHash::parse(hash))?,
        note: args.note.clone(),
    });
    args.common.send(&args.session, &signal).await
}

impl Common {
    async fn send(&self, session: &str, signal: &Signal) -> Result<ExitCode, Failure> {
        let session = session_name(session)?;
        signal
            .check_shape()
            .map_err(|refusal| Failure::usage(refusal.message))?;
        let key = self.key.as_deref();
        let key = key.map(|text| parsed("--key", text, Key::parse(text)));
        let client = self.connection.client()?;
        let answer = client.signal(&session, signal, key.transpose()?).await?;
        told(&answer, self.json)
    }
}

/// Tells an outcome. Exits with 0 for applied and already_terminal, 4 for denied, 6 for
/// unknown_run.
pub(super) fn told(answer: &Signalled, as_json: bool) -> Result<ExitCode, Failure> {
    let (exit, offset, state) = match &answer.outcome {
        SignalOutcome::Applied { offset } => (ExitCode::SUCCESS, Some(*offset), None),
        SignalOutcome::AlreadyTerminal { state, offset } => {
            (ExitCode::SUCCESS, Some(*offset), Some(state.as_str()))
        },
        SignalOutcome::Denied => (exit_for(Code::Denied), None, None),
        SignalOutcome::UnknownRun => (exit_for(Code::UnknownRun), None, None),
    };
    let word = answer.outcome.as_str();
    if as_json {
        let mut value = Map::from_iter([("outcome".to_owned(), json!(word))]);
        let fields = [
            ("offset", offset.map(|offset| json!(offset.get()))),
            ("state", state.map(Value::from)),
        ];
        value.extend(
            fields
                .into_iter()
                .filter_map(|(name, field)| Some((name.into(), field?))),
        );
        line(&Value::Object(value).to_string())?;
    } else {
        let at = offset
            .map(|offset| format!(" at offset {offset}"))
            .unwrap_or_default();
        let how = state.map(|state| format!(" ({state})")).unwrap_or_default();
        line(&format!("{word}{how}{at}"))?;
    }
    Ok(exit)
}
