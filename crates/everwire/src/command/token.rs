//! `everwire token`: mints a token, or a key to mint with.

use std::path::PathBuf;

use clap::Args;
use everwire_core::grant::Claims;
use everwire_core::{Namespace, ParticipantId, ParticipantKind};
use everwire_proto::token::{Signer, allow};

use crate::config::duration;
use crate::output::{Failure, line, note, parsed};
use crate::server::{keys::write_key_pair, read_file};
use crate::system::SystemClock;

/// `everwire token`.
#[derive(Args, Clone, Debug)]
pub(crate) struct TokenArgs {
    /// The tenant; * for an edge that serves all
    #[arg(long, required_unless_present = "new_key")]
    namespace: Option<String>,
    /// Who it is for
    #[arg(long, required_unless_present = "new_key")]
    participant: Option<String>,
    /// user, agent, operator or edge
    #[arg(long, required_unless_present = "new_key")]
    kind: Option<String>,
    /// A session pattern and what is allowed there: 'chat-*=subscribe,publish'; repeatable
    #[arg(long, value_name = "PATTERN=CAP,CAP")]
    allow: Vec<String>,
    /// How long it lives: 90s, 15m, 1h, 7d
    #[arg(long, default_value = "1h")]
    ttl: String,
    /// The PEM private key, or the secret for HS256
    #[arg(
        long,
        env = "EVERWIRE_TOKEN_KEY",
        value_name = "FILE",
        required_unless_present = "new_key"
    )]
    key: Option<PathBuf>,
    /// Write a new Ed25519 key to FILE and its public half to FILE.pub, and stop
    #[arg(long, value_name = "FILE", exclusive = true)]
    new_key: Option<PathBuf>,
}

/// Prints a token, nothing else.
pub(crate) fn run(args: &TokenArgs) -> Result<(), Failure> {
    if let Some(path) = &args.new_key {
        if path.exists() {
            return Err(Failure::usage(format!(
                "{} is there already",
                path.display()
            )));
        }
        write_key_pair(path)?;
        note(&format!("wrote {0} (private) and {0}.pub", path.display()));
        return Ok(());
    }
    let needed = |what: &str, value: &Option<String>| {
        value
            .clone()
            .ok_or_else(|| Failure::usage(format!("--{what} is needed")))
    };
    let kind = needed("kind", &args.kind)?;
    let kind = ParticipantKind::parse(&kind)
        .ok_or_else(|| Failure::usage(format!("--kind {kind:?}: user, agent, operator or edge")))?;
    let namespace = needed("namespace", &args.namespace)?;
    let namespace = match namespace.as_str() {
        "*" if kind == ParticipantKind::Edge => None,
        "*" => return Err(Failure::usage("--namespace '*' is for edges only")),
        text => Some(parsed("--namespace", text, Namespace::parse(text))?),
    };
    let participant = needed("participant", &args.participant)?;
    let now = SystemClock::shared().now();
    let claims = Claims {
        namespace,
        participant: parsed(
            "--participant",
            &participant,
            ParticipantId::parse(&participant),
        )?,
        kind,
        allow: args
            .allow
            .iter()
            .map(|text| allowed(text))
            .collect::<Result<_, _>>()?,
        expires: now.plus(duration("--ttl", &args.ttl)?),
    };
    let key = args
        .key
        .as_ref()
        .ok_or_else(|| Failure::usage("--key is needed"))?;
    let signer = Signer::new(&read_file("--key", key)?)
        .map_err(|error| Failure::usage(format!("--key cannot be used: {error}")))?;
    line(&signer.mint(&claims, now)?)
}

fn allowed(
    text: &str,
) -> Result<
    (
        everwire_core::grant::Pattern,
        std::collections::BTreeSet<everwire_core::grant::Capability>,
    ),
    Failure,
> {
    let (pattern, words) = text
        .split_once('=')
        .ok_or_else(|| Failure::usage(format!("--allow {text:?}: PATTERN=CAP,CAP")))?;
    let words = words
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    allow(pattern, words).map_err(|refusal| Failure::usage(format!("--allow {text:?}: {refusal}")))
}
