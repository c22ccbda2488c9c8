//! `everwire cancel`: stops a run; the answer comes from the log.

use std::process::ExitCode;

use clap::{ArgGroup, Args};
use everwire_core::{Cancel, Key, Refusal};
use everwire_proto::control::CancelFields;

use super::signal::told;
use super::{Connection, session_name};
use crate::output::{Failure, parsed};

/// `everwire cancel`.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("target").required(true).args(["run", "subtree", "input", "all"])))]
pub(crate) struct CancelArgs {
    /// The session
    session: String,
    /// The run to stop; never its children
    #[arg(long)]
    run: Option<String>,
    /// The run to stop with all that work for it
    #[arg(long, value_name = "RUN")]
    subtree: Option<String>,
    /// The input whose runs to stop, also before they begin
    #[arg(long)]
    input: Option<String>,
    /// Whose input it is; your own if not said
    #[arg(long, value_name = "PARTICIPANT", requires = "input")]
    input_by: Option<String>,
    /// Stop every live run of the session
    #[arg(long)]
    all: bool,
    /// Leave the writers so many milliseconds for an epilogue, at most 30,000
    #[arg(long, value_name = "MS")]
    graceful: Option<u32>,
    /// Only if the run is in this state, for example running
    #[arg(long, value_name = "STATE")]
    expect: Option<String>,
    /// Spare runs that started after this offset
    #[arg(long, value_name = "OFFSET")]
    as_of: Option<u64>,
    /// Makes a repeated command answer like the first, for 24 h
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl CancelArgs {
    fn cancel(&self) -> Result<Cancel, Refusal> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let fields = CancelFields {
            run: text(&self.run),
            subtree: text(&self.subtree),
            input: text(&self.input),
            input_by: text(&self.input_by),
            all: self.all,
            graceful_ms: self.graceful.unwrap_or(0),
            expect: text(&self.expect),
            as_of: self.as_of,
        };
        fields.read()
    }
}

/// Runs it. Exits with 0 for applied and already_terminal, 4 for denied, 6 for unknown_run.
pub(crate) async fn run(args: &CancelArgs) -> Result<ExitCode, Failure> {
    let session = session_name(&args.session)?;
    let cancel = args
        .cancel()
        .map_err(|refusal| Failure::usage(refusal.message))?;
    let key = args
        .key
        .as_deref()
        .map(|text| parsed("--key", text, Key::parse(text)));
    let client = args.connection.client()?;
    let answer = client.stop(&session, &cancel, key.transpose()?).await?;
    told(&answer, args.json)
}
