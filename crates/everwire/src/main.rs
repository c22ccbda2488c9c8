//! The Everwire binary: servers (`dev`, `node`, `edge`) and the commands that talk to them.
//!
//! It wires real clocks, randomness, files and signals to the crates below and has no logic of
//! its own. Commands, options, exit codes and output are fixed in docs/contract.md.

mod agent;
mod command;
mod config;
mod mint;
mod output;
mod selftest;
mod server;
mod system;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use everwire_core::event::Verdict;

use crate::config::{LogFlags, Sources, check_environment};
use crate::output::Failure;

/// Version and commit, as `--version` and `Cluster.Status` say it.
pub(crate) const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("EVERWIRE_COMMIT"),
    ")"
);

/// A durable session layer between AI agents and people.
#[derive(Parser)]
#[command(name = "everwire", version = VERSION, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Run a node and an edge in one process
    #[command(after_help = "Example:\n  everwire dev --data ./everwire-data")]
    Dev {
        #[command(flatten)]
        sources: Sources,
        #[command(flatten)]
        flags: server::dev::DevFlags,
        #[command(flatten)]
        log: LogFlags,
    },
    /// Run a storage node
    #[command(
        after_help = "Example:\n  everwire token --new-key auth.key\n  everwire node --data ./node --auth-key auth.key.pub"
    )]
    Node {
        #[command(subcommand)]
        command: Option<command::cluster::NodeCommand>,
        #[command(flatten)]
        sources: Sources,
        #[command(flatten)]
        flags: Box<server::node::NodeFlags>,
        #[command(flatten)]
        log: LogFlags,
    },
    /// Run a stateless edge
    #[command(
        after_help = "Example:\n  everwire token --namespace '*' --participant edge-1 --kind edge --allow '*=relay' --key auth.key > edge.token\n  everwire edge --nodes 127.0.0.1:7400 --token-file edge.token --auth-key auth.key.pub"
    )]
    Edge {
        #[command(flatten)]
        sources: Sources,
        #[command(flatten)]
        flags: server::edge::EdgeFlags,
        #[command(flatten)]
        log: LogFlags,
    },
    /// Mint a token, or a key to mint with
    #[command(
        after_help = "Example:\n  everwire token --namespace acme --participant ann --kind user --allow 'chat-*=create,subscribe,publish,signal:cancel' --ttl 1h --key auth.key"
    )]
    Token(command::token::TokenArgs),
    /// Create, list, show and delete sessions
    #[command(after_help = "Example:\n  everwire session show demo --json")]
    Session(command::session::SessionArgs),
    /// Publish events from stdin
    #[command(after_help = "Example:\n  printf 'Hello \\nworld\\n' | everwire publish demo --json")]
    Publish(command::publish::PublishArgs),
    /// Read a session
    #[command(after_help = "Example:\n  everwire tail demo\n  everwire tail demo --follow --json")]
    Tail(command::tail::TailArgs),
    /// Stop a run
    #[command(after_help = "Example:\n  everwire cancel demo --run r1")]
    Cancel(command::cancel::CancelArgs),
    /// Make runs wait
    #[command(after_help = "Example:\n  everwire pause demo --run r1")]
    Pause(command::signal::AimArgs),
    /// Let runs go on that wait
    #[command(after_help = "Example:\n  everwire resume demo --run r1")]
    Resume(command::signal::AimArgs),
    /// Say yes to a request for an approval
    #[command(after_help = "Example:\n  everwire approve demo a1 --action-hash 9f2c")]
    Approve(command::signal::AnswerArgs),
    /// Say no to a request for an approval
    #[command(
        after_help = "Example:\n  everwire deny demo a1 --action-hash 9f2c --note 'Not today'"
    )]
    Deny(command::signal::AnswerArgs),
    /// Be an agent: replay a recorded answer, or pipe a model's response
    #[command(
        after_help = "Example:\n  everwire agent replay demo --from demo/sample.openai-chat.jsonl --rate 30"
    )]
    Agent(agent::AgentArgs),
    /// Operate a running cluster
    #[command(after_help = "Example:\n  everwire cluster transfer --shard 3 --to 2")]
    Cluster(command::cluster::ClusterArgs),
    /// Show nodes, shards and leaders
    #[command(after_help = "Example:\n  everwire status --json")]
    Status(command::status::StatusArgs),
    /// Show every bound
    #[command(after_help = "Example:\n  everwire limits --json")]
    Limits(command::limits::LimitsArgs),
    /// Prove the three promises against a deployment
    #[command(
        after_help = "Example:\n  everwire selftest --edge http://127.0.0.1:7410 --token \"$(cat everwire-data/token)\""
    )]
    Selftest(selftest::SelftestArgs),
}

fn main() -> ExitCode {
    let command = Cli::command();
    let matches = command.clone().try_get_matches();
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => match error.kind() {
            // Clap writes these out by itself: on stdout, or for a bare command on stderr.
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
            _ => return Failure::usage(first_sentence(&error)).report(),
        },
    };
    // Commands of one process at a time need no worker per core; servers take them all.
    let mut runtime = match &cli.command {
        Cmd::Dev { .. } | Cmd::Node { .. } | Cmd::Edge { .. } => {
            tokio::runtime::Builder::new_multi_thread()
        },
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("no runtime: {error}")).report(),
    };
    let ended = check_environment(&command).and_then(|()| runtime.block_on(run(cli.command)));
    // A blocked read of stdin must not keep a finished command alive.
    runtime.shutdown_background();
    ended.unwrap_or_else(|failure| failure.report())
}

/// What is wrong with the command line, on one line: stderr is read by scripts too.
fn first_sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let sentence = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = sentence.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

async fn run(command: Cmd) -> Result<ExitCode, Failure> {
    match command {
        Cmd::Dev {
            sources,
            flags,
            log,
        } => server::dev::run(&sources, &flags, &log).await?,
        Cmd::Node {
            command: Some(command),
            ..
        } => command::cluster::run_node(&command).await?,
        Cmd::Node {
            command: None,
            sources,
            flags,
            log,
        } => server::node::run(&sources, &flags, &log).await?,
        Cmd::Edge {
            sources,
            flags,
            log,
        } => server::edge::run(&sources, &flags, &log).await?,
        Cmd::Token(args) => command::token::run(&args)?,
        Cmd::Session(args) => command::session::run(&args).await?,
        Cmd::Publish(args) => command::publish::run(&args).await?,
        Cmd::Tail(args) => command::tail::run(&args).await?,
        Cmd::Cancel(args) => return command::cancel::run(&args).await,
        Cmd::Pause(args) => return command::signal::pause(&args).await,
        Cmd::Resume(args) => return command::signal::resume(&args).await,
        Cmd::Approve(args) => return command::signal::answer(&args, Verdict::Approve).await,
        Cmd::Deny(args) => return command::signal::answer(&args, Verdict::Deny).await,
        Cmd::Agent(args) => agent::run(&args).await?,
        Cmd::Cluster(args) => command::cluster::run(&args).await?,
        Cmd::Status(args) => command::status::run(&args).await?,
        Cmd::Limits(args) => command::limits::run(&args)?,
        Cmd::Selftest(args) => selftest::run(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
