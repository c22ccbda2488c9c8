//! `everwire cancel`: stops a run; the answer comes from the log.

use std::process::ExitCode;

use clap::Args;
use everwire_core::command::CancelOutcome;
use everwire_core::{Code, Key, RunId};
use serde_json::{Map, Value, json};

use super::{Connection, session_name};
use crate::output::{Failure, exit_for, line, parsed};

/// `everwire cancel`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CancelArgs {
    /// The session
    session: String,
    /// The run to stop
    #[arg(long)]
    run: String,
    /// Makes a repeated command answer like the first, for 24 h
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Runs it. Exits with 0 for applied and already_terminal, 4 for denied, 6 for unknown_run.
pub(crate) async fn run(args: &CancelArgs) -> Result<ExitCode, Failure> {
    let session = session_name(&args.session)?;
    let run = parsed("--run", &args.run, RunId::parse(&args.run))?;
    let key = args
        .key
        .as_deref()
        .map(|text| parsed("--key", text, Key::parse(text)));
    let client = args.connection.client()?;
    let answer = client.cancel(&session, &run, key.transpose()?).await?;
    let (exit, offset, state) = match &answer.outcome {
        CancelOutcome::Applied { offset } => (ExitCode::SUCCESS, Some(*offset), None),
        CancelOutcome::AlreadyTerminal { state, offset } => {
            (ExitCode::SUCCESS, Some(*offset), Some(state.as_str()))
        },
        CancelOutcome::Denied => (exit_for(Code::Denied), None, None),
        CancelOutcome::UnknownRun => (exit_for(Code::UnknownRun), None, None),
    };
    let word = answer.outcome.as_str();
    if args.json {
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
