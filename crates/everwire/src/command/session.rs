//! `everwire session create|list|show|delete|unfreeze`.

use clap::{Args, Subcommand};
use everwire_client::SessionInfo;
use everwire_core::{Code, Refusal};
use serde_json::json;

use super::{Connection, session_name};
use crate::output::{Failure, line};

/// `everwire session`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    command: SessionCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum SessionCommand {
    /// Make a session; idempotent
    #[command(after_help = "Example:\n  everwire session create demo")]
    Create(Named),
    /// List sessions of the token's namespace; no global order
    #[command(after_help = "Example:\n  everwire session list chat- --json")]
    List(Listed),
    /// Show shard, leader, tail, trimmed, bytes, attachments and open runs
    #[command(after_help = "Example:\n  everwire session show demo --json")]
    Show(Named),
    /// Remove a session: its name at once, its events after it
    #[command(after_help = "Example:\n  everwire session delete demo")]
    Delete(Named),
    /// Let a frozen session take commands again; needs the capability operate
    #[command(after_help = "Example:\n  everwire session unfreeze demo")]
    Unfreeze(Named),
}

#[derive(Args, Clone, Debug)]
struct Named {
    /// The session
    name: String,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug)]
struct Listed {
    /// Only names that begin so
    #[arg(default_value = "")]
    prefix: String,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object a line on stdout
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(crate) async fn run(args: &SessionArgs) -> Result<(), Failure> {
    match &args.command {
        SessionCommand::Create(named) => create(named).await,
        SessionCommand::List(listed) => list(listed).await,
        SessionCommand::Show(named) => show(named).await,
        SessionCommand::Delete(named) => delete(named).await,
        SessionCommand::Unfreeze(named) => unfreeze(named).await,
    }
}

async fn create(args: &Named) -> Result<(), Failure> {
    let session = session_name(&args.name)?;
    let made = args.connection.client()?.create_session(&session).await?;
    if args.json {
        let value = json!({
            "session": session.as_str(),
            "session_epoch": made.session_epoch.to_string(),
            "tail": made.tail.get(),
            "created": made.created,
        });
        return line(&value.to_string());
    }
    let how = if made.created { "created" } else { "was there" };
    line(&format!(
        "{session} {how}, epoch {}, tail {}",
        made.session_epoch, made.tail
    ))
}

async fn list(args: &Listed) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let mut page = None;
    loop {
        let answer = client.list_sessions(&args.prefix, 1000, page).await?;
        for listed in &answer.sessions {
            let text = if args.json {
                json!({
                    "session": listed.session.as_str(),
                    "shard": listed.shard.0,
                    "tail": listed.tail.get(),
                    "last": everwire_proto::json::time_to_json(listed.last),
                })
                .to_string()
            } else {
                format!(
                    "{}\tshard {}\ttail {}",
                    listed.session, listed.shard, listed.tail
                )
            };
            line(&text)?;
        }
        page = answer.next_page;
        if page.is_none() {
            return Ok(());
        }
    }
}

async fn show(args: &Named) -> Result<(), Failure> {
    let session = session_name(&args.name)?;
    let info = args.connection.client()?.show_session(&session).await?;
    if args.json {
        return line(&shown(&info).to_string());
    }
    let runs: Vec<_> = info.open_runs.iter().map(|run| run.as_str()).collect();
    line(&format!("session      {}", info.session))?;
    line(&format!("epoch        {}", info.session_epoch))?;
    line(&format!("shard        {}", info.shard))?;
    line(&format!(
        "leader       {}",
        info.leader.as_deref().unwrap_or("none")
    ))?;
    line(&format!("tail         {}", info.tail))?;
    line(&format!("trimmed      {}", info.trimmed))?;
    line(&format!("bytes        {}", info.bytes))?;
    line(&format!("attachments  {}", info.attachments))?;
    line(&format!(
        "open runs    {}",
        if runs.is_empty() {
            "none".into()
        } else {
            runs.join(" ")
        }
    ))?;
    if let Some(frozen) = &info.frozen {
        let since = everwire_proto::json::time_to_json(frozen.time);
        line(&format!(
            "frozen       since {since}, by a {}",
            frozen.command
        ))?;
    }
    Ok(())
}

fn shown(info: &SessionInfo) -> serde_json::Value {
    json!({
        "session": info.session.as_str(),
        "session_epoch": info.session_epoch.to_string(),
        "shard": info.shard.0,
        "leader": info.leader,
        "tail": info.tail.get(),
        "trimmed": info.trimmed.get(),
        "bytes": info.bytes,
        "created": everwire_proto::json::time_to_json(info.created),
        "last": everwire_proto::json::time_to_json(info.last),
        "attachments": info.attachments,
        "open_runs": info.open_runs.iter().map(|run| run.as_str()).collect::<Vec<_>>(),
        "frozen": info.frozen.as_ref().map(|frozen| json!({
            "by": frozen.command,
            "time": everwire_proto::json::time_to_json(frozen.time),
        })),
    })
}

async fn delete(args: &Named) -> Result<(), Failure> {
    let session = session_name(&args.name)?;
    let existed = args.connection.client()?.delete_session(&session).await?;
    if !existed {
        let message = format!("there is no session {session}");
        return Err(Refusal::new(Code::UnknownSession, message).into());
    }
    if args.json {
        return line(&json!({"session": session.as_str(), "deleted": true}).to_string());
    }
    line(&format!("{session} deleted"))
}

async fn unfreeze(args: &Named) -> Result<(), Failure> {
    let session = session_name(&args.name)?;
    let frozen = args.connection.client()?.unfreeze_session(&session).await?;
    if args.json {
        let value = json!({"session": session.as_str(), "unfrozen": frozen});
        return line(&value.to_string());
    }
    let how = if frozen { "unfrozen" } else { "was not frozen" };
    line(&format!("{session} {how}"))
}
